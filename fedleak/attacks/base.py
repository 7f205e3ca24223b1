"""The interface of an attack: a final public call around the method ``run`` of a plugin."""

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn

from fedleak.attacks.combined import TOGETHER, as_one_client, is_gradient_of_all
from fedleak.attacks.embeddings import no_numbers
from fedleak.attacks.explained import SUPPORTED_FROM, explained_share
from fedleak.attacks.private_model import (
    Loaded,
    guarded,
    loaded_model,
    mixed_modes,
    noise_shapes,
    twice_differentiable,
)
from fedleak.attacks.told_defense import told_defense
from fedleak.errors import BadInput, require
from fedleak.models.noise import noise_slots
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.entries import Entries
from fedleak.updates.evidence import examine
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe, in_own_precision
from fedleak.updates.update import InterceptedUpdate

# Clients of a simulation are seeded from seed, round and client as well: without this salt, an
# attack would draw the same random numbers as its victim.
SALT = 0x5A17


@dataclass(frozen=True, repr=False)
class Problem:
    """One update, prepared for an attack.

    Args:
        model: a private copy of the model with the weights that the server sent, in the client's
            mode (train or eval), its parameters not requiring gradients.
        gradient: a copy of the client's gradient by parameter name; for several local steps their
            mean gradient.
        knowledge: see :class:`fedleak.updates.knowledge.Knowledge`.
        generator: random generator of the attack, seeded from the run's seed, round and client.
        noise_shapes: noise slot -> shape of what it draws in a forward pass of the batch.
        name: the update's key, for messages.
        buffers: what the client returned besides its parameters' gradients or weights, such as
            batch-norm statistics; empty if nothing.
        notes: what was found while it was made ready; they come first among the findings.
        factors: name of a weight -> its gradient in ``gradient``, and the two vectors ``(out,)``
            and ``(in,)`` whose outer product it is, where the client sent those.
        left_out: parameters of which the update tells nothing, as they did not come, did not move
            or are not trained; their gradient in ``gradient`` is 0 and must not be compared.
        deviation: of an inverted step of Adam and its kin, a bound on the error of each entry of
            ``gradient``, see :class:`fedleak.updates.gradient_estimate.GradientEstimate`.
        change: of weights, the change of each parameter, new minus old, in float64.
        loss: what the loss does with labels; of the problem that an attack is given it is known.
        entries: of a gradient that a told defence has changed, what is known of its entries, by
            parameter name; parameters that are missing came as they were. ``gradient`` then has
            the estimate of each entry.
    """

    model: nn.Module
    gradient: Tensors
    knowledge: Knowledge
    generator: torch.Generator
    noise_shapes: dict[str, tuple[int, ...]]
    name: str = "update"
    buffers: Tensors = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    factors: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    deviation: Tensors = field(default_factory=dict)
    change: Tensors = field(default_factory=dict)
    loss: LossProbe | None = None
    entries: dict[str, Entries] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Problem {self.name} of {type(self.model).__name__}, inputs {self.batch_shape}>"

    def known(self, name: str) -> Tensor | None:
        """Where a parameter's gradient is known, if a told defence left out or bounded entries.

        Args:
            name: the parameter's name.

        Returns:
            True at the entries that are exact or known up to an error. None if all are.
        """
        measured = self.entries[name].measured if name in self.entries else None
        return None if measured is None or bool(measured.all()) else measured

    @property
    def has_bounds(self) -> bool:
        """Whether a told defence left out entries of the gradient, or bounds them."""
        return any(
            bool((one.lowest.isfinite() | one.highest.isfinite() | ~one.measured).any())
            for one in self.entries.values()
        )

    @property
    def entries_known(self) -> int:
        """Number of the gradient's entries other than 0 that a told defence left known."""
        found = 0
        for name in self.gradient.keys() - self.left_out:
            told, known = self.gradient[name] != 0, self.known(name)
            found += int((told if known is None else told & known).sum())
        return found

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the inputs to reconstruct, ``(num_samples, *input_shape)``."""
        return (self.knowledge.num_samples, *self.knowledge.input_shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """A standard normal tensor from the problem's generator.

        Args:
            shape: its shape.
        """
        like = next(iter(self.gradient.values()))
        return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def noise(self, slot: str, shape: Sequence[int]) -> Tensor:
        """Noise from a slot's own distribution, drawn from the problem's generator.

        Args:
            slot: the slot's path, one of ``noise_shapes``.
            shape: shape of the noise.
        """
        like = next(iter(self.gradient.values()))
        empty = torch.empty(*shape, dtype=like.dtype, device=like.device)
        return noise_slots(self.model)[slot].draw(empty, self._device_generator)

    @cached_property
    def _device_generator(self) -> torch.Generator:
        """A generator on the attack's device, so that drawing needs no copy from the CPU."""
        device = next(iter(self.gradient.values())).device
        if device.type == "cpu":
            return self.generator
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """What an attack made of one update.

    Args:
        inputs: reconstructed inputs, normalised, ``(num_samples, ...)``.
        labels: the labels it used or recovered, ``(num_samples, ...)`` as the loss takes them.
        noise: noise slot -> restored noise ``(num_samples, ...)``, of local epochs that were
            simulated ``(num_samples, epochs, ...)``; empty where none is restored.
        costs: the course of the cost, as pairs of iteration and cost.
        iterations: number of iterations done.
        seconds: time that it took; of updates attacked together, each one's share.
        findings: what it found on the way and why it went that way, a sentence each.
        explained: share of the client's update that it explains, 0 to 1, see
            :func:`fedleak.attacks.explained.explained_share`; NaN if it cannot be computed. The
            caller of the plugin sets it.
        rows: path of an embedding -> numbers of its rows that the samples touched, ascending;
            empty where they were not read.
        error_bounds: bound on the Euclidean norm of each input's error, ``(num_samples,)``, of an
            attack that certifies samples; infinite of one that is a guess. If None, it does not. A
            bound of 0 holds on the condition that the sample is an 8-bit image, for which it is
            taken as all its pixels lie near levels; a finding says what it is otherwise.
    """

    inputs: Tensor
    labels: Tensor
    noise: Tensors = field(default_factory=dict)
    costs: list[tuple[int, float]] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    explained: float = math.nan
    rows: Tensors = field(default_factory=dict)
    error_bounds: Tensor | None = None

    @property
    def supported(self) -> bool:
        """Whether the update supports it, or cannot tell; if not, nothing follows from it."""
        return not self.explained < SUPPORTED_FROM

    @property
    def cost(self) -> float:
        """The cost of the reconstruction, with which its course ends; NaN if there is none."""
        return self.costs[-1][1] if self.costs else float("nan")

    def __repr__(self) -> str:
        # One line, whatever the samples are: a notebook shows it for every cell that ends in one.
        number, shape = len(self.inputs), tuple(self.inputs.shape[1:])
        text = (
            f"{number} sample{'s' * (number != 1)} of shape {shape}, labels {self.labels.tolist()}"
        )
        text += "" if math.isnan(self.cost) else f", cost {self.cost:.1e}"
        text += "" if math.isnan(self.explained) else f", explains {self.explained:.1%}"
        last = f": {self.findings[-1]}" if self.findings else ""
        return f"<{type(self).__name__} of {text}, {self.seconds:.2f} s{last}>"


