"""Plugins by their short names, in arguments and in files, checked before anything is parsed."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fedleak.errors import BadInput, require, unknown_name
from fedleak.registry import class_path, load_class, names, short_name

# Settings that name a plugin -> kind; the class that a plugin of the kind has to be.
PLUGINS = {
    "data": "data",
    "model": "models",
    "attack": "attacks",
    "attacks": "attacks",
    "defenses": "defenses",
}
BASES = {
    "data": "fedleak.data.base.PrivateData",
    "models": "fedleak.models.base.LightningModule",
    "attacks": "fedleak.attacks.base.Attack",
    "defenses": "fedleak.defenses.base.Defense",
}
LISTS = ("attacks", "defenses")
FROM_DATA = {"input_shape", "num_classes"}


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
            f"--{setting}" for setting in PLUGINS
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
    if text.startswith(("[", "{")):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise _no_yaml(f"the value of `{option}`", error) from error
        _check_plugin(setting, value)
        return yaml.safe_dump(_named(setting, value), default_flow_style=True, width=10**6).strip()
    path = _checked_path(setting, text)
    # One name stands for a list of one, unless it is added to those before.
    return f"[{{class_path: {path}}}]" if option.removeprefix("--") in LISTS else path


def _checked_path(setting: str, name: Any) -> str:
    """The dotted path behind a name, checked to be that of a plugin of the right kind."""
    kind = PLUGINS[setting]
    if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)*", name):
        got = "nothing" if name is None else f"`{name}`"
        raise BadInput(
            f"Expected `{setting}` to name one of {', '.join(names(kind))}, or a class by its "
            f"dotted path, got {got}."
        )
    path = class_path(kind, name)
    base = load_class(BASES[kind])
    if not issubclass(load_class(path), base):
        raise BadInput(
            f"Expected `{setting}` to name a subclass of {base.__name__}, got `{path}`: see "
            f"`fedleak list {kind}`."
        )
    return path


def _named(setting: str, value: Any) -> Any:
    """A plugin's entry, or a list of them, with dotted paths in the place of short names."""
    if isinstance(value, list):
        return [inner for one in value for inner in _named(setting, one)]
    if isinstance(value, str):
        value = {"class_path": value}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        value = value | {"class_path": _checked_path(setting, value["class_path"])}
    # One entry stands for a list of one.
    return [value] if setting in LISTS and value is not None else value


def load_yaml(text: str) -> Any:
    """YAML, with plugins' short names replaced by their dotted paths where a config has them."""
    value = yaml.safe_load(text)
    if isinstance(value, dict):
        return {n: _named(n, inner) if n in PLUGINS else inner for n, inner in value.items()}
    return value


def _check_file(path: Path) -> None:
    """Check what can be said of a configuration file better than jsonargparse says it.

    Raises:
        BadInput: if it cannot be read, is no YAML, or has unknown keys.
    """
    require(path.is_file(), f"Expected a YAML file at `{path}`, found none.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Expected a readable YAML file, got `{path}`: {error}.") from error
    except yaml.YAMLError as error:
        raise _no_yaml(f"`{path}`", error) from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"`{values!s:.40}`"
        raise BadInput(f"Expected settings as `name: value` in `{path}`, got {got}.")
    from fedleak.config import Federation, Metrics, RunConfig, Victims

    sections = {"federation": Federation, "victims": Victims, "metrics": Metrics}
    known = [item.name for item in fields(RunConfig)]
    for name, value in values.items():
        if name not in [*known, "versions"]:
            raise unknown_name("setting", str(name), known)
        if name in PLUGINS:
            _check_plugin(name, value)
        elif name in sections:
            _check_keys(name, value, [item.name for item in fields(sections[name])])
        elif name != "versions":
            require(value is not None, f"Expected a value for `{name}` in `{path}`, got nothing.")


def _check_plugin(setting: str, value: Any) -> None:
    if setting in LISTS and (value is None or isinstance(value, list)):
        for inner in value or []:
            _check_plugin(setting, inner)
    elif isinstance(value, dict):
        _check_keys(setting, value, ["class_path", "init_args"])
        path = _checked_path(setting, value.get("class_path"))
        given, known = value.get("init_args") or {}, _arguments(path)
        title = short_name(PLUGINS[setting], path)
        if known is not None:
            _check_keys(title, given, known)
        if isinstance(given, dict) and isinstance(given.get("precode"), dict):
            from fedleak.models.bottleneck import Precode

            _check_keys("precode", given["precode"], arguments_of(Precode))
    else:
        _checked_path(setting, value)


def _check_keys(title: str, values: Any, known: Iterable[str]) -> None:
    if not isinstance(values, dict):
        raise BadInput(f"Expected settings as `name: value` in `{title}`, got `{values}`.")
    for name in values:
        if name not in known:
            raise unknown_name(f"setting of {title}", str(name), known)


def _arguments(path: str) -> list[str] | None:
    """The settings of the class at a dotted path; none where it takes any."""
    found = load_class(path)
    kinds = [parameter.kind for parameter in inspect.signature(found).parameters.values()]
    return None if inspect.Parameter.VAR_KEYWORD in kinds else arguments_of(found)


def arguments_of(found: type[Any]) -> list[str]:
    """The settings of a class, without what it is given from the data."""
    return [name for name in inspect.signature(found).parameters if name not in FROM_DATA]


def _no_yaml(where: str, error: yaml.YAMLError) -> BadInput:
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" in line {mark.line + 1}"
    return BadInput(f"Expected YAML in {where}, got a mistake{place}: {problem}.")
