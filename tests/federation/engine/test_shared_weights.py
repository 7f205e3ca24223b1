"""The weights of a round in one file for all clients."""

from pathlib import Path

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedleak.federation import records
from fedleak.federation.engine.shared_weights import SharedWeightsFolder, received_weights
from tests.federation.fakes import weights


def test_a_rounds_weights_lie_in_one_file_while_they_are_wanted(tmp_path: Path) -> None:
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
