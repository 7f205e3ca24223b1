"""What an audit concludes: a row for each question, beside a guess without the update."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import bootstrap, sem, t

from fedleak.errors import BadInput, require, unknown_name

# Threat models of Carletti et al., SoK: Gradient Inversion Attacks in Federated Learning, USENIX
# Security 2025, by what the attacker knows and does.
THREAT_MODELS = {
    "A": "sees updates",
    "B": "sees updates; knows the model",
    "C": "sees updates; knows the model and the local training",
    "D": "sees updates; knows the model, the local training and data like the clients'",
    "E": "as D; knows the distribution of the clients' data",
    "F": "as C; changes what it sends",
    "G": "as D; changes what it sends",
    "H": "as G; chooses the clients",
}
RUNGS = {
    0: "sees only the sum over clients",
    1: "reads what messages say",
    2: "infers properties of the data",
    3: "reconstructs inputs",
    4: "chooses hyperparameters",
    5: "chooses parameters",
}
QUESTIONS = ("number of samples", "shares of labels", "set of tokens", "inputs")
Status = Literal["leaks", "not shown", "not tried"]
Overall = Literal["leaks", "not proven", "nothing found"]
# Bootstrap of means.
RESAMPLES = 2000
FEWEST_RESAMPLED = 5
LEVEL = 0.95
# An answer that goes this share of the way from the guess to the exact one is exact.
EXACT = 0.99
EXIT_ABOVE = 3
# Notes of answers for which the time did not suffice.
OF_TIME = re.compile(r"\bbudget\b|\btime (?:was left|that)\b|share of the time")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Args:
        mean: the mean; NaN if there is nothing to take it of.
        low: lower end of the interval.
        high: upper end.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> "Estimate":
        """The mean of values, with the interval of a bootstrap (bias-corrected, accelerated).

        Of fewer than five values a bootstrap's interval is too narrow; theirs is Student's.

        Args:
            values: finite numbers, one for each victim. Of a single one, or of equal ones, the
                interval is not known: it is NaN for one value, and the value for equal ones.
            seed: seed of the resampling.
        """
        found = np.asarray(values, dtype=float)
        if len(found) == 0:
            return cls(math.nan, math.nan, math.nan, 0)
        mean = float(found.mean())
        if len(found) == 1:
            return cls(mean, math.nan, math.nan, 1)
        if float(np.ptp(found)) == 0.0:
            return cls(mean, mean, mean, len(found))
        if len(found) < FEWEST_RESAMPLED:
            low, high = t.interval(LEVEL, len(found) - 1, mean, sem(found))
            return cls(mean, float(low), float(high), len(found))
        interval = bootstrap(
            (found,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        return cls(mean, float(interval.low), float(interval.high), len(found))

    def within(self, perfect: float, worst: float = math.nan) -> "Estimate":
        """The estimate with no end of its interval beyond the values that there are.

        Args:
            perfect: the measure's best value.
            worst: its worst one; NaN if there is none.
        """
        if self.mean > perfect:  # the measure is an error
            low, high = perfect, math.inf if math.isnan(worst) else worst
        else:
            low, high = -math.inf if math.isnan(worst) else worst, perfect
        return replace(
            self,
            low=max(self.low, min(low, self.mean)),
            high=min(self.high, max(high, self.mean)),
        )

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        if math.isnan(self.low):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question of an audit, with its answer beside a guess without the update.

    Args:
        rung: what the server does, a key of ``RUNGS``.
        question: what is asked, such as ``inputs``: short, the same in every audit.
        measure: what the numbers are, with their unit or range, such as ``SSIM, 0 to 1``.
        answer: what the attacker reaches, over victims.
        guess: the same measure of a guess without the update, of the same victims.
        gains: of each victim, by how much the answer is better than the guess, in the measure;
            above 0 is better, whichever way the measure goes.
        perfect: the measure's value where the answer is exact.
        threat_model: a key of ``THREAT_MODELS``.
        attack: how the answer was found.
        setting: round, batch, steps, optimiser, modes, labels known or not.
        tried: False if the question was not tried.
        conclusive: False if nothing follows from what was not found, as where the update does not
            support the reconstructions.
        note: what else must be said, such as why it was not tried.
        worst: the measure's value where nothing is right; NaN if there is no worst one.

    Raises:
        BadInput: if ``rung`` or ``threat_model`` is none of those.
    """

    rung: int
    question: str
    measure: str
    answer: Estimate
    guess: Estimate
    gains: tuple[float, ...]
    perfect: float
    threat_model: str
    attack: str
    setting: str
    tried: bool = True
    conclusive: bool = True
    note: str = ""
    worst: float = math.nan

    def __post_init__(self) -> None:
        require(
            self.rung in RUNGS,
            f"Expected `rung` to be one of {', '.join(map(str, RUNGS))}, got {self.rung}.",
        )
        if self.threat_model not in THREAT_MODELS:
            raise unknown_name("threat model", self.threat_model, list(THREAT_MODELS))
        # Student's interval knows no limits.
        object.__setattr__(self, "answer", self.answer.within(self.perfect, self.worst))
        object.__setattr__(self, "guess", self.guess.within(self.perfect, self.worst))

    @property
    def title(self) -> str:
        """The question, and of whom it is asked where that is not a server that sees updates."""
        of = {0: "from the sum over clients alone", 4: "by chosen hyperparameters",
              5: "by chosen parameters"}  # fmt: skip
        return f"{self.question} {of[self.rung]}" if self.rung in of else self.question

    @property
    def status(self) -> Status:
        """``leaks`` if the answers beat the guess: the interval of the gains lies above 0.

        Few answers have a wide interval or none: they leak as well if they are exact together and
        none of them is worse than its guess.
        """
        if not self.tried or not self.gains:
            return "not tried"
        exact = self._way >= EXACT and min(self.gains) >= 0
        return "leaks" if exact or Estimate.of(self.gains).low > 0 else "not shown"

    @property
    def _way(self) -> float:
        """Share of the way from the guess to the exact answer; at most 0 where there is none."""
        way = abs(self.perfect - self.guess.mean)
        return float(np.mean(self.gains)) / way if way > 0 else 0.0

    @property
    def share(self) -> float:
        """Share of the way from the guess to the exact answer, at most 1; NaN if not tried."""
        return math.nan if self.status == "not tried" else min(1.0, self._way)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        if self.status == "not tried":
            return f"{self.title}: not tried{': ' if self.note else ''}{self.note}."
        several = self.question.split()[0].endswith("s")  # shares, inputs
        verb = {
            "leaks": "leak" if several else "leaks",
            "not shown": f"{'were' if several else 'was'} not shown to leak",
        }[self.status]
        if self.rung == 1 and self.status == "not shown" and self.answer.mean == self.perfect:
            verb = "is told in clear, and a guess is as good"
        text = (
            f"{self.title} {verb}; {self.measure}: {self.answer}, a guess without the update: "
            f"{self.guess}, n = {self.answer.n}"
        )
        if self.status == "not shown" and self.answer.n == 1 and self.gains[0] > 0:
            text += "; of one value there is no interval, so that only an exact answer counts"
        return f"{text}; {self.note}." if self.note else f"{text}."


