"""One run from top to bottom: federation, attacks, scores, results."""

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedleak.attacks.attack_updates import Refusal, attack_updates
from fedleak.attacks.base import Attack, Reconstruction
from fedleak.build import (
    knowledge_of,
    make_defenses,
    most_examples,
    public_samples,
    usual_samples,
    without_download,
)
from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.defenses import Defense
from fedleak.errors import BadInput, RunFailed, require
from fedleak.extras import extras_explained
from fedleak.preflight import Parts, prepare
from fedleak.privacy.mechanisms import Mechanism
from fedleak.registry import Untrusted, known_classes_only
from fedleak.runs.ceilings import (
    PUBLIC,
    ceiling_facts,
    guess_scores,
    has_ceilings,
    success_of_guess,
    try_ceiling,
    update_noise,
)
from fedleak.runs.folder import RunFolder
from fedleak.runs.mechanisms import of_defenses
from fedleak.runs.observer import Observer, Observers
from fedleak.runs.readings import as_reconstruction, score_reading
from fedleak.runs.results import Recorder, read_rows
from fedleak.runs.spending import Spending, SpentRow, write_privacy
from fedleak.runs.summary import Status, data_facts, read_summary, write_summary
from fedleak.runtime.interrupts import delay_interrupts, reraise_as_interrupt
from fedleak.servers.base import Crafted, MaliciousServer
from fedleak.servers.exchanges import Exchange, Exchanges
from fedleak.servers.files import load_crafted, reading_facts, save_reading
from fedleak.updates.files import update_files
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.truth import GroundTruth, join
from fedleak.updates.update import InterceptedUpdate

if TYPE_CHECKING:
    from torch import Tensor

    from fedleak.federation.engine.checkpoint import Outcome
    from fedleak.federation.engine.server import Interception


def run(
    config: RunConfig,
    observers: Sequence[Observer] = (),
    *,
    parts: Parts | None = None,
    resume: bool = False,
    overwrite: bool = False,
    federate: "Callable[..., Outcome] | None" = None,
    scored: bool = True,
) -> dict[str, Any]:
    """Run federations and attacks and write all results to the run's folder.

    Args:
        config: the run's configuration.
        observers: notified of the run's events.
        parts: what :func:`fedleak.preflight.prepare` made of the configuration. If None, it is
            called here.
        resume: continue an interrupted run; only what is missing is computed.
        overwrite: delete an existing run.
        federate: runs one federation, with the arguments of
            :func:`fedleak.federation.engine.simulation.simulate`. If None, that function.
        scored: whether the clients store their truth in the run's folder, as simulated ones do.
            Otherwise reconstructions have no scores, and labels cannot be known.

    Returns:
        The contents of summary.json.

    Raises:
        BadInput: if the configuration cannot work; nothing is written then.
        RunFailed: if the federation failed, or an update could not be attacked.
        KeyboardInterrupt: if interrupted; the results so far are kept and the run can be resumed.
    """
    # Attacks on saved updates work where Flower is not installed, so it is imported here.
    with extras_explained():
        from fedleak.federation.engine.checkpoint import remove_checkpoint
        from fedleak.federation.engine.ray_engine import FederationError
        from fedleak.federation.engine.server import make_strategy
        from fedleak.federation.engine.simulation import check_resources, simulate
        from fedleak.federation.run_spending import make_spending

    parts = parts or prepare(config)
    config = config.with_clients(len(parts.data.train_set))
    require(
        scored or config.victims.labels != "known",
        "Expected labels that are recovered (`labels`), as the clients of a deployment keep "
        "theirs, got known.",
    )
    strategies = {variant: make_strategy(part) for variant, part in config.variants.items()}
    spendings = {
        variant: make_spending(
            part, parts.data, parts.models[variant], strategies[variant], simulated=scored
        )
        for variant, part in config.variants.items()
    }
    if federate is None:
        check_resources(config)
        federate = simulate
    work = _Work(config, parts, observers, spendings)
    work.folder.open(config, resume=resume, overwrite=overwrite, truth=scored)
    if work.is_complete:
        return work.summary
    work.observer.data_loaded(parts.data.describe())
    with work.status():
        for variant, part in config.variants.items():
            try:
                outcome = federate(
                    part,
                    parts.data,
                    # A copy, as the server loads the weights of every round into it.
                    model=copy.deepcopy(parts.models[variant]),
                    strategy=strategies[variant],
                    interception=work.interception(variant),
                    truth=work.folder.truth(variant),
                    checkpoint=work.folder.checkpoint(variant),
                    observer=work.observer,
                    spending=spendings[variant],
                )
            except FederationError as error:
                raise RunFailed(str(error)) from error
            work.note_outcome(outcome)
            if scored:
                work.join_truths(variant)
            if variant == "":
                work.federation["accuracy"] = outcome.accuracy
        work.attack_all()
        work.read_all()
        work.note_ceilings()
        for variant in config.variants:
            remove_checkpoint(work.folder.checkpoint(variant))
    return work.summary


