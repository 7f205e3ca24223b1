"""How fast gradient matching runs, against the plain loop and against itself one by one."""

import time
from collections.abc import Callable

import torch

from benchmarks import reference
from fedleak.attacks import IGA
from fedleak.data import Photos
from fedleak.models import SMLP, ImageClassifier, LeNet
from fedleak.updates import InterceptedUpdate, Knowledge, batch_loss

Entry = dict[str, object]


def mlp_matching_speedup(iterations: int = 60) -> Entry:
    """Iterations per second on one SMLP victim, over those of the plain autograd loop."""
    updates, knowledge = _victims(SMLP, 1)
    model = knowledge[0].model
    target = tuple(updates[0].received.values())
    labels = knowledge[0].labels
    assert labels is not None
    start = torch.randn(1, *knowledge[0].input_shape)

    def plain() -> None:
        reference.attack(model, target, labels, start, knowledge[0].bounds, iterations=iterations)

    def ours() -> None:
        IGA(iterations=iterations)(updates, knowledge)

    value = _ratio(plain, ours)
    return {
        "value": value,
        "unit": "times the iterations per second of the plain loop",
        "setting": f"IGA, SMLP 2x1024, photos 3x32x32, 1 victim, {iterations} iterations, "
        f"{torch.get_num_threads()} thread(s), best of 3 each",
    }


def lenet_batched_speedup(victims: int = 32, iterations: int = 30) -> Entry:
    """Victim-iterations per second of victims attacked together, over one by one."""
    updates, knowledge = _victims(LeNet, victims)

    def single() -> None:
        IGA(iterations=iterations, at_once=1)(updates[:4], knowledge[:4])

    def together() -> None:
        IGA(iterations=iterations, at_once=victims)(updates, knowledge)

    return {
        "value": _ratio(single, together) * victims / 4,
        "unit": "times the victim-iterations per second of one by one",
        "setting": f"IGA, LeNet (sigmoid), photos 3x32x32, {victims} victims at once against 4 one "
        f"by one, {iterations} iterations, {torch.get_num_threads()} thread(s), best of 3 each",
    }


def _victims(
    kind: type[ImageClassifier], count: int
) -> tuple[list[InterceptedUpdate], list[Knowledge]]:
    data = Photos()
    torch.manual_seed(0)
    model = kind(input_shape=data.input_shape, num_classes=data.num_classes)
    updates, knowledge = [], []
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    for index in range(count):
        images, labels = data.train_set.batch([index * 97 % len(data.train_set)])
        gradient = torch.autograd.grad(batch_loss(model, (images, labels)), model.parameters())
        names = [name for name, _ in model.named_parameters()]
        received = dict(zip(names, gradient, strict=True))
        updates.append(InterceptedUpdate(1, index, "fedsgd", 1, "bench", sent, received))
        knowledge.append(
            Knowledge(
                model=model, input_shape=data.input_shape, num_classes=data.num_classes,
                mean=data.mean, std=data.std, labels=labels,
            )
        )  # fmt: skip
    return updates, knowledge


def _ratio(slow: Callable[[], None], fast: Callable[[], None]) -> float:
    return _best(slow) / _best(fast)


def _best(work: Callable[[], None], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
