"""The functions of torch that a recorder looks at, and what their arguments and results say."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedleak.audit.facts import Place

LOSSES = {
    getattr(F, name): name
    for name in (
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss",
        "kl_div", "l1_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss",
        "multilabel_soft_margin_loss", "nll_loss", "poisson_nll_loss", "smooth_l1_loss",
        "soft_margin_loss",
    )
}  # fmt: skip
LIGHTNING = ("pytorch_lightning", "lightning.pytorch")


def _functions(*names: str) -> list[Any]:
    """The functions of torch, and methods of tensors, of these names."""
    owners = (torch, Tensor, F)
    return [getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)]


RESHAPES = frozenset(
    _functions("view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "ravel")
)
TRANSPOSES = frozenset(_functions("permute", "transpose", "movedim", "swapaxes", "t"))
APPLIED = {
    function: name
    for name in ("sigmoid", "softmax", "log_softmax", "tanh")
    for function in _functions(name)
}
BACKWARD: Any = Tensor.backward
CASTS = frozenset(_functions("float", "double", "half"))
MEANS = {function: name for name in ("mean", "sum") for function in _functions(name)}
SCALES = {
    **dict.fromkeys(_functions("mul", "multiply", "__mul__", "__rmul__"), False),
    **dict.fromkeys(_functions("div", "divide", "true_divide", "__truediv__"), True),
}


def tensors_in(value: Any, place: Place = (), depth: int = 4) -> dict[Place, Tensor]:
    """The tensors in arguments or an output, by place.

    Args:
        value: a tensor, or tensors in lists, tuples, mappings and dataclasses.
        place: the place of ``value`` itself.
        depth: how deep to look.
    """
    if isinstance(value, Tensor):
        return {place: value}
    items: list[tuple[Any, Any]] = []
    if depth and isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif depth and isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif depth and hasattr(value, "__dataclass_fields__"):
        items = list(vars(value).items())
    return {
        inner: tensor
        for key, item in items
        for inner, tensor in tensors_in(item, (*place, key), depth - 1).items()
    }


def change_of(
    function: Any, args: Any, kwargs: Any, result: Tensor, samples: int
) -> dict[str, Any] | None:
    """A change of shape or type so that it can be made again with another number of samples.

    Args:
        function: one of :data:`RESHAPES`, :data:`TRANSPOSES`, :data:`APPLIED` or :data:`CASTS`.
        args: its positional arguments, the changed tensor first.
        kwargs: its keyword arguments.
        result: what it returned.
        samples: the batch size.

    Returns:
        The change, empty if it has no effect; None if it cannot be made again.
    """
    source: Tensor = args[0]
    if function in CASTS:
        return {"dtype": dtype_name(result.dtype)}
    if function in APPLIED:
        name, dim = APPLIED[function], kwargs.get("dim", args[1] if len(args) > 1 else None)
        # Softmax may change the type as well; without a dimension it guesses one.
        known = result.dtype == source.dtype and (dim is not None or "softmax" not in name)
        return {"apply": name, "dim": dim} if known else None
    if result.shape == source.shape and function in RESHAPES:
        return {}
    if function in TRANSPOSES:
        probe = torch.empty(tuple(range(2, 2 + source.dim())), device="meta")
        return {"permute": [size - 2 for size in function(probe, *args[1:], **kwargs).shape]}
    if not result.dim() or result.shape[0] % samples or (samples == 1 and result.shape[0] != 1):
        return None
    return {"reshape": [-1, *result.shape[1:]]}


def plain(value: Any) -> Any:
    """A setting as a value of JSON."""
    if isinstance(value, Tensor):
        if not value.dim():
            return value.item()
        return {"tensor": value.detach().cpu().tolist(), "dtype": dtype_name(value.dtype)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def reference(kind: type) -> str:
    """The reference of a class, such as ``torch.optim.sgd:SGD``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def copied(value: Tensor) -> Tensor:
    """A copy on the CPU that shares nothing."""
    return value.detach().cpu().clone()


def identity_of(gradient: Tensor) -> tuple[int, int, int]:
    """What changes when a gradient is replaced or changed in place."""
    place = gradient.data_ptr() if gradient.layout == torch.strided else 0
    return id(gradient), place, gradient._version


def size_of(gradient: Tensor) -> Tensor:
    """Numbers that are others if the gradient is: its norm, and its sum, which has a sign."""
    values = gradient.detach()
    dense: Tensor = values.coalesce().values() if values.is_sparse else values
    return torch.stack([torch.linalg.vector_norm(dense), dense.sum()])


def is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory, in whatever shape."""
    return (
        left.numel() == right.numel() > 0
        and left.dtype == right.dtype
        and left.data_ptr() == right.data_ptr()
    )


def has_parameters(module: nn.Module) -> bool:
    """Whether a module has any, as a loss mostly has not."""
    return next(module.parameters(), None) is not None


def is_lightning(module: nn.Module) -> bool:
    """Whether a module is a LightningModule, of either package."""
    return any(
        kind.__name__ == "LightningModule" and kind.__module__.startswith(LIGHTNING)
        for kind in type(module).__mro__
    )
