"""What all clients of a round are sent, in one file instead of one copy for each."""

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
class SharedFolder:
    """Where the server of a simulation leaves the weights of a round for its workers.

    Flower would carry a copy of them to every client; a worker that serves many clients maps the
    file once.

    Args:
        path: a folder that all workers reach; it is made when it is needed.
    """

    path: Path

    def clear(self) -> None:
        """Remove what a killed run has left behind."""
        for file in self.path.glob(f"{PREFIX}*"):
            file.unlink()

    @contextmanager
    def sending(self, messages: Iterable[Message]) -> Iterator[list[Message]]:
        """Within the block, the messages' arrays lie in files, and the messages name them.

        Args:
            messages: their contents are replaced, not changed.
        """
        files: list[Path] = []
        light: dict[int, tuple[RecordDict, RecordDict]] = {}
        ready = list(messages)
        try:
            for message in ready:
                content = message.content
                if id(content) not in light:
                    # Both are kept: an id is free for others once its owner is gone.
                    light[id(content)] = content, self._put(content, files)
                message.content = light[id(content)][1]
            yield ready
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def _put(self, content: RecordDict, files: list[Path]) -> RecordDict:
        rest, named = RecordDict(), ConfigRecord()
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                self.path.mkdir(parents=True, exist_ok=True)
                files.append(self.path / f"{PREFIX}{uuid4()}.safetensors")
                tensors = records.to_tensors(record)
                save_file({key: value.contiguous() for key, value in tensors.items()}, files[-1])
                named[name] = str(files[-1])
            else:
                rest[name] = record
        if named:
            rest[SHARED] = named
        return rest


def sent_with(message: Message) -> Tensors:
    """The weights that a message carries, or names the file of; not to be changed."""
    content = message.content
    if SHARED in content.config_records:
        return _mapped(str(content.config_records[SHARED][records.ARRAYS]))
    return records.to_tensors(content.array_records[records.ARRAYS])


@lru_cache(maxsize=1)
def _mapped(path: str) -> Tensors:
    return load_file(path)
