"""The noise of a bottleneck in closed form, from the inputs of the layers around it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import KnownInput
from fedleak.attacks.module_calls import Call, entering, skipping
from fedleak.models.module_inputs import module_input
from fedleak.models.noise import Noise, inject
from fedleak.updates.files import Tensors

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
# Of what a restored noise gives, from what it should give.
AGREEMENT = 1e-3


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
            seen.append(module_input(args, kwargs).detach())

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
