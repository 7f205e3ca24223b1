"""Settings by their dotted names: how a cell's overrides change the settings of a run."""

import copy
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from fedleak.config import RunConfig
from fedleak.errors import require, unknown_name
from fedleak.registry import Plugin

Settings = dict[str, Any]

# The sweep itself says where a cell's run goes.
NAMES = {item.name for item in fields(RunConfig)} - {"output"}
PLUGINS = {item.name for item in fields(RunConfig) if item.type is Plugin}
PLUGIN_LISTS = {item.name for item in fields(RunConfig) if item.default == ()}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings by dotted names; a plugin with its class stays whole.

    Args:
        settings: such as ``{"federation": {"clients": 2}, "model.width": 8}``.
        prefix: written before every name.
    """
    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def check_names(where: str, settings: Mapping[str, Any]) -> None:
    """Check that dotted names begin with a setting of a run.

    Args:
        where: what holds them, for the message.
        settings: by dotted names.

    Raises:
        BadInput: if one does not.
    """
    for key in settings:
        first = key.split(".")[0]
        require(
            first != "output",
            f"Expected no `output` in {where}, since the sweep gives every cell a folder of its "
            "own: leave it out.",
        )
        if first not in NAMES:
            raise unknown_name(f"setting in {where}", first, NAMES)


def merged(*layers: Mapping[str, Any]) -> Settings:
    """Nested settings from layers of dotted ones, of which a later one wins.

    Within a layer a longer name wins over a shorter one, so ``model: lenet`` does not undo
    ``model.precode.bottleneck_size: 64`` of another axis, in whatever order they stand.

    Args:
        layers: by dotted names; what follows ``data.`` or ``model.`` is an argument of the plugin,
            and what follows ``attacks.`` one of every attack in the list, or of the one whose
            number comes first.

    Raises:
        BadInput: if an argument is set of a plugin that is not there.
    """
    settings: Settings = {}
    for layer in layers:
        for key, value in sorted(layer.items(), key=lambda item: item[0].count(".")):
            first, *rest = key.split(".")
            if not rest:
                settings[first] = _opened(first, copy.deepcopy(value))
                continue
            for owner, path in _owners(settings, first, rest):
                _put(owner, path, copy.deepcopy(value))
    return settings


def filled(settings: Any, names: Mapping[str, str]) -> Any:
    """Settings in whose texts ``${axis}`` gives way to the cell's value on that axis.

    Args:
        settings: mappings, lists and what they hold.
        names: the name of the cell's value on each axis.

    Raises:
        BadInput: if a text names an axis that is not there.
    """
    if isinstance(settings, Mapping):
        return {key: filled(value, names) for key, value in settings.items()}
    if isinstance(settings, list):
        return [filled(value, names) for value in settings]
    if isinstance(settings, str):
        return re.sub(r"\$\{(.*?)\}", partial(_value, names), settings)
    return settings


def _value(names: Mapping[str, str], found: re.Match[str]) -> str:
    if found[1] not in names:
        raise unknown_name("axis behind $", found[1], names)
    return names[found[1]]


def _owners(settings: Settings, first: str, rest: list[str]) -> list[tuple[Settings, list[str]]]:
    """The mappings in which a dotted name's value goes, and where in them."""
    if first not in PLUGINS | PLUGIN_LISTS:
        return [(settings, [first, *rest])]
    name = ".".join([first, *rest])
    found = settings.get(first)
    plugins = found if isinstance(found, list) else [found]
    if first in PLUGIN_LISTS and rest[0].isdigit():
        require(
            int(rest[0]) < len(plugins) and len(rest) > 1,
            f"Expected `{name}` to be an argument of one of the {len(plugins)} {first}, counted "
            "from 0.",
        )
        plugins, rest = [plugins[int(rest[0])]], rest[1:]
    require(
        all(isinstance(plugin, dict) for plugin in plugins) and bool(plugins),
        f"Expected `{first}` to be given where `{name}` is set, got nothing: set it in `base`.",
    )
    if rest[0] not in ("class_path", "init_args"):
        rest = ["init_args", *rest]
    return [(plugin, rest) for plugin in plugins if plugin is not None]


def _put(owner: Settings, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(owner.get(name), dict):
            owner[name] = {}
        owner = owner[name]
    owner[path[-1]] = value


def _opened(name: str, value: Any) -> Any:
    """A plugin's short form, its name, as the mapping into which arguments can be put."""
    if name in PLUGIN_LISTS and value is not None:
        members = value if isinstance(value, list) else [value]
        return [_plugin(member) for member in members]
    return _plugin(value) if name in PLUGINS else value


def _plugin(value: Any) -> Any:
    return {"class_path": value, "init_args": {}} if isinstance(value, str) else value
