"""Simulation of several local steps of plain SGD, differentiable with respect to the inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Problem
from fedleak.attacks.matching.costs import Products
from fedleak.attacks.matching.dummy_gradient import DummyGradient, Target
from fedleak.attacks.matching.priors import Statistics
from fedleak.updates.compression import Factors
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge

# Most steps simulated by default: time and memory grow with their number.
MOST_STEPS = 32
# Finding where the labels were recovered.
ORDER_UNKNOWN = "the order of the labels over the steps is not known"


def cannot_simulate(
    knowledge: Knowledge, noise: Mapping[str, Sequence[int]] | None = None
) -> str | None:
    """Why a client's local training cannot be simulated. If None, it can.

    Args:
        knowledge: what the server knows of it.
        noise: slot -> shape of its noise for all samples. If None, not checked.
    """
    if not knowledge.local.is_plain_sgd:
        return "the clients' optimiser is not plain SGD"
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
    """Why the mean gradient of several local steps is attacked. If None, they are simulated.

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
    """The findings of an attack about the local steps of an update: none for one step.

    Args:
        problem: the update.
        reason: see :func:`reason_to_average`.
    """
    facts = problem.knowledge
    if facts.steps == 1:
        return ()
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


class DummyUpdate:
    """The mean gradient of local steps of plain SGD for given inputs, labels and noise.

    The steps are simulated one after the other and differentiated through, as in Geiping et al.
    (2020, https://arxiv.org/abs/2003.14053) and Dimitrov et al. (2022,
    https://arxiv.org/abs/2206.12395); each step has its own noise. The samples are assumed to have
    the same order in every epoch; recovered labels have no order, so that a step may get the label
    of another. Time and memory grow with the number of steps. The update of a linear layer in one
    step is a product of few rows, so that its new weights need not be built.

    Args:
        model: a private copy of the model with the weights that the server sent, parameters not
            requiring gradients; it is changed as by :class:`DummyGradient`.
        knowledge: gives loss, learning rate, the samples of each step, the number of epochs, and
            which parameters a client trains.
        batch: an example ``(inputs, labels)`` of all samples, for the shapes.
        noise: an example of their noise, see :meth:`evaluate`.
    """

    def __init__(
        self,
        model: nn.Module,
        knowledge: Knowledge,
        batch: tuple[Tensor, Tensor],
        noise: Mapping[str, Tensor],
    ) -> None:
        self._facts = knowledge
        flags = {n: v.requires_grad for n, v in knowledge.model.named_parameters()}
        # If no parameter requires gradients, the model was frozen for the attack, not the client.
        frozen = {n for n, trained in flags.items() if not trained and any(flags.values())}
        part, *_, last = [*knowledge.local_batches, knowledge.local_batches[-1]]
        self._dummy = DummyGradient(
            model,
            knowledge.loss,
            (batch[0][part], batch[1][part]),
            self._step_noise(noise, part, 0),
            dense=[name.rpartition(".")[0] for name in frozen],
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
            gradients: mean gradient by parameter name, one for each update.
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
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """Products of the mean gradient with one target, see :meth:`DummyGradient.evaluate`.

        Noise is ``(num_samples, ...)``, for several epochs ``(num_samples, epochs, ...)``. The
        statistics of batch-norm layers are averaged over the steps; the products of frozen
        parameters are meaningless, and no inputs of modules are returned.
        """
        rate, steps = self._facts.learning_rate, self._facts.steps
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
