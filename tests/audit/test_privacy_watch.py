"""What watches mechanisms leaves no trace; what it sees of apps is tested in test_budgets.py."""

from types import SimpleNamespace
from typing import Any

import flwr.client.mod.localdp_mod as older
import flwr.clientapp.mod.centraldp_mods as clipping
import flwr.clientapp.mod.localdp_mod as local
import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)
from opacus.optimizers.optimizer import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler

from fedleak.audit.facts import MechanismFacts
from fedleak.audit.privacy_watch import client_mechanisms, server_mechanisms

OWNERS: list[tuple[Any, str]] = [
    (local.LocalDpMod, "__call__"), (older.LocalDpMod, "__call__"),
    (clipping, "compute_clip_model_update"), (DPOptimizer, "scale_grad"),
    (UniformWithReplacementSampler, "__iter__"),
    (DifferentialPrivacyServerSideFixedClipping, "configure_train"),
]  # fmt: skip


def test_nothing_is_left_behind_even_after_an_error() -> None:
    before = [vars(owner)[name] for owner, name in OWNERS]

    def fail() -> None:
        with client_mechanisms([]), server_mechanisms([], []):
            inside = [vars(owner)[name] for owner, name in OWNERS]
            assert all(one is not other for one, other in zip(before, inside, strict=True))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(vars(owner)[name] is one for (owner, name), one in zip(OWNERS, before, strict=True))


def test_a_strategy_is_noted_once_with_what_decides_its_epsilon() -> None:
    found: list[MechanismFacts] = []
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 2.0, 0.3, 5)
    with server_mechanisms(found, []), pytest.raises(TypeError):
        strategy.configure_train(1, None, None, None)  # type: ignore[arg-type]
    with server_mechanisms([], []), pytest.raises(TypeError):
        strategy.configure_train(2, None, None, None)  # type: ignore[arg-type]
    (facts,) = found
    assert facts.values == {
        "noise_multiplier": 2.0, "clipping_norm": 0.3, "clients": 5, "strategy": "FedAvg",
        "takes_the_mean": True, "needed_mod": "fixedclipping_mod",
    }  # fmt: skip


def test_an_error_in_looking_on_is_noted_and_goes_no_further() -> None:
    faults: list[str] = []
    broken = SimpleNamespace(step_hook=None, noise_multiplier="much", max_grad_norm=1.0)
    with client_mechanisms(faults) as seen, pytest.raises(AttributeError, match="loss_reduction"):
        DPOptimizer.scale_grad(broken)  # type: ignore[arg-type]
    assert seen.facts == ()
    assert len(faults) == 1
    assert faults[0].startswith("a mechanism is not known: ValueError")


def test_facts_are_read_as_they_were_written() -> None:
    facts = MechanismFacts("dp_sgd", (("noise_multiplier", 1.1), ("sampling_rate", None)), 5)
    plain = {"name": "dp_sgd", "settings": [["noise_multiplier", 1.1], ["sampling_rate", None]]}
    assert MechanismFacts.of(plain | {"steps": 5}) == facts
