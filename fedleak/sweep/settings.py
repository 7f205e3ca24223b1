"""Settings by dotted names, and the merging of a cell's overrides into a run's settings."""

import copy
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from fedleak.config import LISTS, PLUGINS, RunConfig
from fedleak.errors import require, unknown_name

Settings = dict[str, Any]

# The sweep itself sets the output folder of a cell.
SETTING_NAMES = {item.name for item in fields(RunConfig)} - {"output"}
PLUGIN_SETTINGS = set(PLUGINS) - set(LISTS)
PLUGIN_LIST_SETTINGS = set(LISTS)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Settings:
    """Flatten nested settings to dotted names; a mapping with a ``class_path`` is kept as it is.

    Args:
        settings: such as ``{"federation": {"clients": 2}, "model.width": 8}``.
        prefix: text before every name.

    Returns:
        Such as ``{"federation.clients": 2, "model.width": 8}``.
    """
    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def check_names(where: str, settings: Mapping[str, Any]) -> None:
    """Check that dotted names begin with the name of a setting of a run.

    Args:
        where: the part of the study with the settings, for the message.
        settings: by dotted names.

    Raises:
        BadInput: if a name does not.
    """
    for key in settings:
        first = key.split(".")[0]
        require(
            first != "output",
            f"Expected no `output` in {where}, since the sweep gives every cell a folder of its "
            "own: leave it out.",
        )
        if first not in SETTING_NAMES:
            raise unknown_name(f"setting in {where}", first, SETTING_NAMES)


def merge_layers(*layers: Mapping[str, Any]) -> Settings:
    """Merge layers of settings by dotted names into nested settings; later layers win.

    Within a layer a longer name wins over a shorter one, so ``model: lenet`` does not undo
    ``model.precode.bottleneck_size: 64`` of another axis, in any order.

    Args:
        layers: settings by dotted names. The part after ``data.`` or ``model.`` is an argument of
            the plugin; the part after ``attacks.`` or ``defenses.`` an argument of all plugins in
            the list or, after a number and a dot, of the plugin at that position.

    Raises:
        BadInput: if an argument is set of a plugin that does not exist.
    """
    settings: Settings = {}
    for layer in layers:
        for key, value in sorted(layer.items(), key=lambda item: item[0].count(".")):
            first, *rest = key.split(".")
            if not rest:
                settings[first] = _expand_names(first, copy.deepcopy(value))
                continue
            for owner, path in _targets(settings, first, rest):
                _set_nested(owner, path, copy.deepcopy(value))
    return settings


def fill_placeholders(settings: Any, names: Mapping[str, str]) -> Any:
    """Replace ``${axis}`` in all texts by the name of the cell's value on that axis.

    Args:
        settings: nested mappings, lists and values.
        names: the name of the cell's value on each axis.

    Raises:
        BadInput: if a text names an unknown axis.
    """
    if isinstance(settings, Mapping):
        return {key: fill_placeholders(value, names) for key, value in settings.items()}
    if isinstance(settings, list):
        return [fill_placeholders(value, names) for value in settings]
    if isinstance(settings, str):
        return re.sub(r"\$\{(.*?)\}", partial(_value, names), settings)
    return settings


def _value(names: Mapping[str, str], found: re.Match[str]) -> str:
    if found[1] not in names:
        raise unknown_name("axis behind $", found[1], names)
    return names[found[1]]


def _targets(settings: Settings, first: str, rest: list[str]) -> list[tuple[Settings, list[str]]]:
    """The mappings in which a dotted name sets a value, each with the path in it."""
    if first not in PLUGIN_SETTINGS | PLUGIN_LIST_SETTINGS:
        return [(settings, [first, *rest])]
    name = ".".join([first, *rest])
    found = settings.get(first)
    plugins = found if isinstance(found, list) else [found]
    if first in PLUGIN_LIST_SETTINGS and rest[0].isdigit():
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


def _set_nested(owner: Settings, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(owner.get(name), dict):
            owner[name] = {}
        owner = owner[name]
    owner[path[-1]] = value


def _expand_names(name: str, value: Any) -> Any:
    """Expand names of plugins to mappings, in which arguments can be set."""
    if name in PLUGIN_LIST_SETTINGS and value is not None:
        members = value if isinstance(value, list) else [value]
        return [_plugin(member) for member in members]
    return _plugin(value) if name in PLUGIN_SETTINGS else value


def _plugin(value: Any) -> Any:
    return {"class_path": value, "init_args": {}} if isinstance(value, str) else value
