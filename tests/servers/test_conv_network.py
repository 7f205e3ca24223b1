"""The parts of a network are found by calling it, and others are refused."""

import pytest
import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.servers.conv_network import (
    ConvNetwork,
    encode,
    encoder_features,
    find_network,
    linear_layers_lacking,
    with_weights,
)
from tests.servers.small_client import SHAPE, SmallNet, images, net

LAYERS = (nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def wide() -> nn.Linear:
    return nn.Linear(192, 192)


class Backwards(SmallNet):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        first = self.fc1
        del self.fc1
        self.fc1 = first


class Twice(SmallNet):
    def features(self, images: torch.Tensor) -> torch.Tensor:
        return super().features(images + self.conv1(images)[:, :3])


def test_the_parts_of_a_network_with_functional_layers() -> None:
    for model in (net(), Backwards()):
        found = find_network(model, SHAPE)
        assert found == ConvNetwork(("conv1", "conv2"), ("fc1", "fc2", "fc3"), 32, 20, 12, 4)


def test_a_network_without_encoder_takes_the_input_itself() -> None:
    found = find_network(nn.Sequential(nn.Flatten(), *LAYERS), SHAPE)
    assert found == ConvNetwork((), ("1", "3", "5"), 192, 6, 5, 3)


def test_features_are_what_enters_the_first_linear_layer() -> None:
    model, inputs = net(), images(30, 0)
    network = find_network(model, SHAPE)
    assert torch.equal(encoder_features(model, network, inputs), model.features(inputs))
    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(encode(model, network, inputs).sum(), inputs)
    (expected,) = torch.autograd.grad(model.features(inputs).sum(), inputs)
    assert torch.equal(gradient, expected)


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), wide(), nn.Dropout(), *LAYERS).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with pytest.raises(BadInput):
        find_network(model, SHAPE)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
    twin = with_weights(net(), {n: v + 1 for n, v in net().state_dict().items()})
    assert torch.equal(twin.fc1.bias, net().fc1.bias + 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (LAYERS[2:], "got Sequential with 2 linear layers"),
        ((*LAYERS, nn.Softmax(1)), "with ReLU between them and nothing after them"),
        ((LAYERS[0], nn.Tanh(), *LAYERS[2:]), "with ReLU between them and nothing after them"),
        ((wide(), nn.BatchNorm1d(192), nn.ReLU(), *LAYERS), "depends on other samples"),
        ((nn.Dropout(), *LAYERS), "depends on other samples or on chance"),
        ((nn.Linear(192, 6, bias=False), *LAYERS[1:]), "last three linear layers has no bias"),
        ((wide().half(), *LAYERS), "float16.* round too coarsely"),
    ],
)
def test_other_networks_are_refused(layers: tuple[nn.Module, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        find_network(nn.Sequential(nn.Flatten(), *layers), SHAPE)


def test_a_layer_that_is_called_twice_or_shared_is_refused() -> None:
    with pytest.raises(BadInput, match="call every layer once"):
        find_network(Twice(), SHAPE)
    model = nn.Sequential(nn.Flatten(), *LAYERS, nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    model[-2].bias = model[5].bias
    assert "two layers share a parameter" in str(linear_layers_lacking(model))
