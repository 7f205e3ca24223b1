"""Dummy gradients compared with what one step of Adam tells, against the definition by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional

from fedleak.attacks.gradient_origin import TYPICAL
from fedleak.attacks.matching.costs import COSTS
from fedleak.attacks.matching.inverted_step import BoundedGradient
from fedleak.updates.files import Tensors
from fedleak.updates.gradient_estimate import change_of, estimate_gradient
from fedleak.updates.local_training import LocalTraining

ADAM = LocalTraining(optimizer="adam", learning_rate=1e-3)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def step_of_adam(scale: float = 1.0) -> tuple[nn.Module, tuple[Tensor, Tensor], Tensors, Tensors]:
    """A model, a batch, its gradient, and the change of weights by torch's own Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Sigmoid(), nn.Linear(8, 3))
    batch = torch.randn(2, 1, 6, 6), torch.tensor([0, 2])
    own = copy.deepcopy(model)
    (scale * loss(own, batch)).backward()
    gradient = {n: v.grad.clone() for n, v in own.named_parameters() if v.grad is not None}
    torch.optim.Adam(own.parameters(), 1e-3).step()
    sent = dict(model.named_parameters())
    return (
        model,
        batch,
        gradient,
        change_of(
            {n: v.detach() for n, v in sent.items()},
            {n: v.detach() for n, v in own.named_parameters()},
        ),
    )


def dummy_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> BoundedGradient:
    frozen = copy.deepcopy(model).requires_grad_(False)
    names = [name for name, _ in frozen.named_modules()]
    return BoundedGradient(frozen, loss, batch, {}, dense=names)


def test_products_by_hand() -> None:
    """Out of the bounds counts whole, within them a share, beyond a known sign nothing."""
    model, batch, _, _ = step_of_adam()
    dummy = dummy_of(model, batch)
    inf = math.inf
    wanted = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, -2.0, -2.0, 0.0])
    errors = torch.tensor([0.5, 0.5, 0.0, inf, inf, inf, inf, 0.25])
    given = torch.tensor([3.0, 1.2, 1.5, 9.0, 0.5, -1.0, 4.0, 0.2])
    expected = torch.tensor(
        [1 + 1.5 + TYPICAL * 0.5, 1 + TYPICAL * 0.2, 1.5, 2 + 0.0, 2 - 0.5, -2.0, -2 + 5.0,
         TYPICAL * 0.2]
    )  # fmt: skip
    target = dummy.bounded_targets([{"bias": wanted}], [{"bias": errors}])
    rows = {name: tuple(value[0] for value in found) for name, found in target.items()}
    products = dummy.compare({"bias": given}, {}, rows)["bias"]
    torch.testing.assert_close(products.inner, expected @ wanted)
    torch.testing.assert_close(products.dummy, expected @ expected)
    torch.testing.assert_close(products.target, wanted @ wanted)


def test_a_gradient_that_is_exact_is_compared_as_it_is() -> None:
    model, batch, gradient, _ = step_of_adam()
    dummy = dummy_of(model, batch)
    target = dummy.bounded_targets([gradient], [{}])
    rows = {name: tuple(value[0] for value in found) for name, found in target.items()}
    other = torch.randn_like(batch[0])
    products = dummy.products(other, batch[1], {}, rows)
    own = copy.deepcopy(model)
    loss(own, (other, batch[1])).backward()
    for name, value in own.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(products[name].inner, (value.grad * gradient[name]).sum())
        torch.testing.assert_close(products[name].dummy, value.grad.square().sum())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_clients_inputs_cost_less_than_by_the_estimate_alone(cost: str, scale: float) -> None:
    model, batch, gradient, change = step_of_adam(scale)
    sent = {n: v.detach() for n, v in model.named_parameters()}
    estimate = estimate_gradient(sent, change, ADAM)
    frozen = copy.deepcopy(model).requires_grad_(False)
    names = [name for name, _ in frozen.named_modules()]
    dummy = BoundedGradient(frozen, lambda m, b: scale * loss(m, b), batch, {}, dense=names)
    target = dummy.bounded_targets([estimate.gradient], [estimate.deviation])

    def cost_of(inputs: Tensor) -> Tensor:
        rows = {name: tuple(value[0] for value in found) for name, found in target.items()}
        return COSTS[cost](dummy.products(inputs, batch[1], {}, rows))

    whole = torch.cat([v.flatten() for v in gradient.values()])
    guess = torch.cat([estimate.gradient[n].flatten() for n in gradient])
    assert float(functional.cosine_similarity(whole, guess, 0)) < 1 - 1e-4 or scale < 1
    others = [torch.randn_like(batch[0]) for _ in range(3)]
    rows = vmap(cost_of)(torch.stack([batch[0], *others]))
    assert float(rows[0]) < 1e-3 * float(rows[1:].min())
    # It points the way: a step against the derivative lowers the cost.
    slope = grad(cost_of)(others[0])
    length = 1e-3 * float(others[0].norm() / slope.norm())
    assert float(cost_of(others[0] - length * slope)) < float(rows[1])
