"""What share of a client's update a reconstruction explains."""

import copy
import math

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Reconstruction
from fedleak.models.noise import inject, record
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate


def explained_share(
    update: InterceptedUpdate, knowledge: Knowledge, reconstruction: Reconstruction
) -> float:
    """The share of an update that the reconstruction's own, simulated update explains.

    ``1 - |u - v|^2 / |u|^2`` over the parameters that are trained, in float64, where u is the
    client's gradient (of weights, the mean gradient that explains their change) and v that of the
    reconstruction: its inputs, labels and noise through the same model, mode, loss and steps of
    plain SGD. Noise that was not restored is drawn anew, so that it counts as unexplained.

    Args:
        update: what the server saw.
        knowledge: what it knows; ``num_samples`` is that of the reconstruction.
        reconstruction: what an attack made of the update.

    Returns:
        0 to 1; 0 as well where the reconstruction explains less than nothing or is not finite.
    """
    model = copy.deepcopy(knowledge.model).cpu().double()
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    trained = [name for name in flags if flags[name] or not any(flags.values())]
    model.load_state_dict(update.sent)
    model.train(knowledge.training).requires_grad_(True)
    steps = knowledge.local_steps if update.protocol == "fedavg" else 1
    target = {n: v.double() for n, v in update.gradient(model, knowledge).items()}
    mean = _mean_gradient(model, knowledge, reconstruction, steps, trained)
    missed = sum(float((target[name] - mean[name]).square().sum()) for name in trained)
    size = sum(float(target[name].square().sum()) for name in trained)
    share = 1 - missed / size if size else 0.0
    return max(0.0, share) if math.isfinite(share) else 0.0


def _mean_gradient(
    model: nn.Module,
    knowledge: Knowledge,
    reconstruction: Reconstruction,
    steps: int,
    trained: list[str],
) -> Tensors:
    """The mean gradient of the reconstruction's local steps; the model's weights are moved."""
    inputs, labels = reconstruction.inputs.double(), reconstruction.labels
    batches = knowledge.local_batches if steps > 1 else [slice(0, len(inputs))]
    parameters = {name: model.get_parameter(name) for name in trained}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = _dimensions(model, knowledge, (inputs, labels)) if reconstruction.noise else {}
        for step in range(steps):
            part = batches[step % len(batches)]
            # Of epochs that were simulated, the noise has an axis for them.
            noise = {
                name: (
                    value[part, step // len(batches)] if value.dim() > drawn[name] else value[part]
                ).double()
                for name, value in reconstruction.noise.items()
            }
            with inject(model, noise):
                loss = knowledge.loss(model, (inputs[part], labels[part]))
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for (name, value), gradient in zip(parameters.items(), found, strict=True):
                if gradient is not None:
                    total[name] += gradient / steps
                    if steps > 1:
                        value.data -= knowledge.learning_rate * gradient
    return total


def _dimensions(
    model: nn.Module, knowledge: Knowledge, batch: tuple[Tensor, Tensor]
) -> dict[str, int]:
    """Slot -> number of dimensions of what it draws in one forward pass."""
    probe = copy.deepcopy(model)  # a pass in train mode moves batch-norm statistics
    with record(probe) as notes, torch.no_grad():
        knowledge.loss(probe, batch)
    return {name: values[0].dim() for name, values in notes.items() if values}
