"""An audit's reconstructed samples, read from its folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedleak.audit.results import CANARY, read_rows
from fedleak.errors import BadInput
from fedleak.reporting.audit_panels import (
    FOUND,
    GUESS,
    audit_panels,
    audit_tables,
    label_of,
    measure_name,
)
from tests.audit.made_audit import made_audit


def test_pictures_beside_true_ones_and_a_guess(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit", leaks=False)
    rows = read_rows(folder.results)
    victims = [row for row in rows if row.question != CANARY]
    panels = audit_panels(folder, victims)
    assert [panel.label for panel in panels[:3]] == [
        "client 0, round 1, sample 1", "client 0, round 1, sample 2", "client 1, round 1, sample 1"
    ]  # fmt: skip
    first = panels[0]
    assert first.original is not None
    # The made reconstruction is the true sample.
    assert np.array_equal(first.original, first.reconstructions[FOUND][0])
    assert not np.array_equal(first.original, first.reconstructions[GUESS][0])
    assert (first.reconstructions[GUESS][1], first.reconstructions[FOUND][1]) == (0.1, 0.1)
    assert [FOUND in panel.unsupported for panel in panels[:4]] == [False, False, True, True]
    (canary,) = audit_panels(folder, [row for row in rows if row.question == CANARY])
    assert canary.label == "the audit's own client"
    assert audit_tables(folder, victims) == []
    assert measure_name(rows) == "SSIM"
    assert measure_name([]) == ""


def test_tables_of_other_samples(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit", whole=True, shape=(120,))
    rows = read_rows(folder.results)
    assert audit_panels(folder, rows) == []
    tables = audit_tables(folder, [row for row in rows if row.question != CANARY])
    assert len(tables) == 8
    assert len(tables[0].entries) == 100
    assert tables[0].entry_count == 120
    entry, true, guess, found = tables[0].entries[3]
    assert (entry, true, guess) == ("3", found, "0")
    path = folder.sample("r0001-c0000", 0, "", ".csv")
    path.write_text("entry,true\n1,2\n")
    with pytest.raises(BadInput, match="Expected rows of entry, true, guess, found in"):
        audit_tables(folder, rows)


def test_missing_and_damaged_pictures(tmp_path: Path) -> None:
    folder = made_audit(tmp_path / "audit")
    rows = read_rows(folder.results)
    folder.sample("r0001-c0000", 0, "true").unlink()
    assert len(audit_panels(folder, rows)) == 8  # of nine, the canary's included
    folder.sample("r0001-c0000", 1, "found").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="Expected an image at"):
        audit_panels(folder, rows)


def test_pictures_that_are_too_large_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_audit(tmp_path / "audit")
    monkeypatch.setattr("fedleak.reporting.audit_panels.MAX_PIXELS", 500)
    Image.new("L", (20, 30)).save(folder.sample("r0001-c0000", 0, "true"))
    with pytest.raises(BadInput, match="at most 500 pixels in total"):
        audit_panels(folder, read_rows(folder.results))


def test_the_label_of_another_update(tmp_path: Path) -> None:
    from dataclasses import replace

    row = read_rows(made_audit(tmp_path / "audit").results)[-1]
    assert label_of(replace(row, update="r0001-sum", samples=1)) == "sum of round 1"
