"""The metrics of a sweep's global models, from event files made by hand."""

import csv
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from fedleak.reporting import write_rounds
from fedleak.sweep import SweepFolder
from tests.federation.runs import tiny_config

GLOBAL = "3 training/global model/test"
CURVES = {
    "short": {"smlp": {f"{GLOBAL}/accuracy": [0.1, 0.2]}},
    "plain": {"smlp": {f"{GLOBAL}/accuracy": [0.1, 0.4, 0.5], f"{GLOBAL}/loss": [3, 2, 1.5]}},
    "user": {"fedvae": {f"{GLOBAL}/ndcg@100": [0.25, 1 / 3], "4 clients/loss/client 0": [9, 9]}},
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A sweep's folder: cells of one round, of two, of a recommender, and one not begun."""
    folder = SweepFolder(tmp_path / "out")
    for name, ((model, curves),) in ((name, runs.items()) for name, runs in CURVES.items()):
        run = folder.run(name)
        rounds = 1 if name == "short" else 2
        run.path.mkdir(parents=True)
        config = tiny_config(tmp_path / "tiny.npz", run.path, rounds=rounds)
        config.save(run.config)
        with SummaryWriter(str(run.path / "tensorboard" / model)) as writer:
            for tag, values in curves.items():
                for round_, value in enumerate(values):
                    writer.add_scalar(tag, value, round_)
    lines = ["cell,model", *(f"{name},smlp" for name in (*CURVES, "later"))]
    folder.cells.write_text("\n".join(lines) + "\n")
    return folder.path


def test_a_row_for_every_round_of_a_training(output: Path) -> None:
    path = write_rounds(output)
    assert path == output / "rounds.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["cell", "model", "round", "accuracy", "loss", "ndcg@100"],
        ["plain", "smlp", "0", "0.1", "3", ""],
        ["plain", "smlp", "1", "0.4", "2", ""],
        ["plain", "smlp", "2", "0.5", "1.5", ""],
        ["user", "fedvae", "0", "", "", "0.25"],
        ["user", "fedvae", "1", "", "", "0.333333"],
    ]


def test_no_file_of_attacks_in_a_single_round(output: Path) -> None:
    (output / "cells.csv").write_text("cell,model\nshort,smlp\n")
    assert write_rounds(output) is None
    assert not (output / "rounds.csv").exists()
