"""Rows of several images, taken apart."""

import pytest
import torch

from fedleak.attacks.exact_batches.row_integers import take_apart
from tests.attacks.exact_batches.larger_images import SIDE, larger_images


@pytest.mark.parametrize(
    ("number", "kind"), [(2, torch.float32), (2, torch.float64), (3, torch.float64)]
)
def test_images_and_amplitudes_come_out(number: int, kind: torch.dtype) -> None:
    images = larger_images(number, seed=number).flatten(1)
    # Square roots, between which there are no small integer relations.
    factors = torch.tensor([0.02, -0.03, 0.05], dtype=kind)[:number]
    factors = factors.sign() * factors.abs().sqrt()
    row = (factors @ (images.to(kind) / 255)).double()
    rounding = float(torch.finfo(kind).eps / 2 * row.square().mean().sqrt())
    sets = take_apart(row, (3, SIDE, SIDE), rounding)
    (amplitudes,) = [
        dict(zip(map(tuple, (255 * p.images).round().tolist()), p.amplitudes.tolist(), strict=True))
        for p in sets
        if set(map(tuple, (255 * p.images).round().tolist())) == set(map(tuple, images.tolist()))
    ]
    for image, factor in zip(images.tolist(), factors.tolist(), strict=True):
        assert amplitudes[tuple(image)] == pytest.approx(factor, rel=1e-4)


def test_a_row_of_many_images_has_no_parts() -> None:
    images = larger_images(7, seed=0).flatten(1).double() / 255
    row = torch.linspace(0.01, 0.02, 7, dtype=torch.float64).sqrt() @ images
    assert take_apart(row, (3, SIDE, SIDE), 1e-17) == []


def test_rounding_hides_the_relations() -> None:
    images = larger_images(2, seed=2).flatten(1).double() / 255
    row = torch.tensor([0.02, 0.03], dtype=torch.float64).sqrt() @ images
    noisy = row + 1e-5 * torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    assert take_apart(noisy, (3, SIDE, SIDE), 1e-5) == []
    assert take_apart(torch.zeros_like(row), (3, SIDE, SIDE), 1e-5) == []
