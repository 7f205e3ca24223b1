"""A chain of convolutions against autograd, which differentiates gradients once more."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from fedleak.attacks.closed_form.convolution_chain import ConvolutionChain
from fedleak.attacks.module_calls import Call
from tests.attacks.closed_form.layer_cases import rand


def calls(layers: list[nn.Module], x: Tensor) -> list[Call]:
    found = []
    for at, layer in enumerate(layers):
        leaving = layer.double()(x)
        found.append(Call(f"l{at}", layer, x.detach(), leaving.detach()))
        x = leaving
    return found


CHAINS: dict[str, list[nn.Module]] = {
    "one": [nn.Conv2d(2, 3, 3, stride=2, padding=1)],
    "sigmoid": [nn.Conv2d(2, 3, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(3, 4, (3, 2), 1, (0, 1))],
    "relu": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()],
    "three": [
        nn.Conv2d(2, 3, 3, dilation=2), nn.Tanh(), nn.Conv2d(3, 3, 3, 2, 1), nn.Sigmoid(),
        nn.Conv2d(3, 2, 2),
    ],
}  # fmt: skip


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", list(CHAINS))
def test_gradient_through_gradients_is_that_of_autograd(name: str, samples: int) -> None:
    x = rand(samples, 2, 9, 8)
    layers = calls(CHAINS[name], x)
    assert ConvolutionChain.applies(layers)
    chain = ConvolutionChain(layers)
    upstream = rand(*layers[-1].output.shape, seed=1)
    parameters = {
        f"{call.name}.{kind}": value
        for call in layers
        for kind, value in call.module.named_parameters()
    }
    every = list(parameters)
    for names in (every, every[-1:], every[:1], []):
        image = x.clone().requires_grad_()
        leaving = image
        for call in layers:
            leaving = call.module(leaving)
        wanted = [parameters[one] for one in names]
        expected = ()
        if names:
            expected = torch.autograd.grad((leaving * upstream).sum(), wanted, create_graph=True)
        output, found = chain.forward(x, upstream, names)
        torch.testing.assert_close(output, leaving.detach())
        assert list(found) == names
        for one, value in zip(names, expected, strict=True):
            torch.testing.assert_close(found[one], value.detach())
        weights = {one: rand(*value.shape, seed=3) for one, value in found.items()}
        mixed = rand(*output.shape, seed=2)
        total = (leaving * mixed).sum()
        for one, value in zip(names, expected, strict=True):
            total = total + (value * weights[one]).sum()
        (slope,) = torch.autograd.grad(total, image)
        torch.testing.assert_close(chain.backward(mixed, weights), slope)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 3, padding="same"), weight_norm(nn.Conv2d(2, 2, 3).double()), nn.GELU(),
        nn.Flatten(),
    ],
    ids=["groups", "circular", "same", "weight_norm", "gelu", "flatten"],
)  # fmt: skip
def test_other_layers_are_left_to_autograd(layer: nn.Module) -> None:
    assert not ConvolutionChain.applies(calls([layer], rand(1, 2, 9, 8)))


def test_patches_too_large_for_memory_are_left_to_autograd() -> None:
    layer = nn.Conv2d(3, 1, 3, padding=1)
    for side, fits in ((512, True), (1024, False)):
        x = torch.zeros(1)
        call = Call("l", layer, x.expand(1, 3, side, side), x.expand(1, 1, side, side))
        assert ConvolutionChain.applies([call]) == fits