@dataclass(frozen=True)
class Progress:
    """Progress of an attack on the updates of one batched computation.

    Args:
        iteration: current iteration, from 0.
        iterations: number of iterations in all.
        cost: lowest cost so far, averaged over updates and restarts.
    """

    iteration: int
    iterations: int
    cost: float


Report = Callable[[Progress], None]

Family = Literal["optimisation-based", "analytic"]
LocalSteps = Literal["averaged", "simulated"]
NoiseUse = Literal["allowed", "required", "refused"]


class Attack(ABC):
    """A gradient inversion attack: reconstructs clients' inputs from intercepted updates.

    A plugin sets the class attributes and writes :meth:`run` (and, to work on many updates at once,
    :meth:`run_many`). Its hyperparameters are the fields of a keyword-only dataclass
    (``@dataclass(kw_only=True, eq=False, repr=False)``), with the paper's values as defaults. It is
    found by name through the entry point group ``fedleak.attacks`` or by its dotted path.

    The class attributes annotated here are the facts that the tests, ``fedleak list`` and the
    documentation read.
    """

    name: ClassVar[str]
    """The name in tables and on the command line."""
    paper: ClassVar[str]
    """Authors, venue, address."""
    family: ClassVar[Family]
    """``optimisation-based`` (gradient matching), or ``analytic`` (the gradient's equations are
    solved for the input; if they do not determine it, an optimisation may follow)."""
    threat_model: ClassVar[str] = "honest-but-curious server"
    """What the server does: one that is honest but curious only reads what clients send."""
    needs: ClassVar[str]
    """What the server must see or know, in a few words."""
    batches: ClassVar[bool] = True
    """Whether it can attack an update of several samples."""
    local_steps: ClassVar[LocalSteps] = "averaged"
    """How an update of several local steps is attacked: ``averaged`` takes the mean gradient of
    the steps for the gradient of one; ``simulated`` differentiates through the steps, where the
    client's optimiser and steps are known and few, and else averages."""
    noise: ClassVar[NoiseUse] = "allowed"
    """Whether the model may draw noise (own noise slots), must, or must not."""
    restores_noise: ClassVar[bool] = False
    """Whether it reconstructs the noise that the model drew as well."""
    restores_labels: ClassVar[bool] = False
    """Whether it optimises the labels together with the inputs, and ignores known ones."""
    needs_first_linear: ClassVar[bool] = False
    """Whether the model must begin with a linear layer with bias."""
    takes_numbers: ClassVar[bool] = False
    """Whether it can attack samples that are whole numbers for an embedding, such as tokens."""
    boxed: ClassVar[bool] = False
    """Whether reconstructions stay within the valid range of inputs, with default settings."""
    iterative: ClassVar[bool] = False
    """Whether it has the hyperparameter ``iterations`` and gives the cost from iteration 0 on."""
    # No ClassVar, since it is a hyperparameter of those that have a choice.
    at_once: int = 1
    """Number of updates attacked in one batched computation (the default where it is a setting)."""

    @final
    def __call__(
        self,
        updates: Sequence[InterceptedUpdate],
        knowledge: Sequence[Knowledge] | Knowledge,
        *,
        seed: int = 0,
        device: str = "cpu",
        report: Report | None = None,
        finished: Callable[[int, Reconstruction], None] | None = None,
    ) -> list[Reconstruction]:
        """Attack updates, in batched computations where the attack supports it.

        The model in ``knowledge`` and torch's random state are left as they were.

        Args:
            updates: updates that the server received.
            knowledge: what the server knows, one for all updates or one for each.
            seed: seed of every random draw.
            device: device to compute on, such as ``cpu`` or ``cuda``.
            report: called from time to time with the progress. If None, not reported.
            finished: called with the index of an update and its reconstruction as soon as that
                exists; the order is not that of the updates. If None, not called.

        Returns:
            A reconstruction for each update, on the CPU, in the order of the updates.

        Raises:
            BadInput: if an update does not fit the model or holds NaN, or if the attack cannot use
                it (see :meth:`refuses`) or compute on the device.
        """
        check_device(device)
        require(
            isinstance(number := cast(Any, seed), int) and 0 <= number < 2**63,
            f"Expected `seed` to be a whole number from 0 to 2^63 - 1, got {seed!r:.60}.",
        )
        known = [knowledge] * len(updates) if isinstance(knowledge, Knowledge) else list(knowledge)
        require(
            len(known) == len(updates),
            f"Expected `knowledge` once or for each of {len(updates)} updates, got {len(known)}.",
        )
        known = guarded(known)
        originals = [facts.model for facts in known]
        with _seeded(seed), _full_precision(), twice_differentiable(originals):
            models: list[Loaded] = []
            means = [
                update.for_model(facts.model).as_mean(facts)
                for update, facts in zip(updates, known, strict=True)
            ]
            named = [update for update, _ in means]
            problems = [_prepare(*mean, seed, device, models) for mean in means]
            for problem in problems:
                reason = self.refuses(problem.knowledge) or self.refuses_device(device)
                require(reason is None, f"Expected an update that {self.name} can use: {reason}.")
            results: dict[int, Reconstruction] = {}
            with _relayed(report) as relay:
                for index, result in self.run_many(problems, relay):
                    results[index] = _packed(result, problems[index], named[index])
                    if finished is not None:
                        finished(index, results[index])
        return [results[index] for index in range(len(problems))]

    @abstractmethod
    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """Attack one update.

        Args:
            problem: the prepared update.
            report: to be called from time to time with the progress.

        Returns:
            The reconstruction; the caller sets its ``seconds``.
        """

    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Attack several updates: one by one, unless a plugin overrides it.

        Args:
            problems: the prepared updates.
            report: to be called from time to time with the progress.

        Yields:
            The index of an update and its reconstruction with ``seconds`` set, once for each
            update and as soon as it exists.
        """
        for index, problem in enumerate(problems):
            started = time.perf_counter()
            result = self.run(problem, report)
            yield index, replace(result, seconds=time.perf_counter() - started)

    def refuses(self, knowledge: Knowledge) -> str | None:
        """Why the attack cannot be used with this knowledge. If None, it can.

        Checks the class attributes ``batches`` and ``noise``; a plugin that overrides it calls
        this one, too.

        Args:
            knowledge: what the server knows.
        """
        kind, noise = type(knowledge.model).__name__, noise_slots(knowledge.model)
        if not self.takes_numbers and (reason := no_numbers(self.name, knowledge)) is not None:
            return reason
        if not self.batches and knowledge.num_samples > 1:
            return f"{self.name} takes one sample and the update is of {knowledge.num_samples}"
        if self.noise == "required" and not noise:
            return f"{self.name} needs a model that draws noise and {kind} draws none"
        if self.noise == "refused" and noise:
            return (
                f"{self.name} needs a model that draws no noise and {kind} draws some: choose an "
                "attack that restores noise (`fedleak list attacks`)"
            )
        return None

    def refuses_device(self, device: str) -> str | None:
        """Why the attack cannot compute on a device with its settings. If None, it can.

        Args:
            device: a device that torch can use.
        """
        return None

    def __repr__(self) -> str:
        settings = inspect.signature(type(self)).parameters
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)
        return f"{type(self).__name__}({values})"


class JointAttack(Attack):
    """An attack that processes several updates in one computation: a plugin writes ``run_many``."""

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`."""
        ((_, result),) = self.run_many([problem], report)
        return result

    @abstractmethod
    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """See :meth:`Attack.run_many`."""


