"""Forward pass and signals against autograd, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.exact_batches.network import Network, read_network
from fedleak.models import SMLP, Precode
from fedleak.updates.knowledge import Knowledge
from tests.attacks.exact_batches.batches import SHAPE, cross_entropy, make_batch


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(64, 12, 5), (64, 12, 9, 7, 2)])
def test_signals_make_up_the_gradient(widths: tuple[int, ...], bias: bool) -> None:
    batch = make_batch(widths, 3, bias=bias)
    network, found = batch.network, batch.samples([0, 1, 2])
    trace = network.trace(found.inputs)
    signals = network.signals(trace.masks, found.residuals)
    for layer, gradient in enumerate(network.gradients(batch.gradient)):
        own = signals[layer].T @ network.extended(layer, trace.inputs[layer])
        torch.testing.assert_close(own, gradient)


def test_residuals_of_a_certain_sample_keep_their_digits() -> None:
    network = make_batch().network
    logits = torch.tensor([[60.0, 0, 0, 0, 0]], dtype=torch.float64)
    residual = network.residuals(logits.softmax(dim=1), torch.tensor([0]))[0]
    # 1 - softmax in double precision would be 0.
    assert float(residual[0]) == pytest.approx(-4 * math.exp(-60), rel=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_scale_is_that_of_the_loss(reduction: str) -> None:
    facts = make_batch(number=6).knowledge
    found = read_network(
        Knowledge(
            facts.model, SHAPE, 5, num_samples=6,
            loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction=reduction),
        )
    )  # fmt: skip
    assert isinstance(found, Network)
    assert found.scale == pytest.approx(1 / 6 if reduction == "mean" else 1)


class Functional(nn.Module):
    """ReLU as a function, which is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 3)
        self.act = functional.relu

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.two(self.act(self.one(images.flatten(1))))


def test_functions_between_the_layers_count() -> None:
    model = Functional()
    assert isinstance(read_network(Knowledge(model, SHAPE, 3, loss=cross_entropy)), Network)
    model.act = torch.tanh
    assert "no chain" in str(read_network(Knowledge(model, SHAPE, 3, loss=cross_entropy)))


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (SMLP(input_shape=SHAPE, num_classes=3, width=8, precode=Precode(2)), None, "draws noise"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), cross_entropy, "no hidden layer"),
        (
            nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3)
            ),
            cross_entropy, "other layers with weights",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)),
            lambda m, b: functional.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
            "not a cross entropy",
        ),
        (
            nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
            ),
            cross_entropy, "no chain",
        ),
    ],
    ids=["precode", "linear", "convolution", "smoothing", "dropout"],
)  # fmt: skip
def test_other_models_are_refused(model: nn.Module, loss, reason: str) -> None:
    facts = {} if loss is None else {"loss": loss}
    assert reason in str(read_network(Knowledge(model, SHAPE, 3, num_samples=4, **facts)))
