"""What a mechanism's settings come to, against Flower's own code and by hand."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.supercore.differential_privacy import compute_adaptive_noise_params, compute_stdv

from fedleak.defenses import DPSGD, Clipping, NoisyGradients, Outgoing
from fedleak.errors import BadInput
from fedleak.privacy import (
    Mechanism,
    adaptive_clipping,
    dp_sgd,
    fixed_clipping,
    local_dp_mod,
    noise,
)
from fedleak.privacy.mechanisms import MECHANISMS
from tests.cases import MODELS, case_victim

DECLARED = {"clipping_norm": 1.0, "sensitivity": 1e-4, "epsilon": 10.0, "delta": 1e-5}


def test_local_dp_mod_adds_the_noise_that_flower_adds() -> None:
    start = ArrayRecord({"w": torch.zeros(3)})
    moved = ArrayRecord({"w": torch.tensor([3.0, 0.0, 4.0])})
    message = mock.Mock(content=RecordDict({"arrays": start}))
    reply = mock.Mock(content=RecordDict({"arrays": moved}))
    reply.has_error.return_value = False
    drawn = np.random.default_rng(0).normal
    with mock.patch("numpy.random.normal", side_effect=drawn) as normal:
        LocalDpMod(**DECLARED)(message, mock.Mock(), lambda *_: reply)
    mechanism = local_dp_mod(**DECLARED)
    assert [call.args[1] for call in normal.call_args_list] == [mechanism.standard_deviation]
    # The change of norm 5 was clipped to the bound.
    sent = reply.content["arrays"].to_numpy_ndarrays()[0]
    assert np.linalg.norm(sent) == pytest.approx(mechanism.bound, abs=1e-3)
    assert mechanism.sensitivity == 2
    assert local_dp_mod(**DECLARED, adjacency="remove").sensitivity == 1
    assert (mechanism.unit, mechanism.trust) == ("client", "local")


def test_central_noise_is_that_of_flower() -> None:
    fixed = fixed_clipping(noise_multiplier=0.7, clipping_norm=0.5, clients=8, population=32)
    assert fixed.standard_deviation == pytest.approx(compute_stdv(0.7, 0.5, 8))
    assert fixed.noise_multiplier() == pytest.approx(0.7)
    assert fixed.sampling_rate == 0.25
    assert fixed.trust == "central"
    adaptive = adaptive_clipping(noise_multiplier=0.7, clients=80, initial_clipping_norm=0.2)
    count, raised = compute_adaptive_noise_params(0.7, 80, None)
    assert adaptive.count_deviation == count == 4
    assert adaptive.standard_deviation == pytest.approx(compute_stdv(raised, 0.2, 80))


def test_a_client_that_weighs_more_is_hidden_less() -> None:
    settings = {"noise_multiplier": 1.0, "clipping_norm": 0.5, "clients": 4}
    assert fixed_clipping(**settings).noise_multiplier() == pytest.approx(1)
    heavy = fixed_clipping(**settings, largest_weight=0.5)
    assert heavy.noise_multiplier() == pytest.approx(0.5)
    assert len(heavy.notes) < len(fixed_clipping(**settings).notes)


def test_the_number_of_clipped_clients_costs_more_than_flower_takes_it_to() -> None:
    # With votes of -1/2 and 1/2 the noise multiplier would be 0.7.
    mechanism = adaptive_clipping(noise_multiplier=0.7, clients=20)
    raised = (0.7**-2 - 2.0**-2) ** -0.5
    assert mechanism.noise_multiplier() == pytest.approx((raised**-2 + 1.0) ** -0.5)
    assert mechanism.noise_multiplier() < 0.7
    halved = (raised**-2 + 0.5**2) ** -0.5
    assert halved == pytest.approx(0.7)


def test_dp_sgd_adds_the_noise_of_the_defence() -> None:
    mechanism = dp_sgd(noise_multiplier=3.0, max_norm=0.5, steps=2, sampling_rate=0.1)
    assert mechanism.noise_multiplier() == pytest.approx(3)
    assert mechanism.noise_multiplier(of_bound=True) == pytest.approx(3)
    replaced = dp_sgd(noise_multiplier=3.0, max_norm=0.5, adjacency="replace")
    assert replaced.noise_multiplier() == pytest.approx(1.5)
    assert replaced.noise_multiplier(of_bound=True) == pytest.approx(3)
    victim = case_victim(MODELS[0], precode=False)
    defence = DPSGD(max_norm=0.5, noise_multiplier=3.0)
    batch = victim.truth.inputs, victim.truth.labels
    outgoing = Outgoing(victim.update.received, victim.knowledge.model, batch)
    sent = defence.protect(outgoing, generator=torch.Generator().manual_seed(0), memory={})
    entries = torch.cat([value.flatten() for value in sent.values()])
    # The clipped gradient's norm is 0.5, spread over all entries.
    assert float(entries.std()) == pytest.approx(mechanism.standard_deviation, rel=0.05)


def test_noise_behind_clipping_is_that_of_the_defences() -> None:
    mechanism = noise(sigma=0.2, max_norm=0.5)
    assert mechanism.noise_multiplier() == pytest.approx(0.2 / (2 * 0.5))
    laplace = noise(sigma=0.2, max_norm=0.5, distribution="laplace", entries=400)
    assert laplace.bound == pytest.approx(0.5 * 20)
    update = {"w": torch.ones(20, 20)}
    generator = torch.Generator().manual_seed(0)
    outgoing = mock.Mock(update=update)
    clipped = Clipping(max_norm=0.5).protect(outgoing, generator=generator, memory={})
    assert float(clipped["w"].abs().sum()) == pytest.approx(laplace.bound)  # the worst case
    outgoing = mock.Mock(update={"w": torch.zeros(20000)})
    found = NoisyGradients(sigma=0.2, distribution="laplace").protect(
        outgoing, generator=generator, memory={}
    )["w"]
    # The mean absolute value of a Laplace variable is its parameter.
    scale = laplace.noise_multiplier() * laplace.sensitivity
    assert float(found.abs().mean()) == pytest.approx(scale, rel=0.03)
    assert float(found.std()) == pytest.approx(laplace.standard_deviation, rel=0.03)


@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        (noise(sigma=0.1), "nothing bounds the contribution"),
        (noise(sigma=0.1, max_norm=1.0, relative=True), "scaled by the update's own norm"),
        (noise(sigma=0.0, max_norm=1.0), "no noise is added"),
        (local_dp_mod(**{**DECLARED, "sensitivity": 0.0}), "no noise is added"),
        (dp_sgd(noise_multiplier=0.0), "no noise is added"),
        (adaptive_clipping(noise_multiplier=0.0, clients=3), "no noise is added"),
    ],
)
def test_where_no_epsilon_holds(mechanism: Mechanism, reason: str) -> None:
    assert reason in mechanism.infinite
    assert mechanism.noise_multiplier() == 0
    assert math.isinf(noise(sigma=0.1).sensitivity)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("local_dp_mod", {**DECLARED, "clipping_norm": 0.0}, "`clipping_norm` of local_dp_mod to"),
        ("local_dp_mod", {**DECLARED, "sensitivity": -1.0}, "`sensitivity` .* to be at least 0"),
        ("local_dp_mod", {**DECLARED, "epsilon": 0.0}, "`epsilon` .* to be positive, got 0.0"),
        ("local_dp_mod", {**DECLARED, "delta": 1.0}, "`delta` .* above 0 and below 1, got 1.0"),
        ("dp_sgd", {"noise_multiplier": math.nan}, "`noise_multiplier` .* at least 0, got nan"),
        ("dp_sgd", {"noise_multiplier": 1.0, "steps": 0}, "`steps` .* a whole number from 1 on"),
        ("dp_sgd", {"noise_multiplier": 1.0, "sampling_rate": 0.0}, "`sampling_rate` of dp_sgd"),
        ("dp_sgd", {"noise_multiplier": 1.0, "sampling": "poison"}, "sampling `poison`.*`poisson`"),
        ("dp_sgd", {"noise_multiplier": 1.0, "adjacency": "swap"}, "adjacency `swap`: expected"),
        (
            "fixed_clipping",
            {"noise_multiplier": 1.0, "clipping_norm": 1.0, "clients": 4, "population": 3},
            "`population` of fixed_clipping to be at least the 4 clients",
        ),
        (
            "fixed_clipping",
            {"noise_multiplier": 1.0, "clipping_norm": 1.0, "clients": 4, "largest_weight": 0.1},
            "`largest_weight` of fixed_clipping to be from 0.25 to 1, got 0.1",
        ),
        (
            "adaptive_clipping",
            {"noise_multiplier": 1.0, "clients": 10},
            "`noise_multiplier` of adaptive_clipping to be below 1, a tenth of the 10 clients",
        ),
        (
            "adaptive_clipping",
            {"noise_multiplier": 1.0, "clients": 10, "clipped_count_stddev": 0.5},
            "`clipped_count_stddev` of adaptive_clipping to be above half the noise multiplier",
        ),
        ("noise", {"sigma": 1.0, "max_norm": 1.0, "distribution": "laplace"}, "`entries` of noise"),
        ("noise", {"sigma": 1.0, "entries": 5}, "together with laplace noise .*, got 5"),
        ("noise", {"sigma": 1.0, "max_norm": math.inf}, "`max_norm` of noise to be positive"),
    ],
)
def test_settings_out_of_their_range_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        MECHANISMS[name](**settings)