def attack_run(
    source: Path,
    config: RunConfig,
    observers: Sequence[Observer] = (),
    *,
    parts: Parts | None = None,
    trust: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Attack saved updates without a federation, and write the results to a new run folder.

    Args:
        source: a run's folder, or the file of one update in it.
        config: the source's configuration with the attacks, victims and output of this run.
        observers: notified of the run's events.
        parts: what :func:`fedleak.preflight.prepare` made of the configuration. If None, it is
            called here.
        trust: whether classes that are neither fedleak's own nor installed plugins' may be
            imported besides those of ``config.attacks``: a stored file that names them is code.
        resume: continue an interrupted attack.
        overwrite: delete an existing run at the output.

    Returns:
        The contents of summary.json.

    Raises:
        BadInput: if an update is damaged, of another model or not finite, or the configuration
            cannot work; nothing is written then.
        RunFailed: if an update could not be attacked.
        KeyboardInterrupt: if interrupted; the results so far are kept and the run can be resumed.
    """
    if not trust:
        config = replace(config, data=without_download(config.data))
        with known_classes_only(but=[plugin.class_path for plugin in config.attacks]):
            flags = {"resume": resume, "overwrite": overwrite}
            return attack_run(source, config, observers, parts=parts, trust=True, **flags)
    parts = parts or prepare(config, trains=False)
    config = config.with_clients(len(parts.data.train_set))
    origin = source_folder(source)
    output = Path(config.output).resolve()
    require(
        origin.path.resolve() not in (output, *output.parents)
        and output not in origin.path.resolve().parents,
        f"Expected `--output` to be another folder than that of the updates, got {output}.",
    )
    files = {
        variant: [
            path
            for path in update_files(origin.updates(variant))
            if source in (path, *path.parents)
        ]
        for variant in config.variants
    }
    require(any(files.values()), f"Expected saved updates at {source}, found none.")
    for variant, paths in files.items():
        for path in paths:
            update = InterceptedUpdate.load(path)
            update.check(parts.models[variant])
            _check_samples(config, parts.data, update)
            _check_labels(config, update, _truth_of(origin, variant, update, parts.data))
    work = _Work(config, parts, observers)
    work.folder.open(config, resume=resume, overwrite=overwrite)
    if work.is_complete:
        return work.summary
    if origin.summary.is_file():
        before = read_summary(origin.summary)
        work.federation, work.privacy = before["federation"], before.get("privacy", [])
        _link(origin.privacy, work.folder.path)
    for variant, paths in files.items():
        for path in paths:
            shared = path.with_name(f"{path.stem.partition('-')[0]}-global.safetensors")
            own = path.with_name(f"{path.stem}-sent.safetensors")
            for file in (path, shared, own):
                _link(file, work.folder.updates(variant))
            _link(origin.sent(variant) / path.name, work.folder.sent(variant))
            _link(origin.truth(variant) / path.name, work.folder.truth(variant))
    with work.status():
        work.attack_all()
        work.note_ceilings()
    return work.summary


def source_folder(source: Path) -> RunFolder:
    """The run folder that a path belongs to: the path itself, or a folder above an update's file.

    Raises:
        BadInput: if the path belongs to no run.
    """
    for path in (source, *source.parents[:3]):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    raise BadInput(
        f"Expected the folder of a run or an update file in one, got {source}: a run's folder "
        "holds config.yaml and updates/."
    )


class _Work:
    """A run in progress."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        observers: Sequence[Observer],
        spendings: Mapping[str, Spending | None] | None = None,
    ) -> None:
        self.config = config
        self.parts = parts
        self.folder = RunFolder(Path(config.output))
        self.spendings = [s for s in (spendings or {}).values() if s is not None]
        # The table is written before anybody is told of its rows.
        self.observer = Observers([_PrivacyTable(self.folder.privacy, self.spendings), *observers])
        self.federation: dict[str, Any] = {
            "rounds": config.federation.rounds,
            "clients": config.federation.size,
            "failures": 0,
            "accuracy": None,
            "lost_rounds": [],
            "diverged_round": None,
        }
        self.privacy: list[dict[str, Any]] = []
        self.ceilings: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.data = data_facts(config, parts.data)
        self.broken: list[Refusal] = []

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds the complete run; if so, ``summary`` is set."""
        if not self.folder.summary.is_file():
            return False
        try:
            self.summary = read_summary(self.folder.summary)
        except BadInput:
            return False  # it is damaged and will be rewritten
        return bool(self.summary["status"] == "complete")

    @contextmanager
    def status(self) -> Iterator[None]:
        """Keep the status in summary.json correct, however the block ends."""
        # A killed run may have left half a row: the recorder repairs the table before it is read.
        self.recorder = Recorder(self.folder, self.config, self.parts.scoring)
        self._write("running")
        try:
            with reraise_as_interrupt():
                yield
        except (KeyboardInterrupt, SystemExit):
            self._write("interrupted")
            raise
        except BaseException:
            self._write("failed")
            raise
        self._write("complete")

    def note_outcome(self, outcome: "Outcome") -> None:
        """Note what became of a federation's clients and of its model."""
        known = self.federation
        known["failures"] += outcome.failures
        known["lost_rounds"] = sorted({*known["lost_rounds"], *outcome.lost})
        found = [known["diverged_round"], outcome.diverged]
        known["diverged_round"] = min((r for r in found if r is not None), default=None)
        if outcome.ended:
            known["ended"] = f"After round {outcome.rounds} of {known['rounds']}: {outcome.ended}."

    def interception(self, variant: str) -> "Interception":
        """The malicious part of a federation's server."""
        from fedleak.federation.engine.server import Interception

        during = self.config.victims.when == "during"

        def on_attacked(
            attack: Attack, update: InterceptedUpdate, reconstruction: Reconstruction
        ) -> None:
            self._record(attack, variant, update, reconstruction)

        return Interception(
            folder=self.folder.updates(variant),
            attacks=self.parts.attacks if during else (),
            knowledge=lambda update: self._knowledge(variant, update),
            on_attacked=on_attacked,
            # An interrupted round is repeated, but not its completed attacks.
            wanted=lambda attack, update: not self._is_done(attack, update.model, update.key),
            exchanges=self._exchanges(variant),
        )

    def _exchanges(self, variant: str) -> Exchanges | None:
        """What the malicious server exchanges with its victims, before an interruption as well."""
        if self.parts.server is None:
            return None
        return Exchanges(
            self.parts.server,
            partial(self._server_knowledge, variant),
            public=self._public,
            seed=self.config.seed,
            sent=self.folder.sent(variant),
            updates=self.folder.updates(variant),
            names=self.config.federation.obeys,
        )

    @cached_property
    def _public(self) -> "Tensor | None":
        return public_samples(self.config, self.parts.data)

    def _server_knowledge(
        self, variant: str, update: InterceptedUpdate, crafted: Crafted | None
    ) -> Knowledge:
        """What the malicious server knows; of a client to be asked, the usual number of samples."""
        entries = None if crafted is None else crafted.config
        if update.num_examples == 0:
            number = update.clients * usual_samples(self.config, self.parts.data)
            update = replace(update, num_examples=number)
        model = self.parts.models[variant]
        return knowledge_of(
            self.config, self.parts.data, model, labels=None, update=update, entries=entries
        )

    def read_all(self) -> None:
        """Have the malicious server read what it exchanged with each victim, if it reads itself."""
        server = self.parts.server
        if server is None or not server.reads:
            return
        for variant, part in self.config.variants.items():
            exchanges = self._exchanges(variant)
            assert exchanges is not None
            self.folder.readings(variant).mkdir(parents=True, exist_ok=True)
            groups, name = exchanges.groups(), part.model_name
            if not groups and not exchanges.unread():
                reason = "no client of `victims` answered what it was sent"
                self.observer.attack_skipped(server.name, name, reason)
                continue
            left = [group for group in groups if not self._is_read(server, variant, name, group)]
            self.observer.attack_started(server.name, name, len(groups), len(groups) - len(left))
            for group in left:
                try:
                    self._read(exchanges, variant, group)
                except BadInput as error:
                    self.observer.attack_skipped(server.name, name, f"{group[-1].key}: {error}")
            for client, number in exchanges.unread().items():
                reason = (
                    f"client {client}: it answered in {number} of the {server.rounds} rounds after "
                    "which it is read"
                )
                self.observer.attack_skipped(server.name, name, reason)

    def _is_read(
        self, server: MaliciousServer, variant: str, model: str, group: tuple[Exchange, ...]
    ) -> bool:
        last = group[-1]
        path = self.folder.readings(variant) / f"{last.key}.safetensors"
        if not path.is_file():
            return False
        key = (model, server.name, last.round, last.client)
        return key in self.recorder.done or not reading_facts(path).get("rows")

    def _read(self, exchanges: Exchanges, variant: str, group: tuple[Exchange, ...]) -> None:
        """Read a victim, and write and score what was read."""
        server, last = exchanges.server, group[-1]
        _, update = last.content
        started = time.perf_counter()
        reading = exchanges.read(group)
        seconds = time.perf_counter() - started
        truth = _truth_of(self.folder, variant, update, self.parts.data)
        features = None if truth is None else exchanges.features_of(group, truth.inputs)
        guess = None if self._public is None else self._public.mean(dim=0)
        scores, facts = score_reading(
            reading, truth, self.parts.scoring, features=features, guess=guess
        )
        facts |= {
            "client": last.client, "rounds": [each.round for each in group],
            "samples": update.num_examples, "seconds": seconds, "rows": len(scores),
            "model": update.model,
        }  # fmt: skip
        path = self.folder.readings(variant) / f"{last.key}.safetensors"
        with delay_interrupts():
            save_reading(reading, path, server.name, facts)
            rows = self.recorder.record_reading(
                server.name, update, truth, reading, scores, seconds
            )
            self.observer.victim_attacked(
                server.name, update.model, update, truth, as_reconstruction(reading, seconds), rows
            )

    def join_truths(self, variant: str) -> None:
        """Make one file of the truths of clients whose updates came as one, the first's first."""
        if not self.config.victims.aggregated:
            return
        folder = self.folder.truth(variant)
        for path in update_files(self.folder.updates(variant)):
            update = InterceptedUpdate.load(path)
            own = folder / path.name
            parts = [
                p
                for p in update_files(folder)
                if p.stem.partition("-")[0] == path.stem.partition("-")[0]
            ]
            truths = {part: GroundTruth.load(part) for part in parts}
            if own not in truths or len(truths[own].inputs) != update.num_examples:
                joined = join(list(truths.values())) if truths else None
                own.unlink(missing_ok=True)
                # A client that failed afterwards has left its truth: whose the others are is lost.
                if joined is not None and len(joined.inputs) == update.num_examples:
                    joined.save(own)
            for part in parts:
                if part != own:
                    part.unlink()

    def attack_all(self) -> None:
        """Run every attack on every saved update that it has not attacked yet."""
        for variant in self.config.variants:
            updates = update_files(self.folder.updates(variant))
            for attack in self.parts.attacks:
                self._attack_saved(attack, variant, updates)
        if self.broken:
            first = self.broken[0]
            raise RunFailed(
                f"{len(self.broken)} update(s) could not be attacked, the first is "
                f"{first.update.key}: {first.reason}."
            )

    def _attack_saved(self, attack: Attack, variant: str, files: Sequence[Path]) -> None:
        name = self.config.variants[variant].model_name
        model = self.parts.models[variant]
        reason = attack.refuses(knowledge_of(self.config, self.parts.data, model, labels=None))
        if reason is not None:
            self.observer.attack_skipped(attack.name, name, reason)
            return
        if not files:
            self.observer.attack_skipped(
                attack.name, name, "no client of `victims` took part in an attacked round"
            )
            return
        left = [path for path in files if not self._is_done(attack, name, path.stem)]
        if not left:
            return
        self.observer.attack_started(attack.name, name, len(files), len(files) - len(left))
        together = max(1, attack.at_once)
        report = partial(self.observer.attack_progressed, attack.name, name)
        for begin in range(0, len(left), together):
            updates = []
            for path in left[begin : begin + together]:
                try:
                    update = InterceptedUpdate.load(path)
                    update.check(model)
                    updates.append(update)
                except BadInput as error:
                    self.observer.attack_skipped(attack.name, name, str(error))
            refused = attack_updates(
                attack,
                updates,
                partial(self._knowledge, variant),
                finished=partial(self._record, attack, variant),
                seed=self.config.seed,
                device=self.config.device,
                report=report,
            )
            self._report_refusals(attack, name, refused, len(updates))

    def note_ceilings(self) -> None:
        """Compute what an attack on the noised updates can reach at best, beside what was reached.

        The truth is read for the ceiling alone, when all attacks are done.
        """
        rows = read_rows(self.folder.results)
        try:
            defenses, scoring = make_defenses(self.config), self.parts.scoring
        except Untrusted:  # a defence in somebody else's folder, which an attack does not need
            return
        noise = update_noise(self.config, defenses)
        if not rows or not noise or not has_ceilings(scoring):
            return
        public = public_samples(self.config, self.parts.data)
        public = public[:PUBLIC] if public is not None else None
        guess = None if public is None else public.mean(dim=0)
        pixels = self.config.metrics.space == "pixels"
        std = self.parts.data.std if pixels else [1.0] * len(self.parts.data.std)
        found: dict[tuple[str, int, int], tuple[float, float]] = {}
        reasons = {noise: None} if isinstance(noise, str) else {}
        for variant, part in self.config.variants.items():
            for path in (
                [] if isinstance(noise, str) else update_files(self.folder.updates(variant))
            ):
                update = InterceptedUpdate.load(path)
                truth = _truth_of(self.folder, variant, update, self.parts.data)
                sent = self.folder.sent(variant) / f"{update.key}.safetensors"
                if truth is None or guess is None or sent.is_file():
                    continue
                knowledge = knowledge_of(
                    part, self.parts.data, self.parts.models[variant], labels=truth.labels,
                    update=update,
                )  # fmt: skip
                ceiling = try_ceiling(
                    update, truth, knowledge, noise, std=std, data_range=1.0 if pixels else 2.0
                )
                if isinstance(ceiling, str):
                    reasons[ceiling] = None
                    continue
                (score,) = guess_scores(scoring, guess, truth.inputs)
                found[update.model, update.round, update.client] = ceiling, score["psnr"]
        mechanism, rate = self._counted_mechanism(defenses), None
        if mechanism is not None and guess is not None and public is not None:
            rate = success_of_guess(guess_scores(scoring, guess, public))
        self.ceilings = ceiling_facts(rows, found, list(reasons), mechanism, rate)

    def _counted_mechanism(self, defenses: Sequence[Defense]) -> Mechanism | None:
        """The Gaussian mechanism of a client, if an epsilon of it holds."""
        federation, model = self.config.federation, self.parts.models[""]
        found = of_defenses(defenses, model, federation)
        usable = found is not None and found.kind == "gaussian" and not found.infinite
        return found if usable else None

    def _report_refusals(
        self, attack: Attack, model: str, refused: Sequence[Refusal], tried: int
    ) -> None:
        """A refusal at run time skips its update and keeps the others; each reason comes once."""
        self.broken += [refusal for refusal in refused if refusal.broken]
        for reason in dict.fromkeys(refusal.reason for refusal in refused):
            keys = [refusal.update.key for refusal in refused if refusal.reason == reason]
            whose = "" if len(keys) == tried > 1 else f"{', '.join(keys)}: "
            self.observer.attack_skipped(attack.name, model, whose + reason)

    def _is_done(self, attack: Attack, model: str, key: str) -> bool:
        round_, client = (int(part[1:]) for part in key.split("-"))
        return (model, attack.name, round_, client) in self.recorder.done

    def _knowledge(self, variant: str, update: InterceptedUpdate) -> Knowledge:
        labels = None
        if self.config.victims.labels == "known":
            truth = _truth_of(self.folder, variant, update, self.parts.data)
            _check_labels(self.config, update, truth)
            # Only the labels are taken from the truth: the threat model says they are known.
            labels = truth.labels if truth is not None else None
        model = self.parts.models[variant]
        sent = self.folder.sent(variant) / f"{update.key}.safetensors"
        entries = load_crafted(sent).config if sent.is_file() else None
        return knowledge_of(
            self.config, self.parts.data, model, labels=labels, update=update, entries=entries
        )

    def _record(
        self,
        attack: Attack,
        variant: str,
        update: InterceptedUpdate,
        reconstruction: Reconstruction,
    ) -> None:
        truth = _truth_of(self.folder, variant, update, self.parts.data)
        with delay_interrupts():
            rows = self.recorder.record(attack.name, update, truth, reconstruction)
            self.observer.victim_attacked(
                attack.name, update.model, update, truth, reconstruction, rows
            )

    def _write(self, status: Status) -> None:
        with delay_interrupts():
            self.summary = write_summary(
                self.folder, self.config, status, self.federation, self.data,
                privacy=self.privacy or [each.facts() for each in self.spendings],
                ceilings=self.ceilings,
            )  # fmt: skip
            if status != "running":
                self.observer.run_ended(status)


