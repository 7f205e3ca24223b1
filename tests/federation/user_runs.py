"""Runs in which every client is a single user of a recommender, to share between tests."""

from pathlib import Path
from typing import Any

import torch

from fedleak import experiment
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.models.noise import inject
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.runs import Recorder, in_process

USERS = 100
DATA = Plugin("fedleak.data.planted.PlantedGroups", {"users": 140, "items": 60, "held_out": 20})
MODEL = {"hidden": 12, "code": 4, "dropout": 0.5}
RATE, EPSILON = 0.01, 1e-4


def config(output: Path, model: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    federation = {
        "clients": USERS, "clients_per_round": 7, "partition": "one_each", "rounds": 2,
        "strategy": "FedAdam", "strategy_options": {"eta": RATE, "tau": EPSILON, "beta_2": 0.99},
    }  # fmt: skip
    federation |= {n: changes.pop(n) for n in list(changes) if n in Federation.__annotations__}
    victims = Victims(rounds=changes.pop("rounds_attacked", None))
    return RunConfig(
        data=DATA, model=Plugin("fedleak.models.fedvae.FedVAE", MODEL | (model or {})),
        output=str(output), federation=Federation(**federation), victims=victims, **changes,
    )  # fmt: skip


def run(settings: RunConfig) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Summary, and the server's metrics by round."""
    observer = Recorder()
    with in_process():
        summary = experiment.run(settings, [observer])
    return summary, {r: metrics for _, r, metrics in observer.arguments("round_evaluated")}


def updates_of(settings: RunConfig) -> list[tuple[InterceptedUpdate, GroundTruth]]:
    folder = RunFolder(Path(settings.output))
    return [
        (InterceptedUpdate.load(path), GroundTruth.load(folder.truth() / path.name))
        for path in update_files(folder.updates())
    ]


def literal_gradient(settings: RunConfig, sent: Tensors, truth: GroundTruth) -> Tensors:
    """A user's gradient by autograd, with what the user drew."""
    model = make_model(settings, make_data(settings)).train()
    model.load_state_dict(sent)
    with inject(model, truth.noise):
        loss = model.batch_loss((truth.inputs, truth.labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
