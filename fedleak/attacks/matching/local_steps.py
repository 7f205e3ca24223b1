"""Simulation of clients' local steps, differentiable with respect to the inputs."""

from collections.abc import Collection, Mapping, Sequence
from itertools import product

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
CLIENTS_UNKNOWN = "which client has which of the labels is not known"
COUNTED_ALIKE = (
    "labels counted as if all samples weighed alike, while in a plain mean of clients those of "
    "clients with few samples weigh more"
)
# Why the gradients of several clients are not taken for that of all their samples.
NOT_TOGETHER = (
    "their mean is not the gradient of all samples together, as with batch norm in train mode or a "
    "loss that is no mean over samples"
)
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
    if knowledge.protocol != "fedsgd" and knowledge.local.optimizer == "unknown":
        return knowledge.local.not_known
    for client in knowledge.by_client:
        if knowledge.number_of_clients > 1 and client.steps == 1:
            continue  # of all its samples
        if client.knowledge.num_samples > 1 and knowledge.batch_size is None:
            return "`batch_size`, the samples of a local step, is not known"
        batches = len(client.batches)
        if client.steps % batches:
            return f"{client.steps} local steps are no whole epochs of {batches} batches"
    for slot, shape in (noise or {}).items():
        if shape[0] != knowledge.num_samples:
            return f"{slot} draws {shape[0]} rows for {knowledge.num_samples} samples"
    return None


def reason_to_average(
    knowledge: Knowledge, noise: Mapping[str, Sequence[int]], simulate: bool | None = None
) -> str | None:
    """Why several steps, or clients, are attacked by their mean. If None, they are simulated.

    Args:
        knowledge: what the server knows of the steps.
        noise: see :func:`cannot_simulate`.
        simulate: whether to simulate them. If None, up to 32 steps of all clients together are,
            where possible.
    """
    if simulate is False:
        return "`simulate_steps` is off"
    if simulate is None and knowledge.total_steps > MOST_STEPS:
        return f"more than {MOST_STEPS} are simulated only with `simulate_steps: true`"
    return cannot_simulate(knowledge, noise)


def step_findings(problem: Problem, reason: str | None) -> tuple[str, ...]:
    """The findings of an attack about the local steps of an update: none for one step of SGD.

    Args:
        problem: the update.
        reason: see :func:`reason_to_average`.
    """
    facts = problem.knowledge
    if facts.is_one_step:
        return origin_findings(problem)
    gradients, name, several = facts.protocol == "fedsgd", facts.local.optimizer, facts.steps > 1
    clients = facts.number_of_clients
    steps = sorted({client.steps for client in facts.by_client})
    number = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
    each = f" of each of {clients} clients" * (clients > 1)
    if reason is not None and not (gradients or facts.local.is_linear):
        what = f"local step{'s' * several}"
        what = f"step{'s' * several} of {name}" if name != "unknown" else what
        return (
            f"change of weights by {number} {what}{each} attacked as a gradient, which it is not, "
            f"as {reason}",
        )
    what = f"{number} local step{'s' * several}{each}" if not gradients else f"{clients} clients"
    if reason is not None:
        return (f"mean gradient of {what} attacked, as {reason}",)
    if gradients:
        found = f"gradients of {clients} clients simulated one by one: {NOT_TOGETHER}"
    else:
        found = f"{what} simulated"
        shapes = {(client.epochs, len(client.batches)) for client in facts.by_client}
        if several and len(shapes) == 1:
            ((epochs, batches),) = shapes
            found += (
                f": {epochs} epoch{'s' * (epochs > 1)} of {batches} batch{'es' * (batches > 1)}"
            )
    return (found, *order_findings(facts))


def order_findings(knowledge: Knowledge) -> tuple[str, ...]:
    """The findings that recovered labels may be wrong or those of others; none if known.

    Clients of one sample each are alike, so that any of them may have any of the labels.

    Args:
        knowledge: what the server knows, before labels are recovered.
    """
    if knowledge.labels is not None:
        return ()
    several = any(len(client.batches) > 1 for client in knowledge.by_client)
    samples = set(knowledge.client_samples)
    clients = knowledge.number_of_clients > 1 and samples != {1}
    uneven = len(samples) > 1 and knowledge.aggregation == "mean"
    return (ORDER_UNKNOWN,) * several + (CLIENTS_UNKNOWN,) * clients + (COUNTED_ALIKE,) * uneven


def compared_update(problem: Problem) -> Tensors:
    """What simulated steps are compared with, by parameter name.

    The client's change of weights over minus the learning rate times the number of steps, which is
    the mean gradient of plain SGD; 0 for parameters that did not come. Gradients as they are.

    Args:
        problem: an update of several steps or clients.
    """
    facts = problem.knowledge
    if _adds_gradients(facts):
        return problem.gradient
    scale = -1 / (facts.local.rate * facts.mean_steps)
    return {
        name: (scale * problem.change[name]).to(like) if name in problem.change else like
        for name, like in problem.gradient.items()
    }


def is_smoothed(knowledge: Knowledge) -> bool:
    """Whether simulated steps are smoothed, see :class:`DummyUpdate`.

    Args:
        knowledge: what the server knows of the steps.
    """
    return knowledge.protocol != "fedsgd" and not knowledge.local.is_linear


