"""Gradient matching: find inputs (and noise) whose gradient is the one that the client sent."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from fedleak.attacks.base import Attack, Problem, Progress, Reconstruction, Report
from fedleak.attacks.costs import COSTS
from fedleak.attacks.gradients import DummyGradient
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.priors import total_variation
from fedleak.errors import require, unknown_name
from fedleak.updates import Tensors

# The learning rate is cut to a tenth at these shares of the iterations (Geiping 2020, appendix A).
DECAY_AT = (3 / 8, 5 / 8, 7 / 8)
REPORT_EVERY = 50


class GradientMatching(Attack):
    """Optimises dummy inputs, from a normal start, until their gradient matches the client's.

    Updates of one round are worked on together, in one batched computation; each gets the result
    that it would get alone. The reconstruction is the iterate of the lowest cost.

    Args:
        iterations: number of optimiser steps, at least 1.
        learning_rate: Adam's learning rate, positive.
        total_variation: weight of the images' total variation in the objective, at least 0.
        cost: how the gradients are compared, see :mod:`fedleak.attacks.costs`.
        signed: whether Adam is given the sign of the inputs' gradient instead of the gradient.
        box: whether inputs are kept within the valid range, at the start and after each step.
        decay: whether the learning rate falls to a tenth at 3/8, 5/8 and 7/8 of the iterations.
        restarts: number of random starts, of which the one with the lowest cost is kept.
        patience: stop an update's attack once its lowest cost has not fallen by 1 % within this
            many iterations; none: never.
        at_once: number of updates that are attacked in one batched computation.

    Raises:
        BadInput: if a value is out of its range.
    """

    def __init__(
        self,
        *,
        iterations: int = 7000,
        learning_rate: float = 0.01,
        total_variation: float = 1e-6,
        cost: Literal["cosine", "squared_error"] = "cosine",
        signed: bool = True,
        box: bool = True,
        decay: bool = True,
        restarts: int = 1,
        patience: int | None = None,
        at_once: int = 16,
    ) -> None:
        if cost not in COSTS:
            raise unknown_name("cost", cost, COSTS)
        for name, value in (
            ("iterations", iterations), ("restarts", restarts), ("at_once", at_once),
            ("patience", 1 if patience is None else patience),
        ):  # fmt: skip
            require(value >= 1, f"Expected `{name}` to be at least 1, got {value}.")
        require(learning_rate > 0, f"Expected `learning_rate` to be positive, got {learning_rate}.")
        require(
            total_variation >= 0,
            f"Expected `total_variation` to be at least 0, got {total_variation}.",
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

    def _match(self, problems: Sequence[Problem], report: Report) -> list[Reconstruction]:
        first, starts = problems[0], self.restarts
        labels = torch.stack([self._labels(problem) for problem in problems])
        inputs = _starts(problems, first.batch_shape, starts)
        noise = {n: _starts(problems, s, starts) for n, s in first.noise_shapes.items()}
        dummy = DummyGradient(
            first.model,
            first.knowledge.loss,
            (inputs[0], labels[0]),
            {name: value[0] for name, value in noise.items()},
        )
        targets = dummy.targets([p.gradient for p in problems], first.knowledge.num_samples)
        # Rows are (update, restart), the restarts of an update side by side.
        labels = labels.repeat_interleave(starts, dim=0)
        targets = {
            name: tuple(value.repeat_interleave(starts, dim=0) for value in values)
            for name, values in targets.items()
        }
        compare, names = COSTS[self.cost], self.compared(first)

        def objective(
            x: Tensor, eps: Tensors, y: Tensor, target: dict[str, tuple[Tensor, ...]]
        ) -> tuple[Tensor, Tensor]:
            products = dummy.products(x, y, eps, target)
            matching = compare({name: products[name] for name in names})
            smooth = self.total_variation * total_variation(x) if self.total_variation else 0.0
            return matching + smooth, matching

        step = vmap(grad(objective, argnums=(0, 1), has_aux=True))
        variables = [inputs, *(noise.values() if self.restores_noise else [])]
        optimizer = torch.optim.Adam(variables, lr=self.learning_rate)
        low, high = (bound.to(inputs) for bound in first.knowledge.bounds)
        if self.box:
            torch.clamp(inputs, low, high, out=inputs)
        best = _Best(inputs, noise, self.patience)
        iteration = 0
        for iteration in range(self.iterations + 1):
            if noise and not self.restores_noise:
                noise = {n: _starts(problems, s, starts) for n, s in first.noise_shapes.items()}
            (towards, noise_towards), costs = step(inputs, noise, labels, targets)
            best.update(iteration, costs.detach(), inputs, noise)
            if iteration % REPORT_EVERY == 0 or iteration == self.iterations:
                best.note(iteration)
                report(Progress(iteration, self.iterations, float(best.costs.mean())))
                if best.all_settled():
                    break
            if iteration == self.iterations:
                break
            inputs.grad = towards.detach().sign() if self.signed else towards.detach()
            if self.restores_noise:
                for name, value in noise.items():
                    value.grad = noise_towards[name].detach()
            if self.decay and iteration in {int(self.iterations * share) for share in DECAY_AT}:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.1
            optimizer.step()
            if self.box:
                torch.clamp(inputs, low, high, out=inputs)
        return best.reconstructions(labels, starts, iteration, self.restores_noise)

    def compared(self, problem: Problem) -> list[str]:
        """The parameters whose gradients are compared: all, unless a plugin leaves some out."""
        return list(problem.gradient)

    def _labels(self, problem: Problem) -> Tensor:
        known = problem.knowledge.labels
        if known is not None:
            return known
        return recover_labels(problem.model, problem.gradient, problem.knowledge)


class _Best:
    """The iterates of lowest cost, row by row, without a look at a number on the way."""

    def __init__(self, inputs: Tensor, noise: Tensors, patience: int | None) -> None:
        rows = len(inputs)
        self.costs = inputs.new_full((rows,), float("inf"))
        self._inputs = inputs.clone()
        self._noise = {name: value.clone() for name, value in noise.items()}
        self._patience = patience
        self._settled = torch.zeros(rows, dtype=torch.bool, device=inputs.device)
        self._mark = self.costs.clone()
        self._since = torch.zeros(rows, dtype=torch.long, device=inputs.device)
        self._stopped = torch.full((rows,), -1, dtype=torch.long, device=inputs.device)
        self._history: list[tuple[int, Tensor]] = []

    def update(self, iteration: int, costs: Tensor, inputs: Tensor, noise: Tensors) -> None:
        better = (costs < self.costs) & ~self._settled
        self.costs = torch.where(better, costs, self.costs)
        self._inputs = _choose(better, inputs, self._inputs)
        self._noise = {n: _choose(better, noise[n], old) for n, old in self._noise.items()}
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
        self, labels: Tensor, starts: int, iteration: int, with_noise: bool
    ) -> list[Reconstruction]:
        results = []
        for first in range(0, len(self.costs), starts):
            # A cost that is NaN never became the best, so the infinite ones are the failures.
            row = first + int(self.costs[first : first + starts].argmin())
            stopped = int(self._stopped[row])
            last = iteration if stopped < 0 else stopped
            results.append(
                Reconstruction(
                    inputs=self._inputs[row],
                    labels=labels[row],
                    noise={n: v[row] for n, v in self._noise.items()} if with_noise else {},
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
