"""The best iterates of many attacks that run side by side."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.updates.files import Tensors

# Costs that differ by less than so many units in the last place are equal: sums over all weights
# are taken in another order for every batch.
ROUNDING = 16


class Kept(NamedTuple):
    """What is kept of an attack on one update.

    Args:
        variables: the variables of the best iterate.
        costs: the lowest cost so far, at some iterations; last, the cost of the best iterate, which
            is higher by rounding at most.
        iterations: the number of iterations that were done.
    """

    variables: Tensors
    costs: list[tuple[int, float]]
    iterations: int


class BestIterates:
    """The iterates of lowest cost, row by row, without a look at a number on the way.

    Args:
        state: the variables ``(rows, ...)`` that every iteration changes.
        rounding: differences ``(rows,)`` up to which costs count as equal; the later iterate is
            taken then.
        patience: number of iterations after which a row is settled whose lowest cost has not
            fallen by 1 %; none: never.
    """

    def __init__(self, state: Tensors, rounding: Tensor, patience: int | None) -> None:
        inputs = state["inputs"]
        rows = len(inputs)
        self.costs = inputs.new_full((rows,), float("inf"))  # the lowest ones
        self._kept_costs = self.costs.clone()  # those of the iterates that are kept
        self._rounding = rounding
        self._patience = patience
        self._variables = {name: value.clone() for name, value in state.items()}
        self._settled = torch.zeros(rows, dtype=torch.bool, device=inputs.device)
        self._mark = self.costs.clone()
        self._since = torch.zeros(rows, dtype=torch.long, device=inputs.device)
        self._stopped = torch.full((rows,), -1, dtype=torch.long, device=inputs.device)
        self._history: list[tuple[int, Tensor]] = []

    def update(self, iteration: int, costs: Tensor, state: Tensors) -> None:
        """Take the rows of ``state`` whose costs ``(rows,)`` are none higher than before."""
        better = (costs < self.costs + self._rounding) & ~self._settled
        self.costs = torch.where(better, costs.minimum(self.costs), self.costs)
        self._kept_costs = torch.where(better, costs, self._kept_costs)
        self._variables = {n: _choose(better, state[n], old) for n, old in self._variables.items()}
        if self._patience is not None:
            # A cost may be below 0, by rounding; then a share of it is nothing to go by.
            least = torch.maximum(0.01 * self._mark.abs(), self._rounding)
            fallen = self.costs.isfinite() & (
                self._mark.isinf() | (self._mark - self.costs > least)
            )
            self._mark = torch.where(fallen, self.costs, self._mark)
            self._since = torch.where(fallen, iteration, self._since)
            settled = iteration - self._since >= self._patience
            self._stopped = torch.where(settled & ~self._settled, iteration, self._stopped)
            self._settled |= settled

    def note(self, iteration: int) -> None:
        """Remember the costs so far for the cost curves."""
        self._history.append((iteration, self.costs.clone()))

    def all_settled(self) -> bool:
        """Whether no row goes on."""
        return self._patience is not None and bool(self._settled.all())

    def kept(self, restarts: int, iteration: int) -> list[Kept]:
        """The best of each update's restarts, which are neighbouring rows."""
        results = []
        for first in range(0, len(self.costs), restarts):
            # A cost that is NaN never became the best, so the infinite ones are the failures.
            row = first + int(self.costs[first : first + restarts].argmin())
            stopped = int(self._stopped[row])
            last = iteration if stopped < 0 else stopped
            costs = [(at, float(cost[row])) for at, cost in self._history if at < last]
            costs.append((last, float(self._kept_costs[row])))
            variables = {name: value[row] for name, value in self._variables.items()}
            results.append(Kept(variables, costs, last))
        return results


def rounding_of(
    cost: str, target: Mapping[str, tuple[Tensor, ...]], weights: Mapping[str, float]
) -> Tensor:
    """How far costs of equal gradients may lie apart in the arithmetic that is used.

    Args:
        cost: the cost's name.
        target: for each parameter, tensors whose last ``(rows,)`` is the target's squared norm.
        weights: of the parameters that are compared.

    Returns:
        A difference for each row.
    """
    norms = torch.stack([weight * target[name][-1] for name, weight in weights.items()])
    scale = norms.sum(dim=0) if cost == "squared_error" else torch.ones_like(norms[0])
    return ROUNDING * torch.finfo(norms.dtype).eps * scale


def _choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
