"""A small table with both kinds of columns, and the real ones that scikit-learn ships."""

import csv
from pathlib import Path

ROWS = [
    ("age", "town", "income", "floor", "buys"),
    *(
        (str(20 + at), ("Ulm", "Bonn", "Ulm", "Kiel")[at % 4], f"{1000.5 + at * at}", str(at % 3),
         ("no", "yes")[at % 2])
        for at in range(40)
    ),
]  # fmt: skip


def write_table(folder: Path, rows: list[tuple[str, ...]] = ROWS, delimiter: str = ",") -> str:
    path = folder / "people.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return str(path)


def write_real(folder: Path, name: str) -> str:
    """A table of scikit-learn: ``breast_cancer`` (30 columns) or ``wine`` (13)."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*found.feature_names, "kind"])
        for row, target in zip(found.data, found.target, strict=True):
            writer.writerow([*row.tolist(), found.target_names[target]])
    return str(path)
