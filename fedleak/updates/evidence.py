"""What an update itself tells of how it was made, beside what the server was told.

Each test is of the update alone, or of the update against the model and the knowledge. It has a
finding only where an honest update that was made as told could not look so, up to rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.updates.blocks import blocks, row_blocks
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.loss_probe import CrossEntropyForm, LossProbe
from fedleak.updates.naming import joined
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate

# Tests of the distribution of a tensor's entries need some.
MANY = 256
# Share of the entries that must be alike.
NEARLY_ALL = 0.9
# Share of a first step's entries that are as large as can be, where none is larger; of at least so
# many.
GATHERED, FEW = 0.3, 16
# Optimisers whose first step is nearly the gradient's sign.
FIRST_STEPS = ("adam", "adamw", "rmsprop", "adagrad")
# Entries of large updates that are looked at first, and how much less of them may be alike.
SAMPLE, SAMPLED = 2**16, 0.1
# Largest relative difference of entries that are alike.
ALIKE = 0.02
# A row is parallel to the weights' row if 1 - cosine^2 is below this.
PARALLEL = 1e-4
# Rank: a singular value counts if it is this much larger than rounding can make it, and than this
# share of the matrix; of one input, if it is this much larger than rounding.
ABOVE_ROUNDING, SHARE, ABOVE_PRODUCT = 30.0, 1e-4, 5.0
# Rank of fewer samples: a singular value does not count if rounding alone may make it, as it makes
# some of up to half an eps of a product of two vectors. Those of random samples are this much
# larger.
NEAR_ROUNDING, CLEAR = 0.6, 30.0
# Larger layers are not examined for their rank.
LARGEST_RANK = 256
# Share by which a gradient may be larger than exact arithmetic allows, as of half precision.
LARGER = 0.02


@dataclass(frozen=True)
class Finding:
    """What a test found.

    Args:
        kind: a short name of the test, such as ``zero`` or ``frozen``.
        text: what was found and what it likely comes from, one sentence without a full stop.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Evidence:
    """What an update tells of its making.

    Args:
        findings: the findings; empty if nothing is amiss.
        left_out: parameters of which the update tells nothing: they did not come, did not move, or
            are not trained.
    """

    findings: tuple[Finding, ...] = ()
    left_out: frozenset[str] = frozenset()

    @property
    def is_zero(self) -> bool:
        """Whether nothing has moved."""
        return any(finding.kind == "zero" for finding in self.findings)


def check(model: nn.Module, update: InterceptedUpdate, knowledge: Knowledge) -> list[Finding]:
    """Check what a server knows of a client's training against the client's update.

    An attack does the same and puts the findings first among those of its reconstruction.

    Args:
        model: the architecture.
        update: the update.
        knowledge: what the server knows, or believes.

    Returns:
        What is amiss, each with its likely cause; empty if nothing is.

    Raises:
        BadInput: if the update does not fit the model.
    """
    knowledge = replace(knowledge, model=model, protocol=update.protocol)
    update = update.for_model(model)
    update.check(model)
    if knowledge.num_samples == 0:
        labels = knowledge.labels
        number = update.num_examples if labels is None else len(labels)
        knowledge = knowledge.of_samples(max(1, number))
    update, knowledge = update.as_mean(knowledge)
    return list(examine(update, knowledge).findings)


