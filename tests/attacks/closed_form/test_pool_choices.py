"""The choices of max pooling, against what torch chose."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form.pool_choices import _tabu_search, pool_choices, searchable
from fedleak.attacks.closed_form.pooled_convolution import PooledConvolution, pooled_convolution
from fedleak.attacks.module_calls import calls_of


def a_convolution() -> tuple[nn.Conv2d, PooledConvolution]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 16, 3)
    ).double()
    batch = torch.zeros(1, 2, 10, 10, dtype=torch.float64), torch.tensor([1])

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(module(batch[0]), batch[1])

    found = pooled_convolution(model, loss, batch, calls_of(model, loss, batch), "4")
    assert found is not None
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    return first, found


def test_input_and_gradient_of_a_pooled_convolution() -> None:
    convolution, structure = a_convolution()
    assert searchable(structure)
    truth = functional.interpolate(torch.rand(1, 2, 4, 4).double(), size=10, mode="bicubic").relu()
    truth.requires_grad_()
    pooled = functional.max_pool2d(convolution(truth).relu(), 2)
    upstream = torch.randn_like(pooled)
    gradient, entering = torch.autograd.grad(
        (pooled * upstream).sum(), [convolution.weight, truth]
    )  # fmt: skip
    pooled, truth = pooled.detach(), truth.detach()
    begin = (truth + 0.1 * torch.randn_like(truth)).relu()
    chosen = functional.max_pool2d(convolution(begin), 2, return_indices=True)[1]
    right = functional.max_pool2d(convolution(truth), 2, return_indices=True)[1]
    assert int((chosen != right)[pooled > 0].sum()) > 10
    found = pool_choices(structure, pooled, upstream, gradient, begin)
    assert found.residual < 1e-9
    assert found.equations == gradient.numel() + int((pooled > 0).sum())
    assert float(found.known.double().mean()) > 0.9
    torch.testing.assert_close(found.value[found.known], truth[found.known], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.gradient, entering)


def test_a_gradient_of_something_else_is_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.attacks.closed_form.pool_choices.ROUNDS", 2)
    convolution, structure = a_convolution()
    pooled = functional.max_pool2d(convolution(torch.rand(1, 2, 10, 10).double()).relu(), 2)
    found = pool_choices(
        structure, pooled.detach(), torch.randn_like(pooled),
        torch.randn_like(convolution.weight), torch.rand(1, 2, 10, 10).double(),
    )  # fmt: skip
    assert found.residual > 1e-2


def test_the_search_of_a_channel_finds_the_least_cost() -> None:
    """Against all combinations; the exchange of a single unit alone does not lower the cost."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        units, size = 4, 3
        root = torch.randn(units * size, 6, generator=generator).double()
        single = torch.randn(units * size, generator=generator).double()
        current = torch.randint(size, (units,), generator=generator)
        own = torch.arange(units) * size + current
        root[own], single[own] = 0.0, 0.0
        both = root @ root.mT
        cost, choices = _tabu_search(single, both, current)

        def cost_of(taken: Tensor, single: Tensor = single, both: Tensor = both) -> float:
            x = functional.one_hot(taken, 3).double().flatten()
            return float(single @ x + x @ both @ x)

        every = torch.cartesian_prod(*[torch.arange(size)] * units)
        assert abs(cost - cost_of(choices)) < 1e-9
        assert abs(cost - min(cost_of(taken) for taken in every)) < 1e-9
