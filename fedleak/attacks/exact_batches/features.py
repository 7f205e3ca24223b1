"""Features and labels of each sample of a batch, by the linear layers with which a model ends."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.exact_batches.network import Network
from fedleak.attacks.exact_batches.recovery import Recovery
from fedleak.attacks.exact_batches.remainder import Remainder
from fedleak.updates.files import Tensors

# Features are settled if the bound on their error is at most this share of their norm.
ACCURATE = 1e-2


class Features(NamedTuple):
    """Certified features.

    Args:
        inputs: inputs of the head, ``(samples, features)``, float64.
        labels: ``(samples,)``.
        bounds: bound on the norm of each one's error, ``(samples,)``.
    """

    inputs: Tensor
    labels: Tensor
    bounds: Tensor


def features_of(
    network: Network,
    gradient: Tensors,
    batch: int,
    generator: torch.Generator,
    *,
    starts: int,
    noise: list[Tensor] | None,
    progress: Callable[[int], None],
) -> Features:
    """The certified features of a batch.

    Features that occur more than once are left out: they may be the mean of as many that activate
    the same units, which the gradient does not tell apart, or the loss may be another.

    The head is to the features what a perceptron is to images, but that features are no 8-bit
    pixels and have no known range.

    Args:
        network: the head, from :func:`fedleak.attacks.exact_batches.network.read_head`.
        gradient: gradient by parameter name.
        batch: number of samples.
        generator: source of random draws.
        starts: highest number of random starts in succession that find nothing.
        noise: see :class:`fedleak.attacks.exact_batches.remainder.Remainder`.
        progress: called from time to time with the number of samples found.
    """
    entries = network.weights[0].shape[1]
    name = f"{network.names[-1]}.bias"
    unbounded = torch.full((entries,), torch.inf, dtype=torch.float64)
    recovery = Recovery(
        remainder=Remainder(network, network.gradients(gradient), batch, generator, noise),
        bounds=(-unbounded, unbounded),
        levels=None,
        shape=(entries,),
        head_bias=gradient[name].double().cpu() if network.has_bias(network.hidden) else None,
        generator=generator,
        starts=starts,
        rows=0,
        progress=progress,
    )
    recovery.run()
    found = recovery.remainder.found
    sure = (found.bounds <= ACCURATE * found.inputs.norm(dim=1)) & (found.counts == 1)
    return Features(found.inputs[sure], found.labels[sure], found.bounds[sure])


def gradient_of(network: Network, features: Features, at: int) -> Tensors:
    """The gradient of one sample in the head's parameters, by name, in float64.

    Args:
        network: the head.
        features: certified features.
        at: number of the sample.
    """
    inputs, label = features.inputs[at][None], features.labels[at][None]
    trace = network.trace(inputs)
    residuals = network.residuals(trace.softmax, label)
    signals = [*network.signals(trace.masks, residuals), network.scale * residuals]
    found: Tensors = {}
    for layer, name in enumerate(network.names):
        found[f"{name}.weight"] = signals[layer].T @ trace.inputs[layer]
        if network.has_bias(layer):
            found[f"{name}.bias"] = signals[layer][0]
    return found