class _PrivacyTable(Observer):
    """Writes what is spent of the clients' privacy after each round."""

    def __init__(self, path: Path, spendings: Sequence[Spending]) -> None:
        self._path, self._spendings = path, spendings

    def privacy_spent(self, model: str, round_: int, rows: Sequence[SpentRow]) -> None:
        """See :class:`Observer`."""
        write_privacy(self._path, [row for each in self._spendings for row in each.rows])


def _check_labels(config: RunConfig, update: InterceptedUpdate, truth: GroundTruth | None) -> None:
    require(
        truth is not None or config.victims.labels != "known",
        f"Expected the labels of update {update.key} in truth/, found none: "
        "set `victims.labels` to recovered.",
    )


def _check_samples(config: RunConfig, data: PrivateData, update: InterceptedUpdate) -> None:
    """Refuse a number of samples that no client can have: an attack allocates memory for it."""
    whole = config.federation.protocol == "fedavg"
    most = most_examples(config, data, update.clients)
    batch = "a batch takes" if update.clients == 1 else "batches of its clients take"
    require(
        1 <= update.num_examples <= most,
        f"Expected update {update.key} to be of 1 to {most} samples, as "
        f"{'the training set has' if whole else batch}, got {update.num_examples}.",
    )


def _truth_of(
    folder: RunFolder, variant: str, update: InterceptedUpdate, data: PrivateData
) -> GroundTruth | None:
    """The ground truth of an update, checked against it; None if it is not stored."""
    truth = folder.read_truth(variant, update.round, update.client)
    if truth is not None:
        truth.check(update.key, update.num_examples, data.input_shape, data.num_classes)
    return truth


def _link(file: Path, folder: Path) -> None:
    """Link a file into another folder, or copy it if the file system has no hard links."""
    target = folder / file.name
    if target.exists() or not file.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
