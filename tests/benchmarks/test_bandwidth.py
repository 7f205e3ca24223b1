"""The bytes that are counted are those that the engine reads."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bandwidth import bandwidth_share, needed_bytes, weight_passes
from benchmarks.victims import make_victims
from fedleak.attacks import IGA
from fedleak.models import SMLP

PRODUCTS = ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "linear", "matmul")


class Products(TorchDispatchMode):
    """Counts the matrix products in which a tensor of so many numbers takes part."""

    def __init__(self):
        super().__init__()
        self.sizes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in PRODUCTS:
            for value in args:
                if isinstance(value, torch.Tensor):
                    self.sizes[value.numel()] += 1
        return function(*args, **(kwargs or {}))


def test_the_bandwidth_that_counts_is_the_higher_one():
    figure = bandwidth_share(iterations=40, large=2**22, repetitions=1)
    details = figure.details
    highest = max(details["memory_gb_per_second"], details["cache_gb_per_second"])
    assert figure.value == pytest.approx(details["gb_per_second"] / highest)
    assert details["gb_per_second"] == pytest.approx(
        details["iterations_per_second"] * figure.setting["bytes_an_iteration"] / 1e9
    )


def test_the_engine_reads_the_weights_as_often_as_is_counted():
    updates, knowledge, _ = make_victims(SMLP, 1)
    model = knowledge[0].model
    counts = []
    for iterations in (2, 5):
        with Products() as products:
            IGA(iterations=iterations)(updates, knowledge)
        counts.append(products.sizes)
    passes = weight_passes(model)
    modules = dict(model.named_modules())
    sizes = {name: modules[name].weight.numel() for name in passes}
    assert list(passes.values()) == [2, 4, 4]
    # Less would mean that the count flatters; more would be work that could be saved.
    read = {name: (counts[1][size] - counts[0][size]) / 3 for name, size in sizes.items()}
    assert all(read[name] >= passes[name] for name in passes), read
    assert needed_bytes(model) == 4 * sum(passes[name] * sizes[name] for name in passes)
