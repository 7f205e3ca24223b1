"""Gradients by torch.func or, of models that it does not take, by torch.autograd."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Road = Literal["batched", "by row", "ordinary"]
"""How an objective of several rows is differentiated: batched by ``torch.func.vmap``, row by row by
``torch.func.grad``, or row by row by ``torch.autograd.grad``, which also takes data-dependent
Python, autograd functions of the old style and backward hooks."""

_ORDINARY: ContextVar[bool] = ContextVar("ordinary", default=False)


@contextmanager
def ordinary_autograd() -> Iterator[None]:
    """Within the block, :func:`gradients` are those of ``torch.autograd.grad``."""
    token = _ORDINARY.set(True)
    try:
        yield
    finally:
        _ORDINARY.reset(token)


def is_ordinary() -> bool:
    """Whether the caller is within :func:`ordinary_autograd`."""
    return _ORDINARY.get()


def gradients(
    function: Callable[..., tuple[Tensor, Any]],
    argnums: int | tuple[int, ...],
    *arguments: Any,
    again: bool = True,
) -> tuple[Any, Any]:
    """Gradients of a scalar function and its auxiliary output.

    Args:
        function: returns a scalar and an auxiliary output.
        argnums: positions of the arguments to differentiate in, trees of tensors.
        arguments: its arguments.
        again: whether ``torch.autograd`` makes them differentiable again; ``torch.func`` always
            does.

    Returns:
        The gradients, of the arguments' structure, 0 where the function does not depend on an
        entry, and the auxiliary output.
    """
    if not is_ordinary():
        found: tuple[Any, Any] = grad(function, argnums=argnums, has_aux=True)(*arguments)
        return found
    positions = (argnums,) if isinstance(argnums, int) else argnums
    own = [tree_map(_variable, arguments[at]) for at in positions]
    given = [
        own[positions.index(at)] if at in positions else value for at, value in enumerate(arguments)
    ]
    leaves, structure = tree_flatten(own)
    with torch.enable_grad():
        value, extra = function(*given)
        found_leaves: Any = [torch.zeros_like(leaf) for leaf in leaves]
        if value.requires_grad and leaves:
            found_leaves = torch.autograd.grad(
                value, leaves, create_graph=again, allow_unused=True, materialize_grads=True
            )
    results = tree_unflatten(list(found_leaves), structure)
    return (results[0] if isinstance(argnums, int) else tuple(results)), extra


def _variable(value: Tensor) -> Tensor:
    """The tensor itself if its gradient is already followed, so that it is differentiated twice."""
    return value if value.requires_grad else value.detach().requires_grad_()
