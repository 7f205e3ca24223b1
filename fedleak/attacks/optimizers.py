"""Optimisers of dummy variables that hold many independent rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fedleak.updates import Tensors

OptimizerName = Literal["adam", "sgd", "lbfgs"]

# At most so many in a step of L-BFGS, torch's default.
LBFGS_EVALUATIONS = 20

# Gives, for one row of all variables, their gradients ``(1, ...)`` and the objective, a scalar.
EvaluateRow = Callable[[int], tuple[Mapping[str, Tensor], Tensor]]


class RowOptimizer(ABC):
    """Moves variables ``(rows, ...)``, each row as if it were alone.

    Args:
        variables: the variables by name, changed in place.
        learning_rate: the learning rate, positive.
    """

    @abstractmethod
    def __init__(self, variables: Tensors, *, learning_rate: float) -> None: ...

    @abstractmethod
    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """One step.

        Args:
            gradients: gradient of each variable, ``(rows, ...)``.
            evaluate: evaluates a row anew, for optimisers that look at several points in a step.
        """

    @abstractmethod
    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate."""


class FirstOrder(RowOptimizer):
    """Adam or SGD of torch; both treat each number on its own, so all rows go together."""

    kind: type[torch.optim.Optimizer]

    def __init__(self, variables: Tensors, *, learning_rate: float) -> None:
        self._variables = variables
        self._optimizer = self.kind(variables.values(), lr=learning_rate)  # type: ignore[call-arg]

    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """See :meth:`RowOptimizer.step`."""
        for name, value in self._variables.items():
            value.grad = gradients[name]
        self._optimizer.step()

    def scale_learning_rate(self, factor: float) -> None:
        """See :meth:`RowOptimizer.scale_learning_rate`."""
        for group in self._optimizer.param_groups:
            group["lr"] *= factor


class Adam(FirstOrder):
    """Adam with torch's defaults (0.9, 0.999)."""

    kind = torch.optim.Adam


class SGD(FirstOrder):
    """Plain gradient descent."""

    kind = torch.optim.SGD


class LBFGS(RowOptimizer):
    """L-BFGS of torch: up to 20 evaluations a step, history 100, strong Wolfe line search.

    A line search is a row's own affair, so the rows go one after another.
    """

    def __init__(self, variables: Tensors, *, learning_rate: float) -> None:
        rows = len(next(iter(variables.values())))
        self._rows = [
            {name: value[row] for name, value in variables.items()} for row in range(rows)
        ]
        self._optimizers = [
            torch.optim.LBFGS(
                list(row.values()),
                lr=learning_rate,
                max_iter=LBFGS_EVALUATIONS,
                history_size=100,
                line_search_fn="strong_wolfe",
            )
            for row in self._rows
        ]

    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """See :meth:`RowOptimizer.step`."""
        for number, (variables, optimizer) in enumerate(
            zip(self._rows, self._optimizers, strict=True)
        ):

            def closure(number: int = number, variables: Tensors = variables) -> float:
                found, objective = evaluate(number)
                for name, value in variables.items():
                    value.grad = found[name][0]
                return float(objective)

            optimizer.step(closure)

    def scale_learning_rate(self, factor: float) -> None:
        """See :meth:`RowOptimizer.scale_learning_rate`."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor


OPTIMIZERS: dict[str, type[RowOptimizer]] = {"adam": Adam, "sgd": SGD, "lbfgs": LBFGS}
