"""PNG figures: originals beside reconstructions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from fedleak.reporting import (
    write_figures,
)
from fedleak.reporting.figures import CARD, FIGURE, draw_page
from fedleak.reporting.panels import Panel, read_panels
from fedleak.runs.folder import RunFolder
from tests.federation.runs import (
    Finished,
    in_process,
)

SCALING = (0.0,), (1.0,)
PAIRS = [("iga", "smlp"), ("iga", "smlp+precode"), ("nra", "smlp+precode")]


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with in_process():
        yield


def _data(finished: Finished) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from fedleak.build import make_data

    data = make_data(finished.config)
    return data.mean, data.std


def picture_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ----------------------------------------------------------------------------------------- figures


CELL, GAP, LINE = 128, 12, 18
UNDER = 2 * LINE  # SSIM, and that a reconstruction is not supported


def cell_of(
    figure: np.ndarray,
    row: int,
    column: int,
    columns: list[str],
    label: str = "",
    under: int = LINE,
) -> np.ndarray:
    """The pixels of one image in a figure whose longest label is given."""
    font = ImageFont.load_default(size=12)
    width = max(CELL + GAP, *(int(font.getlength(title)) + GAP for title in columns))
    first = max(width, int(font.getlength(label)) + GAP)
    left = GAP + (first + (column - 1) * width if column else 0)
    top = GAP + LINE + row * (CELL + GAP + under)
    return figure[top : top + CELL, left : left + CELL]


def test_a_figure_shows_originals_beside_reconstructions(finished: Finished) -> None:
    figure = picture_of(finished.folder.figures / "reconstructions.png")
    columns = ["original", *[f"{attack} on {model}" for attack, model in PAIRS]]
    assert figure.shape[0] == GAP + LINE + 16 * (CELL + GAP + UNDER) + LINE
    assert figure.shape[2] == 3
    panels = read_panels(finished.folder, finished.config, *_data(finished))
    for row, panel in enumerate(panels):
        assert list(panel.reconstructions) == columns[1:]
        key = f"r{panel.round:04d}-c{panel.client:04d}-{panel.sample}"
        for column, title in enumerate(columns):
            cell = cell_of(figure, row, column, columns, "round 1, client 0, sample 1", UNDER)
            if column:
                attack, model = title.split(" on ")
                name = f"{model}-{attack}-{key}.png"
                stored = picture_of(finished.folder.reconstructions / name)
            else:
                stored = panel.original
            assert stored is not None
            enlarged = stored.repeat(CELL // 8, axis=0).repeat(CELL // 8, axis=1)
            assert np.array_equal(cell, np.repeat(enlarged[..., None], 3, axis=2))


def test_grey_stays_grey(finished: Finished) -> None:
    for path in finished.folder.reconstructions.iterdir():
        assert Image.open(path).mode == "L"
    figure = picture_of(finished.folder.figures / "reconstructions.png").astype(int)
    assert (np.ptp(figure, axis=2) == 0).all()


def test_colour_and_odd_shapes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    large = generator.integers(0, 256, (300, 200), dtype=np.uint8)
    panels = [
        Panel(1, 0, 0, wide, {"iga on m": (wide[::-1], 0.5)}),
        Panel(1, 1, 0, None, {"nra on m": (large, None)}),
    ]
    titles = ["iga on m", "nra on m"]
    figure = np.asarray(draw_page(panels, titles, "caption"))
    columns = ["original", *titles]
    cell = cell_of(figure, 0, 0, columns)
    assert np.array_equal(cell[: CELL // 2], wide.repeat(8, axis=0).repeat(8, axis=1))
    assert (cell[CELL // 2 + LINE :] == 255).all()
    flipped = cell_of(figure, 0, 1, columns)[: CELL // 2]
    assert np.array_equal(flipped, wide[::-1].repeat(8, axis=0).repeat(8, axis=1))
    # What is not known, and what was not attacked, stays white.
    assert (cell_of(figure, 1, 0, columns) == 255).all()
    assert (cell_of(figure, 1, 1, columns) == 255).all()
    shrunk = cell_of(figure, 1, 2, columns)
    assert (shrunk[:, : CELL * 200 // 300] < 255).any()
    assert (shrunk[:, CELL * 200 // 300 + 1 :] == 255).all()


def test_a_long_label_keeps_clear_of_the_next_column() -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    panels = [Panel(12, 103, 17, picture, {"iga on m": (picture, 0.5)})]
    figure = np.asarray(draw_page(panels, ["iga on m"], ""))
    columns = np.flatnonzero((figure[GAP + LINE + CELL :] < 255).any(axis=(0, 2)))
    ends = columns[np.flatnonzero(np.diff(columns, append=9999) >= GAP)]
    label = int(ImageFont.load_default(size=12).getlength("round 12, client 103, sample 17"))
    # The label ends, and after a gap the SSIM of the second column begins.
    assert len(ends) == 2
    assert abs(int(ends[0]) - (GAP + label)) <= 2


def test_a_card_of_four_columns_fits_tensorboards_space() -> None:
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    titles = ["iga on smlp", "iga on smlp+precode", "nra on smlp+precode"]
    panels = [
        Panel(2, client, 0, picture, dict.fromkeys(titles, (picture, 0.5)))
        for client in range(CARD.rows)
    ]
    card = draw_page(panels, titles, "", CARD)
    assert card.width <= 345
    assert card.height <= 210


def test_many_victims_go_on_several_pages(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.reporting.figures.FIGURE", replace(FIGURE, rows=6))
    folder = RunFolder(tmp_path)
    folder.figures.mkdir()
    for name in ("results", "reconstructions"):
        setattr(folder, name, getattr(finished.folder, name))
    files = write_figures(folder, finished.config, *SCALING)
    assert [path.name for path in files] == [
        "reconstructions.png", "reconstructions-2.png", "reconstructions-3.png",
    ]  # fmt: skip
    heights = [Image.open(path).height for path in files]
    assert heights[0] == heights[1] > heights[2]


def test_without_results_there_is_no_figure(tmp_path: Path, finished: Finished) -> None:
    assert write_figures(RunFolder(tmp_path), finished.config, *SCALING) == []
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ tables


# ----------------------------------------------------------------------------------------- display
