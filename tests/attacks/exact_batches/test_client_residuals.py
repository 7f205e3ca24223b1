"""Residuals that are fitted to the gradient, against those that made it."""

import torch

from fedleak.attacks.exact_batches.client_residuals import fit_residuals
from tests.attacks.exact_batches.batches import make_batch


def test_the_clients_errors_are_undone() -> None:
    """The gradient of another head's rounding: residuals that differ as those of other logits."""
    batch = make_batch((64, 60, 5), 4, std=0.5, kind=torch.float32)
    network, left, found = batch.network, batch.remainder, batch.samples([0, 1, 2, 3])
    trace = network.trace(found.inputs)
    generator = torch.Generator().manual_seed(0)
    logits = trace.softmax.clamp_min(1e-30).log()
    logits = logits + 1e-6 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    own = network.residuals(logits.softmax(dim=1), found.labels)
    signals = network.signals(trace.masks, own)[0]
    left.gradients[0] = signals.T @ network.extended(0, found.inputs)
    left.add(found)
    before = float(left.matrix(0).norm())
    error = (left.found.residuals - own).norm()
    fit_residuals(left)
    assert float(left.matrix(0).norm()) < 0.1 * before
    assert float((left.found.residuals - own).norm()) < 0.1 * float(error)


def test_without_samples_nothing_happens() -> None:
    left = make_batch().remainder
    fit_residuals(left)
    assert len(left.found) == 0
