"""Many clients on a few SuperNodes."""

from pathlib import Path
from unittest import mock

import pytest

from fedleak import experiment
from tests.federation.runs import (
    Recorder,
    nothing_left_running,
)
from tests.federation.user_runs import USERS, config, run


def test_a_few_supernodes_give_the_same_results_as_one_for_each_client(tmp_path: Path) -> None:
    metrics = []
    for count in (5, USERS):
        settings = config(tmp_path / str(count))
        few = {"SUPERNODES_PER_WORKER": count, "available_cores": lambda: 1}
        with mock.patch.multiple("fedleak.federation.engine.virtual_clients", **few):
            metrics.append(run(settings)[1])
    assert metrics[0] == metrics[1]
    assert list(metrics[0]) == [0, 1, 2]


@pytest.mark.slow
def test_ray_does_as_one_process(tmp_path: Path) -> None:
    alone = run(config(tmp_path / "alone"))[1]
    observer = Recorder()
    with nothing_left_running():
        experiment.run(config(tmp_path / "ray"), [observer])
    found = {r: metrics for _, r, metrics in observer.arguments("round_evaluated")}
    assert found == alone
