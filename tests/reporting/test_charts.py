"""Curves from event files, and the charts drawn of them."""

import math
import re
import struct

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from fedleak.errors import BadInput
from fedleak.reporting.charts import (
    Chart,
    Series,
    cost_charts,
    describe,
    draw,
    read_scalars,
    training_charts,
)

NAN, INF = math.nan, math.inf


class TestCharts:
    def places(self, chart):
        points = re.findall(r'points="([^"]*)"', str(draw(chart)))
        return [[tuple(map(float, p.split(","))) for p in line.split()] for line in points]

    def chart(self, *points, log=False):
        lines = [Series(f"line {i}", "a label", i, list(p)) for i, p in enumerate(points)]
        return Chart("A <title>", "iteration", "cost", lines, log)

    def test_points_lie_where_they_belong(self):
        (line,) = self.places(self.chart([(0, 0.0), (50, 0.5), (100, 1.0)]))
        assert line == [(54.0, 178.0), (196.0, 94.0), (338.0, 10.0)]

    def test_log_scale(self):
        (line,) = self.places(self.chart([(0, 1.0), (1, 1e-2), (2, 1e-4), (3, -1.0)], log=True))
        heights = [y for _, y in line]
        assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.1)
        assert heights[3] == heights[2] == 178.0

    def test_log_scale_spans_a_decade(self):
        (line,) = self.places(self.chart([(0, 1.0), (1, 0.9)], log=True))
        assert line[1][1] - line[0][1] < 10

    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize(
        "points", [[(0, 0.5)], [(3, 2.0), (4, 2.0)], [(0, 1e30), (1, 1e-30)], [(0, 7e-9), (1, 3.0)]]
    )
    def test_stays_within_the_frame(self, points, log):
        source = str(draw(self.chart(points, log=log)))
        assert "nan" not in source
        assert "inf" not in source
        assert all(
            54 <= x <= 338 and 10 <= y <= 178
            for line in self.places(self.chart(points, log=log))
            for x, y in line
        )
        assert source.count("<line") >= 2  # so that the axis has two numbers or more

    def test_text_is_escaped_and_told(self):
        chart = self.chart([(0, 1.0), (9, 0.5)], [(0, 2.0), (9, 0.25)])
        assert "<title>A" not in str(draw(chart))
        assert "A &lt;title&gt;" in str(draw(chart))
        assert describe(chart) == (
            "A <title>: cost by iteration. "
            "a label (2 lines): starts at 1 to 2, ends at 0.25 to 0.5."
        )

    def test_training_needs_two_rounds(self):
        tag = "3 training/global model/test/accuracy"
        assert training_charts({"smlp": {tag: [(0, 0.1), (1, 0.2)]}}) == []
        (chart,) = training_charts({"smlp": {tag: [(0, 0.1), (1, 0.2), (2, 0.3)]}})
        assert chart.series[0].label == "smlp"

    def test_costs_are_thinned_and_told_apart(self):
        long = [(step, 1 / (step + 1)) for step in range(1000)]
        costs = {f"5 victims/cost of r0001-c{c:04d}": long for c in range(70)}
        # The median is a curve of the attack, and not of a victim.
        scalars = {"iga on smlp": costs | {"2 attacks/cost (median of victims)": long}}
        leaked = {("smlp", "iga", "r0001-c0000"): True, ("smlp", "iga", "r0001-c0001"): False}
        (chart,) = cost_charts(scalars, leaked)
        assert len(chart.series) == 64
        assert "first 64 of 70" in chart.note
        labels = [line.label for line in chart.series[:3]]
        assert labels == ["reconstructed", "not reconstructed", "not scored"]
        points = chart.series[0].points
        assert 100 < len(points) <= 200
        assert points[0] == long[0]
        assert points[-1] == long[-1]

    def test_resumed_run(self, tmp_path):
        for points in ({0: 1.0, 1: 2.0, 2: 3.0, 3: NAN}, {1: 2.5}):
            begin = min(points)
            with SummaryWriter(tmp_path, purge_step=begin, filename_suffix=f"{begin}") as writer:
                for step, value in points.items():
                    writer.add_scalar("tag", value, step)
        assert read_scalars(tmp_path) == {"": {"tag": [(0, 1.0), (1, 2.5), (2, 3.0)]}}

    def test_sub_runs_in_the_order_in_which_they_began(self, tmp_path):
        for number, run in enumerate(("smlp", "", "iga on smlp")):
            with SummaryWriter(tmp_path / run) as writer:
                writer.add_scalar("tag", number, 0)
        found = read_scalars(tmp_path)
        assert list(found) == ["smlp", "", "iga on smlp"]
        assert [curves["tag"] for curves in found.values()] == [[(0, 0)], [(0, 1)], [(0, 2)]]

    def test_nothing_to_read(self, tmp_path):
        assert read_scalars(tmp_path) == {} == read_scalars(tmp_path / "missing")


def test_an_event_file_without_end_is_not_read(tmp_path):
    head = struct.pack("<Q", 2**40)
    file = tmp_path / "events.out.tfevents.1"
    file.write_bytes(head + struct.pack("<I", masked_crc32c(head)))
    with pytest.raises(BadInput, match=r"event files in .*got one that cannot be read"):
        read_scalars(tmp_path)
    with file.open("r+b") as large:
        large.truncate(2**30 + 1)  # takes no room on the disk
    with pytest.raises(BadInput, match=r"at most 1,073,741,824 bytes in total in .*1,073,741,825"):
        read_scalars(tmp_path)


def test_a_chart_of_one_large_negative_value():
    chart = Chart("t", "x", "y", [Series("a", "a", 0, [(0, -1e9), (1, -1e9)])])
    assert "<svg" in draw(chart)
