"""Gradient matching: optimise inputs (and noise) until their gradient matches the client's."""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fedleak.attacks.base import (
    Family,
    JointAttack,
    LocalSteps,
    Problem,
    Progress,
    Reconstruction,
    Report,
)
from fedleak.attacks.closed_form.linear import known_inputs
from fedleak.attacks.labels import NotDetermined, recover_labels
from fedleak.attacks.matching.best_iterate import BestIterate, BestIterates, cost_rounding
from fedleak.attacks.matching.compile import TOLERANCE, Compiler, Step, TracedStep, agree
from fedleak.attacks.matching.costs import COSTS, CostName, layer_weights
from fedleak.attacks.matching.differentiation import Road, ordinary_autograd
from fedleak.attacks.matching.dummy_gradient import DummyGradient
from fedleak.attacks.matching.inverted_step import BoundedGradient
from fedleak.attacks.matching.local_steps import (
    DummyUpdate,
    cannot_simulate,
    compared_update,
    is_smoothed,
    reason_to_average,
    smoothing_at,
    step_findings,
)
from fedleak.attacks.matching.objective import NOISE, LabelForm, Objective, as_target, noise_of
from fedleak.attacks.matching.optimizers import LBFGS_EVALUATIONS, OPTIMIZERS, OptimizerName
from fedleak.attacks.matching.priors import expected_statistics, has_statistics
from fedleak.attacks.module_calls import calls_of
from fedleak.attacks.second_derivative import differentiate_twice, not_differentiable
from fedleak.errors import BadInput, ModelFailed, require, unknown_name
from fedleak.models.noise import noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.private_model import private_copy

# The learning rate is divided by 10 at these shares of the iterations (Geiping 2020, appendix A).
DECAY_AT = (3 / 8, 5 / 8, 7 / 8)
REPORT_EVERY = 50
# Fewer evaluations are not traced: tracing takes as long as a few hundred of a small model.
TRACE_FROM = 400
# Of fewer, comparing two ways to compute one takes longer than the faster one saves.
COMPARE_FROM = 10

StartName = Literal["normal", "zeros"]


class Choices(NamedTuple):
    """Settings that an attack may leave to the samples, see :meth:`GradientMatching.choices`.

    Args:
        iterations: see :class:`GradientMatching`.
        learning_rate: see :class:`GradientMatching`.
        cost: see :class:`GradientMatching`.
        start: see :class:`GradientMatching`.
    """

    iterations: int
    learning_rate: float
    cost: CostName
    start: StartName


