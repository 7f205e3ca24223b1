"""The state of a model beside its parameters, such as buffers, counters and lists."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Of a module's own attributes, those that torch manages and a forward pass leaves alone.
_TORCHS = frozenset(vars(nn.Module())) - {"_buffers", "training"}
# What a noise slot is given by whoever calls the model, and is taken away by them.
_GIVEN = frozenset({"_injected", "_recorded"})
_ATOMS = (
    Tensor, nn.Module, type, FunctionType, MethodType, ModuleType, int, float, complex, str, bytes,
    type(None), frozenset,
)  # fmt: skip
_CONTAINERS = (dict, list, set, deque)


class ModuleState:
    """Whatever a forward pass may leave on a model's modules, except in their parameters.

    This is the modules' attributes, buffers included, and what lists, dictionaries, sets and plain
    objects hold that they lead to. The first block works on copies of all tensors and notes which
    of them a pass changes in place.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = state_places(model)
        self._changing: set[tuple[int, Any]] | None = None

    @contextmanager
    def kept(self, *, copies: bool = False) -> Iterator[None]:
        """Within the block the state may change; afterwards it is as it was before.

        Args:
            copies: whether the block works on copies of all tensors; if not, and it is not the
                first block, on copies of those that an earlier block has changed in place.
        """
        before = [place.copy() for place, _ in self._places]
        everything = copies or self._changing is None
        if everything:
            wanted = [
                (at, name)
                for at, (_, hidden) in enumerate(self._places)
                for name, value in entries(before[at])
                if name not in hidden and _tensors(value)
            ]
        else:
            wanted = list(self._changing or ())
        made: dict[tuple[int, Any], Any] = {}
        twins: dict[int, Tensor] = {}
        for at, name in wanted:
            made[at, name] = self._places[at][0][name] = _twin(before[at][name], twins)
        try:
            yield
        finally:
            if self._changing is None:
                self._changing = {
                    (at, name)
                    for (at, name), twin in made.items()
                    # Not by versions: batch norm moves its statistics without a new one.
                    if not all(map(torch.equal, _tensors(twin), _tensors(before[at][name])))
                }
            for (place, _), values in zip(self._places, before, strict=True):
                _restore(place, values)


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Within the block a model may be called; afterwards its state is as it was before.

    Args:
        model: the model.
    """
    with ModuleState(model).kept():
        yield


def state_places(model: nn.Module) -> list[tuple[Any, frozenset[Any]]]:
    """The containers that hold a model's state, each once.

    Args:
        model: the model.

    Returns:
        Lists, dictionaries, sets and the attributes of modules and of plain objects, each with the
        names in it that are no state.
    """
    found: list[tuple[Any, frozenset[Any]]] = []
    seen: set[int] = set()
    waiting: list[tuple[Any, frozenset[Any]]] = [
        (vars(module), _TORCHS | _GIVEN) for module in model.modules()
    ]
    while waiting:
        place, hidden = waiting.pop()
        if id(place) in seen:
            continue
        seen.add(id(place))
        if not isinstance(place, tuple):
            found.append((place, hidden))
        waiting += [
            (inner, frozenset())
            for name, value in entries(place)
            if name not in hidden and (inner := _place(value)) is not None
        ]
    return found


def entries(place: Any) -> list[tuple[Any, Any]]:
    """The entries of a container, by key or index; a set has none."""
    if isinstance(place, dict):
        return list(place.items())
    return [] if isinstance(place, set) else list(enumerate(place))


def _tensors(value: Any) -> list[Tensor]:
    """The tensor that an entry is, or those in a tuple; parameters are no state."""
    if type(value) is tuple:
        return [tensor for item in value for tensor in _tensors(item)]
    state = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return [value] if state else []


def _twin(value: Any, twins: dict[int, Tensor]) -> Any:
    if type(value) is tuple:
        return tuple(_twin(item, twins) for item in value)
    if not _tensors(value):
        return value
    # As one tensor may be in several places.
    return twins.setdefault(id(value), value.detach().clone())


def _place(value: Any) -> Any:
    """The container, or the attributes of a plain object; None of anything else."""
    if isinstance(value, (*_CONTAINERS, tuple)):
        return value
    if isinstance(value, _ATOMS):
        return None
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) and attributes else None


def _restore(place: Any, values: Any) -> None:
    if isinstance(place, list):
        place[:] = values
        return
    place.clear()
    if isinstance(place, deque):
        place.extend(values)
    else:
        place.update(values)
