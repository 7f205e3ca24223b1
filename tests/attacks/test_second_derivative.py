"""Which models are refused before a federation starts, and which part of them is named."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.second_derivative import refusal
from fedleak.updates.knowledge import Knowledge
from tests.attacks.matching.test_differentiation import Base, Branch, NotTwice, Numpy
from tests.attacks.test_private_model import Accuracy, Encoder, loss


def facts(model: nn.Module, **settings: object) -> Knowledge:
    return Knowledge(model, (1, 4, 4), 3, num_samples=1, **settings)


def test_a_layer_without_a_second_derivative_is_named() -> None:
    model = NotTwice()
    reason = refusal(facts(model))
    assert reason is not None
    assert reason.startswith(
        "Expected a model that can be differentiated twice, but `wave` of NotTwice fails there: "
    )
    assert all(value.grad is None for value in model.parameters())


def test_models_that_are_attacked_on_any_road_are_not_refused() -> None:
    for kind in (Base, Branch, Numpy, Accuracy):
        assert refusal(facts(kind())) is None
    for train in (True, False):
        model = Encoder().train(train)
        known = Knowledge(model, (3, 8, 8), 10, num_samples=1, loss=loss)
        assert refusal(known) is None


class Tokens(nn.Module):
    """Takes no floating-point inputs, of which nothing is said here."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(5, 3)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.rows(batch[0]).mean(1), batch[1])


def test_inputs_that_are_no_numbers_with_a_point() -> None:
    torch.manual_seed(0)
    assert refusal(Knowledge(Tokens(), (4,), 3, num_samples=1)) is None
