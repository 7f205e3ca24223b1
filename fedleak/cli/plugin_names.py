"""Plugins by their short names, in arguments and in files, checked before anything is parsed."""

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


def with_class_paths(argv: list[str]) -> list[str]:
    """The arguments with plugins' names replaced by checked dotted paths, and files looked at."""
    result: list[str] = []
    pending: str | None = None
    for argument in argv:
        if pending is not None:
            result.append(_value(pending, argument))
            pending = None
            continue
        name, equals, value = argument.partition("=")
        takes = name == "--config" or name.removesuffix("+").removesuffix(".help") in {
            f"--{setting}" for setting in SETTINGS
        }
        if takes and equals:
            result.append(f"{name}={_value(name, value)}")
        else:
            result.append(argument)
            pending = name if takes else None
    return result


def _value(option: str, text: str) -> str:
    """The value of an option that names a plugin or a file."""
    setting = option.removeprefix("--").removesuffix("+").removesuffix(".help")
    if text.startswith("--"):
        raise BadInput(f"Expected a value after `{option}`, got nothing.")
    if setting == "config":
        _check_file(Path(text))
        return text
    if text[:1] not in ("[", "{"):
        with _working_folder():
            path = _checked(setting, text).class_path
        # One name stands for a list of one, unless it is added to those before.
        return f"[{{class_path: {path}}}]" if option.removeprefix("--") in LISTS else path
    value = _named(setting, parse_yaml(text, f"the value of `{option}`"))
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


@contextmanager
def _working_folder() -> Iterator[None]:
    """Within the block, a module that the user has named is found in the working folder, too.

    Last on the path, so that it comes before no module of the same name.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _named(setting: str, value: Any) -> Any:
    """A plugin's entry, or a list of them, with checked dotted paths for short names."""
    if setting in LISTS:
        # One entry stands for a list of one.
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [_entry(_checked(setting, item), item) for item in items]
    plugin = _checked(setting, value)
    return _entry(plugin, value) if isinstance(value, dict) else plugin.class_path


def _entry(plugin: Plugin, value: Any) -> dict[str, Any]:
    settings = isinstance(value, dict) and value.get("init_args")
    return {"class_path": plugin.class_path} | ({"init_args": settings} if settings else {})


def _checked(setting: str, value: Any) -> Plugin:
    """A plugin whose class is there and of the right kind."""
    plugin = read_plugin(SETTINGS[setting], setting, value)
    load_plugin(SETTINGS[setting], plugin.class_path, setting)
    return plugin


def _check_file(path: Path) -> None:
    """Check what can be said of a configuration file better than jsonargparse says it.

    Raises:
        BadInput: if it cannot be read, is no YAML, or a setting in it cannot be used.
    """
    values = read_yaml(path)
    require(
        isinstance(values, dict),
        f"Expected settings as `name: value` in `{path}`, got {shown(values)}.",
    )
    from fedleak.config import check_settings

    check_settings(values)
    for setting in set(SETTINGS) & set(values):
        _named(setting, values[setting])


def load_yaml(text: str) -> Any:
    """YAML, with plugins' short names replaced by their dotted paths where a config has them."""
    value = parse_yaml(text, "the settings")
    if isinstance(value, dict):
        return {n: _named(n, inner) if n in SETTINGS else inner for n, inner in value.items()}
    return value


def arguments_of(found: type[Any]) -> list[str]:
    """The settings of a class, without what it is given from the data."""
    return [name for name in parameters_of(found) if name not in FROM_DATA]
