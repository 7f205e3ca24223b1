"""A gradient from a change of weights, against the one that torch.optim was given."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.updates.gradient_estimate import change_of, estimate_gradient
from fedleak.updates.local_training import LocalTraining
from tests.updates.test_optimizer_steps import CASES, IDS, facts_of


def one_step(optimizer: Any, settings: dict[str, Any], gradient: Tensor, weight: Tensor) -> Tensor:
    """The weight after torch's first step with a gradient."""
    value = torch.nn.Parameter(weight.clone())
    value.grad = gradient.clone()
    optimizer([value], lr=0.05, **settings).step()
    return value.detach()


@pytest.mark.parametrize(("name", "optimizer", "settings"), CASES, ids=IDS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_one_step_is_inverted_within_its_stated_error(
    name: str, optimizer: Any, settings: dict[str, Any], kind: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(500, generator=generator, dtype=torch.float64).to(kind)
    sizes = 10 ** (-10 * torch.rand(500, generator=generator, dtype=torch.float64))
    signs = torch.randn(500, generator=generator, dtype=torch.float64).sign()
    gradient = (signs * sizes).to(kind)
    moved = one_step(optimizer, settings, gradient, weight)
    facts = facts_of(name, optimizer, settings)
    sent = {"w": weight}
    found = estimate_gradient(sent, change_of(sent, {"w": moved}), facts)
    assert found.exact
    off = (found.gradient["w"].double() - gradient.double()).abs()
    rounding = torch.finfo(kind).eps
    if name == "sgd":
        # Weights are rounded, and a decay is cancelled.
        assert float(off.max()) < 20 * rounding * (1 + 0.1 / 0.05)
        return
    bound = found.deviation["w"]
    assert bool((off <= bound + 1e-9 * gradient.abs()).all())
    signed = bound.isinf()
    assert bool((found.gradient["w"].sign() == gradient.sign())[signed].all())
    assert bool(
        (found.gradient["w"].abs().double() / 2 <= 1.01 * gradient.abs().double())[signed].all()
    )
    # It says something: entries near eps are known to a per cent.
    near = (gradient.abs() < 100 * facts.epsilon) & (gradient.abs() > facts.epsilon)
    if not settings.get("weight_decay") and name != "adagrad" and kind == torch.float64:
        assert bool((bound[near] < 0.01 * gradient[near].abs()).all())


def test_several_steps_of_sgd_with_momentum_and_a_constant_gradient() -> None:
    facts = LocalTraining(learning_rate=0.1, momentum=0.5)
    # v: 1, 1.5, 1.75; their sum 4.25.
    sent, gradient = {"w": torch.tensor([3.0], dtype=torch.float64)}, 2.0
    change = {"w": torch.tensor([-0.1 * 4.25 * gradient], dtype=torch.float64)}
    found = estimate_gradient(sent, change, facts, 3)
    assert float(found.gradient["w"]) == pytest.approx(gradient)


def test_several_steps_with_a_schedule() -> None:
    facts = LocalTraining(learning_rate=0.1, schedule=lambda step: 0.5**step)
    sent = {"w": torch.zeros(1, dtype=torch.float64)}
    change = {"w": torch.tensor([-0.1 * 1.75 * 4.0], dtype=torch.float64)}
    assert float(estimate_gradient(sent, change, facts, 3).gradient["w"]) == pytest.approx(4.0)


def test_several_steps_of_adam_have_no_inverse() -> None:
    facts = LocalTraining(optimizer="adam", learning_rate=0.1)
    sent = {"w": torch.zeros(2)}
    found = estimate_gradient(sent, {"w": torch.tensor([-0.2, 0.1])}, facts, 2)
    assert not found.exact
    torch.testing.assert_close(found.gradient["w"], torch.tensor([1.0, -0.5]))
