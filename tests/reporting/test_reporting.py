"""What a person sees: event files, figures, tables, the display."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from fedleak.attacks import Progress
from fedleak.config import Federation, Metrics, Victims
from fedleak.registry import KINDS, names
from fedleak.reporting import (
    Display,
    paths_line,
    plugin_table,
    results_table,
    rounds_table,
    write_figures,
)
from fedleak.reporting.figures import CARD, FIGURE, draw_page
from fedleak.reporting.panels import Panel, read_panels
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.summary import summarise_rounds
from tests.federation.runs import (
    Finished,
    finished_run,
    in_process,
)

SCALING = (0.0,), (1.0,)
PAIRS = [("iga", "smlp"), ("iga", "smlp+precode"), ("nra", "smlp+precode")]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)


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


def cell_of(
    figure: np.ndarray, row: int, column: int, columns: list[str], label: str = ""
) -> np.ndarray:
    """The pixels of one image in a figure whose longest label is given."""
    font = ImageFont.load_default(size=12)
    width = max(CELL + GAP, *(int(font.getlength(title)) + GAP for title in columns))
    first = max(width, int(font.getlength(label)) + GAP)
    left = GAP + (first + (column - 1) * width if column else 0)
    top = GAP + LINE + row * (CELL + GAP + LINE)
    return figure[top : top + CELL, left : left + CELL]


def test_a_figure_shows_originals_beside_reconstructions(finished: Finished) -> None:
    figure = picture_of(finished.folder.figures / "reconstructions.png")
    columns = ["original", *[f"{attack} on {model}" for attack, model in PAIRS]]
    assert figure.shape[0] == GAP + LINE + 16 * (CELL + GAP + LINE) + LINE
    assert figure.shape[2] == 3
    panels = read_panels(finished.folder, finished.config, *_data(finished))
    for row, panel in enumerate(panels):
        assert list(panel.reconstructions) == columns[1:]
        key = f"r{panel.round:04d}-c{panel.client:04d}-{panel.sample}"
        for column, title in enumerate(columns):
            cell = cell_of(figure, row, column, columns, "round 1, client 0, sample 1")
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


def printed(thing: object, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_the_results_table_fits_a_terminal(finished: Finished) -> None:
    lines = printed(results_table(finished.summary, finished.config))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for entry in finished.summary["attacks"]:
        row = next(
            line for line in lines
            if [entry["attack"], entry["model"]] == line.replace("│", " ").split()[:2]
        )  # fmt: skip
        cells = row.replace("│", " ").split()
        assert cells[2:] == [
            str(entry["n"]), f"{entry['ssim']:.4f}", f"{entry['psnr']:.2f}",
            f"{entry['mse']:.2e}", f"{entry['asr']:.0%}", f"{entry['seconds']:.1f}",
        ]  # fmt: skip
    for words in ("What the updates leak: tiny", "fedsgd, batch size 2, labels known", "[0, 1]"):
        assert words in text


def test_rounds_stand_side_by_side(finished: Finished) -> None:
    rows = read_rows(finished.folder.results)
    entries = summarise_rounds(rows)
    assert [entry["round"] for entry in entries] == [1, 2] * (len(entries) // 2)
    for entry in entries:
        own = [
            row["ssim"] for row in rows
            if all(row[name] == entry[name] for name in ("round", "attack", "model"))
        ]  # fmt: skip
        assert (entry["n"], entry["ssim"]) == (len(own), pytest.approx(np.mean(own)))
    table = rounds_table(rows, finished.config)
    assert table is not None
    lines = printed(table)
    assert max(map(len, lines)) <= 80
    assert sum(f"{entry['ssim']:.4f}" in "".join(lines) for entry in entries) == len(entries)
    second = [row for row in rows if row["round"] == 2]
    assert rounds_table(second, finished.config) is None


def test_a_table_with_long_names_and_large_numbers_fits_too(finished: Finished) -> None:
    entry = finished.summary["attacks"][0] | {
        "attack": "partial_iga", "model": "resnet18+precode", "n": 10_000, "psnr": -123.45,
        "seconds": 12_345.6, "mse": None, "asr": None,
    }  # fmt: skip
    config = replace(
        finished.config, metrics=Metrics(space="normalised"),
        federation=Federation(rounds=100), victims=Victims(labels="recovered"),
    )  # fmt: skip
    lines = printed(results_table({"attacks": [entry]}, config))
    assert max(map(len, lines)) <= 80
    text = " ".join("\n".join(lines).split())
    for words in ("10000", "-123.45", "12345.6", "round 1 to 100 of 100", "normalised images"):
        assert words in text


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_plugins_fit_a_terminal(kind: str) -> None:
    lines = printed(plugin_table(kind))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(f"│ {name} " in text for name in names(kind))
    assert ":class:" not in text
    if kind == "attacks":
        assert "arxiv.org/abs/2003.14053" in text
        assert "labels" in text


def test_where_to_look_next(finished: Finished, tmp_path: Path) -> None:
    text = paths_line(finished.folder).plain
    assert str(finished.folder.figures / "reconstructions.png") in text
    assert str(finished.folder.results) in text
    assert f"tensorboard --logdir {finished.folder.path.parent}" in text
    assert "figures" not in paths_line(RunFolder(tmp_path)).plain


# ----------------------------------------------------------------------------------------- display


def replayed(finished: Finished, *, terminal: bool, width: int = 80) -> str:
    """What a display prints of the finished run, and of some trouble after it."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    with Display(console) as display:
        for name, arguments in finished.events.events:
            getattr(display, name)(*arguments)
        display.federation_started("lenet", 1, 3, 5)
        display.client_failed("lenet", 3, 0, "a [bold]long[/] story\n" * 50)
        display.attack_progressed("iga", "lenet", Progress(50, 100, 0.25))
        display.victim_attacked(*finished.events.arguments("victim_attacked")[0])
        display.round_evaluated("lenet", 3, {})
        display.run_ended("interrupted")
    return file.getvalue()


