import os

import pytest
import torch

from fedleak.runtime import threads
from fedleak.runtime.threads import available_cores, cap_threads


@pytest.mark.parametrize(
    ("share", "expected"), [(0.25, 1), (1, 1), (1.9, 1), (2, 2), (3.5, 3), (64, 4), (0, 1)]
)
def test_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, share: float, expected: int) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    cap_threads(share)
    assert torch.get_num_threads() == expected


def test_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    # The cores that the process may run on count, not those that the machine has.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("share", "expected"), [("1", 1), ("2", 2), ("9", 3), ("0", 3), ("", 3), ("many", 3)]
)
def test_share_set_by_the_parent_process(
    monkeypatch: pytest.MonkeyPatch, share: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", share)
    assert available_cores() == expected
