"""What a server that knows a client's defence infers of the update before it, entry by entry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from fedleak.updates.files import Tensors


@dataclass(frozen=True)
class SentUpdate:
    """An update as a defence let it out, and what is known of its making.

    Args:
        tensors: parameter name -> gradient, or change of weights, as it came.
        model: the architecture.
        rounding: bound on the rounding error of each entry, by parameter name; missing where there
            is none, as of a gradient.
        round: number of the round, from 1.
        steps: number of local steps, at least 1.
        samples: number of samples of a step, at least 1.
    """

    tensors: Tensors
    model: nn.Module
    rounding: Tensors = field(default_factory=dict)
    round: int = 1
    steps: int = 1
    samples: int = 1

    def margin(self, name: str) -> Tensor:
        """Bound on the rounding error of each entry of a parameter."""
        value = self.tensors[name]
        return self.rounding.get(name, torch.zeros((), dtype=value.dtype)).expand_as(value)


@dataclass(frozen=True)
class Entries:
    """One tensor of the update before the defence; all four tensors have its shape.

    Args:
        value: the estimate of each entry.
        lowest: what the entry is at least; minus infinity where nothing is known.
        highest: what the entry is at most; infinity where nothing is known.
        deviation: standard deviation of the estimate's error; 0 where the entry is exact, infinite
            where only the bounds are known.
    """

    value: Tensor
    lowest: Tensor
    highest: Tensor
    deviation: Tensor

    @classmethod
    def exactly(cls, value: Tensor) -> Self:
        """Entries that came as they were."""
        return cls(value, value, value, torch.zeros_like(value))

    @classmethod
    def noisy(cls, value: Tensor, deviation: float | Tensor) -> Self:
        """Entries with an error of a known standard deviation, without bounds."""
        infinite = torch.full_like(value, torch.inf)
        return cls(value, -infinite, infinite, torch.zeros_like(value) + deviation)

    def between(self, where: Tensor, lowest: Tensor | float, highest: Tensor | float) -> Self:
        """The same, where of some entries no more than two bounds is known.

        Args:
            where: True at these entries.
            lowest: their lower bound.
            highest: their upper bound.
        """
        low, high = (torch.zeros_like(self.value) + bound for bound in (lowest, highest))
        return type(self)(
            self.value,
            torch.where(where, low, self.lowest),
            torch.where(where, high, self.highest),
            torch.where(where, torch.inf, self.deviation),
        )

    def times(self, factor: float) -> Self:
        """The same of the update times a number that is not 0."""
        bounds = self.lowest * factor, self.highest * factor
        low, high = bounds if factor > 0 else bounds[::-1]
        return type(self)(self.value * factor, low, high, self.deviation * abs(factor))

    def minus(self, other: Tensor) -> Self:
        """The same of the update minus known numbers."""
        return type(self)(
            self.value - other, self.lowest - other, self.highest - other, self.deviation
        )

    def to(self, like: Tensor) -> Self:
        """The same with the type and on the device of a tensor."""
        parts = self.value, self.lowest, self.highest, self.deviation
        return type(self)(*(part.to(like, copy=True) for part in parts))

    @property
    def exact(self) -> Tensor:
        """True where the entry is exact."""
        return self.deviation == 0

    @property
    def measured(self) -> Tensor:
        """True where the estimate says more than the bounds."""
        return self.deviation.isfinite()

    def outside(self, values: Tensor) -> Tensor:
        """How far numbers are from what is known: 0 within the bounds of an entry.

        Args:
            values: of the tensor's shape.
        """
        within = torch.minimum(torch.maximum(values, self.lowest), self.highest)
        # Noise of no bounds is not forgiven: the estimate itself is compared.
        unbounded = self.measured & ~(self.lowest.isfinite() & self.highest.isfinite())
        return values - torch.where(unbounded, self.value, within)


class KnownDefense(Protocol):
    """A defence as a server knows it: its settings, and what they tell of what it changed."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def entries_before(self, sent: SentUpdate) -> Mapping[str, Entries] | None:
        """What the update tells of itself before the defence; None if nothing that is of use."""
        ...

    def contradiction(self, sent: SentUpdate) -> str | None:
        """Why the update cannot have come through the defence; None if it can."""
        ...
