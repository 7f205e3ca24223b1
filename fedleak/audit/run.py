"""An audit from top to bottom: run the app, attack what its server saw, and conclude."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedleak.audit.active_rungs import answer_by, probe_app
from fedleak.audit.app import FlowerApp
from fedleak.audit.attack_workers import AttackWorkers, attack_workers
from fedleak.audit.budgets import spent_by_app
from fedleak.audit.canary import AGREES, Canary, replay, run_canary
from fedleak.audit.config import AuditConfig
from fedleak.audit.facts import MechanismFacts
from fedleak.audit.findings import Findings, not_tried
from fedleak.audit.folder import REPLIES, AuditFolder
from fedleak.audit.label_shares import ShadowTraining, label_shares, label_shares_of_sum
from fedleak.audit.ladder import (
    SHADOW_SHARE,
    AttackAll,
    Public,
    Victim,
    active_servers,
    batches_of,
    find_victims,
    inputs,
    inputs_answer,
    told_numbers,
    touched_rows,
    truth_of,
)
from fedleak.audit.probe import Probe, run_probe
from fedleak.audit.progress import AuditObserver, AuditObservers
from fedleak.audit.public_samples import check_public
from fedleak.audit.samples import Attacked
from fedleak.audit.sent_layers import layers_not_sent
from fedleak.audit.simulation import Observed, run_app, server_models, with_rounds
from fedleak.audit.summary import AuditSummary, Status
from fedleak.audit.sums import sums_of_rounds
from fedleak.audit.trainings import clients_in_rounds, why_no_update
from fedleak.audit.truth_scores import Score
from fedleak.audit.verdict import Answer, Verdict
from fedleak.config import versions
from fedleak.errors import BadInput, RunFailed, first_line, require
from fedleak.federation.engine.ray_engine import FederationError, Resources
from fedleak.runtime.interrupts import reraise_as_interrupt, signals_received
from fedleak.runtime.time_limit import time_limit

# Shares of the budget for the canary, for reconstructing inputs from sums, and for what a malicious
# server reads.
CANARY_SHARE, SUM_SHARE, ACTIVE_SHARE = 0.2, 0.1, 0.2
# A canary that is not reconstructed, and that has used so much of its share, is attacked again if
# so many of its shares are left at the end.
SHORT, AGAIN = 0.5, 2.0
# By how much a question may exceed its share of the budget, if there is time at all.
OVERRUN = 1.5
Question = tuple[int, str]
"""A rung, and what is asked."""
# The questions, in the order in which they are asked.
TOLD, SHARES, TOKENS = (1, "number of samples"), (2, "shares of labels"), (2, "set of tokens")
SUM_SHARES, SUM_TOKENS, SUM_INPUTS = (0, SHARES[1]), (0, TOKENS[1]), (0, "inputs")
INPUTS = (3, "inputs")
ACTIVE: tuple[Question, ...] = ((4, "inputs"), (5, "inputs"))
PLAN: tuple[Question, ...] = (TOLD, SHARES, TOKENS, SUM_SHARES, SUM_TOKENS, SUM_INPUTS, INPUTS)
UNITS = {"s": 1, "m": 60, "h": 3600}
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")


class _OutOfTime(BaseException):
    """The time for a question has passed; code that catches every error does not catch it."""

    def __str__(self) -> str:
        return "it took more than its share of the time"


@dataclass(frozen=True)
class Audit:
    """What an audit has found.

    Args:
        verdict: its conclusions.
        scores: the score of each victim whose inputs were attacked.
        notes: what could not be attacked or is not known, a sentence each.
    """

    verdict: Verdict
    scores: tuple[Score, ...]
    notes: tuple[str, ...]


def audit(
    app: FlowerApp,
    folder: Path,
    *,
    clients: int,
    rounds: int | None = None,
    budget: float = 480.0,
    public: Public | None = None,
    seed: int = 0,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    ray_address: str | None = None,
    processes: int = 1,
    malicious: bool = False,
    observers: Sequence[AuditObserver] = (),
    resume: bool = False,
    overwrite: bool = False,
    run: Callable[..., Observed] = run_app,
    probe: Callable[..., Probe] = run_probe,
) -> Audit:
    """Run an app as it is, and find out what its server could learn.

    Args:
        app: the app.
        folder: where to write; see :class:`fedleak.audit.folder.AuditFolder` for its files.
        clients: number of simulated clients, at least 1.
        rounds: number of rounds. If None, as the app's run config says.
        budget: time for the attacks in seconds, without that of the app's own training.
        public: samples like the clients' that the server has. If None, made-up ones are used.
        seed: seed of the attacks.
        cpus_per_client: CPUs that one client occupies.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster. If None, a private instance of Ray is started.
        processes: number of updates that are attacked, and of shadow clients that are trained, at
            the same time, at least 1; if more, as tasks on Ray.
        malicious: whether the app is run twice more, in which a server that chooses hyperparameters
            and one that chooses parameters ask one client each. The app's own run is the same.
        observers: told of the audit's events.
        resume: continue an interrupted audit: the app does not train again if its run was complete,
            and what was answered is not asked again. If the budget is larger than before, or
            malicious servers are tried for the first time, what was not tried or is not conclusive
            is.
        overwrite: delete an existing audit.
        run: runs the app.
        probe: runs the app with a malicious server.

    Returns:
        The verdict, which is in the folder's ``summary.json`` too.

    Raises:
        BadInput: if an argument is wrong, or no update can be attacked.
        RunFailed: if the app, or the engine, failed.
        KeyboardInterrupt: if interrupted; the answers so far are kept, and the audit can be
            resumed.
    """
    require(budget > 0, f"Expected a budget above 0 seconds, got {budget:g}.")
    require(clients >= 1, f"Expected at least 1 client, got {clients}.")
    require(processes >= 1, f"Expected `processes` to be at least 1, got {processes}.")
    resources = {
        "cpus_per_client": cpus_per_client, "gpus_per_client": gpus_per_client,
        "ray_address": ray_address,
    }  # fmt: skip
    Resources(clients, cpus_per_client, gpus_per_client, ray_address).check()
    if rounds is not None:
        with_rounds(app, rounds)
    samples = None if public is None else (public.name, public.inputs, public.labels)
    config = AuditConfig.of(
        app,
        folder,
        samples,
        clients=clients,
        rounds=rounds,
        seed=seed,
        budget=budget,
        malicious=malicious,
        **resources,
    )
    files = AuditFolder(folder)
    before = AuditConfig.load(files.config) if resume and files.config.is_file() else config
    files.open(config, resume=resume, overwrite=overwrite)
    summary = AuditSummary.load(files.summary) if files.summary.is_file() else AuditSummary()
    findings = Findings(files, summary, AuditObservers(observers))
    if budget > before.budget or (malicious and not before.malicious):
        findings.ask_again()
    elif summary.status == "complete":
        return _found(findings)
    summary.settings, summary.versions = config.to_dict(), versions()
    with _status(findings):
        findings.plan((*PLAN, *ACTIVE * malicious))
        observed = _observed(app, files, findings, run, clients, rounds, resources)
        probes = None
        if malicious:
            probes = _probes(
                app, files, findings, observed, probe, public, clients=clients, seed=seed,
                **resources,
            )  # fmt: skip
        with attack_workers(processes, ray_address) as workers:
            conclude(
                app, observed, budget=budget, public=public, seed=seed, findings=findings,
                workers=workers, probes=probes,
            )  # fmt: skip
    return _found(findings)


def _probes(
    app: FlowerApp,
    files: AuditFolder,
    findings: Findings,
    observed: Observed,
    probe: Callable[..., Probe],
    public: Public | None,
    **settings: Any,
) -> dict[int, Probe]:
    """What malicious servers sent to a client and what came back; nothing without an update."""
    victims, _ = find_victims(app, observed)
    if not victims:
        return {}  # the audit will say why
    inputs = None if public is None else public.inputs
    return probe_app(
        app, files.path, victims[0], public=inputs, report=findings.observer.said, probe=probe,
        **settings,
    )  # fmt: skip


@contextmanager
def _status(findings: Findings) -> Iterator[None]:
    """Keep the status in summary.json correct, however the block ends."""
    findings.save("running")
    status: Status = "complete"
    reason = ""
    try:
        with reraise_as_interrupt():
            yield
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    except FederationError as error:
        status, reason = "failed", str(error)
        raise RunFailed(str(error)) from error
    except BaseException as error:
        status, reason = "failed", first_line(error) if isinstance(error, Exception) else ""
        raise
    finally:
        findings.save(status, reason)
        findings.observer.audit_ended(status)


def _observed(
    app: FlowerApp,
    files: AuditFolder,
    findings: Findings,
    run: Callable[..., Observed],
    clients: int,
    rounds: int | None,
    resources: dict[str, float | str | None],
) -> Observed:
    """What the app's run has left; it is run if it was not yet, or not to its end."""
    summary, observer = findings.summary, findings.observer
    if summary.app_complete:
        observer.said("The app does not train again: its updates are complete.")
        seen = [] if app.settings.model else server_models(app)
        found = [MechanismFacts.of(values) for values in summary.mechanisms]
        return Observed(files.path.resolve(), seen, list(summary.failures), found)
    if files.remove_app_run():
        observer.said("The app's training was not complete: it starts anew.")
    told = app.run_config.get(app.rounds_key or "")
    observer.app_started(clients, rounds or (told if isinstance(told, int) else None))
    begun = time.monotonic()
    observed = run(
        app, files.path, clients=clients, rounds=rounds, on_update=observer.update_kept,
        **resources,
    )  # fmt: skip
    summary.app_seconds, summary.app_complete = time.monotonic() - begun, True
    summary.updates, summary.failures = len(observed.updates), list(observed.failures)
    summary.mechanisms = [asdict(found) for found in observed.mechanisms]
    findings.save()
    observer.app_ended(summary.updates, summary.app_seconds)
    return observed


