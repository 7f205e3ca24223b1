"""Products of a model's dummy gradient with target gradients, differentiable in the inputs.

The gradient of a linear layer's weight is ``sum_n d_n h_n^T`` over its rows n, where h are the
layer's inputs and d the gradients of its outputs. So its squared norm is a sum over pairs of rows,
``sum_nm (d_n.d_m)(h_n.h_m)``, and its inner product with a target T is ``sum_n d_n^T T h_n``: the
weight gradient itself, the largest tensor by far, is never built. A target that is the gradient of
few samples is itself a product ``U V^T`` of low rank, which is used in place of T.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedleak.attacks.matching.costs import Products
from fedleak.attacks.matching.differentiation import gradients
from fedleak.attacks.matching.hooks import (
    BatchNormHooks,
    InputHooks,
    LinearHooks,
    LossModule,
    Rows,
)
from fedleak.attacks.matching.priors import Statistics
from fedleak.attacks.module_facts import drop_running_statistics
from fedleak.models.noise import inject
from fedleak.updates.compression import Factors
from fedleak.updates.files import Tensors

Target = dict[str, tuple[Tensor, ...]]

# A target is factorised if the factors' relative error is below this: rounding of an exact product
# in float32 is about 3e-8, a defence's noise is larger by orders of magnitude.
LOW_RANK_TOLERANCE = 1e-6


class DummyGradient:
    """The gradient that a client would have sent for given inputs, labels and noise.

    Args:
        model: a private copy of the model, parameters not requiring gradients; hooks are added to
            its linear layers, and the running statistics of its batch-norm layers in train mode,
            which do not use them, are removed.
        loss: the loss of a batch, given model and batch.
        batch: an example ``(inputs, labels)``, for the shapes.
        noise: an example of the noise, by slot.
        watched: names of modules whose inputs are to be returned as well.
        dense: names of linear layers whose weight gradients are to be built.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        batch: tuple[Tensor, Tensor],
        noise: Mapping[str, Tensor],
        watched: Sequence[str] = (),
        dense: Sequence[str] = (),
    ) -> None:
        self._holder = LossModule(model, loss)
        drop_running_statistics(model)
        self._linear = LinearHooks(model)
        self._batch_norm = BatchNormHooks(model)
        self._inputs = InputHooks(model, watched)
        self._shapes: dict[int, dict[str, list[tuple[int, ...]]]] = {}
        self.prepare(batch, noise)
        self._factored = [layer for layer in self._shapes[len(batch[0])] if layer not in dense]
        used = self._used_elsewhere(batch, noise)
        self._factored = [layer for layer in self._factored if layer not in used]
        self.free = self._built_parameters()
        """The parameters whose gradients are built."""

    def prepare(self, batch: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]) -> None:
        """Prepare for batches of another size than the example's.

        Args:
            batch: an example of them, ``(inputs, labels)``.
            noise: an example of their noise, by slot.
        """
        taking = inject(self._holder.model, noise)
        with self._linear.shapes() as shapes, taking, torch.no_grad():
            self._holder(batch)
        self._shapes[len(batch[0])] = shapes

    def targets(
        self,
        gradients: Sequence[Tensors],
        rank: int,
        known: Sequence[Mapping[str, Factors]] = (),
    ) -> Target:
        """Target gradients of several updates, stacked and factorised where that is exact.

        Args:
            gradients: gradient by parameter name, one for each update.
            rank: the highest rank to try, such as the number of samples.
            known: of each update, the vectors whose outer products some of its gradients are, as
                the client sent them; they are used as they are.

        Returns:
            Parameter name -> (stacked gradient, squared norms), or (U, V, squared norms) with
            U ``(updates, out, rank)`` and V ``(updates, in, rank)``.
        """
        result: Target = {}
        for name in gradients[0]:
            stacked = torch.stack([gradient[name] for gradient in gradients])
            norms = stacked.double().square().flatten(1).sum(dim=1).to(stacked.dtype)
            factors = None
            if name.removesuffix(".weight") in self._factored and name.endswith(".weight"):
                pairs = [factors_[name] for factors_ in known if name in factors_]
                if len(pairs) == len(gradients) and is_worthwhile(1, *stacked.shape[1:]):
                    rows, columns = zip(*pairs, strict=True)
                    factors = torch.stack(rows)[:, :, None], torch.stack(columns)[:, :, None]
                else:
                    factors = low_rank_factors(stacked, rank)
            result[name] = (stacked, norms) if factors is None else (*factors, norms)
        return result

    def products(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
    ) -> dict[str, Products]:
        """Products of the dummy gradient with one target, by parameter name.

        Args:
            inputs: ``(batch, ...)``.
            labels: ``(batch,)``.
            noise: slot -> noise ``(batch, ...)``.
            target: one entry (without the stacking dimension) of :meth:`targets`.

        Returns:
            Scalars, differentiable with respect to inputs and noise.
        """
        return self.evaluate(inputs, labels, noise, target)[0]

    def evaluate(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """The products, see :meth:`products`, with batch-norm statistics and watched inputs.

        Returns:
            Products by parameter name; by batch-norm layer the mean and variance ``(channels,)``
            of its input; by watched module its input. All are differentiable with respect to inputs
            and noise.
        """
        free, layers, (statistics, entered) = self.differentiate(
            (inputs, labels), noise, self.free, {}
        )
        return self.compare(free, layers, target), statistics, entered

    def compare(
        self, free: Tensors, layers: Rows, target: Mapping[str, tuple[Tensor, ...]]
    ) -> dict[str, Products]:
        """Products of a gradient with one target.

        Args:
            free: the gradients that were built, by parameter name.
            layers: factors of the others, as :meth:`differentiate` returns them.
            target: see :meth:`products`.
        """
        result = {name: dense_products(value, *target[name]) for name, value in free.items()}
        for layer, (entering, leaving) in layers.items():
            weight, *bias = self._linear.parameters(layer)
            result[weight] = linear_products(entering, leaving, target[weight])
            if bias:
                result[bias[0]] = dense_products(leaving.sum(dim=0), *target[bias[0]])
        return result

    def differentiate(
        self, batch: tuple[Tensor, Tensor], noise: Mapping[str, Tensor], free: Tensors, moves: Rows
    ) -> tuple[Tensors, Rows, tuple[Statistics, Tensors]]:
        """Differentiate the loss once.

        Args:
            batch: inputs and labels, of the example's size or one of :meth:`prepare`.
            noise: slot -> noise ``(batch, ...)``.
            free: values of the parameters whose gradients are built.
            moves: factors of the updates of the other weights, see :class:`LinearHooks`.

        Returns:
            Gradients of the free parameters; of every other linear layer the inputs ``(rows, in)``
            and the gradients of the outputs ``(rows, out)``; the batch-norm layers' statistics and
            the watched modules' inputs.
        """

        def loss_of(
            probes: dict[str, list[Tensor]], free: Tensors
        ) -> tuple[Tensor, tuple[dict[str, list[Tensor]], tuple[Statistics, Tensors]]]:
            self._linear.start(probes, moves)
            self._batch_norm.start()
            self._inputs.start()
            parameters = {f"model.{name}": value for name, value in free.items()}
            with inject(self._holder.model, noise):
                loss = functional_call(self._holder, parameters, (batch,))
            seen = self._batch_norm.statistics, self._inputs.entered
            return loss, (self._linear.inputs, seen)

        shapes = self._shapes[len(batch[0])]
        probes = {
            layer: [batch[0].new_zeros(shape) for shape in shapes[layer]]
            for layer in self._factored
        }
        (leaving, found), (entering, seen) = gradients(loss_of, (0, 1), probes, free)
        self._linear.stop()
        self._batch_norm.stop()
        self._inputs.stop()
        layers = {layer: (_rows(entering[layer]), _rows(leaving[layer])) for layer in leaving}
        return found, layers, seen

    def _built_parameters(self) -> Tensors:
        factored = {name for layer in self._factored for name in self._linear.parameters(layer)}
        parameters = self._holder.model.named_parameters()
        return {name: value.detach() for name, value in parameters if name not in factored}

    def _used_elsewhere(
        self, batch: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]
    ) -> list[str]:
        """Layers whose weights the loss also uses in another way, such as in a penalty.

        Autograd's gradient of their weights differs from the product of the factors.
        """

        def once() -> tuple[Tensors, Rows, object]:
            # A dropout must draw the same mask both times.
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return self.differentiate(batch, noise, self._built_parameters(), {})

        _, layers, _ = once()
        factored, self._factored = self._factored, []
        gradients, _, _ = once()
        self._factored = factored
        found = []
        for layer, (entering, leaving) in layers.items():
            products = (leaving.T @ entering, leaving.sum(dim=0))
            for name, value in zip(self._linear.parameters(layer), products, strict=False):
                allowed = torch.finfo(value.dtype).eps ** 0.5 * gradients[name].norm()
                if not (gradients[name] - value).norm() <= allowed:
                    found.append(layer)
                    break
        return found