def _adds_gradients(knowledge: Knowledge) -> bool:
    """Whether the update is a sum of gradients, up to one factor."""
    return knowledge.protocol == "fedsgd" or knowledge.local.is_plain_sgd


def smoothing_at(share: float) -> float:
    """The smoothing at a share of an attack's iterations, see :class:`DummyUpdate`.

    Args:
        share: from 0 to 1.
    """
    if share >= SMOOTH_UNTIL:
        return 0.0
    return float(SMOOTH_FROM * (SMOOTH_TO / SMOOTH_FROM) ** (share / SMOOTH_UNTIL))


class DummyUpdate:
    """The update by several local steps, or clients, for given inputs, labels and noise.

    It is the change of weights over minus the learning rate times the number of steps: for plain
    SGD the mean gradient of the steps. Of several clients it is the mean of their changes, or of
    their gradients, as their updates were combined: each begins with the sent weights and takes its
    own steps on its own samples, with a state of its optimiser of its own.

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
        knowledge: gives loss, local training, clients, the samples of each step, the number of
            epochs, and which parameters a client trains.
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
        self._is_plain = _adds_gradients(knowledge)
        self._clients = knowledge.by_client
        sizes: dict[int, slice] = {}
        for part in knowledge.local_batches:
            sizes.setdefault(part.stop - part.start, part)
        part, *others = sizes.values()
        self._dummy = DummyGradient(
            model,
            knowledge.loss,
            (batch[0][part], batch[1][part]),
            self._step_noise(noise, part, 0),
            dense=[name.rpartition(".")[0] for name in (frozen if self._is_plain else flags)],
        )
        for part in others:
            self._dummy.prepare((batch[0][part], batch[1][part]), self._step_noise(noise, part, 0))
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
        statistics of batch-norm layers are averaged over steps and clients; the products of frozen
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
        facts = self._facts
        rate = 0.0 if facts.protocol == "fedsgd" else facts.local.rate
        total = dict.fromkeys(self._dummy.free, torch.zeros(()).to(inputs))
        mean: dict[str, list[tuple[Tensor, Tensor]]] = {}
        seen: list[tuple[float, Statistics]] = []
        for client in self._clients:
            free, share = self._dummy.free, client.weight / facts.mean_steps
            passed: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for epoch, part in product(range(client.epochs), client.batches):
                moves = {layer: _scaled_rows(rows, -rate) for layer, rows in passed.items()}
                gradients, layers, (statistics, _) = self._dummy.differentiate(
                    (inputs[part], labels[part]), self._step_noise(noise, part, epoch), free, moves
                )
                seen.append((client.weight / client.steps, statistics))
                for layer, factors in layers.items():
                    passed.setdefault(layer, []).append(factors)
                total = {n: value + share * gradients[n] for n, value in total.items()}
                free = free | {n: free[n] - rate * gradients[n] for n in self._trained}
            for layer, rows in passed.items():
                mean.setdefault(layer, []).append(_scaled_rows(rows, share))
        joined = {layer: _scaled_rows(rows, 1.0) for layer, rows in mean.items()}
        return self._dummy.compare(total, joined, target), _mean_statistics(seen), {}

    def _evaluate_any(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: Mapping[str, Tensor],
        target: Mapping[str, tuple[Tensor, ...]],
        smoothing: Tensor | None,
    ) -> tuple[dict[str, Products], Statistics, Tensors]:
        """The same for any optimiser, with the gradients of all parameters built."""
        local = self._facts.local
        total = {name: torch.zeros_like(value) for name, value in self._dummy.free.items()}
        seen: list[tuple[float, Statistics]] = []
        for client in self._clients:
            free, state, more = self._dummy.free, State(), None
            share = client.weight / (local.rate * self._facts.mean_steps)
            for step, (epoch, part) in enumerate(product(range(client.epochs), client.batches)):
                gradients, _, (statistics, _) = self._dummy.differentiate(
                    (inputs[part], labels[part]), self._step_noise(noise, part, epoch), free, {}
                )
                seen.append((client.weight / client.steps, statistics))
                own = {name: gradients[name] for name in self._trained}
                if smoothing is not None and more is None:
                    more = {
                        name: smoothing * value.detach().square().mean().sqrt()
                        for name, value in own.items()
                    }
                weights = {name: free[name] for name in self._trained}
                changes, state = optimizer_step(local, weights, own, state, step, more)
                total |= {n: total[n] - share * value for n, value in changes.items()}
                free = free | {name: free[name] + value for name, value in changes.items()}
        return self._dummy.compare(total, {}, target), _mean_statistics(seen), {}

    def _step_noise(self, noise: Mapping[str, Tensor], part: slice, epoch: int) -> Tensors:
        several = self._facts.epochs > 1
        return {n: value[part, epoch] if several else value[part] for n, value in noise.items()}


def _scaled_rows(rows: Sequence[tuple[Tensor, Tensor]], factor: float) -> tuple[Tensor, Tensor]:
    """Factors of a sum of weight gradients, times a factor."""
    entering, leaving = zip(*rows, strict=True)
    return torch.cat(entering), factor * torch.cat(leaving)


def _mean_statistics(statistics: Sequence[tuple[float, Statistics]]) -> Statistics:
    def mean(layer: str, part: int) -> Tensor:
        return torch.stack([share * found[layer][part] for share, found in statistics]).sum(dim=0)

    return {layer: (mean(layer, 0), mean(layer, 1)) for layer in statistics[0][1]}
