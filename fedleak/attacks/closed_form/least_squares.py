"""Linear equations for a layer's input, solved by operators: none of equations times unknowns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Systems with a known solution that are solved beside the real one.
PROBES = 1
POWER_STEPS = 8
TOLERANCE = 1e-8
# Gradients are rounded to seven digits.
NOISE = 1e-7


class Equations:
    """Blocks of equations ``block(x) = target``, linear in x; each is scaled to norm 1.

    Args:
        blocks: gives the left sides, each ``(many, ...)``, for ``(many, *shape)`` of x.
        targets: the right sides, ``(1, ...)`` each.
        shape: shape of x.
        gram: for preconditioning: gives, of every block, the Gram matrix of one channel's plane on
            average over the channels, ``(H * W, H * W)`` each; none: no preconditioning.
    """

    def __init__(
        self,
        blocks: Callable[[Tensor], Sequence[Tensor]],
        targets: Sequence[Tensor],
        shape: Sequence[int],
        gram: Callable[[], Sequence[Tensor]] | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self._gram = gram
        self._blocks = blocks
        self._sizes = [target.numel() for target in targets]
        self._norms = self._estimate_norms(targets[0].dtype)
        self.target = torch.cat([
            target.flatten() / norm for target, norm in zip(targets, self._norms, strict=True)
        ])  # fmt: skip

    @property
    def count(self) -> int:
        """The number of equations."""
        return sum(self._sizes)

    def left(self, x: Tensor) -> Tensor:
        """All left sides for ``(many, *shape)`` of x: ``(many, count)``."""
        parts = zip(self._blocks(x), self._norms, strict=True)
        return torch.cat([block.flatten(1) / norm for block, norm in parts], dim=1)

    def preconditioner(self) -> Tensor | None:
        """An upper factor R of the blocks' Gram matrices, ``R^T R``; none if it has none."""
        if self._gram is None:
            return None
        parts = zip(self._gram(), self._norms, strict=True)
        whole = torch.stack([part / norm**2 for part, norm in parts]).sum(dim=0)
        # Of what the equations do not see at all.
        whole.diagonal().add_(1e-6 * float(whole.diagonal().mean()))
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(whole, upper=True)
        return None if int(failed) else factor

    def _estimate_norms(self, kind: torch.dtype) -> list[float]:
        """The blocks' largest singular values, by the power method from a fixed start."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for block, size in enumerate(self._sizes):
            x = torch.randn(1, *self.shape, generator=generator, dtype=kind)
            value = 1.0
            for _ in range(POWER_STEPS if size else 0):
                x = (x / x.norm()).requires_grad_()
                left = self._blocks(x)[block]
                (x,) = torch.autograd.grad(left, x, left.detach())
                value = float(x.norm()) ** 0.5
                if not value:
                    break
            found.append(value or 1.0)
        return found


class Solution(NamedTuple):
    """What the equations tell.

    Args:
        value: a least squares solution, of x's shape.
        error: standard errors of its entries, of that shape, too: how far off the equations are for
            random unknowns of the same size that leave as much unexplained.
        rank: the number of unknowns that they determine, by the same random unknowns.
        residual: what is left unexplained, as a share of the right sides.
        condition: the solver's estimate of the condition.
    """

    value: Tensor
    error: Tensor
    rank: int
    residual: float
    condition: float


def solve(equations: Equations, *, iterations: int, seed: int) -> Solution:
    """Solve equations by LSMR (Fong and Saunders 2011), and see what they determine.

    Beside the real system, others with the same left side and a random solution are solved in the
    same run: the part of it that does not come back is what the equations do not see.

    Args:
        equations: the equations.
        iterations: the most that the solver may take.
        seed: of the random solutions.
    """
    kind = equations.target.dtype
    generator = torch.Generator().manual_seed(seed)
    size = equations.shape.numel()
    # Signs, so that no unknown is so small that it would not be missed.
    signs = torch.randint(2, (PROBES, *equations.shape), generator=generator)
    hidden = 2 * signs.to(kind) - 1
    with torch.no_grad():
        known = equations.left(hidden)
    rows = (1 + PROBES, *equations.shape)
    # One graph serves all products with the transpose, as the map is linear.
    point = torch.zeros(rows, dtype=kind, requires_grad=True)
    left = equations.left(point)

    factor = equations.preconditioner()

    def unscaled(vector: np.ndarray[Any, Any], *, transpose: bool = False) -> Tensor:
        """The unknowns that the solver's own stand for, or the other way with the transpose."""
        values: Tensor = torch.from_numpy(vector.copy()).reshape(rows)
        if factor is None:
            return values
        planes = values.reshape(-1, len(factor))
        matrix = factor if transpose else factor.mT
        solved: Tensor = torch.linalg.solve_triangular(matrix, planes, upper=transpose, left=False)
        return solved.reshape(rows)

    def times(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return np.asarray(equations.left(unscaled(vector))).ravel()

    def transposed(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        given = torch.from_numpy(vector.reshape(left.shape))
        (found,) = torch.autograd.grad(left, point, given, retain_graph=True)
        return np.asarray(unscaled(found.numpy(), transpose=True)).ravel()

    # All systems alike in size, so that the solver cares for all, and with noise in them.
    scale = equations.target.norm() / known.norm(dim=1).mean().clamp_min(1e-300)
    noise = torch.randn(known.shape, generator=generator, dtype=kind)
    known = known * (1 + NOISE * noise)
    right = torch.cat([equations.target[None], known * scale])
    # Imported here, since few attacks get this far.
    from scipy.sparse.linalg import LinearOperator, lsmr

    operator = LinearOperator(
        (right.numel(), point.numel()), matvec=times, rmatvec=transposed, dtype=np.float64
    )
    found, _, _, _, _, _, condition, _ = lsmr(
        operator, right.numpy().ravel(), atol=TOLERANCE, btol=TOLERANCE, conlim=0,
        maxiter=iterations,
    )  # fmt: skip
    solution = unscaled(found)
    value = solution[0]
    with torch.no_grad():
        missed = (equations.left(solution) - right).norm(dim=1)
    norm = equations.target.norm().clamp_min(torch.finfo(kind).tiny)
    # The probes are scaled to the same norm.
    tiny = torch.finfo(kind).eps * norm
    noisier = ((missed[0] + tiny) / (missed[1:].mean() + tiny)).nan_to_num(1.0).clamp_min(1.0)
    lost = hidden - solution[1:] / scale
    spread = value.square().mean().sqrt()
    return Solution(
        value=value,
        error=lost.square().mean(dim=0).sqrt() * spread * noisier,
        # The trace of the projection on what is lost, by Hutchinson's estimate.
        rank=size - round(float((hidden * lost).nan_to_num(1.0).sum() / PROBES)),
        residual=float(missed[0] / norm),
        condition=float(condition),
    )