def conclude(
    app: FlowerApp,
    observed: Observed,
    *,
    budget: float,
    public: Public | None = None,
    seed: int = 0,
    findings: Findings | None = None,
    workers: AttackWorkers | None = None,
    probes: Mapping[int, Probe] | None = None,
) -> Audit:
    """Attack what an app's server saw.

    Args:
        app: the app.
        observed: what its run has left.
        budget: see :func:`audit`.
        public: see :func:`audit`.
        seed: see :func:`audit`.
        findings: takes up what is found; what it has already is not tried again. If None, nothing
            is written.
        workers: attack updates and train shadow clients. If None, this process does.
        probes: what malicious servers sent and what came back, by rung. If None, none was tried.

    Raises:
        BadInput: if no update can be attacked, for which the sentence gives the first reason, or
            the public samples are not like the clients'.
    """
    findings = findings or Findings()
    summary, observer = findings.summary, findings.observer
    uncounted: list[str] = []
    try:
        findings.set_privacy(*spent_by_app(observed, observed.folder / REPLIES))
    except BadInput as error:  # a setting of the app's own; what else it leaks is still asked
        uncounted = [f"what the clients spend of their privacy is not counted: {error}"]
    victims, reasons = find_victims(app, observed)
    replies, clients = observed.folder / REPLIES, summary.settings.get("clients")
    notes = [*uncounted, *reasons, *observed.failures]
    notes += clients_in_rounds(replies, clients) if isinstance(clients, int) else []
    summary.notes = notes
    if not victims:
        said = reasons or observed.failures or [why_no_update(replies)]
        raise BadInput(f"Expected updates that can be attacked, got none: {said[0]}")
    if public is not None:
        check_public(public, victims)
    findings.check_model(victims[0].known.knowledge.model)
    notes += dict.fromkeys(note for victim in victims for note in victim.known.notes)
    notes += layers_not_sent(victims)
    totals, reasons = sums_of_rounds(victims)
    summary.notes = [*notes, *reasons]
    of_first_round = bool(totals) and totals[0].update.round == victims[0].update.round
    applies = {
        TOKENS: victims[0].whole is not None, SUM_SHARES: of_first_round,
        SUM_TOKENS: victims[0].whole is not None and bool(totals), SUM_INPUTS: bool(totals),
    }  # fmt: skip
    active = [question for question in ACTIVE if question[0] in (probes or {})]
    questions = [question for question in PLAN if applies.get(question, True)]
    questions[-1:] = [*active, questions[-1]]  # the last one takes all the time that is left
    findings.plan(questions)
    stages = int(summary.canary is None) + len(summary.unfinished)
    observer.attacks_started(stages, budget, summary.used)
    findings.begin(budget)
    short_of_time = False
    if summary.canary is None:
        seconds, begun = min(CANARY_SHARE * budget, findings.left), time.monotonic()
        observer.stage_started("the audit's own client", seconds)
        findings.set_canary(_canary(victims[0], observed, seconds, findings.left, seed, observer))
        short_of_time = time.monotonic() - begun > SHORT * seconds
    report, time_for_shadows = observer.progressed, SHADOW_SHARE * budget
    shadows = ShadowTraining(
        victims, public, seconds=min(time_for_shadows, findings.left), seed=seed, report=report,
        train=None if workers is None else workers.train_shadows,
    )  # fmt: skip
    rest = partial(
        _reconstruct, findings, observed, seed=seed,
        attack_all=None if workers is None else workers.attack,
    )  # fmt: skip
    attacks: dict[Question, Callable[[float], Answer | None]] = {
        TOLD: lambda _: told_numbers(observed, victims),
        SHARES: lambda _: label_shares(observed, shadows),
        TOKENS: lambda _: touched_rows(observed, victims, report=report),
        SUM_SHARES: lambda _: label_shares_of_sum(observed, shadows, totals[0]),
        SUM_TOKENS: lambda _: touched_rows(observed, totals, report=report),
        SUM_INPUTS: partial(rest, SUM_INPUTS, totals),
        INPUTS: partial(rest, INPUTS, victims),
    }
    samples = None if public is None else public.inputs
    for rung, asked in (probes or {}).items():
        attacks[rung, "inputs"] = partial(
            answer_by, app, asked, rung, observed, victims, public=samples, seed=seed,
            report=report,
        )  # fmt: skip
    shares = dict.fromkeys(active, ACTIVE_SHARE * budget) | {
        SHARES: time_for_shadows, SUM_SHARES: time_for_shadows, SUM_INPUTS: SUM_SHARE * budget,
        INPUTS: budget,
    }  # fmt: skip
    for question in questions:
        # Messages need no time; attacks on inputs are ended one by one.
        limited = question not in (TOLD, SUM_INPUTS, INPUTS)
        _ask(findings, question, attacks[question], share=shares.get(question), limited=limited)
    if not summary.canary and short_of_time and findings.left > AGAIN * CANARY_SHARE * budget:
        seconds = findings.left / OVERRUN
        observer.stage_started("the audit's own client, once more", seconds)
        findings.set_canary(_canary(victims[0], observed, seconds, findings.left, seed, observer))
    for answer in active_servers(victims):
        if summary.answer_to(answer.rung, answer.question) is None:
            summary.answers.append(answer)
    findings.save()
    return _found(findings)


