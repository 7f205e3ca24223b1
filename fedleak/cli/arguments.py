"""The arguments of the command line, parsed by jsonargparse."""

import argparse
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_loader,
)

from fedleak.class_source import read_class
from fedleak.cli.error_messages import settings_of, translate_error, unknown_option
from fedleak.cli.plugin_names import load_yaml, with_class_paths
from fedleak.errors import unknown_name
from fedleak.registry import (
    BASES,
    FROM_DATA,
    KINDS,
    SETTINGS,
    class_path,
    load_class,
    names,
    short_name,
)

# Kind -> the class whose subclasses jsonargparse accepts.
SETTING = re.compile(r"^--model\.(?=\w)")
PARSED = BASES | {"models": "fedleak.models.base.LightningModule"}
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
    "audit": ("fedleak audit path/to/app --clients 4 --rounds 1 --output runs/audit",),
    "budget": (
        "fedleak budget --mechanism local_dp_mod --clipping-norm 1 --sensitivity 1e-4",
        "--epsilon 10 --delta 1e-5 --rounds 20",
    ),
    "import": (
        "fedleak import gradient.pt --model net:Net --sent weights.pt --kind gradient",
        "--input_shape 3,32,32 --classes 10 --output runs/theirs",
    ),
    "sweep": ("fedleak sweep study.yaml --processes 2 --output runs/study",),
    "report": ("fedleak report runs/first",),
    "list": ("fedleak list attacks",),
}


def parse(argv: list[str]) -> Namespace:
    """Parse the command line.

    Args:
        argv: the arguments after ``fedleak``; they may name YAML files.

    Returns:
        The settings by name.

    Raises:
        BadInput: if a name in the arguments or in a file is unknown, or a value is invalid.
        SystemExit: if help was requested, or no command given.
    """
    command = next((name for name in argv if name in COMMANDS), None)
    if command == "import":
        # Its model need be no plugin, so its arguments are not known here.
        argv = [SETTING.sub("--settings.", argument) for argument in argv]
        _check_options(make_parser(command, plugins=False), argv)
    elif command is not None:
        _check_options(make_parser(command, plugins=False), argv)
        argv = with_class_paths(argv)
    parser = make_parser(command)
    try:
        settings = parser.parse_args(argv)
    except ArgumentError as error:
        raise translate_error(parser, argv, str(error)) from error
    if settings.subcommand is None:
        parser.print_help()
        raise SystemExit(2)
    return settings


def _check_options(parser: ArgumentParser, argv: list[str]) -> None:
    """Refuse a misspelt option before plugins are imported, which is slow.

    Args:
        parser: the parser of the command, without the settings of its plugins.
        argv: the arguments.

    Raises:
        BadInput: if the command has no such option, or the named plugin no such setting.
    """
    known = settings_of(parser, argv)
    plugins: dict[str, str] = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if not argument.startswith("--"):
            continue
        option, equals, value = argument.removeprefix("--").partition("=")
        option = option.removesuffix("+")
        setting, _, inner = option.partition(".")
        if setting in SETTINGS and setting in known:
            if not inner:
                plugins[setting] = value if equals else following
            else:
                _check_argument(SETTINGS[setting], plugins.get(setting, ""), inner.split(".")[0])
        elif not option.endswith(".help") and option not in ("", "help", "print_config"):
            _check_option(parser, argv, option, known)


def _check_argument(kind: str, plugin: str, argument: str) -> None:
    """Check a plugin's setting, if the plugin is named and its source determines its settings."""
    if not re.fullmatch(r"\w+(\.\w+)*", plugin):
        return
    path = class_path(kind, plugin)
    arguments = read_class(path).arguments
    valid = set(arguments or ()) - set(FROM_DATA)
    if arguments is not None and argument not in {*valid, "help", "class_path", "init_args"}:
        raise unknown_name(f"setting of {short_name(kind, path)}", argument, valid)


def _check_option(parser: ArgumentParser, argv: list[str], option: str, known: list[str]) -> None:
    parts = option.split(".")
    above = [".".join(parts[: n + 1]) for n in range(len(parts))]
    nearest = next((name for name in reversed(above) if name in known), None)
    # Below an option without suboptions, any name is a key of its mapping.
    has_suboptions = any(name.startswith(f"{nearest}.") for name in known)
    if nearest is None or (nearest != option and has_suboptions):
        raise unknown_option(parser, argv, option)


