"""Weights under which each unit of a linear layer fires above its own threshold of one feature.

A client that trains such weights sends the features of single samples back. Unit ``j`` of the
first linear layer is ``gain * (x_k - t_j)``, or ``gain * (x_k - t_j x_m)``, its other weights are
exactly 0, and the second layer weighs all units alike. So the same signal comes back to all units
that a sample fires, and row ``j`` of the layer's update less row ``j + 1`` is the sum of
``c_i x_i`` over the samples between the two thresholds. This holds for the sum over a whole epoch
if the training moves neither the thresholds nor the equality of the second layer's columns, which
the scales below ensure.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.servers.bin_thresholds import Division
from fedleak.servers.conv_network import ConvNetwork
from fedleak.updates.files import Tensors


@dataclass(frozen=True)
class Scales:
    """Sizes of the weights of the three linear layers, powers of two where rounding matters.

    Args:
        gain: weight of the feature in the first layer.
        weight: every weight of the second layer.
        bias: every bias of the second layer.
        signal: weight of the third layer for a class of signal 1.
    """

    gain: float
    weight: float
    bias: float
    signal: float


TINY_RATE = Scales(1.0, 2.0**-7, 1.0, 2.0**-20)
"""For a learning rate so small that nothing moves; the logits stay near 0."""
ROUNDED = Scales(2.0**-20, 2.0**-26, 2.0**-43, 2.0**-43)
"""For SGD at the client's own rate. A step of a weight of the second layer is below half a unit of
its last place, so that float32 rounds it away, and the first layer's drift is far below the
distance of two thresholds. The second layer's biases drift, so that another input, see
:data:`KEEPER`, keeps its units firing for the samples in the bins."""
OVERFLOWING = Scales(1.0, 1.0, 1e25, 1e-20)
"""For Adam, whose steps are linear in gradients far below ``eps``. The third layer's gradient
cannot be tiny; it is so large that its square overflows, and the step is 0."""
KEEPER = 4.0
"""What the first unit adds to a unit of the second layer, at least, in units of its bias."""
REFUSED = -50.0
"""Bias of a class that the model is to find impossible."""


def bin_weights(
    sent: Tensors,
    network: ConvNetwork,
    *,
    division: Division,
    signals: Tensor,
    scales: Scales,
    only_class: int | None = None,
    first_gain: float | None = None,
) -> Tensors:
    """The weights that are sent; those of the encoder stay.

    Args:
        sent: the complete state of the model.
        network: its parts.
        division: the bins, ``units`` thresholds.
        signals: what a sample of each class sends back, relative to the others, ``(classes,)``,
            with a mean of 0, or with 0 for the class that the model always predicts.
        scales: sizes of the weights.
        only_class: the class of which alone a sample sends a signal back. If None, all do.
        first_gain: gain of the first unit. If None, that of the others.
    """
    weights = {name: value.detach().cpu().clone() for name, value in sent.items()}
    first, second, third = network.linear
    matrix = weights[f"{first}.weight"].zero_()
    gains = torch.full((network.units,), scales.gain, dtype=torch.float64)
    gains[0] = scales.gain if first_gain is None else first_gain
    limits = -gains * division.thresholds
    matrix[:, division.feature] = gains.to(matrix)
    weights[f"{first}.bias"].copy_(limits)
    if division.reference is not None:
        matrix[:, division.reference] = limits.to(matrix)
        weights[f"{first}.bias"].zero_()
    weights[f"{second}.weight"].fill_(scales.weight)
    weights[f"{second}.bias"].fill_(scales.bias)
    weights[f"{third}.weight"].copy_((-scales.signal * signals)[:, None].expand(-1, network.hidden))
    weights[f"{third}.bias"].zero_()
    if only_class is not None:
        weights[f"{third}.bias"][only_class] = REFUSED
    return weights


def keeping_gain(division: Division, features: Tensor, scales: Scales) -> float:
    """Gain with which the first unit keeps the second layer firing for the samples in the bins.

    Its threshold is far below the others, so that such a sample exceeds it by at least the distance
    to the second threshold. It then adds :data:`KEEPER` times the second layer's bias there.

    Args:
        division: the bins.
        features: of public samples, ``(public, features)``.
        scales: sizes of the weights.
    """
    least = float(division.thresholds[1] - division.thresholds[0])
    if division.reference is not None:
        # The unit sees the distance of the ratios times the reference.
        least *= float(features[:, division.reference].double().median())
    return KEEPER * scales.bias / (scales.weight * max(least, 1e-6))


def without_biases(sent: Tensors, network: ConvNetwork) -> Tensors:
    """The state with biases of 0 in all layers of the encoder but the first.

    Weight decay then shrinks the features of convolutions with ReLU and pooling by one factor, and
    leaves their direction.

    Args:
        sent: the complete state of the model.
        network: its parts.
    """
    state = dict(sent)
    for layer in network.encoder[1:]:
        if (name := f"{layer}.bias") in state:
            state[name] = torch.zeros_like(state[name])
    return state


def even_signals(classes: int) -> Tensor:
    """Signals of mean 0, none of them 0: steps 1, 2, ... in each half of the classes.

    Args:
        classes: number of classes, at least 2.

    Returns:
        float64 ``(classes,)``, the largest of size 1.
    """
    above = classes // 2
    up = torch.arange(1, above + 1, dtype=torch.float64)
    down = torch.arange(1, classes - above + 1, dtype=torch.float64)
    signals = torch.cat([up / up.sum(), -down / down.sum()])
    return signals / signals.abs().max()


def one_sided_signals(classes: int, winner: int) -> Tensor:
    """Signals 1, 2, 3, ... and 0 for the class that the model always predicts.

    Args:
        classes: number of classes, at least 2.
        winner: the class that is predicted.

    Returns:
        float64 ``(classes,)``.
    """
    others = torch.arange(1.0, classes, dtype=torch.float64)
    return torch.cat([others[:winner], torch.zeros(1, dtype=torch.float64), others[winner:]])


def shuffled(signals: Tensor, earlier: Tensor | None, generator: torch.Generator) -> Tensor:
    """The signals in another order, such that two samples in a bin would turn its direction.

    They do so if the factors by which their signals change from ``earlier`` to the new ones differ:
    of many random orders the one is taken in which the nearest two factors differ the most.

    Args:
        signals: ``(classes,)``; those that are 0 keep their place.
        earlier: the order that was sent before. If None, any order is taken.
        generator: random generator.
    """
    places = signals.nonzero().flatten()
    best, found = -1.0, signals
    for _ in range(1 if earlier is None else ORDERS):
        order = places[torch.randperm(len(places), generator=generator)]
        tried = signals.clone()
        tried[places] = signals[order]
        if earlier is None:
            return tried
        if (apart := separation(tried[places] / earlier[places])) > best:
            best, found = apart, tried
    return found


ORDERS = 2000
"""Number of orders of the classes' signals that are tried."""


def separation(factors: Tensor) -> float:
    """Least relative difference of two of several factors, from 0 to 1.

    Args:
        factors: ``(classes,)``, none 0.
    """
    pairs = torch.combinations(factors, 2)
    if not len(pairs):
        return 1.0
    apart = (pairs[:, 0] - pairs[:, 1]).abs() / pairs.abs().sum(dim=1)
    return float(apart.min())
