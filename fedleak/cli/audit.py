"""The command ``fedleak audit``."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from fedleak.audit.app import read_app
from fedleak.audit.folder import AuditFolder
from fedleak.audit.public_samples import read_public
from fedleak.audit.run import Audit, audit, read_span
from fedleak.audit.verdict import THREAT_MODELS, read_limits
from fedleak.errors import AboveLimit, require
from fedleak.reporting import AuditDisplay, AuditOutput


def run_audit(chosen: Namespace, console: Console) -> None:
    """Audit an app and print what was found.

    Args:
        chosen: the arguments.
        console: where to print.

    Raises:
        BadInput: if an argument or the app is wrong.
        RunFailed: if the app failed.
        AboveLimit: if an answer exceeds a limit of ``--fail-above``.
    """
    limits = read_limits(chosen.fail_above)
    budget = read_span(chosen.budget)
    require(
        bool(chosen.output.strip()),
        "Expected a folder as `--output`, got an empty text: write `.` for this one.",
    )
    public = None if chosen.public is None else read_public(Path(chosen.public))
    app = read_app(Path(chosen.app), [] if chosen.run_config is None else [chosen.run_config])
    output = Path(chosen.output)
    with AuditDisplay(console) as display:
        found = audit(
            app, output, clients=chosen.clients, rounds=chosen.rounds, budget=budget,
            public=public, seed=chosen.seed, cpus_per_client=chosen.cpus_per_client,
            gpus_per_client=chosen.gpus_per_client, ray_address=chosen.ray_address,
            processes=chosen.processes, malicious=chosen.malicious,
            observers=[display, AuditOutput(output)],
            resume=chosen.resume, overwrite=chosen.overwrite,
        )  # fmt: skip
    print_audit(found, console)
    console.print(where_to_look(AuditFolder(output)), highlight=False, markup=False, soft_wrap=True)
    above = found.verdict.above(limits)
    if above:
        names = ", ".join(f"{answer.title} {answer.share:.2f}" for answer in above)
        raise AboveLimit(f"Above the limits of `--fail-above`: {names}.")
    if found.verdict.exit_code(limits):
        raise AboveLimit(f"Not below the limits of `--fail-above`: {found.verdict.sentence}")


def where_to_look(files: AuditFolder) -> str:
    """The files of an audit that ended, those that there are.

    Args:
        files: the audit's folder.
    """
    # There is none where no sample was attacked.
    results = f"  results      {files.results}\n" if files.results.is_file() else ""
    return (
        f"Look at\n  page         {files.report}\n{results}"
        f"  summary      {files.summary}\n  TensorBoard  tensorboard --logdir {files.path.parent}"
    )


def print_audit(found: Audit, console: Console) -> None:
    """Print an audit's table, its sentences and its verdict.

    Args:
        found: what was found.
        console: where to print.
    """
    table = Table(title="What the server could learn", title_justify="left")
    for name, justify in (
        ("question", "left"), ("answer", "left"), ("guess", "left"), ("n", "right"),
        ("result", "left"), ("threat", "center"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for answer in found.verdict.answers:
        table.add_row(
            answer.title, str(answer.answer), str(answer.guess), str(answer.answer.n),
            answer.status, answer.threat_model,
        )  # fmt: skip
    console.print(table, highlight=False)
    plain: dict[str, Any] = {
        # A log has a line for each sentence.
        "highlight": False, "markup": False, "soft_wrap": not console.is_terminal,
    }  # fmt: skip
    for answer in found.verdict.answers:
        console.print(f"- {answer.sentence}", **plain)
    for sentence in found.verdict.privacy_sentences:
        console.print(f"- {sentence}", **plain)
    used = dict.fromkeys(answer.threat_model for answer in found.verdict.answers)
    models = "; ".join(f"{letter}: {THREAT_MODELS[letter]}" for letter in used)
    console.print(f"Threat models: {models}.", **plain)
    for note in found.notes:
        console.print(f"Note: {note}", style="yellow", **plain)
    if found.verdict.canary_note:
        console.print(f"Canary: {found.verdict.canary_note}.", **plain)
    console.print(found.verdict.sentence, style="bold", **plain)
    if found.verdict.advice:
        console.print(found.verdict.advice, **plain)
