"""Attacks that note what they are given or refuse it, and a walk over all that can be reached."""

import functools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedleak.attacks import Attack, Problem, Reconstruction
from fedleak.attacks.base import Progress, Report
from fedleak.errors import require
from fedleak.updates.truth import GroundTruth


class Spy(Attack):
    """Reconstructs grey pictures and keeps its problems in a list of the class."""

    name = "spy"
    paper = "none"
    needs = "nothing"
    seen: ClassVar[list[Problem]] = []
    reports: ClassVar[list[Report]] = []

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        self.seen.append(problem)
        self.reports.append(report)
        report(Progress(1, 1, 0.0))
        labels = problem.knowledge.labels
        if labels is None:
            labels = torch.zeros(problem.knowledge.num_samples, dtype=torch.long)
        return Reconstruction(torch.zeros(problem.batch_shape), labels)


class Fussy(Attack):
    """Finds out late that one client's update is not what it wants."""

    name = "fussy"
    paper = "none"
    needs = "any client but 1"
    at_once = 8

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        require(problem.name != "r0001-c0001", "Expected another client, got 1.")
        return Reconstruction(torch.zeros(problem.batch_shape), problem.knowledge.labels)


def reachable(*roots: Any) -> Iterator[Any]:
    """Every object that can be got at from the roots by attributes, items, closures and bindings.

    Modules' globals are left out: by them everything reaches everything.
    """
    todo, seen = list(roots), set()
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, types.ModuleType):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, Mapping):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += list(item)
        elif isinstance(item, types.FunctionType):
            todo += [cell.cell_contents for cell in item.__closure__ or () if _filled(cell)]
            todo += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
            todo += list(vars(item).values())
        elif isinstance(item, types.MethodType):
            todo += [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            todo += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, type):
            if item.__module__.startswith(("fedleak", "tests")):
                todo += [v for n, v in vars(item).items() if not n.startswith("__")]
        else:
            todo += [type(item), *_attributes(item)]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _attributes(item: Any) -> list[Any]:
    names = [n for kind in type(item).__mro__ for n in getattr(kind, "__slots__", ())]
    slots = [getattr(item, n) for n in names if isinstance(n, str) and hasattr(item, n)]
    return [*getattr(item, "__dict__", {}).values(), *slots]


def truth_in(marker: float, *roots: Any) -> list[Any]:
    """What gives the truth away: the truth itself, an array with the marker in it, a path to it."""
    return [item for item in reachable(*roots) if _gives_away(item, marker)]


def _gives_away(item: Any, marker: float) -> bool:
    if isinstance(item, GroundTruth) or item is GroundTruth:
        return True
    if isinstance(item, Tensor):
        return item.is_floating_point() and bool(
            torch.isclose(item.detach().double(), torch.tensor(marker).double(), rtol=1e-6).any()
        )
    if isinstance(item, np.ndarray) and item.dtype.kind == "f":
        return bool(np.isclose(item, marker, rtol=1e-6, atol=0).any())
    if isinstance(item, float):
        return abs(item - marker) < 1e-6 * abs(marker)
    return isinstance(item, str | Path) and "truth" in str(item)
