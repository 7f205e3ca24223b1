"""Whole signals of the last hidden layer: each entry is 0 or a known function of the residual.

A sample's signal in the last hidden layer lies in the span of the columns of what is left of the
layer's gradient, and its entry j is 0 where unit j is inactive, else ``w_j . r`` with the head's
column ``w_j`` and the sample's residual r. So ``U p = s * (r W)`` with unknown p and r and one of
two states ``s_j`` for each entry: a mixture of two linear regressions of which one is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Iterations of reweighted least squares from a start, and by how much each narrows the weights.
ITERATIONS = 38
NARROWER = 0.88
FIRST_WIDTH = 0.5
LAST_WIDTH = 1e-2
# A signal is found if this share of its entries fits; and how well it fits, of its size.
FITTING = 0.97
FITS = 0.02
# Relative ridge that keeps the equations solvable.
RIDGE = 1e-6
# Rounds of least squares on the entries with their states.
POLISHING = 6
# Cosine from which two signals are the same.
SAME = 0.99


@dataclass(frozen=True)
class Signals:
    """Signals up to a factor each.

    Args:
        coordinates: p, in the columns' basis, ``(signals, rank)``.
        residuals: r up to the same factor, ``(signals, classes)``.
        errors: share of each signal's norm that is not explained, ``(signals,)``.
    """

    coordinates: Tensor
    residuals: Tensor
    errors: Tensor

    def __len__(self) -> int:
        return len(self.errors)

    def __getitem__(self, chosen: Tensor | slice) -> "Signals":
        return Signals(*(value[chosen] for value in vars(self).values()))

    def __add__(self, other: "Signals") -> "Signals":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Signals(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class TwoStates:
    """The equations of one layer.

    Args:
        columns: U, orthonormal basis of the columns' span, ``(units, rank)``, float64.
        head: the head's weight, ``(classes, units)``, float64.
        generator: source of the random starts.
        tolerance: relative error up to which a signal is exact.
    """

    columns: Tensor
    head: Tensor
    generator: torch.Generator
    tolerance: float

    def search(self, labels: Tensor, spread: float) -> Signals:
        """Signals that some random starts lead to, each once.

        Args:
            labels: label of each start, ``(starts,)``.
            spread: 0 for residuals of an even softmax; else a share of random softmaxes.
        """
        p, r = self._starts(labels, spread)
        p, r = self._reweighted(p.float(), r.float(), labels)
        fits = self._share_that_fits(p.double(), r.double()) >= FITTING - 0.25
        return self.polish(p[fits].double(), r[fits].double(), labels[fits])

    def polish(self, p: Tensor, r: Tensor, labels: Tensor) -> Signals:
        """Exact signals near approximate ones, each once.

        Args:
            p: coordinates, ``(signals, rank)``.
            r: residuals, -1 at the label, ``(signals, classes)``.
            labels: ``(signals,)``.
        """
        errors = torch.full((len(p),), torch.inf, dtype=p.dtype)
        for _ in range(POLISHING):
            values, targets = p @ self.columns.T, r @ self.head
            active, off = nearer_states(values, targets)
            size = values.square().mean(dim=1, keepdim=True).sqrt()
            near = off.abs() <= torch.maximum(
                FITS * size, 3 * off.abs().median(dim=1, keepdim=True).values
            )
            p, r = self._solve(near.double(), active, labels)
            values, targets = p @ self.columns.T, r @ self.head
            active, off = nearer_states(values, targets)
            errors = off.norm(dim=1) / values.norm(dim=1)
        exact = errors <= self.tolerance
        return self.distinct(Signals(p[exact], r[exact], errors[exact]))

    def distinct(self, signals: Signals) -> Signals:
        """Each signal once, in its most exact form.

        Args:
            signals: some signals.
        """
        directions = torch.nn.functional.normalize(signals.coordinates, dim=1)
        kept: list[int] = []
        for at in signals.errors.argsort().tolist():
            cosines = (directions[kept] @ directions[at]).abs()
            if not bool((cosines > SAME).any()):
                kept.append(at)
        return signals[torch.tensor(kept, dtype=torch.long)]

    def joined(self, one: Signals, other: Signals) -> Signals:
        """The signals of one, then those of the other that are no signal of the first.

        Args:
            one: distinct signals.
            other: further distinct signals.
        """
        before, after = (
            torch.nn.functional.normalize(part.coordinates, dim=1) for part in (one, other)
        )
        new = ((after @ before.T).abs() <= SAME).all(dim=1)
        return one + other[new]

    def _starts(self, labels: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """Random masks, projected onto the columns' span, and residuals."""
        starts, classes = len(labels), len(self.head)
        drawn = torch.rand(starts, classes, generator=self.generator, dtype=torch.float64)
        # Exponential numbers, normalised, are evenly distributed softmaxes.
        others = (1 - spread) + spread * -(drawn.clamp_min(1e-12).log() ** 2)
        others.scatter_(1, labels[:, None], 0)
        r = others / others.sum(dim=1, keepdim=True)
        r.scatter_(1, labels[:, None], -1)
        targets = r @ self.head
        masks = torch.rand(targets.shape, generator=self.generator, dtype=torch.float64) < 0.5
        p = (targets * masks) @ self.columns
        values = p @ self.columns.T
        scale = (values / targets).quantile(0.85, dim=1, keepdim=True)
        return p / scale.clamp_min(1e-6), r

    def _reweighted(self, p: Tensor, r: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Least absolute deviations, with the nearer state of each entry, in float32."""
        columns, head = self.columns.float(), self.head.float()
        width = FIRST_WIDTH
        for _ in range(ITERATIONS):
            values, targets = p @ columns.T, r @ head
            active, off = nearer_states(values, targets)
            size = targets.square().mean(dim=1, keepdim=True).sqrt()
            weights = 1 / torch.maximum(off.abs() / size, torch.full_like(size, width))
            p, r = self._solve(weights, active, labels, columns, head)
            width = max(width * NARROWER, LAST_WIDTH)
        return p, r

    def _share_that_fits(self, p: Tensor, r: Tensor) -> Tensor:
        values, targets = p @ self.columns.T, r @ self.head
        _, off = nearer_states(values, targets)
        size = targets.square().mean(dim=1, keepdim=True).sqrt()
        return (off.abs() <= FITS * size).double().mean(dim=1)

    def _solve(
        self,
        weights: Tensor,
        active: Tensor,
        labels: Tensor,
        columns: Tensor | None = None,
        head: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted least squares for p and r, with r -1 at the label and of sum 0.

        Args:
            weights: ``(starts, units)``.
            active: states, 1 or 0, ``(starts, units)``.
            labels: ``(starts,)``.
            columns: U, if not in float64.
            head: the head's weight, if not in float64.
        """
        columns = self.columns if columns is None else columns
        head = self.head if head is None else head
        rank, classes = columns.shape[1], len(head)
        first, basis = free_residuals(classes, labels, head.dtype)
        free = basis.shape[2]
        known = active * (first @ head)  # (starts, units)
        moving = (basis.mT @ head) * active[:, None, :]  # (starts, free, units)
        weighted = columns.T[None] * weights[:, None, :]  # (starts, rank, units)
        system = torch.empty(len(labels), rank + free, rank + free, dtype=head.dtype)
        system[:, :rank, :rank] = weighted @ columns
        right = torch.empty(len(labels), rank + free, 1, dtype=head.dtype)
        right[:, :rank, 0] = (weighted @ known[:, :, None])[:, :, 0]
        if free:
            cross = -weighted @ moving.mT
            system[:, :rank, rank:], system[:, rank:, :rank] = cross, cross.mT
            own = moving * weights[:, None, :]
            system[:, rank:, rank:] = own @ moving.mT
            right[:, rank:, 0] = -(own @ known[:, :, None])[:, :, 0]
        diagonal = system.diagonal(dim1=1, dim2=2)
        ridge = RIDGE if head.dtype == torch.float32 else RIDGE**2
        diagonal += ridge * diagonal.mean(dim=1, keepdim=True) + torch.finfo(head.dtype).tiny
        factor, _ = torch.linalg.cholesky_ex(system)
        solution = torch.cholesky_solve(right, factor)[:, :, 0].nan_to_num(0, 0, 0)
        r = first + (basis @ solution[:, rank:, None])[:, :, 0] if free else first
        return solution[:, :rank], r


def nearer_states(values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The nearer of two states of each entry, 1 or 0, and what is left.

    Args:
        values: entries of signals, ``(signals, units)``.
        targets: their values where the units are active, ``(signals, units)``.
    """
    active = ((values - targets).abs() < values.abs()).to(values)
    return active, values - active * targets


def free_residuals(classes: int, labels: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Residuals of an even softmax, -1 at the label, and a basis of their changes.

    Args:
        classes: number of classes.
        labels: ``(starts,)``.
        kind: type of the numbers.

    Returns:
        ``(starts, classes)`` and ``(starts, classes, classes - 2)``.
    """
    inner = torch.eye(classes - 1, dtype=torch.float64) - 1 / (classes - 1)
    changes = torch.linalg.qr(inner).Q[:, : classes - 2]
    first = torch.full((len(labels), classes), 1 / (classes - 1), dtype=torch.float64)
    first.scatter_(1, labels[:, None], -1)
    basis = torch.zeros(len(labels), classes, classes - 2, dtype=torch.float64)
    for label in labels.unique().tolist():
        others = [at for at in range(classes) if at != label]
        own = torch.zeros(classes, classes - 2, dtype=torch.float64)
        own[others] = changes
        basis[labels == label] = own
    return first.to(kind), basis.to(kind)
