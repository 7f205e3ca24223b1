"""The residuals that the client itself computed, from rows that hold found samples alone."""

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.remainder import Remainder

# A row holds found samples alone if what is left of it, off their inputs, is below this many
# standard deviations of its rounding.
CLOSED = 4.0
# Equations for each unknown, at least.
EQUATIONS = 2
# Largest relative change of a residual.
LARGEST = 0.05


def fit_residuals(remainder: Remainder) -> None:
    """Fit the found samples' residuals to the gradient.

    Where logits are large, the client's softmax differs from the one computed here by much more
    than the rounding of the gradient, and what the subtraction leaves would hide weak samples. A
    row in which found samples alone are active determines their signals in it; these are linear in
    the residuals.

    Args:
        remainder: its samples' residuals are replaced.
    """
    network, found = remainder.network, remainder.found
    if len(found) == 0:
        return
    entering, matrix = remainder.entering(0), remainder.matrix(0)
    inverse = torch.linalg.pinv(entering, rtol=1e-9)
    coefficients = matrix @ inverse
    rest = (matrix - coefficients @ entering).square().mean(dim=1).sqrt()
    rounding = remainder.rounding(0)
    closed = (rest <= CLOSED * rounding) & (rounding > 0)
    residuals = found.residuals.clone()
    units = torch.eye(network.classes, dtype=torch.float64)
    # Residuals add up to 0.
    basis = torch.linalg.qr(units - 1 / network.classes).Q[:, :-1]
    for at in range(len(found)):
        masks = [mask[at : at + 1] for mask in remainder.masks]
        rows = closed & (masks[0][0] > 0)
        if int(rows.sum()) < EQUATIONS * network.classes:
            continue
        weight = 1 / rounding[rows]
        by_unit = network.signals([m.expand(network.classes, -1) for m in masks], units)[0]
        system = (by_unit[:, rows].T @ basis) * weight[:, None]
        moved = torch.linalg.lstsq(system, (coefficients[rows, at] * weight)[:, None]).solution
        change = basis @ moved[:, 0]
        if bool(change.isfinite().all()) and _is_small(change, residuals[at]):
            residuals[at] += change
    remainder.set_residuals(residuals)


def _is_small(change: Tensor, residual: Tensor) -> bool:
    return bool(change.norm() <= LARGEST * residual.norm())
