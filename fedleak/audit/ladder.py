"""The ladder of attackers: what each reads from an app's updates, beside a guess without them."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fedleak.attacks import IGA, NRA, RGAP, Analytic, Attack, ExactBatch, ExactNRA, Rows, Tokens
from fedleak.attacks.attack_updates import attack_updates
from fedleak.attacks.base import Progress, Reconstruction
from fedleak.attacks.embeddings import embedding_uses
from fedleak.audit.app import FlowerApp
from fedleak.audit.batches import Batch, load_batches
from fedleak.audit.facts import TrainingFacts
from fedleak.audit.knowledge import Known, find_model, knowledge_of
from fedleak.audit.matching_memory import matching_bytes
from fedleak.audit.module_watch import model_names
from fedleak.audit.other_inputs import common_relations
from fedleak.audit.samples import Attacked
from fedleak.audit.simulation import REPLIES, Observed
from fedleak.audit.truth_scores import Samples, Score, mean_guess, measure_of, score
from fedleak.audit.verdict import RUNGS, Answer, Estimate
from fedleak.errors import BadInput
from fedleak.models.noise import noise_slots
from fedleak.runtime.time_limit import time_limit
from fedleak.updates.stored_tensors import StoredTensors
from fedleak.updates.update import InterceptedUpdate

# Share of the budget for shadow clients; the rest is for reconstructing inputs.
SHADOW_SHARE = 0.3
# Samples of an update above which gradient matching reconstructs no single inputs of one step, and
# above which no attack does: closed forms read large batches of one step, and several steps say
# more than one. Memory up to which several steps of many samples are matched.
MOST_SAMPLES, MOST_OF_ALL = 64, 512
MOST_BYTES = 4 * 2**30
# Iterations of gradient matching: of the trials by which its speed is measured, and the fewest and
# the most that are run.
TRIAL = (5, 25)
FEWEST_ITERATIONS, MOST_ITERATIONS = 100, 2000
# A first trial that takes so long tells enough.
CLEAR_SECONDS = 2.0
# Of the search for tokens: comparisons of updates in the trial, the most of them and of iterations,
# and the share of the time for iterations; a start alone is often enough for the comparisons.
TRIED_EVALUATIONS, MOST_EVALUATIONS = 100, 20_000
MOST_TOKEN_ITERATIONS, ITERATION_SHARE = 100, 0.3
# Share of the time for gradient matching that is planned, as iterations may take longer than in the
# trials; and by how much the attacks on an update may exceed its share, if there is time at all.
PLANNED, OVERRUN = 0.75, 2.0
# How much more than was foreseen is given to an update for which its share was too short.
SPARE = 1.2
# Share of an update from which no other attack is tried.
EXPLAINS_ALL = 0.999

Report = Callable[[str], None]


class Found(NamedTuple):
    """What the attacks on an update have found.

    Args:
        best: the result that explains most of it; None if there is none.
        attack: its attack's name.
        reason: why an attack gave none.
        needed: seconds that gradient matching would have needed, 0 if it had enough.
    """

    best: Reconstruction | None
    attack: str = ""
    reason: str = ""
    needed: float = 0.0


Finished = Callable[[Attacked], None]
AttackAll = Callable[
    [Sequence["Victim"], float, float, int, Report], Iterator[tuple["Victim", Found]]
]


@dataclass(frozen=True, eq=False)
class Victim:
    """An update with what the attacker knows of it. It holds no sample of the client.

    Args:
        key: the update's key, such as ``r0001-c0003``.
        update: the update.
        known: what the attacker is told.
        whole: of samples that are whole numbers, such as tokens, the number that they stay below:
            the size of the embedding; None of others.
        parts: of a sum of updates, the clients' own, the first client's samples first; else none.
    """

    key: str
    update: InterceptedUpdate
    known: Known
    whole: int | None = None
    parts: tuple["Victim", ...] = ()

    @property
    def setting(self) -> str:
        """Samples, steps and optimiser, in a few words."""
        facts = self.known.knowledge
        samples = f"{facts.num_samples} sample{'s' * (facts.num_samples != 1)}"
        of = f"sum over {len(self.parts)} clients of " if self.parts else ""
        if facts.protocol == "fedsgd":
            return f"{of}{samples}, the gradient"
        return f"{of}{samples}, {facts.steps} step{'s' * (facts.steps != 1)} of {facts.local}"


@dataclass(frozen=True, eq=False)
class Public:
    """Samples like the clients' that the server has.

    Args:
        inputs: as the clients' models take them, ``(N, ...)``.
        labels: their classes ``(N,)``.
        name: what they are, for the answers.
    """

    inputs: Tensor
    labels: Tensor
    name: str


def find_victims(app: FlowerApp, observed: Observed) -> tuple[list[Victim], list[str]]:
    """The updates that can be attacked, and why the others cannot.

    Args:
        app: the app.
        observed: what its run has left.

    Returns:
        The victims in the order of rounds and clients, and sentences about the others.
    """
    found: list[Victim] = []
    reasons: list[str] = []
    model: nn.Module | None = None
    models: dict[Any, nn.Module] = {}
    seen: list[tuple[InterceptedUpdate, TrainingFacts]] = []
    for path in observed.updates:
        try:
            update = observed.update(path)
            seen.append((update, observed.facts(update.key)))
        except BadInput as error:
            reasons.append(f"{path.stem}: {error}")
    relations = common_relations([facts for _, facts in seen])
    for update, facts in seen:
        try:
            if model is None:
                model = find_model(app, facts, update, observed.models)
            update = _by_model_names(update, model)
            known = knowledge_of(app, facts, model, update, relations=relations, models=models)
        except BadInput as error:
            reasons.append(f"{update.key}: {error}")
            continue
        found.append(Victim(update.key, update, known, _whole(facts, known)))
    if app.settings.value_range is None:
        found = _with_range(observed, found)
    return found, reasons


def _with_range(observed: Observed, victims: Sequence[Victim]) -> list[Victim]:
    """The victims, whose attacker knows the range of images: it reads in the code how they scale.

    The range is that of all recorded inputs, so that it tells nothing of a single client's.
    """
    images = [v for v in victims if v.whole is None and len(v.known.knowledge.input_shape) == 3]
    ends: list[tuple[float, float]] = []
    for victim in images:
        for batch in batches_of(observed, victim):
            ends.append((float(batch.inputs.min()), float(batch.inputs.max())))
    if not ends or min(low for low, _ in ends) == max(high for _, high in ends):
        return list(victims)
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    note = f"images are taken to be scaled to {low:.3g} to {high:.3g}, as all recorded ones are"

    def told(victim: Victim) -> Victim:
        if victim not in images:
            return victim
        facts = replace(victim.known.knowledge, value_range=(low, high), mean=(0.0,), std=(1.0,))
        notes = (*victim.known.notes, note)
        return replace(victim, known=replace(victim.known, knowledge=facts, notes=notes))

    return [told(victim) for victim in victims]


def _by_model_names(update: InterceptedUpdate, model: nn.Module) -> InterceptedUpdate:
    """The update by the model's names, where it was sent as a list or from within a wrapper."""
    state = model.state_dict()
    sent, received = update.sent, update.received
    if all(name in state for name in sent) or not isinstance(sent, StoredTensors):
        return update
    names = model_names(model, [(name, tuple(value.shape)) for name, value in sent.items()])
    if not isinstance(received, StoredTensors):
        return update
    if update.protocol == "fedsgd":
        listed = [(name, tuple(value.shape)) for name, value in received.items()]
        return replace(
            update,
            sent=sent.renamed(names, state),
            received=received.renamed(model_names(model, listed), state),
        )
    return replace(
        update, sent=sent.renamed(names, state), received=received.renamed(names, state)
    )  # fmt: skip