def _reconstruct(
    findings: Findings,
    observed: Observed,
    question: Question,
    victims: Sequence[Victim],
    seconds: float,
    *,
    seed: int,
    attack_all: AttackAll | None,
) -> Answer:
    """The answer to a question about inputs; what is found is kept victim by victim."""
    known = findings.scores(*question)
    sample = truth_of(observed, victims[0])

    def attacked(one: Attacked) -> None:
        known[one.score.key] = one.score
        given = [known[victim.key] for victim in victims if victim.key in known]
        done = f"the audit ended after {len(given)} of {len(victims)} updates"
        findings.add_attacked(*question, one, inputs_answer(victims, given, sample, [done]))
        findings.observer.victim_attacked(len(given), len(victims))

    answer, _ = inputs(
        observed, victims, seconds=seconds, seed=seed, report=findings.observer.progressed,
        limit=min(OVERRUN * seconds, findings.left), done=dict(known), finished=attacked,
        attack_all=attack_all,
    )  # fmt: skip
    return answer


def _found(findings: Findings) -> Audit:
    """What the findings come to."""
    summary = findings.summary
    scores = tuple(findings.scores(*INPUTS).values())
    return Audit(summary.verdict, scores, tuple(summary.notes))


def _ask(
    findings: Findings,
    question: Question,
    attack: Callable[[float], Answer | None],
    *,
    share: float | None = None,
    limited: bool = True,
) -> None:
    """Ask a question that has no answer yet.

    Whatever the app's own code raises beside made-up data costs this question alone.

    Args:
        findings: take up the answer.
        question: rung and question.
        attack: gives the answer, in about as many seconds; None if the question does not apply.
        share: seconds of the budget. If None, the question needs no attack that takes long.
        limited: whether the question is ended where it takes longer.
    """
    rung, name = question
    if findings.summary.answer_to(rung, name) is not None:
        return
    seconds = findings.left if share is None else min(share, findings.left)
    title = not_tried(rung, name, "").title
    findings.observer.stage_started(title, seconds if share is not None else 0.0)
    limit = min(OVERRUN * seconds, findings.left)
    signals, begun = signals_received(), time.monotonic()
    answer: Answer | None
    try:
        with time_limit(limit, _OutOfTime) if limited else nullcontext():
            answer = attack(seconds)
    except _OutOfTime:
        answer = not_tried(rung, name, f"it took more than its share of the budget, {limit:.0f} s")
    except Exception as error:
        # What the limit raises within a library may become another error.
        ended = limited and time.monotonic() - begun >= limit
        reason = str(_OutOfTime()) if ended else first_line(error).rstrip(".")
        answer = not_tried(rung, name, reason)
    if signals_received() > signals:
        # An interrupt that is raised in a callback from C++ may have become another error.
        raise KeyboardInterrupt
    findings.add_answer(rung, name, answer)


