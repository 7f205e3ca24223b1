"""Optimisers of variables that consist of independent rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedleak.updates.files import Tensors

OptimizerName = Literal["adam", "sgd", "lbfgs"]

# Most evaluations in a step of L-BFGS, torch's default.
LBFGS_EVALUATIONS = 20

# Returns, for one row of all variables, their gradients ``(1, ...)`` and the objective, a scalar.
EvaluateRow = Callable[[int], tuple[Mapping[str, Tensor], Tensor]]


class RowOptimizer(ABC):
    """Updates variables ``(rows, ...)``, each row independently.

    Args:
        variables: the variables by name, changed in place.
        learning_rate: the learning rate, positive.
    """

    @abstractmethod
    def __init__(self, variables: Tensors, *, learning_rate: float) -> None: ...

    @abstractmethod
    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """Do one step.

        Args:
            gradients: gradient of each variable, ``(rows, ...)``.
            evaluate: evaluates the current values of a row, for optimisers with a line search.
        """

    @abstractmethod
    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate by a factor."""


class Adam(RowOptimizer):
    """Adam with torch's defaults (0.9, 0.999); elementwise, so it updates all rows together."""

    def __init__(self, variables: Tensors, *, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._names = list(variables)
        self._values = list(variables.values())
        self._means = [torch.zeros_like(value) for value in self._values]
        self._squares = [torch.zeros_like(value) for value in self._values]
        self._steps = [torch.zeros(()) for _ in self._values]

    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """See :meth:`RowOptimizer.step`."""
        # The function behind torch.optim.Adam, whose own step checks for a GPU every time, which
        # takes a tenth of an iteration of a small model.
        adam(
            self._values, [gradients[name] for name in self._names], self._means, self._squares,
            [], self._steps, foreach=False, amsgrad=False, beta1=0.9, beta2=0.999,
            lr=self._learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    def scale_learning_rate(self, factor: float) -> None:
        """See :meth:`RowOptimizer.scale_learning_rate`."""
        self._learning_rate *= factor


class SGD(RowOptimizer):
    """Plain gradient descent."""

    def __init__(self, variables: Tensors, *, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._variables = variables

    def step(self, gradients: Mapping[str, Tensor], evaluate: EvaluateRow) -> None:
        """See :meth:`RowOptimizer.step`."""
        for name, value in self._variables.items():
            value.sub_(gradients[name], alpha=self._learning_rate)

    def scale_learning_rate(self, factor: float) -> None:
        """See :meth:`RowOptimizer.scale_learning_rate`."""
        self._learning_rate *= factor


class LBFGS(RowOptimizer):
    """L-BFGS of torch: up to 20 evaluations a step, history 100, strong Wolfe line search.

    The line search differs from row to row, so the rows are optimised one after another.
    """

    def __init__(self, variables: Tensors, *, learning_rate: float) -> None:
        first = next(iter(variables.values()))
        rows = len(first)
        # torch's default tolerances would end it early in float64.
        least = torch.finfo(first.dtype).eps
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
                tolerance_grad=min(1e-7, least),
                tolerance_change=min(1e-9, least),
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
                    # torch's L-BFGS takes views of it; attention, say, leaves it in another order.
                    value.grad = found[name][0].contiguous()
                return float(objective)

            optimizer.step(closure)

    def scale_learning_rate(self, factor: float) -> None:
        """See :meth:`RowOptimizer.scale_learning_rate`."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor


OPTIMIZERS: dict[str, type[RowOptimizer]] = {"adam": Adam, "sgd": SGD, "lbfgs": LBFGS}
