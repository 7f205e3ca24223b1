"""PNG figures: a row for each victim, a column for each attack on a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fedleak.config import RunConfig
from fedleak.reporting.drawing import fitted
from fedleak.reporting.panels import Panel, read_panels
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer
from fedleak.runs.scoring import ImageScoring, Picture


@dataclass(frozen=True)
class Layout:
    """Sizes of a figure, in pixels.

    Args:
        side: length of an image's longer side.
        gap: distance between images and around them.
        line: height of a line of text.
        font: size of the font.
        rows: largest number of victims on a page.
        narrow: whether titles and labels are broken into lines and the caption is omitted.
    """

    side: int
    gap: int
    line: int
    font: int
    rows: int
    narrow: bool = False


FIGURE = Layout(side=128, gap=12, line=18, font=12, rows=16)
# A TensorBoard card shows an image in about 345 by 210 pixels. A larger image is scaled down, and
# its text becomes illegible.
CARD = Layout(side=64, gap=6, line=13, font=11, rows=2, narrow=True)


class Figures(Observer):
    """Draws the figures of a run when it ends.

    Args:
        config: the run's configuration.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.
    """

    def __init__(self, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._config = config
        self._mean, self._std = mean, std

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`."""
        folder = RunFolder(Path(self._config.output))
        write_figures(folder, self._config, self._mean, self._std)


def write_figures(
    folder: RunFolder, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> list[Path]:
    """Draw originals beside reconstructions, each with its SSIM, on pages of 16 victims.

    Args:
        folder: the run's folder.
        config: its configuration.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.

    Returns:
        The paths of the files, ``reconstructions.png``, ``reconstructions-2.png`` and so on; empty
        if nothing was attacked, or the samples are not images.
    """
    files = []
    pages = draw_pages(folder, config, mean, std, FIGURE)
    for number, page in enumerate(pages, start=1):
        name = "reconstructions.png" if number == 1 else f"reconstructions-{number}.png"
        file = folder.figures / name
        page.save(file)
        files.append(file)
    return files


def draw_pages(
    folder: RunFolder,
    config: RunConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    layout: Layout,
) -> list[Image.Image]:
    """Draw all victims of a run.

    Args:
        folder: the run's folder.
        config: its configuration.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.
        layout: sizes of the pages.

    Returns:
        The pages; empty if nothing was attacked, or the samples are not images.

    Raises:
        BadInput: see :func:`fedleak.reporting.panels.read_panels`.
    """
    panels = read_panels(folder, config, mean, std)
    titles = list(dict.fromkeys(title for panel in panels for title in panel.reconstructions))
    caption = "" if layout.narrow else _caption(config)
    return [
        draw_page(panels[begin : begin + layout.rows], titles, caption, layout)
        for begin in range(0, len(panels), layout.rows)
    ]


def draw_page(
    panels: Sequence[Panel],
    titles: Sequence[str],
    caption: str,
    layout: Layout = FIGURE,
    measure: str = "SSIM",
) -> Image.Image:
    """Draw one figure.

    Args:
        panels: its rows.
        titles: titles of its columns, without that of the originals.
        caption: text below the figure; may be empty.
        layout: its sizes.
        measure: name of the score below each reconstruction.
    """
    side, gap, line = layout.side, layout.gap, layout.line
    font = ImageFont.load_default(size=layout.font)
    columns = ["original", *titles]
    if layout.narrow:
        columns = [title.replace(" on ", " on\n", 1) for title in columns]
    labels = [_label(panel, "\n" if layout.narrow else ", ") for panel in panels]
    lines = [text for title in columns for text in title.split("\n")]
    under = max(1 + any(panel.unsupported for panel in panels), *map(_count, labels))
    step = side + gap + line * under
    # A text may be wider than an image, and the caption wider than the columns together.
    width = max(side + gap, *(int(font.getlength(text)) + gap for text in lines))
    below = [text for label in labels for text in label.split("\n")]
    first = max(width, *(int(font.getlength(text)) + gap for text in below))
    lefts = [gap, *(gap + first + number * width for number in range(len(titles)))]
    head = gap + line * max(_count(title) for title in columns)
    body = len(panels) * step
    size = (
        max(lefts[-1] + width, int(font.getlength(caption)) + 2 * gap if caption else 0),
        head + body + (line if caption else 0),
    )
    figure = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(figure)

    def write(left: int, top: int, text: str) -> None:
        for number, part in enumerate(text.split("\n")):
            pen.text((left, top + number * line), part, fill="black", font=font)

    for left, title in zip(lefts, columns, strict=True):
        write(left, gap // 2, title)
    for row, panel in enumerate(panels):
        top = head + row * step
        cells: list[tuple[Picture | None, str]] = [(panel.original, labels[row])]
        for title in titles:
            picture, ssim = panel.reconstructions.get(title, (None, None))
            below_it = [] if ssim is None else [f"{measure} {ssim:.4f}"]
            below_it += ["not supported"] if title in panel.unsupported else []
            cells.append((picture, "\n".join(below_it)))
        for left, (picture, text) in zip(lefts, cells, strict=True):
            if picture is not None:
                figure.paste(fitted(picture, side), (left, top))
            write(left, top + side + 2, text)
    pen.text((gap, head + body), caption, fill="black", font=font)
    return figure


def _label(panel: Panel, separator: str) -> str:
    if panel.label:
        return panel.label.replace(", ", separator)
    label = f"round {panel.round}, client {panel.client}"
    return f"{label}{separator}sample {panel.sample}" if panel.sample else label


def _count(text: str) -> int:
    """Number of lines of a text."""
    return text.count("\n") + 1


def _caption(config: RunConfig) -> str:
    federation = config.federation
    return (
        f"{config.data_name}, {federation.protocol}, batch size {federation.batch_size}, "
        f"labels {config.victims.labels_text}, seed {config.seed}; "
        f"SSIM on {ImageScoring.space(config.metrics)}"
    )
