import pytest
import torch

from fedleak.attacks.matching.priors import total_variation
from tests.reference import total_variation_of


def test_by_hand() -> None:
    image = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 1.0]])
    # Right: |2-0| |2-2| |0-3| |1-0| = 2 0 3 1, mean 1.5; down: |3-0| |0-2| |1-2| = 3 2 1, mean 2.
    assert total_variation(image) == 3.5


@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 4, 4), (2, 3, 6, 5), (3, 1, 1, 6), (1, 1, 6, 1), (2, 1, 1, 1)]
)
def test_against_a_loop(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64)
    assert total_variation(images) == pytest.approx(total_variation_of(images))


def test_flat_is_smooth_and_a_single_pixel_too() -> None:
    assert total_variation(torch.full((2, 3, 4, 4), 0.7)) == 0
    assert total_variation(torch.ones(1, 1, 1, 1)) == 0


def test_size_does_not_matter() -> None:
    """A mean, so that its weight means the same for any number of pixels."""
    image = torch.rand(1, 1, 8, 8)
    assert total_variation(image.repeat(4, 3, 1, 1)) == pytest.approx(float(total_variation(image)))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total_variation, images)
