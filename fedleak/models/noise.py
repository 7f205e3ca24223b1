"""The one way in which a layer draws noise.

Every stochastic layer owns a :class:`Noise` slot and draws through it. An attack can therefore list
the slots of any model, read what was drawn, put its own value in and differentiate with respect to
it, without knowing which layer the slot belongs to. All of it works under ``torch.func``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedleak.errors import require, unknown_name


class Noise(nn.Module, ABC):
    """A slot for noise: draws it, or gives back the value that :func:`inject` put in.

    A subclass says from which distribution it draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self._injected: Tensor | None = None
        self._recorded: list[Tensor] | None = None

    @abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A fresh draw of the shape, type and device of ``like``.

        Args:
            like: any tensor.
            generator: where to draw from; none: torch's global generator.
        """

    def forward(self, like: Tensor) -> Tensor:
        """The slot's noise for a tensor of shape ``(batch, ...)``.

        Args:
            like: the tensor that the noise will be added to or multiplied with.

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
    """Masks of an inverted dropout: 0 with the probability given, and else its inverse complement.

    Args:
        probability: of a 0, from 0 to below 1.

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
            even = torch.rand_like(like)
        else:
            even = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        kept = even >= self.probability
        return kept.to(like.dtype) / (1 - self.probability)


def noise_slots(model: nn.Module) -> dict[str, Noise]:
    """The slots of a model by module path, in the order in which the model holds them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Noise)}


def before_noise(names: Sequence[str], model: nn.Module) -> list[str]:
    """The parameters of the modules that a model holds before its first noise slot.

    A bottleneck that owns the slot is one module: its parameters are not before it.

    Args:
        names: names of parameters.
        model: the model, whose modules are taken to be held in the order of their use.

    Returns:
        Some of the names; none if the model draws no noise.
    """
    slot = next(iter(noise_slots(model)), None)
    if slot is None:
        return []
    order = [name for name, _ in model.named_modules()]
    before = set(order[: order.index(slot.rpartition(".")[0] or slot)])
    return [name for name in names if name.rpartition(".")[0] in before]


@contextmanager
def inject(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the named slots give the values instead of drawing.

    Args:
        model: the model that owns the slots.
        values: slot path -> noise of shape ``(batch, ...)``; slots not named go on drawing.

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
    """Within the block, what every slot gives is noted, in the order of the forward passes.

    Args:
        model: the model that owns the slots.

    Yields:
        Slot path -> list of tensors of shape ``(batch, ...)``, one a forward pass.
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
