"""A run's configuration from the run config of a Flower app, and what a node changes in it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedleak.config import SECTIONS, Federation, RunConfig
from fedleak.errors import BadInput, require, unknown_name
from fedleak.federation.nodes import DATA_PATH, PARTITIONS
from fedleak.runtime.safe_yaml import parse_yaml
from fedleak.schema import shown

FLAGS = ("resume", "overwrite")
"""Keys that are no settings of a run: what is done with an earlier run in the output folder."""
PLUGINS = {
    "data": "data", "model": "model", "attack": "attacks", "defense": "defenses",
    "server": "server",
}  # fmt: skip
"""Key of a plugin and first part of the keys of its settings -> setting of a run."""
PLAIN = ("output", "seed", "device", "weights", "public")
VICTIMS = ("labels", "when", "aggregated")
# An app runs one federation, with the resources that Flower gives it.
LEFT_OUT = ("gpus_per_client", "ray_address")


def read_run_config(values: Mapping[str, Any]) -> RunConfig:
    """Read the configuration of a run from the run config of a Flower app.

    Args:
        values: value by key, as Flower flattens them. ``data``, ``model``, ``attack``,
            ``defense`` and ``server`` name plugins, an empty text none, and ``data.path`` is the
            setting ``path`` of the first. Settings of the federation need no prefix (``rounds``),
            nor do ``labels``, ``when`` and ``aggregated`` of the victims. A hyphen counts as an
            underscore, and a text that begins with ``[`` or ``{`` is read as YAML. :data:`FLAGS`
            are left out.

    Returns:
        The configuration; its output folder is absolute.

    Raises:
        BadInput: if a key is unknown, or a value has the wrong type or is out of its range.
    """
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key not in FLAGS:
            _put(settings, _path(key), _value(key, value))
    for name, setting in PLUGINS.items():
        if setting in settings:
            settings[setting] = _plugin(name, settings[setting])
    config = RunConfig.from_dict({n: v for n, v in settings.items() if v is not None})
    return replace(config, output=str(Path(config.output).expanduser().resolve()))


def read_flag(values: Mapping[str, Any], name: str) -> bool:
    """One of :data:`FLAGS` in the run config of a Flower app.

    Args:
        values: value by key.
        name: the flag.

    Raises:
        BadInput: if it is neither true nor false.
    """
    found = values.get(name, False)
    require(
        isinstance(found, bool),
        f"Expected `{name}` in the run config to be true or false, got {shown(found)}.",
    )
    return bool(found)


def on_node(config: RunConfig, node: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run as one node of a deployment has it.

    Args:
        config: the run's configuration.
        node: the node's own configuration. Its ``data-path`` replaces the setting ``path`` of the
            data set; ``num-partitions``, if given, is the number of clients.

    Raises:
        BadInput: if the number of clients is another one than that of the run.
    """
    told = node.get(PARTITIONS)
    require(
        told is None or told == config.federation.size,
        f"Expected `{PARTITIONS}` of a node to be {config.federation.size}, as the run has so many "
        f"`clients`, got {shown(told)}: change either of them.",
    )
    if DATA_PATH not in node:
        return config
    path = {"path": str(node[DATA_PATH])}
    return replace(config, data=replace(config.data, init_args=config.data.init_args | path))


def _path(key: str) -> list[str]:
    """Where a key's value belongs in the settings of a run."""
    first, *rest = key.replace("-", "_").split(".")
    own = [item.name for item in fields(Federation) if item.name not in LEFT_OUT]
    if first in PLUGINS:
        return [PLUGINS[first], *(["init_args", *rest] if rest else ["class_path"])]
    if len(rest) == 1 and first in SECTIONS and rest[0] not in LEFT_OUT:
        return [first, *rest]
    if not rest and first in PLAIN:
        return [first]
    if not rest and first in (*VICTIMS, *own):
        return ["victims" if first in VICTIMS else "federation", first]
    names = (*PLUGINS, *PLAIN, *VICTIMS, *own, *FLAGS)
    raise unknown_name("key of the run config", key, [name.replace("_", "-") for name in names])


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("[", "{")):
        return parse_yaml(value, f"`{key}` of the run config")
    return value


def _put(settings: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        settings = settings.setdefault(name, {})
    settings[path[-1]] = value


def _plugin(name: str, found: Mapping[str, Any]) -> Any:
    """A plugin by name, with its settings; what was read from YAML stays as it is."""
    chosen = found.get("class_path", "")
    if "init_args" not in found:
        return chosen or None
    if not isinstance(chosen, str) or not chosen:
        key = f"{name}.{next(iter(found['init_args']))}"
        raise BadInput(
            f"Expected the name of a plugin as `{name}` in the run config where `{key}` is given, "
            f"got {shown(chosen)}."
        )
    return dict(found)