def _whole(facts: TrainingFacts, known: Known) -> int | None:
    """The size of the embedding that takes samples of whole numbers; None of other samples."""
    model = known.knowledge.model
    types = {item.path: item.dtype for item in facts.inputs}
    sizes = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    if not sizes or not types.get(known.inputs, "").startswith("int"):
        return None
    # Others are those of positions or types.
    uses, _ = embedding_uses(known.knowledge, samples=1)
    own = [cast(int, model.get_submodule(u.name).num_embeddings) for u in uses if u.takes_samples]
    return min(own or sizes)


def batches_of(observed: Observed, victim: Victim) -> list[Samples]:
    """A victim's batches in the order in which it trained on them, for the scorer alone.

    Args:
        observed: what the app's run has left.
        victim: the victim.

    Raises:
        BadInput: if they were not kept.
    """
    known = victim.known
    return [
        Samples(
            _with_axis(batch.inputs[known.inputs]),
            _labels(batch, known),
            {p: batch.inputs[p] for item in known.others if (p := item.place) in batch.inputs},
        )
        for batch in load_batches(observed.truth(victim.key))
    ]


def _with_axis(inputs: Tensor) -> Tensor:
    """Samples that are single numbers, ``(N,)``, as ``(N, 1)``."""
    return inputs[:, None] if inputs.dim() == 1 else inputs


