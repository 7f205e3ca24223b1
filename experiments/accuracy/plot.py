"""Plots of lines and points, drawn with Pillow: panels side by side over one legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F",
)  # fmt: skip
MARKERS = ("circle", "square", "triangle", "diamond")
SCALE = 2  # pixels a unit
WIDTH, HEIGHT = 420, 330  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 48
FONT, TITLE, SMALL = 13, 15, 11
LEGEND = 22  # height of a row
TICKS = 5
GREY, PALE = "#444444", "#DDDDDD"

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A line of a panel; lines of one name share an entry of the legend.

    Args:
        name: its entry in the legend.
        points: pairs of x and y, in order.
        colour: of the line and its markers.
        marker: shape of the points; none: no points.
        dashed: whether it is dashed.
        joined: whether the points are joined.
        labels: a text beside each point, or none at all.
    """

    name: str
    points: Sequence[Point]
    colour: str
    marker: str | None = None
    dashed: bool = False
    joined: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """Axes with lines.

    Args:
        title: stands above them.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        lines: what is drawn.
        across: ends of the horizontal axis.
        up: ends of the vertical axis.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    across: Point
    up: Point


@dataclass
class _Canvas:
    image: Image.Image
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    def text(self, place: Point, text: str, anchor: str, size: int = FONT) -> None:
        self.pen.text(_scaled(place), text, GREY, font=_font(size), anchor=anchor)

    def line(self, points: Sequence[Point], colour: str, width: float, dashed: bool) -> None:
        pieces = _dashes(points) if dashed else [list(points)]
        for piece in pieces:
            places = [_scaled(place) for place in piece]
            self.pen.line(places, fill=colour, width=round(width * SCALE), joint="curve")

    def marker(self, place: Point, shape: str, colour: str, radius: float = 4.5) -> None:
        x, y = _scaled(place)
        r = radius * SCALE
        corners = {
            "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            "triangle": [(0, -1.1), (1, 0.8), (-1, 0.8)],
            "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        }
        if shape == "circle":
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            self.pen.polygon([(x + a * r, y + b * r) for a, b in corners[shape]], fill=colour)


def draw(panels: Sequence[Panel], *, columns: int = 2, note: str = "") -> Image.Image:
    """A picture of some panels.

    Args:
        panels: at least one.
        columns: panels beside each other.
        note: stands at the bottom.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    entries: dict[str, Line] = {}
    for panel in panels:
        for line in panel.lines:
            entries.setdefault(line.name, line)
    width = columns * WIDTH
    lengths = [_font(FONT).getlength(name) / SCALE + 64 for name in entries]
    cell = max(lengths, default=64.0)
    a_row = max(1, int((width - 20) // cell))
    legend = math.ceil(len(entries) / a_row) * LEGEND
    height = rows * HEIGHT + legend + 8 + (LEGEND if note else 0)
    canvas = _Canvas(Image.new("RGB", (width * SCALE, round(height * SCALE)), "white"))
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        _panel(canvas, panel, (column * WIDTH, row * HEIGHT))
    for index, (name, line) in enumerate(entries.items()):
        row, column = divmod(index, a_row)
        x, y = 20 + column * cell, rows * HEIGHT + (row + 0.5) * LEGEND
        if line.joined:
            canvas.line([(x, y), (x + 30, y)], line.colour, 2, line.dashed)
        if line.marker:
            canvas.marker((x + 15, y), line.marker, line.colour)
        canvas.text((x + 38, y), name, "lm")
    if note:
        canvas.text((20, rows * HEIGHT + legend + LEGEND / 2), note, "lm", SMALL)
    return canvas.image


def _panel(canvas: _Canvas, panel: Panel, corner: Point) -> None:
    left, top = corner[0] + LEFT, corner[1] + TOP
    right, bottom = corner[0] + WIDTH - RIGHT, corner[1] + HEIGHT - BOTTOM

    def place(point: Point) -> Point:
        x = (point[0] - panel.across[0]) / (panel.across[1] - panel.across[0])
        y = (point[1] - panel.up[0]) / (panel.up[1] - panel.up[0])
        return left + x * (right - left), bottom - y * (bottom - top)

    for tick in ticks(*panel.up):
        y = place((panel.across[0], tick))[1]
        canvas.line([(left, y), (right, y)], PALE, 1, False)
        canvas.text((left - 6, y), f"{tick:g}", "rm")
    for tick in ticks(*panel.across):
        x = place((tick, panel.up[0]))[0]
        canvas.line([(x, bottom), (x, bottom + 4)], GREY, 1, False)
        canvas.text((x, bottom + 6), f"{tick:g}", "ma")
    canvas.line([(left, top), (left, bottom), (right, bottom)], GREY, 1, False)
    canvas.text((left, corner[1] + 8), panel.title, "la", TITLE)
    canvas.text(((left + right) / 2, corner[1] + HEIGHT - 22), panel.x, "ma")
    _upright(canvas, (corner[0] + 10, (top + bottom) / 2), panel.y)
    taken: list[Box] = []
    for line in panel.lines:
        places = [place(point) for point in line.points]
        if line.joined and len(places) > 1:
            canvas.line(places, line.colour, 2, line.dashed)
        for spot in places if line.marker else ():
            canvas.marker(spot, line.marker or "", line.colour)
            taken.append((spot[0] - 5, spot[1] - 5, spot[0] + 5, spot[1] + 5))
    area = (left + 1, top - 12, right + RIGHT, bottom - 1)
    for line in panel.lines:
        for point, label in zip(line.points, line.labels, strict=False):
            _label(canvas, place(point), label, taken, area)


def _label(canvas: _Canvas, spot: Point, text: str, taken: list[Box], area: Box) -> None:
    """A text near a point, where nothing else is."""
    width, height = _font(SMALL).getlength(text) / SCALE, SMALL + 1
    for distance in range(9, 120, 6):
        for angle in (-45, 45, 0, 180, -90, 90, -135, 135):
            x = spot[0] + distance * math.cos(math.radians(angle))
            y = spot[1] + distance * math.sin(math.radians(angle))
            x -= width * (1 - math.cos(math.radians(angle))) / 2
            box = (x, y - height / 2, x + width, y + height / 2)
            inside = box[0] >= area[0] and box[1] >= area[1]
            inside = inside and box[2] <= area[2] and box[3] <= area[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if distance > 15:
                    near = (min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3]))
                    canvas.line([spot, near], PALE, 1, False)
                canvas.text((x, y), text, "lm", SMALL)
                return


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five."""
    power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    steps = [n * power for n in (1, 2, 2.5, 5, 10) if n != 2.5 or power >= 10]
    step = next(step for step in steps if step * TICKS >= (high - low) * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _upright(canvas: _Canvas, place: Point, text: str) -> None:
    """A text that is read from below."""
    font = _font(FONT)
    size = math.ceil(font.getlength(text)), round(FONT * SCALE * 1.5)
    strip = Image.new("RGB", size, "white")
    ImageDraw.Draw(strip).text((0, size[1] / 2), text, GREY, font=font, anchor="lm")
    turned = strip.rotate(90, expand=True)
    x, y = _scaled(place)
    canvas.image.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)))


def _dashes(points: Sequence[Point], length: float = 5.0) -> list[list[Point]]:
    """The pieces of a dashed line."""
    pieces: list[list[Point]] = []
    drawn, left = True, length
    for begin, end in pairwise(points):
        whole, done = math.dist(begin, end), 0.0
        while done < whole:
            step = min(left, whole - done)
            parts = [(done + part) / whole for part in (0.0, step)]
            if drawn:
                pieces.append([
                    (begin[0] + s * (end[0] - begin[0]), begin[1] + s * (end[1] - begin[1]))
                    for s in parts
                ])  # fmt: skip
            done, left = done + step, left - step
            if left <= 0:
                drawn, left = not drawn, length
    return pieces


def _overlap(one: Box, other: Box) -> bool:
    return not (one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1])


def _scaled(place: Point) -> Point:
    return place[0] * SCALE, place[1] * SCALE


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * SCALE)
