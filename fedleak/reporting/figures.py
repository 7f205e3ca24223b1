"""PNG figures: a row for each victim, a column for each attack on a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedleak.config import RunConfig
from fedleak.reporting.panels import Panel, read_panels
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer
from fedleak.runs.scoring import ImageScoring, Picture

CELL = 128  # pixels of the longer side of an image in the figure
GAP = 12
LINE = 18
FONT = 12
ROWS_A_PAGE = 16


class Figures(Observer):
    """Draws the figures of a run when it is over.

    Args:
        config: the run's configuration.
        mean: mean of each channel of the data.
        std: deviation of each channel.
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
        std: deviation of each channel.

    Returns:
        The written files, ``reconstructions.png``, ``reconstructions-2.png`` and so on; none if
        nothing has been attacked, or the data are no images.
    """
    panels = read_panels(folder, config, mean, std)
    titles = list(dict.fromkeys(title for panel in panels for title in panel.reconstructions))
    files = []
    for page, begin in enumerate(range(0, len(panels), ROWS_A_PAGE), start=1):
        name = "reconstructions.png" if page == 1 else f"reconstructions-{page}.png"
        file = folder.figures / name
        draw_page(panels[begin : begin + ROWS_A_PAGE], titles, _caption(config)).save(file)
        files.append(file)
    return files


def draw_page(panels: Sequence[Panel], titles: Sequence[str], caption: str) -> Image.Image:
    """One figure.

    Args:
        panels: its rows.
        titles: titles of its columns after that of the originals.
        caption: the setting, written below.
    """
    columns = ["original", *titles]
    font = ImageFont.load_default(size=FONT)
    step = CELL + GAP
    # A title may be wider than an image, and the caption wider than the columns together.
    width = max(step, *(int(font.getlength(title)) + GAP for title in columns))
    size = (
        GAP + max(width * len(columns), int(font.getlength(caption)) + GAP),
        GAP + LINE + len(panels) * (step + LINE) + LINE,
    )
    figure = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(figure)
    for column, title in enumerate(columns):
        pen.text((GAP + column * width, GAP // 2), title, fill="black", font=font)
    for row, panel in enumerate(panels):
        top = GAP + LINE + row * (step + LINE)
        label = f"round {panel.round}, client {panel.client}"
        if panel.sample:
            label += f", sample {panel.sample}"
        cells: list[tuple[Picture | None, str]] = [(panel.original, label)]
        for title in titles:
            picture, ssim = panel.reconstructions.get(title, (None, None))
            cells.append((picture, "" if ssim is None else f"SSIM {ssim:.4f}"))
        for column, (picture, text) in enumerate(cells):
            left = GAP + column * width
            if picture is not None:
                figure.paste(_enlarged(picture), (left, top))
            pen.text((left, top + CELL + 2), text, fill="black", font=font)
    pen.text((GAP, size[1] - LINE), caption, fill="black", font=font)
    return figure


def _enlarged(picture: Picture) -> Image.Image:
    """Whole pixels as blocks where there is room, so that nothing is smoothed away."""
    factor = CELL / max(picture.shape[:2])
    height, width = (max(1, int(side * factor)) for side in picture.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    smooth = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    return image.resize((width, height), smooth)


def _caption(config: RunConfig) -> str:
    federation = config.federation
    return (
        f"{config.data_name}, {federation.protocol}, batch size {federation.batch_size}, "
        f"labels {config.victims.labels_text}, seed {config.seed}; "
        f"SSIM on {ImageScoring.space(config.metrics)}"
    )
