"""Flower's own client mods, as they are, around the clients' training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak import experiment
from fedleak.cli.arguments import parse
from fedleak.cli.main import _run_config
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.update import InterceptedUpdate
from tests.federation.fakes import same_tensors
from tests.federation.runs import attack_plugin, in_process, tiny_config, tiny_data

PATH = "flwr.clientapp.mod.LocalDpMod"
BOUND = 1e-3


def local_dp(**changes: float) -> dict[str, Any]:
    settings = {"clipping_norm": BOUND, "sensitivity": 0.0, "epsilon": 2.0, "delta": 1e-3}
    return {"class_path": PATH, "init_args": settings | changes}


def changes_of(config: RunConfig) -> list[Tensors]:
    """What every client of a finished run added to the weights."""
    paths = update_files(RunFolder(Path(config.output)).updates())
    updates = [InterceptedUpdate.load(path) for path in paths]
    return [{n: u.received[n] - u.sent[n] for n in u.sent} for u in updates]


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data(tmp_path)


def run(data: Path, name: str, *mods: dict[str, Any], **more: Any) -> RunConfig:
    config = tiny_config(
        data, data.parent / name, protocol="fedavg", batch_size=8, clients=2, rounds=2,
        victim_rounds=[1], mods=list(mods), client_evaluation=True, **more,
    )  # fmt: skip
    with in_process():
        summary = experiment.run(config)
    assert summary["status"] == "complete"
    assert summary["federation"]["failures"] == 0
    return config


def test_local_dp_clips_what_the_clients_send(data: Path) -> None:
    plain = changes_of(run(data, "plain"))
    config = run(data, "clipped", local_dp(), attacks=(attack_plugin("iga", iterations=2),))
    clipped = changes_of(config)
    assert len(plain) == len(clipped) == 2
    for before, after in zip(plain, clipped, strict=True):
        norm = flat(before).norm()
        assert float(norm) > 10 * BOUND
        assert float(flat(after).norm()) == pytest.approx(BOUND, rel=1e-2)
        torch.testing.assert_close(flat(after), flat(before) * BOUND / norm, rtol=0, atol=1e-7)
    rows = read_rows(RunFolder(Path(config.output)).results)
    name = "localdpmod(clipping_norm=0.001,sensitivity=0.0,epsilon=2.0,delta=0.001)"
    assert {row["defense"] for row in rows} == {name}


def test_local_dp_adds_its_noise_the_same_for_the_same_seed(data: Path) -> None:
    clean = changes_of(run(data, "clean", local_dp()))
    noisy = changes_of(run(data, "noisy", local_dp(sensitivity=0.1)))
    again = changes_of(run(data, "again", local_dp(sensitivity=0.1)))
    deviation = 0.1 * math.sqrt(2 * math.log(1.25 / 1e-3)) / 2
    for before, after, twin in zip(clean, noisy, again, strict=True):
        noise = flat(after) - flat(before)
        assert float(noise.std()) == pytest.approx(deviation, rel=0.1)
        assert same_tensors(after, twin)
    assert not same_tensors(noisy[0], noisy[1])


def test_mods_come_from_files_and_from_the_command_line(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {class_path: npz, init_args: {path: there.npz}}\nmodel: {class_path: smlp}\n"
        f"federation:\n  protocol: fedavg\n  mods:\n    - {local_dp()}\n"
    )
    one = _run_config(parse(["run", "--config", str(file)]).run)
    assert one.federation.mods == [local_dp()]
    two = _run_config(
        parse(["run", "--config", str(file), "--federation.mods+", str(local_dp(epsilon=3.0))]).run
    )
    assert two.federation.mods == [local_dp(), local_dp(epsilon=3.0)]
    assert RunConfig.from_dict(two.to_dict()) == two
    # The last one acts first on what is sent.
    assert two.defense_name.index("epsilon=3.0") < two.defense_name.index("epsilon=2.0")


@pytest.mark.parametrize(
    ("mod", "sentence"),
    [
        (local_dp(clipping_norm=-1), "settings that `flwr.*LocalDpMod` takes, .*positive value"),
        ({"class_path": PATH}, "settings that `flwr.*LocalDpMod` takes, .*missing 4"),
        (local_dp(epsilo=1), "Unknown setting of localdpmod `epsilo`: .*Did you mean `epsilon`"),
        ({"class_path": "flwr.clientapp.mod.Nothing"}, "Unknown class of `flwr.clientapp.mod` `No"),
        ({"class_path": "fedleak.registry.Plugin", "init_args": {"class_path": "a"}},
         "`federation.mods` to hold mods of Flower, got `fedleak.registry.Plugin`"),
    ],
)  # fmt: skip
def test_mods_that_cannot_work_are_refused_before_anything_is_written(
    mod: dict[str, Any], sentence: str, data: Path
) -> None:
    with pytest.raises(BadInput, match=sentence):
        run(data, "refused", mod)
    assert not (data.parent / "refused").exists()
