"""Flower's mods and strategies as mechanisms, against the noise that Flower itself computes."""

import pytest
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.server.strategy import (
    DifferentialPrivacyServerSideFixedClipping as OlderFixedClipping,
)
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
)
from flwr.supercore.differential_privacy import compute_stdv

from fedleak.federation.clipping_mods import AdaptiveClipping, FixedClipping
from fedleak.federation.mechanisms import (
    central_strategy,
    declared_multiplier,
    is_of_flower,
    of_mod,
    of_strategy,
)
from fedleak.federation.strategy import MaliciousStrategy


def test_local_dp_mod() -> None:
    mechanism = of_mod(LocalDpMod(1.0, 1e-4, 10.0, 1e-5))
    assert mechanism is not None
    assert mechanism.sensitivity == 2
    assert mechanism.standard_deviation == pytest.approx(4.845e-5, rel=1e-3)
    assert of_mod(fixedclipping_mod) is None
    # Flower takes an epsilon of 0.
    nothing = of_mod(LocalDpMod(1.0, 1e-4, 0.0, 1e-5))
    assert nothing is not None
    assert "gives no noise that can be computed" in nothing.infinite


def test_a_class_of_another_package_is_none_of_flower() -> None:
    assert is_of_flower(LocalDpMod(1.0, 1.0, 1.0, 0.1), "LocalDpMod")
    own = type("LocalDpMod", (), {})()
    assert not is_of_flower(own, "LocalDpMod")
    assert of_mod(own) is None


def test_fixed_clipping_of_either_api() -> None:
    for strategy in (
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 2.0, 0.3, 5),
        MaliciousStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 2.0, 0.3, 5)),
        OlderFixedClipping(OlderFedAvg(), 2.0, 0.3, 5),
    ):
        mechanism = of_strategy(strategy)
        assert mechanism is not None
        assert mechanism.standard_deviation == compute_stdv(2.0, 0.3, 5)
        assert (mechanism.bound, mechanism.trust) == (pytest.approx(0.3 / 5), "central")
        heavier = of_strategy(strategy, largest_weight=0.5)
        assert heavier is not None
        assert heavier.bound == pytest.approx(0.3 * 0.5)
    assert of_strategy(FedAvg()) is None
    assert central_strategy(FedAvg()) is None


def test_adaptive_clipping_is_raised_as_flower_raises_it() -> None:
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.2, 10)
    assert strategy.noise_multiplier > 0.2
    given = declared_multiplier(strategy.noise_multiplier, strategy.clipped_count_stddev)
    assert given == pytest.approx(0.2)
    assert declared_multiplier(0.0, 0.0) == 0
    mechanism = of_strategy(strategy)
    assert mechanism is not None
    noise = compute_stdv(strategy.noise_multiplier, strategy.clipping_norm, 10)
    assert mechanism.standard_deviation == pytest.approx(noise)
    assert mechanism.count_deviation == 0.5


@pytest.mark.parametrize("named", [True, False])
def test_a_strategy_that_leaves_the_clipping_to_its_clients_needs_their_mod(named: bool) -> None:
    fixed = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 2.0, 0.3, 5)
    adaptive = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.2, 10)
    mods = (
        [FixedClipping(), AdaptiveClipping()]
        if named
        else [fixedclipping_mod, adaptiveclipping_mod]
    )
    for strategy, own, other in ((fixed, *mods), (adaptive, *reversed(mods))):
        good, bad = of_strategy(strategy, mods=[own]), of_strategy(strategy, mods=[other])
        assert good is not None
        assert bad is not None
        assert good.infinite == ""
        assert "without which nothing clips" in bad.infinite


def test_noise_made_for_a_mean_is_worth_nothing_on_another_result() -> None:
    mechanism = of_strategy(DifferentialPrivacyServerSideFixedClipping(FedAdam(), 2.0, 0.3, 5))
    assert mechanism is not None
    assert mechanism.infinite == "the noise is made for a mean of changes, and FedAdam is none"
    weighted = FedAvg(weighted_by_key="train_loss")
    mechanism = of_strategy(DifferentialPrivacyServerSideFixedClipping(weighted, 2.0, 0.3, 5))
    assert mechanism is not None
    assert mechanism.infinite