@dataclass(frozen=True)
class Verdict:
    """All answers of an audit.

    Args:
        answers: in the order of the rungs.
        canary: whether the client whose data the audit owns was reconstructed. None if there was
            none.
        canary_note: how well, or why there was none.
        privacy: rows of the epsilons that the clients have spent, declared and effective, see
            :meth:`fedleak.runs.spending.Spending.facts`; empty where no mechanism was seen.
    """

    answers: tuple[Answer, ...]
    canary: bool | None
    canary_note: str = ""
    privacy: tuple[dict[str, Any], ...] = ()

    @property
    def overall(self) -> Overall:
        """``leaks`` if an answer above metadata does.

        ``nothing found`` needs a canary that was reconstructed, and every question of a server that
        sees the updates (rungs 2 and 3) tried with a result from which something follows. What the
        sum over clients tells, the updates tell, so that rung 0 need not be tried; rungs 4 and 5
        are no listening server's, and the sentence names them.
        """
        above = [answer for answer in self.answers if answer.rung != 1]
        if any(answer.status == "leaks" for answer in above):
            return "leaks"
        asked = [answer for answer in above if answer.rung in (2, 3)]
        tried = all(answer.status != "not tried" and answer.conclusive for answer in asked)
        return "nothing found" if self.canary and tried else "not proven"

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        leaking = [a.title for a in self.answers if a.status == "leaks" and a.rung != 1]
        if leaking:
            return f"Leaks: {', '.join(dict.fromkeys(leaking))}."
        if self.overall == "nothing found":
            active = any(a.rung > 3 and a.status == "not tried" for a in self.answers)
            more = " A server that changes what it sends was not tried." if active else ""
            return f"Nothing found by these attackers in this setting; another attacker may.{more}"
        why = self.canary_note or "no client of known data was reconstructed"
        if self.canary:
            why = "a question was not tried, or its results are not supported by the updates"
        return f"Not proven: {why}, so that nothing follows from what was not found."

    @property
    def advice(self) -> str:
        """What to do about questions for which the time did not suffice; empty if it did."""
        short = [
            answer.title
            for answer in self.answers
            if (answer.status == "not tried" or not answer.conclusive)
            and OF_TIME.search(answer.note)
        ]
        if not short:
            return ""
        return (
            f"The time did not suffice for: {', '.join(short)}. The same command with `--resume` "
            "and a larger `--budget` asks again."
        )

    @property
    def privacy_sentences(self) -> list[str]:
        """The declared and the effective epsilons, and what was read in spite of them."""
        found = []
        for row in self.privacy:
            declared = row["declared_epsilon"]
            said = "none" if declared is None else f"{declared:.4g}"
            worth = (
                f"{row['epsilon']:.4g} at delta {row['delta']:g}"
                if row["epsilon"] is not None
                else f"infinite, as {row['reason']}"
            )
            rounds = row["rounds"]
            found.append(
                f"{', '.join(row['mechanisms'])}: declared epsilon {said}, effective epsilon "
                f"{worth} ({row['unit']}, {row['adjacency']}, {row['trust']}; {rounds} "
                f"round{'s' * (rounds != 1)})."
            )
        leaking = [a for a in self.answers if a.status == "leaks" and a.rung != 1]
        return found + [
            f"Read through it: {answer.title}; {answer.measure}: {answer.answer}, a guess without "
            f"the update: {answer.guess}."
            for answer in (leaking if found else ())
        ]

    def above(self, limits: Mapping[str, float]) -> list[Answer]:
        """The answers whose share exceeds a limit.

        Args:
            limits: question -> largest share, 0 to 1; ``*`` stands for all others but those that
                messages answer in clear (rung 1). See :func:`read_limits`.
        """

        def limit(answer: Answer) -> float:
            others = math.inf if answer.rung == 1 else limits.get("*", math.inf)
            return limits.get(answer.question, others)

        return [answer for answer in self.answers if answer.share > limit(answer)]

    def exit_code(self, limits: Mapping[str, float]) -> int:
        """0, or 3 if an answer exceeds a limit or, where there are limits, nothing is proven.

        Nothing is proven where the audit's own client was not reconstructed, and of a question that
        a limit names where it was not tried or its results are not supported by the updates.

        Args:
            limits: see :meth:`above`.
        """
        if not limits:
            return 0
        untried = any(
            (answer.status == "not tried" or not answer.conclusive)
            and answer.rung in (2, 3)
            and answer.question in limits
            for answer in self.answers
        )
        failed = (
            bool(self.above(limits)) or self.overall == "not proven" or untried or not self.canary
        )
        return EXIT_ABOVE if failed else 0

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain values, for ``summary.json``; NaN is None."""
        rows = []
        for answer in self.answers:
            values = asdict(answer) | {"status": answer.status, "share": answer.share}
            rows.append(values | {"sentence": answer.sentence, "gains": list(answer.gains)})
        plain: dict[str, Any] = _without_nan({
            "overall": self.overall, "sentence": self.sentence, "advice": self.advice,
            "canary": self.canary,
            "canary_note": self.canary_note, "answers": rows, "privacy": list(self.privacy),
        })  # fmt: skip
        return plain


def read_limits(texts: Sequence[str]) -> dict[str, float]:
    """Limits from a command line.

    Args:
        texts: ``0.1``, for all questions, or ``QUESTION=0.1``.

    Raises:
        BadInput: if one is neither, a question is none of an audit's, or a limit not from 0 to 1.
    """
    found: dict[str, float] = {}
    for text in texts:
        question, _, number = text.rpartition("=")
        try:
            found[question.strip() or "*"] = float(number)
        except ValueError:
            raise BadInput(
                f"Expected a share such as 0.1, or QUESTION=0.1, as `--fail-above`, got {text}."
            ) from None
    check_limits(found)
    return found


def check_limits(limits: Mapping[str, float]) -> None:
    """Check limits for the answers of an audit.

    Args:
        limits: see :meth:`Verdict.above`.

    Raises:
        BadInput: if a question is none of an audit's, or a limit is not from 0 to 1.
    """
    for question, limit in limits.items():
        if question not in ("*", *QUESTIONS):
            raise unknown_name("question", question, QUESTIONS)
        require(0 <= limit <= 1, f"Expected a limit from 0 to 1 for `{question}`, got {limit:g}.")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
