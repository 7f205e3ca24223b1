"""The page is read back with html.parser; its runs are made by hand, in milliseconds."""

import base64
import csv
import io
import itertools
import json
import math
import re
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.reporting.report import client_rows, plugin_text, spread, write_report
from fedleak.reporting.verdict import wilson
from fedleak.runs.diagnostics import Diagnostics, append_diagnostics
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import append_rows
from fedleak.updates.files import update_key
from fedleak.updates.truth import GroundTruth
from tests.reporting.rows import PRECODE, a_row, some

VOID = {"meta", "br", "wbr", "img"}  # of the elements that a page of ours holds
NAN, INF = math.nan, math.inf


STORY = [
    *some(4, 4),
    *some(0, 4, **PRECODE),
    *some(4, 4, attack="nra", **PRECODE),
]
UNSCORED = {"mse": None, "psnr": None, "ssim": None, "success": None, "noise_mse": None}


def a_config(output, **changes):
    data = {"path": "/home/somebody/victims.npz", "mean": [0.5] * 3, "std": [0.25] * 3}
    values = {
        "data": Plugin("fedleak.data.npz.Npz", data),
        "model": Plugin("fedleak.models.mlp.SMLP", {"precode": {"bottleneck_size": 8}}),
        "attacks": (Plugin("fedleak.attacks.iga.IGA", {"iterations": 100}),),
        "baseline": True,
        "federation": Federation(clients=4),
    }
    return RunConfig(output=str(output), **values | changes)


