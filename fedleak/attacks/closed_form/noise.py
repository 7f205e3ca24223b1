"""Noise of a variational bottleneck, from the inputs of the linear layers around it."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import KnownInput
from fedleak.attacks.module_calls import Call, replace_inputs, skip_calls
from fedleak.models.module_inputs import module_input
from fedleak.models.noise import Noise, inject
from fedleak.updates.files import Tensors

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
# Largest relative difference between what the restored noise yields and what it has to yield.
AGREEMENT = 1e-3


class Head:
    """The part of a model from one of its layers on, evaluated at a known input of that layer.

    Args:
        model: a float64 copy of the model.
        loss: the loss of a batch.
        batch: inputs and labels; of the inputs, only the shape is used.
        layer: name of the layer.
        value: input of the layer, ``(samples, ...)``.
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

    def determines_loss(self) -> bool:
        """Whether the loss depends on the model's input through the layer's input alone."""
        generator = torch.Generator().manual_seed(0)
        like = self._batch[0]
        inputs = torch.randn(like.shape, generator=generator, dtype=like.dtype).requires_grad_()
        with torch.random.fork_rng(), replace_inputs(self._model, {self._layer: self.value}):
            loss = self._loss(self._model, (inputs, self._batch[1]))
            # 0 * inputs: autograd raises for inputs that the loss does not depend on.
            (other_paths,) = torch.autograd.grad(loss + 0 * inputs.sum(), inputs)
        return not bool(other_paths.any())

    def uses(self) -> set[str]:
        """Names of the parameters that the loss depends on otherwise than by the layer's input."""
        model = copy.deepcopy(self._model).requires_grad_()
        named = dict(model.named_parameters())
        value = self.value.detach()
        with torch.random.fork_rng(), replace_inputs(model, {self._layer: value}):
            loss = self._loss(model, self._batch)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True
        )
        return {
            name for name, gradient in zip(named, found, strict=True)
            if gradient is not None and bool(gradient.any())
        }  # fmt: skip

    def input_gradient(self, noise: Mapping[str, Tensor]) -> Tensor:
        """Gradient of the loss with respect to the layer's input.

        Args:
            noise: noise slot -> noise ``(samples, ...)``.
        """
        value = self.value.detach().clone().requires_grad_()
        loss = self._run(value, noise)
        (found,) = torch.autograd.grad(loss, value)
        return found

    def output_gradient(self, noise: Mapping[str, Tensor]) -> Tensor:
        """Gradient of the loss with respect to the layer's output.

        Args:
            noise: noise slot -> noise ``(samples, ...)``.
        """
        seen: list[Tensor] = []
        value = self.value.detach().clone().requires_grad_()

        def record(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            seen.append(output)
            return output.clone()  # the next module may change it in place

        handle = self._model.get_submodule(self._layer).register_forward_hook(record)
        try:
            loss = self._run(value, noise)
        finally:
            handle.remove()
        (found,) = torch.autograd.grad(loss, seen[0])
        return found

    def input_of(self, layer: str, noise: Mapping[str, Tensor]) -> Tensor:
        """Input of a later layer, ``(samples, ...)``.

        Args:
            layer: name of the later layer.
            noise: noise slot -> noise ``(samples, ...)``.
        """
        seen: list[Tensor] = []

        def record(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            seen.append(module_input(args, kwargs).detach())

        handle = self._model.get_submodule(layer).register_forward_pre_hook(
            record, with_kwargs=True
        )
        try:
            with torch.no_grad():
                self._run(self.value, noise)
        finally:
            handle.remove()
        return seen[0]

    def _run(self, value: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The loss for an input of the layer and noise by slot."""
        replaced = replace_inputs(self._model, {self._layer: value})
        with skip_calls(self._skipped), replaced, inject(self._model, noise):
            return self._loss(self._model, self._batch)


def restore_noise(
    head: Head, calls: Sequence[Call], inputs: Mapping[str, KnownInput]
) -> tuple[Tensors, list[str]]:
    """Restore the noise of the slots after a layer whose input is known.

    The input of the next linear layer after a slot has to be affine in the slot's noise, entry by
    entry, as in ``z = mean + noise * sigma``. Two forward passes, with noise 0 and noise 1, give
    offset and slope; a third one checks the noise that follows. Where an entry of that input is
    not known, as its gradient was left out by a defence, the noise follows by least squares from
    the known inputs of the layers behind it, which are affine in it if no activation comes between.

    Args:
        head: the model from the known layer on.
        calls: the model's calls from that layer on.
        inputs: layer name -> input of the linear layers whose gradient was inverted.

    Returns:
        Slot -> noise ``(samples, ...)``, and the slots whose noise cannot be recovered.
    """
    slots = [at for at, call in enumerate(calls) if isinstance(call.module, Noise)]
    found: Tensors = {}
    failed: list[str] = []
    # Slots whose noise is not known yet have noise 0.
    rest = {calls[at].name: torch.zeros_like(calls[at].output) for at in slots}
    next_layers = {
        at: next((call for call in calls[at:] if call.name in inputs), None) for at in slots
    }
    uses = Counter(call.name for call in next_layers.values() if call is not None)
    for at, layer in next_layers.items():
        slot = calls[at]
        zero, one = torch.zeros_like(slot.output), torch.ones_like(slot.output)
        # Two slots before one layer are two unknowns per equation.
        ambiguous = layer is not None and uses[layer.name] > 1
        if layer is None or ambiguous or layer.input.shape != zero.shape:
            failed.append(slot.name)
            continue

        def input_for(noise: Tensor, slot: str = slot.name, layer: str = layer.name) -> Tensor:
            return head.input_of(layer, rest | found | {slot: noise})

        offset = input_for(zero)
        slope = input_for(one) - offset
        wanted = inputs[layer.name]
        value = wanted.value.reshape(offset.shape)
        difference = value - offset
        size = difference.abs().amax().clamp_min(torch.finfo(difference.dtype).tiny)
        # Where the noise has no effect, as a dropout mask on an entry of 0, any value will do.
        no_effect = (slope == 0) & (difference.abs() <= AGREEMENT * size)
        noise = torch.where(no_effect, 0.0, difference / slope)
        if not wanted.complete:
            assert wanted.known is not None
            known = wanted.known.reshape(offset.shape)
            behind = {c.name: inputs[c.name] for c in calls if c.name in inputs}
            later = list(behind)[list(behind).index(layer.name) + 1 :]
            noise = _from_later_layers(
                head, rest | found, slot.name, torch.where(known, noise, 0.0), ~known,
                {name: behind[name] for name in later if behind[name].trusted},
            )  # fmt: skip
            value = torch.where(known, value, input_for(noise))
        residual = (input_for(noise) - value).norm() / value.norm()
        if wanted.trusted and bool(noise.isfinite().all()) and float(residual) <= AGREEMENT:
            found[slot.name] = noise
        else:
            failed.append(slot.name)
    return found, failed


def _from_later_layers(
    head: Head,
    others: Tensors,
    slot: str,
    noise: Tensor,
    open_: Tensor,
    later: Mapping[str, KnownInput],
) -> Tensor:
    """Entries of a slot's noise by least squares from the known inputs of later layers.

    Args:
        head: the model from the known layer on.
        others: the noise of the other slots.
        slot: the slot's name.
        noise: its noise, 0 where it is not known.
        open_: True where it is not known.
        later: layer name -> known input.

    Returns:
        The noise; NaN at these entries if the inputs do not determine them, or are not affine in
        them.
    """
    failed = torch.where(open_, torch.nan, noise)
    places = open_.flatten().nonzero().flatten().tolist()

    def inputs_for(drawn: Tensor) -> Tensor:
        parts = []
        for name, wanted in later.items():
            found = head.input_of(name, others | {slot: drawn}).flatten()
            known = torch.ones_like(found, dtype=torch.bool)
            known = known if wanted.known is None else wanted.known.flatten()
            parts.append(found[known])
        return torch.cat(parts)

    goal = [
        value.value.flatten()
        if value.known is None
        else value.value.flatten()[value.known.flatten()]
        for value in later.values()
    ]
    if not goal:
        return failed
    target = torch.cat(goal)
    offset = inputs_for(noise)
    columns = []
    for place in places:
        moved = noise.clone().flatten()
        moved[place] = 1.0
        columns.append(inputs_for(moved.reshape(noise.shape)) - offset)
    matrix = torch.stack(columns, dim=1)
    if int(torch.linalg.matrix_rank(matrix)) < len(places):
        return failed
    solved = torch.linalg.lstsq(matrix, (target - offset)[:, None]).solution[:, 0]
    found = noise.clone().flatten()
    found[places] = solved
    found = found.reshape(noise.shape)
    missed = (inputs_for(found) - target).norm() / target.norm()
    return found if float(missed) <= AGREEMENT else failed
