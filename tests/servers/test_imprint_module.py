"""The module in front of a model: what it changes, what is read through it, and runs with it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.servers.imprint_module import ImprintModule
from fedleak.updates.private_model import private_copy
from tests.servers.perceptrons import attacked, generator, knowledge_of, true_samples
from tests.servers.small_client import SHAPE, images, net

FACTS = {"input_shape": SHAPE, "mean": (0.5,) * 3, "std": (0.5,) * 3}


class Called(nn.Module):
    """Takes its input by name, in its own method."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, pixels: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * self.layer(pixels.flatten(1))


def test_the_model_computes_what_it_did_until_the_way_back_has_weights() -> None:
    before, inputs = net(), images(5, 0)
    model = ImprintModule(units=7).changed_model(net(), SHAPE)
    assert torch.equal(model(inputs), before(inputs))
    assert set(model.state_dict()) - set(before.state_dict()) == {
        "imprint.bins.weight", "imprint.bins.bias", "imprint.back.weight",
    }  # fmt: skip
    with torch.no_grad():
        model.imprint.back.weight.fill_(0.01)
    flat = inputs.flatten(1)
    fires = (flat @ model.imprint.bins.weight.T + model.imprint.bins.bias).relu()
    shifted = (flat + 0.01 * fires.sum(1, keepdim=True)).reshape(inputs.shape)
    torch.testing.assert_close(model(inputs), before(shifted))
    for twin in (copy.deepcopy(model), private_copy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(inputs), model(inputs))


def test_inputs_by_name_pass_through_the_module() -> None:
    model = ImprintModule(units=4).changed_model(Called(), (3, 2, 2))
    with torch.no_grad():
        model.imprint.back.weight.fill_(0.5)
    inputs = images(4, 0)[:, :, :2, :2]
    assert torch.equal(model(pixels=inputs, scale=2.0), model(inputs, scale=2.0))
    assert not torch.equal(model(inputs), model.layer(inputs.flatten(1)))


@pytest.mark.parametrize("seed", range(2))
def test_samples_alone_in_a_bin_are_read_through_convolutions(seed: int) -> None:
    server, inputs, labels = ImprintModule(units=120), images(16, seed), torch.arange(16) % 4
    model = server.changed_model(net(), SHAPE)
    crafted, reading = attacked(server, model, inputs, labels, images(600, 99), **FACTS)
    thresholds = -crafted.weights["imprint.bins.bias"].double()
    bins = (inputs.flatten(1).double().mean(1)[:, None] > thresholds).sum(1)
    counts = torch.bincount(bins, minlength=121)
    alone = {i for i in range(16) if bins[i] > 0 and counts[bins[i]] == 1}
    numbers = true_samples(reading, inputs)
    assert set(numbers.tolist()) <= alone
    assert len(numbers) >= len(alone) - 1 >= 8
    assert torch.equal(reading.labels, labels[numbers])
    assert int(reading.certified.sum()) >= len(alone) // 2
    sure = reading.inputs[reading.certified].double()
    own = inputs[numbers[reading.certified]].double()
    assert float((sure - own).abs().max()) < 1e-3


def test_refusals() -> None:
    server = ImprintModule()
    assert "is without the module" in str(server.refuses_model(net()))
    with pytest.raises(BadInput, match="imprint_module can attack, but SmallNet is without"):
        server.craft(knowledge_of(net(), 4, **FACTS), public=None, generator=generator())
    changed = server.changed_model(net(), SHAPE)
    with pytest.raises(BadInput, match="Expected a model without an attribute `imprint`"):
        server.changed_model(changed, SHAPE)
    changed.add_module("norm", nn.BatchNorm2d(3))
    assert "`norm` of SmallNet makes samples depend" in str(server.refuses_model(changed))
    with pytest.raises(BadInput, match="Expected `units` of imprint_module to be at least 2, got"):
        ImprintModule(units=1)
