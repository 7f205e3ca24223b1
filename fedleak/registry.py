"""Plugins by name: entry points for short names, dotted paths for everything else."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedleak.errors import BadInput, unknown_name
from fedleak.extras import MissingExtra, extras_explained

KINDS = ("attacks", "data", "defenses", "models")
SINGULAR = {
    "attacks": "attack",
    "data": "data set",
    "defenses": "defense",
    "models": "model",
}


@dataclass(frozen=True)
class Plugin:
    """A plugin class and the hyperparameters to make it with.

    Args:
        class_path: its dotted path, such as ``fedleak.attacks.iga.IGA``.
        init_args: keyword arguments of its constructor.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


def names(kind: str) -> dict[str, EntryPoint]:
    """The short names of a kind of plugin, from every installed package.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``.
    """
    return dict(_installed(kind, tuple(sys.path)))


@cache
def _installed(kind: str, _path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """The entry points of the packages on a path: some hundred files to read, asked for often."""
    found = entry_points(group=f"fedleak.{kind}")
    return {point.name: point for point in sorted(found)}


def class_path(kind: str, name: str) -> str:
    """The dotted path behind a short name; a dotted path stays as it is.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``.
        name: short name or dotted path.

    Raises:
        BadInput: if there is no plugin of that name.
    """
    if "." in name:
        return name
    known = names(kind)
    if name not in known:
        raise unknown_name(SINGULAR[kind], name, known)
    return known[name].value.replace(":", ".")


def short_name(kind: str, path: str) -> str:
    """The short name of a dotted path, or the class's own name in lower case without one."""
    for name, point in names(kind).items():
        if point.value.replace(":", ".") == path:
            return name
    return path.rsplit(".", 1)[-1].lower()


def load_class(path: str) -> type[Any]:
    """The class at a dotted path.

    Args:
        path: such as ``my_package.my_module.MyModel``.

    Raises:
        BadInput: if the module cannot be imported or holds no such class.
    """
    module_name, _, name = path.rpartition(".")
    try:
        with extras_explained():
            module = importlib.import_module(module_name)
    except MissingExtra:
        raise
    except (ImportError, TypeError, ValueError) as error:
        raise BadInput(
            f"Expected an importable class at `{path}`, but importing `{module_name}` fails: "
            f"{error}."
        ) from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [n for n in dir(module) if inspect.isclass(getattr(module, n, None))]
        raise unknown_name(f"class of `{module_name}`", name, classes)
    return found


def build(kind: str, plugin: Plugin, **context: Any) -> Any:
    """Make a plugin.

    Args:
        kind: ``attacks``, ``data``, ``defenses`` or ``models``, for messages.
        plugin: class and hyperparameters.
        context: further arguments that are passed if the constructor takes them and the plugin
            does not set them, such as ``input_shape`` for a model.

    Returns:
        An instance of the class.

    Raises:
        BadInput: if the class is not found, or takes other arguments.
    """
    found = load_class(plugin.class_path)
    accepted = inspect.signature(found).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    for name in plugin.init_args:
        if name not in accepted and not open_ended:
            title = f"setting of {short_name(kind, plugin.class_path)}"
            raise unknown_name(title, name, set(accepted) - set(context))
    given = {n: value for n, value in context.items() if n in accepted or open_ended}
    try:
        return found(**given | _made(plugin.init_args))
    except TypeError as error:
        raise BadInput(
            f"Expected settings that `{plugin.class_path}` takes, got {plugin.init_args}: {error}."
        ) from error


def _made(init_args: Mapping[str, Any]) -> dict[str, Any]:
    from fedleak.models.bottleneck import Precode

    made = dict(init_args)
    if isinstance(made.get("precode"), Mapping):
        accepted = inspect.signature(Precode).parameters
        for name in made["precode"]:
            if name not in accepted:
                raise unknown_name("setting of precode", name, accepted)
        made["precode"] = Precode(**made["precode"])
    return made
