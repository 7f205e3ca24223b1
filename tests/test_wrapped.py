"""Plain modules as models of a run."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import BadInput
from fedleak.models.first_batch import first_batch
from fedleak.registry import Untrusted, known_classes_only
from fedleak.wrapped import Wrapped

HERE = "tests.test_wrapped"
IMAGES, LABELS = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])


class Plain(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[1] * input_shape[2], width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class OwnLoss(Plain):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) ** 2).mean() + batch_idx


class Broken(nn.Module):
    def __init__(self) -> None:
        raise ZeroDivisionError("no layers")


def wrapped(name: str = "Plain", **settings: object) -> Wrapped:
    return Wrapped(
        module=f"{HERE}.{name}", settings=settings, learning_rate=0.5, input_shape=(1, 2, 2),
        num_classes=3,
    )  # fmt: skip


def test_the_loss_is_the_modules_own_or_cross_entropy() -> None:
    model = wrapped()
    expected = functional.cross_entropy(model(IMAGES), LABELS)
    assert torch.equal(model.training_step((IMAGES, LABELS), 0), expected)
    own = wrapped("OwnLoss")
    assert torch.equal(own.batch_loss((IMAGES, LABELS)), (own(IMAGES) ** 2).mean())


def test_it_is_trained_by_plain_sgd() -> None:
    facts = first_batch(
        wrapped(width=5), tuple(IMAGES.shape[1:]), train=True, samples=1, batch_size=1, epochs=None
    ).training
    assert facts.is_plain_sgd
    assert facts.learning_rate == 0.5
    assert dict(wrapped(width=5).named_parameters())["module.layer.weight"].shape == (5, 4)


def test_what_cannot_be_wrapped() -> None:
    with pytest.raises(
        BadInput, match=r"with which `tests.test_wrapped.Broken` can be made, got \{\}"
    ):
        wrapped("Broken")
    with pytest.raises(BadInput, match=r"Plain` can be made, got .*widht.*TypeError"):
        wrapped(widht=5)
    with pytest.raises(BadInput, match=r"a subclass of torch.nn.Module, got `fractions.Fraction`"):
        Wrapped(module="fractions.Fraction", input_shape=(1, 2, 2), num_classes=3)
    with pytest.raises(BadInput, match="`learning_rate` to be positive, got 0"):
        Wrapped(module=f"{HERE}.Plain", learning_rate=0, input_shape=(1, 2, 2), num_classes=3)
    with known_classes_only(), pytest.raises(Untrusted, match="give `--trust`"):
        wrapped()
