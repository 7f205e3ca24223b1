"""Real simulations: Flower, Ray, Lightning in workers. Each takes seconds to start."""

import json
from pathlib import Path

import pytest

from fedleak import experiment
from tests.federation.runs import (
    Recorder,
    attack_plugin,
    clients_by_class,
    nothing_left_running,
    tiny_config,
    tiny_data,
)
from tests.federation.user_models import DEAF, RAISES, SLEEPS

MODULES = "tests.federation.user_models"


def test_clients_that_raise_or_never_answer_do_not_stop_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.federation.simulation.GRACE_SECONDS", 5.0)
    monkeypatch.setattr("fedleak.federation.simulation.HUNG_SECONDS", 1.0)
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", path=f"{MODULES}.Moody", model_args={},
        partition="shards", shards_per_client=1, client_timeout=2.0,
        cpus_per_client=0.25,  # so that no client waits for one that hangs
        attacks=(attack_plugin("iga"),),
    )  # fmt: skip
    by_class = clients_by_class(config)
    observer = Recorder()
    with nothing_left_running():
        summary = experiment.run(config, [observer])
    assert summary["status"] == "complete"
    assert summary["federation"] == {"rounds": 1, "clients": 4, "failures": 3, "accuracy": None}
    reasons = {client: reason for _, _, client, reason in observer.arguments("client_failed")}
    assert set(reasons) == {by_class[kind] for kind in (RAISES, SLEEPS, DEAF)}
    assert "the camera is broken" in reasons[by_class[RAISES]]
    assert "the client did not finish within 2 s" in reasons[by_class[SLEEPS]]
    assert reasons[by_class[DEAF]] == "it did not answer in time"
    (attacked,) = observer.arguments("victim_attacked")
    assert attacked[2].client == by_class[3]
    on_disk = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert on_disk == summary
