"""The command line: parse the arguments, run the command, print the result.

Slow imports are made by the command that needs them, so that help, a list and a misspelt option
need neither torch nor Lightning nor Flower.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import Namespace
from rich.console import Console

from fedleak.cli.arguments import parse
from fedleak.errors import AboveLimit, BadInput, RunFailed, require
from fedleak.extras import extras_explained
from fedleak.registry import (
    KINDS,
    Plugin,
    class_path,
    is_known,
    known_classes_only,
    short_name,
)
from fedleak.runtime.interrupts import STOP_SECONDS, Interrupt
from fedleak.runtime.memory_pages import use_large_pages

if TYPE_CHECKING:
    from fedleak.config import RunConfig


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script ``fedleak``.

    The exit code is 0, 1 if a run failed, 2 for bad input, 3 if an audit exceeds its limits, or
    130 if interrupted.

    Args:
        argv: the arguments. If None, those of the process.
    """
    use_large_pages()
    console, errors = Console(), Console(stderr=True, soft_wrap=True)

    def print_error(text: str) -> None:
        # A message may repeat what a file holds, and a terminal obeys control characters.
        line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
        errors.print(f"fedleak: {line}", style="red", markup=False, highlight=False)

    interrupt = Interrupt()
    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with extras_explained(), _import_path(arguments):
            _command(parse(arguments), console)
        code = 0
    except BadInput as error:
        print_error(str(error))
        code = 2
    except AboveLimit as error:
        print_error(str(error))
        code = 3
    except RunFailed as error:
        print_error(f"{error} The results so far are kept: continue with `--resume`.")
        code = 1
    except KeyboardInterrupt:
        print_error("interrupted.")
        code = 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if argv is None:
        _exit_despite_threads(code)
    sys.exit(code)


@contextmanager
def _import_path(arguments: Sequence[str]) -> Iterator[None]:
    """Within the block, the working folder is on the import path, for the user's own plugins.

    Commands that read a folder, which may be untrusted, take the working folder off the path: its
    modules would shadow installed ones.
    """
    before, here = list(sys.path), Path.cwd()
    untrusted = arguments[:1] in (["attack"], ["report"]) and "--trust" not in arguments
    sys.path[:] = [path for path in before if not untrusted or not _is_untrusted(path, here)]
    if not untrusted:
        sys.path.insert(0, str(here))
    try:
        yield
    finally:
        sys.path[:] = before


def _is_untrusted(path: str, here: Path) -> bool:
    """Whether an entry of the import path is the working folder, but not that of fedleak itself."""
    package = Path(__file__).parents[1]
    return Path(path).resolve() == here.resolve() != package.parent.resolve()


