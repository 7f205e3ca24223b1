"""What a run leaves behind for a person: its folder, event files, figures, tables, lines."""

import csv
import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.parts import make_data
from fedleak.reporting import Display, Figures, TensorBoard, paths_line, results_table
from fedleak.reporting.panels import read_panels
from fedleak.results import COLUMNS, RunFolder
from tests.federation.fakes import run_in_process
from tests.federation.runs import attack_plugin, tiny_config, tiny_data

CLIENTS, ROUNDS = 3, 2
COLUMNS_OF_ISSUE = (
    "round,client,sample,attack,defense,model,dataset,batch_size,mse,psnr,ssim,success,noise_mse,"
    "cost,iterations,seconds"
)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def run(request, tmp_path_factory):
    """A run of three clients and two rounds with PRECODE and a baseline, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(
        tiny_data(folder, channels=request.param), folder / "out", clients=CLIENTS, rounds=ROUNDS,
        batch_size=1, baseline=True,
        model_args={"width": 12, "precode": {"bottleneck_size": 4, "beta": 0.001}},
        attacks=(attack_plugin("iga"), attack_plugin("nra")),
    )  # fmt: skip
    data = make_data(config)
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    with pytest.MonkeyPatch.context() as patch, Display(console) as display:
        patch.setattr("fedleak.federation.simulation.run_on_ray", run_in_process)
        observers = [
            display, TensorBoard(config, data.mean, data.std), Figures(config, data.mean, data.std)
        ]  # fmt: skip
        summary = experiment.run(config, observers)
    console.print(results_table(summary, config))
    console.print(paths_line(RunFolder(folder / "out")))
    return config, folder / "out", summary, printed.getvalue()


def events(out):
    accumulator = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def test_the_folder_is_the_one_that_is_promised(run):
    _, out, summary, _ = run
    promised = {"config.yaml", "updates", "truth", "results.csv", "summary.json", "figures"}
    assert {path.name for path in out.iterdir()} == promised | {"tensorboard"}
    keys = [f"r{r:04d}-c{c:04d}.safetensors" for r in (1, 2) for c in range(CLIENTS)]
    shared = ["r0001-global.safetensors", "r0002-global.safetensors"]
    for variant in ("", "baseline"):
        files = {path.name for path in (out / "updates" / variant).glob("*.safetensors")}
        assert files == {*keys, *shared}
        assert {path.name for path in (out / "truth" / variant).glob("*.*")} == set(keys)
    assert ",".join(COLUMNS) == COLUMNS_OF_ISSUE
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    # IGA on both models, NRA on the one that draws noise.
    assert len(rows) == 3 * CLIENTS * ROUNDS
    assert list(summary) == ["status", "config_hash", "attacks", "federation"]
    assert list(summary["federation"]) == ["rounds", "clients", "failures", "accuracy"]
    wanted = ["attack", "defense", "model", "dataset", "n", "mse", "psnr", "ssim", "asr", "seconds"]
    assert [list(entry) for entry in summary["attacks"]] == [wanted] * 3
    assert json.loads((out / "summary.json").read_text()) == summary
    for entry in summary["attacks"]:
        mine = [r for r in rows if (r["attack"], r["model"]) == (entry["attack"], entry["model"])]
        assert entry["ssim"] == pytest.approx(np.mean([float(r["ssim"]) for r in mine]))


def test_the_configuration_reads_back_equal(run):
    config, out, _, _ = run
    assert RunConfig.load(out / "config.yaml") == config
    assert "torch" in yaml.safe_load((out / "config.yaml").read_text())["versions"]


def test_training_curves_of_every_client_and_of_the_global_model(run):
    scalars = events(run[1])
    for model in ("smlp", "smlp+precode"):
        for client in range(CLIENTS):
            points = scalars.Scalars(f"{model}/client {client}/train/loss")
            assert [point.step for point in points] == [1, 2]
        accuracy = scalars.Scalars(f"{model}/global/test/accuracy")
        assert [point.step for point in accuracy] == [0, 1, 2]
    assert accuracy[-1].value == pytest.approx(run[2]["federation"]["accuracy"])


def test_cost_against_iteration_and_ssim_by_victim(run):
    _, out, _, _ = run
    scalars = events(out)
    costs = scalars.Scalars("smlp+precode/nra/cost/r0002-c0001")
    assert [costs[0].step, costs[-1].step] == [0, 10]
    assert costs[-1].value <= costs[0].value
    with (out / "results.csv").open() as file:
        wanted = [
            float(row["ssim"])
            for row in csv.DictReader(file)
            if (row["model"], row["attack"]) == ("smlp", "iga")
        ]
    points = scalars.Scalars("smlp/iga/ssim")
    assert len({point.step for point in points}) == CLIENTS * ROUNDS
    assert [point.value for point in points] == pytest.approx(wanted, abs=1e-6)


def test_image_grid_has_a_step_for_each_victim(run):
    images = events(run[1]).Images("reconstructions")
    assert [image.step for image in images] == list(range(CLIENTS * ROUNDS))
    picture = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)))
    # The original and three reconstructions of 8 pixels, two pixels between them.
    assert picture.shape == (8, 4 * 8 + 3 * 2, 3)


def test_configuration_and_hyperparameters_are_there(run):
    accumulator = events(run[1])
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "bottleneck_size: 4" in text
    assert accumulator.summary_metadata["_hparams_/session_start_info"]
    assert any("ssim nra on smlp+precode" in tag for tag in accumulator.Tags()["scalars"])


def test_figures_show_the_stored_reconstructions(run):
    config, out, _, _ = run
    data = make_data(config)
    panels = read_panels(RunFolder(out), config, data.mean, data.std)
    assert len(panels) == CLIENTS * ROUNDS
    figure = np.asarray(Image.open(out / "figures" / "reconstructions.png"))
    for panel in (panels[0], panels[-1]):
        shown = [panel.original, *(picture for picture, _ in panel.reconstructions.values())]
        for picture in shown:
            enlarged = np.kron(picture, np.ones((16, 16) + (1,) * (picture.ndim - 2), np.uint8))
            colour = enlarged if enlarged.ndim == 3 else np.repeat(enlarged[..., None], 3, axis=2)
            assert _holds(figure, colour)
    grey = data.input_shape[0] == 1
    assert bool((figure[..., 0] == figure[..., 1]).all()) == grey


def test_lines_without_a_terminal_fit_80_columns(run):
    text = run[3]
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "Federation of 3 clients training smlp+precode" in text
    assert "round 2: " in text
    assert "Attack nra on smlp skipped" in text
    for row in ("iga    │ smlp ", "iga    │ smlp+precode", "nra    │ smlp+precode"):
        assert row in text
    assert "reconstructions.png" in text


def test_a_terminal_shows_bars_and_is_left_in_order():
    printed = io.StringIO()
    console = Console(file=printed, width=80, force_terminal=True)
    with Display(console) as display:
        display.federation_started("smlp", 2, 1, 1)
        display.client_answered("smlp", 1, 0, {"train/loss": 1.0})
        display.client_failed("smlp", 1, 1, "out of memory")
        display.round_evaluated("smlp", 1, {"test/loss": 1.0})
        display.attack_started("iga", "smlp", 2, 1)
        display.run_ended("interrupted")
    text = printed.getvalue()
    assert "out of memory" in text
    assert "--resume" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def _holds(figure, cell):
    """Whether the cell stands somewhere in the figure, pixel by pixel."""
    height, width = cell.shape[:2]
    first = np.argwhere((figure == cell[0, 0]).all(axis=2))
    return any(
        np.array_equal(figure[y : y + height, x : x + width], cell)
        for y, x in first
        if y + height <= figure.shape[0] and x + width <= figure.shape[1]
    )
