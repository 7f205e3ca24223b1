"""Plugins by name: entry points for short names, dotted paths for everything else."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedleak.errors import BadInput, require, unknown_name
from fedleak.extras import MissingExtra, extras_explained
from fedleak.schema import check_keys, check_values, parameters_of, shown, takes_any

KINDS = ("attacks", "data", "defenses", "models", "servers")
SINGULAR = {
    "attacks": "attack",
    "data": "data set",
    "defenses": "defense",
    "models": "model",
    "servers": "malicious server",
}
SETTINGS = {
    "data": "data", "model": "models", "attack": "attacks", "attacks": "attacks",
    "defenses": "defenses", "server": "servers",
}  # fmt: skip
"""Settings of a configuration or a command that name plugins -> kind."""
BASES = {
    "attacks": "fedleak.attacks.base.Attack",
    "data": "fedleak.data.base.PrivateData",
    "defenses": "fedleak.defenses.base.Defense",
    "servers": "fedleak.servers.base.MaliciousServer",
}
"""Kind -> the class that its plugins are subclasses of."""
FROM_DATA = ("input_shape", "num_classes")
"""Arguments of a model that come from the data set."""
FLOWER = ("flwr.clientapp.mod.", "flwr.serverapp.strategy.")
"""Packages of Flower's own mods and strategies, which are trusted as fedleak's plugins are."""
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# The classes that may be loaded in addition to the known ones. If None, any class may be.
_LOADABLE: ContextVar[frozenset[str] | None] = ContextVar("loadable", default=None)


class Untrusted(BadInput):
    """A stored file names a class that would be imported and run, but is not trusted."""


@dataclass(frozen=True)
class Plugin:
    """A plugin class and its hyperparameters.

    Args:
        class_path: its dotted path, such as ``fedleak.attacks.iga.IGA``.
        init_args: keyword arguments of its constructor.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


def names(kind: str) -> dict[str, EntryPoint]:
    """The short names of a kind of plugin, from every installed package.

    Args:
        kind: ``attacks``, ``data``, ``defenses``, ``models`` or ``servers``.

    Returns:
        Short name -> entry point.
    """
    return dict(_installed(kind, tuple(sys.path)))