def check_device(name: str) -> None:
    """Check that torch can compute on a device here.

    Args:
        name: such as ``cpu`` or ``cuda``.

    Raises:
        BadInput: if it cannot.
    """
    try:
        usable = not torch.empty(1, device=str(name)).is_meta
        reason = "it holds no numbers"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable, reason = False, str(error).splitlines()[0]
    require(
        usable,
        "Expected `device` to be one that torch can use here, such as cpu, got "
        f"`{name!s:.60}`: {'' if usable else reason}",
    )


def _prepare(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    seed: int,
    device: str,
    models: list[Loaded],
) -> Problem:
    update.check(knowledge.model)
    knowledge, notes = _with_samples(knowledge, update)
    notes += _about_clients(knowledge, update)
    notes += (modes,) if (modes := mixed_modes(knowledge)) else ()
    if update.protocol != knowledge.protocol:
        knowledge = replace(knowledge, protocol=update.protocol)
    loaded = loaded_model(update, knowledge, device, models)
    model, loss = loaded.model, loaded.loss(knowledge)
    if knowledge.number_of_clients > 1 and is_gradient_of_all(model, knowledge, loss):
        knowledge, notes = as_one_client(knowledge), (*notes, TOGETHER)
        loss = loaded.loss(knowledge)
    evidence = examine(update, knowledge, loss)
    if evidence.is_zero:
        expected = (
            f"Expected the gradient {update.key} to have entries other than 0"
            if update.protocol == "fedsgd"
            else f"Expected update {update.key} to change the weights"
        )
        raise BadInput(f"{expected}, but {evidence.findings[0]}.")
    told = told_defense(update, knowledge, model)
    knowledge = told.knowledge
    notes += (*told.unexpected(evidence.findings), *told.notes)
    if knowledge.labels is not None:
        knowledge = replace(knowledge, labels=_checked_labels(knowledge, loss))
    parameters = dict(model.named_parameters())
    like = next(iter(parameters.values()))
    if knowledge.labels is not None:
        kind = like.dtype if knowledge.labels.is_floating_point() else knowledge.labels.dtype
        knowledge = replace(knowledge, labels=knowledge.labels.to(device, kind))
    elif loss.kind != "other":
        notes += _about_targets(knowledge, loss)
        example = loss.labels(1)
        kind = like.dtype if example.is_floating_point() else example.dtype
        knowledge = replace(knowledge, label_example=example.to(device, kind))
    if not loss.in_float64 and like.dtype != torch.float64:
        # Attacks compute in float64 as well.
        knowledge = replace(knowledge, loss=in_own_precision(knowledge.loss, like.dtype))
    if knowledge.num_classes is None and loss.outputs:
        knowledge = replace(knowledge, num_classes=loss.outputs)
    # In the model's precision, whatever the client sent; a copy, so that the update is not changed.
    estimate = update.estimate(model, knowledge)
    entries = {name: value.to(parameters[name]) for name, value in told.entries.items()}
    found = estimate.gradient | {name: value.value for name, value in entries.items()}
    gradient = {
        name: found[name].to(value, copy=True)
        if name in found and name not in evidence.left_out
        else torch.zeros_like(value)
        for name, value in parameters.items()
    }
    # Of a change, the buffers that the client has now are those that were sent and theirs.
    before = update.sent if update.protocol == "delta" else {}
    buffers = {
        name: (before[name] + value if name in before else value).to(device, copy=True)
        for name, value in update.received.items()
        if name not in gradient
    }
    generator = torch.Generator().manual_seed(derive_seed(seed, update.round, update.client, SALT))
    return Problem(
        model,
        gradient,
        knowledge,
        generator,
        noise_shapes(model, knowledge),
        update.key,
        buffers,
        notes,
        {
            name: (gradient[name], rows.to(gradient[name]), columns.to(gradient[name]))
            for name, (rows, columns) in update.factors().items()
            if name not in evidence.left_out
        },
        evidence.left_out,
        {name: value.to(parameters[name]) for name, value in estimate.deviation.items()},
        {} if update.protocol == "fedsgd" else update.change(parameters),
        loss,
        entries,
    )


