"""The page of an audit, read back with html.parser; its folders are made by hand."""

from pathlib import Path
from typing import Any

import pytest

from fedleak.cli import main as cli
from fedleak.errors import BadInput
from fedleak.reporting import write_audit_report
from tests.audit.made_audit import SETTING, a_config, made_audit
from tests.reporting.test_report import Page


def page_of(path: Path, **settings: Any) -> Page:
    return Page(write_audit_report(made_audit(path / "audit", **settings).path))


def test_the_page_of_an_audit_that_found_something(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    text = page.text
    assert text.index("Leaks: inputs.") < text.index("Answers") < text.index("Settings")
    assert f"Setting: {SETTING}." in text
    assert "Inputs leak; SSIM, 0 to 1: 0.875 (" in text
    assert "Shares of labels: not tried: 40 shadow clients need about 90 s" in text
    assert "Threat model C sees updates; knows the model" in text
    assert "Rung 3 the server reconstructs inputs" in text
    assert "Passed: the audit's own client was reconstructed by iga." in text
    assert "SGD (lr 0.05, momentum 0.9)" in text
    assert "1 (3 trainings)" in text
    assert "The model's mode is that of its first client." in text
    assert "num-server-rounds = 1, lr = 0.05" in text
    assert "value-range = [-1.0, 1.0]" in text
    assert "fedleak 0.1.0, torch 2.12.0" in text
    assert "/home/somebody" not in page.source
    # Each of nine samples is there as true, guess and reconstruction.
    assert len(page.all("img")) == 27
    assert page.all("section", **{"class": "verdict alarm"})
    rows = [[cell.strip() for cell in cells] for cells in page.cells]
    inputs = next(cells for cells in rows if cells[0].startswith("inputs"))
    assert inputs[0] == "inputsSSIM, 0 to 1"
    assert inputs[1] == "leaks"
    assert inputs[3:] == ["0.1 (0.1 to 0.1)", "4", "86 %", "C", "3", "iga"]
    assert page.all("script") == page.all("link") == []


def test_the_page_names_the_files_that_there_are(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit")
    text = Page(write_audit_report(folder.path)).text
    for name in ("config.yaml", "summary.json", "results.csv", "facts/", "figures/victims/"):
        assert name in text.partition("Made by fedleak")[2]
    assert "privacy.csv" not in text
    folder.results.unlink()
    for sample in folder.samples.iterdir():
        sample.unlink()
    last = Page(write_audit_report(folder.path)).text.partition("Made by fedleak")[2]
    assert "summary.json" in last
    assert "results.csv" not in last
    assert "figures/victims/" not in last


@pytest.mark.parametrize(
    ("settings", "words", "alarm"),
    [
        ({"leaks": False}, ["Not proven: a question was not tried", "not supported by the update",
                            "Nothing follows from attacks that were not shown to work"], False),
        ({"leaks": False, "canary": False}, ["Not proven: the audit's own client was not",
                                             "Not passed: "], False),
        ({"canary": False},
         ["Leaks: inputs", "own client was not reconstructed, so nothing"], True),
        ({"status": "interrupted"}, ["The audit was interrupted: this is what was answered",
                                     "Leaks: inputs"], True),
        ({"status": "failed", "reason": "The app failed: <b>no data</b>.", "leaks": False},
         ["The audit failed: The app failed: <b>no data</b>."], False),
        ({"status": "running", "canary": None, "leaks": False},
         ["The audit has not ended, or was killed", "It was not tried."], False),
    ],
)  # fmt: skip
def test_other_ends(
    settings: dict[str, Any], words: list[str], alarm: bool, tmp_path: Path
) -> None:
    page = page_of(tmp_path, **settings)
    for word in words:
        assert word in page.text
    assert bool(page.all("section", **{"class": "verdict alarm"})) is alarm


def test_samples_that_are_no_pictures(tmp_path: Path) -> None:
    page = page_of(tmp_path, whole=True, shape=(120,))
    assert page.all("img") == []
    assert (
        "Client 0, round 1, sample 1: share of tokens in their place 0.9000, guess 0.1000"
        in page.text
    )
    assert "The first 100 of 120 entries." in page.text
    assert ["3", "Entry"] not in page.cells
    assert len(page.all("details")) == 9  # eight samples and the model


def test_an_audit_whose_app_was_interrupted(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit")
    for path in (folder.summary, folder.results):
        path.unlink()
    page = Page(write_audit_report(folder.path))
    assert "Not proven" in page.text
    assert "training was not complete" in page.text


def test_what_an_app_says_is_text(tmp_path: Path) -> None:
    config = a_config(run_config={"note": "<script>alert(1)</script>"}, app="/x/<img src=a>")
    page = page_of(tmp_path, config=config)
    assert page.all("script") == []
    assert page.all("img", src="a") == []


def test_the_command_makes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_audit(tmp_path / "audit")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(folder.path)])
    assert ended.value.code == 0
    assert f"Look at {folder.report}" in capsys.readouterr().out
    assert "Leaks: inputs." in folder.report.read_text()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Expected a YAML file at"):
        write_audit_report(tmp_path)
