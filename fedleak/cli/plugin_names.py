"""Resolve plugins' short names in arguments and files, and check them before parsing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fedleak.errors import BadInput, require
from fedleak.registry import FROM_DATA, SETTINGS, Plugin, load_plugin, read_plugin
from fedleak.runtime.safe_yaml import parse_yaml, read_yaml
from fedleak.schema import parameters_of, shown

LISTS = ("attacks", "defenses")
OPTIONAL = ("server",)


def with_class_paths(argv: list[str]) -> list[str]:
    """Replace plugin names by dotted paths; check the files behind ``--config``.

    Args:
        argv: the arguments of a command.

    Raises:
        BadInput: if a plugin or one of its settings is unknown, a value is missing, or a file
            cannot be used.
    """
    result: list[str] = []
    pending: str | None = None
    for argument in argv:
        if pending is not None:
            result.append(_value(pending, argument))
            pending = None
            continue
        name, equals, value = argument.partition("=")
        resolved = name == "--config" or name.removesuffix("+").removesuffix(".help") in {
            f"--{setting}" for setting in SETTINGS
        }
        if resolved and equals:
            result.append(f"{name}={_value(name, value)}")
        else:
            result.append(argument)
            pending = name if resolved else None
    return result


def _value(option: str, text: str) -> str:
    """The resolved value of an option that names a plugin or a file."""
    setting = option.removeprefix("--").removesuffix("+").removesuffix(".help")
    if text.startswith("--"):
        raise BadInput(f"Expected a value after `{option}`, got nothing.")
    if setting == "config":
        _check_file(Path(text))
        return text
    if text[:1] not in ("[", "{"):
        with _working_folder():
            path = _checked(setting, text).class_path
        # A single name is a list of one, unless it is appended to a list.
        return f"[{{class_path: {path}}}]" if option.removeprefix("--") in LISTS else path
    value = _resolve(setting, parse_yaml(text, f"the value of `{option}`"))
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


@contextmanager
def _working_folder() -> Iterator[None]:
    """Within the block, a module that the user named is also found in the working folder.

    It comes last on the import path, so that it shadows no other module.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _resolve(setting: str, value: Any) -> Any:
    """A plugin's entry, or a list of them, with dotted paths instead of short names; checked."""
    if setting in LISTS:
        # A single entry is a list of one.
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [_entry(_checked(setting, item), item) for item in items]
    if value is None and setting in OPTIONAL:
        return None
    plugin = _checked(setting, value)
    return _entry(plugin, value) if isinstance(value, dict) else plugin.class_path


def _entry(plugin: Plugin, value: Any) -> dict[str, Any]:
    settings = isinstance(value, dict) and value.get("init_args")
    return {"class_path": plugin.class_path} | ({"init_args": settings} if settings else {})


def _checked(setting: str, value: Any) -> Plugin:
    """Read a plugin and check that its class exists and is of the right kind."""
    plugin = read_plugin(SETTINGS[setting], setting, value)
    load_plugin(SETTINGS[setting], plugin.class_path, setting)
    return plugin


def _check_file(path: Path) -> None:
    """Check a configuration file, with clearer messages than jsonargparse gives.

    Raises:
        BadInput: if it cannot be read, is not YAML, or one of its settings is invalid.
    """
    values = read_yaml(path)
    require(
        isinstance(values, dict),
        f"Expected settings as `name: value` in `{path}`, got {shown(values)}.",
    )
    from fedleak.config import check_settings

    check_settings(values)
    for setting in set(SETTINGS) & set(values):
        _resolve(setting, values[setting])


def load_yaml(text: str) -> Any:
    """Load YAML and replace the short names of plugins in a configuration by dotted paths.

    Args:
        text: the YAML text of a configuration or of one value.

    Raises:
        BadInput: if it is not YAML, or a plugin in it is unknown.
    """
    value = parse_yaml(text, "the settings")
    if isinstance(value, dict):
        return {n: _resolve(n, inner) if n in SETTINGS else inner for n, inner in value.items()}
    return value


def arguments_of(found: type[Any]) -> list[str]:
    """The settings of a class, without the arguments that come from the data set."""
    return [name for name in parameters_of(found) if name not in FROM_DATA]
