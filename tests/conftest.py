"""What every test runs under: one thread, no telemetry, and real data where there is some."""

import os

# Set before Flower or Ray is imported anywhere: no test tells anybody about itself.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Files that run side by side have a share of the cores each, as the runs of a sweep have: else
# every simulation would start as many workers as there are cores, longer than what they do takes.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Time limits of single examples fail on a machine that is busy with something else.
settings.register_profile("fedleak", deadline=None, max_examples=50)
settings.load_profile("fedleak")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-folder",
        default=os.environ.get("FEDLEAK_DATA"),
        help="folder with victims_cifar10.npz and the like; default: FEDLEAK_DATA",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A user's module logs; outside a Trainer, as in an attack, that goes nowhere.
    config.addinivalue_line("filterwarnings", "ignore:You are trying to `self.log:UserWarning")


@pytest.fixture
def data_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of real data; a test that asks for it is skipped where there is none."""
    folder = request.config.getoption("--data-folder")
    if not folder:
        pytest.skip("no folder of real data: give --data-folder or set FEDLEAK_DATA")
    return Path(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two torch processes with two threads each on two cores are slower than with one each."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
