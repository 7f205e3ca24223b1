"""Match gradients and weights from mappings, sequences or numpy arrays to a model's parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.files import Tensors

WRAPPERS = ("module.", "_orig_mod.", "_module.")
"""Prefixes that DataParallel, torch.compile and Opacus add to the names of parameters."""


def joined(module: str, name: str) -> str:
    """The name in a model of a module's parameter.

    Args:
        module: the module's path; empty of the model itself.
        name: the parameter's name in the module.
    """
    return f"{module}.{name}" if module else name


def unwrapped(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def known_names(values: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """How many of the names are a model's, with or without prefixes of wrappers, or positions.

    Args:
        values: by the names to be looked up.
        state: the model's state.
    """
    if is_listed(values):
        return len(values)
    own = {unwrapped(name) for name in state}
    return sum(unwrapped(str(name)) in own for name in values)


def is_listed(values: Mapping[Any, Any]) -> bool:
    """Whether the names are those that Flower gives to the arrays of a list: positions."""
    return list(values) == [str(position) for position in range(len(values))]


def by_name(
    values: Any,
    kind: str,
    parameters: Sequence[str],
    sent: Tensors,
    trained: Sequence[str] | None = None,
) -> Tensors:
    """Tensors by the model's own parameter names, with the shapes and dtypes that were sent.

    Args:
        values: tensors or numpy arrays by name, or in the order of the parameters (or of those that
            are trained, or of all that was sent), as a sequence or by the names "0", "1", ... that
            Flower gives to a list; None for an unused parameter, which may be missing as well.
        kind: what they are, for messages: gradient, weights or delta.
        parameters: the names of the model's parameters, in their order.
        sent: the parameters and buffers that the server sent.
        trained: the parameters that the model trains. If None, all.

    Returns:
        Copies on the CPU by name, as far as there are values.

    Raises:
        BadInput: if names, number or shapes do not fit the model, or a value is not a tensor.
    """
    if isinstance(values, Tensor) or not isinstance(values, Mapping | Sequence):
        raise BadInput(
            f"Expected the {kind} as a mapping or a sequence of tensors, got "
            f"{type(values).__name__}."
        )
    own = {unwrapped(name): name for name in sent}
    if isinstance(values, Mapping) and is_listed(values) and not all(n in own for n in values):
        values = list(values.values())
    if not isinstance(values, Mapping):
        names = _listed_names(values, kind, parameters, sent, trained)
        values = dict(zip(names, values, strict=True))
    found: Tensors = {}
    for given, value in values.items():
        name = own.get(unwrapped(str(given)))
        if name is None:
            raise unknown_name(f"parameter in the {kind}", str(given), own)
        if value is None:
            continue
        try:
            tensor = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise BadInput(
                f"Expected a tensor for `{name}`, got {type(value).__name__}."
            ) from error
        require(
            tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta,
            f"Expected a dense tensor for `{name}` in the {kind}, got one of layout "
            f"{tensor.layout}: give `tensor.to_dense()`.",
        )
        like = sent[name]
        require(
            tensor.dtype == like.dtype
            or (tensor.is_floating_point() and like.is_floating_point())
            or (kind != "gradient" and not tensor.is_complex() and not like.is_floating_point()),
            f"Expected `{name}` of type {like.dtype} in the {kind}, got {tensor.dtype}.",
        )
        require(
            tensor.shape == sent[name].shape,
            f"Expected `{name}` of shape {tuple(sent[name].shape)} in the {kind}, got "
            f"{tuple(tensor.shape)}: give the model that it belongs to.",
        )
        # A copy: weights may be the tensors of a model that is trained further.
        found[name] = tensor.to(sent[name].dtype, copy=True)
    require(
        any(name in found for name in parameters),
        f"Expected the {kind} of the model's parameters, got none of them.",
    )
    return found


def _listed_names(
    values: Sequence[Any],
    kind: str,
    parameters: Sequence[str],
    sent: Tensors,
    trained: Sequence[str] | None,
) -> Sequence[str]:
    """The names of the tensors of a list, by their number."""
    orders = [parameters, *([trained] if trained else [])]
    orders += [list(sent)] if kind != "gradient" else []
    for names in orders:
        if len(values) == len(names):
            return names
    part = f" or of the {len(trained)} trained ones" if trained and trained != parameters else ""
    position = next(
        (n for n, (name, value) in enumerate(zip(parameters, values, strict=False))
         if value is not None and getattr(value, "shape", None) != sent[name].shape),
        min(len(values), len(parameters)),
    )  # fmt: skip
    if position == len(parameters):
        where = f"tensor {position} is of no parameter"
    elif position == len(values):
        where = f"there is no tensor of `{parameters[position]}`"
    else:
        where = f"tensor {position} is not of `{parameters[position]}`"
    raise BadInput(
        f"Expected the {kind} of {len(parameters)} parameters{part}, got {len(values)} tensors, of "
        f"which {where}: give them by name, or None in place of each parameter that is left out."
    )
