"""What a person sees: event files, figures, tables, the display."""

import io
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fedleak import experiment
from fedleak.attacks import Progress
from fedleak.config import Federation, Metrics, Victims
from fedleak.registry import KINDS, Plugin, names
from fedleak.reporting import (
    Display,
    Figures,
    TensorBoard,
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
    Recorder,
    attack_plugin,
    finished_run,
    in_process,
    interrupt,
    tiny_config,
    tiny_data,
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


def read_events(folder: Path) -> EventAccumulator:
    """Everything in a folder's event files, by TensorBoard's own reader."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


@pytest.fixture(scope="session")
def events(finished: Finished) -> EventAccumulator:
    return read_events(finished.folder.tensorboard)


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def picture_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ------------------------------------------------------------------------------------- TensorBoard


def test_training_curves_of_clients_and_of_the_global_model(
    finished: Finished, events: EventAccumulator
) -> None:
    expected: dict[str, list[tuple[int, float]]] = {}
    for model, round_, client, metrics in finished.events.arguments("client_answered"):
        for name, value in metrics.items():
            expected.setdefault(f"{model}/client {client}/{name}", []).append((round_, value))
    for model, round_, metrics in finished.events.arguments("round_evaluated"):
        for name, value in metrics.items():
            expected.setdefault(f"{model}/global/{name}", []).append((round_, value))
    assert "smlp/client 3/train/loss" in expected
    assert "smlp+precode/global/test/accuracy" in expected
    for tag, points in expected.items():
        assert curve(events, tag) == [(step, pytest.approx(value)) for step, value in points]
    assert [step for step, _ in curve(events, "smlp/global/test/loss")] == [0, 1, 2]
    curves = {tag for tag in events.Tags()["scalars"] if "/client " in tag or "/global/" in tag}
    assert curves == set(expected)


def test_the_clients_metrics_are_averaged(finished: Finished, events: EventAccumulator) -> None:
    for model in ("smlp", "smlp+precode"):
        answers = [a for a in finished.events.arguments("client_answered") if a[0] == model]
        for round_, mean in curve(events, f"{model}/clients/train/loss"):
            values = [metrics["train/loss"] for _, r, _, metrics in answers if r == round_]
            assert len(values) == 4
            assert mean == pytest.approx(sum(values) / 4)
        assert [step for step, _ in curve(events, f"{model}/clients/train/loss")] == [1, 2]


def test_what_each_defence_did_by_client_and_averaged(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", clients=3, rounds=2,
        defenses=(
            Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),
            Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 1e6}),
        ),
    )  # fmt: skip
    recorder = Recorder()
    with in_process():
        experiment.run(config, [TensorBoard(config, *SCALING), recorder])
    found = read_events(tmp_path / "run" / "tensorboard")
    for figure in ("norm", "sparsity", "snr_db"):
        name = f"defense/pruning/{figure}"
        each = {c: curve(found, f"smlp/client {c}/{name}") for c in range(3)}
        for _, round_, client, metrics in recorder.arguments("client_answered"):
            assert each[client][round_ - 1] == (round_, pytest.approx(metrics[name], rel=1e-5))
        mean = [sum(each[c][i][1] for c in each) / 3 for i in range(2)]
        averaged = curve(found, f"smlp/clients/{name}")
        assert averaged == [(i + 1, pytest.approx(mean[i], rel=1e-5)) for i in range(2)]
    # The bound is far away: nothing is clipped, and the update is as it was before.
    endless = [(1, math.inf), (2, math.inf)]
    assert curve(found, "smlp/client 0/defense/clipping/snr_db") == endless
    assert curve(found, "smlp/clients/defense/clipping/snr_db") == endless


def test_a_mean_leaves_out_clients_whose_update_was_not_changed(tmp_path: Path) -> None:
    config = tiny_config(tiny_data(tmp_path), tmp_path / "run")
    board = TensorBoard(config, *SCALING)
    for client, value in enumerate([10.0, math.inf, 30.0]):
        board.client_answered("smlp", 1, client, {"defense/clipping/snr_db": value})
    board.round_evaluated("smlp", 1, {})
    board._writer.close()
    found = read_events(tmp_path / "run" / "tensorboard")
    assert curve(found, "smlp/clients/defense/clipping/snr_db") == [(1, 20.0)]
    assert curve(found, "smlp/client 1/defense/clipping/snr_db") == [(1, math.inf)]


def test_attack_cost_against_iteration(finished: Finished, events: EventAccumulator) -> None:
    attacked = finished.events.arguments("victim_attacked")
    assert len(attacked) == 3 * 8
    for attack, model, update, _, reconstruction, _ in attacked:
        points = curve(events, f"{model}/{attack}/cost/{update.key}")
        assert [step for step, _ in points] == [0, 10]
        assert points == [(step, pytest.approx(cost)) for step, cost in reconstruction.costs]


def test_ssim_by_victim(finished: Finished, events: EventAccumulator) -> None:
    rows = read_rows(finished.folder.results)
    for attack, model in PAIRS:
        mine = [row["ssim"] for row in rows if (row["attack"], row["model"]) == (attack, model)]
        points = curve(events, f"{model}/{attack}/ssim")
        assert points == [(step, pytest.approx(ssim)) for step, ssim in enumerate(mine)]
        by_round = [
            (entry["round"], pytest.approx(entry["ssim"])) for entry in summarise_rounds(rows)
            if (entry["attack"], entry["model"]) == (attack, model)
        ]  # fmt: skip
        assert curve(events, f"{model}/{attack}/ssim by round") == by_round
        assert len(points) == 16


def test_image_grids_have_a_step_for_every_victim(
    finished: Finished, events: EventAccumulator
) -> None:
    assert events.Tags()["images"] == ["reconstructions"]
    images = events.Images("reconstructions")
    assert [image.step for image in images] == list(range(16))
    data = _data(finished)
    panels = read_panels(finished.folder, finished.config, *data)
    for image, panel in zip(images, panels, strict=True):
        assert (image.width, image.height) == (4 * 8 + 3 * 2, 8)
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        cells = [pixels[:, 10 * i : 10 * i + 8] for i in range(4)]
        assert panel.original is not None
        shown = [panel.original, *[p for p, _ in panel.reconstructions.values()]]
        for cell, picture in zip(cells, shown, strict=True):
            assert np.array_equal(cell, np.repeat(picture[..., None], 3, axis=2))
        assert (pixels[:, 8:10] == 255).all()


def _data(finished: Finished) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from fedleak.build import make_data

    data = make_data(finished.config)
    return data.mean, data.std


def test_the_configuration_stands_there_as_text(
    finished: Finished, events: EventAccumulator
) -> None:
    assert "config/text_summary" in events.Tags()["tensors"]
    (event,) = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\n")
    assert "bottleneck_size: 6" in text
    assert f"output: {finished.config.output}" in text


def test_hyperparameters_with_the_final_metrics(
    finished: Finished, events: EventAccumulator
) -> None:
    contents = events.summary_metadata
    plugin = HParamsPluginData.FromString(
        contents["_hparams_/session_start_info"].plugin_data.content
    )
    settings = plugin.session_start_info.hparams
    assert settings["model"].string_value == "smlp+precode"
    assert settings["protocol"].string_value == "fedsgd"
    assert settings["batch_size"].number_value == 2
    experiment_ = HParamsPluginData.FromString(contents["_hparams_/experiment"].plugin_data.content)
    tags = {info.name.tag for info in experiment_.experiment.metric_infos}
    for entry in finished.summary["attacks"]:
        for name in ("ssim", "psnr", "mse", "asr"):
            tag = f"hparam/{name} {entry['attack']} on {entry['model']}"
            assert tag in tags
            assert curve(events, tag) == [(0, pytest.approx(entry[name]))]
    accuracy = finished.summary["federation"]["accuracy"]
    assert curve(events, "hparam/accuracy") == [(0, pytest.approx(accuracy))]


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", rounds=2, victim_clients=[0, 1],
        attacks=(attack_plugin("iga", at_once=1),),
    )  # fmt: skip
    counted: list[int] = []

    def third(*_: Any) -> None:
        counted.append(1)
        if len(counted) == 3:
            interrupt()

    observers = [TensorBoard(config, *SCALING), Recorder("victim_attacked", third)]
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, observers)
    halfway = read_events(tmp_path / "run" / "tensorboard")
    assert len(halfway.Images("reconstructions")) == 6
    assert "_hparams_/session_start_info" not in halfway.summary_metadata
    experiment.run(config, [TensorBoard(config, *SCALING)], resume=True)
    whole = read_events(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in curve(whole, "smlp/iga/ssim")] == list(range(8))
    assert [step for step, _ in curve(whole, "smlp/global/test/loss")] == [0, 1, 2]
    assert [image.step for image in whole.Images("reconstructions")] == list(range(8))
    assert len(whole.Tensors("config/text_summary")) == 1
    assert "_hparams_/session_start_info" in whole.summary_metadata


def test_a_resumed_runs_event_file_is_read_after_the_ones_before(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tensorboard"
    folder.mkdir(parents=True)
    # Of this second, and last by what follows it in the name.
    before = folder / f"events.out.tfevents.{int(time.time()):010d}.~.1.9"
    before.touch()
    board = TensorBoard(tiny_config(tiny_data(tmp_path), tmp_path / "run"), *SCALING)
    board.round_evaluated("smlp", 1, {"test/loss": 1.0})
    assert sorted(folder.iterdir())[0] == before
    assert len(list(folder.iterdir())) == 2


def test_a_refused_run_leaves_no_event_files(finished: Finished, tmp_path: Path) -> None:
    before = sorted(finished.folder.path.rglob("*"))
    board = TensorBoard(finished.config, *SCALING)
    figures = Figures(finished.config, *SCALING)
    with pytest.raises(ValueError, match="--resume"):
        experiment.run(finished.config, [board, figures])
    assert sorted(finished.folder.path.rglob("*")) == before


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
        "Attack nra on smlp skipped: nra restores noise and SMLP draws none"
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
