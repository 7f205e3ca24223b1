"""What write_summary writes, read_summary reads, and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import BadInput
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import (
    append_rows,
)
from fedleak.runs.summary import federation_notes, read_summary, summarise, write_summary
from tests.runs.rows import config, row

ENTRY = {
    "attack": "iga", "defense": "none", "model": "smlp", "dataset": "x", "n": 3, "mse": 0.5,
    "psnr": None, "ssim": 1, "asr": 0.0, "seconds": 2.5, "lpips": 0.1,
}  # fmt: skip
SUMMARY = {
    "status": "complete", "config_hash": "0123", "attacks": [ENTRY],
    "federation": {
        "rounds": 1, "clients": 2, "failures": 0, "accuracy": None, "lost_rounds": [],
        "diverged_round": None,
    },
}  # fmt: skip


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


def test_a_summary_is_what_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for summary in (SUMMARY, SUMMARY | {"attacks": [], "more": {"of": "later versions"}}):
        path.write_text(json.dumps(summary))
        assert read_summary(path) == summary | {"data": {}}


DATA = {
    "name": "photos", "kind": "images", "input_shape": [3, 32, 32], "classes": 8,
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
}  # fmt: skip


def test_what_it_says_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY | {"data": DATA}))
    assert read_summary(path)["data"] == DATA


@pytest.mark.parametrize(
    "change",
    [{"name": 3}, {"kind": None}, {"classes": 0}, {"input_shape": [0]}, {"input_shape": "3"},
     {"mean": [0.5]}, {"std": [0.0, 1.0, 1.0]}, {"std": ["1", 1, 1]}, {"mean": [], "std": []}],
)  # fmt: skip
def test_data_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY | {"data": DATA | change}))
    with pytest.raises(BadInput, match="Expected `data` to hold name, kind, input_shape"):
        read_summary(path)


@pytest.mark.parametrize("name", ["status", "attacks", "federation"])
@pytest.mark.parametrize("value", [None, "text", 1, [1], {"a": 1}, [[]], "GONE"])
def test_values_of_another_kind(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "summary.json"
    changed = without(SUMMARY, name) if value == "GONE" else SUMMARY | {name: value}
    path.write_text(json.dumps(changed))
    with pytest.raises(BadInput, match=rf"Expected `{name}` to .* in .*summary.json, got"):
        read_summary(path)


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"n": True}, {"n": 10**10}, {"model": 3}, {"mse": "0.5"}, {"asr": False},
     {"ssim": 10**400}, {"lpips": []}, {"psnr": "GONE"}],
)  # fmt: skip
def test_means_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    path, entry = tmp_path / "summary.json", ENTRY | change
    entry = {name: value for name, value in entry.items() if value != "GONE"}
    path.write_text(json.dumps(SUMMARY | {"attacks": [ENTRY, entry]}))
    with pytest.raises(BadInput, match="Expected `attacks` to be a list of means"):
        read_summary(path)


@pytest.mark.parametrize(
    "change",
    [{"rounds": -1}, {"clients": "2"}, {"failures": None}, {"accuracy": "high"},
     {"accuracy": 10**400}, {"accuracy": []}],
)  # fmt: skip
def test_a_federation_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY | {"federation": SUMMARY["federation"] | change}))
    with pytest.raises(BadInput, match="Expected `federation` to hold the numbers rounds, clients"):
        read_summary(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "JSON in"),
        (b"{", "JSON in"),
        (b"[" * 100_000, "JSON in .*too many levels"),
        (b'{"status": ' + b"1" * 5000 + b"}", "JSON in"),
        (b"\xff", "text in UTF-8 in"),
        (b"\0", "text in .*NUL"),
        (b"null", "a run's summary in .*, got None"),
        (
            json.dumps(SUMMARY | {"x": math.nan}).encode(),
            "JSON in .*got: NaN, which is not a JSON",
        ),
        (None, "a file at .*summary.json, got: No such file"),
    ],
)
def test_no_json(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=f"Expected {sentence}"):
        read_summary(path)


def test_more_than_memory(tmp_path: Path) -> None:
    with (tmp_path / "summary.json").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(BadInput, match=r"at most 67,108,864 bytes in .*, got 1,099,511,627,776"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize(
    "change",
    [{"lost_rounds": 1}, {"lost_rounds": ["1"]}, {"lost_rounds": [0]}, {"diverged_round": "2"},
     {"diverged_round": -1}, {"lost_rounds": None}],
)  # fmt: skip
def test_lost_rounds_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY | {"federation": SUMMARY["federation"] | change}))
    with pytest.raises(BadInput, match="Expected `lost_rounds` and `diverged_round` to be numbers"):
        read_summary(path)


def test_what_happened_to_a_federation_is_told_in_sentences(tmp_path: Path) -> None:
    def notes(**facts: Any) -> list[str]:
        path = tmp_path / "summary.json"
        path.write_text(json.dumps(SUMMARY | {"federation": SUMMARY["federation"] | facts}))
        return federation_notes(read_summary(path)["federation"])

    early = dict(list(SUMMARY["federation"].items())[:4])
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"federation": early}))
    assert read_summary(tmp_path / "summary.json") == SUMMARY | {"data": {}}
    why = "the clients failed, or what they sent could not be used."
    assert notes() == []
    assert notes(failures=1) == [f"1 reply was lost: {why}"]  # of an early version, without rounds
    assert notes(failures=1, lost_rounds=[2]) == [f"1 reply was lost in round 2: {why}"]
    assert notes(failures=5, lost_rounds=[2, 4]) == [f"5 replies were lost in rounds 2, 4: {why}"]
    (text,) = notes(failures=50, lost_rounds=list(range(1, 51)))
    assert text.startswith("50 replies were lost in rounds 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...: ")
    (text,) = notes(diverged_round=3)
    assert text.startswith("The training diverged in round 3: the global model or its loss is not")


FEDERATION = {"rounds": 1, "clients": 2, "failures": 0, "accuracy": None}


def test_means_by_hand() -> None:
    rows = [
        row(0, mse=0.1, psnr=10.0, ssim=0.5, success=0, seconds=1.0),
        row(1, mse=0.3, psnr=20.0, ssim=0.9, success=1, seconds=2.0, explained=0.9),
        row(2, mse=0.2, psnr=30.0, ssim=0.7, success=1, seconds=6.0, explained=0.3),
        row(0, attack="nra", mse=1.0, psnr=0.0, ssim=-0.5, success=0, seconds=0.5),
    ]
    first, second = summarise(rows)
    assert first == {
        "attack": "iga", "defense": "none", "model": "smlp", "dataset": "photos", "n": 3,
        "mse": pytest.approx(0.2), "psnr": pytest.approx(20), "ssim": pytest.approx(0.7),
        "asr": pytest.approx(2 / 3), "seconds": pytest.approx(3),
        "explained": pytest.approx(0.6), "unsupported": 1,
    }  # fmt: skip
    assert list(first) == [
        "attack", "defense", "model", "dataset", "n", "mse", "psnr", "ssim", "asr", "seconds",
        "explained", "unsupported",
    ]  # fmt: skip
    assert (second["attack"], second["n"], second["asr"]) == ("nra", 1, 0)


def test_what_json_cannot_say_is_none() -> None:
    (entry,) = summarise([row(psnr=math.inf, ssim=math.nan), row(psnr=10.0)])
    assert (entry["psnr"], entry["ssim"]) == (None, None)
    assert entry["mse"] == 0.5
    json.dumps(entry, allow_nan=False)


def test_empty_cells_do_not_count() -> None:
    (entry,) = summarise([row(mse=None, success=None), row(mse=0.3, success=1), row(mse="")])
    assert entry["mse"] == pytest.approx(0.3)
    assert entry["asr"] == pytest.approx(0.5)
    (entry,) = summarise([row(mse=None)])
    assert entry["mse"] is None


def test_groups_in_the_order_of_the_rows() -> None:
    rows = [row(model="b"), row(model="a"), row(model="b", attack="nra"), row(model="b")]
    entries = summarise(rows)
    assert [(e["model"], e["attack"], e["n"]) for e in entries] == [
        ("b", "iga", 2), ("a", "iga", 1), ("b", "nra", 1),
    ]  # fmt: skip
    assert summarise([]) == []


def test_summary_is_json_of_the_houses_keys(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.open(settings, resume=False, overwrite=False)
    append_rows(folder.results, [row(psnr=math.inf), row(sample=1, psnr=math.inf)])
    summary = write_summary(folder, settings, "interrupted", FEDERATION, {"name": "photos"})
    assert json.loads(folder.summary.read_text(encoding="utf-8")) == summary
    assert list(summary) == ["status", "config_hash", "data", "attacks", "federation"]
    assert summary["status"] == "interrupted"
    assert summary["config_hash"] == settings.hash
    assert summary["federation"] == FEDERATION
    assert summary["attacks"][0]["n"] == 2
    assert not list(folder.path.glob("*.part"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.open(config(tmp_path), resume=False, overwrite=False)
    return found
