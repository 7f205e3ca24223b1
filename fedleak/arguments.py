"""The arguments of the command line: short names for plugins, and sentences for mistakes."""

import argparse
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_loader,
)

from fedleak.attacks import Attack
from fedleak.config import Federation, Metrics, RunConfig, Victims
from fedleak.data import ImageData
from fedleak.defenses import Defense
from fedleak.errors import BadInput, require, unknown_name
from fedleak.models import LightningModule, Precode
from fedleak.registry import KINDS, class_path, load_class, names, short_name

# Settings that name a plugin -> kind; the class that a plugin of the kind has to be.
PLUGINS = {
    "data": "data",
    "model": "models",
    "attack": "attacks",
    "attacks": "attacks",
    "defenses": "defenses",
}
BASES: dict[str, type[Any]] = {
    "data": ImageData,
    "models": LightningModule,
    "attacks": Attack,
    "defenses": Defense,
}
SECTIONS: dict[str, type[Any]] = {
    "federation": Federation,
    "victims": Victims,
    "metrics": Metrics,
}
LISTS = ("attacks", "defenses")
FROM_DATA = {"input_shape", "num_classes"}
EXAMPLES = {
    "": ("fedleak run --data photos --model smlp --attacks iga --output runs/first",),
    "run": (
        "fedleak run --data photos --model smlp --model.precode.bottleneck_size 256",
        "--attacks+ nra --attacks.iterations 500 --output runs/first",
    ),
    "attack": (
        "fedleak attack runs/first --attack iga --attack.iterations 500",
        "--output runs/first-iga",
    ),
    "sweep": ("fedleak sweep study.yaml --processes 2 --output runs/study",),
    "report": ("fedleak report runs/first",),
    "list": ("fedleak list attacks",),
}
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[int]": "a list of whole numbers (such as [0, 2])",
    "list[float]": "a list of numbers (such as [0.5, 0.2])",
    "list": "a list (such as [a, b])",
    "dict": "a mapping (such as {name: value})",
    "NoneType": "null",
}


def parse(argv: list[str]) -> Namespace:
    """The settings in the arguments.

    Args:
        argv: what follows ``fedleak``; may name YAML files.

    Raises:
        BadInput: if something in them, or in a file, is unknown or of the wrong type.
        SystemExit: if help was asked for, or nothing at all.
    """
    parser = make_parser()
    try:
        settings = parser.parse_args(_with_class_paths(argv))
    except ArgumentError as error:
        raise _complaint(parser, argv, str(error)) from error
    if settings.subcommand is None:
        parser.print_help()
        raise SystemExit(2)
    return settings


def make_parser() -> ArgumentParser:
    """The parser of all commands."""
    set_loader("fedleak", _load_yaml, (yaml.YAMLError,))
    parser = _new_parser("What does federated training leak? Attacks on real federations.")
    parser.prog = "fedleak"
    commands = parser.add_subcommands(
        required=False, title="commands", description="`fedleak COMMAND --help` tells more of each."
    )
    commands.add_subcommand("run", _run_parser(), help="Federation, attacks, results.")
    commands.add_subcommand(
        "attack", _attack_parser(), help="Attack the updates that a run has saved."
    )
    commands.add_subcommand("sweep", _sweep_parser(), help="Many runs, as a study's file has them.")
    commands.add_subcommand("report", _report_parser(), help="One HTML page of a run.")
    lists = _new_parser("What can be named in a configuration.", "list", " [KIND]")
    kinds = (*KINDS, "all")
    lists.add_argument(
        "kind", type=Literal[kinds], nargs="?", default="all", metavar="KIND",
        help=f"One of {', '.join(kinds)}.",
    )  # fmt: skip
    commands.add_subcommand("list", lists, help="What can be named in a configuration.")
    return parser


def _run_parser() -> ArgumentParser:
    run = _new_parser(
        "Run a federation with a malicious server and attack what it intercepts.", "run"
    )
    run.add_argument("--config", action="config", help="YAML file with any settings.")
    run.add_argument("--output", type=str, default="runs/run", help="The run's folder.")
    run.add_argument("--seed", type=int, default=0, help="Seed of every random draw.")
    _add_plugin(run, "data", ImageData, "The data set")
    _add_plugin(run, "model", LightningModule, "The model", skip=FROM_DATA)
    run.add_argument(
        "--baseline",
        type=bool,
        default=False,
        help="Also run the federation with the model without its bottleneck, for comparison.",
    )
    run.add_argument("--federation", type=Federation, default=Federation())
    run.add_argument("--victims", type=Victims, default=Victims())
    run.add_argument(
        "--attacks", type=list[Attack], default=[],
        help=f"The attacks: {_choices('attacks')}; `--attacks+` adds one.",
    )  # fmt: skip
    run.add_argument(
        "--defenses", type=list[Defense], default=[],
        help="What clients do to an update before they send it, in this order: "
        f"{_choices('defenses')}; `--defenses+` adds one.",
    )  # fmt: skip
    run.add_argument("--metrics", type=Metrics, default=Metrics())
    run.add_argument("--device", type=str, default="cpu", help="Where attacks compute.")
    run.add_argument(
        "--versions",
        type=dict[str, str] | None,
        default=None,
        help="Versions that a config.yaml was made with; a difference is reported.",
    )
    _add_flags(run)
    return run


