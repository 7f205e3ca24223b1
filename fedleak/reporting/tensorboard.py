"""Everything of a run in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fedleak.attacks.base import Reconstruction
from fedleak.config import RunConfig
from fedleak.events import Observer
from fedleak.reporting.panels import Panel, read_panels
from fedleak.results import RunFolder
from fedleak.updates import GroundTruth, InterceptedUpdate

GRID = "reconstructions"
BORDER = 2


class TensorBoard(Observer):
    """Writes event files to a run's folder.

    Tags: ``MODEL/global/METRIC`` and ``MODEL/client C/METRIC`` by round, ``MODEL/ATTACK/cost/KEY``
    by iteration, ``MODEL/ATTACK/ssim`` by victim, ``reconstructions`` (original | each attack) by
    victim, ``config`` as text, and the hyperparameters with the final metrics.

    Args:
        config: the run's configuration.
        mean: mean of each channel of the data.
        std: deviation of each channel.
    """

    def __init__(self, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._config = config
        self._mean, self._std = mean, std
        self._folder = RunFolder(Path(config.output))
        self._open: SummaryWriter | None = None
        self._victims: dict[str, int] = {}

    @property
    def _writer(self) -> SummaryWriter:
        # Opened with the first event, since a run that is refused must leave nothing behind.
        if self._open is None:
            self._open = SummaryWriter(str(self._folder.tensorboard))
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

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
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
        for row in rows:
            victim = self._victims[name] = self._victims.get(name, -1) + 1
            if truth is not None:
                self._write("add_scalar", f"{name}/ssim", row["ssim"], victim)

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`; grids and hyperparameters need the whole run."""
        panels = read_panels(self._folder, self._config, self._mean, self._std)
        for victim, panel in enumerate(panels):
            self._write("add_image", GRID, panel_strip(panel), victim, dataformats="HWC")
        if status == "complete":
            self._hyperparameters(panels)
        self._writer.close()

    def _hyperparameters(self, panels: Sequence[Panel]) -> None:
        federation = self._config.federation
        settings = {
            "data": self._config.data_name, "model": self._config.model_name,
            "protocol": federation.protocol, "clients": federation.clients,
            "rounds": federation.rounds, "batch_size": federation.batch_size,
            "labels": self._config.victims.labels, "seed": self._config.seed,
        }  # fmt: skip
        found: dict[str, list[float]] = {}
        for panel in panels:
            for title, (_, ssim) in panel.reconstructions.items():
                if ssim is not None:
                    found.setdefault(f"hparam/ssim {title}", []).append(ssim)
        metrics = {name: float(np.mean(values)) for name, values in found.items()}
        # SummaryWriter.add_hparams would open a run of its own beside this one.
        for part in hparams(settings, metrics):
            self._writer._get_file_writer().add_summary(part)
        for name, value in metrics.items():
            self._write("add_scalar", name, value)


def panel_strip(panel: Panel) -> Any:
    """A victim's original and reconstructions as one picture ``(H, W, 3)``."""
    pictures = [picture for picture, _ in panel.reconstructions.values()]
    if panel.original is not None:
        pictures.insert(0, panel.original)
    cells = []
    for picture in pictures:
        colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        cells.append(np.pad(colour, [(0, 0), (0, BORDER), (0, 0)], constant_values=255))
    return np.concatenate(cells, axis=1)[:, :-BORDER]
