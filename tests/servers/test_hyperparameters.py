"""The server that sets hyperparameters, and what a client that obeys sends then."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.servers import Hyperparameters
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.runs import in_process, tiny_config, tiny_data

PATH = "fedleak.servers.hyperparameters.Hyperparameters"
OBEYS = {"lr": "learning_rate", "local_epochs": "local_epochs", "batch_size": "batch_size"}


def test_it_sets_what_it_is_told_and_nothing_else() -> None:
    assert Hyperparameters().config == {"local_epochs": 1, "batch_size": 1}
    found = Hyperparameters(rate=1e-3, epochs=None, batch=None, rate_name="lr").config
    assert found == {"lr": 1e-3}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rate": 0.0}, "Expected `rate` of hyperparameters to be positive, got 0"),
        ({"rate": math.inf}, "Expected `rate` of hyperparameters to be positive, got inf"),
        ({"epochs": 0}, "Expected `epochs` of hyperparameters to be at least 1, got 0"),
        ({"batch": -1}, "Expected `batch` of hyperparameters to be at least 1, got -1"),
        ({"epochs": None, "batch": None}, "at least one of `rate`, `epochs` and `batch`"),
        ({"rate_name": "batch_size"}, "three different names in the training configuration"),
    ],
)
def test_settings_out_of_their_range(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Hyperparameters(**settings)


def run_with(tmp_path: Path, server: dict[str, Any], **changes: Any) -> RunConfig:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", protocol="fedavg", local_epochs=2,
        victim_clients=[1], server=Plugin(PATH, {"rate_name": "lr"} | server),
        **({"batch_size": 4, "obeys": OBEYS} | changes),
    )  # fmt: skip
    with in_process():
        experiment.run(config)
    return config


def test_a_run_whose_clients_ignore_it_is_refused_before_it_begins(
    tmp_path: Path,
) -> None:
    text = r"hyperparameters sets .* they ignore `batch_size`, `local_epochs`: name them in"
    with pytest.raises(BadInput, match=text):
        run_with(tmp_path, {"rate": 1e-4}, obeys={"lr": "learning_rate"})
    assert not (tmp_path / "run").exists()


def test_steps_at_a_small_rate_are_the_sum_of_gradients_at_the_sent_weights(tmp_path: Path) -> None:
    """Against autograd: 16 samples in batches of 1, one after the other, at weights that stay."""
    rate = 1e-4
    config = run_with(tmp_path, {"rate": rate, "batch": 1, "epochs": 1})
    folder = RunFolder(Path(config.output))
    update = InterceptedUpdate.load(folder.updates() / "r0001-c0001.safetensors")
    truth = GroundTruth.load(folder.truth() / "r0001-c0001.safetensors")
    assert len(truth.inputs) == update.num_examples == 16
    model = experiment.prepare(config).models[""]
    model.load_state_dict(update.sent)
    names = [name for name, _ in model.named_parameters()]
    total = 0
    for sample, label in zip(truth.inputs, truth.labels, strict=True):
        one = model.batch_loss((sample[None], label[None]))
        gradient = torch.autograd.grad(one, list(model.parameters()))
        total = total + torch.cat([part.flatten() for part in gradient]).double()
    change = torch.cat([update.change(names)[name].flatten() for name in names])
    torch.testing.assert_close(
        change, -rate * total, rtol=0, atol=1e-3 * rate * float(total.norm())
    )


def test_the_attacks_of_the_run_are_told_the_hyperparameters_that_were_sent(tmp_path: Path) -> None:
    """Of a client of one sample, two epochs at its own rate become one step at another one."""
    analytic = Plugin("fedleak.attacks.analytic.Analytic")
    server = {"batch": 1, "epochs": 1, "rate": 0.01}
    config = run_with(tmp_path, server, clients=64, attacks=(analytic,), batch_size=1)
    (row,) = read_rows(RunFolder(Path(config.output)).results)
    assert row["explained"] > 0.999
    assert row["ssim"] > 0.999
