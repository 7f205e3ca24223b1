"""The part before a pooled convolution, against what the model computes there."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.closed_form import pooled_trunk
from fedleak.attacks.closed_form.pooled_convolution import PooledConvolution, pooled_convolution
from fedleak.attacks.closed_form.pooled_trunk import before_pooling
from fedleak.attacks.closed_form.smooth_image import KnownTrunk
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.attacks.module_calls import calls_of
from fedleak.updates.files import Tensors

SHAPE = (1, 1, 18, 18)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def client() -> tuple[Tensor, nn.Sequential, Tensors, KnownTrunk, PooledConvolution, Trunk]:
    """An image, a model, its gradient, and what the attack knows before it searches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 24, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 9, 20), nn.ReLU(), nn.Linear(20, 5),
    ).double()  # fmt: skip
    coarse = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    image = functional.interpolate(coarse, size=SHAPE[2:], mode="bicubic").clamp(0, 1)
    batch = image, torch.tensor([3])
    names = [name for name, _ in model.named_parameters()]
    values = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    gradient = dict(zip(names, values, strict=True))
    entering = model[:7](image).detach().requires_grad_()
    (upstream,) = torch.autograd.grad(
        functional.cross_entropy(model[7:](entering), batch[1]), entering
    )
    bounds = torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    weights = {n: v for n, v in gradient.items() if n.split(".")[0] in ("0", "3")}
    known = KnownTrunk(
        Trunk(model, loss, batch, "7"), entering.detach(), upstream, weights, bounds, image.shape
    )
    convolution = pooled_convolution(model, loss, batch, calls_of(model, loss, batch), "7")
    assert convolution is not None
    return image, model, gradient, known, convolution, Trunk(model, loss, batch, "3")


def test_the_input_of_the_convolution_is_known_afterwards() -> None:
    image, model, gradient, known, convolution, before = client()
    part, choices = before_pooling(known, convolution, before, gradient, lambda *_: None)
    assert part is not None
    assert choices.residual <= pooled_trunk.FOUND
    assert part.trunk is before
    assert set(part.weights) == {"0.weight", "0.bias"}
    assert part.certain is not None
    assert float(part.certain.double().mean()) > 0.9
    true = model[:3](image).detach()
    torch.testing.assert_close(
        part.value[part.certain], true[part.certain], atol=1e-3, rtol=0, check_dtype=False
    )


def test_another_gradient_leaves_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.attacks.closed_form.pool_choices.ROUNDS", 1)
    monkeypatch.setattr(
        pooled_trunk, "coarse_image", lambda known, report: torch.rand(SHAPE).double()
    )
    _, _, gradient, known, convolution, before = client()
    wrong = gradient | {"3.weight": torch.randn_like(gradient["3.weight"])}
    part, choices = before_pooling(known, convolution, before, wrong, lambda *_: None)
    assert part is None
    assert choices.residual > pooled_trunk.FOUND
