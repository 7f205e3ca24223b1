"""No attack is silently wrong with any client's update.

Each cell of the product of tests/federations.py is a client of another federation, all facts of
which are told right. For each, an attack refuses in a sentence, or what it returns is right, or it
says that it need not be. By default those cells are attacked in which any two values of two factors
occur together, with few iterations; those in which any three do are marked slow.

Wrong means, for images, rows and series alike: further from the client's samples than half of the
distance of the mean of all samples of that kind, samples assigned in the best order. Tokens are
wrong if one of them is.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fedleak.attacks import Reconstruction
from fedleak.errors import BadInput
from fedleak.registry import names
from fedleak.updates.evidence import check
from tests.federations import (
    ATTACKS,
    FACTORS,
    OF_NUMBERS,
    Cell,
    Victim,
    covering_cells,
    fits,
    make_attack,
    make_victim,
)

WRONG_FROM = 0.5
"""Error, as a share of that of the mean, from which a reconstruction is wrong."""
RIGHT_TO = 0.02
"""Error up to which a reconstruction must not be said to be unsupported."""

# What says that a reconstruction need not be right. Other findings tell how it was made.
UNSUPPORTED = "not supported by the update"
UNSETTLED = "not settled by the update"
DOUBTS = (UNSUPPORTED, UNSETTLED, "not checked against the update")
# What says that the server was told something wrong.
ACCUSES = "times as large as that of the reconstruction"
NO_ORDER = "the order of a sample's numbers is not determined: it changes nothing"


class Outcome(NamedTuple):
    """What came of an attack.

    Args:
        error: see the module; NaN of a refusal.
        found: the reconstruction. None if the attack was refused.
        refusal: the sentence of a refusal.
    """

    error: float
    found: Reconstruction | None = None
    refusal: str = ""

    @property
    def doubts(self) -> list[str]:
        """The findings that say that it need not be right."""
        findings = () if self.found is None else self.found.findings
        return [text for text in findings if text.startswith(DOUBTS)]


def error_of(victim: Victim, found: Reconstruction) -> float:
    """See the module."""
    truth = victim.inputs
    if found.rows and bool((found.inputs < 0).any()):
        (rows,) = found.rows.values()
        return float(rows.tolist() != truth.unique().tolist())
    if not truth.is_floating_point():
        if NO_ORDER in found.findings:
            truth = truth.sort(dim=1).values
        return float(not any(torch.equal(part, truth) for part in orders(found.inputs)))
    whole = (victim.guess - truth).norm()
    if found.inputs.shape != truth.shape:
        return math.nan  # another number of samples was told
    return min(float((part - truth).norm() / whole) for part in orders(found.inputs))


def orders(inputs: Tensor) -> list[Tensor]:
    """The samples in every order."""
    return [inputs[list(order)] for order in itertools.permutations(range(len(inputs)))]


def outcome_of(name: str, victim: Victim) -> Outcome:
    """Attack a victim."""
    try:
        (found,) = make_attack(name)([victim.update], victim.knowledge)
    except BadInput as refusal:
        return Outcome(math.nan, refusal=str(refusal))
    return Outcome(error_of(victim, found), found)


def fault_of(outcome: Outcome, labels: Tensor) -> str | None:
    """What an outcome does wrong where every fact was told right. If None, nothing.

    Args:
        outcome: the outcome.
        labels: the client's labels.
    """
    error, found = outcome.error, outcome.found
    if found is None:
        return fault_of_refusal(outcome.refusal)
    if found.supported == any(text.startswith(UNSUPPORTED) for text in found.findings):
        return f"explains {found.explained:.0%} and says otherwise: {found.findings}"
    # Of what is not finite, the error is not either.
    if not error <= WRONG_FROM and not outcome.doubts:
        return f"wrong, error {error:.2f}, without a doubt: {found}"
    alarms = [t for t in found.findings if t.startswith((UNSUPPORTED, UNSETTLED)) or ACCUSES in t]
    # Of inputs that are right with a label that is not, little is explained.
    known = found.labels.shape == labels.shape and torch.allclose(
        *(own.double().sort(dim=0).values for own in (found.labels, labels)), atol=RIGHT_TO
    )
    if error <= RIGHT_TO and alarms and known:
        return f"right, error {error:.2g}, with an alarm: {alarms}"
    return None


def fault_of_refusal(text: str) -> str | None:
    """What is wrong with the text of a refusal."""
    one = text.startswith("Expected ") and text.endswith(".") and "\n" not in text
    return None if one and "Traceback" not in text else f"no sentence: {text}"


def fault_of_cell(cell: Cell) -> str | None:
    """What an attack, or the examination of the update, does wrong with a cell."""
    victim = make_victim(cell)
    found = check(victim.knowledge.model, victim.update, victim.knowledge)
    # Before a batch norm in train mode, a bias does not move.
    accused = [str(finding) for finding in found if finding.kind != "frozen"]
    return (
        f"accused: {accused}"
        if accused
        else fault_of(outcome_of(cell.attack, victim), victim.labels)
    )


# ------------------------------------------------------------------------------------ the cells


def test_every_attack_is_in_the_table() -> None:
    own = {n for n, point in names("attacks").items() if point.value.startswith("fedleak.")}
    assert own == set(ATTACKS)


@pytest.mark.parametrize("strength", [2, 3])
def test_any_two_or_three_values_occur_together(strength: int) -> None:
    cells = covering_cells(strength)
    for chosen in itertools.combinations(FACTORS, strength):
        seen = {tuple(getattr(cell, name) for name in chosen) for cell in cells}
        wanted = itertools.product(*(FACTORS[name] for name in chosen))
        assert seen == {v for v in wanted if fits(dict(zip(chosen, v, strict=True)))}
    covering_cells.cache_clear()
    assert cells == covering_cells(strength)
    # The most values of so many factors are at least as many as the cells.
    least = math.prod(sorted(map(len, FACTORS.values()))[-strength:])
    assert least <= len(cells) <= 1.6 * least


@pytest.mark.parametrize("cell", covering_cells(), ids=str)
def test_no_attack_is_silently_wrong(cell: Cell) -> None:
    assert fault_of_cell(cell) is None


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_is_silently_wrong_with_any_three_values(attack: str) -> None:
    cells = [cell for cell in covering_cells(3) if cell.attack == attack]
    faults = {str(cell): fault_of_cell(cell) for cell in cells}
    assert {name: fault for name, fault in faults.items() if fault is not None} == {}


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (attack, kind) for attack in ATTACKS for kind in FACTORS["kind"]
        if not fits({"attack": attack, "kind": kind})
    ],
)  # fmt: skip
def test_samples_of_another_kind_are_refused(attack: str, kind: str) -> None:
    victim = make_victim(Cell(attack, "sgd", "weights", "train", "mean", kind, 1, told=True))
    outcome = outcome_of(attack, victim)
    assert outcome.found is None
    assert fault_of_refusal(outcome.refusal) is None


# ------------------------------------------------------------------------------ damaged updates


def with_received(victim: Victim, change: Callable[[str, Tensor, Tensor], Tensor | None]) -> Victim:
    """The same client, of whose tensors each is changed, given name, received and sent."""
    update = victim.update
    made = {n: change(n, value, update.sent[n]) for n, value in update.received.items()}
    received = {name: value for name, value in made.items() if value is not None}
    return replace(victim, update=replace(update, received=received))


def told(victim: Victim, **facts: Any) -> Victim:
    """The same client, of whom something else is told."""
    return replace(victim, knowledge=replace(victim.knowledge, **facts))


# Damage to an update, and whether it must be refused.
DAMAGED: dict[str, tuple[Callable[[Victim], Victim], bool]] = {
    "nothing moved": (lambda v: with_received(v, lambda _n, _value, sent: sent.clone()), True),
    "NaN": (lambda v: with_received(v, lambda _n, value, _s: value + math.nan), True),
    "infinite": (lambda v: with_received(v, lambda _n, value, _s: value + math.inf), True),
    "nothing came": (lambda v: with_received(v, lambda _n, _value, _s: None), True),
    "one bias came": (
        lambda v: with_received(v, lambda n, value, _s: value if n == "head.bias" else None), False,
    ),
    "one number moved": (
        lambda v: with_received(
            v, lambda n, _value, sent: sent + (torch.arange(sent.numel()).reshape(sent.shape) == 0)
            if n == "head.weight" else sent.clone(),
        ), False,
    ),
    "noise alone": (
        lambda v: with_received(
            v, lambda _n, value, _s: value
            + torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
            if value.is_floating_point() else value
        ), False,
    ),
    "one sample told as three": (
        lambda v: told(v, num_samples=3, labels=torch.tensor([0, 1, 2])), False,
    ),
    "no samples told": (
        lambda v: replace(
            told(v, num_samples=0, labels=None), update=replace(v.update, num_examples=0)
        ), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("attack", ATTACKS)
def test_damaged_updates(attack: str, damage: str) -> None:
    """Refused, or attacked with a doubt or a finding about the contradiction."""
    change, refused = DAMAGED[damage]
    kind = "tokens" if attack in OF_NUMBERS else "rows"
    cell = Cell(attack, "sgd", "weights", "eval", "mean", kind, 1, told=True)
    outcome = outcome_of(attack, change(make_victim(cell)))
    if outcome.found is None:
        assert fault_of_refusal(outcome.refusal) is None
        return
    assert not refused
    findings = outcome.found.findings
    assert outcome.doubts or [text for text in findings if "told" in text or "came" in text]
