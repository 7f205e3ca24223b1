"""The malicious server behind Flower's SecAgg+: keys, masks and quantiser are real, Ray is not."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage

from fedleak.runtime.quiet import quiet
from tests.experiments.studies import EXPERIMENTS, rows_of, script

FOLDER = EXPERIMENTS / "active-server"
CLIENTS, IMAGES = 3, 96


def images(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures and labels."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 5, 5, generator=draw) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return pictures, torch.randint(10, (number,), generator=draw)


def small(monkeypatch: pytest.MonkeyPatch, replies: list[Message]) -> ModuleType:
    """The study with few clients and images; replies are noted."""
    study = script(FOLDER / "secagg.py")
    monkeypatch.setattr(study, "CLIENTS", CLIENTS)
    monkeypatch.setattr(study, "IMAGES", IMAGES)
    client_app = study.client_app

    def answer(question: Message, context: Any) -> Message:
        replies.append(client_app(question, context))
        return replies[-1]

    monkeypatch.setattr(study, "client_app", answer)
    return study


def measured(study: ModuleType, ranges: str) -> dict[str, Any]:
    """A row of the study at the server's rate."""
    data, public = images(CLIENTS * IMAGES, 1), images(600, 2)
    rows: list[dict[str, Any]] = []
    with quiet():
        study.simulate(
            lambda given: rows.append(study.measure(given, ranges, "server", 0, data, public)),
            in_process=True,
        )
    (row,) = rows
    return row


def masked(replies: list[Message]) -> list[list[np.ndarray]]:
    """The vectors of the clients' replies that have them."""
    found = [reply.content.config_records[RECORD_KEY_CONFIGS] for reply in replies]
    return [
        [bytes_to_ndarray(part) for part in record[Key.MASKED_PARAMETERS]]
        for record in found
        if Key.MASKED_PARAMETERS in record
    ]


def test_images_are_read_from_the_sum_if_the_server_sets_the_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replies: list[Message] = []
    study = small(monkeypatch, replies)
    row = measured(study, "ranges set")
    assert row["read"] >= 0.8 * row["alone"] > 20
    assert row["certified"] >= 0.6 * row["alone"]
    assert row["false"] == 0
    # No client's own vector says anything: nearly all of the modulus occurs in its masked weights.
    vectors = masked(replies)
    assert len(vectors) == 2 * CLIENTS
    for vector in vectors:
        spread = vector[5].ravel() / 2**32
        assert abs(float(spread.mean()) - 0.5) < 0.01
        assert abs(float(spread.std()) - 12**-0.5) < 0.01
    stages = [str(reply.content.config_records[RECORD_KEY_CONFIGS].keys()) for reply in replies]
    assert len(stages) == 2 * CLIENTS * len(Stage.all())


@pytest.mark.slow
def test_nothing_is_read_at_the_default_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    study = small(monkeypatch, [])
    row = measured(study, "default ranges")
    assert row["alone"] > 20
    assert (row["read"], row["certified"], row["false"]) == (0, 0, 0)


def test_a_client_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    study = small(monkeypatch, [])
    monkeypatch.setattr(study, "train", lambda *_args, **_settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(study, "ranges set")


def test_what_the_table_must_show() -> None:
    study = script(FOLDER / "secagg.py")
    rows = rows_of(FOLDER / "results" / "secagg.csv")
    assert {row["setting"].partition(",")[0] for row in rows} == set(study.RANGES)
    for row in rows:
        assert (int(row["read"]) >= 35) == study.RANGES[row["setting"].partition(",")[0]]
        assert int(row["false"]) == 0


def test_a_missing_data_folder_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    with pytest.raises(SystemExit):
        script(FOLDER / "secagg.py").main(["--output", str(tmp_path / "nowhere")])
    assert "--data or in FEDLEAK_DATA, got none" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
