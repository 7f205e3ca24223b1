"""The convolution before a pooling: found by what the model computes, however it is written."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.pooled_convolution import PooledConvolution, pooled_convolution
from fedleak.attacks.module_calls import calls_of

BATCH = torch.zeros(1, 2, 11, 10, dtype=torch.float64), torch.tensor([1])


class Net(nn.Module):
    """Two convolutions; what follows the second is a function of its output."""

    def __init__(self, after: Any, features: int, **settings: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3)
        self.second = nn.Conv2d(3, 4, 3, **settings)
        self.after, self.last = after, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        entering: Tensor = self.after(self.second(torch.relu(self.first(x))))
        return self.last(entering.flatten(1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def found_in(model: nn.Module) -> PooledConvolution | None:
    model = model.double()
    return pooled_convolution(model, loss, BATCH, calls_of(model, loss, BATCH), "last")


@pytest.mark.parametrize(
    ("after", "features", "settings"),
    [
        (lambda x: functional.max_pool2d(functional.relu(x), 2), 36, {}),
        (lambda x: torch.relu(functional.max_pool2d(x, 3, 2, 1)), 48, {}),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d((2, 3), stride=1)), 96, {"bias": False}),
        (nn.ReLU(inplace=True), 48, {"stride": 2, "padding": 1}),
    ],
)
def test_outputs_and_windows(after: Any, features: int, settings: dict[str, Any]) -> None:
    """Outputs from the patches, and their largest by window, are those of torch."""
    torch.manual_seed(0)
    model = Net(after, features, **settings)
    if settings.get("stride"):
        model.last = nn.Linear(4 * 5 * 4, 3)
    found = found_in(model)
    assert found is not None
    assert found.name == "second"
    entering = torch.randn(found.shape, dtype=torch.float64)
    expected = after(model.second(entering)).flatten()
    padded = torch.cat([entering[0].flatten(1), torch.zeros(3, 1).double()], dim=1)
    outputs = torch.einsum("oik,ikp->op", found.weight.flatten(2), padded[:, found.patches])
    outputs = torch.cat([outputs + found.bias[:, None], torch.full((4, 1), -torch.inf)], dim=1)
    pooled = outputs[:, found.windows].amax(dim=2).relu()
    torch.testing.assert_close(pooled.flatten(), expected)


@pytest.mark.parametrize(
    "after",
    [
        lambda x: functional.max_pool2d(2 * functional.relu(x), 2),
        lambda x: functional.avg_pool2d(functional.relu(x), 2),
        lambda x: functional.max_pool2d(torch.sigmoid(x), 2),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    ],
)
def test_what_lies_between_is_not_only_relu_and_max_pooling(after: Any) -> None:
    assert found_in(Net(after, 36)) is None


def test_other_convolutions() -> None:
    between = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    for settings in ({"padding": 1, "padding_mode": "reflect"}, {"groups": 1, "padding": "same"}):
        model = Net(between, 64, **settings)
        assert (found_in(model) is None) == ("padding_mode" in settings)