def _attack_parser() -> ArgumentParser:
    attack = _new_parser(
        "Attack saved updates, without a federation, into a run folder of its own.",
        "attack", " SOURCE",
    )  # fmt: skip
    attack.add_argument(
        "source", type=str, metavar="SOURCE", help="A run's folder, or one update's file in it."
    )
    _add_plugin(attack, "attack", Attack, "The attack")
    attack.add_argument(
        "--output", type=str | None, default=None, help="Default: the source's folder-ATTACK."
    )
    for name, kind in (("seed", int), ("device", str)):
        attack.add_argument(f"--{name}", type=kind | None, default=None, help="As in the source.")
    attack.add_argument(
        "--labels",
        type=Literal["known", "recovered"] | None,
        default=None,
        help="As in the source.",
    )
    _add_flags(attack)
    return attack


def _sweep_parser() -> ArgumentParser:
    sweep = _new_parser(
        "Run every cell of a study: a grid of settings over a base configuration.",
        "sweep", " STUDY",
    )  # fmt: skip
    sweep.add_argument("study", type=str, metavar="STUDY", help="The study's YAML file.")
    sweep.add_argument("--output", type=str, default="runs/sweep", help="The sweep's folder.")
    sweep.add_argument(
        "--processes", type=int | None, default=None, help="Default: as the study says, or 1."
    )
    _add_flags(sweep)
    return sweep


def _report_parser() -> ArgumentParser:
    report = _new_parser(
        "Write report.html into a run's folder: one page that needs nothing else.",
        "report", " RUN",
    )  # fmt: skip
    report.add_argument("run", type=str, metavar="RUN", help="The run's folder.")
    return report


class _Formatter(DefaultHelpFormatter):
    """Help in 80 columns at most, with the lines of a description as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._width = min(self._width, 79)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _get_help_string(self, action: argparse.Action) -> str:
        # What jsonargparse adds to a choice of plugins or commands tells nothing new.
        if _names_plugin(action) or isinstance(action, argparse._SubParsersAction):
            return action.help or ""
        text: str = super()._get_help_string(action)
        return text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if _names_plugin(action):
            return ", ".join(f"{option} NAME" for option in action.option_strings)
        text: str = super()._format_action_invocation(action)
        return text


def _names_plugin(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.option_strings[0].removeprefix("--") in PLUGINS


def _new_parser(description: str, command: str = "", arguments: str = "") -> ArgumentParser:
    example = " \\\n    ".join(EXAMPLES[command])
    return ArgumentParser(
        usage=f"fedleak {command}{arguments} [options]" if command else "fedleak COMMAND ...",
        description=f"{description}\n\nExample:\n  {example}",
        formatter_class=_Formatter,
        exit_on_error=False,
        parser_mode="fedleak",
        allow_abbrev=False,
    )


def _add_plugin(
    parser: ArgumentParser,
    setting: str,
    base: type[Any],
    title: str,
    skip: set[str] | None = None,
) -> None:
    text = f"{title}: {_choices(PLUGINS[setting])}."
    parser.add_subclass_arguments(base, setting, required=True, skip=skip, help=text)
    groups: dict[str, Any] = parser.groups or {}
    if setting in groups:
        groups[setting].title = title


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the run at the output.")


def _choices(kind: str) -> str:
    return f"{', '.join(names(kind))}, or the dotted path of a class"


# ------------------------------------------------------------------------------- plugins by name


def _with_class_paths(argv: list[str]) -> list[str]:
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
    if not issubclass(load_class(path), BASES[kind]):
        raise BadInput(
            f"Expected `{setting}` to name a subclass of {BASES[kind].__name__}, got `{path}`: see "
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


def _load_yaml(text: str) -> Any:
    """YAML, with plugins' short names replaced by their dotted paths where a config has them."""
    value = yaml.safe_load(text)
    if isinstance(value, dict):
        return {n: _named(n, inner) if n in PLUGINS else inner for n, inner in value.items()}
    return value


# -------------------------------------------------------------------------------- a look at files


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
    known = [item.name for item in fields(RunConfig)]
    for name, value in values.items():
        if name not in [*known, "versions"]:
            raise unknown_name("setting", str(name), known)
        if name in PLUGINS:
            _check_plugin(name, value)
        elif name in SECTIONS:
            _check_keys(name, value, [item.name for item in fields(SECTIONS[name])])
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
            _check_keys("precode", given["precode"], _arguments_of(Precode))
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
    return None if inspect.Parameter.VAR_KEYWORD in kinds else _arguments_of(found)


