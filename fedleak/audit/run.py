"""An audit from top to bottom: run the app, attack what its server saw, and conclude."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedleak.audit.app import FlowerApp
from fedleak.audit.canary import AGREES, Canary, replay, run_canary
from fedleak.audit.label_shares import ShadowTraining, label_shares, label_shares_of_sum
from fedleak.audit.ladder import (
    SHADOW_SHARE,
    Public,
    Report,
    Victim,
    active_servers,
    batches_of,
    find_victims,
    inputs,
    told_numbers,
    touched_rows,
)
from fedleak.audit.simulation import Observed, run_app
from fedleak.audit.sums import sums_of_rounds
from fedleak.audit.truth_scores import Score
from fedleak.audit.verdict import Answer, Estimate, Verdict
from fedleak.errors import BadInput, first_line, require
from fedleak.updates.files import short

VERDICT = "verdict.json"
# Shares of the budget for the canary, and for reconstructing inputs from sums.
CANARY_SHARE, SUM_SHARE = 0.2, 0.1
UNITS = {"s": 1, "m": 60, "h": 3600}
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")


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
    budget: float = 600.0,
    public: Public | None = None,
    seed: int = 0,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    ray_address: str | None = None,
    report: Report = lambda text: None,
    run: Callable[..., Observed] = run_app,
) -> Audit:
    """Run an app as it is, and find out what its server could learn.

    Args:
        app: the app.
        folder: where to write; it is made if it does not exist, and must be empty.
        clients: number of simulated clients, at least 1.
        rounds: number of rounds. If None, as the app's run config says.
        budget: time for the attacks in seconds, without that of the app's own training.
        public: samples like the clients' that the server has. If None, made-up ones are used.
        seed: seed of the attacks.
        cpus_per_client: CPUs that one client occupies.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster. If None, a private instance of Ray is started.
        report: told what is being done.
        run: runs the app.

    Returns:
        The verdict, which is in the folder's ``verdict.json`` too.

    Raises:
        BadInput: if an argument is wrong, or no update can be attacked.
        FederationError: if the app, or the engine, failed.
    """
    require(budget > 0, f"Expected a budget above 0 seconds, got {budget:g}.")
    report(f"the app runs with {clients} clients")
    observed = run(
        app, folder, clients=clients, rounds=rounds, cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client, ray_address=ray_address,
    )  # fmt: skip
    found = conclude(app, observed, budget=budget, public=public, seed=seed, report=report)
    found.verdict.write(folder / VERDICT)
    return found


def conclude(
    app: FlowerApp,
    observed: Observed,
    *,
    budget: float,
    public: Public | None = None,
    seed: int = 0,
    report: Report = lambda text: None,
) -> Audit:
    """Attack what an app's server saw.

    Args:
        app: the app.
        observed: what its run has left.
        budget: see :func:`audit`.
        public: see :func:`audit`.
        seed: see :func:`audit`.
        report: see :func:`audit`.

    Raises:
        BadInput: if no update can be attacked; the sentence is that of the first.
    """
    end = time.monotonic() + budget
    victims, reasons = find_victims(app, observed)
    if not victims:
        said = reasons or observed.failures or ["the app sent no weights to its clients"]
        raise BadInput(f"Expected updates that can be attacked, got none: {said[0]}")
    notes = [*reasons, *observed.failures]
    notes += dict.fromkeys(note for victim in victims for note in victim.known.notes)
    report("the audit's own client")
    canary = run_canary(victims[0], seconds=CANARY_SHARE * budget, seed=seed, report=report)
    canary = _tested(canary, victims[0], observed)
    answers: list[Answer | None] = [told_numbers(observed, victims)]
    scores: list[Score] = []

    def rung(number: int, question: str, attack: Callable[[], Answer | None]) -> None:
        # Whatever the app's own code raises beside made-up data costs this question alone.
        try:
            answers.append(attack())
        except Exception as error:
            nothing = Estimate.of([])
            answers.append(
                Answer(
                    rung=number, question=question, measure="",
                    answer=nothing, guess=nothing, gains=(), perfect=1.0, threat_model="C",
                    attack="none", setting="", tried=False, note=first_line(error).rstrip("."),
                )
            )  # fmt: skip

    def reconstruct() -> Answer:
        left = max(1.0, end - time.monotonic())
        answer, found = inputs(observed, victims, seconds=left, seed=seed, report=report)
        scores.extend(found)
        return answer

    def reconstruct_from_sums() -> Answer:
        seconds = SUM_SHARE * budget
        return inputs(observed, totals, seconds=seconds, seed=seed, report=report)[0]

    shadows = ShadowTraining(
        victims, public, seconds=SHADOW_SHARE * budget, seed=seed, report=report
    )
    rung(2, "shares of labels", lambda: label_shares(observed, shadows))
    rung(2, "set of tokens", lambda: touched_rows(observed, victims, report=report))
    totals, reasons = sums_of_rounds(victims)
    notes += reasons
    if totals and totals[0].update.round == victims[0].update.round:
        rung(0, "shares of labels", lambda: label_shares_of_sum(observed, shadows, totals[0]))
    if totals:
        rung(0, "set of tokens", lambda: touched_rows(observed, totals, report=report))
        rung(0, "inputs", reconstruct_from_sums)
    rung(3, "inputs", reconstruct)
    found = [answer for answer in (*answers, *active_servers(victims)) if answer is not None]
    found.sort(key=lambda answer: answer.rung)
    verdict = Verdict(tuple(found), canary.reconstructed, canary.note)
    return Audit(verdict, tuple(scores), tuple(notes))


def _tested(canary: Canary, victim: Victim, observed: Observed) -> Canary:
    """The canary, which proves nothing where what was seen does not give the client's update."""
    try:
        agreement = replay(victim, batches_of(observed, victim))
    except BadInput as error:
        return Canary(False, f"{canary.note}, but the clients' batches were not kept: {error}")
    if agreement >= AGREES or not canary.reconstructed:
        return canary
    return Canary(
        False,
        f"{canary.note}, but its training is not that of the clients: their recorded batches, "
        f"trained again, give another update (squared cosine {agreement:.3f})",
        canary.value,
    )


def read_public(path: Path) -> Public:
    """Public samples from a file.

    Args:
        path: an .npz file with ``inputs``, as the clients' models take them, ``(N, ...)``, and
            ``labels`` ``(N,)``.

    Raises:
        BadInput: if it has other content.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("inputs", "labels") if name in file}
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(
            f"Expected an .npz file with `inputs` and `labels` at {path}: {error}"
        ) from error
    require(
        len(arrays) == 2 and len(arrays["inputs"]) == len(arrays["labels"]) > 0,
        f"Expected `inputs` and `labels` of equal length in {path}, got "
        f"{short({name: value.shape for name, value in arrays.items()}) or 'none'}.",
    )
    samples = torch.from_numpy(arrays["inputs"])
    samples = samples.float() if samples.is_floating_point() else samples
    return Public(samples, torch.from_numpy(arrays["labels"]).long(), path.name)


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
