"""The arguments of the command line, parsed by jsonargparse."""

import argparse
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
from fedleak.cli.error_messages import complaint
from fedleak.cli.plugin_names import load_yaml, with_class_paths
from fedleak.config import Federation, Labels, Metrics, Space, Victims
from fedleak.data import PrivateData
from fedleak.defenses import Defense
from fedleak.models import LightningModule
from fedleak.registry import FROM_DATA, KINDS, SETTINGS, names

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
        settings = parser.parse_args(with_class_paths(argv))
    except ArgumentError as error:
        raise complaint(parser, argv, str(error)) from error
    if settings.subcommand is None:
        parser.print_help()
        raise SystemExit(2)
    return settings


def make_parser() -> ArgumentParser:
    """The parser of all commands."""
    set_loader("fedleak", load_yaml, (yaml.YAMLError,))
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
    _add_plugin(run, "data", PrivateData, "The data set")
    _add_plugin(run, "model", LightningModule, "The model", skip=set(FROM_DATA))
    run.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="A safetensors file with the weights to begin with, such as what another run's server "
        "sent: updates/r0005-global.safetensors.",
    )
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
    _add_trust(attack)
    attack.add_argument(
        "--output", type=str | None, default=None, help="Default: the source's folder-ATTACK."
    )
    for name, kind in (
        ("seed", int), ("device", str), ("labels", Labels), ("metrics.space", Space),
        ("metrics.success_threshold", float), ("metrics.lpips", bool),
        ("metrics.item_threshold", float),
    ):  # fmt: skip
        attack.add_argument(f"--{name}", type=kind | None, default=None, help="As in the source.")
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
    _add_trust(report)
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
    return bool(action.option_strings) and action.option_strings[0].removeprefix("--") in SETTINGS


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
    text = f"{title}: {_choices(SETTINGS[setting])}."
    parser.add_subclass_arguments(base, setting, required=True, skip=skip, help=text)
    groups: dict[str, Any] = parser.groups or {}
    if setting in groups:
        groups[setting].title = title


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted run.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the run at the output.")


def _add_trust(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--trust", action="store_true",
        help="Import the classes that the folder's config.yaml names, whoever wrote them: they are "
        "run as code.",
    )  # fmt: skip


def _choices(kind: str) -> str:
    return f"{', '.join(names(kind))}, or the dotted path of a class"
