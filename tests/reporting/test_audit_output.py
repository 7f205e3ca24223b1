"""Figures and event files of an audit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedleak.audit.summary import AuditSummary
from fedleak.reporting import AuditOutput, write_audit_figures
from fedleak.reporting.audit_output import markdown_table
from tests.audit.made_audit import SETTING, made_audit


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def test_everything_is_written_when_an_audit_ends(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit")
    for _ in range(2):  # a resumed audit writes them anew
        AuditOutput(folder.path).audit_ended("complete")
    assert sorted(path.name for path in folder.figures.glob("*.png")) == [
        "canary.png", "reconstructions.png"
    ]  # fmt: skip
    assert folder.report.is_file()
    assert len(list(folder.tensorboard.glob("events.*"))) == 1
    read = events(folder.tensorboard)
    scalars = {tag: read.Scalars(tag)[0] for tag in read.Tags()["scalars"]}
    assert {tag: event.value for tag, event in scalars.items()} == pytest.approx({
        "2 answers/number of samples": 1.0, "3 guesses/number of samples": 0.25,
        "4 share of the way to the exact answer/number of samples": 1.0,
        "2 answers/inputs": 0.875, "3 guesses/inputs": 0.1,
        "4 share of the way to the exact answer/inputs": 0.775 / 0.9,
    }, abs=1e-6)  # fmt: skip
    assert scalars["2 answers/inputs"].step == 3
    assert len(read.Images("5 reconstructions/true, guess, reconstruction")) == 4  # two on each
    assert len(read.Images("5 reconstructions/the audit's own client")) == 1
    texts = [
        read.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]
    ]
    assert any("Leaks: inputs." in text for text in texts)
    assert any("not tried" in text and SETTING in text for text in texts)


def test_figures_show_what_is_in_the_folder(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit")
    paths = write_audit_figures(folder)
    assert [path.name for path in paths] == ["reconstructions.png", "canary.png"]
    figure = np.asarray(Image.open(paths[1]).convert("RGB"))
    true = np.asarray(Image.open(folder.sample("canary", 0, "true")))
    # The true sample is enlarged 16 times at the upper left, below the titles.
    top = next(y for y in range(60) if (figure[y, 12 : 12 + 128] != 255).all(axis=None))
    assert np.array_equal(figure[top : top + 128 : 16, 12 : 12 + 128 : 16], true)
    assert write_audit_figures(made_audit(tmp_path / "text", whole=True, shape=(7,))) == []


def test_the_table_in_markdown(tmp_path: Path) -> None:
    summary = AuditSummary.load(made_audit(tmp_path / "audit").summary)
    lines = markdown_table(summary.verdict.answers).splitlines()
    assert lines[0].startswith("| question | answer | guess | n | result")
    assert lines[-1].startswith("| inputs | 0.875 (")
    assert len(lines) == 5