def test_without_a_terminal_there_are_plain_lines(finished: Finished) -> None:
    text = replayed(finished, terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert re.fullmatch(r"Data .+: \d+ samples for training, \d+ for the test", lines[0])
    assert lines[1] == "Federation of 4 clients training smlp: 2 rounds"
    assert lines[2].startswith("  round 0: loss ")
    assert ", accuracy " in lines[2]
    assert lines.index("Attack iga on smlp: 8 updates") < lines.index(
        "Attack nra on smlp skipped: nra needs a model that draws noise and SMLP draws none"
    )
    means = [line for line in lines if line.startswith("  mean SSIM ")]
    assert means == [
        f"  mean SSIM {entry['ssim']:.4f} of 16 samples" for entry in finished.summary["attacks"]
    ]
    assert lines[lines.index("Attack iga on smlp: 8 updates") + 1] == means[0]
    assert "Federation of 1 client training lenet: rounds 3 to 5" in lines
    (failure,) = [line for line in lines if "failed" in line]
    assert failure.startswith("  round 3: client 0 failed: a [bold]long[/] story a [bold]long[/]")
    assert len(failure) < 240
    assert "  round 3: done" in lines
    assert any(line.startswith("  iga on smlp: r0001-c0000 mean SSIM ") for line in lines)
    assert lines[-1] == "Run interrupted; go on with it by `--resume`."


def test_in_a_terminal_there_are_bars(finished: Finished) -> None:
    text = replayed(finished, terminal=True)
    for words in ("Federation of 4 clients", "mean SSIM", "Run interrupted"):
        assert words in text
    assert "━" in text


def test_long_attacks_report_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.reporting.display.LINE_SECONDS", -1.0)
    file = io.StringIO()
    with Display(Console(file=file, width=80)) as display:
        display.attack_started("iga", "smlp", 20, 16)
        display.attack_progressed("iga", "smlp", Progress(100, 200, 0.25))
    assert file.getvalue().splitlines() == [
        "Attack iga on smlp: 20 updates, 16 of them done before",
        "  iteration 100 of 200, cost 2.50e-01",
    ]


def test_bars_start_again_with_the_next_updates(finished: Finished) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Display(console) as display:
        display.attack_started("iga", "smlp", 20, 0)
        for iteration in (0, 50, 100, 0, 50):
            display.attack_progressed("iga", "smlp", Progress(iteration, 100, 0.25))
        task = next(t for t in display._bars.tasks if "iterations" in t.description)
        assert (task.completed, task.total, task.finished) == (50, 100, False)