def _arguments_of(found: type[Any]) -> list[str]:
    return [name for name in inspect.signature(found).parameters if name not in FROM_DATA]


def _no_yaml(where: str, error: yaml.YAMLError) -> BadInput:
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" in line {mark.line + 1}"
    return BadInput(f"Expected YAML in {where}, got a mistake{place}: {problem}.")


# ------------------------------------------------------------------------ jsonargparse's complaints


def _complaint(parser: ArgumentParser, argv: list[str], message: str) -> BadInput:
    """What jsonargparse complains of, as one sentence with what was expected and what came."""
    text = " ".join(message.split())
    # From outside to inside, such as model, precode, beta.
    keys = re.findall(r'Parser key "([^"]+)"', text)
    name = ".".join(dict.fromkeys(keys))
    if found := re.search(r"(?:[Oo]ption '|unrecognized arguments: -+)([\w.+-]+)", text):
        return _unknown_setting(parser, argv, text, keys, found[1].rstrip("+"))
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return BadInput(f"Expected options, such as `--seed 1`, got `{found[1]}`.")
    if found := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.+?)\)", text):
        kind = "value" if "subcommand" not in text else "command"
        if option := re.search(r"argument (--[\w.]+)", text):
            kind = f"value of `{option[1]}`"
        return unknown_name(kind, found[1], re.findall(r"[\w.]+", found[2]))
    if found := re.search(r"argument (--[\w.+]+): expected", text):
        return BadInput(f"Expected a value after `{found[1]}`, got nothing.")
    if found := re.search(r"argument (--[\w.+]+): ignored explicit argument '(.+)'", text):
        return BadInput(f"Expected no value after `{found[1]}`, got `{found[2]}`.")
    if found := re.search(r"the following arguments are required: ([\w., ]+?)(?: -|$)", text):
        return _missing(keys, found[1])
    if found := re.search(r"Expected an? (\S.*?)\.? Got value: (.+?)(?: -|$)", text):
        return _wrong_type(name, [found[1]], found[2])
    if found := re.search(r".*Subtypes: \[(.+?)\] Errors:.*?Given value: (.+?)(?: -|$)", text):
        return _wrong_type(name, re.split(r", (?![^\[]*\])", found[1]), found[2])
    if found := re.search(r"Unable to load config ['\"](.+?)['\"]", text):
        return BadInput(f"Expected settings of `{name}` or a YAML file, got `{found[1]}`.")
    return BadInput(f"{text.rstrip('.')}: see `fedleak --help`.")


def _unknown_setting(
    parser: ArgumentParser, argv: list[str], text: str, keys: list[str], option: str
) -> BadInput:
    classes = re.findall(r"given class_path '([\w.]+)'", text)
    if classes:  # a plugin's own setting
        title = "precode" if len(classes) > 1 else short_name(PLUGINS.get(keys[0], ""), classes[0])
        return unknown_name(f"setting of {title}", option, _arguments_of(load_class(classes[-1])))
    known = _settings(parser, argv)
    group, _, rest = option.rpartition(".")
    siblings = [n.removeprefix(f"{group}.") for n in known if n.startswith(f"{group}.")]
    if group and siblings:
        return unknown_name(f"setting of {group}", rest, siblings)
    near = [name for name in known if "." not in name]
    return unknown_name("setting", option, near)


def _settings(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """The dotted names of all options of the command in the arguments."""
    commands: Mapping[str, Any] = parser._subcommands_action.choices  # type: ignore[union-attr]
    chosen = next((commands[name] for name in argv if name in commands), parser)
    options = [option for action in chosen._actions for option in action.option_strings]
    return [
        option.removeprefix("--")
        for option in options
        if option.startswith("--") and not option.endswith(("+", ".help", "print_config"))
    ]


def _missing(keys: list[str], required: str) -> BadInput:
    first = required.split(",")[0].strip().rpartition(".")[2]
    if keys:
        option = ".".join([*keys, first])
        return BadInput(f"Expected a value for `{option}`, got nothing: give `--{option}`.")
    if first in PLUGINS:
        kind = PLUGINS[first]
        return BadInput(
            f"Expected `--{first}` with one of {', '.join(names(kind))}, got nothing: see "
            f"`fedleak list {kind}`."
        )
    return BadInput(f"Expected a value for `{first}`, got nothing: see `fedleak --help`.")


def _wrong_type(name: str, types: list[str], value: str) -> BadInput:
    found = re.search(r"NestedArg\(key='[\w.]+', val='(.*?)'\)", value)
    value = found[1] if found else value
    if choices := re.search(r"Literal\[(.+)\]", types[0]):
        return unknown_name(f"value of `{name}`", value, re.findall(r"'([^']+)'", choices[1]))
    kinds = [re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind) for kind in types]
    words = " or ".join(WORDS.get(kind, "settings as `name: value`") for kind in kinds)
    return BadInput(f"Expected `{name}` to be {words}, got `{value}`.")
