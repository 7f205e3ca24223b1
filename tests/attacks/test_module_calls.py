"""Recorded calls: the chain before a layer, and calls that are skipped."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.module_calls import Call, calls_of, chain_to, skip_calls
from fedleak.updates.knowledge import batch_loss
from tests.cases import LIGHT_MODELS, case_victim, make_victim
from tests.toys import OwnClassifier


def test_chain_is_broken_by_a_function() -> None:
    own = next(case for case in LIGHT_MODELS if case.kind is OwnClassifier)
    victim = case_victim(own, precode=False)
    inputs = victim.truth.inputs
    calls = calls_of(victim.model, batch_loss, (inputs, victim.truth.labels))
    chain = chain_to(calls, "head", inputs)
    assert chain is not None
    # hidden -> tanh (a function) -> guard -> head
    assert [call.name for call in chain] == ["guard"]
    assert chain_to(calls, "nowhere", inputs) is None


class Residual(nn.Module):
    """Adds in place, so that the tensor stays the same object."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = nn.Conv2d(1, 1, 3, padding=1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(16, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.first(batch[0])
        leaving = self.second(features)
        leaving += features
        return functional.cross_entropy(self.head(input=self.flat(leaving)), batch[1])


def test_chain_is_broken_by_an_in_place_change() -> None:
    torch.manual_seed(0)
    victim = make_victim(Residual().double(), (1, 4, 4))
    calls = calls_of(victim.model, batch_loss, (victim.truth.inputs, victim.truth.labels))
    chain = chain_to(calls, "head", victim.truth.inputs)
    assert chain is not None
    assert [call.name for call in chain] == ["flat"]


def test_skipped_calls_leave_no_trace() -> None:
    layer = nn.Linear(2, 2)
    layer.forward = own = lambda value: value  # type: ignore[method-assign,assignment]
    call = Call("", layer, torch.zeros(1, 2), torch.ones(1, 2))
    with skip_calls([call]):
        assert torch.equal(layer(torch.zeros(1, 2)), torch.ones(1, 2))
    assert layer.forward is own
    other = nn.Linear(2, 2)
    with skip_calls([call._replace(module=other), call._replace(module=other, output=own)]):
        assert [other(0).tolist() if k == 0 else other(0) for k in range(2)] == [[[1.0, 1.0]], own]
    assert "forward" not in vars(other)
