"""The clients' optimisers against torch.optim itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.errors import BadInput
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.optimizer_steps import State, optimizer_step

CASES: list[tuple[str, type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ("sgd", torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.1}),
    ("sgd", torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    ("adam", torch.optim.Adam, {}),
    ("adam", torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("adam", torch.optim.Adam, {"amsgrad": True, "betas": (0.9, 0.5)}),
    ("adam", torch.optim.Adam, {"maximize": True}),
    ("adamw", torch.optim.AdamW, {}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    ("rmsprop", torch.optim.RMSprop, {}),
    ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("adagrad", torch.optim.Adagrad, {}),
    ("adagrad", torch.optim.Adagrad, {
        "lr_decay": 0.1, "initial_accumulator_value": 0.2, "weight_decay": 0.1,
    }),
]  # fmt: skip
IDS = [f"{name}-{'-'.join(settings) or 'defaults'}" for name, _, settings in CASES]
STEPS = 10


def facts_of(name: str, kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> Any:
    own = {
        "initial_accumulator" if key == "initial_accumulator_value" else key: value
        for key, value in settings.items()
    }
    if kind is torch.optim.AdamW:
        own.setdefault("weight_decay", 0.01)  # torch's default
    return LocalTraining(optimizer=name, learning_rate=0.05, **own)  # type: ignore[arg-type]


def model_and_loss(kind: torch.dtype) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)).to(kind)
    x, y = torch.randn(5, 6, dtype=kind), torch.tensor([0, 1, 2, 1, 0])
    return net, lambda: nn.functional.cross_entropy(net(x), y)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "optimizer", "settings"), CASES, ids=IDS)
def test_ten_steps_agree_with_torch(
    name: str, optimizer: Any, settings: dict[str, Any], kind: torch.dtype
) -> None:
    net, loss = model_and_loss(kind)
    begin = {n: v.detach().clone() for n, v in net.named_parameters()}
    torchs = optimizer(net.parameters(), lr=0.05, **settings)
    seen: list[dict[str, Tensor]] = []
    for _ in range(STEPS):
        torchs.zero_grad()
        loss().backward()
        seen.append({n: v.grad.clone() for n, v in net.named_parameters() if v.grad is not None})
        torchs.step()
    facts = facts_of(name, optimizer, settings)
    weights, state = begin, State()
    for step, gradients in enumerate(seen):
        changes, state = optimizer_step(facts, weights, gradients, state, step)
        weights = {n: value + changes[n] for n, value in weights.items()}
    exact = 1e-5 if kind == torch.float32 else 1e-12
    for n, value in net.named_parameters():
        change, found = value.detach() - begin[n], weights[n] - begin[n]
        torch.testing.assert_close(found, change, rtol=exact, atol=exact)
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), change.flatten(), dim=0)
        assert float(cosine) > 0.9999


def test_a_schedule_and_settings_by_parameter_agree_with_torch() -> None:
    net, loss = model_and_loss(torch.float64)
    begin = {n: v.detach().clone() for n, v in net.named_parameters()}
    bias = [v for n, v in net.named_parameters() if n.endswith("bias")]
    weight = [v for n, v in net.named_parameters() if n.endswith("weight")]
    torchs = torch.optim.SGD(
        [{"params": weight}, {"params": bias, "weight_decay": 0.0, "lr": 0.2}],
        lr=0.05, weight_decay=0.1, momentum=0.9,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.ExponentialLR(torchs, 0.7)
    facts = LocalTraining(
        learning_rate=0.05, weight_decay=0.1, momentum=0.9, schedule=lambda step: 0.7**step,
        per_parameter={"*.bias": {"weight_decay": 0.0, "learning_rate": 0.2}},
    )  # fmt: skip
    weights, state = begin, State()
    for step in range(STEPS):
        torchs.zero_grad()
        loss().backward()
        gradients = {n: v.grad.clone() for n, v in net.named_parameters() if v.grad is not None}
        torchs.step()
        schedule.step()
        changes, state = optimizer_step(facts, weights, gradients, state, step)
        weights = {n: value + changes[n] for n, value in weights.items()}
    for n, value in net.named_parameters():
        torch.testing.assert_close(weights[n], value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "optimizer", "settings"), CASES, ids=IDS)
def test_steps_are_differentiable_where_gradients_are_zero(
    name: str, optimizer: Any, settings: dict[str, Any]
) -> None:
    gradient = torch.tensor([0.0, 1e-9, 0.5], requires_grad=True)
    facts, weights, state, total = facts_of(name, optimizer, settings), torch.ones(3), State(), 0.0
    for step in range(3):
        changes, state = optimizer_step(facts, {"w": weights}, {"w": gradient}, state, step)
        total = total + changes["w"].sum()
    (found,) = torch.autograd.grad(total, gradient)
    assert bool(found.isfinite().all())


def test_an_unknown_optimiser_is_refused() -> None:
    one = {"w": torch.ones(1)}
    with pytest.raises(BadInput, match="unknown"):
        optimizer_step(LocalTraining(optimizer="unknown", learning_rate=1.0), one, one, {}, 0)
    with pytest.raises(BadInput, match="learning_rate"):
        optimizer_step(LocalTraining(), one, one, {}, 0)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad"])
def test_smoothing_is_added_to_eps(name: Any) -> None:
    torch.manual_seed(0)
    weights, gradients = ({"a": torch.randn(5), "b": torch.randn(2, 3)} for _ in range(2))
    more = {"a": torch.tensor(0.5), "b": torch.tensor(0.25)}
    facts = LocalTraining(optimizer=name, learning_rate=0.1)
    found, _ = optimizer_step(facts, weights, gradients, {}, 0, more)
    for parameter, value in found.items():
        other = LocalTraining(
            optimizer=name, learning_rate=0.1, eps=facts.epsilon + float(more[parameter])
        )
        expected, _ = optimizer_step(other, weights, gradients, {}, 0)
        torch.testing.assert_close(value, expected[parameter])
