"""Check plain values, as read from YAML, against the annotations of a class's constructor."""

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedleak.errors import BadInput, unknown_name

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list (such as [a, b])",
    tuple: "a list (such as [a, b])",
    dict: "a mapping (such as {name: value})",
    types.NoneType: "null",
}
# YAML 1.1 reads 1e-8 as text, where 1.0e-8 is a number.
POWER = re.compile(r"[-+]?\d+e[-+]?\d{1,3}", re.IGNORECASE)
LISTS = {
    int: "a list of whole numbers (such as [0, 2])",
    float: "a list of numbers (such as [0.5, 0.2])",
}


class Parameter:
    """One argument of a constructor.

    Args:
        annotation: its type; Any if it is not annotated.
        default: its default; ``Parameter.REQUIRED`` if it has none.
    """

    REQUIRED = inspect.Parameter.empty

    def __init__(self, annotation: Any, default: Any) -> None:
        self.annotation, self.default = annotation, default

    @property
    def nested(self) -> type[Any] | None:
        """The dataclass of settings that the argument takes, such as ``Precode | None``."""
        for kind in _alternatives(self.annotation):
            if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
                return kind
        return None


def parameters_of(owner: Any) -> Mapping[str, Parameter]:
    """The arguments of a class's constructor by name, without ``*args`` and ``**kwargs``.

    Args:
        owner: a class.
    """
    return _parameters(owner)


@cache
def _parameters(owner: Any) -> Mapping[str, Parameter]:
    try:
        hints = get_type_hints(owner.__init__)
    except (NameError, TypeError, AttributeError):
        hints = {}
    return {
        name: Parameter(hints.get(name, Any), item.default)
        for name, item in inspect.signature(owner).parameters.items()
        if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    }


def takes_any(owner: Any) -> bool:
    """Whether a class's constructor takes ``**kwargs``."""
    kinds = [item.kind for item in inspect.signature(owner).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def check_keys(title: str, values: Any, known: Iterable[str]) -> None:
    """Check that values are a mapping whose keys are all known.

    Args:
        title: what the values are settings of, such as ``federation``; empty for the run itself.
        values: the values.
        known: the valid keys.

    Raises:
        BadInput: if they are not a mapping, or a key is unknown.
    """
    if not isinstance(values, Mapping):
        where = f"`{title}`" if title else "a configuration"
        raise BadInput(f"Expected settings as `name: value` in {where}, got {shown(values)}.")
    choices = list(known)
    for name in values:
        if name not in choices:
            raise unknown_name(f"setting of {title}" if title else "setting", str(name), choices)


def check_values(
    title: str, values: Any, owner: Any, *, prefix: str | None = None, hidden: Iterable[str] = ()
) -> dict[str, Any]:
    """Check settings of a class: their names and the types of their values.

    Args:
        title: what the values are settings of, for messages, such as ``federation``.
        values: a mapping of plain values.
        owner: the class whose constructor takes them.
        prefix: the dotted name of the setting that holds them, for messages. If None, the title.
        hidden: arguments that may be set but are not listed in messages, as the caller sets them.

    Returns:
        The values by name, integers as floats where the annotation is float.

    Raises:
        BadInput: if a name is unknown or a value has the wrong type.
    """
    known = parameters_of(owner)
    hidden = set(hidden)
    own = (
        {n: v for n, v in values.items() if n not in hidden}
        if hidden and isinstance(values, Mapping)
        else values
    )
    check_keys(
        title,
        own,
        list(own)
        if takes_any(owner) and isinstance(own, Mapping)
        else [name for name in known if name not in hidden],
    )
    prefix = title if prefix is None else prefix
    prefix = f"{prefix}." if prefix else ""
    return {
        str(name): check_value(f"{prefix}{name}", value, known[name].annotation)
        if name in known
        else value
        for name, value in values.items()
    }


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """Check one plain value.

    Args:
        name: its dotted name, for messages.
        value: the value.
        annotation: the expected type; a value passes if the type cannot be checked.

    Returns:
        The value; an integer as float if the annotation is float.

    Raises:
        BadInput: if it has the wrong type, is NaN, or is not among the choices.
    """
    alternatives = _alternatives(annotation)
    fits, found = _any_of(name, value, annotation)
    if fits:
        return found
    choices = [choice for kind in alternatives for choice in _choices(kind)]
    if choices:
        raise unknown_name(f"value of `{name}`", str(value), [str(choice) for choice in choices])
    words = " or ".join(dict.fromkeys(_words(kind) for kind in alternatives))
    raise BadInput(f"Expected `{name}` to be {words}, got {shown(value)}.")


def shown(value: Any) -> str:
    """A value of any kind as short text for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split()))
    except ValueError:  # it contains an integer with thousands of digits
        return f"a {type(value).__name__} with a number of thousands of digits"
    return f"`{text[:57]}...`" if len(text) > 60 else f"`{text}`"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    return (annotation,)


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is not Literal:
        return []
    return [c for part in get_args(kind) for c in (_choices(part) or [part])]


def _words(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin in (list, tuple) and get_args(kind)[:1] and get_args(kind)[0] in LISTS:
        return LISTS[get_args(kind)[0]]
    return WORDS.get(origin, "settings as `name: value`")


def _fitted(name: str, value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether a value fits one type, and the value as that type."""
    origin = get_origin(kind) or kind
    if isinstance(value, str) and origin is float and POWER.fullmatch(value):
        value = float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (None, types.NoneType):
        return value is None, value
    if origin is Literal:
        return any(type(c) is type(value) and c == value for c in _choices(kind)), value
    if origin is float:
        if not number or (isinstance(value, int) and value.bit_length() > 1000):
            return False, value
        return not math.isnan(value), float(value)
    if origin is int:
        # Seeds, sizes and counts: larger integers fit neither a tensor nor a file.
        return number and isinstance(value, int) and value.bit_length() <= 63, value
    if origin in (bool, str):
        return isinstance(value, origin), value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False, value
        inner = [part for part in get_args(kind) if part is not Ellipsis]
        if not inner:
            return True, value
        fixed = origin is tuple and Ellipsis not in get_args(kind)
        parts = inner if fixed else inner[:1] * len(value)
        if len(parts) != len(value):
            return False, value
        fitted = [_any_of(name, v, part) for v, part in zip(value, parts, strict=True)]
        return all(fits for fits, _ in fitted), origin(found for _, found in fitted)
    if origin is dict or (inspect.isclass(origin) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return False, value
        arguments = get_args(kind)
        if not arguments:
            return True, value
        return True, {
            key: check_value(f"{name}.{key}", v, arguments[1]) for key, v in value.items()
        }
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            return isinstance(value, kind), value
        title = name.rpartition(".")[2]
        return True, check_values(title, value, kind, prefix=name)
    # Other types are left to the constructor.
    return True, value


def _any_of(name: str, value: Any, annotation: Any) -> tuple[bool, Any]:
    for kind in _alternatives(annotation):
        fits, found = _fitted(name, value, kind)
        if fits:
            return True, found
    return False, value
