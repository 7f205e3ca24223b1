"""How near gradient matching on a perceptron comes to what the memory can deliver.

With one sample, every product with a weight matrix is one of matrix and vector: two operations a
number read. So the weights that have to be read bound the speed, and nothing else does.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.common import Entry, best_seconds, make_victims, threads_text
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
        return best_seconds(lambda: [work() for _ in range(rounds)], times=5) / rounds

    fastest = min(
        many(whole.sum), many(lambda: torch.dot(first, second)), many(lambda: first.copy_(second))
    )
    return size / fastest


def bandwidth_share(iterations: int = 400, large: int = LARGE_BYTES) -> Entry:
    """Bytes that the attack on one SMLP victim must read per second, over the machine's bandwidth.

    Weights that fit into a large last-level cache are read faster than memory delivers. So the
    bandwidth is measured for both, and the higher one counts.
    """
    updates, knowledge, _ = make_victims(SMLP, 1)
    model = knowledge[0].model
    needed = needed_bytes(model)
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    memory, resident = bandwidth(large, large), bandwidth(weights, large)
    short = iterations // 10

    def attack(number: int) -> float:
        return best_seconds(lambda: IGA(iterations=number)(updates, knowledge))

    # The difference of two lengths is free of what happens once.
    speed = (iterations - short) / (attack(iterations) - attack(short))
    # Once more: a machine that was disturbed the first time would make the share too high.
    memory = max(memory, bandwidth(large, large))
    resident = max(resident, bandwidth(weights, large))
    moved = needed * speed
    return {
        "value": moved / max(memory, resident),
        "unit": "share of the bandwidth that the machine reaches",
        "setting": "IGA, SMLP 2x1024 (untrained), photos 3x32x32, 1 victim, batch size 1, labels "
        f"known, between {short} and {iterations} iterations, {threads_text()}, best of 3 each: "
        f"{speed:.0f} iterations/s x {needed / 1e6:.1f} MB that one must read (float32 weights: "
        "the first layer's twice, the others' four times; no other matrix) = "
        f"{moved / 1e9:.1f} GB/s; compared with the higher of two bandwidths in the same run, each "
        f"the best of sum, dot and copy: {memory / 1e9:.1f} GB/s with {large / 2**20:.0f} MiB "
        f"(memory; the share of this one: {moved / memory:.2f}) and {resident / 1e9:.1f} GB/s with "
        f"{weights / 2**20:.0f} MiB, as large as the weights "
        f"(cache where they fit; its share: {moved / resident:.2f})",
    }
