"""The smooth image that agrees with a layer's known input and with the gradients before the layer.

Whatever the model computes before that layer may be a mixture of modules and functions, with ReLUs
and max pooling: it is a function of the image that is differentiated twice.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.base import Report
from fedleak.attacks.closed_form.evaluation_counter import EvaluationCounter
from fedleak.attacks.closed_form.smooth_kinks import SmoothKinks
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.updates.files import Tensors

# Spectrum of the images that are expected: amplitude falls with this power of the frequency. That
# of photographs falls with about 1; 2 is the smoother start that finds the coarse image first.
SMOOTH, ROUGH, ROUGHER = 2.0, 1.5, 1.0
# Weight of the prior, and sharpness of the smooth functions in place of ReLU and max pooling, stage
# by stage. Stages before these that fit the layer's input alone led to worse minima in our
# experiments: SSIM 0.50 in place of 0.97 for one network of ten.
STAGES = (
    (1e-2, 10.0), (1e-3, 10.0), (1e-4, 30.0), (1e-5, 100.0), (1e-6, 300.0), (1e-7, 1000.0),
)  # fmt: skip
LAST_STAGES = ((1e-6, 300.0), (1e-7, 1000.0))
# Weight of the squared error of the layer's input, and of the gradients' mean.
WEIGHT = 10.0
# Mean relative squared error of the gradients above which an image of a rougher spectrum is tried.
# Measured on smooth images: 1e-5 to 5e-4; on photographs: 2e-3 to 5e-2.
MISFIT = 2e-3
HISTORY = 30
# The coarse image: number of stages, and iterations in each.
COARSE_STAGES, COARSE_ITERATIONS = 3, 60


class SmoothImage(NamedTuple):
    """Result of :func:`smooth_image`.

    Args:
        image: the images, ``(samples, C, H, W)``, within their bounds.
        equations: number of equations: entries of the layer's input and of the gradients.
        residual: relative error of the layer's input, with the model's own functions.
        misfit: mean relative squared error of the gradients, with the smooth functions.
        evaluations: number of evaluations.
    """

    image: Tensor
    equations: int
    residual: float
    misfit: float
    evaluations: int


class KnownTrunk(NamedTuple):
    """What is known of the part of a model before a layer.

    Args:
        trunk: that part.
        value: the layer's input.
        gradient: the gradient of the loss with respect to it, of the same shape.
        weights: the gradients of parameters before the layer, by name; those of 0 left out.
        bounds: lowest and highest valid values, which broadcast with the image.
        shape: shape of the images, ``(samples, C, H, W)``.
        certain: the entries of ``value`` that are known, a mask of the same shape. If None, all.
    """

    trunk: Trunk
    value: Tensor
    gradient: Tensor
    weights: Tensors
    bounds: tuple[Tensor, Tensor]
    shape: torch.Size
    certain: Tensor | None = None


def smooth_image(known: KnownTrunk, *, iterations: int, report: Report) -> SmoothImage:
    """The image of a smooth spectrum that yields the known input of a layer and the gradients.

    L-BFGS minimises the sum of: the relative squared error of the layer's input; the mean over the
    parameters of the relative squared error of their gradients, which follow from the known
    gradient of the layer's input without the rest of the model; the squared excess over the valid
    range; and the mean square of the image's code, whose weight falls from stage to stage. The code
    is the cosine transform of the image over the amplitude that is expected at each frequency: the
    coarse image is found first. ReLUs and max pooling are smooth at first in the gradients
    (:class:`fedleak.attacks.closed_form.smooth_kinks.SmoothKinks`) and sharpen from stage to stage.
    If that leaves more than :data:`MISFIT` of the gradients, it is done again with a rougher
    spectrum, and the image of the smaller misfit is returned.

    Args:
        known: what is known.
        iterations: maximum number of iterations of L-BFGS in a stage.
        report: called now and then with the progress, in evaluations.
    """
    attempts = ((SMOOTH, ROUGH), (ROUGH, ROUGHER))
    stages = len(STAGES) + len(LAST_STAGES)
    search = _Search(
        known, iterations, EvaluationCounter(report, len(attempts) * stages * iterations)
    )
    best: SmoothImage | None = None
    for first, last in attempts:
        found = search.run(first, last)
        if best is None or found.misfit < best.misfit:
            best = found
        if best.misfit <= MISFIT:
            break
    assert best is not None  # there are attempts
    return best._replace(evaluations=search.counter.evaluations)


def coarse_image(known: KnownTrunk, *, report: Report) -> Tensor:
    """The image after the first stages of :func:`smooth_image`, ``(samples, C, H, W)``.

    Args:
        known: what is known.
        report: called now and then with the progress, in evaluations.
    """
    counter = EvaluationCounter(report, COARSE_STAGES * COARSE_ITERATIONS)
    search = _Search(known, COARSE_ITERATIONS, counter)
    return search.within(search.image(SMOOTH, STAGES[:COARSE_STAGES]))


class Spectrum:
    """Codes of images: their cosine transform over the amplitude that is expected.

    Args:
        shape: shape of the images, ``(samples, C, H, W)``.
        bounds: lowest and highest valid values; a code of 0 is their middle.
        power: the amplitude falls with this power of the frequency.
    """

    def __init__(self, shape: Sequence[int], bounds: tuple[Tensor, Tensor], power: float) -> None:
        low, high = bounds
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._rows, self._columns = (_cosines(size) for size in shape[-2:])
        squares = [torch.arange(size, dtype=torch.float64).square() for size in shape[-2:]]
        self._amplitude = (1 + squares[0][:, None] + squares[1]).pow(-power / 2)

    def image(self, code: Tensor) -> Tensor:
        """The images of codes ``(samples, C, H, W)``, of the same shape."""
        waves = self._rows.T @ (self._amplitude * code) @ self._columns
        return self._middle + self._half * waves

    def code(self, image: Tensor) -> Tensor:
        """The codes of images ``(samples, C, H, W)``, of the same shape."""
        waves = (image - self._middle) / self._half
        return (self._rows @ waves @ self._columns.T) / self._amplitude


def _cosines(size: int) -> Tensor:
    """The orthogonal matrix of the cosine transform (DCT-II), a row for each frequency."""
    frequency = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * frequency[:, None] * (frequency + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix * math.sqrt(2 / size)


class _Search:
    """Searches one image in stages."""

    def __init__(self, known: KnownTrunk, iterations: int, counter: EvaluationCounter) -> None:
        self._known, self._iterations, self.counter = known, iterations, counter
        self._parameters = {name: known.trunk.parameters[name] for name in known.weights}

    def run(self, first: float, last: float) -> SmoothImage:
        """All stages, with the spectrum of the last ones another than that of the first."""
        known = self._known
        image, spectrum = self.image(first, STAGES), Spectrum(known.shape, known.bounds, last)
        code, misfit = spectrum.code(image), math.inf
        for weight, sharpness in LAST_STAGES:
            code, misfit = self._stage(spectrum, code, weight, sharpness)
        image = self.within(spectrum.image(code))
        with torch.no_grad():
            residual = float(self._input_error(known.trunk(image)).sqrt())
        matched = sum(value.numel() for value in known.weights.values())
        entries = known.value.numel() if known.certain is None else int(known.certain.sum())
        return SmoothImage(image, entries + matched, residual, misfit, 0)

    def image(self, power: float, stages: Sequence[tuple[float, float]]) -> Tensor:
        """The image of some stages from a grey one on, with one spectrum."""
        known = self._known
        spectrum = Spectrum(known.shape, known.bounds, power)
        code = torch.zeros(known.shape, dtype=torch.float64)
        for weight, sharpness in stages:
            code, _ = self._stage(spectrum, code, weight, sharpness)
        return spectrum.image(code)

    def within(self, image: Tensor) -> Tensor:
        """An image, clipped to the valid range."""
        low, high = self._known.bounds
        return torch.minimum(torch.maximum(image, low), high).detach()

    def _stage(
        self, spectrum: Spectrum, start: Tensor, weight: float, sharpness: float
    ) -> tuple[Tensor, float]:
        """One run of L-BFGS: the code, and the misfit of the gradients in its last evaluation."""
        code = start.detach().clone().requires_grad_()
        kinks, iterations = SmoothKinks(sharpness), self._iterations
        misfit = math.inf if self._parameters else 0.0
        optimizer = torch.optim.LBFGS(
            [code], max_iter=iterations, max_eval=2 * iterations, history_size=HISTORY,
            line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16,
        )  # fmt: skip

        def closure() -> float:
            nonlocal misfit
            image = spectrum.image(code)
            value = self._fit(image) + weight * code.square().mean()
            if self._parameters:
                gradients = self._gradient_error(image, kinks)
                misfit = float(gradients.detach())
                value = value + WEIGHT * gradients
            (code.grad,) = torch.autograd.grad(value, code)
            found = float(value.detach())
            self.counter.count(found)
            return found

        optimizer.step(closure)
        return code.detach(), misfit

    def _fit(self, image: Tensor) -> Tensor:
        """Error of the layer's input, and squared excess over the valid range."""
        low, high = self._known.bounds
        half = (high - low) / 2
        outside = ((low - image) / half).relu().square() + ((image - high) / half).relu().square()
        return WEIGHT * self._input_error(self._known.trunk(image)) + outside.mean()

    def _input_error(self, entering: Tensor) -> Tensor:
        value = self._known.value.reshape(entering.shape)
        if self._known.certain is not None:
            # Zeros instead of a selection, whose backward pass takes longer.
            certain = self._known.certain.reshape(entering.shape).to(value)
            value, entering = value * certain, entering * certain
        return (entering - value).square().sum() / value.square().sum()

    def _gradient_error(self, image: Tensor, kinks: SmoothKinks) -> Tensor:
        known = self._known
        with kinks:
            entering = known.trunk(image)
        upstream = known.gradient.reshape(entering.shape)
        found = torch.autograd.grad(
            (entering * upstream).sum(), list(self._parameters.values()), create_graph=True
        )
        errors = [
            (value - known.weights[name]).square().sum() / known.weights[name].square().sum()
            for name, value in zip(self._parameters, found, strict=True)
        ]
        return torch.stack(errors).mean()
