"""Least squares (LSMR) for a layer's input, with standard errors and rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Systems with a known random solution that are solved together with the real one.
PROBES = 1
POWER_STEPS = 8
TOLERANCE = 1e-8
# Relative noise of a probe's right side: float32 gradients have about seven digits.
NOISE = 1e-7
# Ridge added to a Gram matrix, relative to its mean diagonal, so that it has a Cholesky factor: to
# that of a plane, and to that of all unknowns.
RIDGE, WHOLE_RIDGE = 1e-6, 1e-12
# Iterations after which the Gram matrix of all unknowns is factorised. Of 3072 unknowns, that takes
# as long as 200 to 300 iterations, and a convolution's equations took 30, or 300 to thousands.
PATIENCE = 40
# LSMR's reason for stopping where it has reached its last iteration.
NOT_CONVERGED = 7


class Equations:
    """Blocks of equations ``block(x) = target`` that are linear in x, each scaled to norm 1.

    Args:
        blocks: gives the left sides of all blocks, each ``(many, ...)``, for x of shape
            ``(many, *shape)``.
        targets: right sides of the blocks, ``(1, ...)`` each.
        shape: shape of x.
        gram: for the preconditioner, gives the Gram matrix of every block for one plane of x,
            averaged over the planes, ``(H * W, H * W)`` each. If None, the solver is not
            preconditioned.
        whole: for a preconditioner with which few iterations are left, gives the sum of the Gram
            matrices of all blocks for all entries of x, each times its factor, which are the
            argument. If None, the solver goes on without it.
    """

    def __init__(
        self,
        blocks: Callable[[Tensor], Sequence[Tensor]],
        targets: Sequence[Tensor],
        shape: Sequence[int],
        gram: Callable[[], Sequence[Tensor]] | None = None,
        whole: Callable[[Sequence[float]], Tensor] | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self._gram, self.whole = gram, whole
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

    def apply(self, x: Tensor) -> Tensor:
        """The left sides of all equations, ``(many, count)``, for x of ``(many, *shape)``."""
        parts = zip(self._blocks(x), self._norms, strict=True)
        return torch.cat([block.flatten(1) / norm for block, norm in parts], dim=1)

    def preconditioners(self) -> Iterator[Tensor | None]:
        """Upper triangular R with ``R^T R`` a sum of Gram matrices, the better ones later.

        None for no preconditioner. Each is computed when it is asked for. One that has no Cholesky
        factor is left out.
        """
        first = None
        if self._gram is not None:
            parts = zip(self._gram(), self._norms, strict=True)
            first = _factor(sum(part / norm**2 for part, norm in parts), RIDGE)
        yield first
        if self.whole is not None:
            whole = _factor(self.whole([norm**-2 for norm in self._norms]), WHOLE_RIDGE)
            yield first if whole is None else whole

    def _estimate_norms(self, dtype: torch.dtype) -> list[float]:
        """Largest singular value of each block, by the power method from a fixed start."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for block, size in enumerate(self._sizes):
            x = torch.randn(1, *self.shape, generator=generator, dtype=dtype)
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


def _factor(gram: Any, ridge: float) -> Tensor | None:
    """The upper Cholesky factor of a Gram matrix, which is changed; None if it has none."""
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    factor, failed = torch.linalg.cholesky_ex(gram, upper=True)
    return None if int(failed) else factor


class Solution(NamedTuple):
    """Result of :func:`solve`.

    Args:
        value: a least squares solution, of the shape of x.
        error: standard errors of its entries, of the same shape, estimated from random solutions of
            the same size and scaled by the residual.
        rank: estimated number of independent equations, out of the number of unknowns.
        residual: norm of the residual, relative to that of the right sides.
        condition: LSMR's estimate of the condition number.
    """

    value: Tensor
    error: Tensor
    rank: int
    residual: float
    condition: float