def examine(
    update: InterceptedUpdate, knowledge: Knowledge, loss: LossProbe | None = None
) -> Evidence:
    """Examine an update.

    Args:
        update: the update, by the model's names and checked against it.
        knowledge: what the server knows; its number of samples is at least 1.
        loss: the loss of the model with the sent weights. If None, it is made.
    """
    model = knowledge.model
    names = [name for name, _ in model.named_parameters()]
    received = {name: update.received[name] for name in names if name in update.received}
    moved = received if update.protocol == "fedsgd" else update.change(names)
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    trained = {name for name in names if flags[name] or not any(flags.values())}
    missing = [name for name in names if name not in received]
    still = [name for name, value in moved.items() if not bool(value.any())]
    if len(still) == len(moved):
        text = _ZERO_GRADIENT if update.protocol == "fedsgd" else _ZERO
        return Evidence((Finding("zero", text),), frozenset(names))
    left_out = {*missing, *still, *(set(names) - trained)}
    findings: list[Finding] = []
    _tell(findings, "missing", missing, "did not come and {are} left out")
    _tell(
        findings, "frozen", [name for name in still if name in trained],
        "did not move and {are} left out: frozen, unused, the client's own, or of inputs of 0",
    )  # fmt: skip
    strangers = [n for n, value in moved.items() if n not in trained and bool(value.any())]
    _tell(findings, "thawed", strangers, "moved although the model does not train {them}")
    live = {name: value for name, value in moved.items() if name not in left_out}
    if not live:
        return Evidence(tuple(findings), frozenset(left_out))
    findings += _about_protocol(update, knowledge, received, live)
    findings += _about_entries(update, knowledge, received, live)
    if update.protocol != "fedsgd":
        findings += _about_first_step(update, knowledge, live)
        findings += _about_decay(update, knowledge, live)
    if loss is None and _is_gradient(update, knowledge):
        loss = LossProbe(_sent_model(update, knowledge), knowledge)
    findings += _about_bias(update, knowledge, live, loss)
    if not findings or {finding.kind for finding in findings} <= {"frozen", "missing"}:
        findings += _about_rank(update, knowledge, live)
        findings += _about_fewer_samples(update, knowledge, live, loss)
    return Evidence(tuple(findings), frozenset(left_out))


_REVERSED = (
    "; with its sign reversed it fits what was told: a negated gradient, old minus new weights, or "
    "a loss that is maximised"
)
_ZERO = (
    "what came back is what was sent: nothing was trained, the update is of other weights, or the "
    "sent weights were not copied before the training"
)
_ZERO_GRADIENT = (
    "the gradient is 0: the loss is saturated (so near its minimum that its gradient rounds to 0), "
    "it does not depend on the parameters, or the gradient was cleared before it was read"
)


def _tell(findings: list[Finding], kind: str, names: list[str], text: str) -> None:
    if not names:
        return
    shown = ", ".join(f"`{name}`" for name in names[:3])
    more = f" and {len(names) - 3} more parameters" if len(names) > 3 else ""
    words = {"are": "is", "them": "it"} if len(names) == 1 else {"are": "are", "them": "them"}
    findings.append(Finding(kind, f"{shown}{more} {text.format(**words)}"))


def _about_protocol(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    received: Mapping[str, Tensor],
    live: Tensors,
) -> Iterator[Finding]:
    """Weights, their difference and a gradient taken for each other."""
    names = list(live)
    inner = got = sent = 0.0
    for name in names:
        for one, other in blocks(received[name], update.sent[name]):
            inner += float(one @ other)
            got += float(one @ one)
            sent += float(other @ other)
    size, norm = got**0.5, sent**0.5
    if not size or not norm:
        return
    cosine = inner / (size * norm)
    if update.protocol == "fedavg":
        # Weights that were trained for a while stay near those they began with.
        if abs(cosine) < 0.5 and size < 0.5 * norm:
            yield Finding(
                "protocol",
                f"the returned weights are not near those sent (norm {size:.2g} against "
                f"{norm:.2g}, cosine {cosine:.2f}): they look like a gradient or a change of "
                "weights; protocol fedsgd or delta",
            )
        elif knowledge.local.optimizer == "sgd" and (cosine < 0.5 or size > 3 * norm):
            # A first step of RMSprop moves every weight by ten times the learning rate.
            yield Finding(
                "protocol",
                f"the returned weights are not near those sent (norm {size:.2g} against "
                f"{norm:.2g}, cosine {cosine:.2f}): another model or round, a training that "
                "diverged, or no weights",
            )
    elif cosine > 0.9 and 0.3 < size / norm < 3:
        what = "a gradient" if update.protocol == "fedsgd" else "a change of weights"
        yield Finding(
            "protocol",
            f"what should be {what} is near the weights that were sent (cosine {cosine:.3f}): "
            "they look like returned weights; protocol fedavg",
        )


