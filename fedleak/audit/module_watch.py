"""Which modules' weights a piece of code takes or sets, with no line of it changed."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedleak.updates.naming import is_listed, unwrapped

State = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and type of each tensor of a module's state, in its order."""
METHODS = ("state_dict", "load_state_dict")


class WatchedModules:
    """The modules whose ``state_dict`` or ``load_state_dict`` was called in one thread.

    Calls of a module for its own parts do not count. Modules are in the order of their first call.

    Args:
        once_per_kind: whether to keep only the first module of each class with the same names and
            shapes; a server may make a new one in each round.
    """

    def __init__(self, *, once_per_kind: bool = False) -> None:
        self.found: list[tuple[nn.Module, str]] = []
        self._once = once_per_kind
        self._kinds: set[Any] = set()
        self._depth = 0
        self._thread = threading.get_ident()

    def modules(self, method: str | None = None) -> list[nn.Module]:
        """The modules, each once.

        Args:
            method: of which method. If None, of both.
        """
        unique = {id(m): m for m, name in self.found if method in (None, name)}
        return list(unique.values())

    def _call(
        self,
        method: str,
        original: Callable[..., Any],
        module: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if threading.get_ident() != self._thread:
            return original(module, *args, **kwargs)
        if self._depth == 0:
            self._note(module, method)
        self._depth += 1
        try:
            return original(module, *args, **kwargs)
        finally:
            self._depth -= 1

    def _note(self, module: nn.Module, method: str) -> None:
        if any(known is module and name == method for known, name in self.found):
            return
        if self._once:
            kind = type(module), method, state_of(module)
            if kind in self._kinds:
                return
            self._kinds.add(kind)
        self.found.append((module, method))


@contextmanager
def watched_modules(*, once_per_kind: bool = False) -> Iterator[WatchedModules]:
    """Within the block, the calls of ``state_dict`` and ``load_state_dict`` in this thread.

    ``nn.Module`` has no hook that is called for every module, so its two methods are replaced
    within the block.

    Args:
        once_per_kind: see :class:`WatchedModules`.
    """
    watched = WatchedModules(once_per_kind=once_per_kind)
    originals = {name: getattr(nn.Module, name) for name in METHODS}
    for name, original in originals.items():
        setattr(nn.Module, name, _replacement(watched, name, original))
    try:
        yield watched
    finally:
        for name, original in originals.items():
            setattr(nn.Module, name, original)


def _replacement(
    watched: WatchedModules, name: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return watched._call(name, original, self, *args, **kwargs)

    return method


def state_of(module: nn.Module) -> State:
    """Name, shape and type of each tensor of a module's state, in its order."""
    # Not by its `state_dict`, which may do more than list tensors, such as gather shards.
    tensors: dict[str, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        own: dict[str, Tensor] = {n: v for n, v in part._parameters.items() if v is not None}
        for name, value in part._buffers.items():
            if value is not None and name not in part._non_persistent_buffers_set:
                own[name] = value
        tensors |= {f"{prefix}.{name}" if prefix else name: v for name, v in own.items()}
    return tuple(
        (name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    )


def fit(module: nn.Module, sent: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """How well arrays that are sent fit a module's state.

    Args:
        module: the module.
        sent: name and shape of each array; the shape is empty where it is not known.

    Returns:
        3 if they are the whole state, 2 if a part of it, such as its parameters as a list, 1 if
        they are but for prefixes of wrappers, 0 if they are not.
    """
    if not sent:
        return 0
    own = {name: shape for name, shape, _ in state_of(module)}
    if is_listed(dict(sent)):
        shapes = [shape for _, shape in sent]
        if _alike(shapes, list(own.values())):
            return 3
        return 2 if _alike(shapes, [tuple(v.shape) for v in module.parameters()]) else 0
    if all(own.get(name) == shape for name, shape in sent):
        return 3 if len(sent) == len(own) else 2
    bare = {unwrapped(name): shape for name, shape in own.items()}
    return int(all(bare.get(unwrapped(name)) == shape for name, shape in sent))


def model_names(module: nn.Module, sent: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """The module's own names of arrays that are sent by other names, or as a list.

    Args:
        module: the module, which they fit.
        sent: see :func:`fit`.

    Returns:
        Name that is sent -> name in the module's state.
    """
    own = {name: shape for name, shape, _ in state_of(module)}
    if is_listed(dict(sent)):
        shapes = [shape for _, shape in sent]
        names = list(own) if _alike(shapes, list(own.values())) else []
        names = names or [name for name, _ in module.named_parameters()]
        return {name: new for (name, _), new in zip(sent, names, strict=False)}
    bare = {unwrapped(name): name for name in own}
    return {
        name: name if name in own else bare[unwrapped(name)]
        for name, _ in sent
        if unwrapped(name) in bare
    }


def _alike(sent: Sequence[tuple[int, ...]], own: Sequence[tuple[int, ...]]) -> bool:
    return len(sent) == len(own) and all(
        not shape or shape == expected for shape, expected in zip(sent, own, strict=True)
    )
