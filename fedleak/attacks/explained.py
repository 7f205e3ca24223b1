"""What share of a client's update a reconstruction explains, beyond a guess without the inputs."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedleak.attacks.module_facts import drawing_layers
from fedleak.errors import first_line
from fedleak.models.noise import inject, record
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.optimizer_steps import State, optimizer_step
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate

SUPPORTED_FROM = 0.5
"""Share of an update from which a reconstruction is supported by it."""
# The update is compared in size where the directions agree to this squared cosine,
SAME_DIRECTION = 0.9
# and told to differ beyond this factor.
SAME_SIZE = 1.15


@dataclass(frozen=True)
class Explained:
    """How well the update of a reconstruction agrees with the client's.

    Args:
        share: 0 to 1, see :func:`explained_share`; NaN if it cannot be computed.
        factor: the client's update over that of the reconstruction, in size. None if they differ in
            direction.
        reason: why the share cannot be computed.
    """

    share: float
    factor: float | None = None
    reason: str | None = None

    @property
    def findings(self) -> tuple[str, ...]:
        """What is amiss, in sentences without a full stop; empty if nothing is."""
        if self.reason is not None:
            return (f"not checked against the update, as {self.reason}",)
        found = []
        if self.share < SUPPORTED_FROM:
            found.append(
                f"not supported by the update: the reconstruction explains {self.share:.0%} of it, "
                "so nothing follows from it"
            )
        if self.factor is not None and not 1 / SAME_SIZE <= self.factor <= SAME_SIZE:
            found.append(
                f"the update is {self.factor:.2g} times as large as that of the reconstruction: "
                "learning rate, steps, number of samples or loss are not those told, or the client "
                "scales or clips what it sends"
            )
        return tuple(found)


def explained_share(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    inputs: Tensor,
    labels: Tensor,
    noise: Mapping[str, Tensor],
    left_out: frozenset[str] = frozenset(),
) -> Explained:
    """The share of what an update tells of the inputs that a reconstruction explains.

    ``1 - min_c |u - c v|^2 / min_c |u - c b|^2`` with c at least 0, over the parameters of which
    the update tells anything, in float64. u is the client's gradient or change of weights; v is
    that of the reconstruction, by its inputs, labels and noise through the same model, modes, loss,
    optimiser and steps; b is that of a guess that knows nothing of the inputs: all 0 (of images,
    the data set's mean), with the same labels and noise. Without b, any image with the right label
    explains 0.9999 of a LeNet's gradient, most of which is the classifier's. The factors c allow
    for a client that clips its gradient; where c is far from 1, a finding says so.

    Args:
        update: what the server saw, by the model's names.
        knowledge: what it knows; ``num_samples`` is that of the reconstruction.
        inputs: the reconstruction.
        labels: its labels.
        noise: its noise, by slot.
        left_out: parameters of which the update tells nothing.

    Returns:
        A share of 0 as well where the guess is nearer, or the reconstruction is not finite. No
        share where the model draws random numbers that were not restored: with others, even the
        true inputs explain little of an update.
    """
    if update.protocol != "fedsgd" and knowledge.local.optimizer == "unknown":
        return Explained(math.nan, reason="the client's optimiser is not known")
    if not bool(inputs.isfinite().all()):
        return Explained(0.0)
    if not inputs.is_floating_point() and bool((inputs < 0).any()):
        return Explained(math.nan, reason="some numbers of the samples are not known")
    arguments = (update, knowledge, inputs, labels, noise, left_out)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        try:
            return _compare(*arguments, torch.float64)
        except Exception:
            # Some models compute in one type of number only.
            try:
                return _compare(*arguments, None)
            except Exception as error:  # of the user's own code
                return Explained(math.nan, reason=f"the model fails: {first_line(error)}")


def _compare(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    inputs: Tensor,
    labels: Tensor,
    noise: Mapping[str, Tensor],
    left_out: frozenset[str],
    kind: torch.dtype | None,
) -> Explained:
    model = private_copy(knowledge.model).cpu()
    kind = kind or next(model.parameters()).dtype
    model.to(kind).load_state_dict(update.sent)
    if knowledge.training is not None:
        model.train(knowledge.training)
    model.requires_grad_(True)
    names = [name for name, _ in model.named_parameters() if name not in left_out]
    target = update.received if update.protocol == "fedsgd" else update.change(names)
    u = torch.cat([target[name].double().flatten() for name in names])
    if inputs.is_floating_point():
        inputs = inputs.to(kind)
    if labels.is_floating_point():
        labels = labels.to(kind)
    noise = {slot: value.to(kind) for slot, value in noise.items()}
    dimensions = _dimensions(model, knowledge, (inputs, labels))
    random = [*drawing_layers(model), *(slot for slot in dimensions if slot not in noise)]
    if random:
        return Explained(math.nan, reason=f"the random numbers of {random[0]} were not restored")
    missed, factor = [], None
    for guess in (False, True):
        batch = torch.zeros_like(inputs) if guess else inputs
        found = simulated_update(
            copy.deepcopy(model), knowledge, (batch, labels), noise, names, update.protocol,
            dimensions,
        )  # fmt: skip
        v = torch.cat([found[name].double().flatten() for name in names])
        if not bool(v.isfinite().all()):
            return Explained(0.0)
        inner, size = float(u @ v), float(v @ v)
        best = max(0.0, inner / size) if size else 0.0
        missed.append(float((u - best * v).square().sum()))
        alike = inner > 0 and inner**2 > SAME_DIRECTION * size * float(u @ u)
        if alike and not guess:
            factor = best
    share = 1 - missed[0] / missed[1] if missed[1] else 0.0
    return Explained(max(0.0, share) if math.isfinite(share) else 0.0, factor)


def simulated_update(
    model: nn.Module,
    knowledge: Knowledge,
    batch: tuple[Tensor, Tensor],
    noise: Mapping[str, Tensor],
    names: list[str],
    protocol: str,
    dimensions: Mapping[str, int],
) -> Tensors:
    """The gradient, or the change of weights, that a client would send for given inputs.

    Of several clients it is the mean of theirs, each from the same weights.

    Args:
        model: a private copy of the model with the weights that were sent, in the client's modes;
            its weights are moved.
        knowledge: gives loss, optimiser, steps and clients.
        batch: inputs and labels of all samples, the first client's first.
        noise: slot -> noise ``(num_samples, ...)``, or ``(num_samples, epochs, ...)``; other slots
            draw their own.
        names: the parameters to return.
        protocol: ``fedsgd`` for a gradient.
        dimensions: slot -> number of dimensions of what it draws in one forward pass.
    """
    inputs, labels = batch
    if knowledge.number_of_clients > 1:
        total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        for client in knowledge.by_client:
            samples = client.samples
            moved = simulated_update(
                copy.deepcopy(model), client.knowledge, (inputs[samples], labels[samples]),
                {slot: value[samples] for slot, value in noise.items()}, names, protocol,
                dimensions,
            )  # fmt: skip
            total = {name: value + client.weight * moved[name] for name, value in total.items()}
        return total
    steps = knowledge.steps
    batches = knowledge.local_batches if steps > 1 else [slice(0, len(inputs))]
    parameters = {name: model.get_parameter(name) for name in names}
    begin = {name: value.detach().clone() for name, value in parameters.items()}
    state: State = {}
    for step in range(steps):
        part = batches[step % len(batches)]
        # Of epochs that were simulated, the noise has an axis for them.
        own = {
            name: value[part, step // len(batches)]
            if value.dim() > dimensions.get(name, value.dim())
            else value[part]
            for name, value in noise.items()
        }
        with inject(model, own):
            loss = knowledge.loss(model, (inputs[part], labels[part]))
        found = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        gradients = dict(zip(parameters, found, strict=True))
        if protocol == "fedsgd":
            return gradients
        weights = {name: value.detach() for name, value in parameters.items()}
        changes, state = optimizer_step(knowledge.local, weights, gradients, state, step)
        for name, value in parameters.items():
            value.data += changes[name]
    return {name: value.detach() - begin[name] for name, value in parameters.items()}


def _dimensions(
    model: nn.Module, knowledge: Knowledge, batch: tuple[Tensor, Tensor]
) -> dict[str, int]:
    """Slot -> number of dimensions of what it draws in one forward pass."""
    probe = copy.deepcopy(model)  # a pass in train mode moves batch-norm statistics
    with record(probe) as notes, torch.no_grad():
        knowledge.loss(probe, batch)
    return {name: values[0].dim() for name, values in notes.items() if values}
