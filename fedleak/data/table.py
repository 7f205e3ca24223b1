"""A data set of the rows of a table, in a .csv or a .npz file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedleak.data.base import Indices, Kind, PrivateData, TrainSet
from fedleak.data.columns import TableColumn, numeric_columns
from fedleak.data.images import find_data_path
from fedleak.data.npz import read_arrays
from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates.files import LARGEST

_INPUT_KEYS = ("x", "data", "inputs")
_TARGET_KEYS = ("y", "target", "targets", "labels")
_SPLIT_SEED = 0
# A number for each row, such as an income, is no class.
MOST_CLASSES = 1000

Cells = npt.NDArray[Any]


class TableSet(TrainSet):
    """Rows of a table, with their classes or targets.

    Args:
        inputs: float32 ``(N, entries)``.
        labels: int64 ``(N,)``, classes counted from 0; or float32 ``(N,)``, targets of a
            regression.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One row, float32 ``(entries,)``, and its label."""
        return self.inputs[index], self.labels[index]

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Several rows at once; see :meth:`TrainSet.batch`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.inputs[chosen], self.labels[chosen]


class Table(PrivateData):
    """Rows of a table, with numeric and categorical columns and a target column.

    A .csv file has the columns' names in its first line. A column whose cells are all numbers is
    numeric, any other is categorical and becomes one entry for each of its values (one-hot), in
    their order. A .npz file has the numeric array ``x``, ``data`` or ``inputs`` (N, columns) and
    the target ``y``, ``target``, ``targets`` or ``labels`` (N,); its columns are called by their
    numbers from 0. The last part of a fixed permutation of the rows becomes the test set.

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        target: the column that a model predicts. If None, the last one; not used for .npz files.
        categorical: columns of numbers that are categories none the less.
        standardise: whether the mean over the training rows is subtracted from numeric columns,
            and each divided by its standard deviation (a column of one value is only centred).
        delimiter: the character between two cells of a .csv file.
        test_fraction: share of the rows that becomes the test set, at least 0 and below 1; rounded
            up to one row. With 0 the test set is the training set itself.
        limits: lowest and highest value of numeric columns, such as ``{age: [0, 120]}``, that a
            server is told, as it may know what a column means; attacks keep to them. It is always
            told the values of categorical columns, whose entries are from 0 to 1, and of other
            columns nothing.
        batch_size: see :class:`PrivateData`.

    Raises:
        BadInput: if ``test_fraction`` is out of range, ``delimiter`` is no single character, or
            limits are no two numbers in order.
    """

    name = "table"
    kind: ClassVar[Kind] = "tables"

    def __init__(
        self,
        *,
        path: str,
        target: str | None = None,
        categorical: list[str] | None = None,
        standardise: bool = True,
        delimiter: str = ",",
        test_fraction: float = 0.1,
        limits: dict[str, list[float]] | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size=batch_size)
        require(
            0 <= test_fraction < 1,
            f"Expected `test_fraction` to be at least 0 and below 1, got {test_fraction}.",
        )
        require(
            len(delimiter) == 1,
            f"Expected `delimiter` to be one character, got {delimiter!r:.60}.",
        )
        for name, pair in (limits or {}).items():
            require(
                len(pair) == 2 and pair[0] < pair[1],
                f"Expected the lowest and the highest value of {name} as `limits`, got {pair}.",
            )
        self.path = path
        self.limits = dict(limits or {})
        self.target = target
        self.categorical = list(categorical or [])
        self.standardise = standardise
        self.delimiter = delimiter
        self.test_fraction = test_fraction
        self._loaded: tuple[TableSet, TableSet] | None = None
        self._columns: list[TableColumn] = []
        self._classes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Load the table; only the first call has an effect.

        Args:
            stage: Lightning's stage; all stages use the same two sets.

        Raises:
            BadInput: if the file is missing, damaged or not usable.
        """
        if self._loaded is None:
            self._loaded = self._load()

    def _load(self) -> tuple[TableSet, TableSet]:
        archive = Path(self.path).suffix == ".npz"
        columns, targets = self._read_npz() if archive else self._read_csv()
        rows = len(targets)
        require(rows >= 2, f"Expected at least 2 rows in `{self.path}`, got {rows}.")
        count = max(1, round(rows * self.test_fraction)) if self.test_fraction else 0
        order = np.random.default_rng(_SPLIT_SEED).permutation(rows)
        train = order[: rows - count]
        test = order[rows - count :] if count else order
        inputs = self._encode(columns, train)
        labels = torch.from_numpy(self._labels(targets))
        return tuple(  # type: ignore[return-value]
            TableSet(torch.from_numpy(inputs[part]), labels[torch.from_numpy(part)])
            for part in (train, test)
        )

    def _read_csv(self) -> tuple[dict[str, Cells], Cells]:
        path = find_data_path(self.path)
        names, rows = read_cells(path, self.delimiter)
        target = names[-1] if self.target is None else self.target
        for name in (target, *self.categorical):
            if name not in names:
                raise unknown_name(f"column of `{self.path}`", name, names)
        require(
            len(names) >= 2, f"Expected at least two columns in `{self.path}`, got {len(names)}."
        )
        columns = {name: np.array([row[at] for row in rows]) for at, name in enumerate(names)}
        return columns, columns.pop(target)

    def _read_npz(self) -> tuple[dict[str, Cells], Cells]:
        def choose(found: list[str]) -> list[str]:
            pair = [
                next((key for key in keys if key in found), None)
                for keys in (_INPUT_KEYS, _TARGET_KEYS)
            ]
            if None in pair:
                raise BadInput(
                    f"Expected one of the arrays {', '.join(_INPUT_KEYS)} with one of "
                    f"{', '.join(_TARGET_KEYS)} in `{self.path}`, got {', '.join(found) or 'none'}."
                )
            return [key for key in pair if key is not None]

        inputs, targets = read_arrays(self.path, choose, ("x", "y")).values()
        require(
            inputs.ndim == 2 and targets.ndim == 1 and len(inputs) == len(targets),
            f"Expected inputs (N, columns) and a target (N,) in `{self.path}`, got "
            f"{inputs.shape} and {targets.shape}.",
        )
        for what, values in (("inputs", inputs), ("target", targets)):
            require(
                values.dtype.kind in "iufb" and bool(np.isfinite(values.astype(float)).all()),
                f"Expected finite numbers as {what} in `{self.path}`, got {values.dtype} with "
                "others.",
            )
        columns = {str(at): inputs[:, at].astype(float) for at in range(inputs.shape[1])}
        for name in self.categorical:
            if name not in columns:
                raise unknown_name(f"column of `{self.path}`", name, columns)
        return columns, targets.astype(float)

    def _encode(self, columns: dict[str, Cells], train: Cells) -> npt.NDArray[np.float32]:
        """The samples, float32 ``(N, entries)``; sets the columns."""
        for name in self.limits:
            if name not in columns:
                raise unknown_name(f"column of `{self.path}`", name, columns)
        parts: list[npt.NDArray[np.float32]] = []
        start = 0
        for name, cells in columns.items():
            numbers = None if name in self.categorical else _numbers(cells)
            if numbers is None:
                values, codes = np.unique(_texts(cells), return_inverse=True)
                guess = float(np.bincount(codes[train]).argmax())
                require(
                    name not in self.limits,
                    f"Expected `limits` of numeric columns, got them of {name}, which has the "
                    f"categories {', '.join(map(str, values))!s:.100}.",
                )
                column = TableColumn(
                    name, start, tuple(map(str, values)), guess=guess, low=0.0, high=1.0
                )
                parts.append(np.eye(len(values), dtype=np.float32)[codes])
            else:
                mean, spread = float(numbers[train].mean()), float(numbers[train].std())
                # A column of one value has no spread to compare an error with.
                spread = spread or 1.0
                scaling = (mean, spread) if self.standardise else (0.0, 1.0)
                low, high = self.limits.get(name, (-math.inf, math.inf))
                require(
                    low <= float(numbers.min()) and float(numbers.max()) <= high,
                    f"Expected values of {name} from {low:g} to {high:g}, as `limits` say, got "
                    f"{numbers.min():g} to {numbers.max():g}.",
                )
                column = TableColumn(
                    name, start, (), *scaling, guess=mean, spread=spread, low=low, high=high
                )
                parts.append(((numbers - column.mean) / column.std).astype(np.float32)[:, None])
            self._columns.append(column)
            start += column.width
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def _labels(self, targets: Cells) -> npt.NDArray[Any]:
        numbers = _numbers(targets)
        if numbers is not None and not (numbers == numbers.round()).all():
            return numbers.astype(np.float32)
        # Numbers are ordered as such: 10 follows 9.
        values, codes = np.unique(
            _texts(targets) if numbers is None else numbers, return_inverse=True
        )
        if numbers is not None and len(values) > MOST_CLASSES:
            return numbers.astype(np.float32)
        require(
            2 <= len(values) <= MOST_CLASSES,
            f"Expected 2 to {MOST_CLASSES} classes in the target of `{self.path}`, got "
            f"{len(values)}.",
        )
        self._classes = [str(v) if numbers is None else f"{v:g}" for v in values]
        return codes.astype(np.int64)

    @property
    def _sets(self) -> tuple[TableSet, TableSet]:
        self.setup()
        assert self._loaded is not None  # setup has set it
        return self._loaded

    @property
    def train_set(self) -> TableSet:
        """The training rows, which are partitioned over the clients."""
        return self._sets[0]

    @property
    def test_set(self) -> TableSet:
        """The test rows, on which no client trains."""
        return self._sets[1]

    @property
    def columns(self) -> list[TableColumn]:
        """The columns without the target, in the table's order."""
        self.setup()
        return self._columns

    @property
    def classes(self) -> list[str]:
        """The target's values in the order of the labels; empty if the target is a number."""
        self.setup()
        return self._classes

    @property
    def input_shape(self) -> tuple[int]:
        """Number of entries of a sample."""
        return (int(self.train_set.inputs.shape[1]),)

    @property
    def num_classes(self) -> int:
        """The number of classes; 1 if the target is a number."""
        return len(self.classes) or 1

    @property
    def mean(self) -> tuple[float, ...]:
        """The value subtracted from each entry of a sample."""
        return tuple(column.mean for column in self.columns for _ in range(column.width))

    @property
    def std(self) -> tuple[float, ...]:
        """The value by which each entry is divided afterwards."""
        return tuple(column.std for column in self.columns for _ in range(column.width))

    @property
    def value_range(self) -> tuple[Tensor, Tensor] | None:
        """See :attr:`PrivateData.value_range`: the limits of each entry; None if none has any."""
        low, high = (
            torch.tensor(
                [getattr(column, side) for column in self.columns for _ in column.entries],
                dtype=torch.float64,
            )
            for side in ("low", "high")
        )
        return None if bool((low.isinf() & high.isinf()).all()) else (low, high)

    def describe(self) -> str:
        """The file's name, and the numbers of rows and columns, in one line."""
        categorical = sum(bool(column.categories) for column in self.columns)
        return (
            f"{Path(self.path).name}: {len(self.train_set):,} rows for training, "
            f"{len(self.test_set):,} for the test, {len(self.columns)} columns, "
            f"{categorical} of them categorical"
        )


