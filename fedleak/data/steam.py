"""Steam 200k: the games that users bought and played."""

import csv
import math

import numpy as np

from fedleak.data.images import find_data_path
from fedleak.data.interactions import Ids
from fedleak.data.recommender import RecommenderData
from fedleak.data.text_tables import read_lines
from fedleak.errors import BadInput, require

BEHAVIOURS = ("purchase", "play")


class Steam(RecommenderData):
    """Users and the games that they bought or played.

    The file ``steam-200k.csv`` of https://www.kaggle.com/datasets/tamber/steam-video-games: user,
    game, purchase or play, hours, 0, between commas and without a header.

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        held_out: see :class:`RecommenderData`.
        batch_size: see :class:`RecommenderData`.
        split_seed: see :class:`RecommenderData`.
    """

    name = "steam"

    def __init__(
        self,
        *,
        path: str = "steam-200k.csv",
        held_out: int = 500,
        batch_size: int = 64,
        split_seed: int = 98765,
    ) -> None:
        super().__init__(held_out=held_out, batch_size=batch_size, split_seed=split_seed)
        self.path = path
        self._games: list[str] = []

    def load(self) -> tuple[Ids, Ids]:
        """See :meth:`RecommenderData.load`; games are numbered in the order of the file."""
        path = find_data_path(self.path)
        users: list[int] = []
        items: list[int] = []
        games: dict[str, int] = {}
        # A pipe would be waited for without end.
        require(path.is_file(), f"Expected a file at {path}, found none.")
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.reader(read_lines(file, path))
                for row in rows:
                    if not row:
                        continue
                    if not _is_whole(row):
                        raise BadInput(
                            "Expected user, game, purchase or play, and hours between commas in "
                            f"line {rows.line_num} of {path}, got `{','.join(row)[:60]}`."
                        )
                    users.append(int(row[0]))
                    items.append(games.setdefault(row[1], len(games)))
        except OSError as error:
            raise BadInput(f"Expected a file at {path}, got: {error.strerror}.") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"Expected a CSV file in UTF-8 at {path}, got: {error}.") from error
        require(len(users) > 0, f"Expected at least one row in {path}, found none.")
        self._games = list(games)
        return np.array(users, dtype=np.int64), np.array(items, dtype=np.int64)

    def item_names(self) -> list[str]:
        """The games' names, column by column."""
        return [self._games[item] for item in self.split.items]


def _is_whole(row: list[str]) -> bool:
    """Whether a row consists of a user id, a game, purchase or play, and hours."""
    try:
        user, _, behaviour, hours = row[:4]
        known = user.isdecimal() and int(user) < 2**63
        return known and behaviour in BEHAVIOURS and math.isfinite(float(hours))
    except ValueError:
        return False
