import os
import signal
from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.federation.engine.ray_tasks import WorkerLost, ray_tasks


def test_tasks(tmp_path):
    # Closures, so that workers, which die here, import neither this module nor what it imports.
    def double(number: int) -> int:
        if number < 0:
            raise ValueError("below 0")
        return 2 * number

    def die(path: Path) -> str:
        """Dies the first time that it runs."""
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    with ray_tasks(workers=2) as tasks:
        running = [tasks.start(double, number) for number in (1, 2, 3, -1)]
        assert [task.result() for task in running[:3]] == [2, 4, 6]
        assert not any(task.lost for task in running)
        assert all(task.ended() for task in running)
        with pytest.raises(ValueError, match="below 0"):
            running[3].result()

        assert tasks.start(die, tmp_path / "one", retries=1).result() == "alive"
        lost = tasks.start(die, tmp_path / "two")
        assert lost.lost
        with pytest.raises(WorkerLost):
            lost.result()

        with pytest.raises(BadInput, match="Expected a Ray cluster with at least 99 CPUs, got one"):
            tasks.start(double, 1, cpus=99)


def test_no_cluster_at_the_address():
    with (
        pytest.raises(BadInput, match="Expected a Ray cluster at `ray_address`"),
        ray_tasks(workers=1, ray_address="127.0.0.1:9"),
    ):
        pass
