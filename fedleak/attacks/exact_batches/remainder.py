"""What is left of a gradient when the samples that were found are subtracted from it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.factorisation import Factors, factorise
from fedleak.attacks.exact_batches.network import Network

# Of an entry's rounding error, in units of unit roundoff times the root mean square of its row.
ROUNDING = 1.0


@dataclass(frozen=True)
class Samples:
    """Samples that were found.

    Args:
        inputs: ``(samples, entries)``, float64.
        labels: ``(samples,)``.
        counts: how often each occurs in the batch, ``(samples,)``.
        residuals: softmax minus one-hot label as the client had them, times the count,
            ``(samples, classes)``.
        bounds: bound on the Euclidean norm of each one's error, normalised, ``(samples,)``; 0 of
            samples that are taken for 8-bit images.
        unconditional: the same bound where no sample is taken for an 8-bit image, ``(samples,)``.
    """

    inputs: Tensor
    labels: Tensor
    counts: Tensor
    residuals: Tensor
    bounds: Tensor
    unconditional: Tensor

    @classmethod
    def none(cls, entries: int, classes: int) -> "Samples":
        """No samples.

        Args:
            entries: number of entries of a sample.
            classes: number of classes.
        """
        empty, whole = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.long)
        inputs, residuals = empty.reshape(0, entries), empty.reshape(0, classes)
        return cls(inputs, whole, whole, residuals, empty, empty)

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: "Samples") -> "Samples":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Samples(*(torch.cat(pair) for pair in pairs))

    def __getitem__(self, chosen: Tensor) -> "Samples":
        return Samples(*(value[chosen] for value in vars(self).values()))


class Remainder:
    """A gradient without the parts of the samples found so far.

    It is computed from the gradient that came each time, so that errors do not add up.

    Args:
        network: the network.
        gradients: of each hidden layer, from :meth:`Network.gradients`, with the head's or without.
        batch: number of samples of the gradient.
        generator: source of random draws.
        noise: of each hidden layer, standard deviation of a further error of each row's entries,
            ``(out,)``, as of weights instead of a gradient. If None, there is none.

    Attributes:
        found: the samples found so far.
    """

    def __init__(
        self,
        network: Network,
        gradients: list[Tensor],
        batch: int,
        generator: torch.Generator,
        noise: list[Tensor] | None = None,
    ) -> None:
        self.network, self.gradients, self.batch = network, gradients, batch
        self.found = Samples.none(network.weights[0].shape[1], network.classes)
        self._generator, self._noise = generator, noise
        self._matrices: dict[int, Tensor] = {}
        self._factors: dict[tuple[int, bool], Factors] = {}
        self._trace = network.trace(self.found.inputs)

    @property
    def missing(self) -> int:
        """Number of samples that were not found."""
        return self.batch - int(self.found.counts.sum())

    def add(self, samples: Samples) -> None:
        """Subtract further samples.

        Args:
            samples: they are taken to be in the batch.
        """
        self.set(self.found + samples)

    def set(self, samples: Samples) -> None:
        """Subtract these samples and no others.

        Args:
            samples: they are taken to be in the batch.
        """
        self.found = samples
        self._trace = self.network.trace(samples.inputs)
        self._forget()

    def set_residuals(self, residuals: Tensor) -> None:
        """Replace the residuals of the samples that were found.

        Args:
            residuals: ``(samples, classes)``.
        """
        self.found = replace(self.found, residuals=residuals)
        self._forget()

    def _forget(self) -> None:
        self._matrices, self._factors = {}, {}

    @property
    def masks(self) -> list[Tensor]:
        """Active units of the found samples, ``(samples, out)`` for each hidden layer."""
        return self._trace.masks

    def signals(self, layer: int) -> Tensor:
        """The found samples' signals in a layer, ``(samples, out)``.

        Args:
            layer: number of a layer.
        """
        if layer == self.network.hidden:
            return self.network.scale * self.found.residuals
        return self.network.signals(self._trace.masks, self.found.residuals)[layer]

    def entering(self, layer: int) -> Tensor:
        """The found samples' inputs of a layer, with the 1 for its bias, ``(samples, in + 1)``.

        Args:
            layer: number of a hidden layer.
        """
        return self.network.extended(layer, self._trace.inputs[layer])

    def matrix(self, layer: int) -> Tensor:
        """What is left of a layer's gradient, ``(out, in + 1)``.

        Args:
            layer: number of a hidden layer.
        """
        if layer not in self._matrices:
            taken = self.signals(layer).T @ self.entering(layer)
            self._matrices[layer] = self.gradients[layer] - taken
        return self._matrices[layer]

    def factors(self, layer: int, *, weighted: bool = False) -> Factors:
        """Factors of what is left of a layer's gradient.

        Args:
            layer: number of a hidden layer.
            weighted: whether rows are divided by their rounding errors first, so that the rows of
                few samples, which are the most exact, count as much as they can.
        """
        if (layer, weighted) not in self._factors:
            own = self._factorised(self.matrix(layer), layer, weighted)
            self._factors[layer, weighted] = own
        return self._factors[layer, weighted]

    def rank(self) -> int:
        """Rank of what is left of the first layer's gradient, off the inputs of the found samples.

        The client's signals are rounded too, which leaves multiples of the found samples' inputs.
        """
        matrix, entering = self.matrix(0), self.entering(0)
        if len(entering):
            matrix = matrix - (matrix @ torch.linalg.pinv(entering, rtol=1e-9)) @ entering
        return self._factorised(matrix, 0, True, self.batch).rank

    def _factorised(
        self, matrix: Tensor, layer: int, weighted: bool, most: int | None = None
    ) -> Factors:
        rounding = self.rounding(layer)
        floor = float(rounding.square().mean().sqrt())
        even = (rounding > 0).to(rounding)
        weights = (floor / rounding).nan_to_num(0, 0, 0) if weighted else even
        most = self.missing if most is None else most
        return factorise(matrix, most, floor, self._generator, weights)

    def inherited(self, layer: int, *, conditional: bool = True) -> Tensor:
        """Bound on the norm of the error that found samples leave in each row, ``(out,)``.

        A found sample's own error, and that of its signal, as the client's logits are rounded. The
        first layer's input is the sample; a later layer's is taken to be as wrong.

        Args:
            layer: number of a hidden layer.
            conditional: whether samples that are taken for 8-bit images have no error.
        """
        logits = self._trace.inputs[-1].abs() @ self.network.weights[-1].abs().T
        softmax = self._trace.softmax
        changes = softmax * (1 - softmax) * logits.amax(dim=1, keepdim=True)
        shares = self.network.unit * changes.norm(dim=1)
        shares = shares / self.found.residuals.norm(dim=1).clamp_min(1e-300)
        errors = self.found.bounds if conditional else self.found.unconditional
        own: Tensor = errors + shares * self.entering(layer).norm(dim=1)
        bounds: Tensor = self.signals(layer).abs().T @ own
        return bounds

    def noise(self, factors: Factors, layer: int, *, conditional: bool = True) -> float:
        """Root mean square of an entry of the noise in a layer's remainder, all sources together.

        Args:
            factors: of the layer's remainder.
            layer: number of a hidden layer.
            conditional: see :meth:`inherited`.
        """
        size = math.sqrt(self.gradients[layer].numel())
        inherited = self.inherited(layer, conditional=conditional)
        return factors.noise + float(inherited.norm()) / size

    def worse(self) -> float:
        """How many times the noise is as large where no sample is taken for an 8-bit image."""
        found = 1.0
        if torch.equal(self.found.bounds, self.found.unconditional):
            return found
        for layer in range(len(self.gradients)):
            factors = self.factors(layer)
            least = max(self.noise(factors, layer), 1e-300)
            found = max(found, self.noise(factors, layer, conditional=False) / least)
        return found

    def rounding(self, layer: int) -> Tensor:
        """Standard deviation of the rounding error of an entry of each row, ``(out,)``.

        An entry is a sum over the batch, each of whose terms and partial sums is rounded: its error
        is a few units of roundoff of the row's size.

        Args:
            layer: number of a hidden layer.
        """
        gradient = self.gradients[layer]
        sizes = gradient.square().mean(dim=1)
        if len(self.found):
            # Parts that cancel have left no trace in the sum.
            inputs = self.entering(layer).square().mean(dim=1)
            sizes = torch.maximum(sizes, self.signals(layer).square().T @ inputs)
        own: Tensor = ROUNDING * self.network.unit * sizes.sqrt()
        return own if self._noise is None else (own.square() + self._noise[layer].square()).sqrt()
