"""An iteration recorded once and replayed, so that Python has no share in it."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fedleak.updates import Tensors

Compiler = Literal["off", "trace", "inductor", "cuda_graphs"]

# Variables that are optimised, variables that are not, and what they are compared with: gradients
# with respect to the first, and (objective, cost).
Step = Callable[[Tensors, Tensors, dict[str, Any]], tuple[Tensors, tuple[Tensor, Tensor]]]


class Traced:
    """A step that is recorded where a number of rows first comes, and replayed from then on.

    Args:
        step: the computation; it must not depend on values but through torch.
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
        graph = make_fx(self._step)(free, fixed, target)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        record: Any = graph
        if self._compiler == "inductor":
            record = torch.compile(graph)
        elif self._compiler == "cuda_graphs":
            record = torch.compile(graph, mode="reduce-overhead")
        chosen: Step = record
        return chosen
