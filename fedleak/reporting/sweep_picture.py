"""The picture of a sweep, as papers show it: originals beside reconstructions, by data set."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedleak.config import BOTTLENECK
from fedleak.metrics import to_space
from fedleak.registry import short_name
from fedleak.reporting.drawing import fitted
from fedleak.reporting.sweep_tables import Measured, read_cells, splitting_axes
from fedleak.runs.scoring import ImageScoring, Picture, scoring_class, to_picture
from fedleak.runs.summary import read_summary
from fedleak.sweep import Study, SweepFolder, load_study

VICTIMS = 6  # rows of a data set
SIDE = 64  # pixels of an image's longer side
GAP = 8
LINE = 15
FONT = 12
WIDTH = 1600  # of a band of groups; further groups go into another band

# Seed, round, client, position in the batch.
Victim = tuple[int, int, int, int]
Title = tuple[str, ...]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Scaling = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass
class Group:
    """A model's originals and its columns of reconstructions.

    Args:
        originals: victim -> pixels of the original, where it is available.
        columns: lines of the title -> victim -> (pixels, SSIM as text).
    """

    originals: dict[Victim, Picture] = field(default_factory=dict)
    columns: dict[Title, dict[Victim, tuple[Picture, str]]] = field(default_factory=dict)

    @property
    def titles(self) -> list[Title]:
        """Its columns in order: those of the undefended model come first."""
        return sorted(self.columns, key=lambda title: title[1] != "base")


@dataclass
class Block:
    """A data set's groups, by title, and the victims that are shown."""

    victims: list[Victim]
    groups: dict[str, Group] = field(default_factory=dict)


def write_picture(output: Path) -> Path | None:
    """Draw a block for each data set: a row for each victim, and for each model a group of columns.

    Originals are drawn where the cell's summary.json records the data's scaling.

    Args:
        output: the sweep's folder.

    Returns:
        The file written, picture.png; None if no images were attacked.

    Raises:
        BadInput: if the study, a summary.json or a truth file is damaged.
    """
    folder = SweepFolder(output)
    study = load_study(folder.study)
    cells = [cell for cell in read_cells(folder) if scoring_class(cell.config) is ImageScoring]
    if not cells:
        return None
    spaces = {cell.config.metrics.space for cell in cells}
    space = "pixels in [0, 1]" if spaces == {"pixels"} else " or ".join(sorted(spaces))
    file = output / "picture.png"
    draw(_blocks(study, cells), f"The number below a reconstruction is its SSIM on {space}.").save(
        file
    )
    return file


def _blocks(study: Study, cells: Sequence[Measured]) -> dict[str, Block]:
    splits = splitting_axes(study, cells)
    blocks: dict[str, Block] = {}
    for cell in cells:
        name = cell.config.data_name
        if name not in blocks:
            all_ = chain.from_iterable(
                _victims(other) for other in cells if other.config.data_name == name
            )
            blocks[name] = Block(sorted(set(all_))[:VICTIMS])
        summary = cell.folder.summary
        data = read_summary(summary)["data"] if summary.is_file() else {}
        scaling = (tuple(data["mean"]), tuple(data["std"])) if data else None
        _add(blocks[name], cell, study, splits, scaling)
    return blocks


def _victims(cell: Measured) -> list[Victim]:
    seed = cell.config.seed
    return [(seed, int(row["round"]), int(row["client"]), int(row["sample"])) for row in cell.rows]


def _add(
    block: Block, cell: Measured, study: Study, splits: Sequence[str], scaling: Scaling | None
) -> None:
    """Add a cell's pictures to the block of its data set."""
    # Attacks and defences get columns; any other axis, such as the batch size, may change the
    # originals and gets a group with its own originals.
    beside = [axis for axis in splits if _is_column(study, axis)]
    own = [cell.axes[axis] for axis in splits if axis not in beside]
    model = cell.config.model.class_path.rsplit(".", 1)[-1]
    group = block.groups.setdefault(", ".join([model, *own]), Group())
    variants = {part.model_name: name for name, part in cell.config.variants.items()}
    attacks = {
        short_name("attacks", plugin.class_path): plugin.class_path.rsplit(".", 1)[-1]
        for plugin in cell.config.attacks
    }
    for row, victim in zip(cell.rows, _victims(cell), strict=True):
        if victim not in block.victims:
            continue
        kind = row["model"].partition("+")[2].upper() or "base"
        defense = [] if row["defense"] == "none" else [row["defense"]]
        labels = [*defense, *(cell.axes[axis] for axis in beside)]
        title = (attacks.get(row["attack"], row["attack"]), kind, *labels)
        file = cell.folder.reconstruction(row)
        if file.is_file():
            similarity = f"{float(row['ssim']):.4f}" if row["ssim"] else ""
            picture = np.asarray(Image.open(file))
            group.columns.setdefault(title, {}).setdefault(victim, (picture, similarity))
        if victim not in group.originals and scaling is not None:
            truth = cell.folder.read_truth(variants.get(row["model"], ""), *victim[1:3])
            if truth is not None:
                pixels = to_space(truth.inputs[victim[3]], *scaling, "pixels")
                group.originals[victim] = to_picture(pixels)