def make_parser(command: str | None = None, *, plugins: bool = True) -> ArgumentParser:
    """Make the parser of all commands, with the arguments of one of them.

    Args:
        command: the command whose arguments are added. If None, no command has arguments.
        plugins: whether the settings of plugins are added, which imports their classes; otherwise
            only the options that name a plugin.
    """
    set_loader("fedleak", load_yaml, (yaml.YAMLError,))
    parser = _new_parser("What does federated training leak? Attacks on real federations.")
    parser.prog = "fedleak"
    commands = parser.add_subcommands(
        required=False, title="commands", description="`fedleak COMMAND --help` tells more of each."
    )
    for name, facts in COMMANDS.items():
        inner = _new_parser(facts.description, name, facts.arguments)
        if name == command:
            facts.fill(inner, plugins)
        commands.add_subcommand(name, inner, help=facts.help)
    return parser


def _fill_run(run: ArgumentParser, plugins: bool) -> None:
    from fedleak.config import Federation, Metrics, Privacy, Victims

    run.add_argument("--config", action="config", help="YAML file with any settings.")
    run.add_argument("--output", type=str, default="runs/run", help="The run's folder.")
    run.add_argument("--seed", type=int, default=0, help="Seed of every random draw.")
    _add_plugin(run, "data", "The data set", plugins)
    _add_plugin(run, "model", "The model", plugins, skip=set(FROM_DATA))
    run.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="A safetensors file with the initial weights, such as another run's "
        "updates/r0005-global.safetensors, which its server sent in round 5.",
    )
    run.add_argument(
        "--baseline",
        type=bool,
        default=False,
        help="Also run the federation with the model without its bottleneck, as a baseline.",
    )
    _add_plugin(
        run, "server", "The malicious server, which changes what it sends to the victims", plugins,
        required=False,
    )  # fmt: skip
    run.add_argument(
        "--public", type=int | None, default=None,
        help="Number of test samples that a malicious server has as public ones. Default: all.",
    )  # fmt: skip
    run.add_argument("--federation", type=Federation, default=Federation())
    run.add_argument("--victims", type=Victims, default=Victims())
    run.add_argument(
        "--attacks", type=_list_of("attacks", plugins), default=[],
        help=f"The attacks: {_choices('attacks')}; `--attacks+` adds one.",
    )  # fmt: skip
    run.add_argument(
        "--defenses", type=_list_of("defenses", plugins), default=[],
        help="What clients do to an update before they send it, in this order: "
        f"{_choices('defenses')}; `--defenses+` adds one.",
    )  # fmt: skip
    run.add_argument("--metrics", type=Metrics, default=Metrics())
    run.add_argument("--privacy", type=Privacy, default=Privacy())
    run.add_argument("--device", type=str, default="cpu", help="Where attacks compute.")
    run.add_argument(
        "--versions",
        type=dict[str, str] | None,
        default=None,
        help="Versions that a config.yaml was made with; a difference is reported.",
    )
    _add_flags(run)


def _fill_attack(attack: ArgumentParser, plugins: bool) -> None:
    from fedleak.config import Labels, Space

    attack.add_argument(
        "source", type=str, metavar="SOURCE", help="A run's folder, or one update's file in it."
    )
    _add_plugin(attack, "attack", "The attack", plugins)
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


def _fill_import(imports: ArgumentParser, _plugins: bool) -> None:
    from fedleak.updates.knowledge import Aggregation

    imports.add_argument(
        "file", type=str, metavar="FILE",
        help="Tensors or arrays by name, or in the order of the model's parameters: a .pt file, an "
        ".npz file or a .safetensors file.",
    )  # fmt: skip
    imports.add_argument(
        "--model", type=str, required=True,
        help="The module that was trained: its class, as module:Class, or a model of fedleak. "
        "`--model.NAME VALUE` gives an argument of the class.",
    )  # fmt: skip
    imports.add_argument(
        "--settings", type=dict[str, Any], default={}, help="The same as --model.NAME, in one."
    )
    imports.add_argument(
        "--kind",
        type=Literal["gradient", "weights", "delta"],
        required=True,
        help="What the file holds; a delta is new minus old weights.",
    )
    imports.add_argument(
        "--input_shape", type=str, required=True, help="Shape of an image, such as 3,32,32."
    )
    imports.add_argument("--classes", type=int, required=True, help="Number of classes.")
    imports.add_argument(
        "--sent", type=str | None, default=None,
        help="A file with the weights that the client was sent. Default: those with which the "
        "class makes the model, if they are not random.",
    )  # fmt: skip
    imports.add_argument(
        "--learning_rate", type=float | None, default=None,
        help="The client's learning rate, of plain SGD, for weights and delta.",
    )  # fmt: skip
    imports.add_argument("--num_samples", type=int, default=1, help="Samples of the update.")
    imports.add_argument(
        "--batch_size", type=int | None, default=None,
        help="Default: all samples of a client are one batch.",
    )  # fmt: skip
    imports.add_argument(
        "--clients", type=int, default=1,
        help="Clients whose updates came as one, each with as many of the samples as the others.",
    )  # fmt: skip
    imports.add_argument(
        "--aggregation",
        type=Aggregation,
        default="weighted_mean",
        help="How the updates of several clients were combined.",
    )
    imports.add_argument("--epochs", type=int, default=1, help="Local epochs (weights, delta).")
    imports.add_argument(
        "--mode", type=Literal["train", "eval"], default="train", help="Mode of the model."
    )
    imports.add_argument(
        "--mean", type=str, default="0", help="What was subtracted from each channel: 0.5,0.5,0.5."
    )
    imports.add_argument(
        "--std", type=str, default="1", help="By what each channel was divided afterwards."
    )
    imports.add_argument("--output", type=str, required=True, help="The folder to write.")
    imports.add_argument("--overwrite", action="store_true", help="Replace the run at the output.")


