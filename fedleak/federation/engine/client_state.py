"""Client state in files: the tensors that clients' defences keep between rounds."""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from fedleak.updates.files import Tensors, opened

# A federation is resumed at most one round back, so this many rounds of each client are kept.
KEPT_ROUNDS = 2
ROUND_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class ClientStateFolder:
    """Stores the state of simulated clients in files, so that a federation can be resumed.

    Flower's own store, the client's context, is lost when the simulation ends.

    Args:
        path: a folder that all workers can access, created on demand. It has a subfolder for each
            client, with a file for each of its last rounds.
    """

    path: Path

    def read(self, client: int) -> Tensors:
        """A client's state after the last round that it took part in; empty if there is none.

        Raises:
            BadInput: if the file is damaged.
        """
        files = _state_files(self._client_folder(client))
        if not files:
            return {}
        with opened(files[-1]) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, round_: int, client: int, state: Tensors) -> None:
        """Write a client's state after a round, and delete states too old to be resumed from."""
        folder = self._client_folder(client)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{round_}.part"
        # Copied, since the format refuses tensors that share their storage.
        save_file({name: value.contiguous().clone() for name, value in state.items()}, part)
        # Moved into place, so that a client that is killed leaves no incomplete file.
        part.replace(folder / f"{round_}.safetensors")
        for file in _state_files(folder)[:-KEPT_ROUNDS]:
            file.unlink()

    def rewind(self, rounds: int) -> None:
        """Delete the states of all rounds after the first ``rounds``."""
        for folder in self.path.glob("*/"):
            for file in _state_files(folder):
                if int(file.stem) > rounds:
                    file.unlink()

    def _client_folder(self, client: int) -> Path:
        return self.path / str(client)


def _state_files(folder: Path) -> list[Path]:
    """The files of a client's rounds, oldest first; files with other names are ignored."""
    files = [file for file in folder.glob("*.safetensors") if ROUND_NUMBER.fullmatch(file.stem)]
    return sorted(files, key=lambda file: int(file.stem))
