"""The canary: a client whose data the audit owns. If it is not reconstructed, nothing is proven.

It trains one step on one sample, with the model, the modes, the loss and the optimiser that were
seen, from the weights that the server sent; the same attacks are run on its update as on the
clients'. And what was seen is tested against a client: the recorded batches, trained again by it,
must give the update that the client sent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.explained import NOT_SETTLED, simulated_update
from fedleak.audit.knowledge import RecordedLoss
from fedleak.audit.ladder import Report, Victim, best_result
from fedleak.audit.samples import Attacked
from fedleak.audit.truth_scores import Samples, measure_of, score
from fedleak.errors import BadInput, first_line, require
from fedleak.updates.knowledge import Knowledge, Protocol
from fedleak.updates.optimizer_steps import State, optimizer_step
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate

# From these values on, the canary counts as reconstructed: SSIM or share of tokens, relative error.
REACHED, WITHIN = 0.95, 0.05
# Squared cosine from which the recorded batches, trained again, give the client's update.
AGREES = 0.99


@dataclass(frozen=True)
class Canary:
    """Whether the audit's own client was reconstructed.

    Args:
        reconstructed: whether it was.
        note: how well, or why not.
        value: the measure of its sample; NaN if there is none.
        attacked: its sample and the reconstruction; None if there is none.
    """

    reconstructed: bool
    note: str
    value: float = math.nan
    attacked: Attacked | None = None


def make_sample(knowledge: Knowledge, whole: int | None, seed: int = 0) -> Tensor:
    """A made-up sample ``(1, ...)``: a smooth image, normal random numbers, or whole numbers.

    The image is a grid of 3 x 3 random colours, enlarged bicubically, so that what the attacks
    presume of images holds: neighbouring pixels are alike. They are not told more of it.

    Args:
        knowledge: gives shape and range.
        whole: of whole numbers, the number that they stay below; None of others.
        seed: its seed.
    """
    generator, shape = torch.Generator().manual_seed(seed), knowledge.input_shape
    if whole is not None:
        return torch.randint(whole, (1, *shape), generator=generator)
    if len(shape) != 3:
        return torch.randn(1, *shape, generator=generator)
    coarse = torch.rand(1, shape[0], 3, 3, generator=generator)
    image = functional.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1)
    low, high = knowledge.bounds
    return low + (high - low) * image


def run_canary(
    victim: Victim, *, seconds: float, seed: int = 0, report: Report = lambda text: None
) -> Canary:
    """Train and attack the canary.

    Args:
        victim: a client, whose model, weights, loss and optimiser the canary takes over.
        seconds: time for the attacks.
        seed: seed of its sample and of the attacks.
        report: told what is being done.
    """
    facts = victim.known.knowledge
    gradient = facts.protocol == "fedsgd"
    protocol: Protocol = "fedsgd" if gradient else "delta"
    alone = replace(
        facts.with_training(steps=1, epochs=None, batch_size=1), num_samples=1, labels=None,
        protocol=protocol,
    )  # fmt: skip
    sample = make_sample(alone, victim.whole, seed)
    try:
        labels = alone.dummy_labels(1).clone()
        change = _update(alone, victim.update, sample, labels)
        # The clients' messages hold no more of a training than this one's may.
        change = {name: value for name, value in change.items() if name in victim.update.received}
        require(bool(change), "Expected an update of weights that are trained, got none of them")
        update = replace(
            victim.update, protocol=protocol, num_examples=1, received=change, client=0, round=1
        )
        client = replace(
            victim, key="canary", update=update, known=replace(victim.known, knowledge=alone)
        )
        result = best_result(client, seconds, seed, report, limit=seconds)
    except BadInput as error:
        return Canary(False, f"the audit's own client could not be trained: {error}".rstrip("."))
    except Exception as error:  # of the app's own code
        return Canary(
            False, f"the audit's own client could not be trained: {first_line(error)}".rstrip(".")
        )
    if (found := result.best) is None:
        return Canary(
            False, f"the audit's own client was not reconstructed: {result.reason}".rstrip(".")
        )
    truth = Samples(sample, labels)
    guess = torch.zeros_like(sample)
    scored = score("canary", result.attack, truth, found, guess, alone)
    value = scored.value
    measure, perfect = measure_of(truth)
    reached = value >= REACHED if perfect == 1.0 else value <= WITHIN
    state = "was" if reached else "was not"
    doubts = [] if reached else [text for text in found.findings if text.startswith(NOT_SETTLED)]
    bar = f"at least {REACHED:g}" if perfect == 1.0 else f"at most {WITHIN:g}"
    reach = f"{measure}: {value:.3g}" + ("" if reached else f", where {bar} counts")
    note = f"the audit's own client {state} reconstructed by {result.attack} ({reach})"
    attacked = Attacked(truth, found.inputs, guess, scored)
    return Canary(reached, "; ".join([note, *doubts]), value, attacked)


def replay(victim: Victim, batches: Sequence[Samples]) -> float:
    """Squared cosine of a client's update and that of its recorded batches, trained again.

    It has the cosine's sign: an update in the opposite direction is another one.

    Args:
        victim: the client.
        batches: its batches in order; this is the scorer's test of what the recorder saw, and no
            attack's.

    Returns:
        -1 to 1; NaN if the batches cannot be trained again.
    """
    facts = victim.known.knowledge
    try:
        model, parameters = _client(facts, victim.update)
        state: State = {}
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for step, batch in enumerate(batches):
            inputs, labels = batch.inputs, batch.labels
            labels = facts.dummy_labels(len(inputs)) if labels is None else labels
            loss = facts.loss
            if batch.others and isinstance(loss, RecordedLoss):
                loss = replace(loss, given=batch.others)
            with torch.enable_grad():
                found = torch.autograd.grad(
                    loss(model, (inputs, labels)), list(parameters.values()),
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
            gradients = dict(zip(parameters, found, strict=True))
            if facts.protocol == "fedsgd":
                total = {n: value + gradients[n] for n, value in total.items()}
                continue
            weights = {name: value.detach() for name, value in parameters.items()}
            changes, state = optimizer_step(facts.local, weights, gradients, state, step)
            for name, value in parameters.items():
                value.data += changes[name]
        if facts.protocol == "fedsgd":
            received = victim.update.received
            return _signed_square((total[n], received[n]) for n in parameters if n in received)
        begin, received = victim.update.sent, victim.update.received
        return _signed_square(
            (value.detach() - begin[name], victim.update.change([name])[name])
            for name, value in parameters.items()
            if name in received
        )
    except Exception:  # of the app's own code
        return math.nan


def _signed_square(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The cosine of two vectors given in parts, squared, with its sign; NaN if one is 0."""
    product = one = two = 0.0
    for left, right in pairs:
        a, b = left.double().flatten(), right.double().flatten()
        product, one, two = product + float(a @ b), one + float(a @ a), two + float(b @ b)
    return product * abs(product) / (one * two) if one * two else math.nan


def _client(facts: Knowledge, update: InterceptedUpdate) -> tuple[nn.Module, dict[str, Tensor]]:
    """The client's model with the weights that were sent, and the parameters that it trains."""
    model = private_copy(facts.model)
    model.load_state_dict(update.sent, strict=False)
    if facts.training is not None:
        model.train(facts.training)
    return model, {
        name: value for name, value in model.named_parameters()
        if value.requires_grad and name in update.sent
    }  # fmt: skip


def _update(
    facts: Knowledge, update: InterceptedUpdate, inputs: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The change of weights by training on samples in their order."""
    model, parameters = _client(facts, update)
    with torch.enable_grad():
        return simulated_update(
            model, facts, (inputs, labels), {}, list(parameters), facts.protocol, {}
        )