def _fill_audit(audit: ArgumentParser, _plugins: bool) -> None:
    audit.add_argument(
        "app", type=str, metavar="APP",
        help="Folder of a Flower app, with its pyproject.toml. Its code is run.",
    )  # fmt: skip
    audit.add_argument("--clients", type=int, default=10, help="Number of simulated clients.")
    audit.add_argument(
        "--rounds", type=int | None, default=None, help="Default: as the app's run config says."
    )
    audit.add_argument(
        "--run-config", type=str | None, default=None,
        help="Other values of the app's run config, as `flwr run` takes them: 'key=1 other=2'.",
    )  # fmt: skip
    audit.add_argument("--output", type=str, default="runs/audit", help="The audit's folder.")
    audit.add_argument(
        "--budget", type=str, default="8m", help="Time for the attacks: 90s, 10m, 1h."
    )
    audit.add_argument(
        "--public", type=str | None, default=None,
        help="An .npz file with `inputs` and `labels` like the clients'. Default: made-up ones.",
    )  # fmt: skip
    audit.add_argument(
        "--fail-above", type=str, action="append", default=[], metavar="[QUESTION=]SHARE",
        help="Exit with 3 if an answer goes further from the guess to the exact answer.",
    )  # fmt: skip
    audit.add_argument(
        "--malicious", action="store_true",
        help="Run the app twice more with a server that changes what it sends to one client.",
    )  # fmt: skip
    audit.add_argument("--seed", type=int, default=0, help="Seed of the attacks.")
    audit.add_argument(
        "--processes", type=int, default=1,
        help="Updates attacked at the same time, as tasks on Ray. Default: one, without Ray.",
    )  # fmt: skip
    audit.add_argument("--cpus-per-client", type=float, default=1.0, help="CPUs of a client.")
    audit.add_argument("--gpus-per-client", type=float, default=0.0, help="GPUs of a client.")
    audit.add_argument(
        "--ray-address", type=str | None, default=None,
        help="A Ray cluster. Default: a private instance of Ray on this machine.",
    )  # fmt: skip
    _add_flags(audit, "audit")


def _fill_budget(budget: ArgumentParser, _plugins: bool) -> None:
    from fedleak.privacy.mechanisms import MECHANISMS, Adjacency, Kind, Sampling

    budget.add_argument(
        "--mechanism", type=str, required=True,
        help=f"One of {', '.join(MECHANISMS)}. Each has some of the settings below.",
    )  # fmt: skip
    budget.add_argument("--rounds", type=int, default=1, help="Rounds of a client.")
    for name, kind, text in (
        ("clipping-norm", float, "Clipping norm of local_dp_mod and fixed_clipping."),
        ("sensitivity", float, "Sensitivity that local_dp_mod is given."),
        ("epsilon", float, "Epsilon that local_dp_mod is given, of one round."),
        ("delta", float, "Delta. Default: 1e-5, but none for local_dp_mod."),
        ("noise-multiplier", float, "Noise multiplier of dp_sgd and the central clippings."),
        ("max-norm", float, "Clipping norm of dp_sgd, and of `clipping` before `noise`."),
        ("steps", int, "Steps of dp_sgd in a round. Default: 1."),
        ("sampling-rate", float, "Share of a client's samples in a batch of dp_sgd. Default: 1."),
        ("sampling", Sampling, "How dp_sgd draws batches. Default: poisson, as Opacus does."),
        ("clients", int, "Clients of a round of fixed_clipping and adaptive_clipping."),
        ("population", int, "Clients of which those of a round are drawn. Default: the same."),
        ("largest-weight", float, "A client's largest weight in the mean. Default: equal weights."),
        ("clipped-count-stddev", float, "Of adaptive_clipping. Default: clients / 20."),
        ("initial-clipping-norm", float, "Of adaptive_clipping. Default: 0.1."),
        ("sigma", float, "Standard deviation of `noise`."),
        ("distribution", Kind, "Distribution of `noise`. Default: gaussian."),
        ("relative", bool, "Whether sigma of `noise` is relative to the norm. Default: false."),
        ("entries", int, "Entries of an update, for laplace `noise` behind a clipping."),
        ("adjacency", Adjacency, "Default: replace for local_dp_mod and noise, else remove."),
    ):  # fmt: skip
        budget.add_argument(f"--{name}", type=kind | None, default=None, help=text)


