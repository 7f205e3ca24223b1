"""Simulation of several local steps of a client, differentiable with respect to the inputs."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Problem
from fedleak.attacks.gradient_origin import origin_findings
from fedleak.attacks.matching.costs import Products
from fedleak.attacks.matching.dummy_gradient import DummyGradient, Target
from fedleak.attacks.matching.priors import Statistics
from fedleak.updates.compression import Factors
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.optimizer_steps import State, optimizer_step

# Most steps simulated by default: time and memory grow with their number.
MOST_STEPS = 32
# Finding where the labels were recovered.
ORDER_UNKNOWN = "the order of the labels over the steps is not known"
# Smoothing of the steps of Adam and its kin, over the course of an attack: from, to, and until
# which share of the iterations. Measured on three steps of Adam on an image of 16x16: SSIM 0.68,
# without smoothing 0.38.
SMOOTH_FROM, SMOOTH_TO, SMOOTH_UNTIL = 1.0, 1e-4, 0.75


def cannot_simulate(
    knowledge: Knowledge, noise: Mapping[str, Sequence[int]] | None = None
) -> str | None:
    """Why a client's local training cannot be simulated. If None, it can.

    Args:
        knowledge: what the server knows of it.
        noise: slot -> shape of its noise for all samples. If None, not checked.
    """
    if knowledge.local.optimizer == "unknown":
        return "the clients' optimiser is not known"
    if knowledge.num_samples > 1 and knowledge.batch_size is None:
        return "`batch_size`, the samples of a local step, is not known"
    batches = len(knowledge.local_batches)
    if knowledge.steps % batches:
        return f"{knowledge.steps} local steps are no whole epochs of {batches} batches"
    for slot, shape in (noise or {}).items():
        if shape[0] != knowledge.num_samples:
            return f"{slot} draws {shape[0]} rows for {knowledge.num_samples} samples"
    return None


def reason_to_average(
    knowledge: Knowledge, noise: Mapping[str, Sequence[int]], simulate: bool | None = None
) -> str | None:
    """Why several local steps are attacked by their mean. If None, they are simulated.

    Args:
        knowledge: what the server knows of the steps.
        noise: see :func:`cannot_simulate`.
        simulate: whether to simulate them. If None, up to 32 steps are, where possible.
    """
    if simulate is False:
        return "`simulate_steps` is off"
    if simulate is None and knowledge.steps > MOST_STEPS:
        return f"more than {MOST_STEPS} are simulated only with `simulate_steps: true`"
    return cannot_simulate(knowledge, noise)


def step_findings(problem: Problem, reason: str | None) -> tuple[str, ...]:
    """The findings of an attack about the local steps of an update: none for one step of SGD.

    Args:
        problem: the update.
        reason: see :func:`reason_to_average`.
    """
    facts = problem.knowledge
    name = facts.local.optimizer
    if facts.steps == 1:
        return origin_findings(problem)
    if reason is not None and not facts.local.is_linear:
        what = f"steps of {name}" if name != "unknown" else "local steps"
        return (
            f"change of weights by {facts.steps} {what} attacked as a gradient, which it is not, "
            f"as {reason}",
        )
    if reason is not None:
        return (f"mean gradient of {facts.steps} local steps attacked, as {reason}",)
    epochs, batches = facts.epochs, len(facts.local_batches)
    found = [
        f"{facts.steps} local steps simulated: {epochs} epoch{'s' * (epochs > 1)} of "
        f"{batches} batch{'es' * (batches > 1)}"
    ]
    if facts.labels is None and batches > 1:
        found.append(ORDER_UNKNOWN)
    return tuple(found)


def compared_update(problem: Problem) -> Tensors:
    """What simulated steps are compared with, by parameter name.

    The client's change of weights over minus the learning rate times the number of steps, which is
    the mean gradient of plain SGD; 0 for parameters that did not come.

    Args:
        problem: an update of weights or their change.
    """
    facts = problem.knowledge
    if facts.local.is_plain_sgd:
        return problem.gradient
    scale = -1 / (facts.local.rate * facts.steps)
    return {
        name: (scale * problem.change[name]).to(like) if name in problem.change else like
        for name, like in problem.gradient.items()
    }


def smoothing_at(share: float) -> float:
    """The smoothing at a share of an attack's iterations, see :class:`DummyUpdate`.

    Args:
        share: from 0 to 1.
    """
    if share >= SMOOTH_UNTIL:
        return 0.0
    return float(SMOOTH_FROM * (SMOOTH_TO / SMOOTH_FROM) ** (share / SMOOTH_UNTIL))


class DummyUpdate:
    """The update by several local steps for given inputs, labels and noise.

    It is the change of weights over minus the learning rate times the number of steps: for plain
    SGD the mean gradient of the steps.

    The steps are simulated one after the other and differentiated through, as in Geiping et al.
    (2020, https://arxiv.org/abs/2003.14053) and Dimitrov et al. (2022,
    https://arxiv.org/abs/2206.12395); each step has its own noise. The samples are assumed to have
    the same order in every epoch; recovered labels have no order, so that a step may get the label
    of another. Time and memory grow with the number of steps. By plain SGD, the update of a linear
    layer in one step is a product of few rows, so that its new weights need not be built. Of other
    optimisers, the state is part of the simulation.

    A step of Adam and its kin is nearly the sign of a gradient far above ``eps``, with derivatives
    near 0. An attack therefore adds to ``eps`` a multiple, the smoothing, of the root mean square
    of each parameter's first gradient, and lowers it to 0.

    Args:
        model: a private copy of the model with the weights that the server sent, parameters not
            requiring gradients; it is changed as by :class:`DummyGradient`.
        knowledge: gives loss, local training, the samples of each step, the number of epochs, and
            which parameters a client trains.
        batch: an example ``(inputs, labels)`` of all samples, for the shapes.
        noise: an example of their noise, see :meth:`evaluate`.
        left_out: other parameters that do not move.
    """

    def __init__(
        self,
        model: nn.Module,
        knowledge: Knowledge,
        batch: tuple[Tensor, Tensor],
        noise: Mapping[str, Tensor],
        left_out: Collection[str] = (),
    ) -> None:
        self._facts = knowledge
        flags = {n: v.requires_grad for n, v in knowledge.model.named_parameters()}
        # If no parameter requires gradients, the model was frozen for the attack, not the client.
        frozen = {n for n, trained in flags.items() if not trained and any(flags.values())}
        frozen |= set(left_out)
        self._is_plain = knowledge.local.is_plain_sgd
        part, *_, last = [*knowledge.local_batches, knowledge.local_batches[-1]]
        self._dummy = DummyGradient(
            model,
            knowledge.loss,
            (batch[0][part], batch[1][part]),
            self._step_noise(noise, part, 0),
            dense=[name.rpartition(".")[0] for name in (frozen if self._is_plain else flags)],
        )
        self._dummy.prepare((batch[0][last], batch[1][last]), self._step_noise(noise, last, 0))
        self._trained = self._dummy.free.keys() - frozen

    def targets(
        self,
        gradients: Sequence[Tensors],
        rank: int,
        known: Sequence[Mapping[str, Factors]] = (),
    ) -> Target:
        """Target gradients of several updates, see :meth:`DummyGradient.targets`.

        Args:
            gradients: see :func:`compared_update`, one for each update.
            rank: the highest rank of one epoch's gradient to try.
            known: see :meth:`DummyGradient.targets`.
        """
        return self._dummy.targets(gradients, rank * self._facts.epochs, known)

    def evaluate(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
        smoothing: Tensor | None = None,
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """Products of the update with one target, see :meth:`DummyGradient.evaluate`.

        Noise is ``(num_samples, ...)``, for several epochs ``(num_samples, epochs, ...)``. The
        statistics of batch-norm layers are averaged over the steps; the products of frozen
        parameters are meaningless, and no inputs of modules are returned.

        Args:
            inputs: ``(num_samples, ...)``.
            labels: ``(num_samples,)``.
            noise: slot -> noise.
            target: one entry (without the stacking dimension) of :meth:`targets`.
            smoothing: at least 0, a scalar. If None, 0.
        """
        if not self._is_plain:
            return self._evaluate_any(inputs, labels, noise, target, smoothing)
        rate, steps = self._facts.local.rate, self._facts.steps
        free, total = self._dummy.free, dict.fromkeys(self._dummy.free, torch.zeros(()).to(inputs))
        passed: dict[str, list[tuple[Tensor, Tensor]]] = {}
        seen: list[Statistics] = []
        for epoch in range(self._facts.epochs):
            for part in self._facts.local_batches:
                moves = {layer: _scaled_rows(rows, -rate) for layer, rows in passed.items()}
                gradients, layers, (statistics, _) = self._dummy.differentiate(
                    (inputs[part], labels[part]), self._step_noise(noise, part, epoch), free, moves
                )
                seen.append(statistics)
                for layer, rows in layers.items():
                    passed.setdefault(layer, []).append(rows)
                total = {n: value + gradients[n] / steps for n, value in total.items()}
                free = free | {n: free[n] - rate * gradients[n] for n in self._trained}
        mean = {layer: _scaled_rows(rows, 1 / steps) for layer, rows in passed.items()}
        return self._dummy.compare(total, mean, target), _mean_statistics(seen), {}

    def _evaluate_any(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
        smoothing: Tensor | None,
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """The same for any optimiser, with the gradients of all parameters built."""
        local, steps, step = self._facts.local, self._facts.steps, 0
        free, state, more = self._dummy.free, State(), None
        total = {name: torch.zeros_like(value) for name, value in free.items()}
        seen: list[Statistics] = []
        for epoch in range(self._facts.epochs):
            for part in self._facts.local_batches:
                gradients, _, (statistics, _) = self._dummy.differentiate(
                    (inputs[part], labels[part]), self._step_noise(noise, part, epoch), free, {}
                )
                seen.append(statistics)
                own = {name: gradients[name] for name in self._trained}
                if smoothing is not None and more is None:
                    more = {
                        name: smoothing * value.detach().square().mean().sqrt()
                        for name, value in own.items()
                    }
                weights = {name: free[name] for name in self._trained}
                changes, state = optimizer_step(local, weights, own, state, step, more)
                total |= {
                    n: total[n] - value / (local.rate * steps) for n, value in changes.items()
                }
                free = free | {name: free[name] + value for name, value in changes.items()}
                step += 1
        return self._dummy.compare(total, {}, target), _mean_statistics(seen), {}

    def _step_noise(self, noise: Mapping[str, Tensor], part: slice, epoch: int) -> Tensors:
        several = self._facts.epochs > 1
        return {n: value[part, epoch] if several else value[part] for n, value in noise.items()}


def _scaled_rows(rows: Sequence[tuple[Tensor, Tensor]], factor: float) -> tuple[Tensor, Tensor]:
    """Factors of a sum of weight gradients, times a factor."""
    entering, leaving = zip(*rows, strict=True)
    return torch.cat(entering), factor * torch.cat(leaving)


def _mean_statistics(statistics: Sequence[Statistics]) -> Statistics:
    def mean(layer: str, part: int) -> Tensor:
        return torch.stack([found[layer][part] for found in statistics]).mean(dim=0)

    return {layer: (mean(layer, 0), mean(layer, 1)) for layer in statistics[0]}
