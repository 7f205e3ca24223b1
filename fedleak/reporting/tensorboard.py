"""Write a run to TensorBoard; docs/how-to/read-tensorboard.md explains every tag."""

import math
import re
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
from fedleak.reporting import tags
from fedleak.reporting.charts import Points, global_metrics, read_scalars
from fedleak.reporting.figures import CARD, draw_pages
from fedleak.reporting.item_lists import read_item_lists
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.observer import Observer
from fedleak.runs.results import read_rows
from fedleak.runs.scoring import EXPLAINED, LPIPS, ItemScoring, scoring_class
from fedleak.runs.spending import SpentRow
from fedleak.runs.summary import read_summary, summarise
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

MAX_LISTS = 16  # users whose items are written as tables
# Pictures are rewritten whenever a run ends, in an event file of their own.
SUFFIX = ".pictures"


class TensorBoard(Observer):
    """Writes event files to a run's folder, with the tags of :mod:`fedleak.reporting.tags`.

    The run itself has the pictures, the configuration as text and the layout of CUSTOM SCALARS;
    each model has a sub-run with its training curves, and each attack on a model has a sub-run with
    its costs and scores. Models and attacks, of one run or of several, therefore share tags, and
    TensorBoard draws their curves in one chart.

    Args:
        config: the run's configuration.
        mean: mean of each channel of the data.
        std: standard deviation of each channel.
    """

    def __init__(self, config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._config = config
        self._mean, self._std = mean, std
        self._scoring = scoring_class(config)
        self._headline = self._scoring.headline[0]
        self._utility = "ndcg@100" if self._scoring is ItemScoring else "accuracy"
        self._folder = RunFolder(Path(config.output))
        self._writers: dict[str, SummaryWriter] = {}
        self._victims: dict[tuple[str, str], int] = {}
        self._answers: dict[str, list[float]] = {}
        self._client_metrics: set[str] = set()

    def _writer(self, run: str = "") -> SummaryWriter:
        """The writer of a sub-run, or of the run itself.

        It is opened with the first event, since a refused run must write nothing.
        """
        if run and "" not in self._writers:
            self._writer()
        if run not in self._writers:
            folder = self._folder.tensorboard / run
            resumed = any(folder.glob("events.*"))
            _wait_for_next_second(folder)
            self._writers[run] = SummaryWriter(str(folder))
            if not run and not resumed:
                text = yaml.safe_dump(self._config.to_dict(), sort_keys=False)
                self._writer().add_text("config", f"```yaml\n{text}```")
                self._lay_out()
        return self._writers[run]

    def _lay_out(self) -> None:
        """Write the layout of CUSTOM SCALARS; TensorBoard uses the last one written."""
        any_client = {
            metric: re.escape(tags.of_client(metric, 0)).removesuffix("0") + r"\d+$"
            for metric in sorted(self._client_metrics)
        }
        layout = {
            "Attacks": {
                "cost of each victim by iteration": ["Multiline", [re.escape(tags.victim_cost(""))]]
            },
            "Clients": {
                f"{metric} of each client by round": ["Multiline", [pattern]]
                for metric, pattern in any_client.items()
            },
        }
        self._writer().add_custom_scalars(
            {name: charts for name, charts in layout.items() if charts}
        )

    def client_answered(
        self, model: str, round_: int, client: int, metrics: Mapping[str, float] | None
    ) -> None:
        """See :class:`Observer`."""
        for name, value in (metrics or {}).items():
            self._writer(model).add_scalar(tags.of_client(name, client), value, round_)
            self._answers.setdefault(name, []).append(value)
        if not self._client_metrics.issuperset(metrics or {}):
            self._client_metrics.update(metrics or {})
            self._lay_out()

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`; the clients of a round have answered by then."""
        for name, values in self._answers.items():
            self._writer(model).add_scalar(tags.mean_of_clients(name), _mean(values), round_)
        self._answers = {}
        for name, value in metrics.items():
            self._writer(model).add_scalar(tags.global_model(name), value, round_)

    def privacy_spent(self, model: str, round_: int, rows: Sequence[SpentRow]) -> None:
        """See :class:`Observer`; an infinite epsilon is no point of a curve."""
        most: dict[str, float] = {}
        for row in rows:
            tag = tags.epsilon_of_client(row.unit, row.trust, row.client)
            if math.isfinite(row.epsilon_so_far):
                self._writer(model).add_scalar(tag, row.epsilon_so_far, round_)
            tag = tags.epsilon_spent(row.unit, row.trust)
            most[tag] = max(row.epsilon_so_far, most.get(tag, 0.0))
        for tag, value in most.items():
            if math.isfinite(value):
                self._writer(model).add_scalar(tag, value, round_)

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
        writer = self._writer(tags.attack_run(attack, model))
        for iteration, cost in reconstruction.costs:
            writer.add_scalar(tags.victim_cost(update.key), cost, iteration)
        first = self._count(attack, model, len(rows))
        for victim, row in enumerate(rows, start=first):
            if truth is not None:
                for metric in (self._headline, LPIPS, EXPLAINED):
                    if row.get(metric) is not None:
                        writer.add_scalar(tags.by_victim(metric), row[metric], victim)

    def _count(self, attack: str, model: str, new: int) -> int:
        """The number of the first of ``new`` victims; a resumed run continues the numbering."""
        key = (attack, model)
        if key not in self._victims:
            rows = read_rows(self._folder.results)
            before = [row for row in rows if (row["attack"], row["model"]) == key]
            self._victims[key] = len(before) - new  # the new ones are in the file already
        first = self._victims[key]
        self._victims[key] += new
        return first

    def run_ended(self, status: str) -> None:
        """See :class:`Observer`; pictures, means and hyperparameters need the whole run."""
        self._writer()  # without any event before, this writes the configuration
        if status == "complete":
            self._conclude()
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
        self._draw()

    def _draw(self) -> None:
        for file in self._folder.tensorboard.glob(f"*{SUFFIX}"):
            file.unlink()
        pages = draw_pages(self._folder, self._config, self._mean, self._std, CARD)
        lists = read_item_lists(self._folder, self._config)[:MAX_LISTS]
        if pages or lists:
            folder = str(self._folder.tensorboard)
            with SummaryWriter(folder, filename_suffix=SUFFIX) as writer:
                for number, page in enumerate(pages):
                    writer.add_image(tags.PICTURES, np.asarray(page), number, dataformats="HWC")
                for victim, items in enumerate(lists):
                    title = f"Round {items.round}, client {items.client}"
                    writer.add_text(tags.ITEMS, f"{title}\n\n{items.markdown()}", victim)

    def _conclude(self) -> None:
        """Write the results of the complete run by attack: means by round, costs, metrics."""
        for writer in self._writers.values():
            writer.flush()
        # From the files, since a resumed run has seen only a part of the events itself.
        scalars = read_scalars(self._folder.tensorboard)
        for run, curves in scalars.items():
            costs = [points for tag, points in curves.items() if tags.split_victim_cost(tag)]
            for iteration, cost in median(costs):
                self._writer(run).add_scalar(tags.COST, cost, iteration)
        rows = read_rows(self._folder.results)
        for round_ in sorted({row["round"] for row in rows}):
            for entry in summarise([row for row in rows if row["round"] == round_]):
                run = tags.attack_run(entry["attack"], entry["model"])
                for metric in (self._headline, EXPLAINED):
                    if entry.get(metric) is not None:
                        tag = tags.by_round(metric)
                        self._writer(run).add_scalar(tag, entry[metric], round_)
        summary = read_summary(self._folder.summary)
        trained = {
            model: points[-1][1]
            for model, points in global_metrics(scalars).get(self._utility, {}).items()
        }
        if not trained and summary["federation"]["accuracy"] is not None:
            # Saved updates of another run's federation were attacked.
            trained = {self._config.model_name: summary["federation"]["accuracy"]}
        for entry in summary["attacks"]:
            run = tags.attack_run(entry["attack"], entry["model"])
            self._write_results(run, entry | {self._utility: trained.get(entry["model"])})
        for model in trained.keys() - {entry["model"] for entry in summary["attacks"]}:
            own = {"attack": "none", "defense": self._config.defense_name, "model": model}
            self._write_results(model, own | {self._utility: trained[model]})

    def _write_results(self, run: str, entry: Row) -> None:
        """Write a line of the HPARAMS tab: a sub-run's hyperparameters and its results.

        Args:
            run: the sub-run.
            entry: attack, defense and model, and the metrics by name; None for a missing metric.
        """
        federation = self._config.federation
        # TensorBoard sorts them by name and shows the first five.
        settings = {
            "attack": entry["attack"], "data": self._config.data_name, "defense": entry["defense"],
            "model": entry["model"], "number of clients": federation.size,
            "number of rounds": federation.rounds, "protocol": federation.protocol,
            "samples per batch": federation.batch_size, "seed": self._config.seed,
            "strategy": federation.strategy, "threat model": self._config.server_text,
            "victims' labels": self._config.victims.labels,
        }  # fmt: skip
        # The same names in every line: TensorBoard takes the columns from any one line.
        extra = self._scoring.extra_columns(self._config.metrics)
        names = [name for name in self._scoring.columns if name != LPIPS or LPIPS in extra]
        names = [*names, "asr", EXPLAINED, self._utility]
        # SummaryWriter.add_hparams would open another sub-run.
        for part in hparams(settings, {tags.result(name): 0.0 for name in names}):
            self._writer(run)._get_file_writer().add_summary(part)
        for name in names:
            if entry.get(name) is not None:
                self._writer(run).add_scalar(tags.result(name), entry[name])


def median(curves: Sequence[Points]) -> Points:
    """The median of several curves at every step; a curve that has ended keeps its last value.

    Args:
        curves: pairs of step and value, ordered by step. All start at the same step.
    """
    curves = [points for points in curves if points]
    steps = sorted({step for points in curves for step, _ in points})
    columns = []
    for points in curves:
        known, values = zip(*points, strict=True)
        last = np.searchsorted(known, steps, side="right") - 1
        columns.append(np.asarray(values)[last.clip(min=0)])
    return list(zip(steps, np.median(columns, axis=0).tolist(), strict=True)) if curves else []


def _wait_for_next_second(folder: Path) -> None:
    """Wait if an event file of the folder was opened within the current second.

    TensorBoard reads event files in the order of their names. A name starts with the second; what
    follows, a process and a counter as text (``9`` after ``10``), does not sort by time.
    """
    now = time.time()
    if any(folder.glob(f"events.out.tfevents.{int(now):010d}.*")):
        time.sleep(int(now) + 1 - now)


def _mean(values: Sequence[float]) -> float:
    """The mean of finite values: an update that a defence did not change has an infinite snr_db."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else values[0]