def _fill_sweep(sweep: ArgumentParser, _plugins: bool) -> None:
    sweep.add_argument("study", type=str, metavar="STUDY", help="The study's YAML file.")
    sweep.add_argument("--output", type=str, default="runs/sweep", help="The sweep's folder.")
    sweep.add_argument(
        "--processes", type=int | None, default=None, help="Default: as the study says, or 1."
    )
    sweep.add_argument(
        "--engine", type=Literal["local", "ray"], default="local",
        help="Run cells as child processes here, or as tasks on Ray.",
    )  # fmt: skip
    sweep.add_argument(
        "--ray-address", type=str | None, default=None,
        help="With `--engine ray`, a cluster whose nodes share the output folder. Default: a "
        "private instance of Ray on this machine.",
    )  # fmt: skip
    _add_flags(sweep)


def _fill_report(report: ArgumentParser, _plugins: bool) -> None:
    report.add_argument("run", type=str, metavar="RUN", help="The run's folder.")
    _add_trust(report)


def _fill_list(lists: ArgumentParser, _plugins: bool) -> None:
    kinds = (*KINDS, "all")
    lists.add_argument(
        "kind", type=Literal[kinds], nargs="?", default="all", metavar="KIND",
        help=f"One of {', '.join(kinds)}.",
    )  # fmt: skip


class _Command(NamedTuple):
    """A command: its line in the list of commands, its description, its arguments."""

    help: str
    description: str
    arguments: str
    fill: Callable[[ArgumentParser, bool], None]


COMMANDS = {
    "run": _Command(
        "Federation, attacks, results.",
        "Run a federation with a malicious server and attack what it intercepts.",
        "",
        _fill_run,
    ),
    "attack": _Command(
        "Attack the updates that a run has saved.",
        "Attack saved updates, without a federation, into a run folder of its own.",
        " SOURCE",
        _fill_attack,
    ),
    "import": _Command(
        "Make a run's folder of a file with an update.",
        "Make a folder for `fedleak attack` from a file of a gradient, weights or delta.",
        " FILE",
        _fill_import,
    ),
    "audit": _Command(
        "What the server of a Flower app could learn.",
        "Run a Flower app as it is, attack what its server sees, and conclude.",
        " APP",
        _fill_audit,
    ),
    "budget": _Command(
        "What rounds with clipping and noise spend of a privacy budget.",
        "Compute, without a run, what a mechanism of differential privacy is worth.",
        "",
        _fill_budget,
    ),
    "sweep": _Command(
        "The runs of a study's file.",
        "Run every cell of a study: a grid of settings over a base configuration.",
        " STUDY",
        _fill_sweep,
    ),
    "report": _Command(
        "One HTML page of a run.",
        "Write report.html into a run's folder: one self-contained page.",
        " RUN",
        _fill_report,
    ),
    "list": _Command(
        "The plugins that a configuration can name.",
        "The plugins that a configuration can name.",
        " [KIND]",
        _fill_list,
    ),
}


class _Formatter(DefaultHelpFormatter):
    """Help in 80 columns at most, with the lines of a description as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._width = min(self._width, 79)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _get_help_string(self, action: argparse.Action) -> str:
        # jsonargparse's addition to a choice of plugins or commands contains nothing new.
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
    title: str,
    plugins: bool,
    skip: set[str] | None = None,
    required: bool = True,
) -> None:
    text = f"{title}: {_choices(SETTINGS[setting])}."
    if not plugins:
        parser.add_argument(f"--{setting}", type=str, help=text)
        return
    base = load_class(PARSED[SETTINGS[setting]])
    parser.add_subclass_arguments(base, setting, required=required, skip=skip, help=text)
    groups: dict[str, Any] = parser.groups or {}
    if setting in groups:
        groups[setting].title = title


def _list_of(kind: str, plugins: bool) -> Any:
    return list[load_class(PARSED[kind])] if plugins else list[str]  # type: ignore[misc]


def _add_flags(parser: ArgumentParser, what: str = "run") -> None:
    parser.add_argument("--resume", action="store_true", help=f"Go on with an interrupted {what}.")
    parser.add_argument(
        "--overwrite", action="store_true", help=f"Replace the {what} at the output."
    )


def _add_trust(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--trust", action="store_true",
        help="Trust the folder: import the classes that its config.yaml names, which runs their "
        "code.",
    )  # fmt: skip


def _choices(kind: str) -> str:
    return f"{', '.join(names(kind))}, or the dotted path of a class"
