"""What share of the memory bandwidth gradient matching on a perceptron uses.

With one sample, every product with a weight matrix is one of matrix and vector: two operations for
each number read. So the speed is bounded by the weights that have to be read.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import REPETITIONS, Figure, median, seconds_of
from benchmarks.victims import make_victims
from fedleak.attacks import IGA
from fedleak.models import SMLP

# Larger than the caches, halves of it too.
LARGE_BYTES = 2**30


def weight_passes(model: nn.Module) -> dict[str, int]:
    """How often an iteration has to read each linear layer's weight W, for layers in a chain.

    The inputs h of the layers come from a forward pass (reads W), the gradients d of their outputs
    from a backward pass (reads W^T, but for the first layer: nobody asks for the gradient of the
    inputs yet). The cost depends on h and d. Its gradient goes back through the backward pass
    (reads W, again not in the first layer), then through the forward pass (reads W^T). Each pass
    needs the whole of the one before. The weight gradient is not built and the target is a product
    of vectors, so there is no other matrix to read.

    Args:
        model: linear layers one after another, in the order of its modules.

    Returns:
        Name of the layer -> number of passes.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {name: 2 if place == 0 else 4 for place, name in enumerate(layers)}


def needed_bytes(model: nn.Module) -> int:
    """Bytes of weights that an iteration on one victim has to read.

    Vectors are left out (inputs, hidden values, factors of the target, Adam's state: together below
    1 % for the SMLP), and so is whatever an implementation reads more often than it must.
    """
    modules = dict(model.named_modules())
    total = 0
    for name, passes in weight_passes(model).items():
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        total += passes * weight.numel() * weight.element_size()
    return total


def bandwidth(size: int, total: int = LARGE_BYTES) -> float:
    """Bytes per second with arrays of this many bytes together: the best of three kinds of work.

    Args:
        size: number of bytes that one round of the work touches.
        total: number of bytes that are touched between two looks at the clock, at least.
    """
    whole = torch.ones(size // 4)
    first, second = whole.chunk(2)
    rounds = max(1, total // size)

    def many(work: Callable[[], object]) -> float:
        # The fastest of several calls: a higher bandwidth makes the share of it lower.
        return min(seconds_of(lambda: [work() for _ in range(rounds)]) for _ in range(5)) / rounds

    fastest = min(
        many(whole.sum), many(lambda: torch.dot(first, second)), many(lambda: first.copy_(second))
    )
    return size / fastest


def product_bandwidth(model: nn.Module, total: int = LARGE_BYTES) -> float:
    """Bytes of weights per second that PyTorch's own products of matrix and vector read.

    Args:
        model: its linear layers' weights are multiplied by vectors from both sides, in turn.
        total: number of bytes that are read between two looks at the clock, at least.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [layer.weight.detach() for layer in layers]
    pairs = [(w, torch.ones(w.shape[1]), torch.ones(w.shape[0])) for w in weights]
    size = 2 * sum(w.numel() * w.element_size() for w in weights)
    rounds = max(1, total // size)

    def work() -> None:
        for _ in range(rounds):
            for weight, right, left in pairs:
                torch.mv(weight, right)
                torch.mv(weight.T, left)

    work()
    return size * rounds / min(seconds_of(work) for _ in range(5))


def bandwidth_share(
    iterations: int = 400, large: int = LARGE_BYTES, repetitions: int = REPETITIONS
) -> Figure:
    """Bytes that the attack on one SMLP victim must read per second, over the machine's bandwidth.

    Weights that fit into a large last-level cache are read faster than from memory. So the
    bandwidth is measured with arrays of both sizes, before and after each attack, and the highest
    of the four counts.

    Args:
        iterations: of the attack; a tenth of them is subtracted, and with it what happens once.
        large: bytes of the arrays that do not fit into a cache.
        repetitions: number of measurements.
    """
    updates, knowledge, _ = make_victims(SMLP, 1)
    model = knowledge[0].model
    needed = needed_bytes(model)
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    short = iterations // 10

    def attack(number: int) -> float:
        return seconds_of(lambda: IGA(iterations=number)(updates, knowledge))

    attack(iterations)
    speeds, memories, residents = [], [], []
    memory, resident = bandwidth(large, large), bandwidth(weights, large)
    for _ in range(repetitions):
        speeds.append((iterations - short) / (attack(iterations) - attack(short)))
        after = bandwidth(large, large), bandwidth(weights, large)
        memories.append(max(memory, after[0]))
        residents.append(max(resident, after[1]))
        memory, resident = after
    moved = [needed * speed for speed in speeds]
    samples = [one / max(pair) for one, *pair in zip(moved, memories, residents, strict=True)]
    return Figure(
        value=median(samples),
        unit="share of the machine's memory bandwidth",
        samples=samples,
        of="measurements",
        setting={
            "attack": "iga", "model": "SMLP 2x1024, untrained", "data": "photos 3x32x32",
            "victims": 1, "batch_size": 1, "labels": "known", "iterations": [short, iterations],
            "threads": torch.get_num_threads(), "bytes_an_iteration": needed,
            "array_bytes": [large, weights],
        },
        details={
            "iterations_per_second": median(speeds),
            "gb_per_second": median(moved) / 1e9,
            "memory_gb_per_second": median(memories) / 1e9,
            "cache_gb_per_second": median(residents) / 1e9,
            "share_of_memory": median([a / b for a, b in zip(moved, memories, strict=True)]),
            "product_gb_per_second": product_bandwidth(model, large) / 1e9,
        },
    )  # fmt: skip
