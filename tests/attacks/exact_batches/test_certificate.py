"""The certificate's equations on true samples and on those that come near."""

import torch

from fedleak.attacks.exact_batches.certificate import Tolerances, agreement
from tests.attacks.exact_batches.batches import make_batch

STRICT = Tolerances.of(2**-53, rounded=False)


def agreement_of(batch, inputs: torch.Tensor, labels: torch.Tensor):
    network, left = batch.network, batch.remainder
    trace = network.trace(inputs)
    signals = network.signals(trace.masks, network.residuals(trace.softmax, labels))
    return agreement(left.factors(0), signals[0], network.extended(0, inputs))


def test_true_samples_agree_to_rounding() -> None:
    batch = make_batch()
    found = batch.samples(list(range(6)))
    agrees = agreement_of(batch, found.inputs, found.labels)
    assert bool(agrees.holds(STRICT).all())
    for error in (agrees.columns, agrees.rows, agrees.pairing):
        assert float(error.max()) < 1e-9
    active = int((batch.gradient["1.weight"].abs().amax(dim=1) > 0).sum())
    assert agrees.spare == active - 6 > 20


def test_a_wrong_label_a_mixture_and_a_stranger_do_not() -> None:
    batch = make_batch()
    found = batch.samples(list(range(6)))
    wrong = (found.labels + 1) % 5
    assert not bool(agreement_of(batch, found.inputs, wrong).holds(STRICT).any())
    mixed = 0.9 * found.inputs + 0.1 * found.inputs.roll(1, 0)
    assert not bool(agreement_of(batch, mixed, found.labels).holds(STRICT).any())
    other = make_batch(seed=1).samples([0, 1])
    assert not bool(agreement_of(batch, other.inputs, other.labels).holds(STRICT).any())


def test_without_spare_equations_nothing_is_certified() -> None:
    batch = make_batch((64, 7, 5), 5)
    found = batch.samples(list(range(5)))
    agrees = agreement_of(batch, found.inputs, found.labels)
    assert agrees.spare < 4
    assert not bool(agrees.holds(STRICT).any())
