"""The smooth image, on a small network of functions between modules."""

import pytest
import torch
from scipy import fft
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import RGAP, Progress
from fedleak.attacks.closed_form.smooth_image import KnownTrunk, Spectrum, smooth_image
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

SHAPE = (1, 3, 16, 16)


class Net(nn.Module):
    """A convolution, a ReLU and max pooling by functions, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.fc1, self.fc2 = nn.Linear(12 * 7 * 7, 30), nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def picture(seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=SHAPE[2:], mode="bicubic").clamp(0, 1)


def test_codes_are_cosine_transforms_over_the_amplitude() -> None:
    low, high = torch.full((3, 1, 1), -1.0).double(), torch.full((3, 1, 1), 3.0).double()
    images = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    spectrum = Spectrum(images.shape, (low, high), 1.5)
    codes = spectrum.code(images)
    torch.testing.assert_close(spectrum.image(codes), images)
    waves = fft.dctn(((images - 1.0) / 2.0).numpy(), axes=(2, 3), norm="ortho")
    for row, column in ((0, 0), (2, 3), (4, 6)):
        amplitude = (1 + row**2 + column**2) ** -0.75
        expected = torch.from_numpy(waves[:, :, row, column]) / amplitude
        torch.testing.assert_close(codes[:, :, row, column], expected)


def test_a_smooth_image_is_found_through_relus_and_max_pooling() -> None:
    torch.manual_seed(0)
    model, truth, labels = Net().double(), picture().double(), torch.tensor([3])
    trunk = Trunk(model, loss, (truth, labels), "fc1")
    entering = trunk(truth)
    (upstream,) = torch.autograd.grad(
        functional.cross_entropy(
            model.fc2(functional.relu(model.fc1(entering))), labels
        ), entering, retain_graph=True,
    )  # fmt: skip
    gradients = torch.autograd.grad((entering * upstream).sum(), list(trunk.parameters.values()))
    known = KnownTrunk(
        trunk, entering.detach(), upstream, dict(zip(trunk.parameters, gradients, strict=True)),
        (torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()), truth.shape,
    )  # fmt: skip
    seen: list[Progress] = []
    found = smooth_image(known, iterations=60, report=seen.append)
    assert found.equations == 588 + sum(value.numel() for value in gradients)
    assert float((found.image - truth).square().mean().sqrt()) < 0.05
    assert ((found.image >= 0) & (found.image <= 1)).all()
    missed = (trunk(found.image) - entering).norm().detach() / entering.detach().norm()
    assert found.residual == pytest.approx(float(missed), rel=1e-3)
    assert found.residual < 0.03
    assert found.misfit < 2e-3
    assert [one.iteration for one in seen] == sorted(one.iteration for one in seen)
    assert seen[-1].cost < seen[0].cost


@pytest.mark.parametrize("modules", [False, True], ids=["functions", "modules"])
def test_rgap_reads_one_sample_of_a_network_with_max_pooling(modules: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(588, 30),
        nn.ReLU(), nn.Linear(30, 10),
    ) if modules else Net()  # fmt: skip
    truth, labels = picture(1), torch.tensor([3])
    gradient = torch.autograd.grad(loss(model, (truth, labels)), list(model.parameters()))
    sent = InterceptedUpdate.of(model, gradient=list(gradient))
    knowledge = Knowledge(model, SHAPE[1:], num_samples=1, loss=loss)
    (found,) = RGAP(image_iterations=60, nra_iterations=1)([sent], knowledge)
    assert any("smooth image from" in finding for finding in found.findings)
    assert float((found.inputs - truth).square().mean().sqrt()) < 0.05
    assert found.explained > 0.9
