"""How long until an image leaks from behind PRECODE: in closed form, and by gradient matching."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.measure import Facts, Figure, median, ratios, seconds_of
from benchmarks.victims import large_victims, make_victims, published_victims
from fedleak.attacks import NRA, Analytic, ExactNRA
from fedleak.attacks.matching.optimizers import OPTIMIZERS, Adam
from fedleak.data import ImageData
from fedleak.metrics import DATA_RANGE, ssim, to_space
from fedleak.models import DMLP, ImageClassifier, LeNet, LeNetR, Precode
from fedleak.models.noise import noise_slots
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

Kinds = tuple[type[ImageClassifier], ...]
Victim = tuple[InterceptedUpdate, Knowledge, Tensor]

LEAKED = 0.9
LOOK_EVERY = 10


def time_to_leak_dmlp(
    victims: int = 3, iterations: int = 7000, width: int = 1024, plain: int = 20
) -> Figure:
    """Seconds until SSIM 0.9 on DMLP + PRECODE by NRA, over those by exact_nra.

    The first layer of a DMLP is linear, so `analytic` (Phong et al. 2018) reads the image as well,
    whatever follows: its seconds are recorded beside.

    Args:
        victims: number of victims.
        iterations: the most that NRA takes.
        width: of the perceptron.
        plain: iterations of the plain loop that are timed.
    """

    def kind(**settings: Any) -> DMLP:
        return DMLP(width=width, **settings)

    model = f"DMLP 4x{width} + PRECODE (K 256), untrained"
    return _time_to_leak(kind, model, victims, iterations, plain, closed_form=Analytic)


def time_to_leak_lenet(victims: int = 3, iterations: int = 7000, plain: int = 20) -> Figure:
    """Seconds until SSIM 0.9 on LeNet + PRECODE by NRA, over those by exact_nra.

    Where NRA does not reach it, the seconds of all its iterations count, and the figure is a lower
    bound. `analytic` does not apply, as the first layer is a convolution.

    Args:
        victims: number of victims.
        iterations: the most that NRA takes.
        plain: iterations of the plain loop that are timed.
    """
    model = "LeNet (sigmoid) + PRECODE (K 256), untrained"
    return _time_to_leak(LeNet, model, victims, iterations, plain, closed_form=None)


def _time_to_leak(
    kind: Callable[..., ImageClassifier],
    model: str,
    victims: int,
    iterations: int,
    plain: int,
    closed_form: type[Analytic] | None,
) -> Figure:
    data, name = published_victims()
    every = list(zip(*make_victims(kind, victims, data, precode=Precode()), strict=True))
    attacks: dict[str, Any] = {"exact": ExactNRA()}
    if closed_form is not None:
        attacks["analytic"] = closed_form()
    for attack in attacks.values():  # each side once, not timed
        attack([every[0][0]], every[0][1])
    _plain_loop(every[0], plain)
    _until_leaked(every[0], min(iterations, 10 * plain))
    seconds: dict[str, list[float]] = {side: [] for side in [*attacks, "plain", "nra"]}
    reached: dict[str, list[float]] = {side: [] for side in [*attacks, "nra"]}
    needed: list[int | None] = []
    for victim in every:
        update, facts, truth = victim
        for side, attack in attacks.items():
            started = time.perf_counter()
            (found,) = attack([update], facts)
            seconds[side].append(time.perf_counter() - started)
            reached[side].append(_ssim(found.inputs, truth, facts))
        seconds["plain"].append(seconds_of(lambda: _plain_loop(victim, plain)) / plain)  # noqa: B023
        took, count, best = _until_leaked(victim, iterations)
        seconds["nra"].append(took)
        reached["nra"].append(best)
        needed.append(count)
    for side in attacks:
        if min(reached[side]) < LEAKED:
            raise RuntimeError(
                f"Expected {side} to reach SSIM {LEAKED} of every victim, got {reached[side]}."
            )
    counts = [iterations if count is None else count for count in needed]
    loop = [one * count for one, count in zip(seconds["plain"], counts, strict=True)]
    samples = ratios(seconds["nra"], seconds["exact"])
    details: Facts = {
        "exact_nra_seconds": median(seconds["exact"]),
        "exact_nra_ssim_min": min(reached["exact"]),
        "nra_reached": sum(count is not None for count in needed),
        "nra_iterations": median(counts),
        "nra_seconds": median(seconds["nra"]),
        "nra_best_ssim": max(reached["nra"]),
        "nra_plain_loop_seconds": median(loop),
        "nra_plain_loop_ratio": median(ratios(loop, seconds["exact"])),
        "nra_plain_loop_timed_iterations": plain,
    }
    if closed_form is not None:
        details["analytic_seconds"] = median(seconds["analytic"])
        details["analytic_ssim_min"] = min(reached["analytic"])
        details["exact_nra_over_analytic"] = median(ratios(seconds["exact"], seconds["analytic"]))
    return Figure(
        value=median(samples),
        unit=f"times as long until SSIM {LEAKED} by NRA as by exact_nra",
        samples=samples,
        of="victims",
        setting={
            "attack": "exact_nra, nra", "model": model, "data": name, "victims": victims,
            "batch_size": 1, "labels": "known", "iterations": iterations, "ssim": LEAKED,
            "looked_every": LOOK_EVERY, "threads": torch.get_num_threads(),
        },
        details=details,
        lower_bound=None in needed,
    )  # fmt: skip


def exact_seconds(victims: int = 5, kinds: Kinds = (LeNet, LeNetR)) -> Figure:
    """Seconds of exact_nra for a 32x32 victim of LeNet or LeNetR, whichever is slower.

    Args:
        victims: number of victims.
        kinds: the models.
    """
    return _seconds(*published_victims(), victims, kinds)


def exact_seconds_large(victims: int = 5, kinds: Kinds = (LeNet, LeNetR)) -> Figure:
    """The same for a 64x64 victim; for the arguments see :func:`exact_seconds`."""
    return _seconds(*large_victims(), victims, kinds)


def _seconds(data: ImageData, name: str, victims: int, kinds: Kinds) -> Figure:
    details: Facts = {}
    names = " and ".join(kind.__name__ for kind in kinds)
    slowest: list[float] = []
    for kind in kinds:
        updates, facts, truths = make_victims(kind, victims, data, precode=Precode())
        ExactNRA()(updates[:1], facts[:1])  # a call that is not timed
        took, scores = [], []
        for update, known, truth in zip(updates, facts, truths, strict=True):
            started = time.perf_counter()
            (found,) = ExactNRA()([update], known)
            took.append(time.perf_counter() - started)
            scores.append(_ssim(found.inputs, truth, known))
        label = kind.__name__.lower()
        details |= {
            f"{label}_seconds": median(took),
            f"{label}_seconds_max": max(took),
            f"{label}_ssim": statistics.mean(scores),
            f"{label}_ssim_min": min(scores),
        }
        slowest = took if not slowest or median(took) > median(slowest) else slowest
    return Figure(
        value=median(slowest),
        unit="seconds a victim",
        samples=slowest,
        of="victims of the slower model",
        setting={
            "attack": "exact_nra", "data": name, "victims": victims, "batch_size": 1,
            "model": f"{names} + PRECODE (K 256), untrained",
            "labels": "known", "threads": torch.get_num_threads(),
        },
        details=details,
    )  # fmt: skip


class _Leaked(Exception):
    """NRA has come far enough."""


def _until_leaked(victim: Victim, iterations: int) -> tuple[float, int | None, float]:
    """Run NRA until the image has leaked; the schedule is that of all the iterations.

    Returns:
        Seconds, without those of looking; iterations, or None if the image did not leak within
        them; and the highest SSIM seen.
    """
    update, facts, truth = victim
    looked, best = 0.0, -1.0

    class Watched(Adam):
        steps = 0

        def step(self, *arguments: Any) -> None:
            nonlocal looked, best
            super().step(*arguments)
            Watched.steps += 1
            if Watched.steps % LOOK_EVERY:
                return
            began = time.perf_counter()
            inputs = self._values[self._names.index("inputs")][0]
            best = max(best, _ssim(inputs, truth, facts))
            looked += time.perf_counter() - began
            if best >= LEAKED:
                raise _Leaked

    before = OPTIMIZERS["adam"]
    OPTIMIZERS["adam"] = Watched
    started = time.perf_counter()
    try:
        NRA(iterations=iterations)([update], facts)
    except _Leaked:
        return time.perf_counter() - started - looked, Watched.steps, best
    finally:
        OPTIMIZERS["adam"] = before
    return time.perf_counter() - started - looked, None, best


def _plain_loop(victim: Victim, iterations: int) -> None:
    """NRA as a plain autograd loop."""
    update, facts, _ = victim
    assert facts.labels is not None
    names = [name for name, _ in facts.model.named_parameters()]
    (slot,) = noise_slots(facts.model)
    reference.attack(
        facts.model,
        tuple(update.received[name] for name in names),
        facts.labels,
        torch.randn(1, *facts.input_shape, generator=torch.Generator().manual_seed(0)),
        facts.bounds,
        iterations=iterations,
        noise={slot: torch.randn(1, 256, generator=torch.Generator().manual_seed(1))},
    )


def _ssim(found: Tensor, truth: Tensor, facts: Knowledge) -> float:
    pixels = [
        to_space(images.detach(), facts.mean, facts.std, "pixels")[0] for images in (found, truth)
    ]
    return ssim(pixels[1], pixels[0], DATA_RANGE["pixels"])