def read_cells(path: Path, delimiter: str) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows of a .csv file.

    Args:
        path: the file, text in UTF-8, the names in its first line.
        delimiter: the character between two cells.

    Raises:
        BadInput: if the file is missing, larger than ``updates.files.LARGEST`` bytes or no such
            table, a name is empty or occurs twice, or a cell is empty.
    """
    require(path.is_file(), f"Expected `path` to be a .csv or .npz file, found no file `{path}`.")
    size = path.stat().st_size
    require(size <= LARGEST, f"Expected at most {LARGEST:,} bytes in `{path}`, got {size:,}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            names = [name.strip() for name in next(reader, [])]
            require(
                bool(names) and all(names) and len(set(names)) == len(names),
                f"Expected the columns' names, each once, in the first line of `{path}`, got "
                f"{names!s:.200}.",
            )
            rows: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                cells = [cell.strip() for cell in row]
                where = f"line {reader.line_num} of `{path}`"
                require(
                    len(cells) == len(names),
                    f"Expected {len(names)} cells in {where}, got {len(cells)}.",
                )
                if "" in cells:
                    raise BadInput(
                        f"Expected no empty cells, got one in column {names[cells.index('')]} in "
                        f"{where}: fill it in or remove the row."
                    )
                rows.append(cells)
    except UnicodeDecodeError as error:
        raise BadInput(f"Expected text in UTF-8 in `{path}`, got other bytes.") from error
    except csv.Error as error:
        raise BadInput(f"Expected a table in `{path}`, got: {error}.") from error
    return names, rows


def _numbers(cells: Cells) -> npt.NDArray[np.float64] | None:
    """The cells as finite numbers; None if they are none."""
    try:
        found = cells.astype(np.float64)
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _texts(cells: Cells) -> Cells:
    """The cells as text; whole numbers without a decimal point."""
    if cells.dtype.kind == "f":
        return np.array([f"{value:g}" for value in cells])
    return cells


def columns_of(data: PrivateData, sample: Sequence[int] = range(1000)) -> list[TableColumn]:
    """The columns of a data set of tables, those of a user's own too.

    Args:
        data: the data set; if it has no ``columns``, each entry of a sample is one.
        sample: positions of the training samples from which their spread is taken.
    """
    known: list[TableColumn] | None = getattr(data, "columns", None)
    if known is not None:
        return known
    chosen = [at for at in sample if at < len(data.train_set)]
    return numeric_columns(data.train_set.batch(chosen)[0].flatten(1))
