"""The residuals that the client itself computed, from rows that hold found samples alone."""

import torch

from fedleak.attacks.exact_batches.remainder import Remainder

# A row holds found samples alone if what is left of it, off their inputs, is below this many
# standard deviations of its rounding.
CLOSED = 8.0
# Relative size of singular values of the found inputs that count.
SINGULAR = 1e-9


def fit_residuals(remainder: Remainder) -> None:
    """Fit the found samples' residuals to the gradient.

    Where logits are large, the client's softmax differs from the one computed here by much more
    than the rounding of the gradient, and what the subtraction leaves would hide weak samples. A
    row in which found samples alone are active determines their signals in it; these are linear in
    the errors of the logits, whose size follows from the rounding of the head's sums: a Bayesian
    linear regression for each sample.

    Args:
        remainder: its samples' residuals are replaced.
    """
    network, found = remainder.network, remainder.found
    if len(found) == 0:
        return
    entering, matrix = remainder.entering(0), remainder.matrix(0)
    coefficients = matrix @ torch.linalg.pinv(entering, rtol=SINGULAR)
    rest = (matrix - coefficients @ entering).square().mean(dim=1).sqrt()
    rounding = remainder.rounding(0)
    closed = (rest <= CLOSED * rounding) & (rounding > 0)
    trace = network.trace(found.inputs)
    # The error of a logit: a sum of many products, each rounded.
    sizes = (trace.inputs[-1].abs() @ network.weights[-1].abs().T).amax(dim=1)
    residuals = found.residuals.clone()
    units = torch.eye(network.classes, dtype=torch.float64)
    for at in range(len(found)):
        masks = [mask[at : at + 1].expand(network.classes, -1) for mask in trace.masks]
        rows = closed & (masks[0][0] > 0)
        deviation = network.unit * sizes[at]
        if not bool(rows.any()):
            continue
        softmax = trace.softmax[at]
        by_logit = (softmax.diag() - torch.outer(softmax, softmax)) * float(found.counts[at])
        by_unit = network.signals(masks, units)[0][:, rows]
        # Errors of the logits in units of their deviation, and rows in units of their rounding.
        system = (by_unit.T @ by_logit) * deviation / rounding[rows, None]
        right = (coefficients[rows, at] / rounding[rows])[:, None]
        inner = torch.cat([system, units])
        padded = torch.cat([right, right.new_zeros(network.classes, 1)])
        moved = torch.linalg.lstsq(inner, padded).solution[:, 0]
        if bool(moved.isfinite().all()):
            residuals[at] += by_logit @ (moved * deviation)
    remainder.set_residuals(residuals)
