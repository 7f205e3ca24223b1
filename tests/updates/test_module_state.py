"""The state that a forward pass leaves is put back."""

from collections import deque

import torch
from torch import Tensor, nn

from fedleak.updates.module_state import ModuleState, state_kept


class Average:
    """A running average as people write them."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0


class Leaving(nn.Module):
    """Leaves state in every way that Python has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.centre = torch.zeros(2)
        self.history: list[float] = []
        self.recent: deque[float] = deque([1.0, 2.0], maxlen=2)
        self.nested = {"labels": {3}, "tensors": (torch.zeros(2), [torch.zeros(2)])}
        self.average = Average()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        self.steps += 1
        self.centre.mul_(0.9).add_(y.detach().mean(0) + 1)
        self.history.append(float(y.sum()))
        self.recent.append(3.0)
        self.nested["labels"].add(7)
        self.nested["tensors"][0].add_(1)
        self.nested["tensors"][1][0].add_(1)
        self.nested["new"] = y
        self.average.sum += 1.0
        self.average.count += 1
        self.latest = y
        self.norm.eval()
        return y + self.centre


def noted(model: Leaving) -> tuple[object, ...]:
    tensors = [*model.state_dict().values(), model.centre, model.nested["tensors"][0]]
    tensors.append(model.nested["tensors"][1][0])
    return (
        [value.tolist() for value in tensors], list(model.history), list(model.recent),
        set(model.nested), set(model.nested["labels"]), vars(model.average).copy(),
        hasattr(model, "latest"), model.norm.training,
    )  # fmt: skip


def test_everything_is_put_back() -> None:
    torch.manual_seed(0)
    model, x = Leaving(), torch.randn(4, 2)
    before, places = noted(model), (model.history, model.nested, model.average, model.centre)
    state = ModuleState(model)
    results = []
    for copies in (False, False, True, False):
        with state.kept(copies=copies):
            results.append(model(x).detach().clone())
            assert noted(model) != before
        assert noted(model) == before
    assert all(torch.equal(result, results[0]) for result in results)
    assert places == (model.history, model.nested, model.average, model.centre)
    model(x)
    assert noted(model) != before


def test_put_back_after_an_error_as_well() -> None:
    model = nn.BatchNorm1d(2)
    try:
        with state_kept(model):
            model(torch.randn(3, 2))
            raise KeyError
    except KeyError:
        assert int(model.num_batches_tracked) == 0
        assert torch.equal(model.running_mean, torch.zeros(2))


def test_tensors_that_do_not_change_are_not_copied() -> None:
    model = nn.BatchNorm1d(2).eval()
    own, seen = model.running_mean, []
    model.register_forward_hook(lambda module, *_: seen.append(module.running_mean is own))
    state = ModuleState(model)
    for _ in range(2):
        with state.kept():
            model(torch.randn(3, 2))
    assert seen == [False, True]  # the first pass finds out
