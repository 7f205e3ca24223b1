"""Notebooks, pictures and pages that the build makes."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from docs import generate
from docs.public import homes


def test_copied_studies_link_to_each_other(tmp_path: Path) -> None:
    generate.copy_studies(tmp_path / "experiments")
    copied = tmp_path / "experiments"
    assert (copied / "nra.ipynb").read_bytes() == (generate.STUDIES / "nra.ipynb").read_bytes()
    assert (copied / "exact" / "results" / "picture.png").is_file()
    assert (copied / "fedvae" / "README.md").is_file()
    assert not list(copied.rglob("*.csv"))


def test_links_of_a_page_elsewhere_hold_in_the_docs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    page = tmp_path / "experiments" / "one" / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text("[a](../../docs/how-to/a.md#b) [c](../two/README.md) ../../docs/")
    assert generate.with_links(page) == "[a](/how-to/a.md#b) [c](../two/README.md) ../../docs/"
    below = tmp_path / "fedleak" / "x" / "y" / "README.md"
    below.parent.mkdir(parents=True)
    below.write_text("[a](../../../experiments/one.ipynb)")
    assert generate.with_links(below) == "[a](/experiments/one.ipynb)"


def test_the_last_picture_of_a_notebook(tmp_path: Path) -> None:
    pictures = [base64.b64encode(name).decode() for name in (b"first", b"last")]
    outputs = [[{"data": {"image/png": p}}] for p in pictures] + [[{"data": {"text/plain": "x"}}]]
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps({"cells": [{"outputs": o} for o in outputs] + [{}]}))
    assert generate.last_picture(path) == b"last"
    path.write_text(json.dumps({"cells": [{}]}))
    with pytest.raises(ValueError, match=r"Expected a picture in the outputs of .*some\.ipynb"):
        generate.last_picture(path)


def test_a_thumbnail_is_the_upper_part() -> None:
    picture = Image.new("RGB", (40, 100), "red")
    picture.paste("blue", (0, 0, 40, 20))
    written = io.BytesIO()
    picture.save(written, format="PNG")
    with Image.open(io.BytesIO(generate.thumbnail(written.getvalue()))) as found:
        assert found.size == (40, 20)
        assert found.getcolors() == [(800, (0, 0, 255))]


def test_a_plugin_s_facts_are_left_to_the_tables() -> None:
    page = generate.package_page("fedleak.attacks", homes())
    (own,) = [part for part in page.split("\n\n") if part.startswith(".. autoclass:: IGA\n")]
    assert ":exclude-members: name, paper" in own
    (base,) = [part for part in page.split("\n\n") if part.startswith(".. autoclass:: Attack\n")]
    assert "exclude-members" not in base


def test_a_package_has_an_entry_for_what_is_its_own_and_a_link_to_the_rest() -> None:
    page = generate.package_page("fedleak", homes())
    assert ".. autoclass:: RunConfig\n   :members:" in page
    assert "   ~attacks.IGA\n" in page
    assert "autoclass:: IGA" not in page
    assert ".. autoclass:: IGA\n" in generate.package_page("fedleak.attacks", homes())
    assert ".. py:data:: DATA_RANGE\n   :value: {'pixels': 1.0" in generate.package_page(
        "fedleak.metrics", homes()
    )


def test_a_file_that_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.rst"
    generate.write(path, "text")
    before = path.stat().st_mtime_ns
    generate.write(path, "text")
    assert path.stat().st_mtime_ns == before
    generate.write(path, "other")
    assert path.read_text() == "other"