def linear_products(inputs: Tensor, outputs: Tensor, target: Sequence[Tensor]) -> Products:
    """Products of the weight gradient ``outputs^T inputs`` with a target, without building it.

    Args:
        inputs: the layer's inputs ``(rows, in)``.
        outputs: the gradients of its outputs ``(rows, out)``.
        target: (gradient ``(out, in)``, squared norm) or (U ``(out, rank)``, V ``(in, rank)``,
            squared norm).
    """
    rows, features = inputs.shape
    *factors, norm = target
    if rows * rows > features * outputs.shape[1]:
        # With more pairs of rows than weights, building the weight gradient is cheaper.
        built = outputs.T @ inputs
        dense = factors[0] if len(factors) == 1 else factors[0] @ factors[1].T
        return dense_products(built, dense, norm)
    dummy = ((outputs @ outputs.T) * (inputs @ inputs.T)).sum()
    if len(factors) == 1:
        inner = ((outputs @ factors[0]) * inputs).sum()
    else:
        inner = ((outputs @ factors[0]) * (inputs @ factors[1])).sum()
    return Products(inner, dummy, norm)


def _rows(values: Sequence[Tensor]) -> Tensor:
    """A layer's inputs or output gradients of all its calls, as rows ``(rows, features)``."""
    return torch.cat([value.reshape(-1, value.shape[-1]) for value in values])