def _about_entries(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    received: Mapping[str, Tensor],
    live: Tensors,
) -> Iterator[Finding]:
    """Signs, a first step of Adam, quantisation, sparsity, half precision."""
    got = [received[name] for name in live]
    entries = sum(value.numel() for value in got)
    nonzero = sum(int(value.count_nonzero()) for value in live.values())
    share = 1 - nonzero / entries
    # The first steps of Adam are alike, so that their rounded differences take few values, and
    # those of several clients cancel each other.
    steps_alike = update.protocol != "fedsgd" and knowledge.local.optimizer != "sgd"
    cancelling = steps_alike and knowledge.number_of_clients > 1
    if nonzero >= MANY and not cancelling:
        yield from _about_sizes(update, knowledge, live)
    steps_alike &= update.protocol == "delta"
    if entries >= MANY and _all_kept(got, torch.round) and _could_be_fractions(got) >= MANY:
        yield Finding("integers", "all numbers are whole: quantised, without the scale to undo it")
    elif (levels := _levels({name: received[name] for name in live}, steps_alike)) is not None:
        yield Finding(
            "levels", f"the numbers of a tensor take only {levels} values: quantised by the client"
        )
    if entries >= MANY and share > 0.5 and not cancelling and not _whole_rows(live):
        yield Finding(
            "sparse",
            f"{share:.0%} of the entries are 0, singly and not by rows: pruned or sparsified by "
            "the client",
        )
    many = sum(int(value.count_nonzero()) for value in got) >= MANY
    for kind, title in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        told = any(value.dtype == kind for value in got)
        if told or (many and _all_kept(got, partial(_rounded_to, kind))):
            yield Finding(
                "precision",
                f"the numbers are rounded to {title}: small gradients are lost, and what follows "
                "from them is inexact",
            )
            return


def _could_be_fractions(values: Iterable[Tensor]) -> int:
    """Number of entries, not 0, that are so small that their type has fractions of that size."""
    return sum(
        int(((part != 0) & (part.abs() < 1 / torch.finfo(value.dtype).eps)).sum())
        for value in values
        for (part,) in blocks(value)
    )


def _all_kept(values: Iterable[Tensor], change: Callable[[Tensor], Tensor]) -> bool:
    """Whether a change leaves every number of some tensors as it is, in float64."""
    return all(torch.equal(change(part), part) for value in values for (part,) in blocks(value))


def _rounded_to(kind: torch.dtype, values: Tensor) -> Tensor:
    return values.to(kind).double()


def _about_sizes(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors
) -> Iterator[Finding]:
    # Sizes that are alike are so in a sample.
    sample = _nonzero(torch.cat(_sample(live)))
    if len(sample) >= MANY and _alike_sizes(sample)[1] < NEARLY_ALL - SAMPLED:
        return
    whole = _nonzero(torch.cat([value.flatten() for value in live.values()]))
    typical, alike = _alike_sizes(whole)
    if alike < NEARLY_ALL:
        return
    local = knowledge.local
    if update.protocol == "fedsgd":
        yield Finding(
            "signs",
            f"{alike:.0%} of the entries are plus or minus one number ({typical:.2g}): signs "
            "instead of a gradient, or an optimiser's step",
        )
        return
    if local.optimizer not in FIRST_STEPS:
        told = "" if local.optimizer == "unknown" else f", where {local.optimizer} was told"
        yield Finding(
            "adam",
            f"{alike:.0%} of the weights moved by plus or minus {typical:.2g}, as in a first step "
            f"of Adam with that learning rate{told}",
        )


def _alike_sizes(values: Tensor) -> tuple[float, float]:
    """The median size of some numbers, and the share of those of that size."""
    sizes = values.double().abs()
    typical = float(sizes.median())
    return typical, float(((sizes - typical).abs() <= ALIKE * typical).double().mean())


def _sample(live: Tensors) -> list[Tensor]:
    """Random entries of large tensors, of each in proportion to its size; all of small ones."""
    generator = torch.Generator().manual_seed(0)
    share = SAMPLE / sum(value.numel() for value in live.values())
    found = []
    for value in live.values():
        flat, number = value.flatten(), math.ceil(share * value.numel())
        if share < 1:
            flat = flat[torch.randint(len(flat), (number,), generator=generator)]
        found.append(flat)
    return found


