"""An iteration recorded once and replayed, so that Python has no share in it."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fedleak.updates.files import Tensors

# Of results that are equal but for the order of sums on a GPU.
TOLERANCE = 1e-4

Compiler = Literal["off", "trace", "inductor", "cuda_graphs"]

# Variables that are optimised, variables that are not, and what they are compared with: gradients
# with respect to the first, and (objective, cost).
Step = Callable[[Tensors, Tensors, dict[str, Any]], tuple[Tensors, tuple[Tensor, Tensor]]]


class Traced:
    """A step that is recorded where a number of rows first comes, and replayed from then on.

    A step that cannot be recorded, or whose record gives other results at another point since it
    depends on something besides its arguments and torch's generator, is done as it is.

    Args:
        step: the computation.
        compiler: what becomes of the record: ``trace`` replays it as it is, ``inductor`` and
            ``cuda_graphs`` hand it to torch.compile.
    """

    def __init__(self, step: Step, compiler: Compiler) -> None:
        self._step = step
        self._compiler = compiler
        self._records: dict[int, Step] = {}

    def __call__(
        self, free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        """See :data:`Step`."""
        rows = len(free["inputs"])
        if rows not in self._records:
            self._records[rows] = self._record(free, fixed, target)
        return self._records[rows](free, fixed, target)

    def _record(self, free: Tensors, fixed: Tensors, target: dict[str, Any]) -> Step:
        try:
            graph = make_fx(self._step)(free, fixed, target)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return self._step
        graph.graph.eliminate_dead_code()
        graph.recompile()
        elsewhere = {name: 0.9 * value + 0.05 for name, value in free.items()}
        if not _agree(self._step, graph, (elsewhere, fixed, target)):
            return self._step
        record: Any = graph
        if self._compiler == "inductor":
            record = torch.compile(graph)
        elif self._compiler == "cuda_graphs":
            record = torch.compile(graph, mode="reduce-overhead")
        chosen: Step = record
        return chosen


def _agree(step: Step, record: Step, point: tuple[Tensors, Tensors, dict[str, Any]]) -> bool:
    """Whether both give the same gradients and costs, from the same state of torch's generator."""
    found = []
    for compute in (step, record):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            gradients, costs = compute(*point)
        found.append([*gradients.values(), *costs])
    return all(
        bool((one - other).norm() <= TOLERANCE * one.norm()) or torch.equal(one, other)
        for one, other in zip(*found, strict=True)
    )