def a_folder(
    path, rows, *, config=None, status="complete", truth=True, channels=3, events=None, scaled=True
):
    """A run's folder as a run leaves it."""
    folder = RunFolder(path)
    folder.reconstructions.mkdir(parents=True)
    config = config or a_config(path)
    config.save(folder.config)
    federation = {"rounds": 1, "clients": 4, "failures": 0, "accuracy": 0.5}
    data = None
    if scaled:
        data = {
            "name": config.data_name, "kind": "images", "input_shape": [channels, 6, 8],
            "classes": 4, "mean": [0.5] * channels, "std": [0.25] * channels,
        }  # fmt: skip
    summary = {"status": status, "data": data or {}, "attacks": [], "federation": federation}
    folder.summary.write_text(json.dumps(summary))
    if rows:
        append_rows(folder.results, rows)
    draw_pixels = np.random.default_rng(0)
    for row in rows:
        size = (6, 8) if channels == 1 else (6, 8, 3)
        pixels = draw_pixels.integers(0, 256, size, dtype=np.uint8)
        file = folder.reconstruction(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        batch = row["batch_size"]
        inputs = torch.linspace(-2, 2, batch * channels * 48).reshape(batch, channels, 6, 8)
        for variant in ("", "baseline") if truth else ():
            folder.truth(variant).mkdir(parents=True, exist_ok=True)
            key = update_key(row["round"], row["client"])
            labels = torch.zeros(batch, dtype=torch.long)
            GroundTruth(inputs, labels).save(folder.truth(variant) / f"{key}.safetensors")
    if events:
        for run, curves in events.items():
            with SummaryWriter(str(folder.tensorboard / run)) as writer:
                for tag, points in curves.items():
                    for step, value in points:
                        writer.add_scalar(tag, value, step)
    return folder


class Page(HTMLParser):
    """What stands in a page, with a check that every element is closed where it belongs."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.open, self.texts, self.cells = [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if "td" in self.open or ("tr" in self.open and "th" in self.open):
            self.cells[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag, **wanted):
        found = [attrs for name, attrs in self.elements if name == tag]
        return [a for a in found if all(a.get(n) == value for n, value in wanted.items())]

    def pictures(self):
        found = []
        for image in self.all("img"):
            head, data = image["src"].split(",")
            assert head == "data:image/png;base64"
            found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def a_page(path, rows, **settings):
    return Page(write_report(a_folder(path, rows, **settings)))


COSTS = {
    "iga on smlp": {
        "5 victims/cost of r0001-c0000": [(0, 0.9), (50, 0.1), (100, -1e-7)],
        "5 victims/cost of r0001-c0001": [(0, 0.8), (50, 0.2), (100, 1e-3)],
    },
    "nra on smlp+precode": {"5 victims/cost of r0001-c0000": [(0, 1.0), (100, 0.5)]},
}
TRAINING = {
    model: {
        f"3 training/global model/test/{metric}": [(step, step / 4) for step in range(4)]
        for metric in ("accuracy", "loss", "kl")
    }
    for model in ("smlp", "smlp+precode")
}


class TestPage:
    def test_stands_alone(self, tmp_path):
        page = a_page(tmp_path / "run", STORY, events=COSTS | TRAINING)
        assert page.source.startswith('<!doctype html>\n<html lang="en">')
        for _, attributes in page.elements:
            assert not attributes.keys() & {"href", "srcset", "action", "data", "poster"}
            assert attributes.get("src", "data:").startswith("data:")
            assert not [name for name in attributes if name.startswith("on")]
        assert not page.all("script")
        assert not page.all("link")
        assert not re.search(r"url\(|@import|https?:", page.source)
        policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
        assert policy.startswith("default-src 'none'")

    def test_can_be_read_by_everybody(self, tmp_path):
        page = a_page(tmp_path / "run", STORY, events=COSTS | TRAINING)
        assert page.all("meta", name="viewport")
        assert len(page.all("title")) >= 1
        assert len(page.all("h1")) == len(page.all("main")) == 1
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert all(image["alt"] for image in page.all("img"))
        assert all(chart["aria-label"] for chart in page.all("svg", role="img"))
        assert len(page.all("svg", role="img")) == len(page.all("figure", **{"class": "chart"}))
        assert all("scope" in header for header in page.all("th"))
        names = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(names) == len(set(names))
        for _, attributes in page.elements:
            for other in ("aria-labelledby", "aria-describedby"):
                assert attributes.get(other, names[0]) in names
        for feature in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
            assert feature in page.source

    def test_tells_the_story(self, tmp_path):
        page = a_page(tmp_path / "run", STORY, events=COSTS | TRAINING)
        assert "IGA reconstructs 4 of 4 images of the undefended smlp." in page.text
        assert "PRECODE stops IGA (0 of 4) but not NRA (4 of 4) in this setting." in page.text
        assert "no evidence that a defence is safe" in page.text
        assert "The attacked model was untrained (round 1)" in page.text
        assert "given the true labels" in page.text
        assert "up to 49 %, and one of 100 % with a true rate as low as 51 %" in page.text
        assert page.cells[1][:6] == ["iga", "smlp", "none", "4", "0.9900 ± 0.0000", "50.00 ± 0.00"]
        assert page.cells[1][7:] == ["100 % (4 of 4)", "51 % to 100 %", "2.0"]
        assert len(page.all("img")) == 4 * 4
        assert len(page.all("figure", **{"class": "leaked"})) == len(page.all("strong")) == 4 + 4
        assert len(page.all("svg", role="img")) == 2 + 2

    def test_setting(self, tmp_path):
        page = a_page(tmp_path / "run", STORY)
        for text in (
            "victims, partition iid", "precode (bottleneck_size 8)", "gradient of one batch",
            "iga (iterations 100)", "clients: all; rounds: all", "0.5000 (smlp+precode)",
            "data range 1", "fedleak 0.", "torch ",
        ):  # fmt: skip
            assert text in page.text
        assert "/home" not in page.source
        assert str(tmp_path) not in page.source

    def test_text_of_the_run_is_escaped(self, tmp_path):
        evil = '<script>alert("x")</script>'
        rows = [a_row(dataset=evil, defense=f"<i>{evil}")]
        data = {"path": f"{evil}.npz", "mean": [0.5] * 3, "std": [0.25] * 3}
        config = a_config(
            tmp_path / "run",
            data=Plugin("fedleak.data.npz.Npz", data),
            model=Plugin("my.Model", {"layer": evil, "precode": {"a": "<u>"}}),
        )
        costs = {"5 victims/cost of r0001-c0000": [(0, 1.0), (9, 0.1)]}
        events = {f"<b>'& on {evil}": costs}
        page = a_page(tmp_path / "run", rows, config=config, events=events)
        assert not {tag for tag, _ in page.elements} & {"script", "b", "i", "u"}
        assert page.source.count("&lt;script&gt;") > 3
        assert f"<b>'& on {evil}" in page.text

    def test_pictures_are_those_of_the_run(self, tmp_path):
        folder = a_folder(tmp_path / "run", [a_row()])
        original, found = Page(write_report(folder)).pictures()
        truth = GroundTruth.load(folder.truth("baseline") / "r0001-c0000.safetensors")
        pixels = (truth.inputs[0] * 0.25 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(original), (pixels * 255).round())
        saved = np.asarray(Image.open(folder.reconstruction(a_row())))
        np.testing.assert_array_equal(np.asarray(found), saved)

    def test_grey_stays_grey(self, tmp_path):
        data = {"path": "x.npz", "mean": [0.5], "std": [0.25]}
        config = a_config(tmp_path / "run", data=Plugin("fedleak.data.npz.Npz", data))
        page = a_page(tmp_path / "run", [a_row()], config=config, channels=1)
        assert [picture.mode for picture in page.pictures()] == ["L", "L"]

    def test_many_victims(self, tmp_path):
        rows = [a_row(client=client, ssim=client / 300) for client in range(210)]
        config = a_config(tmp_path / "run", federation=Federation(clients=210))
        page = a_page(tmp_path / "run", rows, config=config)
        assert len(page.all("img")) == 2 * 64
        assert "the first 64 victims by round and client; 146 more" in page.text
        assert "The first 200 of 210 rows" in page.text

    def test_batches(self, tmp_path):
        rows = [
            a_row(sample=s, batch_size=3, ssim=1 - s / 2, success=int(s == 0)) for s in range(3)
        ]
        config = a_config(tmp_path / "run", federation=Federation(clients=1, batch_size=3))
        events = {"iga on smlp": {"5 victims/cost of r0001-c0000": [(0, 1.0), (9, 0.1)]}}
        page = a_page(tmp_path / "run", rows, config=config, events=events)
        titles = [f"Client 0, round 1, image {number}" for number in (1, 2, 3)]
        assert all(title in page.text for title in titles)
        assert "An update came from up to 3 images" in page.text
        assert ["0", "1", "smlp", "iga", "1.0000", "1 of 3"] in page.cells
        # The client's line counts as reconstructed, since one of its images was.
        assert "client 0, round 1: reconstructed" in page.text


class TestOtherRuns:
    @pytest.mark.parametrize(
        ("status", "sentence"),
        [
            ("running", "has not ended, or was killed"),
            ("interrupted", "was interrupted"),
            ("failed", "The run failed"),
        ],
    )
    def test_unfinished(self, tmp_path, status, sentence):
        page = a_page(tmp_path / "run", STORY[:6], status=status)
        assert sentence in page.text
        assert page.text.count("no result") == 2  # of clients 2 and 3, on smlp+precode

    def test_half_written_line(self, tmp_path):
        folder = a_folder(tmp_path / "run", STORY[:2], status="running")
        before = folder.results.read_text() + "1,2,0,ig"
        folder.results.write_text(before)
        folder.summary.unlink()
        assert "reconstructs 2 of 2" in Page(write_report(folder)).text
        assert folder.results.read_text() == before

    def test_diagnostics(self, tmp_path):
        folder = a_folder(tmp_path / "run", STORY)
        for client in range(70):
            found = Diagnostics(
                "smlp+precode", "exact_nra", 1, client, (f"<i>{client}</i> inverted",)
            )
            append_diagnostics(folder.diagnostics, found)
        page = Page(write_report(folder))
        assert "Attack diagnostics" in page.text
        assert "These are the first 64 of 70; diagnostics.jsonl has all." in page.text
        assert "<i>63</i> inverted" in page.text  # escaped, not in italics
        assert "<i>64</i> inverted" not in page.text
        assert ["open" in details for details in page.all("details")] == [True] + [False] * 63

    def test_without_diagnostics_there_is_no_section(self, tmp_path):
        assert "Attack diagnostics" not in a_page(tmp_path / "run", STORY).text

    def test_missing_picture(self, tmp_path):
        folder = a_folder(tmp_path / "run", STORY)
        folder.reconstruction(STORY[0]).unlink()
        assert len(Page(write_report(folder)).all("img")) == 15

    def test_no_truth(self, tmp_path):
        config = a_config(tmp_path / "run", victims=Victims(labels="recovered"))
        rows = [row | UNSCORED for row in STORY]
        page = a_page(tmp_path / "run", rows, truth=False, config=config)
        assert "4 by IGA on smlp, 4 by IGA on smlp+precode and 4 by NRA" in page.text
        assert "ground truth is not available" in page.text
        assert "recovered them from the updates" in page.text
        assert page.cells[1][4:] == ["–", "–", "–", "not scored", "–", "2.0"]
        assert "SSIM of" not in page.text
        assert "no evidence that a defence" not in page.text
        assert len(page.all("img")) == 3 * 4

    def test_the_scaling_is_not_told(self, tmp_path):
        folder = a_folder(tmp_path / "run", STORY, scaled=False)
        page = Page(write_report(folder))
        assert "summary.json does not record the scaling" in page.text
        assert len(page.all("img")) == 3 * 4

    def test_the_data_are_not_loaded(self, tmp_path):
        """All that the page needs of them is in summary.json."""
        mark = tmp_path / "mark"
        data = Plugin("subprocess.Popen", {"args": ["touch", str(mark)]})
        page = a_page(tmp_path / "run", STORY, config=a_config(tmp_path / "run", data=data))
        assert len(page.all("img")) == 4 * 4
        assert not mark.exists()

    def test_training_only(self, tmp_path):
        config = a_config(tmp_path / "run", attacks=(), baseline=False)
        page = a_page(tmp_path / "run", [], config=config, events=TRAINING)
        assert "No attack was made" in page.text
        assert not page.all("table")
        assert not page.all("img")
        assert len(page.all("svg", role="img")) == 2

    def test_no_attack_yet(self, tmp_path):
        page = a_page(tmp_path / "run", [], status="running")
        assert "No attack has finished yet" in page.text
        assert "hold no cost of an attack" in page.text

    def test_without_tensorboard(self, tmp_path, monkeypatch):
        name = "tensorboard.backend.event_processing.event_accumulator"
        monkeypatch.setitem(sys.modules, name, None)
        page = a_page(tmp_path / "run", STORY, events=COSTS)
        assert not page.all("svg")
        assert "hold no cost of an attack" in page.text

    def test_infinite_and_empty_cells(self, tmp_path):
        rows = [a_row(psnr=INF), a_row(client=1, psnr=40.0, seconds=None, mse=NAN)]
        page = a_page(tmp_path / "run", rows)
        assert page.cells[1][5:7] == ["40.00 (1 of 2 finite)", "1.00e-05 (1 of 2 finite)"]

    def test_not_a_run(self, tmp_path):
        with pytest.raises(BadInput, match="Expected the configuration of a run"):
            write_report(RunFolder(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_again(self, tmp_path):
        folder = a_folder(tmp_path / "run", STORY, events=COSTS)
        first = write_report(folder).read_text()
        assert write_report(folder).read_text() == first
        assert not list(folder.path.glob("*.part"))


class TestNumbers:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [
            # n / (n + z^2) and z^2 / (n + z^2), with z^2 = 3.8415, by hand
            (8, 8, 0.6756, 1.0),
            (0, 8, 0.0, 0.3244),
            (4, 4, 0.5101, 1.0),
            # statsmodels' proportion_confint(15, 50, method="wilson")
            (15, 50, 0.1910, 0.4375),
            (5, 10, 0.2366, 0.7634),
            (0, 0, 0.0, 1.0),
        ],
    )
    def test_wilson(self, successes, n, low, high):
        assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)
        assert 0 <= wilson(successes, n)[0] <= wilson(successes, n)[1] <= 1

    def test_spread(self):
        rows = [a_row(psnr=value) for value in (1.0, 2.0, 3.0)]
        assert spread(rows, "psnr", ".1f") == "2.0 ± 1.0"
        assert spread(rows[:1], "psnr", ".1f") == "1.0"
        assert spread([a_row(psnr=INF)], "psnr", ".1f") == "∞"
        assert spread([a_row(psnr=NAN)], "psnr", ".1f") == "–"
        assert spread([a_row(psnr=None)], "psnr", ".1f") == "–"

    def test_client_rows(self):
        rows = [
            a_row(client=1, ssim=0.2, success=0),
            a_row(client=1, ssim=0.9, attack="nra"),
            a_row(client=1, ssim=NAN, success=0, mse=NAN, attack="dlg"),
            a_row(client=0, round=2, **UNSCORED),
            a_row(client=1, ssim=0.1, success=0, **PRECODE),
        ]
        found = [tuple(row.values()) for row in client_rows(rows)]
        assert found == [
            ("0", "2", "smlp", "none", "–", "–", "not scored"),
            ("1", "1", "smlp", "none", "nra", "0.9000", "1 of 1"),
            ("1", "1", "smlp+precode", "none", "iga", "0.1000", "0 of 1"),
        ]

    def test_plugin_text(self):
        settings = {"restarts": 1, "box": True, "patience": None, "path": "/a/b.npz", "at": [1, 2]}
        plugin = {"class_path": "fedleak.attacks.iga.IGA", "init_args": settings}
        expected = "iga (restarts 1, box true, patience none, path b.npz, at [1, 2])"
        assert plugin_text("attacks", plugin) == expected
        assert plugin_text("attacks", {"class_path": "my.Own", "init_args": {}}) == "own"


def test_data_files_are_beside_the_module():
    folder = Path(sys.modules["fedleak.reporting.report"].__file__).parent
    assert (folder / "report_template.html").is_file()
    assert (folder / "report_style.css").is_file()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_summary_is_named(tmp_path, text):
    folder = a_folder(tmp_path / "run", [a_row()])
    folder.summary.write_text(text)
    with pytest.raises(BadInput, match=r"in .*summary.json, got"):
        write_report(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "a run's summary in"),
        ('{"status": "done"}', "`status` to be one of running, interrupted, failed, complete in"),
        ('{"status": "complete", "attacks": {}}', "`attacks` to be a list of means"),
        ('{"status": "complete", "attacks": [{"attack": 1}]}', "`attacks` to be a list of means"),
        (
            '{"status": "complete", "attacks": [], "federation": {"rounds": -1}}',
            "`federation` to hold the numbers rounds, clients, failures and accuracy",
        ),
    ],
)
def test_a_summary_of_another_shape_is_named(tmp_path, text, sentence):
    folder = a_folder(tmp_path / "run", [a_row()])
    folder.summary.write_text(text)
    with pytest.raises(BadInput, match=rf"Expected {sentence}.*summary.json, got"):
        write_report(folder)
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden", "x" * 101, "a\nb", "é\0"])
@pytest.mark.parametrize("column", ["model", "attack"])
def test_a_name_is_never_a_path(tmp_path, column, name):
    folder = a_folder(tmp_path / "run", [a_row()])
    cells = a_row(**{column: name})
    text = folder.results.read_text().splitlines()[0]
    with folder.results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, text.split(","), lineterminator="\n")
        writer.writeheader()
        writer.writerow(cells)
    with pytest.raises(BadInput, match=r"name of the (model|attack) in line \d of|a NUL character"):
        write_report(folder)
    with pytest.raises(BadInput, match=f"Expected the name of the {column} to consist of letters"):
        folder.reconstruction(cells)


def test_damaged_curves_cost_the_curves_alone(tmp_path):
    folder = a_folder(tmp_path / "run", STORY, events=COSTS)
    (folder.tensorboard / "events.out.tfevents.9").write_bytes(record(b"\xff\xff"))
    page = Page(write_report(folder))
    assert "TensorBoard files are damaged: Expected TensorBoard's event files in" in page.text
    assert "PRECODE stops IGA" in page.text
    assert not page.all("svg", role="img")


def record(content):
    """A record of an event file, with the checksums that it has to have."""
    head = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (head, content)]
    return head + sums[0] + content + sums[1]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "an image at .*png, got a file that cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:90]), "an image at .*png, got a file"),
        (lambda path: Image.new("L", (9, 9)).save(path, "GIF"), "an image at .*png, got a file"),
        (lambda path: Image.new("L", (9, 9)).save(path), r"inputs of shape \(3, 9, 9\) beside"),
        (lambda path: Image.new("1", (8193, 8193)).save(path), r"at most 67,108,864 pixels in"),
        (lambda path: Image.new("1", (20000, 20000)).save(path), "an image at .*bomb"),
    ],
)
def test_damaged_picture(tmp_path, damage, sentence):
    folder = a_folder(tmp_path / "run", [a_row()])
    damage(folder.reconstruction(a_row()))
    with pytest.raises(BadInput, match=sentence):
        write_report(folder)


def test_more_pictures_than_a_page_has_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fedleak.reporting.report.MAX_PIXELS", 2 * 48)
    write_report(a_folder(tmp_path / "run", some(1, 2)))
    with pytest.raises(BadInput, match="at most 96 pixels in total for a report, got more up to"):
        write_report(a_folder(tmp_path / "more", some(1, 3)))
