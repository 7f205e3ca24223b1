"""The iterates of lowest cost of attacks that are computed in one batch."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.updates.files import Tensors

# Costs that differ by at most this many units in the last place count as equal: the order of the
# sums over all weights depends on the batch.
ROUNDING = 16


class BestIterate(NamedTuple):
    """Result of the attack on one update.

    Args:
        variables: the variables of the iterate of lowest cost, ``(...)`` without the row.
        costs: (iteration, lowest cost so far) at some iterations; the last cost is that of the best
            iterate, which may be higher within rounding.
        iterations: the number of iterations done.
    """

    variables: Tensors
    costs: list[tuple[int, float]]
    iterations: int


class BestIterates:
    """The iterate of lowest cost of each row.

    Nothing is read back from the device inside the loop, so that a GPU need not be synchronised.

    Args:
        state: the variables ``(rows, ...)`` that every iteration changes.
        rounding: differences ``(rows,)`` up to which costs count as equal; the later of two equal
            iterates is kept.
        patience: a row stops once its lowest cost has not fallen by 1 % within this many
            iterations. If None, it never stops early.
    """

    def __init__(self, state: Tensors, rounding: Tensor, patience: int | None) -> None:
        inputs = state["inputs"]
        rows = len(inputs)
        self.costs = inputs.new_full((rows,), float("inf"))  # lowest so far
        self._kept_costs = self.costs.clone()  # of the iterates that are kept
        self._rounding = rounding
        self._patience = patience
        self._variables = {name: value.clone() for name, value in state.items()}
        self._stopped = torch.zeros(rows, dtype=torch.bool, device=inputs.device)
        self._mark = self.costs.clone()
        self._since = torch.zeros(rows, dtype=torch.long, device=inputs.device)
        self._stopped_at = torch.full((rows,), -1, dtype=torch.long, device=inputs.device)
        self._history: list[tuple[int, Tensor]] = []

    def update(self, iteration: int, costs: Tensor, state: Tensors) -> None:
        """Keep the rows of ``state`` whose costs are not higher than the lowest so far.

        Args:
            iteration: the current iteration.
            costs: cost of each row, ``(rows,)``.
            state: the variables, ``(rows, ...)``.
        """
        better = (costs < self.costs + self._rounding) & ~self._stopped
        self.costs = torch.where(better, costs.minimum(self.costs), self.costs)
        self._kept_costs = torch.where(better, costs, self._kept_costs)
        self._variables = {n: _choose(better, state[n], old) for n, old in self._variables.items()}
        if self._patience is not None:
            # Rounding may take a cost below 0, where 1 % of it is no threshold.
            least = torch.maximum(0.01 * self._mark.abs(), self._rounding)
            fallen = self.costs.isfinite() & (
                self._mark.isinf() | (self._mark - self.costs > least)
            )
            self._mark = torch.where(fallen, self.costs, self._mark)
            self._since = torch.where(fallen, iteration, self._since)
            stopped = iteration - self._since >= self._patience
            new = stopped & ~self._stopped
            self._stopped_at = torch.where(new, iteration, self._stopped_at)
            self._stopped |= stopped

    def record(self, iteration: int) -> None:
        """Add the lowest costs so far to the cost curves."""
        self._history.append((iteration, self.costs.clone()))

    def all_stopped(self) -> bool:
        """Whether every row has run out of patience."""
        return self._patience is not None and bool(self._stopped.all())

    def per_update(self, restarts: int, iteration: int) -> list[BestIterate]:
        """The best iterate of each update.

        Args:
            restarts: number of restarts of an update, which are consecutive rows.
            iteration: the last iteration.
        """
        results = []
        for first in range(0, len(self.costs), restarts):
            # A cost of NaN is never kept, so rows of infinite cost are the failed ones.
            row = first + int(self.costs[first : first + restarts].argmin())
            stopped_at = int(self._stopped_at[row])
            last = iteration if stopped_at < 0 else stopped_at
            costs = [(at, float(cost[row])) for at, cost in self._history if at < last]
            costs.append((last, float(self._kept_costs[row])))
            variables = {name: value[row] for name, value in self._variables.items()}
            results.append(BestIterate(variables, costs, last))
        return results


def cost_rounding(
    cost: str, target: Mapping[str, tuple[Tensor, ...]], weights: Mapping[str, float]
) -> Tensor:
    """Rounding error of the cost in the precision that is used.

    Args:
        cost: the cost's name.
        target: for each parameter, tensors of which the last is the target's squared norm
            ``(rows,)``.
        weights: weight of each parameter that is compared.

    Returns:
        For each row, the difference up to which two costs count as equal, ``(rows,)``.
    """
    norms = torch.stack([weight * target[name][-1] for name, weight in weights.items()])
    scale = norms.sum(dim=0) if cost == "squared_error" else torch.ones_like(norms[0])
    return ROUNDING * torch.finfo(norms.dtype).eps * scale


def _choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
