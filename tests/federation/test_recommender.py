"""Whole runs in which every client is a single user of a recommender."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedleak import experiment
from fedleak.build import make_data
from fedleak.config import RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from tests.federation.runs import Recorder, in_process
from tests.federation.user_runs import USERS, config, run, updates_of

ANALYTIC = Plugin("fedleak.attacks.analytic.Analytic", {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients_per_round": 0}, "from 1 to 100, the number of clients, got 0"),
        ({"clients_per_round": 101}, "from 1 to 100, the number of clients, got 101"),
        ({"learning_rate_decay": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"evaluate_every": 0}, "`federation.evaluate_every` to be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        config(tmp_path, **changes)


@pytest.mark.parametrize("name", ["lenet.LeNet", "mlp.SMLP"])
def test_an_image_model_for_a_recommender(tmp_path: Path, name: str) -> None:
    settings = replace(config(tmp_path / "run"), model=Plugin(f"fedleak.models.{name}"))
    with pytest.raises(BadInput, match=r"for interactions of shape \(60,\) \(planted_groups\)"):
        experiment.run(settings)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_of_item_names_is_refused_at_once(tmp_path: Path) -> None:
    listens = tmp_path / "listens.dat"
    rows = [f"{user}\t{item}\t1" for user in range(9) for item in range(6)]
    listens.write_text("\n".join(["userID\tartistID\tweight", *rows]))
    data = {"path": str(listens), "artists": str(tmp_path / "none.dat"), "held_out": 2}
    settings = replace(
        config(tmp_path / "run", clients=5, clients_per_round=2),
        data=Plugin("fedleak.data.lastfm.LastFM", data),
    )
    with pytest.raises(BadInput, match=r"Expected a file at .*none\.dat"):
        experiment.run(settings)
    assert not (tmp_path / "run").exists()


def test_every_user_is_a_client_and_a_victim_where_no_clients_are_named(tmp_path: Path) -> None:
    settings = config(
        tmp_path / "run", clients=None, clients_per_round=None, rounds=1, attacks=(ANALYTIC,)
    )
    users = {"users": 25, "items": 60, "held_out": 6}
    settings = replace(settings, data=replace(settings.data, init_args=users))
    number = len(make_data(settings).train_set)
    assert 8 < number < 25
    summary, _ = run(settings)
    folder = RunFolder(Path(settings.output))
    assert [row["client"] for row in read_rows(folder.results)] == list(range(number))
    assert RunConfig.load(folder.config).federation.clients == number
    assert summary["federation"]["clients"] == number
    assert experiment.run(settings, resume=True)["status"] == "complete"


def test_a_victim_that_was_not_sampled_is_reported(tmp_path: Path) -> None:
    observer = Recorder()
    settings = config(tmp_path / "run", rounds=1, attacks=(ANALYTIC,))
    settings = replace(settings, victims=Victims(clients=[never_sampled(settings)]))
    with in_process():
        experiment.run(settings, [observer])
    ((_, _, reason),) = observer.arguments("attack_skipped")
    assert "no client of `victims` took part" in reason


def never_sampled(settings: RunConfig) -> int:
    other = replace(settings, output=f"{settings.output}-first")
    run(other)
    drawn = {update.client for update, _ in updates_of(other)}
    return next(client for client in range(USERS) if client not in drawn)


def test_scores_and_lists_of_items(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1, attacks=(ANALYTIC,))
    summary, _ = run(settings)
    folder = RunFolder(Path(settings.output))
    rows = read_rows(folder.results)
    assert len(rows) == 7
    (entry,) = summary["attacks"]
    assert set(summary) == {"status", "config_hash", "data", "attacks", "federation"}
    assert (entry["precision"], entry["recall"], entry["f1"], entry["asr"]) == (1, 1, 1, 1)
    assert entry["ssim"] is None
    data = make_data(settings)
    for row in rows:
        assert (row["f1"], row["success"], row["ssim"], row["mse"]) == (1, 1, None, 0)
        with folder.reconstruction(row, ".csv").open(newline="") as file:
            items = list(csv.DictReader(file))
        has = data.train_set[row["client"]][0].nonzero().flatten().tolist()
        assert [int(item["item"]) for item in items] == has
        assert {(item["found"], item["true"]) for item in items} == {("1", "1")}
