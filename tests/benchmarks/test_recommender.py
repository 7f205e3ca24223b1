"""The benchmarks of the recommender in small. No time is asserted."""

import pytest

from benchmarks.measure import median
from benchmarks.recommender import (
    fedvae_attack_speedup,
    fedvae_round_peak_ratio,
    fedvae_round_ratio,
    fedvae_together_speedup,
    fedvae_users_peak_ratio,
)
from tests.federation.fakes import run_in_process


def test_one_user_is_compared_with_one_user():
    alone = fedvae_attack_speedup(iterations=20, repetitions=1, warm_up=1, small=True)
    assert alone.setting["users"] == 1
    assert set(alone.details) == {"plain_seconds", "engine_seconds"}
    together = fedvae_together_speedup(iterations=20, repetitions=1, users=3, whole=20, small=True)
    assert together.setting["users"] == 3
    assert {"one_by_one_seconds", "together_seconds", "whole_attack_f1"} <= set(together.details)
    assert "150 made-up users" in alone.setting["data"]


def test_a_round_and_its_peak_are_of_the_same_federation(monkeypatch):
    monkeypatch.setattr("fedleak.federation.engine.simulation.run_on_ray", run_in_process)
    seconds = fedvae_round_ratio(users=4, small=True, repetitions=2)
    assert seconds.value == pytest.approx(median(seconds.samples))
    assert len(seconds.samples) == 2
    assert seconds.details["federation_seconds"] > 0 < seconds.details["plain_seconds"]
    peak = fedvae_round_peak_ratio(users=4, small=True, repetitions=2)
    assert peak.value == peak.details["federation_gb"] / peak.details["plain_gb"]
    assert peak.setting == seconds.setting
    users = fedvae_users_peak_ratio(few=60, times=2, users=4, repetitions=1)
    assert 0 < users.value < 2
    assert users.setting["users_in_all"] == [60, 120]