def _about_targets(knowledge: Knowledge, loss: LossProbe) -> tuple[str, ...]:
    """What there is to say about targets that are no classes and were not told."""
    if loss.kind != "numbers":
        return ()
    notes = [
        "targets are inferred from the update: they depend on the scale of the loss, which is "
        "taken as told"
    ]
    others = loss.other_shapes if knowledge.label_example is None else ()
    if others:
        also = " or ".join(str(shape) for shape in others)
        notes.append(
            f"targets of shape {loss.shape} a sample are presumed, the loss takes {also} too: tell "
            "which by `labels` or `label_example`"
        )
    return tuple(notes)


def _checked_labels(knowledge: Knowledge, loss: LossProbe) -> Tensor:
    """The known labels; those that are classes are checked to be so."""
    labels = knowledge.labels
    assert labels is not None
    kind, classes = loss.kind, knowledge.num_classes or loss.outputs
    if kind == "other":
        # Of these labels the loss takes none: does it take classes?
        blind = LossProbe(loss.model, replace(knowledge, labels=None))
        kind, classes = blind.kind, knowledge.num_classes or blind.outputs
    samples, shape = knowledge.num_samples, tuple(labels.shape)
    alone = kind == "classes"
    require(
        shape == (samples,) if alone else shape[:1] == (samples,),
        f"Expected {samples} known labels, got shape {shape}"
        + (": of one-hot labels, give `argmax(dim=1)`." if alone and len(shape) == 2 else "."),
    )
    require(
        not labels.is_complex()
        and not (alone and (labels.is_floating_point() or labels.dtype == torch.bool)),
        f"Expected labels as whole numbers, got {labels.dtype}.",
    )
    require(
        not alone or bool(((labels >= 0) & (labels < classes)).all()),
        f"Expected labels from 0 to {classes - 1}, got {labels.tolist()!s:.60}.",
    )
    require(
        not labels.is_floating_point() or bool(labels.isfinite().all()),
        "Expected labels that are finite numbers, got NaN or infinity.",
    )
    return labels


