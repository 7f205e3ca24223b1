"""How fast gradient matching runs, against the plain loop and against itself one by one."""

from collections.abc import Callable

import torch

from benchmarks import reference
from benchmarks.common import Entry, best_seconds, make_victims, threads_text
from fedleak.attacks import IGA
from fedleak.models import SMLP, LeNet


def mlp_matching_speedup(iterations: int = 500) -> Entry:
    """Iterations per second on one SMLP victim, over those of the plain autograd loop."""
    updates, knowledge, _ = make_victims(SMLP, 1)
    target = tuple(updates[0].received.values())
    labels = knowledge[0].labels
    assert labels is not None
    start = torch.randn(1, *knowledge[0].input_shape)

    def plain() -> None:
        reference.attack(
            knowledge[0].model, target, labels, start, knowledge[0].bounds, iterations=iterations
        )

    def ours() -> None:
        IGA(iterations=iterations)(updates, knowledge)

    return {
        "value": _ratio(plain, ours),
        "unit": "times the iterations per second of the plain loop",
        "setting": "IGA, SMLP 2x1024 (untrained), photos 3x32x32, 1 victim, batch size 1, labels "
        f"known, {iterations} iterations, {threads_text()}, best of 3 each; compared with the same "
        "attack as a plain autograd loop (benchmarks/reference.py)",
    }


def lenet_batched_speedup(victims: int = 32, iterations: int = 500) -> Entry:
    """Victim-iterations per second of victims attacked together, over one by one."""
    updates, knowledge, _ = make_victims(LeNet, victims)
    few = min(4, victims)

    def single() -> None:
        IGA(iterations=iterations, at_once=1)(updates[:few], knowledge[:few])

    def together() -> None:
        IGA(iterations=iterations, at_once=victims)(updates, knowledge)

    return {
        "value": _ratio(single, together) * victims / few,
        "unit": "times the victim-iterations per second of one by one",
        "setting": "IGA, LeNet with sigmoid (untrained), photos 3x32x32, batch size 1, labels "
        f"known, {iterations} iterations, {threads_text()}, best of 3 each; {victims} victims at "
        f"once compared with {few} one by one",
    }


def _ratio(slow: Callable[[], None], fast: Callable[[], None]) -> float:
    return best_seconds(slow) / best_seconds(fast)
