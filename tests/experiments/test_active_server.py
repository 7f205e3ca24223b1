"""The study of malicious servers: its client, its tables, and what they must show."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.experiments.studies import EXPERIMENTS, rows_of, script

FOLDER = EXPERIMENTS / "active-server"
RESULTS = FOLDER / "results"


def test_the_client_trains_as_plain_torch_does() -> None:
    study = script(FOLDER / "quickstart.py")
    torch.manual_seed(0)
    net, twin = study.Net(), study.Net()
    twin.load_state_dict(net.state_dict())
    images, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    found = study.train(net, images, labels, study.Training(0.05, clip=0.5), seed=3)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    draw = torch.Generator().manual_seed(3)
    order = list(
        torch.utils.data.DataLoader(range(40), batch_size=32, shuffle=True, generator=draw)
    )
    assert [len(batch) for batch in order] == [32, 8]
    for batch in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(images[batch]), labels[batch]).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
    assert all(torch.equal(value, found[name]) for name, value in twin.state_dict().items())


def test_the_summary_is_of_the_clients(tmp_path: Path) -> None:
    study = script(FOLDER / "measure.py")
    rows = rows_of(RESULTS / "clients.csv")
    assert {row["setting"] for row in rows} == set(study.SETTINGS)
    study.write_summary(rows, tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == (RESULTS / "summary.csv").read_text()


def test_what_the_table_must_show() -> None:
    read = {row["setting"]: float(row["read"]) for row in rows_of(RESULTS / "summary.csv")}
    for setting in read:
        if setting.startswith(("server's rate", "client's rate")):
            assert read[setting] >= (35 if "decay" in setting else 40)
    assert read["Adam 1e-3"] >= 38
    rows = rows_of(RESULTS / "clients.csv")
    assert sum(int(row["false"]) for row in rows) == 0
    assert sum(int(row["several"]) for row in rows) >= 200


def test_the_pictures_are_nearer_than_guesses() -> None:
    rows = rows_of(RESULTS / "pictures.csv")
    means = {
        name: sum(float(row[name]) for row in rows) / len(rows)
        for name in ("ssim", "mean_picture", "nearest_public", "mean_colour")
    }
    assert len(rows) >= 100
    assert means["ssim"] >= 0.76
    assert max(means["mean_picture"], means["nearest_public"], means["mean_colour"]) < 0.3


def test_the_quantiser_of_a_sum() -> None:
    study = script(FOLDER / "sums.py")
    draw = torch.Generator().manual_seed(0)
    updates = [{"weight": torch.randn(20, 30, generator=draw)} for _ in range(10)]
    exact = study.aggregated(updates, None, 0)["weight"]
    found = study.aggregated(updates, 8.0, 0)["weight"]
    step = 16.0 / study.TARGET
    assert 0 < float((found - exact).abs().max()) < step
    assert torch.equal(found, study.aggregated(updates, 8.0, 0)["weight"])


@pytest.mark.slow
def test_a_client_is_measured(data_folder: Path, tmp_path: Path) -> None:
    study = script(FOLDER / "measure.py")
    arguments = ["--output", str(tmp_path), "--data", str(data_folder), "--clients", "1"]
    study.main([*arguments, "--only", "server's rate 1e-12"])
    (row,) = rows_of(tmp_path / "clients.csv")
    assert int(row["read"]) >= 30
    assert int(row["false"]) == 0
    before = (tmp_path / "clients.csv").read_text()
    study.main([*arguments, "--only", "server's rate 1e-12"])
    assert (tmp_path / "clients.csv").read_text() == before


def test_a_missing_data_folder_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    for name in ("measure", "encoder", "pictures", "sums"):
        with pytest.raises(SystemExit):
            script(FOLDER / f"{name}.py").main(["--output", "nowhere"])
        assert "--data or in FEDLEAK_DATA, got none" in capsys.readouterr().err


def test_every_row_of_the_sums_is_there() -> None:
    study = script(FOLDER / "sums.py")
    with (RESULTS / "sums.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in study.SUMS:
        own = [float(row["read"]) for row in rows if row["setting"] == name]
        assert len(own) >= 2
        if not name.startswith("default"):
            assert sum(own) / len(own) >= 35
