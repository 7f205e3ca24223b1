"""Everything of a run in TensorBoard."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fedleak.attacks.base import Reconstruction
from fedleak.config import RunConfig
from fedleak.reporting.item_lists import read_item_lists
from fedleak.reporting.panels import Panel, read_panels
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer
from fedleak.runs.results import read_rows
from fedleak.runs.scoring import EXTRA_COLUMNS, LPIPS, Picture, scoring_class
from fedleak.runs.summary import read_summary, summarise_rounds
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

GRID = "reconstructions"
LISTS = 16  # users of whom all items are written out, at most
BORDER = 2
# Pictures are written anew whenever a run ends, into an event file of their own.
PICTURES = ".pictures"


class TensorBoard(Observer):
    """Writes event files to a run's folder.

    Tags: ``MODEL/global/METRIC`` and ``MODEL/client C/METRIC`` by round, the latter's mean over the
    clients as ``MODEL/clients/METRIC`` (what the defences did is among these),
    ``MODEL/ATTACK/cost/KEY`` by iteration, ``MODEL/ATTACK/ssim`` (``/lpips`` too, if measured; of
    interaction vectors ``/f1`` instead) by victim, ``MODEL/ATTACK/ssim by round`` if several rounds
    are attacked, ``reconstructions`` (original | each attack; of the first 16 users the items by
    name, as text) by victim, ``config`` as text, and the hyperparameters with the final metrics.

    Args:
        config: the run's configuration.
        mean: mean of each channel of the data.
        std: deviation of each channel.
    """

    def __init__(self, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._config = config
        self._mean, self._std = mean, std
        self._headline = scoring_class(config).headline[0]
        self._folder = RunFolder(Path(config.output))
        self._open: SummaryWriter | None = None
        self._victims: dict[tuple[str, str], int] = {}
        self._answers: dict[str, list[float]] = {}

    @property
    def _writer(self) -> SummaryWriter:
        # Opened with the first event, since a run that is refused must leave nothing behind.
        if self._open is None:
            resumed = any(self._folder.tensorboard.glob("events.*"))
            _wait_for_a_later_name(self._folder.tensorboard)
            self._open = SummaryWriter(str(self._folder.tensorboard))
            if not resumed:
                text = yaml.safe_dump(self._config.to_dict(), sort_keys=False)
                self._write("add_text", "config", f"```yaml\n{text}```")
        return self._open

    def _write(self, method: str, *args: Any, **kwargs: Any) -> None:
        getattr(self._writer, method)(*args, **kwargs)

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """See :class:`Observer`."""
        for name, value in (metrics or {}).items():
            self._write("add_scalar", f"{model}/client {client}/{name}", value, round_)
            self._answers.setdefault(name, []).append(value)

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`; the clients of a round have answered by then."""
        for name, values in self._answers.items():
            self._write("add_scalar", f"{model}/clients/{name}", _mean(values), round_)
        self._answers = {}
        for name, value in metrics.items():
            self._write("add_scalar", f"{model}/global/{name}", value, round_)

    def victim_attacked(
        self,
        attack: str,
        model: str,
        update: InterceptedUpdate,
        truth: GroundTruth | None,
        reconstruction: Reconstruction,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """See :class:`Observer`."""
        name = f"{model}/{attack}"
        for iteration, cost in reconstruction.costs:
            self._write("add_scalar", f"{name}/cost/{update.key}", cost, iteration)
        first = self._count(attack, model, len(rows))
        for victim, row in enumerate(rows, start=first):
            if truth is not None:
                for metric in (self._headline, LPIPS):
                    if metric in row:
                        self._write("add_scalar", f"{name}/{metric}", row[metric], victim)

    def _count(self, attack: str, model: str, new: int) -> int:
        """The number of the first of some new victims; a resumed run goes on counting."""
        key = (attack, model)
        if key not in self._victims:
            rows = read_rows(self._folder.results)
            before = [row for row in rows if (row["attack"], row["model"]) == key]
            self._victims[key] = len(before) - new  # the new ones are in the file already
        first = self._victims[key]
        self._victims[key] += new
        return first

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`; grids and hyperparameters need the whole run."""
        if status == "complete":
            self._conclusions()
        self._writer.close()
        for file in self._folder.tensorboard.glob(f"*{PICTURES}"):
            file.unlink()
        panels = read_panels(self._folder, self._config, self._mean, self._std)
        lists = read_item_lists(self._folder, self._config)[:LISTS]
        if panels or lists:
            folder = str(self._folder.tensorboard)
            with SummaryWriter(folder, filename_suffix=PICTURES) as writer:
                for victim, panel in enumerate(panels):
                    writer.add_image(GRID, panel_strip(panel), victim, dataformats="HWC")
                for victim, items in enumerate(lists):
                    title = f"Round {items.round}, client {items.client}"
                    writer.add_text(GRID, f"{title}\n\n{items.markdown()}", victim)

    def _conclusions(self) -> None:
        federation = self._config.federation
        settings = {
            "data": self._config.data_name, "model": self._config.model_name,
            "protocol": federation.protocol, "strategy": federation.strategy,
            "clients": federation.clients, "rounds": federation.rounds,
            "batch_size": federation.batch_size, "labels": self._config.victims.labels,
            "seed": self._config.seed,
        }  # fmt: skip
        summary = read_summary(self._folder.summary)
        for entry in summarise_rounds(read_rows(self._folder.results)):
            if entry[self._headline] is not None:
                tag = f"{entry['model']}/{entry['attack']}/{self._headline} by round"
                self._write("add_scalar", tag, entry[self._headline], entry["round"])
        metrics = {
            f"hparam/{name} {entry['attack']} on {entry['model']}": entry[name]
            for entry in summary["attacks"]
            for name in ("ssim", "psnr", "mse", "asr", *EXTRA_COLUMNS)
            if name in entry
        } | {"hparam/accuracy": summary["federation"]["accuracy"]}
        metrics = {name: value for name, value in metrics.items() if value is not None}
        # SummaryWriter.add_hparams would open a run of its own beside this one.
        for part in hparams(settings, metrics):
            self._writer._get_file_writer().add_summary(part)
        for name, value in metrics.items():
            self._write("add_scalar", name, value)


def _wait_for_a_later_name(folder: Path) -> None:
    """Lets the second pass in which an event file of the folder was opened.

    TensorBoard reads event files in the order of their names. These begin with the second; what
    follows, a process and a count as text (``9`` after ``10``), does not grow.
    """
    now = time.time()
    if any(folder.glob(f"events.out.tfevents.{int(now):010d}.*")):
        time.sleep(int(now) + 1 - now)


def _mean(values: Sequence[float]) -> float:
    """The mean of what is finite: an update that a defence left alone has an infinite snr_db."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else values[0]


def panel_strip(panel: Panel) -> Picture:
    """A victim's original and reconstructions as one picture ``(H, W, 3)``."""
    pictures = [picture for picture, _ in panel.reconstructions.values()]
    if panel.original is not None:
        pictures.insert(0, panel.original)
    cells = []
    for picture in pictures:
        colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        cells.append(np.pad(colour, [(0, 0), (0, BORDER), (0, 0)], constant_values=255))
    return np.concatenate(cells, axis=1)[:, :-BORDER]
