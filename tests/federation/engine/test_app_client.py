"""The client of a Flower app: simulated, or a node of a deployment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedleak.build import make_data, make_model
from fedleak.errors import BadInput
from fedleak.federation import client_in_app, records
from fedleak.federation.engine.client import client_app
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.federation.engine.shared_weights import SHARED
from fedleak.federation.engine.virtual_clients import VIRTUAL_CLIENT
from fedleak.federation.run_config import read_run_config
from fedleak.updates.truth import GroundTruth
from tests.federation.app_runs import tiny_settings
from tests.federation.fakes import context_of, same_tensors, train_question
from tests.reference import dense_gradient

ON_RAY = "fedleak.federation.engine.app_client._runs_on_ray"


def reply_of(
    settings: dict[str, Any],
    node: dict[str, Any],
    *records_: tuple[str, ConfigRecord],
    without: str = "",
    kind: str = MessageType.TRAIN,
) -> RecordDict:
    """The content of a node's reply to a question of round 1 with the first weights."""
    config = read_run_config(settings)
    sent = make_model(config, make_data(config)).state_dict()
    question = train_question(5, sent)
    content = RecordDict({n: r for n, r in question.content.items() if n != without})
    for name, record in records_:
        content[name] = record
    question = Message(content, 5, kind)
    context = Context(1, 5, node, RecordDict(), settings)
    return client_in_app(question, context)(question, context).content


def folders(tmp_path: Path, client: int = 2) -> tuple[str, ConfigRecord]:
    for name in ("truth", "states"):
        (tmp_path / name).mkdir()
    paths = {name: str(tmp_path / name) for name in ("truth", "states")}
    return VIRTUAL_CLIENT, ConfigRecord({records.CLIENT: client, **paths})


def raw(content: RecordDict) -> bytes:
    """All numbers in a reply."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    return b"".join(array.numpy().tobytes() for array in arrays)


def test_a_simulated_client_stores_its_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ON_RAY, lambda: True)
    settings = tiny_settings(tmp_path)
    content = reply_of(settings, {"partition-id": 0}, folders(tmp_path))
    config = read_run_config(settings)
    # The same as of fedleak's own engine.
    twin, states = client_app(config), ClientStateFolder(tmp_path / "states")
    sent = make_model(config, make_data(config)).state_dict()
    expected = twin(train_question(2, sent), context_of(2)).content
    assert same_tensors(
        records.to_tensors(content[records.GRADIENT]),
        records.to_tensors(expected[records.GRADIENT]),
    )
    truth = GroundTruth.load(tmp_path / "truth" / "r0001-c0002.safetensors")
    assert states.read(2) == {}
    # For speed, the message of a simulation has the factors of a gradient, one of them the input.
    assert truth.inputs.flatten().numpy().tobytes() in raw(content)


def test_the_truth_is_in_no_message_of_a_deployment(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    before = set(tmp_path.rglob("*"))
    content = reply_of(settings, {"partition-id": 2, "num-partitions": 4})
    assert set(tmp_path.rglob("*")) == before
    data, message = make_data(read_run_config(settings)), raw(content)
    for image in data.train_set.batch(range(len(data.train_set)))[0].numpy():
        for row in image.reshape(-1, image.shape[-1]):
            assert row.tobytes() not in message
    assert sorted(content) == [records.GRADIENT, records.METRICS]
    assert content[records.METRICS][records.EXAMPLES] == 1


def test_a_node_takes_no_folder_from_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ON_RAY, lambda: False)
    with pytest.raises(BadInput, match="Expected weights and settings in a message to a node"):
        reply_of(tiny_settings(tmp_path), {"partition-id": 0}, folders(tmp_path))
    assert list((tmp_path / "truth").iterdir()) == []


def test_a_node_takes_no_file_of_weights_from_a_message(tmp_path: Path) -> None:
    shared = SHARED, ConfigRecord({records.ARRAYS: str(tmp_path / "secret.safetensors")})
    with pytest.raises(KeyError, match=records.ARRAYS):
        reply_of(tiny_settings(tmp_path), {"partition-id": 0}, shared, without=records.ARRAYS)


def test_a_node_trains_on_its_own_data(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    config = read_run_config(settings)
    data = make_data(config)
    with np.load(settings["data.path"]) as arrays:
        own = {name: arrays[name] for name in arrays}
    # A single sample, and the labels of the others, by which the number of classes is known.
    own["train_images"], own["train_labels"] = own["train_images"][5:6], own["train_labels"][5:6]
    np.savez(tmp_path / "mine.npz", **own)
    statistics = {"data.mean": str(list(data.mean)), "data.std": str(list(data.std))}
    node = {"partition-id": 3, "data-path": str(tmp_path / "mine.npz")}
    content = reply_of(settings | statistics, node)
    found = dict(records.to_compact(content[records.GRADIENT]))
    batch = data.train_set.batch([5])
    expected = dense_gradient(make_model(config, data), *batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match=r"Expected a batch of `batch-size` 2.*got 1 training"):
        reply_of(settings | statistics | {"batch-size": 2}, node)


def test_the_noise_of_a_defence_is_not_the_servers_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, defense="noise", defense__sigma=0.1)
    node = {"partition-id": 1}
    first, second = reply_of(settings, node), reply_of(settings, node)
    assert raw(first) != raw(second)
    monkeypatch.setattr(ON_RAY, lambda: True)
    simulated = [reply_of(settings, node, folders(path)) for path in two_folders(tmp_path)]
    assert raw(simulated[0]) == raw(simulated[1])


def two_folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a", tmp_path / "b"]
    for path in found:
        path.mkdir()
    return found


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ({}, BadInput, "Expected `partition-id` in a node's configuration.*--node-config"),
        ({"partition-id": "0"}, BadInput, "Expected `partition-id`.*got `0`"),
        ({"partition-id": 4}, RuntimeError, "Expected the number of a client from 0 to 3, got 4"),
        ({"partition-id": 0, "num-partitions": 3}, BadInput, "Expected `num-partitions`.*got `3`"),
        ({"partition-id": 0, "data-path": "no.npz"}, RuntimeError, "found no file"),
    ],
)
def test_a_wrong_configuration_of_a_node_is_refused(
    node: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        reply_of(tiny_settings(tmp_path), node)


def test_a_node_evaluates_on_its_share_or_on_its_own_data(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    total = len(make_data(read_run_config(settings)).test_set)
    for node, examples in (
        ({"partition-id": 1}, total // 4),
        ({"partition-id": 1, "data-path": settings["data.path"]}, total),
    ):
        content = reply_of(settings, node, kind=MessageType.EVALUATE)
        assert content[records.METRICS][records.EXAMPLES] == examples
        assert 0 <= content[records.METRICS]["test/accuracy"] <= 1
