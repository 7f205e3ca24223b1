"""The state of clients' defences is stored, and restored after an interruption."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.registry import Plugin
from tests.federation.fakes import same_tensors
from tests.federation.runs import (
    Recorder,
    attack_plugin,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
)

FEEDBACK = Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.8, "error_feedback": True})


def value(number: float) -> dict[str, torch.Tensor]:
    return {"0/weight": torch.full((2, 3), number)}


def test_a_state_is_that_of_the_last_round_and_can_be_rewound(tmp_path: Path) -> None:
    folder = ClientStateFolder(tmp_path / "memories")
    assert folder.read(3) == {}
    folder.rewind(0)
    for round_ in (2, 9, 10):  # the client is not asked in every round
        folder.write(round_, 3, value(round_))
    folder.write(10, 13, value(-1))
    assert same_tensors(folder.read(3), value(10))
    folder.rewind(10)
    assert same_tensors(folder.read(3), value(10))
    folder.rewind(9)
    assert same_tensors(folder.read(3), value(9))
    assert folder.read(13) == {}
    assert [path.name for path in folder.path.rglob("*.*")] == ["9.safetensors"]


def test_tensors_of_any_memory_layout_are_stored(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    memory = {"rows": whole, "columns": whole.T, "one": whole[0]}
    ClientStateFolder(tmp_path).write(1, 0, memory)
    assert same_tensors(ClientStateFolder(tmp_path).read(0), memory)


def assert_same_updates(left: RunConfig, right: RunConfig) -> None:
    folders = [Path(config.output) / "updates" for config in (left, right)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]  # nothing of the unfinished federation is left
    assert len(names[0]) == 3 * 5
    for name in names[0]:
        assert same_tensors(*[load_file(folder / name) for folder in folders]), name


@pytest.mark.parametrize("when", ["after a round", "within a round"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_resumed_federation_gives_the_updates_of_an_uninterrupted_one(
    protocol: str, when: str, tmp_path: Path
) -> None:
    whole = tiny_config(
        tiny_data(tmp_path), tmp_path / "whole", rounds=3, protocol=protocol, batch_size=8,
        defenses=(FEEDBACK,), when="during", attacks=(attack_plugin("iga", iterations=1),),
    )  # fmt: skip
    config = replace(whole, output=str(tmp_path / "run"))
    event, count = ("round_evaluated", 3) if when == "after a round" else ("victim_attacked", 6)
    seen: list[object] = []

    def stop(*arguments: object) -> None:
        seen.append(arguments)
        if len(seen) == count:
            interrupt()

    with in_process():
        experiment.run(whole)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, [Recorder(event, stop)])
        memories = tmp_path / "run" / "updates" / "unfinished"
        kept = {path.name for path in memories.rglob("*.safetensors")}
        assert kept == {"1.safetensors", "2.safetensors"}
        experiment.run(config, resume=True)
    assert_same_updates(whole, config)


def test_without_client_state_a_resumed_federation_gives_other_updates(tmp_path: Path) -> None:
    """The comparison above can fail."""
    whole = tiny_config(
        tiny_data(tmp_path), tmp_path / "whole", rounds=3, batch_size=8, defenses=(FEEDBACK,)
    )
    config = replace(whole, output=str(tmp_path / "run"))
    seen: list[object] = []

    def stop(*arguments: object) -> None:
        seen.append(arguments)
        if len(seen) == 3:
            interrupt()

    with in_process():
        experiment.run(whole)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, [Recorder("round_evaluated", stop)])
        ClientStateFolder(tmp_path / "run" / "updates" / "unfinished").rewind(0)
        experiment.run(config, resume=True)
    with pytest.raises(AssertionError, match="r0003-c"):
        assert_same_updates(whole, config)


def test_a_damaged_state_and_files_with_other_names(tmp_path: Path) -> None:
    folder = ClientStateFolder(tmp_path)
    folder.write(1, 0, {"x": torch.ones(2)})
    (tmp_path / "0" / "notes.safetensors").touch()
    (tmp_path / "0" / "9999999999.safetensors").touch()
    assert same_tensors(folder.read(0), {"x": torch.ones(2)})
    (tmp_path / "0" / "1.safetensors").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"complete safetensors file at .*1.safetensors"):
        folder.read(0)
    folder.rewind(0)
    assert folder.read(0) == {}
    assert (tmp_path / "0" / "notes.safetensors").exists()
