"""What a client's several local steps would send, differentiable in its inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.costs import Products
from fedleak.attacks.gradients import DummyGradient, Target
from fedleak.attacks.priors import Statistics
from fedleak.updates import Knowledge, Tensors


def cannot_simulate(knowledge: Knowledge) -> str | None:
    """Why a client's local training cannot be simulated; none if it can.

    Args:
        knowledge: what the server knows of it.
    """
    if not knowledge.plain_sgd:
        return "the clients' optimiser is not plain SGD"
    batches = len(knowledge.local_batches)
    if knowledge.local_steps % batches:
        return f"{knowledge.local_steps} local steps are no whole epochs of {batches} batches"
    return None


class DummyUpdate:
    """The mean gradient of local steps of plain SGD for given inputs, labels and noise.

    The steps are done one after the other and differentiated through, as Geiping et al. (2020,
    https://arxiv.org/abs/2003.14053) and Dimitrov et al. (2022, https://arxiv.org/abs/2206.12395)
    do it; each step draws noise of its own. The order of the samples is that of the first epoch,
    and presumed to be the same in the later ones. What a step does to a linear layer is a product
    of few rows, so that its weights are neither built nor moved.

    Args:
        model: a private copy of the model with the weights that were sent, parameters not requiring
            gradients; it is changed as by :class:`DummyGradient`.
        knowledge: gives loss, learning rate, the samples of each step and the number of epochs, and
            the parameters that a client trains.
        batch: an example ``(inputs, labels)`` of all samples, for the shapes.
        noise: an example of their noise, see :meth:`evaluate`.
    """

    def __init__(
        self,
        model: nn.Module,
        knowledge: Knowledge,
        batch: tuple[Tensor, Tensor],
        noise: Mapping[str, Tensor],
    ) -> None:
        self._facts = knowledge
        frozen = {n for n, v in knowledge.model.named_parameters() if not v.requires_grad}
        part = knowledge.local_batches[0]
        self._dummy = DummyGradient(
            model,
            knowledge.loss,
            (batch[0][part], batch[1][part]),
            self._of_step(noise, part, 0),
            dense=[name.rpartition(".")[0] for name in frozen],
        )
        self._trained = self._dummy.free.keys() - frozen

    def targets(self, gradients: Sequence[Tensors], rank: int) -> Target:
        """Target gradients of several updates, see :meth:`DummyGradient.targets`.

        Args:
            gradients: mean gradient by parameter name, one for each update.
            rank: the highest rank of one step's gradient to try.
        """
        return self._dummy.targets(gradients, rank * self._facts.epochs)

    def evaluate(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """Products of the mean gradient with one target, see :meth:`DummyGradient.evaluate`.

        Noise is ``(num_samples, ...)``, of several epochs ``(num_samples, epochs, ...)``. What
        entered batch-norm layers is averaged over the steps; of frozen parameters the products mean
        nothing, and of watched modules there are none.
        """
        rate, steps = self._facts.learning_rate, self._facts.local_steps
        free, gone = self._dummy.free, dict.fromkeys(self._dummy.free, torch.zeros(()).to(inputs))
        passed: dict[str, list[tuple[Tensor, Tensor]]] = {}
        seen: list[Statistics] = []
        for epoch in range(self._facts.epochs):
            for part in self._facts.local_batches:
                moves = {layer: _moved(rows, -rate) for layer, rows in passed.items()}
                gradients, layers, (statistics, _) = self._dummy.differentiate(
                    (inputs[part], labels[part]), self._of_step(noise, part, epoch), free, moves
                )
                seen.append(statistics)
                for layer, rows in layers.items():
                    passed.setdefault(layer, []).append(rows)
                gone = {name: value + gradients[name] / steps for name, value in gone.items()}
                free = free | {n: free[n] - rate * gradients[n] for n in self._trained}
        mean = {layer: _moved(rows, 1 / steps) for layer, rows in passed.items()}
        return self._dummy.compare(gone, mean, target), _averaged(seen), {}

    def _of_step(self, noise: Mapping[str, Tensor], part: slice, epoch: int) -> Tensors:
        several = self._facts.epochs > 1
        return {n: value[part, epoch] if several else value[part] for n, value in noise.items()}


def _moved(rows: Sequence[tuple[Tensor, Tensor]], factor: float) -> tuple[Tensor, Tensor]:
    """The rows of a sum of gradients, times a factor."""
    entering, leaving = zip(*rows, strict=True)
    return torch.cat(entering), factor * torch.cat(leaving)


def _averaged(statistics: Sequence[Statistics]) -> Statistics:
    def mean(layer: str, part: int) -> Tensor:
        return torch.stack([found[layer][part] for found in statistics]).mean(dim=0)

    return {layer: (mean(layer, 0), mean(layer, 1)) for layer in statistics[0]}
