"""What users had to do with beside what the attacks found, read from a run's folder."""

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

LARGEST_LIST = 8 * 2**20  # bytes of a file, at most: some 200,000 items
COLUMNS = ("item", "name", "value", "found", "true")
ITEMS = 100  # of a list, at most


@dataclass
class ItemList:
    """A user and what the attacks found.

    Args:
        round: number of the round.
        client: number of the client.
        sample: position in the client's batch.
        true: the user's items by name; none where they are not known.
        found: column title -> (names of the items found, F1 or none).
    """

    round: int
    client: int
    sample: int
    true: list[str] | None = None
    found: dict[str, tuple[list[str], float | None]] = field(default_factory=dict)

    @property
    def items(self) -> list[str]:
        """The user's items, then those that some attack found besides; at most 100."""
        found = [name for names, _ in self.found.values() for name in names]
        return list(dict.fromkeys([*(self.true or []), *found]))[:ITEMS]

    def rows(self) -> Iterator[tuple[str, list[bool | None]]]:
        """Of each item its name, whether it is true (none: not known), and who found it."""
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
    """All users that were attacked, in the order of rounds, clients and samples.

    Args:
        folder: the run's folder.
        config: its configuration.

    Returns:
        The lists; none if the data are no interactions.

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
        BadInput: if the file is larger than 8 MiB, or no such list.
    """
    reader = csv.reader(io.StringIO(read_text(path, LARGEST_LIST), newline=""), strict=True)
    try:
        columns, *rows = list(reader) or [[]]
    except csv.Error as error:
        raise BadInput(f"Expected a list of items in {path}, got: {error}.") from error
    whole = tuple(columns) == COLUMNS and all(len(row) == len(COLUMNS) for row in rows)
    require(
        whole,
        f"Expected rows of {', '.join(COLUMNS)} in {path}, got others, under {short(columns)}.",
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]
