"""Cells on this machine are tested in test_schedule.py; here, those on Ray."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from fedleak.sweep import launch_on_ray, processes
from fedleak.sweep.folder import acquire_lock, owner, stop_orphan
from fedleak.sweep.processes import LOST, failure_reason
from tests.sweep.sweeps import NAMES, Watcher, alive, assert_whole, states, sweep


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (-9, [], "The run was ended by SIGKILL, as happens when memory runs out."),
        (-11, ["x"], "The run was ended by SIGSEGV."),
        (LOST, [], "The Ray worker in which the run was has died, as often as it was tried."),
        (0, ["x"], "The run ended without being complete."),
        (3, [], "The run ended with code 3."),
        (1, ["Traceback", "RuntimeError: boom"], "RuntimeError: boom"),
    ],
)
def test_reason_why_a_cell_failed(code, log, message):
    assert failure_reason(code, log) == message


def workers() -> list[psutil.Process]:
    """Ray's workers that run a cell."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("run_process" in part for part in process.cmdline())
    ]


def test_a_killed_worker_costs_no_result_and_an_interrupt_stops_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    output, killed = tmp_path / "out", []

    def kill(progress) -> bool:
        if progress.victims >= 2 and not killed:
            worker = workers()[0]
            killed.append(worker.pid)
            worker.send_signal(signal.SIGKILL)
        # Once another worker goes on with the cell, both are interrupted.
        return len([event for event in watcher.events if event[0] == "start"]) == 3

    watcher = Watcher(on_progress=kill)
    flags = {"fake_settings": {"hold": 1, "children": True}, "processes": 2}
    with launch_on_ray(2, None) as launch:
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, watcher, launch=launch, **flags)
        started = [event[1] for event in watcher.events[1:3]]
        assert watcher.events[3][0] == "start"
        assert watcher.events[3][1] in started
        for name in NAMES[:2]:
            pids = json.loads((output / "cells" / name / "pids.json").read_text())
            assert not any(alive(pid) for pid in pids)
        (output / "cells" / "go").touch()
        summary = sweep(tmp_path, launch=launch, resume=True, **flags)
    assert summary["status"] == "complete"
    assert set(states(summary).values()) == {"complete"}
    assert_whole(output)


def test_a_lock_held_on_another_machine_is_waited_for(tmp_path, monkeypatch):
    """The id of a process says nothing on another machine, where it may be somebody else's."""
    path = tmp_path / "cell"
    lock = acquire_lock(path)
    lock.write(owner(os.getpid()).replace(" ", " another-"))
    lock.flush()
    signalled = []
    monkeypatch.setattr(os, "kill", lambda *args: signalled.append(args))
    timer = threading.Timer(0.2, lock.close)
    timer.start()
    begun = time.monotonic()
    stop_orphan(path)
    assert time.monotonic() - begun > 0.1
    assert not signalled
    assert not path.exists()
