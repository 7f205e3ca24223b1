"""Trace one iteration with torch.fx and replay its graph without Python overhead."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fedleak.updates.files import Tensors

# Relative difference up to which the results of step and graph count as equal: on a GPU the order
# of sums may differ.
TOLERANCE = 1e-4

Compiler = Literal["off", "trace", "inductor", "cuda_graphs"]

# A function of the variables that are optimised, the other variables, and the targets. Returns the
# gradients with respect to the first, and (objective, cost).
Step = Callable[[Tensors, Tensors, dict[str, Any]], tuple[Tensors, tuple[Tensor, Tensor]]]


class TracedStep:
    """A step that is traced at the first call with a number of rows and replayed afterwards.

    A step that cannot be traced is called without tracing; so is one whose graph gives different
    results at another point, since it depends on more than its arguments and torch's generator.

    Args:
        step: the computation.
        compiler: ``trace`` replays the graph with torch.fx, ``inductor`` and ``cuda_graphs``
            compile it by torch.compile.
    """

    def __init__(self, step: Step, compiler: Compiler) -> None:
        self._step = step
        self._compiler = compiler
        self._graphs: dict[int, Step] = {}

    def __call__(
        self, free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        """See :data:`Step`."""
        rows = len(free["inputs"])
        if rows not in self._graphs:
            self._graphs[rows] = self._trace(free, fixed, target)
        return self._graphs[rows](free, fixed, target)

    def _trace(self, free: Tensors, fixed: Tensors, target: dict[str, Any]) -> Step:
        try:
            graph = make_fx(self._step)(free, fixed, target)
        except Exception:  # of the user's own model as well
            return self._step
        graph.graph.eliminate_dead_code()
        graph.recompile()
        elsewhere = {name: 0.9 * value + 0.05 for name, value in free.items()}
        if not agree(self._step, graph, (elsewhere, fixed, target), TOLERANCE):
            return self._step
        compiled: Any = graph
        if self._compiler == "inductor":
            compiled = _compiling(torch.compile(graph))
        elif self._compiler == "cuda_graphs":
            compiled = _compiling(torch.compile(graph, mode="reduce-overhead"))
        chosen: Step = compiled
        return chosen


def _compiling(compiled: Step) -> Step:
    """A compiled step, also where functions that the model compiles are run by Python."""

    def call(
        free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        with cast(Any, torch.compiler).set_stance("default"):
            return compiled(free, fixed, target)

    return call


def agree(
    step: Step, other: Step, point: tuple[Tensors, Tensors, dict[str, Any]], tolerance: float
) -> bool:
    """Whether two steps give the same from the same state of torch's generator.

    Args:
        step: a step.
        other: another way to compute it.
        point: the arguments of both.
        tolerance: the largest relative difference of gradients, and of costs, that counts as equal.
    """
    found = []
    for compute in (step, other):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            gradients, costs = compute(*point)
        found.append([*gradients.values(), *costs])
    return all(
        bool((one - two).norm() <= tolerance * one.norm()) or torch.equal(one, two)
        for one, two in zip(*found, strict=True)
    )