def _with_samples(
    knowledge: Knowledge, update: InterceptedUpdate
) -> tuple[Knowledge, tuple[str, ...]]:
    """What the server knows, with a number of samples, and what there is to say about it."""
    reported = update.num_examples
    if knowledge.num_samples == 0 and knowledge.labels is not None:
        knowledge = replace(knowledge, num_samples=len(knowledge.labels))
    if knowledge.num_samples == 0:
        require(
            reported >= 1,
            f"Expected `num_samples` to be told where an update says none, got {reported} from "
            f"update {update.key}.",
        )
        note = f"number of samples taken from the update: {reported}"
        return replace(knowledge, num_samples=reported), (note,)
    if knowledge.num_samples != reported:
        note = f"{knowledge.num_samples} samples were told, the client reports {reported}"
        return knowledge, (note,)
    return knowledge, ()


def _about_clients(knowledge: Knowledge, update: InterceptedUpdate) -> tuple[str, ...]:
    """What there is to say about the number of clients."""
    told, written = knowledge.number_of_clients, update.clients
    if written in (1, told):
        return ()
    return (f"{told} client{'s' * (told > 1)} told, the update is marked as of {written}",)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch within the block and restore its random state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Within the block, a GPU computes float32 operations in float32 and not in TF32.

    Costs reach 1e-6 and less, below the resolution of TF32's 10 mantissa bits.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


