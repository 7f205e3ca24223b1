"""No attack is silently wrong with any client's update.

Each cell of the product of tests/federations.py is a client of another federation, all facts of
which are told right. For each, an attack refuses in a sentence, or what it returns is right, or it
says that it need not be. By default a part of the cells is attacked in which any two values of two
factors occur together, with few iterations; all of them are marked slow.

Wrong means, for images, rows and series alike: further from the client's samples than half of the
distance of the mean of all samples of that kind, samples assigned in the best order. Tokens are
wrong if a token of the batch is.
"""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fedleak.attacks import Reconstruction
from fedleak.errors import BadInput
from fedleak.updates.evidence import check
from tests.federations import Cell, Victim, covering_cells, make_attack, make_victim, whole_product

WRONG_FROM = 0.5
"""Error, as a share of that of the mean, from which a reconstruction is wrong."""
RIGHT_TO = 0.05
"""Error up to which a reconstruction that is said not to be supported is a false alarm."""

# What says that a reconstruction need not be right. Other findings tell how it was made.
DOUBTS = (
    "not supported by the update", "not settled by the update", "not checked against the update",
)  # fmt: skip
NO_ORDER = "the order of a sample's numbers is not determined: it changes nothing"


class Outcome(NamedTuple):
    """What came of attacking a cell.

    Args:
        error: see the module; NaN of a refusal.
        explained: share of the update that is explained.
        doubts: the findings that say that it need not be right.
        findings: all findings.
        refusal: the sentence, if the attack was refused.
    """

    error: float
    explained: float
    doubts: tuple[str, ...]
    findings: tuple[str, ...]
    refusal: str = ""


def error_of(victim: Victim, found: Reconstruction) -> float:
    """See the module."""
    truth = victim.inputs
    if found.rows and bool((found.inputs < 0).any()):
        (rows,) = found.rows.values()
        return float(rows.tolist() != truth.unique().tolist())
    if not truth.is_floating_point():
        if NO_ORDER in found.findings:
            truth = truth.sort(dim=1).values
        return min(float((part != truth).double().mean()) for part in orders(found.inputs))
    whole = (victim.guess - truth).norm()
    return min(float((part - truth).norm() / whole) for part in orders(found.inputs))


def orders(inputs: Tensor) -> list[Tensor]:
    """The samples in every order."""
    return [inputs[list(order)] for order in itertools.permutations(range(len(inputs)))]


def outcome_of(cell: Cell, seed: int = 0) -> Outcome:
    """Attack a cell."""
    victim = make_victim(cell, seed)
    try:
        (found,) = make_attack(cell.attack)([victim.update], victim.knowledge, seed=seed)
    except BadInput as refusal:
        return Outcome(float("nan"), float("nan"), (), (), str(refusal))
    doubts = tuple(text for text in found.findings if text.startswith(DOUBTS))
    assert found.supported == (not any(text.startswith(DOUBTS[0]) for text in doubts))
    return Outcome(error_of(victim, found), found.explained, doubts, found.findings)