@dataclass(frozen=True)
class Known:
    """What is known of one update besides its gradient.

    Args:
        noise: slot -> known noise ``(batch, ...)``, which is injected and not optimised.
        features: module's path -> its known input, see the hyperparameter ``features``.
        begin: inputs ``(batch, ...)`` that every restart begins with. If None, the hyperparameter
            ``start`` decides.
        labels: the labels ``(batch, ...)``. If None, they are searched together with the inputs.
    """

    noise: Tensors = field(default_factory=dict)
    features: Tensors = field(default_factory=dict)
    begin: Tensor | None = None
    labels: Tensor | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class GradientMatching(JointAttack):
    """Optimises dummy inputs until their gradient matches the client's.

    Updates of one round are attacked together in one batched computation; each gets the result that
    it would get alone. The reconstruction is the iterate of lowest cost, or the last one whose cost
    equals it up to rounding: there the priors still improve what the cost no longer distinguishes.

    Args:
        iterations: number of optimiser steps, at least 1.
        learning_rate: the optimiser's learning rate, positive.
        total_variation: weight of the images' total variation in the objective, at least 0; not
            used for inputs that are no images ``(C, H, W)``.
        cost: distance of the gradients, see :mod:`fedleak.attacks.matching.costs`.
        start: what the inputs start from. normal: N(0, 1), drawn for each restart; zeros: 0 in
            every entry, so that restarts, and the samples of a batch, start apart only in their
            noise and labels. Where the gradient does not change around 0, as with ReLUs and no
            biases, an attack never leaves zeros.
        signed: whether Adam or SGD uses the sign of the inputs' gradient instead of the gradient.
        box: whether inputs are clamped to the valid range, at the start and after each step.
        decay: whether the learning rate is divided by 10 at 3/8, 5/8 and 7/8 of the iterations.
        restarts: number of random starts, of which the one with the lowest cost is kept, at
            least 1.
        patience: stop an update's attack once its lowest cost has not fallen by 1 % within this
            many iterations, at least 1. If None, never stop early.
        at_once: number of updates that are attacked in one batched computation, at least 1; L-BFGS
            does its line searches one update after another.
        optimizer: adam, sgd, or lbfgs (with up to 20 evaluations a step), see
            :mod:`fedleak.attacks.matching.optimizers`.
        layers: weight of each parameter's gradient in the cost, by name or pattern, such as
            ``{"*": 1, "classifier.*": 0}``; the last match counts, and parameters without a match
            are left out. If None, all have weight 1.
        batch_norm: weight in the objective of the distance between the dummy batch's batch-norm
            statistics and the expected ones (GradInversion, CVPR 2021, eq. 10), at least 0.
        precision: floating-point type of the computation. If None, the model's, which is float32
            by default.
        compile: off: every iteration is run by Python; trace: one iteration is traced and replayed,
            with equal results; inductor: the trace is compiled by torch.compile, which takes a C++
            compiler and up to minutes; cuda_graphs: the same for a GPU, as CUDA graphs. Attacks of
            fewer than 400 evaluations are not traced.
        features: weight in the cost of known features, that is inputs of layers, compared by
            relative squared error, at least 0. For one sample and one local step these are the
            inputs of the linear layers with bias, in closed form; for more it must be 0.
        noise_slots: paths of the noise slots whose noise is optimised together with the inputs,
            where ``*`` matches anything; the noise of others is drawn in every iteration. If None,
            all slots if the attack restores noise, and otherwise none.
        simulate_steps: whether several local steps, or several clients, are simulated on the dummy
            inputs, each step with its own noise, see :mod:`fedleak.attacks.matching.local_steps`;
            if false, their mean gradient is attacked as the gradient of one step, which is no
            gradient where the optimiser is not SGD. If None, up to 32 steps (of all clients
            together) are simulated where the clients' local training allows it.

    Raises:
        BadInput: if a value is out of its range or two values contradict each other.
    """

    family: ClassVar[Family] = "optimisation-based"
    local_steps: ClassVar[LocalSteps] = "simulated"
    boxed: ClassVar[bool] = True
    iterative: ClassVar[bool] = True

    iterations: int = 7000
    learning_rate: float = 0.01
    total_variation: float = 1e-6
    cost: CostName = "cosine"
    start: StartName = "normal"
    signed: bool = True
    box: bool = True
    decay: bool = True
    restarts: int = 1
    patience: int | None = None
    at_once: int = 16
    optimizer: OptimizerName = "adam"
    layers: dict[str, float] | None = None
    batch_norm: float = 0.0
    features: float = 0.0
    precision: Literal["float32", "float64"] | None = None
    compile: Compiler = "trace"
    noise_slots: list[str] | None = None
    simulate_steps: bool | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("cost", COSTS), ("start", get_args(StartName)), ("optimizer", OPTIMIZERS),
            ("precision", ("float32", "float64")), ("compile", get_args(Compiler)),
        ):  # fmt: skip
            value = getattr(self, name)
            unset = value is None and getattr(type(self), name) is None
            if not unset and value not in choices:
                raise unknown_name(name, str(value), choices)
        for name in ("iterations", "restarts", "at_once", "patience"):
            count = getattr(self, name)
            require(
                count is None or count >= 1, f"Expected `{name}` to be at least 1, got {count}."
            )
        rate: Any = self.learning_rate
        require(rate is None or rate > 0, f"Expected `learning_rate` to be positive, got {rate}.")
        weights = {n: getattr(self, n) for n in ("total_variation", "batch_norm", "features")}
        weights |= {f"layers.{pattern}": value for pattern, value in (self.layers or {}).items()}
        for name, weight in weights.items():
            require(weight >= 0, f"Expected `{name}` to be at least 0, got {weight}.")
        require(
            not (self.signed and self.optimizer == "lbfgs"),
            "Expected `signed: false` with `optimizer: lbfgs`, which needs the gradient itself.",
        )

    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Attack updates that share weights and shapes in one batched computation.

        See :meth:`Attack.run_many`; the results of a computation come together.

        Raises:
            BadInput: if ``simulate_steps`` is true and the shape of a slot's noise forbids it.
        """
        for problem in problems:
            facts = problem.knowledge
            reason = None if facts.is_one_step else self._reason_to_average(problem)
            require(
                not (self.simulate_steps and reason),
                f"Expected an update whose steps can be simulated, but {reason}: leave "
                "`simulate_steps` out.",
            )
        groups: dict[tuple[object, ...], list[int]] = {}
        known = [
            replace(self.known(problem), labels=self.labels_of(problem)) for problem in problems
        ]
        for index, problem in enumerate(problems):
            shapes = tuple(problem.noise_shapes.items())
            found = known[index]
            names = (tuple(found.noise), tuple(found.features), found.begin is None)
            given = None if found.labels is None else (found.labels.dtype, found.labels.shape)
            facts = problem.knowledge
            # Updates are attacked together if they were trained alike and tell of the same.
            training = (
                facts.steps, facts.batch_size, str(facts.local), id(facts.local.schedule),
                facts.client_samples, facts.aggregation,
            )  # fmt: skip
            left = problem.left_out
            limits = facts.value_range
            kind = (
                id(problem.model), problem.batch_shape, shapes, names, given, training, left,
                limits, problem.has_bounds,
            )  # fmt: skip
            groups.setdefault(kind, []).append(index)
        for indices in groups.values():
            for begin in range(0, len(indices), self.at_once):
                chunk = indices[begin : begin + self.at_once]
                started = time.perf_counter()
                matched = self._match(
                    [problems[index] for index in chunk], [known[index] for index in chunk], report
                )
                share = (time.perf_counter() - started) / len(chunk)
                for index, result in zip(chunk, matched, strict=True):
                    yield index, replace(result, seconds=share)

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        if self.batch_norm and not has_statistics(knowledge.model):
            kind = type(knowledge.model).__name__
            return f"`batch_norm` needs running statistics and {kind} keeps none"
        names = [name for name, _ in knowledge.model.named_parameters()]
        for pattern in self.layers or {}:
            if not any(fnmatchcase(name, pattern) for name in names):
                kind = type(knowledge.model).__name__
                nearest = get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
                return (
                    f"`layers.{pattern}` fits no parameter of {kind}, the nearest being `{nearest}`"
                )
        if self.features and max(knowledge.num_samples, knowledge.steps) > 1:
            return (
                "`features` are known of one sample and one local step, and the update is of "
                f"{knowledge.num_samples} samples and {knowledge.steps} steps: set it to 0"
            )
        reason = None if knowledge.is_one_step else cannot_simulate(knowledge)
        if self.simulate_steps and reason:
            return f"`simulate_steps` is not available, as {reason}: leave it out"
        slots = list(noise_slots(knowledge.model))
        for pattern in self.noise_slots or []:
            if not any(fnmatchcase(name, pattern) for name in slots):
                return (
                    f"`noise_slots` {pattern} fits no noise slot of "
                    f"{type(knowledge.model).__name__}, which has {', '.join(slots) or 'none'}"
                )
        return super().refuses(knowledge)

    def refuses_device(self, device: str) -> str | None:
        """See :meth:`Attack.refuses_device`."""
        if self.compile == "cuda_graphs" and torch.device(device).type != "cuda":
            return f"`compile: cuda_graphs` needs `device: cuda` and it is `{device}`"
        return None

    def compared(self, problem: Problem) -> list[str]:
        """Names of the parameters whose gradients are compared; by default all.

        Args:
            problem: the update.
        """
        return list(problem.gradient)

    def _weights(self, problem: Problem) -> dict[str, float]:
        """Weight of each parameter that is compared; those that were left out are not."""
        weights = layer_weights(self.compared(problem), self.layers)
        weights = {name: weight for name, weight in weights.items() if name not in problem.left_out}
        require(
            bool(weights),
            f"Expected a gradient of parameters that {self.name} compares, but none of them moved.",
        )
        return weights

    def choices(self, knowledge: Knowledge) -> Choices:
        """The settings that hold for an update; by default the attack's own.

        Args:
            knowledge: what is known of the update's samples.
        """
        return Choices(self.iterations, self.learning_rate, self.cost, self.start)

    def labels_of(self, problem: Problem) -> Tensor | None:
        """The labels ``(num_samples, ...)`` that the server knows or recovers.

        Args:
            problem: the update.

        Returns:
            The labels, or None if they are searched together with the inputs, as some attacks do,
            and as all do where they are no classes and the gradient does not determine them.

        Raises:
            BadInput: if they cannot be recovered.
        """
        known, loss = problem.knowledge.labels, problem.loss
        fixed = loss is not None and loss.kind in ("none", "other")
        if self.restores_labels and not fixed:
            return None
        if known is not None:
            return known
        try:
            return recover_labels(problem.model, problem.gradient, problem.knowledge, loss)
        except NotDetermined:
            return None

    def _match(
        self, problems: Sequence[Problem], known: Sequence[Known], report: Report
    ) -> list[Reconstruction]:
        first = problems[0]
        iterations, learning_rate, cost, _ = self.choices(first.knowledge)
        state = self._state(problems, known)
        injected = {NOISE + slot for slot in known[0].noise}
        free = {n: v for n, v in state.items() if self._is_optimised(n) and n not in injected}
        if known[0].labels is None:
            free["labels"] = state["labels"]
        fixed = {n: v for n, v in state.items() if n not in free}
        step, target, found = self._step(problems, known, state, free)

        def evaluate_row(row: int) -> tuple[Tensors, Tensor]:
            found, (objectives, _) = step(*(_row(values, row) for values in (free, fixed, target)))
            return found, objectives[0]

        optimizer = OPTIMIZERS[self.optimizer](free, learning_rate=learning_rate)
        low, high = (bound.to(state["inputs"]) for bound in first.knowledge.bounds)
        if self.box:
            torch.clamp(state["inputs"], low, high, out=state["inputs"])
        drop_at = {int(iterations * share) for share in DECAY_AT} if self.decay else set()
        rounding = cost_rounding(cost, target["gradient"], self._weights(first))
        best = BestIterates(state, rounding, self.patience)
        iteration = 0
        for iteration in range(iterations + 1):
            for name in fixed:
                if name.startswith(NOISE) and name not in injected:
                    # Noise that is not restored is drawn in every iteration.
                    drawn = self._noise_starts(problems, name.removeprefix(NOISE))
                    fixed[name] = state[name] = drawn.to(state[name])
            if "smoothing" in target:
                target["smoothing"].fill_(smoothing_at(iteration / iterations))
            gradients, (_, costs) = step(free, fixed, target)
            best.update(iteration, costs, state)
            if iteration % REPORT_EVERY == 0 or iteration == iterations:
                best.record(iteration)
                report(Progress(iteration, iterations, float(best.costs.mean())))
                if best.all_stopped():
                    break
            if iteration == iterations:
                break
            if self.signed:
                gradients = gradients | {"inputs": gradients["inputs"].sign()}
            if iteration in drop_at:
                optimizer.scale_learning_rate(0.1)
            optimizer.step(gradients, evaluate_row)
            if self.box:
                torch.clamp(state["inputs"], low, high, out=state["inputs"])
        searched = known[0].labels is None
        return [
            self._reconstruction(kept, first, found, searched=searched)
            for kept in best.per_update(self.restarts, iteration)
        ]

    def _reconstruction(
        self, kept: BestIterate, problem: Problem, found: tuple[str, ...], *, searched: bool
    ) -> Reconstruction:
        like = next(iter(problem.gradient.values()))
        labels = kept.variables["labels"]
        noise = {
            slot: value for slot, value in noise_of(kept.variables).items() if self._restores(slot)
        }
        form = _label_form(problem, searched=searched)
        if form == "classes":
            labels = labels.argmax(dim=-1)
        elif form == "binary":
            labels = (labels > 0).to(problem.knowledge.dummy_labels(1).dtype)
        elif labels.is_floating_point():
            labels = labels.to(like)
        return Reconstruction(
            inputs=kept.variables["inputs"].to(like),
            labels=labels,
            noise={name: value.to(like) for name, value in noise.items()},
            costs=kept.costs,
            iterations=kept.iterations,
            findings=(
                *step_findings(problem, self._reason_to_average(problem)),
                *found,
                *(_SEARCHED if searched and not self.restores_labels else ()),
            ),
        )

    def _is_optimised(self, name: str) -> bool:
        if name == "labels":
            return False  # see Known
        return name == "inputs" or self._restores(name.removeprefix(NOISE))

    def known(self, problem: Problem) -> Known:
        """What is known besides the gradient: the features, if they have a weight.

        Args:
            problem: the update.
        """
        if not self.features:
            return Known()
        inputs = torch.zeros(problem.batch_shape).to(next(iter(problem.gradient.values())))
        labels = problem.knowledge.dummy_labels(1).to(inputs.device)
        # A forward pass in train mode updates batch-norm statistics.
        model = copy.deepcopy(problem.model)
        calls = calls_of(model, problem.knowledge.loss, (inputs, labels))
        found = known_inputs(problem.gradient, calls, problem.deviation)
        return Known(features={n: f.value for n, f in found.items() if f.trusted})

    def _simulates(self, problem: Problem) -> bool:
        return not problem.knowledge.is_one_step and self._reason_to_average(problem) is None

    def _reason_to_average(self, problem: Problem) -> str | None:
        return reason_to_average(problem.knowledge, problem.noise_shapes, self.simulate_steps)

    def _noise_shape(self, problem: Problem, slot: str) -> tuple[int, ...]:
        """Shape of a slot's noise: ``(num_samples, ...)``, or ``(num_samples, epochs, ...)``."""
        samples, *rest = problem.noise_shapes[slot]
        epochs = problem.knowledge.epochs if self._simulates(problem) else 1
        return (samples, *((epochs,) if epochs > 1 else ()), *rest)

    def _restores(self, slot: str) -> bool:
        if self.noise_slots is None:
            return self.restores_noise
        return any(fnmatchcase(slot, pattern) for pattern in self.noise_slots)

    def _state(self, problems: Sequence[Problem], known: Sequence[Known]) -> Tensors:
        """Initial variables: a row for each update and restart, the restarts of one consecutive."""
        first, starts = problems[0], self.restarts
        kind = self._dtype(first)
        # Drawn even if not needed, so that the other draws stay the same.
        state = {"inputs": _starts(problems, first.batch_shape, starts).to(kind)}
        if self.choices(first.knowledge).start == "zeros":
            state["inputs"].zero_()
        begin = [facts.begin for facts in known if facts.begin is not None]
        if begin:
            inputs = torch.stack(begin).repeat_interleave(starts, dim=0)
            state["inputs"] = inputs.to(state["inputs"])
        given = [facts.labels for facts in known if facts.labels is not None]
        if given:
            labels = torch.stack(given).repeat_interleave(starts, dim=0)
            state["labels"] = labels.to(kind) if labels.is_floating_point() else labels
        else:
            state["labels"] = _starts(problems, _label_shape(first), starts).to(kind)
        for slot in first.noise_shapes:
            if slot in known[0].noise:
                noise = torch.stack([facts.noise[slot] for facts in known])
                noise = noise.repeat_interleave(starts, dim=0)
            else:
                noise = self._noise_starts(problems, slot)
            state[NOISE + slot] = noise.to(state["inputs"])
        return state

    def _noise_starts(self, problems: Sequence[Problem], slot: str) -> Tensor:
        """Initial noise of a slot: from N(0, 1) if it is restored, else from its distribution."""
        shape = self._noise_shape(problems[0], slot)
        if self._restores(slot):
            return _starts(problems, shape, self.restarts)
        rows = (self.restarts, *shape)
        return torch.cat([problem.noise(slot, rows) for problem in problems])

    def _step(
        self,
        problems: Sequence[Problem],
        known: Sequence[Known],
        state: Tensors,
        free: Tensors,
    ) -> tuple[Step, dict[str, Any], tuple[str, ...]]:
        """The computation of one iteration, its targets ``(rows, ...)``, and findings about it.

        The first road on which the model can be differentiated is taken.
        """
        fixed = {name: value for name, value in state.items() if name not in free}
        roads: list[Road] = ["by row", "ordinary"]
        if len(state["inputs"]) > 1:
            roads.insert(0, "batched")
        single_rows = self.optimizer == "lbfgs" or len(state["inputs"]) == 1
        failures: list[Exception] = []
        for road in roads:
            random_state = torch.get_rng_state()
            try:
                with ordinary_autograd() if road == "ordinary" else nullcontext():
                    objective, target = self._objective(problems, known, state)
                step = objective.step(road)
                step(free, fixed, target)
                if road == "ordinary":
                    first = problems[0]
                    differentiate_twice(private_copy(first.model), first.knowledge)
            except Exception as error:  # of the user's own model as well
                if isinstance(error, BadInput) and not isinstance(error, ModelFailed):
                    raise
                failures.append(error)
                # So that every road draws the same, whatever was tried before.
                torch.set_rng_state(random_state)
                continue
            iterations = self.choices(problems[0].knowledge).iterations
            evaluations = iterations * (LBFGS_EVALUATIONS if self.optimizer == "lbfgs" else 1)
            if self.compile != "off" and evaluations >= TRACE_FROM and road != "ordinary":
                step = TracedStep(step, self.compile)
            elif road != "ordinary" and single_rows and evaluations >= COMPARE_FROM:
                step = _single_rows_by(objective.step("ordinary"), step, (free, fixed, target))
            return _told(step, problems[0]), target, _TAKEN[road] if failures else ()
        raise not_differentiable(
            problems[0].model, problems[0].knowledge, failures[-1]
        ) from failures[-1]

    def _objective(
        self, problems: Sequence[Problem], known: Sequence[Known], state: Tensors
    ) -> tuple[Objective, dict[str, Any]]:
        """The objective of one row, and the targets of all."""
        first = problems[0]
        kind = self._dtype(first)
        features = [facts.features for facts in known]
        dummy = self._dummy(first, {name: value[0] for name, value in state.items()}, known[0])
        simulated = self._simulates(first)
        compared = [compared_update(p) if simulated else p.gradient for p in problems]
        gradients = [{n: g.to(kind) for n, g in own.items()} for own in compared]
        # Those of a gradient that is the client's own still, and was not changed on the way.
        factors = [
            {
                name: (rows.to(kind), columns.to(kind))
                for name, (whole, rows, columns) in problem.factors.items()
                if problem.gradient.get(name) is whole
            }
            for problem in problems
        ]
        target: dict[str, Any] = {
            "gradient": dummy.bounded_targets(
                gradients, [p.deviation for p in problems], [p.entries for p in problems]
            )
            if isinstance(dummy, BoundedGradient)
            else dummy.targets(gradients, first.knowledge.num_samples, factors)
        }
        if self.batch_norm:
            found = [expected_statistics(problem, problem.model) for problem in problems]
            target["statistics"] = {
                layer: tuple(
                    torch.stack([item[layer][part] for item in found]).to(kind) for part in (0, 1)
                )
                for layer in found[0]
            }
        target["features"] = {
            name: torch.stack([item[name] for item in features]).to(state["inputs"])
            for name in features[0]
        }
        target = tree_map(lambda value: value.repeat_interleave(self.restarts, dim=0), target)
        if simulated and is_smoothed(first.knowledge):
            rows = len(state["inputs"])
            target["smoothing"] = state["inputs"].new_full((rows,), smoothing_at(0.0))
        objective = Objective(
            dummy=dummy,
            cost=COSTS[self.choices(first.knowledge).cost],
            weights=self._weights(first),
            total_variation=self.total_variation if len(first.knowledge.input_shape) == 3 else 0.0,
            batch_norm=self.batch_norm,
            features=self.features,
            labels=_label_form(first, searched=known[0].labels is None),
        )
        return objective, target

    def _dummy(
        self, problem: Problem, example: Tensors, known: Known
    ) -> DummyGradient | DummyUpdate:
        # On a copy, since both remove running statistics.
        model = copy.deepcopy(problem.model).to(self._dtype(problem))
        form = _label_form(problem, searched=known.labels is None)
        batch = example["inputs"], as_target(example["labels"], form)
        facts, noise = problem.knowledge, noise_of(example)
        if self._simulates(problem):
            return DummyUpdate(model, facts, batch, noise, problem.left_out)
        watched = list(known.features)
        if problem.deviation or problem.has_bounds:
            names = [name for name, _ in model.named_modules()]
            return BoundedGradient(model, facts.loss, batch, noise, watched, dense=names)
        return DummyGradient(model, facts.loss, batch, noise, watched)

    def _dtype(self, problem: Problem) -> torch.dtype:
        if self.precision is not None:
            return torch.float64 if self.precision == "float64" else torch.float32
        return next(iter(problem.gradient.values())).dtype


