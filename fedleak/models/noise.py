"""Noise slots, through which all stochastic layers draw.

Every stochastic layer has a :class:`Noise` slot and draws through it. An attack can therefore list
the slots of any model, record the noise that was drawn, inject its own values and differentiate
with respect to them, without knowing the layer. All of it works under ``torch.func``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedleak.errors import require, unknown_name


class Noise(nn.Module, ABC):
    """A slot for noise: draws it, or returns the value that :func:`inject` has set.

    A subclass defines the distribution.
    """

    def __init__(self) -> None:
        super().__init__()
        self._injected: Tensor | None = None
        self._recorded: list[Tensor] | None = None

    @abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise of the shape, dtype and device of ``like``.

        Args:
            like: any tensor.
            generator: the random generator. If None, torch's global generator.

        Returns:
            A tensor of the shape of ``like``.
        """

    def forward(self, like: Tensor) -> Tensor:
        """The slot's noise for a tensor of shape ``(batch, ...)``.

        Args:
            like: the tensor that the noise is added to or multiplied with.

        Returns:
            A tensor of the same shape.

        Raises:
            ValueError: if an injected value has another shape.
        """
        value = self.draw(like) if self._injected is None else self._injected
        if value.shape != like.shape:
            raise ValueError(
                f"Expected injected noise of shape {tuple(like.shape)}, got {tuple(value.shape)}."
            )
        if self._recorded is not None:
            self._recorded.append(value.detach().clone())
        return value


class NormalNoise(Noise):
    """Standard normal noise, N(0, 1)."""

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Noise.draw`."""
        if generator is None:
            return torch.randn_like(like)
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


class DropoutNoise(Noise):
    """Masks of an inverted dropout: 0 with probability p, otherwise ``1 / (1 - p)``.

    Args:
        probability: p, at least 0 and below 1.

    Raises:
        BadInput: if it is out of its range.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        require(
            0 <= probability < 1,
            f"Expected `dropout` to be from 0 to below 1, got {probability}.",
        )
        self.probability = probability

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Noise.draw`."""
        if generator is None:
            uniform = torch.rand_like(like)
        else:
            uniform = torch.rand(
                like.shape, dtype=like.dtype, device=like.device, generator=generator
            )
        kept = uniform >= self.probability
        return kept.to(like.dtype) / (1 - self.probability)


def noise_slots(model: nn.Module) -> dict[str, Noise]:
    """The slots of a model by module path, in the order of ``model.named_modules()``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Noise)}


def before_noise(names: Sequence[str], model: nn.Module) -> list[str]:
    """The parameters of a model's modules before its first noise slot.

    The parameters of the bottleneck that contains the slot are not before it.

    Args:
        names: names of parameters.
        model: the model, whose modules are assumed to be used in the order of
            ``model.named_modules()``.

    Returns:
        A subset of the names, in their order; empty if the model has no noise slot.
    """
    slot = next(iter(noise_slots(model)), None)
    if slot is None:
        return []
    order = [name for name, _ in model.named_modules()]
    before = set(order[: order.index(slot.rpartition(".")[0] or slot)])
    return [name for name in names if name.rpartition(".")[0] in before]


@contextmanager
def inject(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the named slots return the given values instead of drawing.

    Args:
        model: the model with the slots.
        values: slot path -> noise of shape ``(batch, ...)``; slots not named still draw.

    Raises:
        BadInput: if the model has no slot of a given name.
    """
    slots = noise_slots(model)
    for name in values:
        if name not in slots:
            raise unknown_name("noise slot", name, slots)
    before = {name: slots[name]._injected for name in values}
    try:
        for name, value in values.items():
            slots[name]._injected = value
        yield
    finally:
        for name, value_before in before.items():
            slots[name]._injected = value_before


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within the block, record the noise of every slot, in the order of the forward passes.

    Args:
        model: the model with the slots.

    Yields:
        Slot path -> list of tensors of shape ``(batch, ...)``, one per forward pass.
    """
    slots = noise_slots(model)
    notes: dict[str, list[Tensor]] = {name: [] for name in slots}
    try:
        for name, slot in slots.items():
            slot._recorded = notes[name]
        yield notes
    finally:
        for slot in slots.values():
            slot._recorded = None
