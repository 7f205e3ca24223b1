"""Updates of several clients that came as one: where their mean is the gradient of all samples.

The mean of the clients' gradients, weighted by their numbers of samples, is the gradient of all
their samples together if the loss is a mean over samples that do not depend on each other. It is
not where batch norm uses the statistics of each client's own batch, the loss is a sum, or classes
have weights.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from fedleak.attacks.embeddings import EMBEDDINGS, takes_numbers
from fedleak.attacks.module_facts import draws
from fedleak.models.noise import inject, record
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe

TOGETHER = "the mean of the clients' gradients is the gradient of all their samples together"
# Relative difference of gradients that are equal up to rounding, in float64 and in float32.
EQUAL, EQUAL_IN_SINGLE = 1e-9, 1e-4


def is_gradient_of_all(model: torch.nn.Module, knowledge: Knowledge, loss: LossProbe) -> bool:
    """Whether the mean of several clients' updates tells the gradient of all samples together.

    It takes one step of each, by SGD. The rest is tried with random samples: the mean of the
    gradients of the clients against the gradient of all.

    Args:
        model: the model with the sent weights, in the clients' modes; it is left as it is.
        knowledge: what is known of the clients.
        loss: what the loss does with labels.
    """
    if knowledge.steps > 1 or not (knowledge.protocol == "fedsgd" or knowledge.local.is_linear):
        return False
    if knowledge.labels is None and loss.cross_entropy and not loss.cross_entropy.is_even:
        return False  # whatever labels are tried, others may weigh more
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        try:
            whole, mean = _gradients(model, knowledge, loss)
        except Exception:  # of the user's own code, as of a batch norm on a single sample
            return False
    difference = sum(float((whole[name] - mean[name]).square().sum()) for name in whole)
    size = sum(float(value.square().sum()) for value in whole.values())
    kind = next(iter(whole.values())).dtype
    allowed = EQUAL if kind == torch.float64 else EQUAL_IN_SINGLE
    return size > 0 and difference <= allowed**2 * size


def as_one_client(knowledge: Knowledge) -> Knowledge:
    """What is known of one client who took one step on the samples of all.

    Args:
        knowledge: what is known of several clients of one step each.
    """
    one = knowledge.with_training(steps=1, epochs=None, batch_size=None)
    return replace(one, clients=1, aggregation="weighted_mean")


def _gradients(
    model: torch.nn.Module, knowledge: Knowledge, loss: LossProbe
) -> tuple[Tensors, Tensors]:
    """The gradient of random samples together, and the mean of those of the clients."""
    model = copy.deepcopy(model).to(next(loss.model.parameters()).dtype)
    for module in model.modules():
        if draws(module):
            module.eval()
    model.requires_grad_()
    inputs, labels = _random_batch(model, knowledge), _labels(model, knowledge, loss)
    with record(model) as notes, torch.no_grad():
        knowledge.loss(model, (inputs, labels))
    noise = {slot: values[0] for slot, values in notes.items() if values}

    def gradient(part: slice) -> Tensors:
        with inject(model, {slot: value[part] for slot, value in noise.items()}):
            value = knowledge.loss(model, (inputs[part], labels[part]))
        names, parameters = zip(*model.named_parameters(), strict=True)
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return dict(zip(names, found, strict=True))

    whole = gradient(slice(0, knowledge.num_samples))
    mean = {name: torch.zeros_like(value) for name, value in whole.items()}
    for client in knowledge.by_client:
        own = gradient(client.samples)
        mean = {name: value + client.weight * own[name] for name, value in mean.items()}
    return whole, mean


def _random_batch(model: torch.nn.Module, knowledge: Knowledge) -> Tensor:
    like = next(model.parameters())
    shape = (knowledge.num_samples, *knowledge.input_shape)
    if takes_numbers(knowledge) is None:
        return torch.randn(shape, dtype=like.dtype).to(like.device)
    sizes = [each.num_embeddings for each in model.modules() if isinstance(each, EMBEDDINGS)]
    return torch.randint(min(sizes), shape).to(like.device)


def _labels(model: torch.nn.Module, knowledge: Knowledge, loss: LossProbe) -> Tensor:
    """The labels that are known; else such as the loss takes, and different ones."""
    like, samples = next(model.parameters()), knowledge.num_samples
    if knowledge.labels is not None:
        labels = knowledge.labels
        return labels.to(like.device, like.dtype if labels.is_floating_point() else labels.dtype)
    if loss.kind == "classes":
        classes = max(1, loss.outputs)
        return (torch.arange(samples) % classes).to(like.device)
    if loss.kind in ("binary", "numbers"):
        labels = torch.rand(samples, *loss.shape)
        labels = labels.round() if loss.kind == "binary" else labels
        return labels.to(like.device, torch.long if loss.whole else like.dtype)
    return knowledge.dummy_labels(samples).to(like.device)
