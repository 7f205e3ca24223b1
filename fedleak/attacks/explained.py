"""What share of a client's update a reconstruction explains, beyond a guess without the inputs."""

import copy
import math
from dataclasses import replace

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
    """The share of what an update tells of the inputs that a reconstruction explains.

    ``1 - |u - v|^2 / |u - b|^2`` over the parameters that are trained, in float64. u is the
    client's gradient (of weights, the mean gradient that explains their change); v is the gradient
    of the reconstruction, by its inputs, labels and noise through the same model, mode, loss and
    steps of plain SGD; b is that of a guess that knows nothing of the inputs: all 0 (of images,
    the data set's mean), with the same labels and noise. Without b, any image with the right label
    explains 0.9999 of a LeNet's gradient, most of which is the classifier's.

    Args:
        update: what the server saw.
        knowledge: what it knows; ``num_samples`` is that of the reconstruction.
        reconstruction: what an attack made of the update.

    Returns:
        0 to 1; 0 as well where the guess is nearer, or the reconstruction is not finite. Noise that
        was not restored is drawn anew, the same for v and b.
    """
    model = copy.deepcopy(knowledge.model).cpu().double()
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    trained = [name for name in flags if flags[name] or not any(flags.values())]
    model.load_state_dict(update.sent)
    model.train(knowledge.training).requires_grad_(True)
    steps = knowledge.local_steps if update.protocol == "fedavg" else 1
    target = {n: v.double() for n, v in update.gradient(model, knowledge).items()}
    guess = replace(reconstruction, inputs=torch.zeros_like(reconstruction.inputs))
    distances = []
    for inputs in (reconstruction, guess):
        mean = _mean_gradient(copy.deepcopy(model), knowledge, inputs, steps, trained)
        distances.append(sum(float((target[n] - mean[n]).square().sum()) for n in trained))
    missed, most = distances
    share = 1 - missed / most if most else 0.0
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
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
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
