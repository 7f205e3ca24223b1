"""Helpers for small runs: data in a file, configurations, observers, a check for processes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest

from fedleak import experiment
from fedleak.build import client_samples, make_data
from fedleak.config import Federation, RunConfig, Victims
from fedleak.registry import Plugin
from fedleak.reporting import Figures, TensorBoard
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer
from tests.cases import pictures
from tests.federation.fakes import run_in_process

CLASSES, SIDE = 4, 8


def tiny_data(folder: Path, *, samples: int = 64, channels: int = 1) -> Path:
    """A file of training images and a fourth as many test images, equally many of each class."""
    arrays = {}
    for part, count in (("train", samples), ("test", samples // 4)):
        labels = np.arange(count) % CLASSES
        images = 0.5 * pictures(count, (channels, SIDE, SIDE), seed=len(part)).numpy()
        images += 0.5 * labels.reshape(-1, 1, 1, 1) / CLASSES
        arrays[f"{part}_images"] = (images * 255).astype(np.uint8)
        arrays[f"{part}_labels"] = labels
    path = folder / "tiny.npz"
    np.savez(path, **arrays)
    return path


def tiny_config(data: Path, output: Path, **changes: Any) -> RunConfig:
    """A run of four clients on a file of ``tiny_data``.

    Args:
        data: the file.
        output: the run's folder.
        changes: fields of RunConfig, Federation or Victims; ``model_args`` and ``path`` for the
            model.
    """
    model = Plugin(
        changes.pop("path", "fedleak.models.mlp.SMLP"), changes.pop("model_args", {"width": 12})
    )
    federation = {"clients": 4, "rounds": 1, "batch_size": 2}
    federation |= {n: changes.pop(n) for n in list(changes) if n in Federation.__annotations__}
    victims = {n: changes.pop(n) for n in ("labels", "when", "aggregated") if n in changes}
    victims |= {
        n: changes.pop(f"victim_{n}") for n in ("clients", "rounds") if f"victim_{n}" in changes
    }
    return RunConfig(
        data=Plugin("fedleak.data.npz.Npz", {"path": str(data)}),
        model=model,
        output=str(output),
        federation=Federation(**federation),
        victims=Victims(**victims),
        **changes,
    )


def clients_by_class(config: RunConfig) -> dict[int, int]:
    """Class -> client that has all its samples, where every client has one class of its own."""
    data = make_data(config)
    parts = client_samples(config, data)
    return {int(data.train_set.labels[part[0]]): client for client, part in enumerate(parts)}


def attack_plugin(name: str, **settings: Any) -> Plugin:
    """One of fedleak's own attacks, quick by default."""
    path = {"iga": "fedleak.attacks.iga.IGA", "nra": "fedleak.attacks.nra.NRA"}[name]
    return Plugin(path, {"iterations": 10} | settings)


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """Within the block, clients run in this process, one after the other, and not on Ray."""
    with mock.patch("fedleak.federation.engine.simulation.run_on_ray", run_in_process):
        yield


@dataclass(frozen=True)
class Finished:
    """A complete run that many tests read and none changes."""

    config: RunConfig
    folder: RunFolder
    summary: dict[str, Any]
    events: "Recorder"


def finished_run(factory: pytest.TempPathFactory) -> Finished:
    """Two rounds of four clients, with and without PRECODE, attacked and reported; made once."""
    if not _finished:
        folder = factory.mktemp("finished")
        config = tiny_config(
            tiny_data(folder), folder / "run", rounds=2, baseline=True,
            model_args={"width": 12, "precode": {"bottleneck_size": 6, "beta": 0.001}},
            attacks=(attack_plugin("iga"), attack_plugin("nra")),
        )  # fmt: skip
        mean, std = (data := make_data(config)).mean, data.std
        events = Recorder()
        observers = [events, TensorBoard(config, mean, std), Figures(config, mean, std)]
        with in_process():
            summary = experiment.run(config, observers)
        _finished.append(Finished(config, RunFolder(Path(config.output)), summary, events))
    return _finished[0]


_finished: list[Finished] = []


class Recorder(Observer):
    """Notes the events of a run, and calls a function at one of them."""

    def __init__(self, at: str = "", action: Callable[..., None] | None = None) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        for name in [name for name in vars(Observer) if not name.startswith("_")]:
            setattr(self, name, self._note(name, action if name == at else None))

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for event, arguments in self.events if event == name]

    def _note(self, name: str, action: Callable[..., None] | None) -> Callable[..., None]:
        def note(*arguments: Any) -> None:
            self.events.append((name, arguments))
            if action is not None:
                action(*arguments)

        return note


def interrupt(*_: object) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def without_seconds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of results.csv without times, comparable (NaN as text)."""
    return [{n: repr(v) for n, v in row.items() if n != "seconds"} for row in rows]


@contextlib.contextmanager
def nothing_left_running() -> Iterator[None]:
    """Fails if a process that was started in the block outlives it; ends such a process."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    alive = [c for c in alive if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    described = [" ".join(child.cmdline())[:80] for child in alive]
    for child in alive:
        child.kill()
    assert not described, f"still running: {described}"
