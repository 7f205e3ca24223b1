"""How fast gradient matching runs, against the plain loop and against itself one by one."""

import torch

from benchmarks import reference
from benchmarks.measure import REPETITIONS, Figure, in_turns, median, ratios
from benchmarks.victims import make_victims
from fedleak.attacks import IGA
from fedleak.models import SMLP, LeNet


def mlp_matching_speedup(iterations: int = 300, repetitions: int = REPETITIONS) -> Figure:
    """Iterations per second on one SMLP victim, over those of the plain autograd loop.

    Args:
        iterations: of both sides.
        repetitions: number of timed calls of each side.
    """
    updates, knowledge, _ = make_victims(SMLP, 1)
    target = tuple(updates[0].received.values())
    labels = knowledge[0].labels
    assert labels is not None
    start = torch.randn(1, *knowledge[0].input_shape, generator=torch.Generator().manual_seed(0))

    def plain() -> None:
        reference.attack(
            knowledge[0].model, target, labels, start, knowledge[0].bounds, iterations=iterations
        )

    def engine() -> None:
        IGA(iterations=iterations)(updates, knowledge)

    seconds = in_turns({"plain": plain, "engine": engine}, repetitions)
    samples = ratios(seconds["plain"], seconds["engine"])
    return Figure(
        value=median(samples),
        unit="times the iterations per second of the plain loop",
        samples=samples,
        of="pairs of calls in turn",
        setting={
            "attack": "iga", "model": "SMLP 2x1024, untrained", "data": "photos 3x32x32",
            "victims": 1, "batch_size": 1, "labels": "known", "iterations": iterations,
            "threads": torch.get_num_threads(),
        },
        details={f"{name}_seconds": median(values) for name, values in seconds.items()},
    )  # fmt: skip


def lenet_batched_speedup(
    victims: int = 32, iterations: int = 300, repetitions: int = REPETITIONS
) -> Figure:
    """Victim-iterations per second of victims attacked together, over one by one.

    Args:
        victims: number of victims attacked together.
        iterations: of both sides.
        repetitions: number of timed calls of each side.
    """
    updates, knowledge, _ = make_victims(LeNet, victims)
    few = min(4, victims)

    def single() -> None:
        IGA(iterations=iterations, at_once=1)(updates[:few], knowledge[:few])

    def together() -> None:
        IGA(iterations=iterations, at_once=victims)(updates, knowledge)

    seconds = in_turns({"one_by_one": single, "together": together}, repetitions)
    samples = ratios(seconds["one_by_one"], seconds["together"], victims / few)
    return Figure(
        value=median(samples),
        unit="times the victim-iterations per second of one by one",
        samples=samples,
        of="pairs of calls in turn",
        setting={
            "attack": "iga", "model": "LeNet (sigmoid), untrained", "data": "photos 3x32x32",
            "victims_together": victims, "victims_one_by_one": few, "batch_size": 1,
            "labels": "known", "iterations": iterations, "threads": torch.get_num_threads(),
        },
        details={f"{name}_seconds": median(values) for name, values in seconds.items()},
    )  # fmt: skip
