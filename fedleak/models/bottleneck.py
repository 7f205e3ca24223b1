"""Variational bottlenecks: PRECODE before the classifier, CVB after the first convolution.

Scheliga, Maeder, Seeland: PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage,
WACV 2022, https://arxiv.org/abs/2108.04725, section 4; Privacy Preserving Federated Learning with
Convolutional Variational Bottlenecks, 2023, https://arxiv.org/abs/2309.04515.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import require, unknown_name
from fedleak.models.noise import NormalNoise

DEFAULT_SIZE = 256
Kind = Literal["linear", "convolutional"]


@dataclass(frozen=True)
class Precode:
    """The settings of a variational bottleneck.

    Args:
        bottleneck_size: K, the number of random features (linear) or channels (convolutional), at
            least 1. If None, 256 features, or half the number of input channels.
        beta: weight of the Kullback-Leibler term in the loss, at least 0.
        kind: ``linear``: PRECODE, before the classifier; ``convolutional``: a CVB after the first
            convolution.

    Raises:
        BadInput: if a value is out of its range.
    """

    bottleneck_size: int | None = None
    beta: float = 1e-3
    kind: Kind = "linear"

    def __post_init__(self) -> None:
        require(
            self.bottleneck_size is None or self.bottleneck_size >= 1,
            f"Expected `precode.bottleneck_size` to be at least 1, got {self.bottleneck_size}.",
        )
        require(self.beta >= 0, f"Expected `precode.beta` to be at least 0, got {self.beta}.")
        if self.kind not in get_args(Kind):
            raise unknown_name("value of `precode.kind`", self.kind, get_args(Kind))


def bottleneck_suffix(settings: Any) -> str:
    """The suffix of a model's name in tables: ``+precode``, ``+cvb`` or an empty text.

    Args:
        settings: a :class:`Precode`, its settings as a mapping, or None for no bottleneck.
    """
    if not settings:
        return ""
    kind = settings.get("kind") if isinstance(settings, Mapping) else settings.kind
    return "+cvb" if kind == "convolutional" else "+precode"


class Bottleneck(nn.Module):
    """Features -> random code -> features, sampled in train and eval mode alike.

    An encoder gives the mean and (through softplus) the standard deviation of the code, which is
    sampled as ``z = mean + eps * std`` with ``eps ~ N(0, 1)``; a decoder maps z back to features
    (PRECODE, WACV 2022, section 4).

    Args:
        encoder: maps features to twice as many channels as the code has: means, then standard
            deviations before the softplus.
        decoder: maps the code to features.
        beta: see :class:`Precode`.
        dim: the dimension along which the encoder's output is split.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, beta: float, dim: int) -> None:
        super().__init__()
        self.beta = beta
        self.encoder = encoder
        self.noise = NormalNoise()
        self.decoder = decoder
        self._dim = dim
        self._kl: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Pass features ``(batch, ...)`` through the random code; the shape is unchanged."""
        mean, raw = self.encoder(features).chunk(2, dim=self._dim)
        std = functional.softplus(raw)
        if self._dim == 1:  # sum over all entries of a sample
            self._kl = kl_bits(mean.flatten(1), std.flatten(1))
        else:
            self._kl = kl_bits(mean, std)
        decoded: Tensor = self.decoder(mean + self.noise(mean) * std)
        return decoded

    def __getstate__(self) -> dict[str, Any]:
        # The divergence belongs to a forward pass, so it is not copied with the module.
        return self.__dict__ | {"_kl": None}

    def take_kl(self) -> Tensor:
        """Return the KL divergence of the last forward pass in bits, and forget it.

        It is not kept, so that no graph and no ``torch.func`` tensor outlives its pass.

        Returns:
            A scalar, at least 0.

        Raises:
            RuntimeError: if there was no forward pass since the last call.
        """
        if self._kl is None:
            raise RuntimeError("Expected a forward pass before the divergence is read, got none.")
        kl, self._kl = self._kl, None
        return kl


class VariationalBottleneck(Bottleneck):
    """PRECODE: features ``(batch, features)`` through a code of K numbers; see :class:`Bottleneck`.

    Use it anywhere in a model of your own and add :func:`kl_penalty` to the loss.

    Args:
        features: number of input and output features.
        bottleneck_size: K, at least 1. If None, 256.
        beta: see :class:`Precode`.
    """

    def __init__(
        self, features: int, *, bottleneck_size: int | None = None, beta: float = 1e-3
    ) -> None:
        size = Precode(bottleneck_size, beta).bottleneck_size or DEFAULT_SIZE
        encoder, decoder = nn.Linear(features, 2 * size), nn.Linear(size, features)
        super().__init__(encoder, decoder, beta=beta, dim=-1)


class ConvolutionalBottleneck(Bottleneck):
    """CVB: feature maps ``(batch, C, H, W)`` through a code of K channels; see :class:`Bottleneck`.

    It has few parameters, so it can be placed early in a network, where most layers' gradients
    depend on its noise, and has no biases (Scheliga, Maeder, Seeland 2023,
    https://arxiv.org/abs/2309.04515). The kernel size of 3x3 is this project's choice.

    Args:
        channels: number of input and output channels.
        bottleneck_size: K, at least 1. If None, half the number of channels.
        beta: see :class:`Precode`.
    """

    def __init__(
        self, channels: int, *, bottleneck_size: int | None = None, beta: float = 1e-3
    ) -> None:
        size = Precode(bottleneck_size, beta).bottleneck_size or max(1, channels // 2)
        encoder, decoder = (
            nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1, bias=False)
            for incoming, outgoing in ((channels, 2 * size), (size, channels))
        )
        super().__init__(encoder, decoder, beta=beta, dim=1)


def kl_bits(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in bits, summed over features, averaged over the batch.

    Args:
        mean: shape ``(batch, K)``.
        std: standard deviation, shape ``(batch, K)``, positive.

    Returns:
        A scalar, at least 0.
    """
    nats = 0.5 * (mean.square() + std.square() - 1) - std.log()
    return nats.sum(dim=-1).mean() / math.log(2)


def kl_penalty(model: nn.Module) -> Tensor:
    """Beta times the KL divergence of the last forward pass, summed over a model's bottlenecks.

    Args:
        model: any module; without a bottleneck the penalty is 0.

    Returns:
        A scalar to be added to the loss.

    Raises:
        RuntimeError: if a bottleneck has had no forward pass.
    """
    penalty = torch.zeros(())
    for module in model.modules():
        if isinstance(module, Bottleneck):
            penalty = penalty + module.beta * module.take_kl()
    return penalty
