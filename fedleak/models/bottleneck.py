"""PRECODE: a variational bottleneck in front of the classifier.

Scheliga, Maeder, Seeland: PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage,
WACV 2022, https://arxiv.org/abs/2108.04725, section 4.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import require
from fedleak.models.noise import NormalNoise


@dataclass(frozen=True)
class Precode:
    """The settings of a PRECODE bottleneck.

    Args:
        bottleneck_size: K, the number of random features, at least 1.
        beta: weight of the Kullback-Leibler term in the loss, at least 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    bottleneck_size: int = 256
    beta: float = 1e-3

    def __post_init__(self) -> None:
        require(
            self.bottleneck_size >= 1,
            f"Expected `precode.bottleneck_size` to be at least 1, got {self.bottleneck_size}.",
        )
        require(self.beta >= 0, f"Expected `precode.beta` to be at least 0, got {self.beta}.")


class VariationalBottleneck(nn.Module):
    """Features -> random code of K numbers -> features, sampled in train and eval mode alike.

    A linear encoder gives the mean and (through softplus) the standard deviation of the code,
    ``z = mean + eps * deviation``, and a linear decoder maps z back to the number of features.
    Use it anywhere in a model of your own and add :func:`kl_penalty` to the loss.

    Args:
        features: number of features that come in and go out.
        bottleneck_size: see :class:`Precode`.
        beta: see :class:`Precode`.
    """

    def __init__(self, features: int, *, bottleneck_size: int = 256, beta: float = 1e-3) -> None:
        super().__init__()
        settings = Precode(bottleneck_size, beta)
        self.beta = settings.beta
        self.encoder = nn.Linear(features, 2 * settings.bottleneck_size)
        self.noise = NormalNoise()
        self.decoder = nn.Linear(settings.bottleneck_size, features)
        self._kl: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape ``(batch, features)``, passed through the random code."""
        mean, raw = self.encoder(features).chunk(2, dim=-1)
        deviation = functional.softplus(raw)
        self._kl = kl_bits(mean, deviation)
        code: Tensor = self.decoder(mean + self.noise(mean) * deviation)
        return code

    def __getstate__(self) -> dict[str, Any]:
        # The divergence belongs to a pass, not to the module: a copy starts without it.
        return self.__dict__ | {"_kl": None}

    def take_kl(self) -> Tensor:
        """The divergence of the last forward pass in bits, handed out once.

        It is not kept, so that no graph and no ``torch.func`` tensor outlives its pass.

        Raises:
            RuntimeError: if there was no forward pass since the last call.
        """
        if self._kl is None:
            raise RuntimeError("The bottleneck has no forward pass to take the divergence of.")
        kl, self._kl = self._kl, None
        return kl


def kl_bits(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)) in bits, summed over features, averaged over the batch.

    Args:
        mean: shape ``(batch, K)``.
        deviation: shape ``(batch, K)``, positive.

    Returns:
        A scalar.
    """
    nats = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
    return nats.sum(dim=-1).mean() / math.log(2)


def kl_penalty(model: nn.Module) -> Tensor:
    """Beta times the divergence of the last forward pass, summed over a model's bottlenecks.

    Args:
        model: any module; without a bottleneck the penalty is 0.

    Returns:
        A scalar to be added to the loss.

    Raises:
        RuntimeError: if a bottleneck has had no forward pass.
    """
    penalty = torch.zeros(())
    for module in model.modules():
        if isinstance(module, VariationalBottleneck):
            penalty = penalty + module.beta * module.take_kl()
    return penalty
