"""The page in a browser, where there is one: it fits a phone, has a dark mode, asks for nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedleak.reporting import write_audit_report, write_report
from tests.audit.made_audit import made_audit
from tests.federation.runs import Finished, finished_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

# The window of a headless Chromium is no narrower than 500 pixels, but a frame in it is.
FRAME = """<!doctype html><iframe src="report.html" width="{width}" height="800"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const wide = [...page.querySelectorAll("body *")].filter(
    (e) => e.getBoundingClientRect().right > {width} && !e.closest(".scroll")
  );
  document.title = [
    page.documentElement.scrollWidth, page.querySelectorAll("img").length,
    [...page.images].filter((i) => i.naturalWidth === 0).length,
    page.defaultView.performance.getEntriesByType("resource").length,
    wide.map((e) => e.tagName).join(" ") || "none",
  ].join("; ");
}};
</script>"""


def chromium(folder: Path, *options: object) -> str:
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", *map(str, options),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module", params=["run", "audit"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run, or of an audit, in a folder of its own."""
    folder = tmp_path_factory.mktemp("page")
    if request.param == "audit":
        made = made_audit(tmp_path_factory.mktemp("made") / "audit", status="interrupted")
        shutil.copy(write_audit_report(made.path), folder / "report.html")
        return folder / "report.html"
    finished: Finished = finished_run(tmp_path_factory)
    shutil.copy(write_report(finished.folder), folder / "report.html")
    (finished.folder.path / "report.html").unlink()
    return folder / "report.html"


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window_and_loads_nothing(page: Path, width: int) -> None:
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    found = re.search("<title>(.*)</title>", chromium(page.parent, "--dump-dom", frame.as_uri()))
    assert found is not None
    across, images, broken, loaded, wide = found[1].split("; ")
    assert int(across) <= width
    assert wide == "none"
    assert int(images) > 0
    assert (broken, loaded) == ("0", "0")


def test_it_is_dark_where_the_reader_wants_it_dark(page: Path) -> None:
    corners = []
    for number, options in enumerate(([], ["--force-dark-mode"])):
        picture = page.with_name(f"screen{number}.png")
        chromium(page.parent, *options, f"--screenshot={picture}", page.as_uri())
        corners.append(np.asarray(Image.open(picture).convert("L"))[:4, :4].mean())
    assert corners[0] > 200
    assert corners[1] < 60
