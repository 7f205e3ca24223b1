"""What the defences of simulated clients keep from round to round, in files."""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from fedleak.updates.files import Tensors, opened

# A federation is resumed at most one round back, so this many rounds of a client are kept.
ROUNDS = 2
ROUND = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class MemoryFolder:
    """Where simulated clients leave their memories, so that a resumed federation has them.

    Flower's own place for them, the client's state, ends with the simulation.

    Args:
        path: a folder that all workers reach; it is made when it is needed. It has a folder for
            each client, with a file for each of its last rounds.
    """

    path: Path

    def read(self, client: int) -> Tensors:
        """A client's memory after the last round that it took part in; empty if there is none.

        Raises:
            BadInput: if the file is damaged.
        """
        files = _in_order(self._of(client))
        if not files:
            return {}
        with opened(files[-1]) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, round_: int, client: int, memory: Tensors) -> None:
        """Write a client's memory after a round, and drop what is too old to be wanted again."""
        folder = self._of(client)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{round_}.part"
        # Copies, as the format refuses tensors that share their storage.
        save_file({name: value.contiguous().clone() for name, value in memory.items()}, part)
        # Moved into place, so that a client that is killed leaves no half file.
        part.replace(folder / f"{round_}.safetensors")
        for file in _in_order(folder)[:-ROUNDS]:
            file.unlink()

    def rewind(self, rounds: int) -> None:
        """Forget what was kept after the first ``rounds`` rounds."""
        for folder in self.path.glob("*/"):
            for file in _in_order(folder):
                if int(file.stem) > rounds:
                    file.unlink()

    def _of(self, client: int) -> Path:
        return self.path / str(client)


def _in_order(folder: Path) -> list[Path]:
    """The files of a client's rounds; what others have left there is none of them."""
    files = [file for file in folder.glob("*.safetensors") if ROUND.fullmatch(file.stem)]
    return sorted(files, key=lambda file: int(file.stem))