def low_rank_factors(stacked: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """Factors U V^T of every matrix in a stack, if all have at most that rank up to rounding.

    Args:
        stacked: ``(matrices, out, in)``.
        rank: the highest rank to try.

    Returns:
        U ``(matrices, out, rank)`` and V ``(matrices, in, rank)``. None if the rank of a matrix is
        higher, or if the factors are not much smaller than the matrix.
    """
    rows, columns = stacked.shape[1:]
    if not is_worthwhile(rank, rows, columns):
        return None
    left, right = [], []
    for matrix in stacked.double():
        # Range finder (Halko, Martinsson, Tropp 2011, algorithm 4.1) with fixed test vectors.
        generator = torch.Generator().manual_seed(0)
        test = torch.randn(columns, rank, generator=generator, dtype=matrix.dtype)
        basis, _ = torch.linalg.qr(matrix @ test.to(matrix.device))
        other = matrix.T @ basis
        missed = (matrix - basis @ other.T).norm()
        if not missed <= LOW_RANK_TOLERANCE * matrix.norm():
            return None
        left.append(basis)
        right.append(other)
    return torch.stack(left).to(stacked.dtype), torch.stack(right).to(stacked.dtype)


def is_worthwhile(rank: int, rows: int, columns: int) -> bool:
    """Whether factors of a rank are much smaller than their matrix."""
    return rank * (rows + columns) * 2 <= rows * columns


def dense_products(value: Tensor, target: Tensor, norm: Tensor) -> Products:
    """Products of a gradient that was built with a target of the same shape.

    Args:
        value: the dummy gradient.
        target: the target gradient.
        norm: the target's squared norm.
    """
    return Products((value * target).sum(), value.square().sum(), norm)