def truth_of(observed: Observed, victim: Victim) -> Samples:
    """A victim's samples and labels, those of its first epoch, for the scorer alone.

    Of a sum of updates they are those of all clients.

    Args:
        observed: what the app's run has left.
        victim: the victim.

    Raises:
        BadInput: if they were not kept, or are of different shapes.
    """
    if victim.parts:
        parts = [truth_of(observed, part) for part in victim.parts]
        targets = [part.labels for part in parts if part.labels is not None]
        return Samples(
            torch.cat([part.inputs for part in parts]),
            torch.cat(targets) if len(targets) == len(parts) else None,
        )
    batches = batches_of(observed, victim)
    shapes = {tuple(batch.inputs.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        listed = ", ".join(str(shape) for shape in sorted(shapes))
        raise BadInput(f"Expected samples of one shape in all batches, got {listed}.")
    number = victim.known.knowledge.num_samples
    inputs = torch.cat([batch.inputs for batch in batches])[:number]
    if len(inputs) < number:
        raise BadInput(f"Expected {number} samples of {victim.key}, got {len(inputs)}.")
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Samples(inputs, torch.cat(labels)[:number] if len(labels) == len(batches) else None)


def _labels(batch: Batch, known: Known) -> Tensor | None:
    return batch.targets if known.labels is None else batch.inputs.get(known.labels)


# ------------------------------------------------------------------------------ rung 1: messages


def told_numbers(observed: Observed, victims: Sequence[Victim]) -> Answer:
    """Whether messages tell each client's number of samples.

    Where none of the usual keys does, another metric may: whoever has read the app's code knows
    which. One that equals the number of all of several clients that differ counts as such.

    Args:
        observed: what the app's run has left.
        victims: the victims.
    """
    replies = {(row["round"], row["client"]): row
               for row in _replies(observed) if row["kind"] == "train"}  # fmt: skip
    numbers = {victim.key: victim.known.knowledge.num_samples for victim in victims}
    own = [replies.get((v.update.round, v.update.client), {}) for v in victims]
    told = [row.get("examples") for row in own]
    metrics = [row.get("metrics", {}) for row in own]
    names = sorted({name for row in replies.values() for name in row["metrics"]})
    key = ""
    if not any(told) and len(set(numbers.values())) > 1:
        same = [n for n in names if [m.get(n) for m in metrics] == list(numbers.values())]
        if same:
            key, told = same[0], [m[same[0]] for m in metrics]
    right, guessed = [], []
    for victim, number in zip(victims, told, strict=True):
        others = [n for name, n in numbers.items() if name != victim.key]
        right.append(float(number == numbers[victim.key]))
        mean = round(sum(others) / len(others)) if others else None
        guessed.append(float(mean == numbers[victim.key]))
    notes = [f"the metric {key} tells it"] if key else []
    if more := [name for name in names if name != key]:
        notes.append(f"replies tell {', '.join(more)} too")
    return Answer(
        rung=1, question="number of samples", measure="share of clients whose number is told",
        answer=Estimate.of(right), guess=Estimate.of(guessed), perfect=1.0, worst=0.0,
        gains=tuple(a - b for a, b in zip(right, guessed, strict=True)),
        threat_model="C" if key else "A", attack="reads messages", setting=setting_of(victims),
        note="; ".join(notes),
    )  # fmt: skip


def _replies(observed: Observed) -> Iterator[dict[str, Any]]:
    path = observed.folder / REPLIES
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        yield json.loads(line)


# ---------------------------------------------------------------------------- rung 2: properties


def touched_rows(
    observed: Observed, victims: Sequence[Victim], *, report: Report = lambda text: None
) -> Answer | None:
    """The set of tokens, items or users in each client's data, from the rows of an embedding.

    Args:
        observed: what the app's run has left; its truth is read after the attack.
        victims: the victims.
        report: told what is being done.

    Returns:
        The answer; None where the clients' inputs are no whole numbers.
    """
    if victims[0].whole is None:
        return None
    values, guesses, refused = [], [], []
    for victim in victims:
        report(f"rows of embeddings, {victim.key}")
        results, reason = _run(Rows(), victim, seed=0)
        if results is None or not results.rows:
            refused.append(reason)
            continue
        name, layer = _embedding_of(victim, results)
        found = set(results.rows[name].tolist())
        has = _tokens_of(observed, victim) - {layer.padding_idx}
        total = layer.num_embeddings
        values.append(2 * len(has & found) / (len(has) + len(found)))
        guesses.append(2 * len(has) / (len(has) + total))
    return Answer(
        rung=0 if victims[0].parts else 2, question="set of tokens",
        measure="F1 of the set, 0 to 1",
        answer=Estimate.of(values), guess=Estimate.of(guesses), perfect=1.0, worst=0.0,
        gains=tuple(a - b for a, b in zip(values, guesses, strict=True)), threat_model="C",
        attack="rows", setting=setting_of(victims), tried=bool(values),
        note=refused[0].rstrip(".") if refused else "the guess is the whole vocabulary",
    )  # fmt: skip


def _embedding_of(victim: Victim, results: Reconstruction) -> tuple[str, nn.Embedding]:
    """The embedding that takes the samples; others are those of positions or types."""
    uses, _ = embedding_uses(victim.known.knowledge)
    names = [use.name for use in uses if use.takes_samples and use.name in results.rows]
    name = names[0] if names else max(results.rows, key=lambda one: len(results.rows[one]))
    return name, cast(nn.Embedding, victim.known.knowledge.model.get_submodule(name))


def _tokens_of(observed: Observed, victim: Victim) -> set[int | None]:
    """The whole numbers in a victim's samples, without those that a mask leaves out."""
    if victim.parts:
        return set().union(*[_tokens_of(observed, part) for part in victim.parts])
    found: set[int | None] = set()
    for batch in batches_of(observed, victim):
        found |= set(batch.inputs.flatten().tolist())
    known = [item.relation for item in victim.known.others if item.relation is not None]
    return found - {one.padding for one in known if one.mask_of is not None}


# -------------------------------------------------------------------------------- rung 3: inputs


def inputs(
    observed: Observed,
    victims: Sequence[Victim],
    *,
    seconds: float,
    seed: int = 0,
    report: Report = lambda text: None,
    limit: float | None = None,
    done: Mapping[str, Score] | None = None,
    finished: Finished = lambda attacked: None,
    attack_all: AttackAll | None = None,
) -> tuple[Answer, list[Score]]:
    """What the attacks reconstruct of the inputs, victim by victim while there is time.

    Of several attacks' results the one that explains most of the update counts; the truth decides
    nothing.

    Args:
        observed: what the app's run has left; its truth is read after the attack.
        victims: the victims.
        seconds: time for all of them.
        seed: seed of the attacks.
        report: told what is being done.
        limit: seconds after which an attack that is still going on is ended. If None, ``seconds``.
        done: scores of updates that were attacked before, by key; they are not attacked again.
        finished: called with what was made of each update as soon as it is scored.
        attack_all: attacks the updates. If None, :func:`one_by_one`.

    Returns:
        The answer, and the score of each victim that was attacked.
    """
    if unknown := victims[0].known.unknown:
        return _several_inputs(victims, unknown), []
    scores = dict(done or {})
    notes: list[str] = []
    end = time.monotonic() + seconds
    latest = end if limit is None else time.monotonic() + limit
    truths = {victim.key: truth_of(observed, victim) for victim in victims}
    small = [v for v in victims if not why_too_many(v)]
    notes.extend(dict.fromkeys(why for v in victims if (why := why_too_many(v))))
    new = [victim for victim in small if victim.key not in scores]
    tried, needed = 0, list[float]()
    for victim, result in (attack_all or one_by_one)(new, end, latest, seed, report):
        tried += 1
        best, name = result.best, result.attack
        if result.needed:
            needed.append(result.needed)
        if best is None:
            notes.append(result.reason.rstrip("."))
            continue
        truth, facts = truths[victim.key], victim.known.knowledge
        # Of a sum there are no other clients: the guess is better than a server could make it.
        others = [victim] if victim.parts else [v for v in victims if v is not victim]
        guess = mean_guess([truths[other.key].inputs for other in others], truth)
        found = score(victim.key, name, truth, best, guess, facts)
        finished(Attacked(truth, best.inputs, guess, found))
        scores[victim.key] = found
    if needed:
        least, most = (f"{value:.0f}" for value in (min(needed), max(needed)))
        notes.append(f"it needs about {least}{f' to {most}' * (least != most)} s a client")
    if tried < len(new):
        notes.append(f"no time was left for {len(new) - tried} of {len(victims)}")
    given = [scores[victim.key] for victim in victims if victim.key in scores]
    return inputs_answer(victims, given, next(iter(truths.values())), notes), given


def why_too_many(victim: Victim) -> str:
    """Why an update's inputs are not searched for because of their number; empty if they are.

    Args:
        victim: the victim.
    """
    facts = victim.known.knowledge
    most = MOST_SAMPLES if victim.whole is not None else MOST_OF_ALL
    if facts.num_samples > most:
        return f"updates of more than {most} samples are not searched for inputs"
    if facts.num_samples <= MOST_SAMPLES or facts.steps == 1:
        return ""
    if (needed := matching_bytes(facts)) > MOST_BYTES:
        return (
            f"gradient matching of {facts.num_samples} samples in {facts.steps} steps needs "
            f"{'memory that is not known' if needed == math.inf else f'{needed / 2**30:.0f} GiB'}, "
            f"more than {MOST_BYTES / 2**30:.0f}"
        )
    return ""


def _several_inputs(victims: Sequence[Victim], unknown: Sequence[str]) -> Answer:
    """The answer where the model takes more data than one tensor; no attack here searches both."""
    nothing = Estimate.of([])
    return Answer(
        rung=0 if victims[0].parts else 3, question="inputs", measure="", answer=nothing,
        guess=nothing, gains=(), perfect=1.0, threat_model="C", attack="none",
        setting=setting_of(victims), tried=False,
        note=why_several(unknown),
    )  # fmt: skip


def why_several(unknown: Sequence[str]) -> str:
    """Why the inputs of a model are not searched that takes more than one of its own.

    Args:
        unknown: names of the inputs besides the samples that are not known.
    """
    return (
        f"the model takes {', '.join(unknown)} besides, which the server does not know, and no "
        "attack here reconstructs several inputs together"
    )


def one_by_one(
    victims: Sequence[Victim], end: float, latest: float, seed: int, report: Report
) -> Iterator[tuple[Victim, Found]]:
    """Attack updates in turn while there is time, which is divided over those that are left.

    Where a share is too short for gradient matching, the time is given to as many updates as it
    suffices for.

    Args:
        victims: the victims.
        end: when their time has passed, by ``time.monotonic``.
        latest: when an attack that is still going on is ended.
        seed: seed of the attacks.
        report: told what is being done.

    Yields:
        Victims and what :func:`best_result` has found.
    """
    queue = Queue(victims)
    while queue:
        left = end - time.monotonic()
        if left <= 0:
            return
        victim, share = queue.next(left)
        most = max(left, latest - time.monotonic())
        found = best_result(victim, share, seed, report, limit=most)
        if not queue.again(victim, found, end - time.monotonic()):
            yield victim, found


class Queue:
    """Updates that wait for an attack, and the time for each.

    Args:
        victims: the updates.
        workers: number of updates that are attacked at the same time.
    """

    def __init__(self, victims: Sequence[Victim], workers: int = 1) -> None:
        self._waiting, self._workers = list(victims), workers
        self._needed = 0.0
        self._returned = set[str]()

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, left: float) -> tuple[Victim, float]:
        """The next update, and the seconds for it.

        Args:
            left: seconds that are left for all.
        """
        share = left / math.ceil(len(self._waiting) / self._workers)
        if share < self._needed <= left:
            share = self._needed
        return self._waiting.pop(0), share

    def again(self, victim: Victim, found: Found, left: float) -> bool:
        """Whether an update waits once more, as it needs more than its share and may have it.

        Args:
            victim: the update.
            found: what was found in its share.
            left: seconds that are left for all.
        """
        needed = SPARE * found.needed
        # What a closed form has found counts, and is not put at risk for a search.
        if found.best is not None or not needed or needed > left or victim.key in self._returned:
            return False
        self._returned.add(victim.key)
        self._needed = max(self._needed, needed)
        self._waiting.append(victim)
        return True


def inputs_answer(
    victims: Sequence[Victim], scores: Sequence[Score], sample: Samples, notes: Sequence[str] = ()
) -> Answer:
    """The answer that follows from the scores of some victims.

    Args:
        victims: all of them.
        scores: of those that were attacked.
        sample: samples of any of them, for the measure.
        notes: what else must be said.
    """
    notes = list(notes)
    if victims[0].parts and scores:
        notes.append("the guess is the mean of all clients' samples")
    measure, perfect = measure_of(sample)
    values, guesses = [s.value for s in scores], [s.guess for s in scores]
    sign = 1 if perfect == 1.0 else -1
    unsupported = sum(not s.supported for s in scores)
    if unsupported:
        notes.append(
            f"{unsupported} of {len(scores)} results are not supported by the update, so nothing "
            "follows from those"
        )
    return Answer(
        rung=0 if victims[0].parts else 3, question="inputs", measure=measure,
        answer=Estimate.of(values), guess=Estimate.of(guesses), perfect=perfect,
        # What the update does not support is no success, even if it is near by chance.
        gains=tuple(
            gain if one.supported else min(0.0, gain)
            for one in scores
            for gain in [sign * (one.value - one.guess)]
        ),
        conclusive=not unsupported and len(scores) == len(victims),
        threat_model="C", attack=", ".join(dict.fromkeys(s.attack for s in scores)) or "none",
        setting=setting_of(victims), tried=bool(scores), note="; ".join(dict.fromkeys(notes)),
    )  # fmt: skip


def closed_forms(victim: Victim) -> list[Attack]:
    """The attacks in closed form on an update's inputs.

    Args:
        victim: the victim.
    """
    facts = victim.known.knowledge
    if victim.whole is not None:
        return []
    if facts.steps > 1 or facts.num_samples > 1:
        # Layer by layer they would hand over to a search of their own.
        exact: list[Attack] = [ExactBatch()] if facts.steps == 1 else []
        return [Analytic(), *exact]
    layers = ExactNRA(nra_iterations=1) if noise_slots(facts.model) else RGAP(nra_iterations=1)
    return [Analytic(), layers]


def matching(victim: Victim, seconds: float, seed: int) -> tuple[Attack | None, str, float]:
    """Gradient matching with as many iterations as fit into the time, or why it is left out.

    Args:
        victim: the victim.
        seconds: time for it.
        seed: seed of the attack.

    Returns:
        The attack or None, why it is left out, and the seconds that it needs if those are too few.
    """
    if victim.whole is not None:
        return _token_search(victim, seconds, seed)
    kind: Callable[..., Attack] = IGA
    if noise_slots(victim.known.knowledge.model):
        kind = NRA
    spans, end = list[float](), time.monotonic() + seconds
    for iterations in TRIAL:
        begun = time.monotonic()
        found, reason = _run(kind(iterations=iterations), victim, seed, end)
        spans.append(time.monotonic() - begun)
        if found is None and time.monotonic() < end:
            return None, reason, 0.0
        if found is None or spans[0] > CLEAR_SECONDS:
            break
    # Several trials tell what is done once from what each iteration takes.
    each = (
        spans[0] / TRIAL[0] if len(spans) == 1 or found is None
        else max(1e-6, (spans[1] - spans[0]) / (TRIAL[1] - TRIAL[0]))
    )  # fmt: skip
    fitting = int((PLANNED * seconds - sum(spans) - spans[0]) / each)
    if found is None or fitting < FEWEST_ITERATIONS:
        needed = (FEWEST_ITERATIONS * each + sum(spans) + spans[0]) / PLANNED
        return None, "gradient matching needs more time than the budget allows", needed
    return kind(iterations=min(fitting, MOST_ITERATIONS)), "", 0.0


def _token_search(victim: Victim, seconds: float, seed: int) -> tuple[Attack | None, str, float]:
    """The search for tokens with as much of both its steps as fits into the time."""
    spans, end = [], time.monotonic() + seconds
    for evaluations in (0, TRIED_EVALUATIONS):
        begun = time.monotonic()
        found, reason = _run(Tokens(iterations=1, evaluations=evaluations), victim, seed, end)
        if found is None:
            return None, reason, 0.0
        if evaluations and _explains(found) >= EXPLAINS_ALL:
            return Tokens(iterations=1, evaluations=evaluations), "", 0.0
        spans.append(time.monotonic() - begun)
    iteration = spans[0]  # at most, as it has what is done once
    each = max(1e-6, (spans[1] - spans[0]) / TRIED_EVALUATIONS)
    left = PLANNED * seconds - sum(spans)
    iterations = min(MOST_TOKEN_ITERATIONS, max(1, int(ITERATION_SHARE * left / iteration)))
    evaluations = int((left - iterations * iteration) / each)
    if evaluations < TRIED_EVALUATIONS:
        needed = (sum(spans) + iteration + TRIED_EVALUATIONS * each) / PLANNED
        return (
            None,
            "the search for tokens needs more time than the budget allows",
            needed,
        )
    return Tokens(iterations=iterations, evaluations=min(evaluations, MOST_EVALUATIONS)), "", 0.0


class _OutOfTime(BaseException):
    """The time for a victim has passed; code that catches every error does not catch it."""


def best_result(
    victim: Victim, seconds: float, seed: int, report: Report, limit: float = math.inf
) -> Found:
    """Run the attacks on an update in turn, until one explains it.

    Args:
        victim: the victim.
        seconds: time for all of them.
        seed: seed of the attacks.
        report: told what is being done.
        limit: seconds after which an attack that is still going on is ended; at most twice
            ``seconds``.

    Returns:
        The result that explains most of the update, if there is one.
    """
    begun = time.monotonic()
    end, latest = begun + seconds, begun + min(limit, OVERRUN * seconds)
    best: Reconstruction | None = None
    name, reason = "", ""

    def attempt(attack: Attack) -> None:
        nonlocal best, name, reason
        report(f"{attack.name} on {victim.key}")
        found, why = _run(attack, victim, seed, latest)
        reason = why or reason
        if found is not None and (best is None or _explains(found) > _explains(best)):
            best, name = found, attack.name

    for attack in closed_forms(victim):
        attempt(attack)
        if best is not None and _explains(best) >= EXPLAINS_ALL:
            return Found(best, name, reason)
    left, needed = end - time.monotonic(), 0.0
    facts = victim.known.knowledge
    if facts.num_samples > MOST_SAMPLES and facts.steps == 1:
        why = f"gradient matching of one step is not tried on more than {MOST_SAMPLES} samples"
        return Found(best, name, reason or why)
    if left > 0:
        chosen, why, needed = matching(victim, left, seed)
        reason = why or reason
        if chosen is not None:
            attempt(chosen)
    return Found(best, name, reason, needed)


def _explains(found: Reconstruction) -> float:
    return found.explained if found.explained == found.explained else -1.0


def _run(
    attack: Attack, victim: Victim, seed: int, end: float | None = None
) -> tuple[Reconstruction | None, str]:
    """One attack on one update: its result, or why there is none."""
    found: list[Reconstruction] = []

    def watch(progress: Progress) -> None:
        if end is not None and time.monotonic() > end:
            raise _OutOfTime

    update = victim.update.loaded()  # an error of reading within the limit may be the limit's
    # Not every attack reports its progress.
    limit = nullcontext() if end is None else time_limit(end - time.monotonic(), _OutOfTime)
    try:
        with limit:
            refused = attack_updates(
                attack, [update], lambda _: victim.known.knowledge,
                finished=lambda _, result: found.append(result), seed=seed, report=watch,
            )  # fmt: skip
    except _OutOfTime:
        return None, f"{attack.name} took more than its share of the time"
    if refused:
        return None, refused[0].reason
    return found[0], ""


def setting_of(victims: Sequence[Victim]) -> str:
    """Rounds, samples, steps and optimiser of victims, in a few words, for an answer.

    Args:
        victims: at least one.
    """
    rounds = sorted({victim.update.round for victim in victims})
    where = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
    return f"{where}; {victims[0].setting}; labels not known"


# -------------------------------------------------------------------- rungs 4 and 5: active servers


def active_servers(victims: Sequence[Victim]) -> list[Answer]:
    """The questions that need a server that changes what it sends; they are not tried.

    Args:
        victims: the victims, for the setting.
    """
    nothing = Estimate.of([])
    return [
        Answer(
            rung=rung, question="inputs", measure="", answer=nothing, guess=nothing, gains=(),
            perfect=1.0, threat_model="F", attack="none", setting=setting_of(victims), tried=False,
            note=f"it needs a server that {RUNGS[rung]}, and this one only listens: give "
            "`--malicious`",
        )
        for rung in (4, 5)
    ]  # fmt: skip
