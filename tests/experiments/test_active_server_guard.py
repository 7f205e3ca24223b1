"""The studies of the guard and of perceptrons: small models, and their tables."""

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fedleak.defenses.received_model import offsets
from fedleak.servers import SolitonBiases
from tests.experiments.studies import EXPERIMENTS, script

FOLDER = EXPERIMENTS / "active-server"
NAMES = ("honest_models", "fresh_models", "attack_models", "measure", "quickstart")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import the modules beside them; these are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("path")
def test_a_training_is_looked_at_after_each_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    study = script(FOLDER / "honest_models.py")
    inputs = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(study, "whole_data", lambda _: (inputs, inputs[:, 0].gt(0).long()))
    monkeypatch.setattr(study, "CHECKPOINTS", (0, 2))
    training = study.Training("x", lambda: study.mlp(12, 2, 9), "x", False, rate=0.1, samples=40)
    found = [
        (epochs, pruned, float((model[1].weight == 0).float().mean()))
        for epochs, pruned, model in study.checkpoints(training)
    ]
    assert [(epochs, pruned) for epochs, pruned, _ in found] == [(0, False), (2, False), (2, True)]
    assert [share for *_, share in found] == [0, 0, pytest.approx(0.8, abs=0.02)]


@pytest.mark.usefixtures("path")
def test_every_honest_architecture_computes() -> None:
    study = script(FOLDER / "honest_models.py")
    shapes = {"cifar100": (3, 32, 32), "medical": (1, 32, 32), "table": (30,), "digits": (64,)}
    shapes["digits self"] = shapes["digits"]
    fresh = script(FOLDER / "fresh_models.py").FRESH
    every = (*study.TRAININGS, *fresh)
    assert len({training.name for training in every}) == len(every)
    assert [t.held_out for t in every] == [False] * len(study.TRAININGS) + [True] * len(fresh)
    assert 3 * len(fresh) >= len(every)
    assert len(fresh) * (len(study.CHECKPOINTS) + 1) >= 100
    for training in study.TRAININGS:
        if training.data == "text":
            inputs = torch.zeros(2, 32, dtype=torch.long)
        else:
            inputs = torch.zeros(2, *shapes.get(training.data, (3, 32, 32)))
        with torch.no_grad():
            assert len(training.make().eval()(inputs)) == 2


@pytest.mark.usefixtures("path")
def test_alarms_are_counted_by_group(tmp_path: Path) -> None:
    study = script(FOLDER / "guard.py")
    quiet = dict.fromkeys(study.STATISTICS, "0")
    facts = {"variant": "a", "seed": 0, "seconds": "0.1", "reasons": ""}
    rows = [
        {"kind": "honest", "model": "m", "held_out": 0, **quiet},
        {"kind": "honest", "model": "m", "held_out": 1, **quiet, "parallel": "0.5"},
    ]
    for row in rows:
        study.append(tmp_path / "guard-honest.csv", facts | row)
    caught = {"kind": "attack", "model": "n", "held_out": 0, **quiet, "largest": "inf"}
    study.append(tmp_path / "guard-attacks.csv", facts | caught | {"read": "0.75"})
    study.summary(tmp_path)
    with (tmp_path / "guard-summary.csv").open(newline="", encoding="utf-8") as file:
        found = {(row["kind"], row["group"]): row for row in csv.DictReader(file)}
    assert (found["honest", "all"]["n"], found["honest", "all"]["alarms"]) == ("2", "1")
    assert found["honest", "held out"]["alarms"] == "1"
    assert found["honest", "limits set"]["alarms"] == "0"
    assert (found["attack", "n"]["alarms"], found["attack", "n"]["read"]) == ("1", "0.750")
    assert study.present(tmp_path / "guard-honest.csv") == {("m", "a", "0")}


@pytest.mark.usefixtures("path")
def test_changes_of_malicious_models() -> None:
    study = script(FOLDER / "attack_models.py")
    old = {"0.weight": torch.zeros(20, 3), "0.bias": torch.zeros(20)}
    sent = {name: value + 1 for name, value in old.items()}
    study.few_units(0.25)(sent, old, torch.Generator().manual_seed(0))
    assert int(sent["0.bias"].sum()) == 5
    assert torch.equal(sent["0.weight"].mean(1), sent["0.bias"])
    inputs = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert study.read_share(inputs[:2] + 1e-3, inputs) == pytest.approx(2 / 3)
    assert study.read_share(inputs[:0], inputs) == 0


@pytest.mark.usefixtures("path")
def test_changes_that_are_made_to_pass_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    study = script(FOLDER / "attack_models.py")
    inputs = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    inputs[:, 0, 0, 0] = -1
    monkeypatch.setattr(study, "whole_data", lambda _: (inputs, torch.zeros(40)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 12))
    outputs = model(inputs)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    study.constant_input("x")(sent, {}, torch.Generator())
    assert not sent["1.bias"].any()
    model.load_state_dict(sent)
    # The weights of the constant input were lost: its part is that of the former biases.
    moved = outputs - model(inputs)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    sent = {"1.weight": torch.randn(12, 9), "1.bias": torch.linspace(-5, 5, 12)}
    study.smaller_biases(2.0)(sent, {}, torch.Generator())
    model.load_state_dict(sent)
    assert offsets(model, inputs)["1"] == pytest.approx(2.0, rel=1e-4)


@pytest.mark.usefixtures("path")
def test_fresh_data_and_models_compute() -> None:
    study = script(FOLDER / "fresh_models.py")
    shapes = {"artists": 1000, "counts": 128, "diabetes": 10, "waves": 250}
    for training in study.FRESH:
        if training.data == "text":
            inputs = torch.zeros(2, 32, dtype=torch.long)
        elif training.data in shapes:
            inputs = torch.zeros(2, shapes[training.data])
        else:
            inputs = torch.zeros(2, *((1, 64, 64) if training.data == study.GREY else (3, 32, 32)))
        with torch.no_grad():
            assert len(training.make().eval()(inputs)) == 2
    series, classes = study.fresh_data("waves")
    assert series.shape == (1000, 250)
    assert classes.unique().tolist() == [0, 1, 2, 3, 4]
    inputs, target = study.fresh_data("diabetes")
    assert (inputs.shape, target.shape) == ((442, 10), (442, 1))


@pytest.mark.usefixtures("path")
def test_a_batch_of_the_perceptron_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    study = script(FOLDER / "perceptron.py")
    draw = torch.Generator().manual_seed(0)
    monkeypatch.setattr(study, "SHAPE", (1, 8, 8))
    monkeypatch.setattr(
        study, "mlp",
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)),
    )  # fmt: skip
    private = torch.rand(30, 1, 8, 8, generator=draw) * 2 - 1, torch.arange(30) % 10
    row = study.measured(SolitonBiases(deviation=0.58), 8, 0, private, None, private[0] * 0)
    assert float(row["read"]) == 1
    assert (row["found"], row["false"], row["false_certified"]) == (8, 0, 0)
    assert float(row["labels"]) == 1
    assert float(row["guess"]) == 0


@pytest.mark.usefixtures("path")
def test_an_update_is_rounded() -> None:
    study = script(FOLDER / "rounding.py")
    change = torch.tensor([1.4e-6, -2.6e-6, 3e-7])
    expected = torch.tensor([1e-6, -3e-6, 0.0], dtype=torch.float64)
    torch.testing.assert_close(study.rounded(change, 1e-6), expected)
    torch.testing.assert_close(study.rounded(change, 0.0), change.double())
    assert math.isclose(study.STEPS[-1], 1e-6)
