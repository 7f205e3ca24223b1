"""What stands in a gradient in closed form: of one sample, inputs of linear layers, and noise.

Of one sample, the gradient of a layer ``W h + b`` is ``d h^T`` in W and ``d`` in b, d being that of
its output. So its input h follows from the two without any search, whatever comes before or after
it (Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715, section III), and with the inputs of
the layers around it the noise of a bottleneck is known as well.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.calls import Call, entering, skipping
from fedleak.models.noise import Noise, inject
from fedleak.updates import Knowledge, Tensors

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]

# An input known worse than this, relative to its own size, is not built upon.
TRUSTED = 1e-2
# Of what a restored noise gives, from what it should give.
AGREEMENT = 1e-3
# Entries of a gradient whose magnitudes are so much alike are signs: the square of their mean over
# the mean of their squares.
SIGNS = 0.9995
# Times that the rows are weighted anew, where more than rounding is unexplained.
REWEIGHTED = 4
ROUNDING = 1e-6


class KnownInput(NamedTuple):
    """A layer's input, read from a gradient.

    Args:
        value: the input, float64.
        error: the estimated standard error of an entry over the root mean square of all; infinite
            if nothing is known.
    """

    value: Tensor
    error: float

    @property
    def trusted(self) -> bool:
        """Whether it is known well enough to build on."""
        return self.error <= TRUSTED


def linear_input(weight: Tensor, leaving: Tensor) -> KnownInput:
    """The input of a linear layer, from the gradient of its weight and that of its output.

    The least squares solution of ``weight = leaving input^T`` over all rows. Rows are weighted by
    the inverse variance of what the others leave unexplained in them, as noise need not be alike in
    all, and entries of 0 count as cut off, unless their whole column is 0.

    Args:
        weight: gradient of the weight, ``(out, in)``.
        leaving: gradient of the output, which is that of the bias, ``(out,)``.

    Returns:
        The input ``(in,)``; with an infinite error where nothing tells of it: of a gradient with
        less than two rows, and of signs, as a client's Adam leaves them after one step, which are a
        product as well, but with the input's signs.
    """
    weight, leaving = weight.double(), leaving.double()
    size = weight.shape[1]
    if not bool(leaving.any()) or not bool(weight.any()):
        return KnownInput(torch.zeros(size, dtype=weight.dtype, device=weight.device), float("inf"))
    limits = torch.finfo(weight.dtype)
    counted = leaving != 0
    if int(counted.sum()) < 2:  # a single row always fits
        return KnownInput(weight[counted].sum(0) / leaving.sum(), float("inf"))
    weight, leaving = weight[counted], leaving[counted]
    # Two classes always have gradients of one magnitude.
    if (len(leaving) == 2 or _are_signs(leaving)) and _are_signs(weight[weight != 0]):
        return KnownInput(weight.sign().T @ leaving.sign() / len(leaving), float("inf"))
    # An entry of 0 between others of its column was cut off by somebody.
    there = (weight != 0).to(weight)
    rows = weight.square().mean(dim=1)
    # Rounding is the least that is unexplained; a row that happens to fit must not decide alone.
    floor = (limits.eps * rows.mean()).clamp_min(limits.tiny)
    variance = torch.ones_like(leaving)
    for weighting in range(1 + REWEIGHTED):
        shares = leaving.square() / variance
        found = (weight.T @ (leaving / variance)) / (there.T @ shares).clamp_min(limits.tiny)
        # A row is judged by what the others say of it: its own share fits itself.
        others = (1 - shares / shares.sum()).clamp_min(limits.eps**0.5)
        missed = (there * (weight - torch.outer(leaving, found))).square().mean(dim=1)
        variance = missed / others.square() + floor
        if not weighting and float(missed.sum()) <= ROUNDING**2 * float(rows.sum()):
            break
    unexplained = float((missed.sum() / rows.sum()).sqrt())
    precision = (leaving.square() / variance).sum()
    scale = found.square().mean().sqrt().clamp_min(limits.tiny)
    error = float(precision.rsqrt() / scale)
    return KnownInput(found, error if unexplained < 1 else float("inf"))


def _are_signs(entries: Tensor) -> bool:
    sizes = entries.abs()
    return float(sizes.mean().square() / sizes.square().mean()) > SIGNS


def readable(gradient: Tensors, layers: Sequence[Call], samples: int) -> list[Call]:
    """The linear layers with bias whose gradient tells of their input, in the order of the calls.

    Layers that are called more than once, share their weight or take several vectors of a sample
    are left out.

    Args:
        gradient: gradient by parameter name.
        layers: the model's calls.
        samples: number of samples.
    """
    calls = Counter(call.name for call in layers)
    linear = [(call, call.module) for call in layers if type(call.module) is nn.Linear]
    uses = Counter(id(module.weight) for _, module in linear)
    return [
        call
        for call, module in linear
        if calls[call.name] == uses[id(module.weight)] == 1
        and {f"{call.name}.weight", f"{call.name}.bias"} <= set(gradient)
        and call.entering.numel() == samples * module.in_features
    ]


def known_inputs(gradient: Tensors, layers: Sequence[Call]) -> dict[str, KnownInput]:
    """The inputs ``(1, in)`` of all linear layers with bias, by name in the order of the calls.

    Args:
        gradient: of one sample, by parameter name.
        layers: the model's calls.
    """
    found: dict[str, KnownInput] = {}
    for call in readable(gradient, layers, 1):
        weight, bias = (gradient[f"{call.name}.{name}"] for name in ("weight", "bias"))
        known = linear_input(weight, bias)
        found[call.name] = known._replace(value=known.value[None])
    return found


def first_linear(knowledge: Knowledge) -> str | None:
    """The first layer with weights, if it is linear with bias and takes all entries of a sample.

    Args:
        knowledge: gives the model, whose modules are taken to be held in the order of their use.
    """
    size = torch.Size(knowledge.input_shape).numel()
    for name, module in knowledge.model.named_modules():
        own = {part for part, _ in module.named_parameters(recurse=False)}
        if own:
            fits = type(module) is nn.Linear and module.in_features == size
            return name if fits and own == {"weight", "bias"} else None
    return None


class Head:
    """A model from one of its layers on, whose input is known.

    Args:
        model: a float64 copy of the model.
        loss: the loss of a batch.
        batch: inputs and labels; only the shape of the inputs counts.
        layer: name of the layer.
        value: what enters the layer, ``(samples, ...)``.
        skipped: calls before the layer that need not be computed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batch: tuple[Tensor, Tensor],
        layer: str,
        value: Tensor,
        skipped: Sequence[Call] = (),
    ) -> None:
        self._model, self._loss, self._batch = model, loss, batch
        self._layer, self.value, self._skipped = layer, value, skipped

    def is_all(self) -> bool:
        """Whether the loss depends on what is before the layer by the layer's input alone."""
        generator = torch.Generator().manual_seed(0)
        like = self._batch[0]
        inputs = torch.randn(like.shape, generator=generator, dtype=like.dtype).requires_grad_()
        with torch.random.fork_rng(), entering(self._model, {self._layer: self.value}):
            loss = self._loss(self._model, (inputs, self._batch[1]))
            # Added, as inputs that the loss does not depend on would have no gradient.
            (around,) = torch.autograd.grad(loss + 0 * inputs.sum(), inputs)
        return not bool(around.any())

    def signal(self, noise: Mapping[str, Tensor]) -> Tensor:
        """The loss's gradient in the layer's input, for noise by slot."""
        value = self.value.detach().clone().requires_grad_()
        loss = self._run(value, noise)
        (found,) = torch.autograd.grad(loss, value)
        return found

    def leaving_gradient(self, noise: Mapping[str, Tensor]) -> Tensor:
        """The loss's gradient in the layer's output, for noise by slot."""
        seen: list[Tensor] = []
        value = self.value.detach().clone().requires_grad_()

        def note(_module: nn.Module, _args: object, leaving: Tensor) -> Tensor:
            seen.append(leaving)
            return leaving.clone()  # what follows may change it in place

        handle = self._model.get_submodule(self._layer).register_forward_hook(note)
        try:
            loss = self._run(value, noise)
        finally:
            handle.remove()
        (found,) = torch.autograd.grad(loss, seen[0])
        return found

    def input_of(self, layer: str, noise: Mapping[str, Tensor]) -> Tensor:
        """What enters another layer, ``(samples, ...)``, for noise by slot."""
        seen: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            seen.append((args[0] if args else next(iter(kwargs.values()))).detach())

        handle = self._model.get_submodule(layer).register_forward_pre_hook(note, with_kwargs=True)
        try:
            with torch.no_grad():
                self._run(self.value, noise)
        finally:
            handle.remove()
        return seen[0]

    def _run(self, value: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The loss, with a value that enters the layer and noise by slot."""
        given = entering(self._model, {self._layer: value})
        with skipping(self._skipped), given, inject(self._model, noise):
            return self._loss(self._model, self._batch)


def restore_noise(
    head: Head, layers: Sequence[Call], inputs: Mapping[str, KnownInput]
) -> tuple[Tensors, list[str]]:
    """The noise of the slots behind a layer whose input is known.

    A slot's noise is read off the input of the next linear layer, where every entry of that is
    linear in its own entry of the noise, as in ``z = mean + eps * deviation``.

    Args:
        head: the model from the known layer on.
        layers: its calls from that layer on.
        inputs: what is known of the inputs of its linear layers.

    Returns:
        Slot -> noise ``(samples, ...)``, and the slots whose noise cannot be read.
    """
    slots = [at for at, call in enumerate(layers) if isinstance(call.module, Noise)]
    found: Tensors = {}
    failed: list[str] = []
    # Those not yet known are held at 0.
    rest = {layers[at].name: torch.zeros_like(layers[at].leaving) for at in slots}
    readers = {
        at: next((call for call in layers[at:] if call.name in inputs), None) for at in slots
    }
    uses = Counter(call.name for call in readers.values() if call is not None)
    for at, behind in readers.items():
        slot = layers[at]
        zero, one = torch.zeros_like(slot.leaving), torch.ones_like(slot.leaving)
        # Two unknowns for one number: neither is to be had.
        shared = behind is not None and uses[behind.name] > 1
        if behind is None or shared or behind.entering.shape != zero.shape:
            failed.append(slot.name)
            continue

        def give(noise: Tensor, name: str = slot.name, layer: str = behind.name) -> Tensor:
            return head.input_of(layer, rest | found | {name: noise})

        start = give(zero)
        slope = give(one) - start
        wanted = inputs[behind.name]
        value = wanted.value.reshape(start.shape)
        left = value - start
        size = left.abs().amax().clamp_min(torch.finfo(left.dtype).tiny)
        # Where it makes no difference, as that of a mask on a 0, any value serves.
        noise = torch.where((slope == 0) & (left.abs() <= AGREEMENT * size), 0.0, left / slope)
        missed = (give(noise) - value).norm() / value.norm()
        if wanted.trusted and bool(noise.isfinite().all()) and float(missed) <= AGREEMENT:
            found[slot.name] = noise
        else:
            failed.append(slot.name)
    return found, failed