def _about_first_step(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors
) -> Iterator[Finding]:
    """A first step of Adam and its kin moves no weight by more than one number, and most by it."""
    local = knowledge.local
    if local.optimizer not in FIRST_STEPS or knowledge.steps > 1 or not local.learning_rate:
        return
    most = {name: _largest_first_step(own) for name, own in local.groups(live).items()}
    if not all(0 < each < math.inf for each in most.values()):
        return
    highest = over = error = 0.0
    for ratios, errors in _first_steps(update, knowledge, live, most):
        highest = max(highest, float(ratios.max()))
        over = max(over, float((ratios - errors).max()))
        error = max(error, float(errors.max()))
    # That is where the entries gather whose gradient is far above eps.
    entries = sum(value.numel() for value in live.values())
    under = highest < 1 - 2 * ALIKE - error and entries >= FEW
    if under:
        gathered = sum(
            int(((ratios - highest).abs() <= ALIKE * highest).count_nonzero())
            for ratios, _ in _first_steps(update, knowledge, live, most)
        )
        under = gathered / entries > GATHERED
    if over > 1 + LARGER or under:
        yield Finding(
            "rate",
            f"the weights moved by up to {highest:.2g} times what a first step of "
            f"{local.optimizer} moves them by at most: learning rate, optimiser or weight decay "
            "are not those told, or there were more steps",
        )


def _largest_first_step(own: LocalTraining) -> float:
    """What a first step of Adam and its kin moves a weight by at most."""
    limit = 1.0
    if own.optimizer == "rmsprop":
        share = (1 - own.alpha) * (own.alpha if own.centered else 1.0)
        limit = share**-0.5 if share else math.inf
    return own.rate_at(0) * limit