def _is_column(study: Study, axis: str) -> bool:
    keys = [key for choice in study.axes[axis] for key in choice.settings]
    beside = ("attacks", "defenses", f"model.{BOTTLENECK}", f"model.init_args.{BOTTLENECK}")
    return all(any(key == n or key.startswith(f"{n}.") for n in beside) for key in keys)


def draw(blocks: Mapping[str, Block], caption: str) -> Image.Image:
    """Draw the picture.

    Args:
        blocks: name of the data set -> its block.
        caption: text below the picture.
    """
    font = ImageFont.load_default(size=FONT)
    pages = []
    for name, block in blocks.items():
        bands = _bands(block, font)
        pages += [_band(block, band, name if not i else "", font) for i, band in enumerate(bands)]
    width = max(page.width for page in pages)
    lines = textwrap.wrap(caption, max(20, int(width / font.getlength("x"))))
    height = sum(page.height for page in pages) + GAP + LINE * len(lines)
    figure = Image.new("RGB", (width, height), "white")
    top = 0
    for page in pages:
        figure.paste(page, (0, top))
        top += page.height
    pen = ImageDraw.Draw(figure)
    for number, line in enumerate(lines):
        pen.text((GAP, top + number * LINE), line, fill="black", font=font)
    return figure


def _bands(block: Block, font: Font) -> list[list[tuple[str, Group, int]]]:
    """The groups and the widths of their columns, in bands that fit on a page."""
    bands: list[list[tuple[str, Group, int]]] = [[]]
    room = WIDTH
    for title, group in block.groups.items():
        texts = ["original", *chain.from_iterable(group.titles)]
        columns = 1 + len(group.columns)
        widest = max(SIDE, *(font.getlength(text) for text in texts))
        step = int(max(widest, font.getlength(title) / columns)) + GAP
        if bands[-1] and step * columns > room:
            bands.append([])
            room = WIDTH
        room -= step * columns + GAP
        bands[-1].append((title, group, step))
    return bands


def _band(
    block: Block, band: Sequence[tuple[str, Group, int]], name: str, font: Font
) -> Image.Image:
    """Draw groups side by side, below the name of their data set."""
    head = GAP + LINE * (1 + max(len(title) for _, group, _ in band for title in group.titles))
    top = GAP + (LINE + GAP if name else 0)
    step = SIDE + LINE + GAP // 2
    width = GAP + sum((1 + len(group.columns)) * column + GAP for _, group, column in band)
    size = max(width, GAP + int(font.getlength(name))), top + head + len(block.victims) * step + GAP
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), name, fill="black", font=font, stroke_width=0.5)
    left = GAP
    for title, group, column in band:
        pen.text((left, top), title, fill="black", font=font, stroke_width=0.5)
        right = left + (1 + len(group.columns)) * column - GAP
        pen.line((left, top + LINE + 2, right, top + LINE + 2), fill="grey")
        for number, heading in enumerate([("original",), *group.titles]):
            x = left + number * column
            text = "\n".join(heading)
            y = top + LINE + GAP // 2
            pen.multiline_text((x, y), text, fill="black", font=font, spacing=LINE - FONT)
            for row, victim in enumerate(block.victims):
                cell = _cell(block, group, heading if number else None, victim)
                if cell is not None:
                    y = top + head + row * step
                    page.paste(fitted(cell[0], SIDE), (x, y))
                    pen.text((x, y + SIDE), cell[1], fill="black", font=font)
        left += (1 + len(group.columns)) * column + GAP
    return page


def _cell(
    block: Block, group: Group, title: Title | None, victim: Victim
) -> tuple[Picture, str] | None:
    """The pixels of a cell and the text below; without a title, those of the original."""
    if title is not None:
        return group.columns[title].get(victim)
    seed, round_, client, _ = victim
    parts = [f"client {client}"]
    if len({other[1] for other in block.victims}) > 1:
        parts = [f"r{round_} c{client}"]
    if len({other[0] for other in block.victims}) > 1:
        parts.append(f"s{seed}")
    original = group.originals.get(victim)
    return None if original is None else (original, " ".join(parts))
