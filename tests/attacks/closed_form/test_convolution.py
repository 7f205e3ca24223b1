"""The linear maps of a convolution, against autograd."""

import math
from typing import Any

import pytest
import torch

from fedleak.attacks.closed_form.convolution import ConvolutionMaps
from tests.attacks.closed_form.layer_cases import CONVOLUTIONS, SPARSE, conv, rand


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS, *SPARSE], ids=str)
def test_maps_of_a_convolution(settings: dict[str, Any], samples: int) -> None:
    module = conv(**settings | {"bias": False})
    value = rand(2, samples, 4, 6, 7)
    leaving = rand(*module(value[0]).shape, seed=1)
    outputs, products = ConvolutionMaps(module).outputs_and_weight_gradients(value, leaving)
    for row in range(2):
        expected = module(value[row])
        torch.testing.assert_close(outputs[row], expected)
        (gradient,) = torch.autograd.grad((expected * leaving).sum(), module.weight)
        torch.testing.assert_close(products[row], gradient)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS, *SPARSE], ids=str)
def test_gram_matrices_of_a_plane(settings: dict[str, Any], samples: int) -> None:
    """Against the maps applied to every unit vector of every channel of every sample."""
    module = conv(**settings | {"bias": False}).requires_grad_(False)
    shape = (samples, 4, 3, 4) if module.kernel_size[0] <= 3 else (samples, 4, 5, 4)
    leaving = rand(*module(torch.zeros(shape).double()).shape, seed=1)
    counted = (rand(*leaving.shape, seed=2) > 0).double()
    planes, size = samples * 4, shape[2] * shape[3]
    basis = torch.eye(planes * size, dtype=torch.float64).reshape(-1, *shape)
    outputs, products = ConvolutionMaps(module).outputs_and_weight_gradients(basis, leaving)
    found = ConvolutionMaps(module).gram_matrices(leaving, counted, shape)
    for rows, gram in zip(((outputs * counted), products), found, strict=True):
        columns = rows.reshape(planes, size, -1)
        expected = (columns @ columns.mT).mean(dim=0)
        torch.testing.assert_close(gram, expected)


@pytest.mark.parametrize("scales", [(0.5, 3.0), (2.0,)], ids=["both", "outputs alone"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS, *SPARSE], ids=str)
def test_gram_matrix_of_all_unknowns(
    settings: dict[str, Any], samples: int, scales: tuple[float, ...]
) -> None:
    """Against the maps applied to every unit vector."""
    module = conv(**settings | {"bias": False}).requires_grad_(False)
    shape = (samples, 4, 3, 4) if module.kernel_size[0] <= 3 else (samples, 4, 5, 4)
    leaving = rand(*module(torch.zeros(shape).double()).shape, seed=1)
    weights = rand(*leaving.shape, seed=2).relu()
    maps = ConvolutionMaps(module)
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    outputs, products = maps.outputs_and_weight_gradients(basis, leaving)
    expected = torch.zeros(len(basis), len(basis), dtype=torch.float64)
    for columns, scale in zip(((outputs * weights), products), scales, strict=False):
        expected += scale * columns.flatten(1) @ columns.flatten(1).mT
    found = maps.whole_gram_matrix(leaving, weights, shape, scales)
    torch.testing.assert_close(found, expected)
