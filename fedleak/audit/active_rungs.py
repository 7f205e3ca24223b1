"""Rungs 4 and 5: what a server reads of one client that chooses what it sends to it."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.audit.app import FlowerApp
from fedleak.audit.findings import not_tried
from fedleak.audit.folder import REPLIES
from fedleak.audit.ladder import (
    Report,
    Victim,
    best_result,
    find_victims,
    inputs_answer,
    setting_of,
    truth_of,
    why_several,
    why_too_many,
)
from fedleak.audit.probe import FOLDER, Entries, Make, Probe, run_probe
from fedleak.audit.simulation import Observed
from fedleak.audit.truth_scores import Samples, mean_guess, measure_of, score
from fedleak.audit.verdict import RUNGS, Answer, Estimate
from fedleak.defenses.guard import inspect_model
from fedleak.errors import BadInput, first_line
from fedleak.registry import load_plugin, names
from fedleak.runs.readings import match_reading
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.base import Crafted, MaliciousServer, Reading
from fedleak.servers.exchanges import SALT, craft, read, true_features
from fedleak.servers.hyperparameters import Hyperparameters
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.truth import GroundTruth

HYPERPARAMETERS, PARAMETERS = 4, 5
# How entries of a training configuration are called that set a client's hyperparameters.
ENTRIES = {
    "rate": re.compile(r"(^|[-_.])(lr|learning[-_]?rate|eta)$", re.IGNORECASE),
    "epochs": re.compile(r"epochs?$", re.IGNORECASE),
    "batch": re.compile(r"(^|[-_.])(batch[-_]?size|bs)$", re.IGNORECASE),
}
# Factor on the app's own learning rate: the weights hardly move in the client's steps then, and its
# update stays far above the rounding of float32.
SLOWER = 1e-2
ONE_CLIENT = "values and interval are over the samples of one client"
# Servers that change parameters, those first that read an epoch of small batches.
ORDER = ("bins", "soliton_biases", "trap_weights", "imprint")


def hyperparameters_for(samples: int, entries: Entries) -> Hyperparameters:
    """A server that sets the hyperparameters which the app's own server sends.

    One epoch, with all samples in a batch, is one step; without a batch size to set, the rate is a
    hundredth of the app's own.

    Args:
        samples: the clients' usual number of samples.
        entries: the training configuration in the app's message.

    Raises:
        BadInput: if the app's server sets no hyperparameter.
    """
    found = {
        setting: name
        for setting, pattern in ENTRIES.items()
        for name, value in entries.items()
        if pattern.search(name) and isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not found:
        raise BadInput(
            "Expected hyperparameters in the training configuration that the app's server sends, "
            f"got {', '.join(entries) or 'an empty one'}."
        )
    own: Any = entries.get(found.get("rate", ""), 0.0)
    slower = "rate" in found and "batch" not in found and own > 0
    return Hyperparameters(
        rate=SLOWER * own if slower else None,
        epochs=1 if "epochs" in found else None,
        batch=samples if "batch" in found else None,
        **{f"{setting}_name": found.get(setting, f"no {setting}") for setting in ENTRIES},
    )


def parameters_for(knowledge: Knowledge, public: Tensor | None = None) -> MaliciousServer:
    """The first server that changes parameters and can attack a client, with its own settings.

    Args:
        knowledge: gives the model, and the client's training and number of samples.
        public: public inputs as the clients' models take them. If None, there are none.

    Raises:
        BadInput: if there is none; the sentence has the reasons.
    """
    reasons = []
    known = names("servers")
    order = [name for name in ORDER if name in known]
    for name in (*order, *(name for name in known if name not in order)):
        kind: Any = load_plugin("servers", known[name].value.replace(":", "."))
        # The app's clients make their model themselves, so that none can be changed.
        if "parameters" not in kind.changes or "model" in kind.changes or not kind.reads:
            continue
        server: MaliciousServer = kind()
        reason = server.refuses_model(knowledge.model)
        if reason is None:
            try:
                craft(
                    server, knowledge, knowledge.model.state_dict(), public=public,
                    generator=torch.Generator().manual_seed(0),
                )  # fmt: skip
            except BadInput as error:
                reason = str(error).rstrip(".")
            else:
                return server
        reasons.append(f"{name}: {reason}")
    raise BadInput(
        "Expected a model that a malicious server can attack, got one that none can"
        f"{': ' * bool(reasons)}{'; '.join(reasons)}."
    )


def probe_app(
    app: FlowerApp,
    folder: Path,
    victim: Victim,
    *,
    public: Tensor | None = None,
    report: Report = lambda text: None,
    probe: Callable[..., Probe] = run_probe,
    **settings: Any,
) -> dict[int, Probe]:
    """Run an app a second and a third time with malicious servers, which ask one client each.

    Args:
        app: the app.
        folder: the audit's folder.
        victim: an update of the app's own run, for what a server knows who has seen it.
        public: public inputs as the clients' models take them. If None, there are none.
        report: told what is being done.
        probe: runs the app.
        settings: further arguments of :func:`fedleak.audit.probe.run_probe`.

    Returns:
        Rung -> what was sent and what came back.
    """
    facts = victim.known.knowledge
    makers: dict[int, Make] = {
        HYPERPARAMETERS: partial(hyperparameters_for, facts.num_samples),
        PARAMETERS: lambda _: parameters_for(facts, public=public),
    }

    def told(rung: int, entries: Entries) -> MaliciousServer:
        who = f"a server that {RUNGS[rung]}"
        try:
            server = makers[rung](entries)
        except BadInput as error:
            report(f"{who} asks no client: {str(error).rstrip('.')}")
            raise
        report(f"{who} asks one client")
        return server

    return {
        rung: probe(
            app, folder / FOLDER / f"rung-{rung}", partial(told, rung), facts, public=public,
            **settings,
        )
        for rung in makers
    }  # fmt: skip


def answer_by(
    app: FlowerApp,
    probe: Probe,
    rung: int,
    observed: Observed,
    victims: Sequence[Victim],
    seconds: float,
    *,
    public: Tensor | None = None,
    seed: int = 0,
    report: Report = lambda text: None,
) -> Answer:
    """What a malicious server reads of the inputs of the client that it has asked.

    Args:
        app: the app.
        probe: what was sent and what came back.
        rung: 4 or 5.
        observed: what the app's own run has left; its truth is for the guess.
        victims: the updates of that run.
        seconds: time for attacks on the update, of a server that does not read itself.
        public: public inputs as the clients' models take them. If None, there are none.
        seed: seed of the server, as for the probe, and of the attacks.
        report: told what is being done.
    """
    setting = setting_of(victims)
    unknown = victims[0].known.unknown
    if probe.refused and not unknown:
        return _of_rung(_refused(probe, observed, victims), rung, public)
    if reason := probe.reason or (why_several(unknown) if unknown else ""):
        return _of_rung(not_tried(rung, "inputs", reason, setting), rung, public)
    own = replace(probe.observed, models=[victims[0].known.knowledge.model])
    asked, reasons = find_victims(app, own)
    rounds = probe.rounds()
    if len(asked) < len(rounds) or not rounds:
        why = (reasons or ["the client's update was not kept"])[0].rstrip(".")
        return _of_rung(not_tried(rung, "inputs", why, setting), rung, public)
    last = asked[-1]
    truth = truth_of(own, last)
    others = [
        truth_of(observed, victim).inputs
        for victim in victims
        if victim.update.client != last.update.client
    ]
    if probe.server.reads:
        answer = _read(probe, asked, truth, others, public, seed)
    else:
        answer = _attacked(last, truth, others, seconds, seed, report)
    sent = ", ".join(f"{name} {value:g}" for name, value in rounds[-1][1].config.items())
    notes = [f"{sent} sent" * bool(sent), answer.note]
    notes += _noticed(probe, last.known.knowledge, truth)
    return _of_rung(replace(answer, note="; ".join(filter(None, notes))), rung, public)


def _of_rung(answer: Answer, rung: int, public: Tensor | None) -> Answer:
    return replace(answer, rung=rung, threat_model="F" if public is None else "G")


def _refused(probe: Probe, observed: Observed, victims: Sequence[Victim]) -> Answer:
    """Of a client that refused the message a server has the guess alone."""
    asked = _asked_client(probe.folder / REPLIES)
    victim = next((one for one in victims if one.update.client == asked), victims[0])
    truth = truth_of(observed, victim)
    others = [
        truth_of(observed, one).inputs
        for one in victims
        if one.update.client != victim.update.client
    ]
    measure, perfect = measure_of(truth)
    found = _guess_alone(truth, mean_guess(others, truth), victim.known.knowledge)
    what = "model" if "parameters" in probe.server.changes else "training configuration"
    return Answer(
        rung=PARAMETERS, question="inputs", measure=measure, answer=Estimate.of([found]),
        guess=Estimate.of([found]), perfect=perfect, gains=(0.0,), threat_model="F",
        attack=probe.server.name, setting=setting_of([victim]),
        note=f"the client refused the {what}: {probe.reason}; the answer is the guess",
    )  # fmt: skip


def _asked_client(replies: Path) -> int | None:
    """The number of the client whose reply came last; None if it is not known."""
    lines = replies.read_text(encoding="utf-8").splitlines()
    number: int | None = json.loads(lines[-1])["client"]
    return number


def _guess_alone(truth: Samples, guess: Tensor, facts: Knowledge) -> float:
    """The measure of a guess of all samples."""
    labels = torch.zeros(len(truth.inputs), dtype=torch.long)
    return score("none", "none", truth, Reconstruction(guess, labels), guess, facts).guess


def _attacked(
    victim: Victim,
    truth: Samples,
    others: Sequence[Tensor],
    seconds: float,
    seed: int,
    report: Report,
) -> Answer:
    """The attacks of a listening server on an update under chosen hyperparameters."""
    facts = victim.known.knowledge
    if why := why_too_many(victim):
        return not_tried(HYPERPARAMETERS, "inputs", why, setting_of([victim]))
    result = best_result(victim, seconds, seed, report, limit=2 * seconds)
    if (best := result.best) is None:
        return not_tried(HYPERPARAMETERS, "inputs", result.reason.rstrip("."), setting_of([victim]))
    found = score(victim.key, result.attack, truth, best, mean_guess(others, truth), facts)
    answer = inputs_answer([victim], [found], truth)
    sign = 1 if answer.perfect == 1.0 else -1
    gains = [sign * (a - b) for a, b in zip(found.values, found.guesses, strict=True)]
    return replace(
        answer,
        answer=Estimate.of(found.values),
        guess=Estimate.of(found.guesses),
        gains=tuple(gain if found.supported else min(0.0, gain) for gain in gains),
        note=f"{ONE_CLIENT}{'; ' * bool(answer.note)}{answer.note}",
    )


def _read(
    probe: Probe,
    asked: Sequence[Victim],
    truth: Samples,
    others: Sequence[Tensor],
    public: Tensor | None,
    seed: int,
) -> Answer:
    """What a server reads itself: the samples that it certifies count, each beside one of its own.

    A sample's score is beside the guess of the same sample, so that the interval is over samples.
    """
    server, last = probe.server, asked[-1]
    rounds = tuple(
        (crafted, victim.update.loaded())
        for (_, crafted), victim in zip(probe.rounds(), asked, strict=True)
    )
    facts = last.known.knowledge
    draws = torch.Generator().manual_seed(derive_seed(seed, len(rounds), SALT, 1))
    reading = read(server, facts, rounds, public=public, generator=draws)
    measure, perfect = measure_of(truth)
    sign = 1 if perfect == 1.0 else -1
    values, guesses = _scores(probe, reading, rounds[-1][0], facts, truth, others)
    certified, found = int(reading.certified.sum()), len(reading.inputs)
    notes = [
        f"{server.name} read {found} of {len(truth.inputs)} samples of one client and certified "
        f"{certified}; values and interval are over those",
    ]
    return Answer(
        rung=PARAMETERS, question="inputs", measure=measure, answer=Estimate.of(values),
        guess=Estimate.of(guesses), perfect=perfect,
        gains=tuple(sign * (a - b) for a, b in zip(values, guesses, strict=True)),
        conclusive=bool(certified), threat_model="F", attack=server.name,
        setting=setting_of([last]), note="; ".join(notes),
    )  # fmt: skip


def _scores(
    probe: Probe,
    reading: Reading,
    crafted: Crafted,
    facts: Knowledge,
    truth: Samples,
    others: Sequence[Tensor],
) -> tuple[list[float], list[float]]:
    """The measure of each certified sample, and of a guess of the same; of none, the guess's."""
    guess = mean_guess(others, truth)
    kept = Reading(
        *(getattr(reading, part)[reading.certified] for part in
          ("inputs", "labels", "certified", "features"))
    )  # fmt: skip
    labels = torch.zeros(len(truth.inputs), dtype=torch.long)
    features = None
    if len(kept.inputs):
        features = true_features(probe.server, facts, crafted, truth.inputs)
    pairs = match_reading(kept, GroundTruth(truth.inputs, labels), features)
    if not pairs:
        nothing = _guess_alone(truth, guess, facts)
        return [nothing], [nothing]
    found, samples = (list(positions) for positions in zip(*pairs, strict=True))
    own = Samples(truth.inputs[samples], None)
    result = Reconstruction(kept.inputs[found], labels[: len(found)])
    whole = score("read", probe.server.name, own, result, guess[samples], facts)
    return list(whole.values), list(whole.guesses)


def _noticed(probe: Probe, facts: Knowledge, truth: Samples) -> Iterable[str]:
    """Whether the client would have noticed, by the guard that knows the app's configuration.

    Weights that are the app's own are not looked at beside the client's samples.
    """
    _, crafted = probe.rounds()[-1]
    model = facts.model
    batch = truth.inputs if "parameters" in probe.server.changes else None
    agreed = {
        name: float(value)
        for name, value in probe.entries.items()
        if name in crafted.config and isinstance(value, int | float) and value > 0
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(before | dict(crafted.weights))
        found = inspect_model(model, batch=batch, config=dict(crafted.config), agreed=agreed)
    except Exception as error:  # the guard's, or the model's own
        return [f"the guard could not look at the model: {first_line(error).rstrip('.')}"]
    finally:
        model.load_state_dict(before)
    if not found.suspicious:
        return ["the guard on the client would not have noticed"]
    return [f"the guard on the client would have noticed: {found.reasons[0].rstrip('.')}"]
