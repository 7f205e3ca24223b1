"""Users' true items beside the items that attacks found, read from a run's folder."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedleak.config import RunConfig
from fedleak.errors import BadInput, require
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.scoring import ItemScoring, scoring_class
from fedleak.runs.text_files import read_text
from fedleak.updates.files import short

LARGEST_LIST = 8 * 2**20  # largest size of a file in bytes: some 200,000 items
COLUMNS = ("item", "name", "value", "found", "true")
MAX_ITEMS = 100  # of a list


@dataclass
class ItemList:
    """A user's true items and the items that the attacks found.

    Args:
        round: number of the round, from 1.
        client: number of the client, from 0.
        sample: position in the client's batch.
        true: names of the user's items. If None, they are not known.
        found: column title -> (names of the items found, F1 or None).
    """

    round: int
    client: int
    sample: int
    true: list[str] | None = None
    found: dict[str, tuple[list[str], float | None]] = field(default_factory=dict)

    @property
    def items(self) -> list[str]:
        """The user's items, then further items that some attack found; at most 100."""
        found = [name for names, _ in self.found.values() for name in names]
        return list(dict.fromkeys([*(self.true or []), *found]))[:MAX_ITEMS]

    def rows(self) -> Iterator[tuple[str, list[bool | None]]]:
        """For each item its name, then: is it true (None if not known), did each attack find it."""
        for name in self.items:
            true = None if self.true is None else name in self.true
            yield name, [true, *(name in names for names, _ in self.found.values())]

    def markdown(self) -> str:
        """A table in Markdown: a row for each item, a column for the truth and for each attack."""
        marks = {True: "yes", False: "–", None: "?"}
        scores = ["" if f1 is None else f" (F1 {f1:.4f})" for _, f1 in self.found.values()]
        titles = [f"{title}{score}" for title, score in zip(self.found, scores, strict=True)]
        lines = [("item", "true", *titles), ("---",) * (2 + len(titles))]
        lines += [
            (name.replace("|", "\\|"), *(marks[mark] for mark in cells))
            for name, cells in self.rows()
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_item_lists(folder: RunFolder, config: RunConfig) -> list[ItemList]:
    """The lists of all attacked users, ordered by round, client and sample.

    Args:
        folder: the run's folder.
        config: its configuration.

    Returns:
        The lists; empty if the samples are not interaction vectors.

    Raises:
        BadInput: if results.csv or a list is damaged.
    """
    if scoring_class(config) is not ItemScoring:
        return []
    lists: dict[tuple[int, int, int], ItemList] = {}
    for row in read_rows(folder.results):
        key = (row["round"], row["client"], row["sample"])
        path = folder.reconstruction(row, ItemScoring.suffix)
        if not path.is_file():
            continue
        items, f1 = read_items(path), row.get("f1")
        found = lists.setdefault(key, ItemList(*key))
        if f1 is not None:
            found.true = [item["name"] for item in items if item["true"] == "1"]
        names = [item["name"] for item in items if item["found"] == "1"]
        found.found[f"{row['attack']} on {row['model']}"] = (names, f1)
    return [lists[key] for key in sorted(lists)]


def read_items(path: Path) -> list[dict[str, str]]:
    """The rows of a list that :meth:`ItemScoring.keep` wrote: item, name, value, found and true.

    Raises:
        BadInput: if the file is larger than 8 MiB, or is not such a list.
    """
    reader = csv.reader(io.StringIO(read_text(path, LARGEST_LIST), newline=""), strict=True)
    try:
        columns, *rows = list(reader) or [[]]
    except csv.Error as error:
        raise BadInput(f"Expected a list of items in {path}, got: {error}.") from error
    whole = tuple(columns) == COLUMNS and all(len(row) == len(COLUMNS) for row in rows)
    require(
        whole,
        f"Expected rows of {', '.join(COLUMNS)} in {path}, got rows of {short(columns)}.",
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]
