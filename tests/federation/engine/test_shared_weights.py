"""The weights of a round in one file for all clients."""

from pathlib import Path

import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedleak.federation import records
from fedleak.federation.engine.shared_weights import SharedWeightsFolder, received_weights
from tests.federation.fakes import same_tensors, train_question, weights


def test_a_rounds_weights_are_in_one_file_within_the_block(tmp_path: Path) -> None:
    content = RecordDict({
        records.ARRAYS: records.to_record(weights(3)),
        records.CONFIG: ConfigRecord({records.ROUND: 4}),
    })  # fmt: skip
    messages = [Message(content, node, MessageType.TRAIN) for node in (1, 2, 3)]
    with SharedWeightsFolder(tmp_path / "shared").sending(messages) as ready:
        assert len(list((tmp_path / "shared").iterdir())) == 1
        for message in ready:
            assert not message.content.array_records
            assert message.content.config_records[records.CONFIG][records.ROUND] == 4
            for name, value in received_weights(message).items():
                assert torch.equal(value, weights(3)[name])
    assert not list((tmp_path / "shared").iterdir())
    assert records.ARRAYS in content  # the strategy's own is left alone


def test_messages_of_several_contents_have_a_file_each(tmp_path: Path) -> None:
    messages = [train_question(node, weights(node)) for node in (1, 2)]
    with SharedWeightsFolder(tmp_path).sending(messages) as ready:
        assert len(list(tmp_path.iterdir())) == 2
        for node, message in enumerate(ready, start=1):
            assert same_tensors(received_weights(message), weights(node))


def test_a_message_without_arrays_is_left_as_it_is(tmp_path: Path) -> None:
    content = RecordDict({records.METRICS: MetricRecord({"loss": 0.5})})
    message = Message(content, 1, MessageType.TRAIN)
    with SharedWeightsFolder(tmp_path / "shared").sending([message]) as (ready,):
        assert list(ready.content) == [records.METRICS]
    assert not (tmp_path / "shared").exists()


def test_weights_in_the_message_need_no_file() -> None:
    assert same_tensors(received_weights(train_question(1, weights(2))), weights(2))


def test_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sent-1.safetensors").touch()
    (tmp_path / "0").mkdir()
    SharedWeightsFolder(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
