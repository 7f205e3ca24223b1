"""The command ``fedleak budget``."""

import inspect
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from fedleak.errors import require, unknown_name
from fedleak.privacy.ledger import Spent, findings, spent_by
from fedleak.privacy.mechanisms import DELTA, MECHANISMS, Mechanism

MOST_ROUNDS = 10**15


def print_budget(chosen: Namespace, console: Console) -> None:
    """Compute what a mechanism's rounds spend, and print it.

    Args:
        chosen: the arguments.
        console: where to print.

    Raises:
        BadInput: if the mechanism is unknown or a setting is missing, of no use or out of its
            range.
        MissingExtra: if dp-accounting is not installed.
    """
    settings = {name: value for name, value in chosen.as_dict().items() if value is not None}
    name, rounds = settings.pop("mechanism"), settings.pop("rounds")
    require(rounds >= 1, f"Expected `--rounds` of at least 1, got {rounds}.")
    require(rounds <= MOST_ROUNDS, f"Expected `--rounds` of at most 10^15, got {rounds:.3g}.")
    delta = settings.get("delta", DELTA)
    mechanism = _mechanism(name, settings)
    rows = [spent_by(mechanism, number, delta) for number in sorted({1, rounds})]
    sentences = findings(mechanism, rounds, delta)
    console.print(_table(mechanism, rows), highlight=False)
    for sentence in sentences:
        console.print(
            f"- {sentence}", highlight=False, markup=False, soft_wrap=not console.is_terminal
        )


def _mechanism(name: str, settings: dict[str, Any]) -> Mechanism:
    """The mechanism of its name and of the options that were given."""
    if name not in MECHANISMS:
        raise unknown_name("mechanism", name, MECHANISMS)
    parameters = inspect.signature(MECHANISMS[name]).parameters
    # `delta` is always that of the ledger; some mechanisms declare it too.
    given = {k: value for k, value in settings.items() if k != "delta" or k in parameters}
    for setting in given:
        if setting not in parameters:
            raise unknown_name(
                f"setting of {name}", _option(setting), [_option(known) for known in parameters]
            )
    for parameter in parameters.values():
        needed = parameter.default is inspect.Parameter.empty
        require(
            not needed or parameter.name in given,
            f"Expected `--{_option(parameter.name)}` for {name}, got nothing.",
        )
    found: Mechanism = MECHANISMS[name](**given)
    return found


def _option(setting: str) -> str:
    return setting.replace("_", "-")


def _table(mechanism: Mechanism, rows: list[Spent]) -> Table:
    clip = "no clipping" if mechanism.clip is None else f"norm clipped to {mechanism.clip:g}"
    table = Table(
        title=f"Epsilon of {mechanism.name}: {clip}, {mechanism.kind} noise of standard deviation "
        f"{mechanism.standard_deviation:.3g}",
        title_justify="left",
    )
    # Declared deltas add up as declared epsilons do; the effective epsilon is at one delta.
    for column in ("rounds", "declared\nepsilon, delta", "effective\nepsilon, delta"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("protects", "trust", "accountant"):
        table.add_column(column, overflow="fold")
    for row in rows:
        declared = "none"
        if row.declared_epsilon is not None:
            declared = f"{row.declared_epsilon:g}, {row.declared_delta:g}"
        table.add_row(
            str(row.rounds), declared, f"{row.epsilon:.4g}, {row.delta:g}",
            f"{row.unit}, {row.adjacency}", row.trust, row.accountant,
        )  # fmt: skip
    return table