def _command(settings: Namespace, console: Console) -> None:
    command, chosen = settings.subcommand, settings[settings.subcommand]
    if command == "list":
        from fedleak.reporting import plugin_table

        for kind in KINDS if chosen.kind == "all" else (chosen.kind,):
            console.print(plugin_table(kind))
        return
    if command == "budget":
        from fedleak.cli.budget import print_budget

        print_budget(chosen, console)
        return
    from fedleak.runs.folder import RunFolder

    if command == "report":
        from fedleak.audit.config import is_audit
        from fedleak.reporting import write_audit_report, write_report

        if is_audit(Path(chosen.run)):
            path = write_audit_report(Path(chosen.run))
        else:
            path = write_report(RunFolder(Path(chosen.run)), trust=chosen.trust)
        console.print(f"Look at {path}", highlight=False, soft_wrap=True)
        return
    if command == "sweep":
        _sweep(chosen, console)
        return
    if command == "import":
        _import(chosen, console)
        return
    if command == "audit":
        from fedleak.cli.audit import run_audit

        run_audit(chosen, console)
        return
    from fedleak import experiment
    from fedleak.preflight import prepare
    from fedleak.reporting import (
        Display,
        Figures,
        TensorBoard,
        paths_line,
        readings_text,
        results_table,
        rounds_table,
    )
    from fedleak.runs.ceilings import ceiling_notes
    from fedleak.runs.results import read_rows
    from fedleak.runs.scoring import scoring_class
    from fedleak.runs.summary import federation_notes, privacy_notes

    if command == "run":
        config = _run_config(chosen)
        _check_versions(chosen.versions, console)
        parts = prepare(config)
    else:
        with _stored_classes(chosen):
            config = _attack_config(chosen)
            parts = prepare(config, trains=False)
    flags = {"resume": chosen.resume, "overwrite": chosen.overwrite}
    data = parts.data
    config = config.with_clients(len(data.train_set))
    with Display(console, scoring_class(config).headline) as display:
        observers = [
            display,
            TensorBoard(config, data.mean, data.std),
            Figures(config, data.mean, data.std),
        ]
        if command == "run":
            summary = experiment.run(config, observers, parts=parts, **flags)
        else:
            summary = experiment.attack_run(
                Path(chosen.source), config, observers, parts=parts, trust=chosen.trust, **flags
            )
    if summary["attacks"]:
        console.print(results_table(summary, config))
    elif said := readings_text(summary).strip():  # which stands below the table if there is one
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    by_round = rounds_table(read_rows(RunFolder(Path(config.output)).results), config)
    if by_round is not None:
        console.print(by_round)
    if summary["federation"]["accuracy"] is not None:
        accuracy = summary["federation"]["accuracy"]
        console.print(f"Test accuracy of {config.model_name}: {accuracy:.4f}", highlight=False)
    noted = privacy_notes(summary.get("privacy", []))
    for sentence in [*noted, *ceiling_notes(summary.get("ceilings", []))]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for note in federation_notes(summary["federation"]):
        console.print(f"Note: {note}", style="yellow", highlight=False, soft_wrap=True)
    console.print(paths_line(RunFolder(Path(config.output))))


def _sweep(chosen: Namespace, console: Console) -> None:
    from fedleak.reporting import SweepDisplay, write_picture, write_rounds, write_tables
    from fedleak.sweep import launch_on_ray, load_study, run_sweep

    require(
        chosen.engine == "ray" or chosen.ray_address is None,
        "Expected `--ray-address` together with `--engine ray`, got it with `--engine local`.",
    )

    def write_all(output: Path) -> list[Path | None]:
        if not (output / "cells.csv").is_file():
            return []
        return [*write_tables(output), write_rounds(output), write_picture(output)]

    study, output = load_study(Path(chosen.study)), _folder(chosen.output)
    flags: dict[str, Any] = {"resume": chosen.resume, "overwrite": chosen.overwrite}
    try:
        with ExitStack() as stack:
            if chosen.engine == "ray":
                number = chosen.processes or study.processes
                flags["launch"] = stack.enter_context(launch_on_ray(number, chosen.ray_address))
            display = stack.enter_context(SweepDisplay(console))
            summary = run_sweep(study, output, display, processes=chosen.processes, **flags)
    except BadInput:
        raise  # refused, so that nothing is written
    except BaseException:
        write_all(output)
        raise
    for path in write_all(output):
        if path is not None:
            console.print(f"Look at {path}", highlight=False, soft_wrap=True)
    failed = [cell["name"] for cell in summary["cells"] if cell["status"] == "failed"]
    if failed:
        raise RunFailed(f"{len(failed)} cell(s) failed, the first is {failed[0]}.")


def _folder(text: str) -> Path:
    """The folder of an option; an empty text would be this folder."""
    require(
        bool(text.strip()),
        "Expected a folder as `--output`, got an empty text: write `.` for this one.",
    )
    return Path(text)