# Who listens to a relay. A plugin is handed the relay, which holds nothing: what a run's callback
# holds would lead to the truth that the reconstruction is scored against.
_LISTENERS: dict[int, Report] = {}


class _Relay:
    """Passes progress on to whoever listens, without a reference to it."""

    def __call__(self, progress: Progress) -> None:
        if (listener := _LISTENERS.get(id(self))) is not None:
            listener(progress)


@contextmanager
def _relayed(report: Report | None) -> Iterator[Report]:
    """A relay to a callback, for the time of the block."""
    relay = _Relay()
    if report is not None:
        _LISTENERS[id(relay)] = report
    try:
        yield relay
    finally:
        _LISTENERS.pop(id(relay), None)


def _packed(result: Reconstruction, problem: Problem, update: InterceptedUpdate) -> Reconstruction:
    result = replace(
        result,
        inputs=result.inputs.detach().cpu(),
        labels=result.labels.detach().cpu(),
        noise={name: value.detach().cpu() for name, value in result.noise.items()},
        rows={name: value.detach().cpu() for name, value in result.rows.items()},
        error_bounds=None if result.error_bounds is None else result.error_bounds.detach().cpu(),
    )
    knowledge = problem.knowledge
    if problem.entries:
        # What is known is known of the gradient.
        values = {name: value.cpu() for name, value in problem.gradient.items()}
        update = replace(update, protocol="fedsgd", received=values)
        knowledge = replace(knowledge, protocol="fedsgd")
    found = explained_share(
        update, knowledge, result.inputs, result.labels, result.noise, problem.left_out,
        labels_act=problem.loss is not None and problem.loss.kind not in ("none", "other"),
        entries={name: known.to(known.value.cpu()) for name, known in problem.entries.items()},
    )  # fmt: skip
    findings = (*problem.notes, *result.findings, *found.findings)
    known = problem.entries_known if problem.entries else result.inputs.numel()
    if known < result.inputs.numel():
        few = (
            f"not supported by the update: {known} of its entries are known, fewer than the "
            f"{result.inputs.numel()} numbers of the samples, so nothing follows from it"
        )
        return replace(result, findings=(*problem.notes, *result.findings, few), explained=0.0)
    return replace(result, findings=findings, explained=found.share)
