"""Small perceptrons, batches of 8-bit images for them, and their gradients by plain autograd."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact_batches.network import Network, read_network
from fedleak.attacks.exact_batches.remainder import Remainder, Samples
from fedleak.models import SMLP, Precode
from fedleak.models.noise import record
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

SHAPE = (1, 8, 8)

Nearness = Literal["few pixels", "mirrored", "noise", "equal"]


class Batch(NamedTuple):
    """A client's batch, its gradient and what the server knows."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    gradient: Tensors
    knowledge: Knowledge

    @property
    def update(self) -> InterceptedUpdate:
        return InterceptedUpdate.of(
            self.model, gradient=self.gradient, num_examples=len(self.labels)
        )

    @property
    def network(self) -> Network:
        found = read_network(self.knowledge)
        assert isinstance(found, Network), found
        return found

    @property
    def remainder(self) -> Remainder:
        network = self.network
        generator = torch.Generator().manual_seed(0)
        return Remainder(network, network.gradients(self.gradient), len(self.labels), generator)

    def samples(self, chosen: list[int]) -> Samples:
        """Samples of the batch as if they had been found."""
        network = self.network
        inputs, labels = self.inputs[chosen].flatten(1).double(), self.labels[chosen]
        residuals = network.residuals(network.trace(inputs).softmax, labels)
        ones = torch.ones(len(chosen), dtype=torch.long)
        exact = torch.zeros(len(chosen)).double()
        return Samples(inputs, labels, ones, residuals, exact, exact)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def perceptron(
    widths: tuple[int, ...], *, bias: bool = True, std: float | None = None
) -> nn.Module:
    """Linear layers with ReLU between; with PyTorch's initialisation or N(0, std^2)."""
    layers: list[nn.Module] = [nn.Flatten()]
    for at, (incoming, outgoing) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (at > 0) + [nn.Linear(incoming, outgoing, bias=bias)]
    model = nn.Sequential(*layers)
    if std is not None:
        for value in model.parameters():
            nn.init.normal_(value, std=std)
    return model


def smooth_images(number: int, seed: int) -> Tensor:
    """Images of 8 x 8 pixels with 256 levels and little contrast between neighbours, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 1, 3, 3, generator=generator)
    fine = functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
    fine = fine + 0.02 * torch.randn(fine.shape, generator=generator)
    return (255 * fine.clamp(0, 1)).round()


def make_batch(
    widths: tuple[int, ...] = (64, 48, 5),
    number: int = 6,
    *,
    seed: int = 0,
    bias: bool = True,
    std: float | None = None,
    kind: torch.dtype = torch.float64,
    mean: float = 0.0,
    deviation: float = 1.0,
) -> Batch:
    """A batch and its gradient; the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = perceptron(widths, bias=bias, std=std).to(kind)
        labels = torch.randint(widths[-1], (number,))
    inputs = (smooth_images(number, seed).to(kind) / 255 - mean) / deviation
    loss = cross_entropy(model, (inputs, labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters)
    knowledge = Knowledge(
        model, SHAPE, widths[-1], mean=(mean,), std=(deviation,), num_samples=number,
        loss=cross_entropy,
    )  # fmt: skip
    return Batch(model, inputs, labels, dict(zip(names, values, strict=True)), knowledge)


class NoisyBatch(NamedTuple):
    """A batch of a perceptron with a bottleneck, and the noise that was drawn."""

    batch: Batch
    noise: Tensor


def make_noisy_batch(
    number: int = 6,
    *,
    seed: int = 0,
    width: int = 60,
    size: int = 20,
    beta: float = 1e-3,
    hidden: int = 2,
    kind: torch.dtype = torch.float64,
    mean: float = 0.5,
    deviation: float = 0.25,
) -> NoisyBatch:
    """A batch, its gradient and noise; the same every time.

    With one hidden layer or three the model is a perceptron of that depth.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: type[SMLP] = type("Perceptron", (SMLP,), {"hidden_layers": hidden})
        model = made(input_shape=SHAPE, num_classes=5, width=width, precode=Precode(size, beta)).to(
            kind
        )
        labels = torch.randint(5, (number,))
        inputs = (smooth_images(number, seed).to(kind) / 255 - mean) / deviation
        with record(model) as drawn:
            loss = model.batch_loss((inputs, labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters)
    knowledge = Knowledge(
        model, SHAPE, 5, mean=(mean,), std=(deviation,), num_samples=number,
        loss=lambda m, b: m.batch_loss(b),
    )  # fmt: skip
    batch = Batch(model, inputs, labels, dict(zip(names, values, strict=True)), knowledge)
    return NoisyBatch(batch, drawn["bottleneck.noise"][0])


def with_samples(batch: Batch, inputs: Tensor, labels: Tensor) -> Batch:
    """The same model, its gradient for other samples."""
    loss = batch.knowledge.loss(batch.model, (inputs, labels))
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    gradient = dict(zip(batch.gradient, values, strict=True))
    facts = replace(batch.knowledge, num_samples=len(labels))
    return Batch(batch.model, inputs, labels, gradient, facts)


def near_images(
    number: int, others: int, *, seed: int, how: Nearness, size: float, whole: bool
) -> Tensor:
    """Images of which some are near the first one, then others; pixels from 0 to 255.

    Args:
        number: of images that are near one another, the first included.
        others: number of further images.
        seed: of all of them.
        how: up to three pixels differ, or mirrored, or normal noise in every pixel, or equal.
        size: standard deviation of the noise, of the range.
        whole: whether pixels are whole numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    images = smooth_images(number + others, seed).double()
    near = images[:1].repeat(number, 1, 1, 1)
    if how == "mirrored":
        near[1::2] = near[1::2].flip(3)
        near[2::4] = near[2::4].flip(2)
    elif how == "noise":
        noise = torch.randn(near[1:].shape, generator=generator, dtype=near.dtype)
        near[1:] += 255 * size * noise
    elif how == "few pixels":
        for image in near[1:].flatten(1):
            few = int(torch.randint(1, 4, (1,), generator=generator))
            at = torch.randperm(len(image), generator=generator)[:few]
            image[at] = torch.randint(256, (few,), generator=generator).to(image)
    images[:number] = near.clamp(0, 255)
    return images.round() if whole else images


def each_has_its_own(possible: Tensor) -> bool:
    """Whether each row can have a column of its own among those that are possible for it."""
    columns = maximum_bipartite_matching(csr_matrix(possible.numpy()), perm_type="column")
    return bool((columns >= 0).all())