def _canary(
    victim: Victim,
    observed: Observed,
    seconds: float,
    left: float,
    seed: int,
    observer: AuditObserver,
) -> Canary:
    """The canary, tested by the client's own batches, within a time."""
    signals = signals_received()
    canary = Canary(False, "the audit's own client took more than its share of the budget")
    try:
        with time_limit(min(OVERRUN * seconds, left), _OutOfTime):
            canary = run_canary(victim, seconds=seconds, seed=seed, report=observer.progressed)
        observer.progressed("the clients' recorded batches are trained again")
        with time_limit(min(OVERRUN * seconds, left), _OutOfTime):
            canary = _tested(canary, victim, observed)
    except _OutOfTime:
        if canary.reconstructed:
            note = f"{canary.note}, but there was no time to train the clients' batches again"
            canary = replace(canary, reconstructed=False, note=note)
    if signals_received() > signals:
        raise KeyboardInterrupt
    return canary


def _tested(canary: Canary, victim: Victim, observed: Observed) -> Canary:
    """The canary, which proves nothing where what was seen does not give the client's update."""
    try:
        batches, facts = batches_of(observed, victim), victim.known.knowledge
        # A gradient may be that of several batches.
        if facts.protocol != "fedsgd" and len(batches) < facts.steps:
            raise BadInput(f"Expected {facts.steps} batches, got the first {len(batches)}.")
        agreement = replay(victim, batches)
    except BadInput as error:
        note = f"{canary.note}, but the clients' batches were not all kept: {error}".rstrip(".")
        return replace(canary, reconstructed=False, note=note)
    if agreement >= AGREES or not canary.reconstructed:
        return canary
    note = (
        f"{canary.note}, but its training is not that of the clients: their recorded batches, "
        f"trained again, give another update (squared cosine {agreement:.3f})"
    )
    return replace(canary, reconstructed=False, note=note)


def read_span(text: str) -> float:
    """A span of time in seconds from a text such as ``90``, ``90s``, ``10m`` or ``1h``.

    Raises:
        BadInput: if it is none.
    """
    found = SPAN.fullmatch(text.strip())
    require(
        found is not None and float(found[1]) > 0,
        f"Expected a time such as 90s, 10m or 1h, got {text}.",
    )
    assert found is not None
    return float(found[1]) * UNITS[found[2] or "s"]