def _first_steps(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors, most: Mapping[str, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The entries of a first step over the largest possible one, and their errors by rounding."""
    for name, own in knowledge.local.groups(live).items():
        kept = torch.finfo(update.sent[name].dtype).eps
        decay = own.rate_at(0) * own.weight_decay if own.optimizer == "adamw" else 0.0
        for old, moved in blocks(update.sent[name], live[name]):
            size = (moved + decay * old).abs()
            yield size / most[name], kept * (2 * old.abs() + size) / most[name]


def _levels(received: Tensors, steps_alike: bool) -> int | None:
    """Number of values of a tensor's entries, of a large tensor with very few."""
    for value in () if steps_alike else received.values():
        flat = value.flatten()
        if len(flat) < 4 * MANY:
            continue
        part = _nonzero(flat[:: max(1, len(flat) // (8 * MANY))])
        if len(part) < 4 * MANY:
            part = _nonzero(flat)
        if len(part) < 4 * MANY:
            continue
        part = part[:: len(part) // (4 * MANY)][: 4 * MANY]
        # Signs are told elsewhere.
        if len(part.abs().unique()) > 1 and len(part.unique()) <= MANY // 4:
            return len(_nonzero(flat).unique())
    return None


def _nonzero(values: Tensor) -> Tensor:
    return values[values != 0]


def _whole_rows(live: Tensors) -> bool:
    """Whether entries of 0 come in whole rows or columns, as of unused tokens or inactive units."""
    for value in live.values():
        if value.dim() < 2:
            continue
        matrix = value.flatten(1) != 0
        inner = matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]
        if inner.numel() >= MANY and float(inner.double().mean()) < 0.5:
            return False
    return True


def _about_decay(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors
) -> Iterator[Finding]:
    """Rows that moved by a common factor alone: those without a gradient, by weight decay."""
    found: list[tuple[str, float]] = []
    for name, value in live.items():
        if value.dim() < 2 or knowledge.local.of(name).weight_decay:
            continue
        old, new = update.sent[name].flatten(1), value.flatten(1)
        if old.shape[1] < 8:
            continue
        sums = [
            torch.stack([a.square().sum(1), b.square().sum(1), (a * b).sum(1)])
            for a, b in row_blocks(old, new)
        ]
        before, after, inner = torch.cat(sums, dim=1)
        # Rounding of the weights is noise in a small change.
        noise = torch.finfo(update.sent[name].dtype).eps ** 2 * before
        clear = after > 1e4 * noise
        off = 1 - inner.square() / (before * after).clamp_min(1e-300)
        rows = clear & (off < PARALLEL) & (before > 0)
        if bool(rows.any()):
            factors = inner[rows] / before[rows]
            middle = float(factors.median())
            same = (factors / middle - 1).abs() < ALIKE if middle else factors == 0
            if middle < 0 and float(same.double().mean()) > NEARLY_ALL:
                found.append((name, -middle))
    if found:
        name, factor = found[0]
        rate = knowledge.learning_rate
        decay = f", that is a decay of {factor / (rate * knowledge.mean_steps):.2g}" if rate else ""
        yield Finding(
            "decay",
            f"rows of `{name}` shrank by {factor:.2g} of themselves alone: weight decay{decay}, "
            "which was not told",
        )


def _is_gradient(update: InterceptedUpdate, knowledge: Knowledge) -> bool:
    """Whether the gradient follows from the update, up to a mean over the steps."""
    local = knowledge.local
    return update.protocol == "fedsgd" or bool(local.is_linear and local.learning_rate)


def _about_bias(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors, loss: LossProbe | None
) -> Iterator[Finding]:
    """The gradient of the classifier's bias, whose size a cross entropy limits."""
    local = knowledge.local
    weights = update.protocol != "fedsgd"
    if loss is None or loss.layer is None or not _is_gradient(update, knowledge):
        return
    name = joined(loss.layer, "bias")
    if loss.kind not in ("classes", "binary") or name not in live or not loss.bias_is_alone:
        return
    gradient = _gradient(update, knowledge, name).double().cpu()
    rounding = 30 * torch.finfo(update.received[name].dtype).eps
    noise = rounding * float(gradient.abs().max())
    if weights:
        kept = torch.finfo(update.sent[name].dtype).eps
        largest = float((update.sent[name].double().abs() + live[name].double().abs()).max())
        noise += 30 * kept * largest / (local.of(name).rate * knowledge.mean_steps)
    form = loss.cross_entropy
    limit = loss.binary_limit if form is None else form.limit
    if limit is None:
        return
    # Of confident predictions p - y is a difference of nearly equal numbers.
    noise += rounding * limit
    size = float(gradient.abs().max() if form is None else gradient.clamp_min(0).sum())
    if size > (1 + LARGER) * limit + noise * len(gradient):
        yield Finding(
            "rate",
            f"the gradient of `{name}` is {size / limit:.2g} times as large as the loss allows: "
            "learning rate, steps or loss are not those told, or the client scales what it sends",
        )
        return
    if form is None or not form.is_even:
        return
    rest = abs(float(gradient.sum()))
    if rest > LARGER * float(gradient.abs().sum()) + noise * len(gradient):
        yield Finding(
            "loss",
            f"the gradient of `{name}` does not sum to 0 as that of a cross entropy: another loss, "
            "weight decay, or noise or pruning by the client",
        )
        return
    yield from _about_counts(knowledge, name, gradient, form, noise)


def _about_counts(
    knowledge: Knowledge, name: str, gradient: Tensor, form: CrossEntropyForm, noise: float
) -> Iterator[Finding]:
    """Numbers of labels: an entry is at least minus the share of its label in the samples."""
    samples, steps = knowledge.num_samples, knowledge.steps
    sizes = {len(range(samples)[part]) for part in knowledge.local_batches}
    clients = knowledge.by_client
    one_by_one = steps == 1 or (
        knowledge.local.is_plain_sgd
        and len(sizes) == 1
        and all(client.steps % len(client.batches) == 0 for client in clients)
        and (knowledge.batch_size is not None or max(knowledge.client_samples) == 1)
    )
    # Samples of clients that have more of them may count less.
    alike = len(set(knowledge.client_samples)) == 1
    if not one_by_one or not alike or form.is_smoothed:
        return
    shares = -gradient / form.step

    def at_least(shares: Tensor) -> Tensor:
        return (samples * ((1 - LARGER) * shares - noise) - LARGER).ceil().clamp_min(0)

    certain = at_least(shares)
    least = int(certain.sum())
    if least > samples:
        reversed_fits = int(at_least(-shares).sum()) <= samples
        yield Finding(
            "counts",
            f"the gradient of `{name}` takes at least {least} samples, where {samples} "
            f"{'is' if samples == 1 else 'are'} told: more samples, another learning rate, other "
            "steps, or noise that the client added" + _REVERSED * reversed_fits,
        )
        return
    labels = knowledge.labels
    if labels is not None and labels.dim() == 1 and bool((labels >= 0).all()):
        told = torch.bincount(labels.cpu().long(), minlength=len(gradient))
        wrong = (certain > told[: len(gradient)]).nonzero().flatten().tolist()
        if wrong:
            yield Finding(
                "labels",
                f"the gradient of `{name}` takes at least {int(certain[wrong[0]])} of label "
                f"{wrong[0]}, where {int(told[wrong[0]])} are told: other labels or loss, or noise "
                "that the client added",
            )


def _gradient(update: InterceptedUpdate, knowledge: Knowledge, name: str) -> Tensor:
    """The client's gradient of one parameter."""
    alone = replace(update, received={name: update.received[name]})
    return alone.gradient(knowledge.model, knowledge)[name]


def _sent_model(update: InterceptedUpdate, knowledge: Knowledge) -> nn.Module:
    model = private_copy(knowledge.model).cpu()
    model.load_state_dict(update.sent)
    return model if knowledge.training is None else model.train(knowledge.training)


def _about_rank(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors
) -> Iterator[Finding]:
    """A linear layer's gradient has at most as many independent rows as it has seen inputs."""
    local, samples = knowledge.local, knowledge.num_samples
    if update.protocol != "fedsgd" and not (local.is_linear and not local.per_parameter):
        return
    epochs = max(math.ceil(client.steps / len(client.batches)) for client in knowledge.by_client)
    if update.protocol == "fedsgd":
        epochs = 1
    weights = {
        joined(name, "weight"): name for name, module in knowledge.model.named_modules()
        if type(module) is nn.Linear
    }  # fmt: skip
    wide = [n for n in weights if n in live and 2 * samples * epochs < min(live[n].shape)]
    rows = rows_of_linear_layers(knowledge) if wide else {}
    for weight in wide:
        limit = rows.get(weights[weight], 0) * epochs
        if not 0 < 2 * limit < min(live[weight].shape) or limit > LARGEST_RANK:
            continue
        gradient = _gradient(update, knowledge, weight)
        kept = torch.finfo(gradient.dtype).eps
        matrix = gradient.double()
        noise = kept * float(matrix.norm())
        if update.protocol != "fedsgd":
            noise += (
                kept
                * float(update.sent[weight].double().norm())
                / (local.rate * knowledge.mean_steps)
            )
            if knowledge.steps > 1:
                # The decay that is subtracted is that at the mean of the first and last weights.
                noise += local.weight_decay * float(live[weight].norm())
        found = _next_singular_value(matrix, limit)
        # The rows of a product of two vectors are rounded, and no sum whose terms may cancel.
        times, share = (ABOVE_ROUNDING, SHARE) if limit > 1 else (ABOVE_PRODUCT, 0.0)
        if found > times * noise and found > share * float(matrix.norm()):
            steps = f" and {knowledge.steps} local steps" if knowledge.steps > 1 else ""
            verb = "is" if samples == 1 and not steps else "are"
            yield Finding(
                "rank",
                f"the gradient of `{weight}` is of more than {limit} inputs of that layer, where "
                f"{samples} sample{'s' * (samples > 1)}{steps} {verb} told: more samples or steps, "
                "weight decay, or noise that the client added",
            )
            return


def _about_fewer_samples(
    update: InterceptedUpdate, knowledge: Knowledge, live: Tensors, loss: LossProbe | None
) -> Iterator[Finding]:
    """The last layer's gradient in one step has as many independent rows as there are samples."""
    local, samples = knowledge.local, knowledge.num_samples
    of_steps = update.protocol != "fedsgd"
    if loss is None or loss.layer is None or not 2 <= samples <= LARGEST_RANK:
        return
    one = all(client.steps == len(client.batches) == 1 for client in knowledge.by_client)
    if of_steps and not (one and _is_gradient(update, knowledge) and not local.per_parameter):
        return
    name = joined(loss.layer, "weight")
    if name not in live or live[name].dim() != 2:
        return
    rows, columns = live[name].shape
    # The rows of a cross entropy's gradient add up to 0.
    if samples > min(rows - 1, columns):
        return
    gradient = _gradient(update, knowledge, name)
    kept, matrix = torch.finfo(gradient.dtype).eps, gradient.double().cpu()
    noise = kept * float(matrix.norm())
    if of_steps:
        # What the weights are rounded by is random, of which this is the largest singular value.
        typical = float(update.sent[name].double().square().mean()) ** 0.5
        noise += kept * typical * (rows**0.5 + columns**0.5) / (local.of(name).rate)
    values = _singular_values(matrix, samples)
    limit = NEAR_ROUNDING * noise
    rank = int((values > limit).sum())
    if not 1 <= rank < samples:
        return
    random = _rank_of_random_samples(knowledge, loss, CLEAR * limit / float(matrix.norm()))
    if random < samples:
        return
    yield Finding(
        "fewer",
        f"the gradient of `{name}` has rank {rank}, as of {rank} sample{'s' * (rank > 1)}, where "
        f"{samples} were told: fewer samples, equal ones, or ones that leave less than rounding, "
        "as those of one label may",
    )


def _rank_of_random_samples(knowledge: Knowledge, loss: LossProbe, share: float) -> int:
    """Rank of the last layer's gradient of as many random samples as were told.

    Singular values below ``share`` of the matrix do not count. 0 if the model fails on them.
    """
    number = knowledge.num_samples
    labels = knowledge.labels
    if labels is None:
        labels = loss.labels(number)
        generator = torch.Generator().manual_seed(0)
        if loss.kind == "classes":
            labels = torch.arange(number) % max(1, knowledge.num_classes or loss.outputs)
        elif loss.kind == "binary":
            labels = torch.randint(2, labels.shape, generator=generator).to(labels)
        elif labels.is_floating_point():
            labels = torch.randn(labels.shape, generator=generator).to(labels)
    try:
        matrix = loss.weight_gradient(loss.dummies(number)[:number], labels).double().cpu()
    except Exception:  # a user's own model may raise anything; the attack itself tells it
        return 0
    values = _singular_values(matrix, number)
    return int((values > share * float(matrix.norm())).sum())


def _next_singular_value(matrix: Tensor, rank: int) -> float:
    """An estimate, from below, of the singular value of a matrix after the first ``rank``."""
    values = _singular_values(matrix, rank)
    return float(values[rank]) if rank < len(values) else 0.0


def _singular_values(matrix: Tensor, rank: int) -> Tensor:
    """Estimates, from below, of a matrix's first singular values, a few more than ``rank``."""
    generator = torch.Generator().manual_seed(0)
    test = torch.randn(matrix.shape[1], rank + 8, generator=generator, dtype=matrix.dtype)
    basis, _ = torch.linalg.qr(matrix @ test)
    values: Tensor = torch.linalg.svdvals(basis.T @ matrix)
    return values


def rows_of_linear_layers(knowledge: Knowledge) -> dict[str, int]:
    """Number of inputs that each linear layer sees in a forward pass of all samples.

    Layers on whose weight the loss depends in another way than by the layer's output are left out:
    their gradient is not that of the inputs alone, as with a penalty on the weights or a weight
    that an embedding has too. Empty if the model fails on such inputs.

    Args:
        knowledge: gives model, loss, and number and shape of the samples.
    """
    model = private_copy(knowledge.model).cpu().requires_grad_(False)
    like = next(model.parameters())
    counts: dict[str, int] = {}
    weights: dict[str, Tensor] = {}
    handles = []

    def hook(name: str) -> Callable[..., Tensor]:
        def count(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(first, Tensor):
                counts[name] = counts.get(name, 0) + first.numel() // max(1, first.shape[-1])
            return output.detach()

        return count

    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            weights[name] = module.weight.requires_grad_()
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    samples = knowledge.num_samples
    inputs = torch.zeros(samples, *knowledge.input_shape, dtype=like.dtype)
    labels = knowledge.dummy_labels(samples).cpu()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            loss = knowledge.loss(model, (inputs, labels))
            found: tuple[Tensor | None, ...] = (None,) * len(weights)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    except Exception:  # a user's own model may raise anything; the attack itself tells it
        return {}
    finally:
        for handle in handles:
            handle.remove()
    alone = {
        name for name, value in zip(weights, found, strict=True)
        if value is None or not bool(value.any())
    }  # fmt: skip
    return {name: number for name, number in counts.items() if name in alone}