def solve(equations: Equations, *, iterations: int, seed: int) -> Solution:
    """Solve equations by LSMR (Fong and Saunders 2011) and estimate what they determine.

    Systems with the same left side and a random solution (probes) are solved in the same run. What
    the solver does not recover of a random solution lies in the null space, or is lost to rounding
    and to early stopping: its size is the standard error of an entry, and its projection on the
    random solution gives the rank.

    Args:
        equations: the equations.
        iterations: maximum number of iterations of LSMR.
        seed: seed of the random solutions.
    """
    dtype = equations.target.dtype
    generator = torch.Generator().manual_seed(seed)
    size = equations.shape.numel()
    # Random signs, so that every unknown has the same magnitude.
    signs = torch.randint(2, (PROBES, *equations.shape), generator=generator)
    probes = 2 * signs.to(dtype) - 1
    with torch.no_grad():
        probe_sides = equations.apply(probes)
    rows = (1 + PROBES, *equations.shape)
    # One graph serves all products with the transpose, as the map is linear.
    point = torch.zeros(rows, dtype=dtype, requires_grad=True)
    left = equations.apply(point)

    # All systems are scaled to one norm, so that the stopping rule applies to each of them, and the
    # probes get the rounding noise of a float32 gradient.
    scale = equations.target.norm() / probe_sides.norm(dim=1).mean().clamp_min(1e-300)
    noise = torch.randn(probe_sides.shape, generator=generator, dtype=dtype)
    probe_sides = probe_sides * (1 + NOISE * noise)
    right = torch.cat([equations.target[None], probe_sides * scale])
    # Imported here, since few attacks get this far.
    from scipy.sparse.linalg import LinearOperator, lsmr

    def attempt(factor: Tensor | None, most: int) -> tuple[Tensor, float, bool]:
        """The solution, its condition number, and whether so many iterations sufficed."""

        def unscaled(vector: np.ndarray[Any, Any], *, transpose: bool = False) -> Tensor:
            """Multiply by the inverse of the preconditioner, or by its transpose."""
            values: Tensor = torch.from_numpy(vector.copy()).reshape(rows)
            if factor is None:
                return values
            planes = values.reshape(-1, len(factor))
            matrix = factor if transpose else factor.mT
            solved: Tensor = torch.linalg.solve_triangular(
                matrix, planes, upper=transpose, left=False
            )
            return solved.reshape(rows)

        def times(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            with torch.no_grad():
                return np.asarray(equations.apply(unscaled(vector))).ravel()

        def transposed(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            given = torch.from_numpy(vector.reshape(left.shape))
            (found,) = torch.autograd.grad(left, point, given, retain_graph=True)
            return np.asarray(unscaled(found.numpy(), transpose=True)).ravel()

        operator = LinearOperator(
            (right.numel(), point.numel()), matvec=times, rmatvec=transposed, dtype=np.float64
        )
        found, stopped, _, _, _, _, condition, _ = lsmr(
            operator, right.numpy().ravel(), atol=TOLERANCE, btol=TOLERANCE, conlim=0,
            maxiter=most,
        )  # fmt: skip
        return unscaled(found), float(condition), stopped != NOT_CONVERGED

    most = iterations if equations.whole is None else min(PATIENCE, iterations)
    for factor in equations.preconditioners():
        solution, condition, converged = attempt(factor, most)
        if converged:
            break
        most = iterations
    value = solution[0]
    with torch.no_grad():
        residuals = (equations.apply(solution) - right).norm(dim=1)
    norm = equations.target.norm().clamp_min(torch.finfo(dtype).tiny)
    tiny = torch.finfo(dtype).eps * norm
    # The right sides have one norm, so that their residuals compare.
    noisier = ((residuals[0] + tiny) / (residuals[1:].mean() + tiny)).nan_to_num(1.0)
    noisier = noisier.clamp_min(1.0)
    lost = probes - solution[1:] / scale
    rms = value.square().mean().sqrt()
    return Solution(
        value=value,
        error=lost.square().mean(dim=0).sqrt() * rms * noisier,
        # Hutchinson's estimate of the trace of the projection on the null space.
        rank=size - round(float((probes * lost).nan_to_num(1.0).sum() / PROBES)),
        residual=float(residuals[0] / norm),
        condition=condition,
    )
