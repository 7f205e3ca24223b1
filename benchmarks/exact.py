"""How long until an image leaks from behind PRECODE: in closed form, and by the published NRA."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import (
    Entry,
    best_seconds,
    large_victims,
    make_victims,
    published_victims,
    threads_text,
)
from fedleak.attacks import NRA, ExactNRA
from fedleak.attacks.matching.optimizers import OPTIMIZERS, Adam
from fedleak.data import ImageData
from fedleak.metrics import DATA_RANGE, ssim, to_space
from fedleak.models import DMLP, ImageClassifier, LeNet, LeNetR, Precode
from fedleak.models.noise import inject, noise_slots
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.update import InterceptedUpdate

Kinds = tuple[type[ImageClassifier], ...]

LEAKED = 0.9
VICTIMS = 5
LOOK_EVERY = 10


def time_to_leak_speedup(iterations: int = 7000, width: int = 1024, plain: int = 20) -> Entry:
    """Seconds until SSIM 0.9 by the published NRA, over those by exact_nra.

    Args:
        iterations: the most that NRA takes.
        width: of the perceptron.
        plain: iterations of the plain loop that are timed.
    """
    data, name = published_victims()

    def kind(**settings: object) -> DMLP:
        return DMLP(width=width, **settings)  # type: ignore[arg-type]

    updates, facts, truths = make_victims(kind, 1, data, precode=Precode())
    found: list[Tensor] = []

    def exact() -> None:
        found[:] = [ExactNRA()(updates, facts)[0].inputs]

    seconds = best_seconds(exact)
    reached = _ssim(found[0], truths[0], facts[0])
    assert reached >= LEAKED, reached
    leaked, needed = _until_leaked(updates, facts, truths[0], iterations)
    # The published attack is a plain loop with whole gradients: the same iterations, by such a one.
    loop = _plain_seconds(updates[0], facts[0], plain) / plain * needed
    return {
        "value": loop / seconds,
        "unit": f"times as long until SSIM {LEAKED} by the published NRA as a plain autograd loop",
        "setting": f"DMLP 4x{width} + PRECODE (K 256), untrained, {name}, 1 victim, batch size 1, "
        f"labels known, {threads_text()}; exact_nra {seconds:.2f} s (SSIM {reached:.4f}), NRA "
        f"{'at least ' if needed == iterations else ''}{needed} of {iterations} iterations: "
        f"{loop:.0f} s as a plain autograd loop (from {plain} iterations), {leaked:.1f} s by this "
        f"project's engine, {leaked / seconds:.1f} times exact_nra's",
    }


def exact_seconds(victims: int = VICTIMS, kinds: Kinds = (LeNet, LeNetR)) -> Entry:
    """Seconds of exact_nra for a 32x32 victim of LeNet or LeNetR, whichever is slower.

    Args:
        victims: number of victims.
        kinds: the models.
    """
    return _seconds(*published_victims(), victims, kinds)


def exact_seconds_large(victims: int = VICTIMS, kinds: Kinds = (LeNet, LeNetR)) -> Entry:
    """The same for a 64x64 victim; for the arguments see :func:`exact_seconds`."""
    return _seconds(*large_victims(), victims, kinds)


def _seconds(data: ImageData, name: str, victims: int, kinds: Kinds) -> Entry:
    parts, worst = [], 0.0
    for kind in kinds:
        updates, facts, truths = make_victims(kind, victims, data, precode=Precode())
        took, scores = [], []
        for update, known, truth in zip(updates, facts, truths, strict=True):
            started = time.perf_counter()
            (found,) = ExactNRA()([update], known)
            took.append(time.perf_counter() - started)
            scores.append(_ssim(found.inputs, truth, known))
        median = statistics.median(took)
        worst = max(worst, median)
        parts.append(
            f"{kind.__name__} {median:.1f} s (at most {max(took):.1f} s; SSIM "
            f"{statistics.mean(scores):.3f}, {min(scores):.3f} at least)"
        )
    return {
        "value": worst,
        "unit": "seconds a victim",
        "setting": f"exact_nra on PRECODE (K 256), untrained, {name}, batch size 1, labels known, "
        f"{threads_text()}, median of {victims} victims: {', '.join(parts)}",
    }


def _until_leaked(
    updates: list[InterceptedUpdate], facts: list[Knowledge], truth: Tensor, iterations: int
) -> tuple[float, int]:
    """Seconds and iterations of NRA until the image has leaked, the looking left out."""
    looked, ended = 0.0, list[tuple[float, int]]()
    started = time.perf_counter()

    class Watched(Adam):
        steps = 0

        def step(self, *arguments: object) -> None:
            nonlocal looked
            super().step(*arguments)  # type: ignore[arg-type]
            Watched.steps += 1
            if ended or Watched.steps % LOOK_EVERY:
                return
            began = time.perf_counter()
            inputs = self._values[self._names.index("inputs")][0]
            if _ssim(inputs, truth, facts[0]) >= LEAKED:
                ended.append((began - started - looked, Watched.steps))
            looked += time.perf_counter() - began

    before = OPTIMIZERS["adam"]
    OPTIMIZERS["adam"] = Watched
    try:
        NRA(iterations=iterations)(updates, facts)
    finally:
        OPTIMIZERS["adam"] = before
    return ended[0] if ended else (time.perf_counter() - started - looked, iterations)


def _plain_seconds(update: InterceptedUpdate, facts: Knowledge, iterations: int) -> float:
    model, labels = facts.model, facts.labels
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    target = [update.received[name] for name in names]
    (slot,) = noise_slots(model)
    inputs = torch.randn(1, *facts.input_shape).requires_grad_()
    noise = torch.randn(1, 256).requires_grad_()
    optimizer = torch.optim.Adam([inputs, noise], lr=0.01)
    low, high = facts.bounds

    def work() -> None:
        for _ in range(iterations):
            with inject(model, {slot: noise}):
                loss = batch_loss(model, (inputs, labels))
            dummy = torch.autograd.grad(loss, parameters, create_graph=True)
            inner = torch.stack([(d * t).sum() for d, t in zip(dummy, target, strict=True)]).sum()
            sizes = [
                torch.stack([value.square().sum() for value in values]).sum().sqrt()
                for values in (dummy, target)
            ]
            cost = 1 - inner / (sizes[0] * sizes[1])
            gradients = torch.autograd.grad(cost, [inputs, noise])
            inputs.grad, noise.grad = gradients[0].sign(), gradients[1]
            optimizer.step()
            with torch.no_grad():
                inputs.copy_(torch.minimum(torch.maximum(inputs, low), high))

    timed: Callable[[], None] = work
    return best_seconds(timed, times=1)


def _ssim(found: Tensor, truth: Tensor, facts: Knowledge) -> float:
    pixels = [
        to_space(images.detach(), facts.mean, facts.std, "pixels")[0] for images in (found, truth)
    ]
    return ssim(pixels[1], pixels[0], DATA_RANGE["pixels"])
