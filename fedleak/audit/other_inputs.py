"""The inputs of a model besides the samples: masks, types, copies of the samples, or more data.

What an input has in common with the samples, or is in all batches, follows from the app's code; an
attacker who knows the code makes it again. Of the others nothing is known but shape and type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedleak.audit.facts import Place, Relation, TensorFacts, TrainingFacts

# Names of the argument with the labels, of models that compute their loss themselves.
LABELS = ("labels", "label", "targets", "target", "y")
# Distinct numbers of a batch without padding that are remembered.
MOST_NUMBERS = 100_000


class InputRelations:
    """What is the same in all batches of a training: see :class:`fedleak.audit.facts.Relation`."""

    def __init__(self) -> None:
        self._values: dict[Place, float | None] = {}
        self._copies: dict[Place, set[Place]] = {}
        self._masks: dict[tuple[Place, Place], _Mask] = {}

    def note(self, inputs: Mapping[Place, Tensor]) -> None:
        """Take up a batch.

        Args:
            inputs: the tensors of a call by place.
        """
        if len(inputs) < 2:
            return
        for place, tensor in inputs.items():
            alike = {
                other: source
                for other, source in inputs.items()
                if other != place and source.shape == tensor.shape and _is_whole(source)
            }
            value = _single_value(place, tensor) if alike else None
            known = self._values.setdefault(place, value)
            self._values[place] = known if known == value else None
            same = {other for other, source in alike.items() if torch.equal(source, tensor)}
            self._copies[place] = self._copies.get(place, same) & same
            for other, source in alike.items():
                self._masks.setdefault((place, other), _Mask()).note(tensor, source)

    def of(self, place: Place) -> Relation | None:
        """What is known of an input; None if nothing is.

        Args:
            place: its place.
        """
        value = self._values.get(place)
        if value is not None:
            return Relation(value=value)
        earlier = list(self._values)
        earlier = earlier[: earlier.index(place)] if place in earlier else []
        for other in earlier:
            if other in self._copies.get(place, set()):
                return Relation(copy_of=other)
        for (own, other), mask in self._masks.items():
            if own == place and mask.padding is not None:
                return Relation(mask_of=other, padding=mask.padding)
        return None


class _Mask:
    """Whether a tensor is 1 where another one is not its padding, and 0 elsewhere."""

    def __init__(self) -> None:
        self._holds, self._padding = True, list[int]()
        self._used: set[int] = set()

    @property
    def padding(self) -> int | None:
        return self._padding[0] if self._holds and self._padding else None

    def note(self, mask: Tensor, numbers: Tensor) -> None:
        if not self._holds:
            return
        off, on = mask == 0, mask == 1
        if not bool((off | on).all()):
            self._holds = False
            return
        padding = set(numbers[off].unique().tolist())
        self._used |= set(numbers[on].unique().tolist())
        self._padding = sorted({*self._padding, *padding})
        self._holds = (
            len(self._padding) <= 1
            and not self._used & set(self._padding)
            and len(self._used) <= MOST_NUMBERS
        )


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def _single_value(place: Place, tensor: Tensor) -> float | None:
    """The number that all entries are; None if they differ, or may be labels."""
    if tensor.dim() < 2 or not tensor.numel() or tensor.is_complex() or place[-1:] in _LABELLED:
        return None
    first = tensor.flatten()[0]
    return float(first) if bool((tensor == first).all()) else None


_LABELLED = tuple((name,) for name in LABELS)


def common_relations(clients: Sequence[TrainingFacts]) -> dict[Place, Relation]:
    """What holds of the inputs of all clients, so that it tells nothing of a single one.

    Args:
        clients: the facts of their trainings.
    """
    found: dict[Place, Relation] = {}
    places = {item.path for facts in clients for item in facts.inputs}
    for place in places:
        own = {item.relation for facts in clients for item in facts.inputs if item.path == place}
        masks = {one for one in own if one is not None and one.mask_of is not None}
        # A client whose samples need no padding has a mask of 1.
        if len(masks) == 1 and own - masks <= {Relation(value=1.0)}:
            found[place] = masks.pop()
        elif len(own) == 1 and (one := own.pop()) is not None:
            found[place] = one
    return found


@dataclass(frozen=True)
class OtherInput:
    """An input besides the samples, as an attacker makes it.

    Args:
        place: its place among the model's arguments.
        shape: its shape without the batch dimension.
        dtype: its type, such as ``int64``.
        like_samples: whether it has the samples' shape.
        relation: what is known of it, in terms of the samples; None if nothing is.
    """

    place: Place
    shape: tuple[int, ...]
    dtype: str
    like_samples: bool = False
    relation: Relation | None = None

    @classmethod
    def of(cls, item: TensorFacts, samples: TensorFacts, relation: Relation | None) -> "OtherInput":
        """The input that was seen.

        Args:
            item: what was seen of it.
            samples: what was seen of the samples.
            relation: what is known of it.
        """
        if relation is not None and {relation.copy_of, relation.mask_of} - {None, samples.path}:
            relation = None  # of another input than the samples
        return cls(
            item.path, item.shape[1:], item.dtype, item.shape == samples.shape, relation
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Its name, or its position."""
        last = self.place[-1] if self.place else 0
        return str(last) if isinstance(last, str) else f"argument {last}"

    @property
    def note(self) -> str:
        """What the attacker takes it to be."""
        known = self.relation
        if known is None:
            return f"{self.name}, an input of the model besides the samples, is not known"
        if known.copy_of is not None:
            return f"{self.name} is taken to be the same numbers as the samples, as in all batches"
        if known.mask_of is not None:
            return (
                f"{self.name} is taken to be 0 where the samples are {known.padding} and 1 "
                "elsewhere, as in all recorded batches"
            )
        return f"{self.name} is taken to be {known.value:g}, as in all recorded batches"

    def make(self, samples: Tensor, real: torch.dtype) -> Tensor:
        """The input for some samples; what is not known is made up, the same in each call.

        Args:
            samples: the samples ``(N, ...)``.
            real: type of real numbers.
        """
        kind: torch.dtype = getattr(torch, self.dtype)
        kind = real if kind.is_floating_point else kind
        shape = samples.shape if self.like_samples else (len(samples), *self.shape)
        known = self.relation
        if known is not None and known.copy_of is not None:
            return samples
        if known is not None and known.mask_of is not None:
            return samples.ne(known.padding or 0).to(kind)
        if known is not None and known.value is not None:
            return torch.full(shape, known.value, dtype=kind, device=samples.device)
        if kind.is_floating_point and "mask" not in self.name:
            numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            return numbers.to(samples.device, kind)
        return torch.full(shape, int("mask" in self.name), dtype=kind, device=samples.device)


class Fields(dict[str, Any]):
    """A mapping whose values are attributes too, as those of a tokenizer's batch."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def assembled(values: Mapping[Place, Any]) -> Any:
    """A batch from its tensors by place: tuples where keys are positions, else mappings.

    Args:
        values: the tensors; positions that are missing are None.
    """
    if () in values:
        return values[()]
    parts: dict[str | int, dict[Place, Any]] = {}
    for place, value in values.items():
        parts.setdefault(place[0], {})[place[1:]] = value
    if all(isinstance(key, int) for key in parts):
        most = max(key for key in parts if isinstance(key, int))
        return tuple(assembled(parts[at]) if at in parts else None for at in range(most + 1))
    return Fields({str(key): assembled(part) for key, part in parts.items()})


def arguments_of(values: Mapping[Place, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call from their tensors by place.

    Args:
        values: see :func:`assembled`; a first key that is a position is that of a positional
            argument.
    """
    positional = {place: value for place, value in values.items() if isinstance(place[0], int)}
    named = {place: value for place, value in values.items() if place not in positional}
    args = assembled(positional) if positional else ()
    return args, dict(assembled(named)) if named else {}
