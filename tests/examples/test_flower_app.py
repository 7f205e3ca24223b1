"""The Flower app of fedleak's own run: by hand, by ``flwr run``, and audited."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedleak import experiment
from fedleak.audit.app import FlowerApp, read_app
from fedleak.errors import BadInput
from fedleak.federation import read_run_config
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.summary import read_summary
from tests.audit.apps import imports_undone
from tests.examples.flower import APP, Flower, copy_app, free_port
from tests.federation.app_runs import deployed_grid, simulated_grid, tiny_settings
from tests.federation.fakes import FakeGrid
from tests.federation.runs import in_process, without_seconds

DEFAULTS = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]


@pytest.fixture(autouse=True)
def _on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.federation.engine.app_client._runs_on_ray", lambda: True)


@pytest.fixture
def app() -> Iterator[FlowerApp]:
    with imports_undone():
        yield read_app(APP)


def serve(app: FlowerApp, settings: dict[str, Any], grid: FakeGrid) -> None:
    """Call the ServerApp as Flower does."""
    app.server_app()(grid, Context(1, 1, {}, RecordDict(), settings))


def test_a_simulation_leaves_the_run_of_fedleak_run(
    app: FlowerApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DEFAULTS["config"] | tiny_settings(tmp_path)
    serve(app, settings, simulated_grid(settings, app.client_app()))
    folder = RunFolder(tmp_path / "run")
    config = replace(read_run_config(settings), output=str(tmp_path / "own"))
    with in_process():
        experiment.run(config)
    own = read_rows(RunFolder(tmp_path / "own").results)
    assert without_seconds(read_rows(folder.results)) == without_seconds(own)
    assert read_summary(folder.summary)["config_hash"] == config.hash
    left = {path.name for path in folder.path.iterdir()}
    assert left == {
        "config.yaml", "updates", "truth", "results.csv", "diagnostics.jsonl", "summary.json",
        "figures", "tensorboard", "report.html",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "round 2: " in printed
    assert "r0002-c0003 attacked by rgap: 100.0% of the update explained" in printed
    assert re.search(r"^rgap on smlp: 8 samples, SSIM 0\.\d{4}$", printed, re.MULTILINE)
    assert f"Look at {folder.path / 'report.html'}" in printed


def test_a_deployment_says_that_it_has_no_scores(
    app: FlowerApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DEFAULTS["config"] | tiny_settings(tmp_path, rounds=1)
    serve(app, settings, deployed_grid(settings, client=app.client_app()))
    assert "rgap on smlp: 4 samples, no score" in capsys.readouterr().out
    assert not (tmp_path / "run" / "truth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "Expected `federation.rounds` to be at least 1, got 0."),
        ({"attack": "igu"}, "Did you mean `iga`?"),
        ({"attack": "nra"}, "Expected a model that nra can attack"),
        ({"labels": "none"}, "Unknown value of `victims.labels` `none`"),
        ({"data.path": "no.npz"}, "found no file"),
        ({"resume": True, "overwrite": True}, "Expected one of `--resume` and `--overwrite`"),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence(
    changes: dict[str, Any], message: str, app: FlowerApp, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = DEFAULTS["config"] | tiny_settings(tmp_path) | changes
    with pytest.raises(BadInput):
        serve(app, settings, simulated_grid(settings, app.client_app()))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("flower-app: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_kept_unless_it_is_told(app: FlowerApp, tmp_path: Path) -> None:
    settings = DEFAULTS["config"] | tiny_settings(tmp_path, rounds=1)
    serve(app, settings, simulated_grid(settings, app.client_app()))
    before = (tmp_path / "run" / "results.csv").read_bytes()
    with pytest.raises(BadInput, match=r"Expected no run at .*set `resume` or `overwrite` to true"):
        serve(app, settings, simulated_grid(settings, app.client_app()))
    assert (tmp_path / "run" / "results.csv").read_bytes() == before
    settings |= {"overwrite": True, "seed": 5}
    serve(app, settings, simulated_grid(settings, app.client_app()))
    assert (tmp_path / "run" / "results.csv").read_bytes() != before


def test_every_default_is_a_setting_of_a_run() -> None:
    config = read_run_config(DEFAULTS["config"])
    assert (config.federation.clients, config.federation.rounds) == (4, 1)
    assert config.victims.labels == "recovered"  # as a deployment needs


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    made = Flower(tmp_path)
    try:
        yield made
    finally:
        made.stop_all()
        assert made.strays() == []


@pytest.mark.slow
def test_flwr_run(flower: Flower, tmp_path: Path) -> None:
    ports = {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    app = copy_app(tmp_path, {"attack.iterations": 5})
    output = tmp_path / "run"
    wanted = f"output='{output}' rounds=2 attack='iga' clients=3"
    found = flower.run("flwr", "run", str(app), "--stream", "--run-config", wanted, **ports)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"Look at {output / 'report.html'}" in found.stdout + found.stderr
    rows = read_rows(RunFolder(output).results)
    assert [(row["round"], row["client"]) for row in rows] == [
        (round_, client) for round_ in (1, 2) for client in (0, 1, 2)
    ]
    assert {row["attack"] for row in rows} == {"iga"}
    assert all(row["ssim"] is not None and row["iterations"] == 5 for row in rows)
    assert (output / "truth" / "r0002-c0002.safetensors").is_file()
    refused = flower.run(
        "flwr", "run", str(app), "--stream", "-c", "clients=0 attack='iga'", **ports
    )
    said = refused.stdout + refused.stderr
    assert "flower-app: Expected `federation.clients` to be at least 1, got 0." in said, said


@pytest.mark.slow
def test_it_can_be_audited(flower: Flower, tmp_path: Path) -> None:
    app = copy_app(tmp_path, {"output": str(tmp_path / "own"), "attack": ""})
    found = flower.run(
        "fedleak", "audit", str(app), "--clients", "4", "--budget", "60s", "--output", "audit"
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "inputs" in found.stdout
    assert (tmp_path / "audit" / "report.html").is_file()
