"""Gradient matching: find inputs (and noise) whose gradient is the one that the client sent."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from fedleak.attacks.base import Attack, Problem, Progress, Reconstruction, Report
from fedleak.attacks.costs import COSTS, layer_weights
from fedleak.attacks.gradients import DummyGradient
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.optimizers import LBFGS_EVALUATIONS, OPTIMIZERS, OptimizerName
from fedleak.attacks.priors import batch_norm_distance, total_variation
from fedleak.attacks.statistics import expected_statistics, has_statistics
from fedleak.errors import BadInput, require, unknown_name
from fedleak.updates import Knowledge, Tensors

# The learning rate is cut to a tenth at these shares of the iterations (Geiping 2020, appendix A).
DECAY_AT = (3 / 8, 5 / 8, 7 / 8)
REPORT_EVERY = 50
# Tracing takes about as long as some hundred iterations of a small model.
TRACE_FROM = 400
# Costs that differ by less than so many units in the last place are equal: sums over all weights
# are taken in another order for every batch.
ROUNDING = 16
COMPILERS = ("off", "trace", "inductor", "cuda_graphs")

# Variables that are optimised, variables that are not, and what they are compared with: gradients
# with respect to the first, and (objective, cost).
Step = Callable[[Tensors, Tensors, dict[str, Any]], tuple[Tensors, tuple[Tensor, Tensor]]]


class GradientMatching(Attack):
    """Optimises dummy inputs, from a normal start, until their gradient matches the client's.

    Updates of one round are worked on together, in one batched computation; each gets the result
    that it would get alone. The reconstruction is the iterate of the lowest cost, or the last one
    whose cost equals it to rounding: there the priors go on to improve what the cost no longer
    tells apart.

    Args:
        iterations: number of optimiser steps, at least 1.
        learning_rate: the optimiser's learning rate, positive.
        total_variation: weight of the images' total variation in the objective, at least 0.
        cost: how the gradients are compared, see :mod:`fedleak.attacks.costs`.
        signed: whether Adam or SGD is given the sign of the inputs' gradient instead of the
            gradient.
        box: whether inputs are kept within the valid range, at the start and after each step.
        decay: whether the learning rate falls to a tenth at 3/8, 5/8 and 7/8 of the iterations.
        restarts: number of random starts, of which the one with the lowest cost is kept.
        patience: stop an update's attack once its lowest cost has not fallen by 1 % within this
            many iterations; none: never.
        at_once: number of updates that are attacked in one batched computation.
        optimizer: adam, sgd, or lbfgs (with up to 20 evaluations a step), see
            :mod:`fedleak.attacks.optimizers`.
        layers: weight of each parameter's gradient in the cost, by name or pattern, such as
            ``{"*": 1, "classifier.*": 0}``, of which the last that fits counts; parameters that
            none fits are left out. None: all, alike.
        batch_norm: weight in the objective of the distance between the dummy batch's batch-norm
            statistics and the expected ones (GradInversion, CVPR 2021), at least 0.
        precision: type of the numbers computed with; none: the model's, which is float32.
        compile: off: Python runs every iteration; trace: the iteration is recorded once and
            replayed, with equal results; inductor: the record is compiled by torch.compile, which
            takes a C++ compiler and up to minutes; cuda_graphs: the same for a GPU, as CUDA graphs.
            Attacks of fewer than 400 evaluations are not traced.

    Raises:
        BadInput: if a value is out of its range or two do not go together.
    """

    restores_labels: ClassVar[bool] = False
    """Whether the labels are optimised together with the inputs."""

    def __init__(
        self,
        *,
        iterations: int = 7000,
        learning_rate: float = 0.01,
        total_variation: float = 1e-6,
        cost: Literal["cosine", "squared_error", "relative_error"] = "cosine",
        signed: bool = True,
        box: bool = True,
        decay: bool = True,
        restarts: int = 1,
        patience: int | None = None,
        at_once: int = 16,
        optimizer: OptimizerName = "adam",
        layers: dict[str, float] | None = None,
        batch_norm: float = 0.0,
        precision: Literal["float32", "float64"] | None = None,
        compile: Literal["off", "trace", "inductor", "cuda_graphs"] = "trace",
    ) -> None:
        for kind, value, choices in (
            ("cost", cost, COSTS), ("optimizer", optimizer, OPTIMIZERS),
            ("precision", precision, (None, "float32", "float64")), ("compile", compile, COMPILERS),
        ):  # fmt: skip
            if value not in choices:
                raise unknown_name(kind, str(value), [name for name in choices if name])
        for name, count in (
            ("iterations", iterations), ("restarts", restarts), ("at_once", at_once),
            ("patience", 1 if patience is None else patience),
        ):  # fmt: skip
            require(count >= 1, f"Expected `{name}` to be at least 1, got {count}.")
        require(learning_rate > 0, f"Expected `learning_rate` to be positive, got {learning_rate}.")
        for name, weight in (
            ("total_variation", total_variation), ("batch_norm", batch_norm),
            *((f"layers.{pattern}", value) for pattern, value in (layers or {}).items()),
        ):  # fmt: skip
            require(weight >= 0, f"Expected `{name}` to be at least 0, got {weight}.")
        require(
            not (signed and optimizer == "lbfgs"),
            "Expected `signed: false` with `optimizer: lbfgs`, which needs the gradient itself.",
        )
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.total_variation = total_variation
        self.cost = cost
        self.signed = signed
        self.box = box
        self.decay = decay
        self.restarts = restarts
        self.patience = patience
        self.at_once = at_once
        self.optimizer = optimizer
        self.layers = layers
        self.batch_norm = batch_norm
        self.precision = precision
        self.compile = compile

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """Attack one update; see :meth:`Attack.run`."""
        return self.run_many([problem], report)[0]

    def run_many(self, problems: Sequence[Problem], report: Report) -> list[Reconstruction]:
        """Attack updates in batches of those that share weights and shapes."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, problem in enumerate(problems):
            shapes = tuple(problem.noise_shapes.items())
            groups.setdefault((id(problem.model), problem.batch_shape, shapes), []).append(index)
        results: dict[int, Reconstruction] = {}
        for indices in groups.values():
            for begin in range(0, len(indices), self.at_once):
                chunk = indices[begin : begin + self.at_once]
                found = self._match([problems[index] for index in chunk], report)
                results.update(zip(chunk, found, strict=True))
        return [results[index] for index in range(len(problems))]

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        if self.batch_norm and not has_statistics(knowledge.model):
            kind = type(knowledge.model).__name__
            return f"`batch_norm` needs running statistics and {kind} keeps none"
        return super().refuses(knowledge)

    def compared(self, problem: Problem) -> list[str]:
        """The parameters whose gradients are compared: all, unless a plugin leaves some out."""
        return list(problem.gradient)

    def labels_of(self, problem: Problem) -> Tensor:
        """The labels ``(num_samples,)`` that the server knows or recovers."""
        known = problem.knowledge.labels
        if known is not None:
            return known
        return recover_labels(problem.model, problem.gradient, problem.knowledge)

    def _match(self, problems: Sequence[Problem], report: Report) -> list[Reconstruction]:
        first = problems[0]
        state = self._state(problems)
        free = {n: v for n, v in state.items() if self._is_optimised(n)}
        fixed = {n: v for n, v in state.items() if n not in free}
        step, target = self._step(problems, state, free)

        def evaluate_row(row: int) -> tuple[Tensors, Tensor]:
            found, (objectives, _) = step(*(_row(values, row) for values in (free, fixed, target)))
            return found, objectives[0]

        optimizer = OPTIMIZERS[self.optimizer](free, learning_rate=self.learning_rate)
        low, high = (bound.to(state["inputs"]) for bound in first.knowledge.bounds)
        if self.box:
            torch.clamp(state["inputs"], low, high, out=state["inputs"])
        drop_at = {int(self.iterations * share) for share in DECAY_AT} if self.decay else set()
        best = _Best(state, _rounding(self.cost, target["gradient"]), self.patience)
        iteration = 0
        for iteration in range(self.iterations + 1):
            for name in fixed:
                if name.startswith(NOISE):
                    # Whoever ignores the noise draws afresh every time.
                    drawn = _starts(problems, state[name].shape[1:], self.restarts)
                    fixed[name] = state[name] = drawn.to(state[name])
            gradients, (_, costs) = step(free, fixed, target)
            best.update(iteration, costs, state)
            if iteration % REPORT_EVERY == 0 or iteration == self.iterations:
                best.note(iteration)
                report(Progress(iteration, self.iterations, float(best.costs.mean())))
                if best.all_settled():
                    break
            if iteration == self.iterations:
                break
            if self.signed:
                gradients = gradients | {"inputs": gradients["inputs"].sign()}
            if iteration in drop_at:
                optimizer.scale_learning_rate(0.1)
            optimizer.step(gradients, evaluate_row)
            if self.box:
                torch.clamp(state["inputs"], low, high, out=state["inputs"])
        found = best.reconstructions(self.restarts, iteration, self.restores_noise)
        like = next(iter(first.gradient.values()))
        return [
            replace(
                item,
                inputs=item.inputs.to(like),
                noise={name: value.to(like) for name, value in item.noise.items()},
            )
            for item in found
        ]

    def _is_optimised(self, name: str) -> bool:
        if name == "labels":
            return self.restores_labels
        return name == "inputs" or self.restores_noise

    def _state(self, problems: Sequence[Problem]) -> Tensors:
        """Where every update's every restart begins: rows are (update, restart), side by side."""
        first, starts = problems[0], self.restarts
        kind = self._kind(first)
        state = {"inputs": _starts(problems, first.batch_shape, starts).to(kind)}
        if self.restores_labels:
            logits = (first.knowledge.num_samples, first.knowledge.num_classes)
            state["labels"] = _starts(problems, logits, starts).to(kind)
        else:
            labels = torch.stack([self.labels_of(problem) for problem in problems])
            state["labels"] = labels.repeat_interleave(starts, dim=0)
        for slot, shape in first.noise_shapes.items():
            state[NOISE + slot] = _starts(problems, shape, starts).to(kind)
        return state

    def _step(
        self, problems: Sequence[Problem], state: Tensors, free: Tensors
    ) -> tuple[Step, dict[str, Any]]:
        """The computation of one iteration, and what it compares with, row by row."""
        first = problems[0]
        kind = self._kind(first)
        # The statistics are read before the dummy gradient takes them from its own copy.
        model = copy.deepcopy(first.model).to(kind)
        example = {name: value[0] for name, value in state.items()}
        dummy = DummyGradient(
            model,
            first.knowledge.loss,
            (example["inputs"], self._as_target(example["labels"])),
            _noise(example),
        )
        gradients = [{n: g.to(kind) for n, g in p.gradient.items()} for p in problems]
        target: dict[str, Any] = {"gradient": dummy.targets(gradients, first.knowledge.num_samples)}
        if self.batch_norm:
            found = [expected_statistics(problem, problem.model) for problem in problems]
            target["statistics"] = {
                layer: tuple(
                    torch.stack([item[layer][part] for item in found]).to(kind) for part in (0, 1)
                )
                for layer in found[0]
            }
        target = tree_map(lambda value: value.repeat_interleave(self.restarts, dim=0), target)
        compare = COSTS[self.cost]
        weights = layer_weights(self.compared(first), self.layers)

        def objective(
            free: Tensors, fixed: Tensors, target: dict[str, Any]
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            values = fixed | free
            products, statistics = dummy.evaluate(
                values["inputs"],
                self._as_target(values["labels"]),
                _noise(values),
                target["gradient"],
            )
            cost = compare({name: products[name] for name in weights}, weights)
            total = cost
            if self.total_variation:
                total = total + self.total_variation * total_variation(values["inputs"])
            if self.batch_norm:
                distance = batch_norm_distance(statistics, target["statistics"])
                total = total + self.batch_norm * distance
            return total, (total, cost)

        # Layers that draw outside the noise slots, such as a plain dropout, draw for every row.
        step: Step = vmap(grad(objective, has_aux=True), randomness="different")
        fixed = {name: value for name, value in state.items() if name not in free}
        try:
            step(free, fixed, target)
        except (RuntimeError, NotImplementedError) as error:
            raise BadInput(
                f"Expected a model that torch.func can differentiate twice and batch, but "
                f"{type(first.model).__name__} fails there: {str(error).splitlines()[0]}"
            ) from error
        return self._faster(step, (free, fixed, target)), target

    def _kind(self, problem: Problem) -> torch.dtype:
        if self.precision is not None:
            return torch.float64 if self.precision == "float64" else torch.float32
        return next(iter(problem.gradient.values())).dtype

    def _as_target(self, labels: Tensor) -> Tensor:
        return labels.softmax(dim=-1) if self.restores_labels else labels

    def _faster(self, step: Step, example: tuple[Tensors, Tensors, dict[str, Any]]) -> Step:
        """The same computation without Python's share in it."""
        evaluations = self.iterations * (LBFGS_EVALUATIONS if self.optimizer == "lbfgs" else 1)
        if self.compile == "off" or evaluations < TRACE_FROM:
            return step
        if self.optimizer == "lbfgs":
            # It evaluates row by row, for which the record of all rows is of no use.
            free, fixed, target = example
            example = _row(free, 0), _row(fixed, 0), _row(target, 0)
        graph = make_fx(step)(*example)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        traced: Any = graph
        if self.compile == "inductor":
            traced = torch.compile(graph)
        elif self.compile == "cuda_graphs":
            traced = torch.compile(graph, mode="reduce-overhead")
        rows = len(example[0]["inputs"])
        if self.optimizer != "lbfgs":
            whole: Step = traced
            return whole

        def either(
            free: Tensors, fixed: Tensors, target: dict[str, Any]
        ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
            chosen = traced if len(free["inputs"]) == rows else step
            found: tuple[Tensors, tuple[Tensor, Tensor]] = chosen(free, fixed, target)
            return found

        return either


NOISE = "noise/"


def _noise(values: Mapping[str, Tensor]) -> Tensors:
    return {n.removeprefix(NOISE): v for n, v in values.items() if n.startswith(NOISE)}


def _row(values: Any, row: int) -> Any:
    return tree_map(lambda value: value[row : row + 1], values)


def _rounding(cost: str, target: Mapping[str, tuple[Tensor, ...]]) -> Tensor:
    """How far costs of equal gradients may lie apart in the arithmetic that is used, row by row."""
    norms = torch.stack([values[-1] for values in target.values()])
    scale = norms.sum(dim=0) if cost == "squared_error" else torch.ones_like(norms[0])
    return ROUNDING * torch.finfo(norms.dtype).eps * scale


class _Best:
    """The iterates of lowest cost, row by row, without a look at a number on the way."""

    def __init__(self, state: Tensors, rounding: Tensor, patience: int | None) -> None:
        inputs = state["inputs"]
        self._rounding = rounding
        rows = len(inputs)
        self.costs = inputs.new_full((rows,), float("inf"))
        self._state = {name: value.clone() for name, value in state.items()}
        self._patience = patience
        self._settled = torch.zeros(rows, dtype=torch.bool, device=inputs.device)
        self._mark = self.costs.clone()
        self._since = torch.zeros(rows, dtype=torch.long, device=inputs.device)
        self._stopped = torch.full((rows,), -1, dtype=torch.long, device=inputs.device)
        self._history: list[tuple[int, Tensor]] = []

    def update(self, iteration: int, costs: Tensor, state: Tensors) -> None:
        better = (costs < self.costs + self._rounding) & ~self._settled
        self.costs = torch.where(better, costs.minimum(self.costs), self.costs)
        self._state = {n: _choose(better, state[n], old) for n, old in self._state.items()}
        if self._patience is not None:
            fallen = self.costs < 0.99 * self._mark
            self._mark = torch.where(fallen, self.costs, self._mark)
            self._since = torch.where(fallen, iteration, self._since)
            settled = iteration - self._since >= self._patience
            self._stopped = torch.where(settled & ~self._settled, iteration, self._stopped)
            self._settled |= settled

    def note(self, iteration: int) -> None:
        self._history.append((iteration, self.costs.clone()))

    def all_settled(self) -> bool:
        return self._patience is not None and bool(self._settled.all())

    def reconstructions(
        self, starts: int, iteration: int, with_noise: bool
    ) -> list[Reconstruction]:
        results = []
        labels = self._state["labels"]
        if labels.is_floating_point():
            labels = labels.argmax(dim=-1)
        for first in range(0, len(self.costs), starts):
            # A cost that is NaN never became the best, so the infinite ones are the failures.
            row = first + int(self.costs[first : first + starts].argmin())
            stopped = int(self._stopped[row])
            last = iteration if stopped < 0 else stopped
            results.append(
                Reconstruction(
                    inputs=self._state["inputs"][row],
                    labels=labels[row],
                    noise={n: v[row] for n, v in _noise(self._state).items()} if with_noise else {},
                    costs=[
                        *((at, float(cost[row])) for at, cost in self._history if at < last),
                        (last, float(self.costs[row])),
                    ],
                    iterations=last,
                )
            )
        return results


def _starts(problems: Sequence[Problem], shape: Sequence[int], starts: int) -> Tensor:
    """Normal draws ``(updates * starts, *shape)``, each update's from its own generator."""
    return torch.cat([problem.normal((starts, *shape)) for problem in problems])


def _choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
