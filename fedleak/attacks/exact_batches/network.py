"""Networks of linear layers with ReLU between them: forward pass and each sample's signals."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.module_calls import Call, calls_of
from fedleak.models.noise import noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe

# Relative agreement of the network that was read with the model, in float64.
AGREES = 1e-9
# Random inputs on which the two are compared.
TRIED = 4


class Trace(NamedTuple):
    """A forward pass of some samples.

    Args:
        inputs: input of each layer, the head's last, ``(samples, in)`` each.
        masks: 1 where a hidden unit is active, else 0, ``(samples, out)`` for each hidden layer.
        softmax: predicted probabilities, ``(samples, classes)``.
    """

    inputs: list[Tensor]
    masks: list[Tensor]
    softmax: Tensor


@dataclass(frozen=True)
class Network:
    """Hidden layers ``h_k = relu(W_k h_(k-1) + b_k)`` and a linear head, with cross entropy.

    The gradient of layer k, its bias's as a last column, is the sum over the samples of
    ``d_i^k (h_i^(k-1), 1)^T``, where d, the sample's signal, is the gradient of the loss with
    respect to the layer's output.

    Args:
        names: paths of the hidden layers, then of the head.
        weights: their weights, float64, ``(out, in)``.
        biases: their biases ``(out,)``; None of a layer without one.
        scale: the factor of a sample's loss in that of the batch, such as 1 / B of a mean.
        unit: unit roundoff of the client's arithmetic, such as 2^-24 of float32.
    """

    names: tuple[str, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    scale: float
    unit: float

    @property
    def hidden(self) -> int:
        """Number of hidden layers."""
        return len(self.weights) - 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.weights[-1])

    def has_bias(self, layer: int) -> bool:
        """Whether a layer has a bias.

        Args:
            layer: its number, from 0.
        """
        return self.biases[layer] is not None

    def extended(self, layer: int, inputs: Tensor) -> Tensor:
        """A layer's inputs with a last entry of 1 if it has a bias.

        Args:
            layer: its number.
            inputs: ``(samples, in)``.

        Returns:
            ``(samples, in + 1)``, or the inputs.
        """
        if not self.has_bias(layer):
            return inputs
        return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)

    def apply(self, layer: int, inputs: Tensor) -> Tensor:
        """Output of a layer before the ReLU, ``(samples, out)``.

        Args:
            layer: its number.
            inputs: ``(samples, in)``.
        """
        bias = self.biases[layer]
        output = inputs @ self.weights[layer].T
        return output if bias is None else output + bias

    def trace(self, inputs: Tensor) -> Trace:
        """The forward pass of some samples.

        Args:
            inputs: ``(samples, entries)``, float64.
        """
        entering, masks = [inputs], []
        for layer in range(self.hidden):
            output = self.apply(layer, entering[-1])
            masks.append((output > 0).to(output))
            entering.append(output * masks[-1])
        return Trace(entering, masks, self.apply(self.hidden, entering[-1]).softmax(dim=1))

    def signals(self, masks: list[Tensor], residuals: Tensor) -> list[Tensor]:
        """The samples' signals in each hidden layer.

        Args:
            masks: see :class:`Trace`.
            residuals: softmax minus one-hot label, ``(samples, classes)``.

        Returns:
            ``(samples, out)`` for each hidden layer.
        """
        found: list[Tensor] = []
        gradient = self.scale * residuals @ self.weights[-1]
        for layer in reversed(range(self.hidden)):
            found.append(gradient * masks[layer])
            if layer:
                gradient = found[-1] @ self.weights[layer]
        return found[::-1]

    def residuals(self, softmax: Tensor, labels: Tensor) -> Tensor:
        """Softmax minus one-hot labels, exact to rounding where a softmax is close to 1.

        Args:
            softmax: ``(samples, classes)``.
            labels: ``(samples,)``.

        Returns:
            ``(samples, classes)``; each row adds up to 0.
        """
        found = softmax.clone()
        rows = torch.arange(len(labels))
        found[rows, labels] = 0
        found[rows, labels] = -found.sum(dim=1)
        return found

    def gradients(self, gradient: Tensors, *, head: bool = False) -> list[Tensor]:
        """The gradients of the hidden layers, each bias's as a last column, in float64.

        Args:
            gradient: gradient by parameter name.
            head: whether that of the head follows.
        """
        found = []
        for layer in range(self.hidden + head):
            value = gradient[f"{self.names[layer]}.weight"].double().cpu()
            if self.has_bias(layer):
                bias = gradient[f"{self.names[layer]}.bias"].double().cpu()
                value = torch.cat([value, bias[:, None]], dim=1)
            found.append(value)
        return found


def read_network(knowledge: Knowledge, probe: LossProbe | None = None) -> Network | str:
    """The model as a :class:`Network`, or why it is none.

    The layers are read from a forward pass, and the result is compared with the model on random
    inputs, so that functions between the layers count as well.

    Args:
        knowledge: gives the model in the client's modes, the loss and the number of samples.
        probe: the loss as a function of the logits. If None, it is made.
    """
    read = _linear_calls(knowledge)
    if isinstance(read, str):
        return read
    kind = type(knowledge.model).__name__
    owned = {id(p) for call in read.layers for p in call.module.parameters()}
    if {id(p) for p in read.model.parameters()} - owned:
        return f"{kind} has other layers with weights than linear ones"
    scale = _scale_of(knowledge, read, probe)
    if isinstance(scale, str):
        return scale
    network = _network_of(read.layers, scale, read.unit)
    if network.weights[0].shape[1] != read.inputs[0].numel():
        return f"the first linear layer of {kind} does not take a whole sample"
    if not _is_chain(network, read.layers, read.inputs.flatten(1)):
        return f"{kind} is no chain of linear layers with ReLU between them"
    return network


def read_head(knowledge: Knowledge, probe: LossProbe | None = None) -> Network | str:
    """The linear layers with ReLU with which a model ends, or why it does not end so.

    Its inputs are features, which other layers compute.

    Args:
        knowledge: see :func:`read_network`.
        probe: see :func:`read_network`.
    """
    read = _linear_calls(knowledge)
    if isinstance(read, str):
        return read
    scale = _scale_of(knowledge, read, probe)
    if isinstance(scale, str):
        return scale
    for first in range(len(read.layers) - 1):
        layers = read.layers[first:]
        network = _network_of(layers, scale, read.unit)
        if layers[0].input.dim() == 2 and _is_chain(network, layers, layers[0].input):
            return network
    return f"{type(knowledge.model).__name__} does not end with linear layers with ReLU between"


class _Read(NamedTuple):
    """A model in float64, random inputs, and the calls of its linear layers."""

    model: nn.Module
    inputs: Tensor
    layers: list[Call]
    unit: float


def _linear_calls(knowledge: Knowledge) -> _Read | str:
    kind = type(knowledge.model).__name__
    model = copy.deepcopy(knowledge.model).cpu()
    unit = torch.finfo(next(model.parameters()).dtype).eps / 2
    if noise_slots(model):
        return f"{kind} draws noise"
    generator = torch.Generator().manual_seed(0)
    shape = (max(TRIED, knowledge.num_samples), *knowledge.input_shape)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = knowledge.dummy_labels(1).cpu()
    labels = labels.expand(len(inputs), *labels.shape[1:])
    labels = labels.double() if labels.is_floating_point() else labels
    try:
        calls = calls_of(model.double(), knowledge.loss, (inputs, labels))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"a forward pass of {kind} in float64 fails: {str(error).splitlines()[0]:.80}"
    layers = [call for call in calls if isinstance(call.module, nn.Linear)]
    if len(layers) < 2 or len({id(call.module) for call in layers}) < len(layers):
        return f"{kind} has no hidden layer, or uses a layer more than once"
    return _Read(model, inputs, layers, unit)


def _scale_of(knowledge: Knowledge, read: _Read, probe: LossProbe | None) -> float | str:
    """The factor of a sample's loss in that of the batch, or why the loss does not fit."""
    probe = probe or LossProbe(knowledge.model, knowledge)
    form = probe.cross_entropy
    if form is None or not form.is_even or form.is_smoothed or probe.layer != read.layers[-1].name:
        return "the loss is not a cross entropy in which all classes count alike"
    return 1 / (max(1, knowledge.num_samples) * float(form.divisor.mean()))


def _network_of(layers: list[Call], scale: float, unit: float) -> Network:
    modules = [call.module for call in layers if isinstance(call.module, nn.Linear)]
    return Network(
        tuple(call.name for call in layers),
        tuple(m.weight.detach().double() for m in modules),
        tuple(_double(m.bias) for m in modules),
        scale,
        unit,
    )


def _is_chain(network: Network, layers: list[Call], inputs: Tensor) -> bool:
    """Whether each layer takes what the network says."""
    trace = network.trace(inputs)
    return all(
        call.input.shape == own.shape and torch.allclose(call.input, own, rtol=AGREES, atol=AGREES)
        for call, own in zip(layers, trace.inputs, strict=True)
    )


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().double()
