"""A study: its file, and the cells of its grid.

A study's file contains ``base``, settings of a run, and ``grid``: a list of values for each axis,
where a value is a name and the settings that it changes. Every combination of values is a cell. In
the text of a setting, ``${axis}`` is replaced by the name of the cell's value on that axis, as
listed in cells.csv. In YAML's flow style, such a text must be quoted.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from fedleak.config import RunConfig, check_plugins
from fedleak.errors import BadInput, require, unknown_name
from fedleak.runtime.safe_yaml import read_yaml
from fedleak.schema import shown
from fedleak.sweep.settings import Settings, check_names, fill_placeholders, flatten, merge_layers

KEYS = ("base", "grid", "skip", "processes", "threads")
# The columns of cells.csv besides the axes, which no axis can be named after.
RESERVED_COLUMNS = ("cell", "folder", "config_hash")
SLUG_LENGTH = 120


@dataclass(frozen=True)
class Choice:
    """A value of an axis.

    Args:
        name: its name.
        settings: the settings that it changes, by dotted names.
    """

    name: str
    settings: Settings


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Args:
        base: settings of all cells, by dotted names.
        axes: the values of each axis, by the axis's name.
        skip: combinations that are left out; each gives names of values for some axes.
        processes: number of cells that run at once, at least 1.
        threads: number of threads of each cell, at least 1. If None, the cores are divided evenly.
    """

    base: Settings
    axes: dict[str, tuple[Choice, ...]]
    skip: tuple[dict[str, tuple[str, ...]], ...] = ()
    processes: int = 1
    threads: int | None = None

    def skips(self, names: Mapping[str, str]) -> bool:
        """Whether a combination of values, axis by axis, is left out."""
        return any(all(names[axis] in left for axis, left in item.items()) for item in self.skip)

    def to_dict(self) -> dict[str, Any]:
        """The study in the format that :func:`load_study` reads, with all values in long form."""
        return {
            "base": self.base,
            "grid": {
                axis: [{"name": choice.name, "set": choice.settings} for choice in choices]
                for axis, choices in self.axes.items()
            },
            "skip": [{axis: list(left) for axis, left in item.items()} for item in self.skip],
            "processes": self.processes,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        name: its name, which is also the name of its folder.
        axes: the name of its value on each axis.
        config: its configuration, without the output folder.
    """

    name: str
    axes: dict[str, str]
    config: RunConfig


def load_study(path: Path) -> Study:
    """Read the file of a study.

    Args:
        path: a YAML file.

    Raises:
        BadInput: if it is missing or not a valid study.
    """
    require(path.is_file(), f"Expected the file of a study at {path}, found none.")
    values = read_yaml(path)
    require(isinstance(values, dict), f"Expected a mapping in {path}, got {shown(values)}.")
    for key in values:
        if key not in KEYS:
            raise unknown_name("key of a study", str(key), KEYS)
    base = values.get("base") or {}
    require(isinstance(base, dict), f"Expected `base` to be settings of a run, got {shown(base)}.")
    base = {name: value for name, value in flatten(base).items() if not name.startswith("versions")}
    check_names("`base`", base)
    axes = _parse_axes(values.get("grid"))
    threads = values.get("threads")
    return Study(
        base=base,
        axes=axes,
        skip=_parse_skip(values.get("skip") or [], axes),
        processes=_count("processes", values.get("processes", 1)),
        threads=None if threads is None else _count("threads", threads),
    )


def expand(study: Study) -> list[Cell]:
    """The cells of a study: the Cartesian product of its axes; the last axis varies fastest.

    Args:
        study: the study.

    Raises:
        BadInput: if a cell's settings are invalid, two cells have the same settings, or no cell is
            left.
    """
    cells: list[Cell] = []
    owners: dict[str, str] = {}  # hash of the configuration -> cell
    for choices in product(*study.axes.values()):
        axes = {axis: choice.name for axis, choice in zip(study.axes, choices, strict=True)}
        if study.skips(axes):
            continue
        name = _cell_name(axes, [cell.name for cell in cells])
        changes = {key: value for choice in choices for key, value in choice.settings.items()}
        try:
            config = RunConfig.from_dict(fill_placeholders(merge_layers(study.base, changes), axes))
            check_plugins(config)
        except BadInput as error:
            raise BadInput(f"In cell `{name}`: {error}") from error
        require(
            config.hash not in owners,
            f"Expected every cell to be a run of its own, but `{owners.get(config.hash)}` and "
            f"`{name}` have the same settings: leave one out, or `skip` it.",
        )
        owners[config.hash] = name
        cells.append(Cell(name, axes, config))
    require(bool(cells), "Expected at least one cell, but `skip` leaves all of them out.")
    return cells


def study_hash(cells: Sequence[Cell]) -> str:
    """A hash of the cells; comments, order of keys and number of processes do not change it."""
    content = [(cell.name, cell.axes, cell.config.hash) for cell in cells]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _parse_axes(grid: Any) -> dict[str, tuple[Choice, ...]]:
    require(
        isinstance(grid, dict) and bool(grid),
        f"Expected `grid` to hold the values of at least one axis, got {grid!r:.60}.",
    )
    axes: dict[str, tuple[Choice, ...]] = {}
    for name, values in grid.items():
        axis = str(name)
        require(axis not in RESERVED_COLUMNS, f"Expected another name than `{axis}` for an axis.")
        require(
            isinstance(values, list) and bool(values),
            f"Expected axis `{axis}` to be a list of at least one value, got {values!r:.60}.",
        )
        choices = tuple(_parse_choice(axis, value) for value in values)
        for one, other in combinations(choices, 2):
            require(
                one.name != other.name,
                f"Expected the values of axis `{axis}` to have names of their own, "
                f"got `{one.name}` twice.",
            )
        axes[axis] = choices
    for first, second in combinations(axes, 2):
        both = _keys(axes[first]) & _keys(axes[second])
        require(
            not both,
            f"Expected every axis to change settings of its own, but `{first}` and `{second}` both "
            f"set `{min(both, default='')}`.",
        )
    return axes


def _parse_choice(axis: str, value: Any) -> Choice:
    """Parse a value of an axis in its long form or in one of the short forms."""
    where = f"axis `{axis}`"
    if isinstance(value, dict) and ("name" in value or "set" in value):
        for key in value:
            if key not in ("name", "set"):
                raise unknown_name(f"key of a value in {where}", str(key), ("name", "set"))
        require("name" in value, f"Expected every value of {where} to have a `name`.")
        settings = value.get("set") or {}
        require(
            isinstance(settings, dict),
            f"Expected `set` in {where} to be settings by dotted names, got {settings!r:.60}.",
        )
        name, settings = _text(value["name"]), flatten(settings)
    elif isinstance(value, dict) and value:
        settings = flatten(value)
        name = " ".join(f"{key.rsplit('.')[-1]}={_text(v)}" for key, v in settings.items())
    else:
        require(
            not isinstance(value, list | dict),
            f"Expected a value of {where} to be a name with settings, or one setting, "
            f"got {value!r:.60}: write {{name: ..., set: {{...}}}}.",
        )
        name, settings = _text(value), {axis: value}
    check_names(where, settings)
    return Choice(name, settings)


def _parse_skip(
    items: Any, axes: Mapping[str, Sequence[Choice]]
) -> tuple[dict[str, tuple[str, ...]], ...]:
    require(
        isinstance(items, list) and all(isinstance(item, dict) and item for item in items),
        f"Expected `skip` to be a list of names of values by axis, got {items!r:.60}.",
    )
    found = []
    for item in items:
        match: dict[str, tuple[str, ...]] = {}
        for axis, value in item.items():
            if axis not in axes:
                raise unknown_name("axis in `skip`", str(axis), axes)
            names = [_text(name) for name in (value if isinstance(value, list) else [value])]
            known = [choice.name for choice in axes[axis]]
            for name in names:
                if name not in known:
                    raise unknown_name(f"value of axis `{axis}` in `skip`", name, known)
            match[axis] = tuple(names)
        found.append(match)
    return tuple(found)


def _cell_name(axes: Mapping[str, str], taken: Sequence[str]) -> str:
    """A readable name for a cell, valid as a file name and unique when case is ignored."""
    parts = []
    for axis, name in axes.items():
        short = name if re.match(r"[^\W\d]", name) else f"{axis.rsplit('.')[-1]}{name}"
        parts.append(re.sub(r"[^\w.+=-]+", "-", short).strip("-."))
    slug = whole = "_".join(parts)[:SLUG_LENGTH]
    number = 1
    while slug.lower() in [name.lower() for name in taken]:
        number += 1
        slug = f"{whole}-{number}"
    return slug


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"Expected `{name}` to be a number from 1, got {value!r:.60}.")
    return value


def _keys(choices: Sequence[Choice]) -> set[str]:
    return {key for choice in choices for key in choice.settings}


def _text(value: Any) -> str:
    """A value as text, as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
