"""The ledger: sums by client, round and run, and the sentences on them."""

import math

import pytest

from fedleak.errors import BadInput
from fedleak.privacy import Ledger, compose, dp_sgd, findings, fixed_clipping, local_dp_mod, noise
from fedleak.privacy.ledger import spent_by

DELTA = 1e-5
IN_USE = local_dp_mod(clipping_norm=1.0, sensitivity=1e-4, epsilon=10.0, delta=DELTA)


def test_each_client_pays_for_its_own_rounds() -> None:
    mechanism = noise(sigma=4.0, max_norm=0.5)
    ledger = Ledger(delta=DELTA)
    ledger.record(mechanism, clients=[0, 1], round=1)
    ledger.record(mechanism, clients=[0], round=2)
    ledger.record(mechanism, clients=[0], round=2)
    alone = [compose({mechanism: number}, DELTA).epsilon for number in (1, 2, 3)]
    assert [(row.client, row.round, row.epsilon) for row in ledger.rows()] == [
        (0, 1, alone[0]), (0, 2, alone[1]), (1, 1, alone[0]),
    ]  # fmt: skip
    (first,), (second,) = ledger.of_client(0), ledger.of_client(1)
    assert (first.epsilon, first.rounds, first.round) == (alone[2], 2, None)
    assert (second.epsilon, second.rounds) == (alone[0], 1)
    # A run is worth what the client of most releases has spent.
    (total,) = ledger.total()
    assert (total.epsilon, total.rounds, total.client) == (alone[2], 2, None)
    assert ledger.of_client(7) == []


def test_what_differs_in_unit_or_trust_is_added_up_apart() -> None:
    ledger = Ledger(delta=DELTA)
    sample = dp_sgd(noise_multiplier=1.0)
    central = fixed_clipping(noise_multiplier=2.0, clipping_norm=1.0, clients=2)
    for round in (1, 2):
        ledger.record(sample, clients=[0], round=round)
        ledger.record(central, clients=[0, 1], round=round)
    found = {(spent.unit, spent.trust): spent for spent in ledger.total()}
    assert set(found) == {("sample", "local"), ("client", "central")}
    assert found["sample", "local"].epsilon == compose({sample: 2}, DELTA).epsilon
    assert found["client", "central"].epsilon == compose({central: 2}, DELTA).epsilon
    assert found["client", "central"].adjacency == "remove"


def test_declared_epsilons_add_up() -> None:
    spent = spent_by(IN_USE, 20, DELTA)
    assert spent.declared_epsilon == pytest.approx(200)
    assert spent.declared_delta == pytest.approx(2e-4)
    ledger = Ledger(delta=DELTA)
    ledger.record(IN_USE, clients=[3], round=1)
    ledger.record(noise(sigma=1.0, max_norm=1.0), clients=[3], round=1)
    (both,) = ledger.of_round(3, 1)
    assert both.declared_epsilon is None


def test_the_setting_in_use_is_flagged() -> None:
    first, second, *_ = findings(IN_USE, 20, DELTA)
    assert first == (
        "The declared epsilon 10 does not hold: the noise of one round is worth 8.52e+08. "
        "Replacing a contribution by another moves what is sent by up to 2, and the noise has a "
        "standard deviation of 4.84e-05; epsilon 10 takes noise of standard deviation 1."
    )
    assert second.startswith("20 rounds together are worth epsilon 1.7e+10 at delta 1e-05; the ")


def test_a_declared_epsilon_that_holds_is_said_to_hold() -> None:
    honest = local_dp_mod(clipping_norm=1.0, sensitivity=2.0, epsilon=0.5, delta=DELTA)
    first, *_ = findings(honest, 1, DELTA)
    assert first.startswith("The declared epsilon 0.5 holds for one round: the noise is worth 0.3")
    removed = local_dp_mod(
        clipping_norm=1.0, sensitivity=0.1, epsilon=0.5, delta=DELTA, adjacency="remove"
    )
    assert (
        "Removing a contribution moves what is sent by up to 1," in findings(removed, 1, DELTA)[0]
    )


def test_the_noise_that_a_declared_epsilon_takes_gives_it() -> None:
    text = findings(
        local_dp_mod(clipping_norm=3.0, sensitivity=1.0, epsilon=2.0, delta=DELTA), 1, DELTA
    )[0]
    needed = float(text.rpartition("takes noise of standard deviation ")[2].rstrip("."))
    found = compose({noise(sigma=needed, max_norm=3.0): 1}, DELTA).epsilon
    assert found == pytest.approx(2, rel=0.01)


def test_what_has_no_epsilon_and_what_lowers_none_is_said() -> None:
    assert findings(noise(sigma=1.0), 3, DELTA)[0].startswith("No epsilon holds: nothing bounds")
    drawn = fixed_clipping(noise_multiplier=1.0, clipping_norm=1.0, clients=2, population=4)
    assert any(
        "sampling rate of 0.5 lowers no epsilon" in text for text in findings(drawn, 2, DELTA)
    )
    everyone = fixed_clipping(noise_multiplier=1.0, clipping_norm=1.0, clients=2)
    assert not any("sampling rate" in text for text in findings(everyone, 2, DELTA))
    ledger = Ledger(delta=DELTA)
    ledger.record(noise(sigma=1.0), clients=[0], round=1)
    assert ledger.total()[0].epsilon == math.inf


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInput, match="`delta` of a ledger to be above 0"):
        Ledger(delta=1.5)
    with pytest.raises(BadInput, match="a round from 1 on, got 0"):
        Ledger(delta=DELTA).record(IN_USE, clients=[0], round=0)
