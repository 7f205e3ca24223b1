"""The weights of a round, stored in one file for all clients instead of one copy per message."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file, save_file

from fedleak.federation import records
from fedleak.updates.files import Tensors

SHARED = "shared"
PREFIX = "sent-"


@dataclass(frozen=True)
class SharedWeightsFolder:
    """Stores the weights that the server of a simulation sends in files that its workers read.

    Flower would send a copy to every client; a worker that serves many clients reads the file once.

    Args:
        path: a folder that all workers can access, created on demand.
    """

    path: Path

    def clear(self) -> None:
        """Remove the files of a run that was killed."""
        for file in self.path.glob(f"{PREFIX}*"):
            file.unlink()

    @contextmanager
    def sending(self, messages: Iterable[Message]) -> Iterator[list[Message]]:
        """Within the block, the messages' arrays are in files that the messages name.

        Args:
            messages: the messages; their contents are replaced, not modified.

        Yields:
            The messages, without arrays.
        """
        files: list[Path] = []
        replaced: dict[int, tuple[RecordDict, RecordDict]] = {}
        ready = list(messages)
        try:
            for message in ready:
                content = message.content
                if id(content) not in replaced:
                    # The original is kept as well, so that its id is not reused.
                    replaced[id(content)] = content, self._store(content, files)
                message.content = replaced[id(content)][1]
            yield ready
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def _store(self, content: RecordDict, files: list[Path]) -> RecordDict:
        """Write a message's arrays to files; returns its content with the files' names instead."""
        rest, paths = RecordDict(), ConfigRecord()
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                self.path.mkdir(parents=True, exist_ok=True)
                files.append(self.path / f"{PREFIX}{uuid4()}.safetensors")
                tensors = records.to_tensors(record)
                save_file({key: value.contiguous() for key, value in tensors.items()}, files[-1])
                paths[name] = str(files[-1])
            else:
                rest[name] = record
        if paths:
            rest[SHARED] = paths
        return rest


def received_weights(message: Message) -> Tensors:
    """The weights in a message, or in the file that it names; shared, so not to be modified."""
    content = message.content
    if SHARED in content.config_records:
        return _load(str(content.config_records[SHARED][records.ARRAYS]))
    return sent_weights(message)


def sent_weights(message: Message) -> Tensors:
    """The weights in a message, which may not name a file of the reader's machine instead."""
    return records.to_tensors(message.content.array_records[records.ARRAYS])


@lru_cache(maxsize=1)
def _load(path: str) -> Tensors:
    return load_file(path)
