"""A variational bottleneck and a classifier behind linear layers with ReLU (PRECODE)."""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact_batches.network import AGREES, Network
from fedleak.attacks.module_calls import Call, calls_of
from fedleak.models.noise import NormalNoise, inject, noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe


class Restored(NamedTuple):
    """What the signals of the encoder say of some samples.

    Args:
        noise: that of each sample, ``(samples, K)``.
        labels: ``(samples,)``.
        errors: relative disagreement of each signal with the model that has this noise,
            ``(samples,)``; 0 but for rounding if it is the signal of that sample.
    """

    noise: Tensor
    labels: Tensor
    errors: Tensor


@dataclass(frozen=True)
class RandomHead:
    """Hidden layers with ReLU, an encoder, noise, a decoder and a linear classifier.

    The encoder gives the code's mean m and, by the softplus, its standard deviation s; the code is
    ``m + s * noise`` (PRECODE, WACV 2022, section 4). The loss is a cross entropy plus a factor
    times the Kullback-Leibler divergence of the code from the standard normal distribution.

    Args:
        network: the hidden layers; its head is the encoder, and its scale is 1.
        slot: path of the noise.
        decoder: weight ``(features, K)`` and bias ``(features,)``, float64.
        classifier: weight ``(classes, features)`` and bias ``(classes,)``.
        scale: factor of a sample's cross entropy in the loss of the batch.
        divergence: factor of a sample's divergence, in nats.
    """

    network: Network
    slot: str
    decoder: tuple[Tensor, Tensor]
    classifier: tuple[Tensor, Tensor]
    scale: float
    divergence: float

    @property
    def noise_size(self) -> int:
        """K, the number of random numbers of a sample."""
        return self.decoder[0].shape[1]

    @property
    def by_residual(self) -> Tensor:
        """The gradient in the code by softmax minus label, ``(K, classes)``."""
        return self.scale * self.decoder[0].T @ self.classifier[0].T

    def signals(self, encoded: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the loss in the encoder's output, ``(samples, 2 K)``.

        Args:
            encoded: the encoder's outputs, ``(samples, 2 K)``.
            noise: ``(samples, K)``.
            labels: ``(samples,)``.
        """
        mean, raw = encoded.chunk(2, dim=1)
        residuals = self._softmax(encoded, noise)
        residuals[torch.arange(len(labels)), labels] -= 1
        by_code = residuals @ self.by_residual.T
        slope = raw.sigmoid()
        own, spread = self._of_divergence(mean, functional.softplus(raw))
        return torch.cat([by_code + own, (by_code * noise + spread) * slope], dim=1)

    def restored(self, encoded: Tensor, signals: Tensor) -> Restored:
        """Noise and labels of samples from their signals.

        The gradient in the mean, less that of the divergence, is linear in softmax minus label,
        whose only negative entry is the label's; that in the standard deviation is noise times the
        same. With this noise the model gives another softmax, which has to agree.

        Args:
            encoded: the encoder's outputs, ``(samples, 2 K)``.
            signals: gradients of the loss in them, ``(samples, 2 K)``.
        """
        if len(encoded) == 0:
            return Restored(
                encoded.new_zeros(0, self.noise_size), torch.zeros(0, dtype=torch.long),
                encoded.new_zeros(0),
            )  # fmt: skip
        mean, raw = encoded.chunk(2, dim=1)
        by_mean, by_raw = signals.chunk(2, dim=1)
        own, spread = self._of_divergence(mean, functional.softplus(raw))
        by_code = by_mean - own
        fit = torch.linalg.lstsq(self.by_residual, by_code.T, driver="gelsd").solution.T
        # They add up to 0.
        residuals = fit - fit.mean(dim=1, keepdim=True)
        labels = residuals.argmin(dim=1)
        noise = (by_raw / raw.sigmoid() - spread) / by_code
        noise = noise.nan_to_num(0, 0, 0)
        again = self.signals(encoded, noise, labels)
        size = by_code.norm(dim=1).clamp_min(1e-300)
        # The other half of the signal has the noise, which was computed from it.
        errors = (again.chunk(2, dim=1)[0] - by_mean).norm(dim=1) / size
        return Restored(noise, labels, errors.nan_to_num(torch.inf))

    def _of_divergence(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the divergence in mean and standard deviation."""
        return self.divergence * mean, self.divergence * (std - 1 / std)

    def _softmax(self, encoded: Tensor, noise: Tensor) -> Tensor:
        mean, raw = encoded.chunk(2, dim=1)
        code = mean + noise * functional.softplus(raw)
        features = code @ self.decoder[0].T + self.decoder[1]
        return (features @ self.classifier[0].T + self.classifier[1]).softmax(dim=1)


def read_random_head(knowledge: Knowledge, probe: LossProbe | None = None) -> RandomHead | str:
    """The model as a :class:`RandomHead`, or why it is none.

    Layers are read from a forward pass; the result is compared with the model, and the gradient
    that it gives with the model's own, on random inputs and noise.

    Args:
        knowledge: gives the model in the client's modes, the loss and the number of samples.
        probe: the loss as a function of the logits. If None, it is made.
    """
    kind = type(knowledge.model).__name__
    model = copy.deepcopy(knowledge.model).cpu()
    unit = torch.finfo(next(model.parameters()).dtype).eps / 2
    slots = noise_slots(model)
    if len(slots) != 1 or not isinstance(next(iter(slots.values())), NormalNoise):
        return f"{kind} draws other noise than that of one bottleneck"
    (slot,) = slots
    samples = max(1, knowledge.num_samples)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(
        (samples, *knowledge.input_shape), generator=generator, dtype=torch.float64
    )
    probe = probe or LossProbe(knowledge.model, knowledge)
    form = probe.cross_entropy
    if form is None or not form.is_even or form.is_smoothed:
        return "the loss is not a cross entropy in which all classes count alike"
    labels = torch.arange(samples) % probe.outputs
    try:
        calls = calls_of(model.double(), knowledge.loss, (inputs, labels))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"a forward pass of {kind} in float64 fails: {str(error).splitlines()[0]:.80}"
    found = _of_calls(calls, slot, 1 / (samples * float(form.divisor.mean())), unit)
    owned = {id(p) for call in calls if isinstance(call.module, nn.Linear)
             for p in call.module.parameters()}  # fmt: skip
    if found is None or {id(p) for p in model.parameters()} - owned:
        return f"{kind} is no chain of linear layers around a bottleneck"
    if found.network.weights[0].shape[1] != inputs[0].numel():
        return f"the first linear layer of {kind} does not take a whole sample"
    # The factor of the divergence, fitted to one draw, has to hold for another one.
    for _ in range(2):
        inputs = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(samples, found.noise_size, generator=generator, dtype=torch.float64)
        batch = _Batch(inputs, noise, labels)
        gradient = _gradient(model, knowledge, slot, batch)
        found = found if found.divergence else _with_divergence(found, gradient, batch)
        if not _agrees(found, gradient, batch):
            return f"{kind} computes another loss or bottleneck than PRECODE"
    return found


class _Batch(NamedTuple):
    """Random inputs ``(samples, ...)``, noise ``(samples, K)`` and labels ``(samples,)``."""

    inputs: Tensor
    noise: Tensor
    labels: Tensor


def _gradient(model: nn.Module, knowledge: Knowledge, slot: str, batch: _Batch) -> Tensors:
    with inject(model, {slot: batch.noise}), torch.enable_grad():
        loss = knowledge.loss(model.requires_grad_(), (batch.inputs, batch.labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, values, strict=True))


def _of_calls(calls: list[Call], slot: str, scale: float, unit: float) -> RandomHead | None:
    """The layers that were called, if they are as many and as large as they have to be."""
    at = next((i for i, call in enumerate(calls) if call.name == slot), None)
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    if at is None or len(linear) < 4 or len({id(call.module) for call in linear}) < len(linear):
        return None
    if [call for call in calls[:at] if isinstance(call.module, nn.Linear)] != linear[:-2]:
        return None
    modules = [cast(nn.Linear, call.module) for call in linear]
    if any(module.bias is None for module in modules):
        return None
    weights = [module.weight.detach().double() for module in modules]
    wide = [module.bias.detach().double() for module in modules]
    if weights[-3].shape[0] != 2 * weights[-2].shape[1]:
        return None
    if weights[-2].shape[0] != weights[-1].shape[1]:
        return None
    network = Network(
        tuple(call.name for call in linear[:-2]), tuple(weights[:-2]), tuple(wide[:-2]), 1.0, unit
    )
    return RandomHead(network, slot, (weights[-2], wide[-2]), (weights[-1], wide[-1]), scale, 0.0)


def _with_divergence(head: RandomHead, gradient: Tensors, batch: _Batch) -> RandomHead:
    """The head with the factor of the divergence that a gradient shows."""
    network = head.network
    encoded = network.apply(network.hidden, network.trace(batch.inputs.flatten(1)).inputs[-1])
    without, whole = (
        replace(head, divergence=factor).signals(encoded, batch.noise, batch.labels).sum(dim=0)
        for factor in (0.0, 1.0)
    )
    one, left = whole - without, gradient[f"{network.names[-1]}.bias"] - without
    factor = float(left @ one / one.square().sum())
    return replace(head, divergence=factor)


def _agrees(head: RandomHead, gradient: Tensors, batch: _Batch) -> bool:
    """Whether the head gives a gradient, up to rounding."""
    network = head.network
    trace = network.trace(batch.inputs.flatten(1))
    encoded = network.apply(network.hidden, trace.inputs[-1])
    signals = head.signals(encoded, batch.noise, batch.labels)
    layers = [*network.signals(trace.masks, signals), signals]
    for at, value in enumerate(network.gradients(gradient, head=True)):
        expected = layers[at].T @ network.extended(at, trace.inputs[at])
        if float((expected - value).norm()) > AGREES * float(value.norm()):
            return False
    return True
