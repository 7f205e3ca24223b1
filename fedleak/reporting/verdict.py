"""What the attacks of a run achieved, in sentences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedleak.runs.folder import Row

NAMES = {
    "analytic": "Analytic", "iga": "IGA", "nra": "NRA", "dlg": "DLG", "idlg": "iDLG", "ppp": "PPP",
    "precode": "PRECODE", "cvb": "CVB",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one model.

    Args:
        attack: its name.
        defense: name of the defence, or ``none``.
        model: the model's name; what follows a ``+`` guards it.
        rows: the rows of results.csv.
    """

    attack: str
    defense: str
    model: str
    rows: list[Row]

    @property
    def scored(self) -> list[Row]:
        """The rows that could be compared with the truth."""
        return [row for row in self.rows if is_scored(row)]

    @property
    def leaked(self) -> int:
        """Number of successes."""
        return sum(row["success"] for row in self.scored)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the success rate."""
        return wilson(self.leaked, len(self.scored))

    @property
    def title(self) -> str:
        """The attack's name as papers write it."""
        return NAMES.get(self.attack, self.attack)

    @property
    def guard(self) -> str:
        """What guards the model: bottleneck, defence, both, or nothing."""
        parts = [NAMES.get(part, part) for part in self.model.split("+")[1:]]
        return " with ".join(parts + [self.defense] * (self.defense not in ("", "none")))

    def __str__(self) -> str:
        return f"{self.title} ({self.leaked} of {len(self.scored)})"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, from 0 to 1 (JASA 22, 1927).

    Args:
        successes: number of successes, 0 to ``n``.
        n: number of trials; for none, nothing is known of the rate.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def is_scored(row: Row) -> bool:
    """Whether a row's success means something: SSIM cannot be had of images below 3 x 3."""
    comparable = is_finite(row["ssim"]) or row.get("f1") is not None
    return row["success"] is not None and (comparable or not is_finite(row["mse"]))


def find_outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """The rows by attack, defence and model, in their order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["defense"], row["model"]), []).append(row)
    return [Outcome(*key, members) for key, members in groups.items()]


def verdict(outcomes: Sequence[Outcome], sample: str = "image") -> list[str]:
    """What the attacks achieved, in sentences: unguarded models first, then each guard.

    That a guard stops an attack is said only where the attack succeeded without it and the 95 %
    intervals of the two success rates do not overlap (that it hinders it, where some of it is
    left); never that a guard is safe.

    Args:
        outcomes: what the attacks did.
        sample: what a sample is.
    """
    sentences = []
    targets: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.scored:
            targets.setdefault((outcome.model, outcome.defense), []).append(outcome)
    plain = {model: found for (model, _), found in targets.items() if not found[0].guard}
    for model, found in plain.items():
        parts = [f"{each.title} reconstructs {each.leaked} of {len(each.scored)}" for each in found]
        parts[0] += f" {sample}s of the plain {model}"
        sentences.append(f"{listing(parts)}.")
    for (model, _), found in targets.items():
        if found[0].guard:
            base = model.split("+")[0]
            sentences.append(_guarded(found, plain.get(base, []), base))
    unscored = [outcome for outcome in outcomes if not outcome.scored]
    if unscored:
        made = listing([f"{len(o.rows)} by {o.title} on {o.model}" for o in unscored])
        sentences.append(
            f"Reconstructions without a score: {made}; what the clients really had is not known "
            "here, so whether they are right is for the eye to judge."
        )
    return sentences


def _guarded(found: Sequence[Outcome], plain: Sequence[Outcome], base: str) -> str:
    guard, bare = found[0].guard, {outcome.attack: outcome for outcome in plain}
    told: dict[str, list[str]] = {"stops": [], "hinders": [], "not": [], "fails": []}
    for outcome in found:
        before, text = bare.get(outcome.attack), str(outcome)
        worse = before is not None and outcome.interval[1] < before.interval[0]
        if not outcome.leaked and before is not None and before.leaked and not worse:
            text = f"{text[:-1]}, too few to tell from chance)"
        manner = (
            ("hinders" if worse else "not") if outcome.leaked else "stops" if worse else "fails"
        )
        told[manner].append(text)
    guarded = guard if plain else f"{guard} on {base}"
    parts = [f"{verb} {listing(told[verb])}" for verb in ("stops", "hinders") if told[verb]]
    if parts:
        but = f" but not {listing(told['not'], 'or')}" if told["not"] else ""
        parts = [f"{guarded} {' and '.join(parts)}{but} in this setting"]
    elif told["not"]:
        parts = [f"{guarded} does not stop {listing(told['not'], 'or')}"]
    if failed := told["fails"]:
        what = "against it" if parts else f"on {base} with {guard} in this setting"
        parts.append(f"{listing(failed)} {'fail' if failed[1:] else 'fails'} {what}")
    return f"{'; '.join(parts)}."


def listing(items: Sequence[str], last: str = "and") -> str:
    """Such as ``a, b and c``."""
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def is_finite(value: float | None) -> bool:
    """Whether a cell holds a number that can be averaged."""
    return value is not None and math.isfinite(value)