_SEARCHED = ("the labels were searched together with the inputs",)
# Findings where another road failed before.
_TAKEN: dict[Road, tuple[str, ...]] = {
    "by row": ("differentiated update by update, as torch.func.vmap does not take the model",),
    "ordinary": (
        "differentiated by torch.autograd, update by update, as torch.func does not take the model",
    ),
}


def _single_rows_by(
    ordinary: Step, step: Step, point: tuple[Tensors, Tensors, dict[str, Any]]
) -> Step:
    """A step whose single rows are differentiated by ``torch.autograd``, if that gives the same.

    Of a small model, that takes a third less time than ``torch.func``.

    Args:
        ordinary: by ``torch.autograd``.
        step: by ``torch.func``.
        point: arguments of both, of one row or several.
    """
    free, fixed, target = (_row(values, 0) for values in point)
    try:
        if not agree(step, ordinary, (free, fixed, target), TOLERANCE):
            return step
    except Exception:  # of the user's own model as well
        return step

    def chosen(
        free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        return (ordinary if len(free["inputs"]) == 1 else step)(free, fixed, target)

    return chosen


def _told(step: Step, problem: Problem) -> Step:
    """A step whose errors, as of a branch that is taken late, are sentences."""

    def told(
        free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        try:
            return step(free, fixed, target)
        except BadInput:
            raise
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise not_differentiable(problem.model, problem.knowledge, error) from error

    return told


def _label_form(problem: Problem, *, searched: bool) -> LabelForm:
    """How the labels follow from the variable that is searched for them."""
    kind = "classes" if problem.loss is None else problem.loss.kind
    if not searched or kind not in ("classes", "binary"):
        return "given"
    return "classes" if kind == "classes" else "binary"


def _label_shape(problem: Problem) -> tuple[int, ...]:
    """Shape of the variable that is searched for the labels."""
    facts, loss = problem.knowledge, problem.loss
    if loss is not None and loss.kind != "classes":
        return (facts.num_samples, *loss.shape)
    if facts.num_classes is None:
        raise BadInput(
            "Expected `num_classes` where labels are searched and no linear layer of "
            f"{type(facts.model).__name__} that is called once for each sample tells their number, "
            "got none."
        )
    return (facts.num_samples, facts.num_classes)


def _row(values: Any, row: int) -> Any:
    return tree_map(lambda value: value[row : row + 1], values)


def _starts(problems: Sequence[Problem], shape: Sequence[int], starts: int) -> Tensor:
    """Normal draws ``(updates * starts, *shape)``, each update's from its own generator."""
    return torch.cat([problem.normal((starts, *shape)) for problem in problems])