@cache
def _installed(kind: str, _path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """The entry points of the packages on a path; cached, as it reads some hundred files."""
    found = entry_points(group=f"fedleak.{kind}")
    return {point.name: point for point in sorted(found)}


def class_path(kind: str, name: str) -> str:
    """The dotted path behind a short name; a dotted path stays as it is.

    Args:
        kind: ``attacks``, ``data``, ``defenses``, ``models`` or ``servers``.
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


@contextmanager
def known_classes_only(but: Iterable[str] = ()) -> Iterator[None]:
    """Within the block, :func:`load_class` loads only known classes.

    These are fedleak's own classes, installed plugins (entry points), and Flower's mods and
    strategies. A run's folder may be untrusted, and importing a module runs its code.

    Args:
        but: dotted paths that may also be loaded, such as those that the user typed.
    """
    token = _LOADABLE.set(frozenset(but))
    try:
        yield
    finally:
        _LOADABLE.reset(token)


def is_known(path: str) -> bool:
    """Whether a dotted path is that of a class of fedleak, of an installed plugin or of Flower.

    Args:
        path: the dotted path.
    """
    if path.startswith(("fedleak.", *FLOWER)):
        return True
    return any(
        point.value.replace(":", ".") == path for kind in KINDS for point in names(kind).values()
    )


def short_name(kind: str, path: str) -> str:
    """The short name of a dotted path, or else the name of its class in lower case."""
    for name, point in (names(kind) if kind in KINDS else {}).items():
        if point.value.replace(":", ".") == path:
            return name
    return path.rsplit(".", 1)[-1].lower()


def load_class(path: str) -> type[Any]:
    """The class at a dotted path.

    Args:
        path: such as ``my_package.my_module.MyModel``.

    Raises:
        BadInput: if the module cannot be imported or holds no such class.
        Untrusted: if it is not a known class, within :func:`known_classes_only`.
    """
    if not DOTTED.fullmatch(path):
        raise BadInput(
            f"Expected an importable class at `{path!s:.60}`, but that is not a dotted path."
        )
    allowed = _LOADABLE.get()
    if allowed is not None and path not in allowed and not is_known(path):
        raise Untrusted(
            f"Expected a class of fedleak or of an installed plugin, got `{path}`, which would be "
            "imported and run: give `--trust` if you trust whoever made this folder."
        )
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


def load_plugin(kind: str, path: str, setting: str = "") -> type[Any]:
    """The class of a plugin, checked to be one of its kind before anything of it is called.

    Args:
        kind: ``attacks``, ``data``, ``defenses``, ``models``, ``servers`` or ``mods``.
        path: its dotted path.
        setting: the setting that names it, for messages; if empty, the kind.

    Raises:
        BadInput: if it cannot be loaded or is of another kind.
        Untrusted: see :func:`load_class`.
    """
    found, setting = (
        load_class(path),
        setting or {"models": "model", "servers": "server"}.get(kind, kind),
    )
    if kind in BASES:
        base = load_class(BASES[kind])
        require(
            issubclass(found, base),
            f"Expected `{setting}` to name a subclass of {base.__name__}, got `{path}`: see "
            f"`fedleak list {kind}`.",
        )
        require(
            not inspect.isabstract(found) and (kind != "data" or hasattr(found, "kind")),
            f"Expected `{setting}` to name a plugin, got `{path}`, which is a base class: see "
            f"`fedleak list {kind}`.",
        )
    elif kind == "models":
        # Lightning has two packages, and neither is imported here: the methods of a LightningModule
        # are checked instead.
        require(
            hasattr(found, "configure_optimizers") and hasattr(found, "forward"),
            f"Expected `{setting}` to name a subclass of LightningModule, got `{path}`: see "
            "`fedleak list models`.",
        )
    elif kind == "mods":
        # A class's own attributes, as every class can itself be called.
        require(
            any("__call__" in vars(owner) for owner in found.__mro__),
            f"Expected `federation.mods` to hold mods of Flower, got `{path}`.",
        )
    return found


def read_plugin(kind: str, setting: str, value: Any) -> Plugin:
    """Read a plugin from a configuration; its settings are checked if its class may be loaded.

    Args:
        kind: ``attacks``, ``data``, ``defenses``, ``models``, ``servers`` or ``mods``.
        setting: the setting that names it, for messages.
        value: a short name, a dotted path, or a mapping with ``class_path`` (either of them) and
            optionally ``init_args``.

    Raises:
        BadInput: if there is no such plugin, or one of its settings is unknown or has the wrong
            type.
    """
    name, settings = plugin_entry(setting, value)
    if kind not in KINDS:
        require("." in name, f"Expected `{setting}` to name a class by its path, got `{name}`.")
    path = class_path(kind, name) if kind in KINDS else name
    try:
        found = load_plugin(kind, path, setting)
    except BadInput:
        # A run from elsewhere may name a class that is not installed here; making it reports that.
        return Plugin(path, settings)
    title = short_name(kind, path)
    checked = check_values(title, settings, found, prefix=setting, hidden=FROM_DATA)
    return Plugin(path, plain(checked))


def plugin_entry(setting: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a plugin in a configuration; nothing is imported.

    Args:
        setting: the setting that names it, for messages.
        value: a name, or a mapping with ``class_path`` and optionally ``init_args``.

    Raises:
        BadInput: if it is neither.
    """
    if isinstance(value, Mapping):
        check_keys(setting, value, ("class_path", "init_args"))
        name, settings = value.get("class_path"), value.get("init_args")
        settings = {} if settings is None else settings
    else:
        name, settings = value, {}
    if name is None or name == "":
        kind = SETTINGS.get(setting)
        see = f": see `fedleak list {kind}`" if kind else ""
        raise BadInput(f"Expected `{setting}` to be given, got nothing{see}.")
    if not isinstance(name, str) or not DOTTED.fullmatch(name):
        expected = (
            f"one of {', '.join(names(SETTINGS[setting]))}, or " if setting in SETTINGS else ""
        )
        raise BadInput(
            f"Expected `{setting}` to name {expected}a class by its dotted path, got {shown(name)}."
        )
    require(
        isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings),
        f"Expected settings as `name: value` in `{setting}.init_args`, got {shown(settings)}.",
    )
    return name, plain(settings)


def plain(value: Any) -> Any:
    """Convert tuples to lists and keys to text, so that a configuration reads back equal."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def build(kind: str, plugin: Plugin, **context: Any) -> Any:
    """Make a plugin.

    Args:
        kind: ``attacks``, ``data``, ``defenses``, ``models``, ``servers`` or ``mods``.
        plugin: class and hyperparameters; if the constructor takes a dataclass of settings, as a
            model takes its bottleneck's, a mapping is converted to it.
        context: further arguments that are passed if the constructor takes them and the plugin
            does not set them, such as ``input_shape`` for a model.

    Returns:
        An instance of the class.

    Raises:
        BadInput: if the class is not found, is of another kind, or does not take the arguments.
    """
    found = load_plugin(kind, plugin.class_path)
    title = short_name(kind, plugin.class_path)
    settings = check_values(title, plugin.init_args, found, hidden=context)
    known = parameters_of(found)
    for name, value in settings.items():
        nested = known[name].nested if name in known else None
        if nested is not None and isinstance(value, Mapping):
            settings[name] = nested(**value)
    open_ended = takes_any(found)
    given = {n: value for n, value in context.items() if n in known or open_ended}
    try:
        return found(**given | settings)
    except TypeError as error:
        raise BadInput(
            f"Expected settings that `{plugin.class_path}` takes, got {plugin.init_args}: {error}."
        ) from error
