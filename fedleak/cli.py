"""The command line: parses, calls, prints."""

import inspect
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_loader
from rich.console import Console

from fedleak import experiment
from fedleak.attacks import Attack
from fedleak.config import Federation, Metrics, RunConfig, Victims, versions
from fedleak.data import ImageData
from fedleak.errors import BadInput, unknown_name
from fedleak.models import LightningModule
from fedleak.parts import make_data
from fedleak.registry import KINDS, Plugin, class_path, load_class
from fedleak.reporting import (
    Display,
    TensorBoard,
    paths_line,
    plugin_table,
    results_table,
    write_figures,
)
from fedleak.results import RunFolder

# Settings that name a plugin: setting -> kind.
PLUGINS = {"data": "data", "model": "models", "attack": "attacks", "attacks": "attacks"}
FROM_DATA = {"input_shape", "num_classes"}
EXAMPLES = {
    "run": "fedleak run --data photos --model smlp --model.precode.bottleneck_size 256 "
    "--attacks+ nra --attacks.iterations 500 --output runs/first",
    "attack": "fedleak attack runs/first --attack iga --attack.iterations 500 "
    "--output runs/first-iga",
    "list": "fedleak list attacks",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script ``fedleak``; exits with 0, 2 for bad input, 130 when interrupted.

    Args:
        argv: the arguments; none: those of the process.
    """
    # A model of one's own lies in the folder where the command is given.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    console, complaints = Console(), Console(stderr=True, soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        _command(_parse(arguments), console)
    except BadInput as error:
        complaints.print(f"fedleak: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        complaints.print("fedleak: interrupted.", highlight=False)
        sys.exit(130)
    sys.exit(0)


def _command(settings: Namespace, console: Console) -> None:
    command, chosen = settings.subcommand, settings[settings.subcommand]
    if command == "list":
        for kind in KINDS if chosen.kind == "all" else (chosen.kind,):
            console.print(plugin_table(kind))
        return
    if command == "run":
        config = _run_config(chosen)
        _check_versions(chosen.versions, console)
    else:
        config = _attack_config(chosen)
    flags = {"resume": chosen.resume, "overwrite": chosen.overwrite}
    data = make_data(config)
    folder = RunFolder(Path(config.output))
    with Display(console) as display:
        observers = [display, TensorBoard(config, data.mean, data.std)]
        try:
            if command == "run":
                summary = experiment.run(config, observers, **flags)
            else:
                source = Path(chosen.source)
                summary = experiment.attack(source, config, observers, **flags)
        finally:
            figures = []
            if folder.results.is_file():
                figures = write_figures(folder, RunConfig.load(folder.config), data.mean, data.std)
    if summary["attacks"]:
        console.print(results_table(summary, config))
    if summary["federation"]["accuracy"] is not None:
        accuracy = summary["federation"]["accuracy"]
        console.print(f"Test accuracy of {config.model_name}: {accuracy:.4f}", highlight=False)
    console.print(paths_line(folder, figures))


def _run_config(chosen: Namespace) -> RunConfig:
    values = _as_dict(chosen)
    return RunConfig.from_dict({item.name: values[item.name] for item in fields(RunConfig)})


def _attack_config(chosen: Namespace) -> RunConfig:
    folder = experiment.source_folder(Path(chosen.source))
    config = RunConfig.load(folder.config)
    values = _as_dict(chosen)
    attack = Plugin(values["attack"]["class_path"], values["attack"].get("init_args") or {})
    output = chosen.output or f"{folder.path}-{chosen.attack.class_path.rsplit('.')[-1].lower()}"
    victims = replace(config.victims, when="after")
    return replace(
        config,
        attacks=(attack,),
        output=output,
        seed=config.seed if chosen.seed is None else chosen.seed,
        device=chosen.device or config.device,
        victims=replace(victims, labels=chosen.labels) if chosen.labels else victims,
    )


def _check_versions(recorded: dict[str, str] | None, console: Console) -> None:
    """Say so if a configuration was made with other versions than are installed."""
    here = versions()
    for name, version in (recorded or {}).items():
        if here.get(name) != version:
            console.print(
                f"Note: the configuration was made with {name} {version}, here is "
                f"{here.get(name, 'none')}; figures may differ.",
                highlight=False,
            )


def _parser() -> ArgumentParser:
    set_loader("fedleak", _load_yaml, (yaml.YAMLError,))
    common: dict[str, Any] = {"exit_on_error": False, "parser_mode": "fedleak"}
    parser = ArgumentParser(
        prog="fedleak",
        description="What does federated training leak? Attacks on real federations.",
        **common,
    )
    commands = parser.add_subcommands(title="commands")

    run = ArgumentParser(
        description="Run a federation with a malicious server and attack what it intercepts. "
        f"Example: {EXAMPLES['run']}",
        **common,
    )
    run.add_argument("--config", action="config", help="YAML file with any settings.")
    run.add_argument("--output", type=str, default="runs/run", help="The run's folder.")
    run.add_argument("--seed", type=int, default=0, help="Seed of every random draw.")
    run.add_subclass_arguments(ImageData, "data", required=True, help="The data set.")
    run.add_subclass_arguments(
        LightningModule, "model", required=True, skip=FROM_DATA, help="The model."
    )
    run.add_argument(
        "--baseline",
        type=bool,
        default=False,
        help="Also run the federation with the model without its bottleneck, for comparison.",
    )
    run.add_argument("--federation", type=Federation, default=Federation())
    run.add_argument("--victims", type=Victims, default=Victims())
    run.add_argument("--attacks", type=list[Attack], default=[], help="The attacks.")
    run.add_argument("--metrics", type=Metrics, default=Metrics())
    run.add_argument("--device", type=str, default="cpu", help="Where attacks compute.")
    run.add_argument(
        "--versions",
        type=dict[str, str] | None,
        default=None,
        help="Versions that a config.yaml was made with; a difference is reported.",
    )
    _add_flags(run)
    commands.add_subcommand("run", run, help="federation, attacks, results")

    attack = ArgumentParser(
        description="Attack saved updates, without a federation, into a run folder of its own. "
        f"Example: {EXAMPLES['attack']}",
        **common,
    )
    attack.add_argument("source", type=str, help="A run's folder, or one update's file in it.")
    attack.add_subclass_arguments(Attack, "attack", required=True, help="The attack.")
    attack.add_argument(
        "--output", type=str | None, default=None, help="Default: the source's folder-ATTACK."
    )
    for name, kind in (("seed", int), ("device", str)):
        attack.add_argument(f"--{name}", type=kind | None, default=None, help="As in the source.")
    attack.add_argument(
        "--labels", type=str | None, default=None, choices=["known", "recovered"],
        help="As in the source.",
    )  # fmt: skip
    _add_flags(attack)
    commands.add_subcommand("attack", attack, help="attack the updates that a run has saved")

    lists = ArgumentParser(
        description=f"What can be named in a configuration. Example: {EXAMPLES['list']}", **common
    )
    lists.add_argument("kind", type=str, choices=[*KINDS, "all"], nargs="?", default="all")
    commands.add_subcommand("list", lists, help="attacks, data sets and models by name")
    return parser


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the run at the output.")


def _parse(argv: list[str]) -> Namespace:
    parser = _parser()
    try:
        return parser.parse_args(_with_class_paths(argv))
    except ArgumentError as error:
        raise _sentence(parser, argv, str(error)) from error


def _with_class_paths(argv: list[str]) -> list[str]:
    """The arguments with plugins' short names replaced by their dotted paths."""
    result: list[str] = []
    pending: str | None = None
    for argument in argv:
        name, equals, value = argument.partition("=")
        setting = name.removeprefix("--").removesuffix("+")
        if pending is not None:
            result.append(_class_paths_in(pending, argument))
            pending = None
        elif name.startswith("--") and setting in PLUGINS and equals:
            result.append(f"{name}={_class_paths_in(setting, value)}")
        else:
            result.append(argument)
            if name.startswith("--") and setting in PLUGINS:
                pending = setting
    return result


def _class_paths_in(setting: str, text: str) -> str:
    if re.fullmatch(r"\w+", text):
        return class_path(PLUGINS[setting], text)
    if text.startswith("["):
        return yaml.safe_dump(_named(setting, yaml.safe_load(text)), default_flow_style=True)
    return text


def _load_yaml(text: str) -> Any:
    """YAML, with plugins' short names replaced by their dotted paths where a config has them."""
    value = yaml.safe_load(text)
    if isinstance(value, dict):
        return {n: _named(n, inner) if n in PLUGINS else inner for n, inner in value.items()}
    return value


def _named(setting: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_named(setting, inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"\w+", value):
        return {"class_path": class_path(PLUGINS[setting], value)}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return value | {"class_path": class_path(PLUGINS[setting], value["class_path"])}
    return value


def _as_dict(settings: Namespace) -> dict[str, Any]:
    plain: dict[str, Any] = settings.as_dict()
    return plain


def _sentence(parser: ArgumentParser, argv: list[str], message: str) -> BadInput:
    """Jsonargparse's complaint as one sentence, with the valid choices and the nearest match."""
    text = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: --?([\w.+-]+)", text, re.IGNORECASE):
        return unknown_name("setting", found[1].rstrip("+"), _settings(parser, argv))
    if found := re.search(r"class_path '([\w.]+)'.*?Option '(\w+)' is not accepted", text):
        return unknown_name(f"setting of {found[1]}", found[2], _arguments(found[1]))
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        known = [n.rsplit(".", 1)[-1] for n in _settings(parser, argv) if n.startswith(found[1])]
        return unknown_name(f"setting of {found[1].split('.', 1)[-1]}", found[2], known)
    if found := re.search(r"Option '([\w.]+)' is not accepted", text):
        return unknown_name("setting", found[1], _settings(parser, argv))
    if found := re.search(r'Parser key "([\w.]+)":.*?Expected an? (.+?)\.? Got value: (\S+)', text):
        kind = re.sub(r"<class '(\w+)'>", r"\1", found[2])
        kind = re.sub(r"typing\.Literal\[(.+?)\]", r"one of \1", kind)
        return BadInput(f"Expected `{found[1]}` to be {kind}, got `{found[3]}`.")
    if found := re.search(r"expected a path but (\S+) either not accessible", text, re.IGNORECASE):
        return BadInput(f"Expected a readable YAML file, got `{found[1]}`.")
    return BadInput(f"{text.rstrip('.')}: see `fedleak --help`.")


def _settings(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """The dotted names of all options of the command in the arguments."""
    commands = parser._subcommands_action.choices  # type: ignore[union-attr]
    chosen = next((commands[name] for name in argv if name in commands), parser)
    options = [option for action in chosen._actions for option in action.option_strings]
    return [option.removeprefix("--") for option in options if option.startswith("--")]


def _arguments(path: str) -> list[str]:
    return [
        name for name in inspect.signature(load_class(path)).parameters if name not in FROM_DATA
    ]


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
