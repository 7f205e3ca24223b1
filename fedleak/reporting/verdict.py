"""The results of a run's attacks in sentences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedleak.runs.folder import Row
from fedleak.runs.results import is_unsupported
from fedleak.runs.scoring import CERTIFIED, EXPLAINED

ATTACK_TITLES = {"analytic": "Analytic", "iga": "IGA", "nra": "NRA", "dlg": "DLG", "idlg": "iDLG"}
"""Name of an attack -> how papers write it."""


@dataclass(frozen=True)
class Outcome:
    """The results of one attack on one model under one defence.

    Args:
        attack: the attack's name.
        defense: name of the defence, or ``none``.
        model: the model's name; what follows a ``+`` is its bottleneck.
        rows: the rows of results.csv.
    """

    attack: str
    defense: str
    model: str
    rows: list[Row]

    @property
    def scored(self) -> list[Row]:
        """The rows that could be compared with the ground truth."""
        return [row for row in self.rows if is_scored(row)]

    @property
    def is_reading(self) -> bool:
        """Whether the rows are what a malicious server has read: then n are the samples found."""
        return any(row.get(CERTIFIED) is not None for row in self.rows)

    @property
    def leaked(self) -> int:
        """Number of successes."""
        return sum(row["success"] for row in self.scored)

    @property
    def unsupported(self) -> int:
        """Number of reconstructions that the update does not support, all of them failures."""
        return sum(map(is_unsupported, self.scored))

    @property
    def did_not_work(self) -> bool:
        """Whether most of its failures are of that kind: then nothing follows from them."""
        return 2 * self.unsupported > len(self.scored) - self.leaked

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the success rate."""
        return wilson(self.leaked, len(self.scored))

    @property
    def title(self) -> str:
        """The attack's name as papers write it."""
        return ATTACK_TITLES.get(self.attack, self.attack)

    @property
    def defended_by(self) -> str:
        """What defends the model: bottleneck, defence or both; empty for an undefended model."""
        parts = [part.upper() for part in self.model.split("+")[1:]]
        return " with ".join(parts + [self.defense] * (self.defense not in ("", "none")))

    def __str__(self) -> str:
        return f"{self.title} ({self.leaked} of {len(self.scored)})"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a rate, from 0 to 1 (JASA 22, 1927).

    Args:
        successes: number of successes, 0 to ``n``.
        n: number of trials. If 0, the interval is the whole range.

    Returns:
        Lower and upper limit, 0 to 1.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def is_scored(row: Row) -> bool:
    """Whether a row was scored: SSIM is undefined for images smaller than 3 x 3."""
    comparable = is_finite(row["ssim"]) or any(row.get(n) is not None for n in ("f1", "right"))
    return row["success"] is not None and (comparable or not is_finite(row["mse"]))


def find_outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Group rows by attack, defence and model, in order of appearance."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["defense"], row["model"]), []).append(row)
    return [Outcome(*key, members) for key, members in groups.items()]


def verdict(outcomes: Sequence[Outcome], sample: str = "image") -> list[str]:
    """The results in sentences: undefended models first, then each defence.

    A defence is said to stop an attack only if the attack succeeded on the undefended model and
    the 95 % intervals of the two success rates do not overlap; to hinder it, if some samples were
    still reconstructed. No sentence calls a defence safe: a failed attack is no evidence of safety.
    Where reconstructions are not supported by the updates, the attack did not work, and nothing is
    said about the defence. What a malicious server has read is said elsewhere: it is not known
    beforehand which samples it reads.

    Args:
        outcomes: the results by attack, defence and model.
        sample: what a sample is called, such as ``image``.
    """
    sentences = []
    outcomes = [outcome for outcome in outcomes if not outcome.is_reading]
    targets: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.scored:
            targets.setdefault((outcome.model, outcome.defense), []).append(outcome)
    undefended = {model: found for (model, _), found in targets.items() if not found[0].defended_by}
    for model, found in undefended.items():
        parts = [f"{each.title} reconstructs {each.leaked} of {len(each.scored)}" for each in found]
        broken = [each for each in found if each.did_not_work]
        parts[0] += f" {sample}s of the undefended {model}"
        sentences.append(f"{listing(parts)}.")
        sentences += [_did_not_work(broken, f"the undefended {model}")] if broken else []
    for (model, _), found in targets.items():
        if found[0].defended_by:
            base = model.split("+")[0]
            sentences.append(_defence_sentence(found, undefended.get(base, []), base))
    unscored = [outcome for outcome in outcomes if not outcome.scored]
    if unscored:
        made = listing([f"{len(o.rows)} by {o.title} on {o.model}" for o in unscored])
        sentences.append(
            f"Reconstructions without a score: {made}; the ground truth is not available, so they "
            f"can only be inspected.{_explained(unscored)}"
        )
    return sentences


def _explained(unscored: Sequence[Outcome]) -> str:
    """How much of their updates reconstructions without a score explain."""
    rows = [row for outcome in unscored for row in outcome.rows]
    shares = [row[EXPLAINED] for row in rows if row.get(EXPLAINED) is not None]
    if not shares:
        return ""
    mean = f"{sum(shares) / len(shares):.0%}".replace("%", " %")
    return f" They explain {mean} of the updates on average."


def _defence_sentence(found: Sequence[Outcome], undefended: Sequence[Outcome], base: str) -> str:
    """How one defence changes the attacks' success, compared with the undefended model."""
    defence, before = found[0].defended_by, {outcome.attack: outcome for outcome in undefended}
    groups: dict[str, list[str]] = {"stops": [], "hinders": [], "does not stop": [], "fails": []}
    broken = [outcome for outcome in found if outcome.did_not_work]
    for outcome in found:
        if outcome in broken and not outcome.leaked:
            continue
        baseline, text = before.get(outcome.attack), str(outcome)
        lower = baseline is not None and outcome.interval[1] < baseline.interval[0]
        lower = lower and outcome not in broken
        if not outcome.leaked and baseline is not None and baseline.leaked and not lower:
            text = f"{text[:-1]}, too few to tell from chance)"
        if outcome.leaked:
            groups["hinders" if lower else "does not stop"].append(text)
        else:
            groups["stops" if lower else "fails"].append(text)
    subject = defence if undefended else f"{defence} on {base}"
    parts = [f"{verb} {listing(groups[verb])}" for verb in ("stops", "hinders") if groups[verb]]
    succeeding = listing(groups["does not stop"], "or")
    if parts:
        but = f" but not {succeeding}" if succeeding else ""
        parts = [f"{subject} {' and '.join(parts)}{but} in this setting"]
    elif succeeding:
        parts = [f"{subject} does not stop {succeeding}"]
    if failed := groups["fails"]:
        what = "against it" if parts else f"on {base} with {defence} in this setting"
        parts.append(f"{listing(failed)} {'fail' if failed[1:] else 'fails'} {what}")
    sentences = [f"{'; '.join(parts)}."] if parts else []
    sentences += [_did_not_work(broken, f"{base} with {defence}")] if broken else []
    return " ".join(sentences)


def _did_not_work(broken: Sequence[Outcome], where: str) -> str:
    """What is said where reconstructions are not supported by the updates."""
    whose = listing([f"{each.title} ({each.unsupported} of {len(each.scored)})" for each in broken])
    return (
        f"On {where}, the reconstructions by {whose} are not supported by the updates: there the "
        "attack did not work, and nothing follows."
    )


def listing(items: Sequence[str], last: str = "and") -> str:
    """Join words as in ``a, b and c``."""
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def is_finite(value: float | None) -> bool:
    """Whether a cell holds a finite number."""
    return value is not None and math.isfinite(value)