def _import(chosen: Namespace, console: Console) -> None:
    from fedleak.import_update import Facts, import_update

    def numbers(name: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
        text: str = chosen[name]
        try:
            return tuple(kind(part) for part in text.strip("[]() ").split(","))
        except ValueError:
            like = "3,32,32" if kind is int else "0.5,0.5,0.5"
            raise BadInput(f"Expected `--{name}` as numbers such as {like}, got {text}.") from None

    values = _as_dict(chosen)
    names = ("classes", "kind", "sent", "learning_rate", "num_samples", "batch_size", "epochs",
             "mode", "settings", "model", "clients", "aggregation")  # fmt: skip
    facts = Facts(
        **{name: values[name] for name in names},
        input_shape=numbers("input_shape", int),
        mean=numbers("mean", float),
        std=numbers("std", float),
    )
    output = _folder(chosen.output)
    findings = import_update(Path(chosen.file), facts, output, overwrite=chosen.overwrite)
    for finding in findings:
        console.print(f"Note: {finding}.", style="yellow", highlight=False, soft_wrap=True)
    trust = "" if is_known(class_path("models", facts.model.replace(":", "."))) else " --trust"
    console.print(
        f"Attack it by `fedleak attack {output} --attack NAME{trust}`.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _run_config(chosen: Namespace) -> "RunConfig":
    from fedleak.config import RunConfig

    values = _as_dict(chosen)
    return RunConfig.from_dict({item.name: values[item.name] for item in fields(RunConfig)})


@contextmanager
def _stored_classes(chosen: Namespace) -> Iterator[None]:
    """Within the block, the classes that a run's folder names are loaded only if trusted."""
    if chosen.trust:
        yield
        return
    # The attack is the user's own choice.
    with known_classes_only(but=[_as_dict(chosen)["attack"]["class_path"]]):
        yield


def _attack_config(chosen: Namespace) -> "RunConfig":
    from fedleak.build import without_download
    from fedleak.config import RunConfig
    from fedleak.experiment import source_folder

    folder = source_folder(Path(chosen.source))
    config = RunConfig.load(folder.config)
    values = _as_dict(chosen)
    attack = Plugin(values["attack"]["class_path"], values["attack"].get("init_args") or {})
    path = folder.path if folder.path.name else folder.path.resolve()
    default = f"{path}-{short_name('attacks', attack.class_path)}"
    output = default if chosen.output is None else chosen.output
    victims = replace(config.victims, when="after")
    metrics = {name: value for name, value in values["metrics"].items() if value is not None}
    return replace(
        config,
        data=config.data if chosen.trust else without_download(config.data),
        weights=None,  # the updates contain the weights that were sent; the file may be gone
        attacks=(attack,),
        output=output,
        seed=config.seed if chosen.seed is None else chosen.seed,
        device=chosen.device or config.device,
        victims=replace(victims, labels=chosen.labels) if chosen.labels else victims,
        metrics=replace(config.metrics, **metrics),
    )


def _check_versions(recorded: dict[str, str] | None, console: Console) -> None:
    """Print a note if a configuration was made with other versions than are installed."""
    from fedleak.config import versions

    installed = versions()
    for name, version in (recorded or {}).items():
        if installed.get(name) != version:
            console.print(
                f"Note: the configuration was made with {name} {version}, installed is "
                f"{installed.get(name, 'none')}; figures may differ.",
                highlight=False,
            )


def _as_dict(settings: Namespace) -> dict[str, Any]:
    plain: dict[str, Any] = settings.as_dict()
    return plain


def _exit_despite_threads(code: int) -> None:
    """Exit the process if threads that the simulation engine left would keep Python waiting.

    After an interrupt, the engine cannot be shut down in order, so the process exits at once.
    """
    deadline = time.monotonic() + STOP_SECONDS / 2
    others = [t for t in threading.enumerate() if t is not threading.current_thread()]
    for thread in [] if code == 130 else [t for t in others if not t.daemon]:
        thread.join(max(0.0, deadline - time.monotonic()))
    if code == 130 or any(t.is_alive() and not t.daemon for t in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
