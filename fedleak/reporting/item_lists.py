"""What users had to do with beside what the attacks found, read from a run's folder."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedleak.config import RunConfig
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.scoring import ItemScoring, scoring_class

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
    """
    if scoring_class(config) is not ItemScoring:
        return []
    lists: dict[tuple[int, int, int], ItemList] = {}
    for row in read_rows(folder.results):
        key = (row["round"], row["client"], row["sample"])
        path = folder.reconstruction(row, ItemScoring.suffix)
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            items = list(csv.DictReader(file))
        found = lists.setdefault(key, ItemList(*key))
        if row["f1"] is not None:
            found.true = [item["name"] for item in items if item["true"] == "1"]
        names = [item["name"] for item in items if item["found"] == "1"]
        found.found[f"{row['attack']} on {row['model']}"] = (names, row["f1"])
    return [lists[key] for key in sorted(lists)]
