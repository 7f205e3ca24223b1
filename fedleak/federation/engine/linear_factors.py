"""Rank-one factors of the weight gradients of linear layers, recorded during backpropagation."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fedleak.models.module_inputs import module_input
from fedleak.updates.compression import Factors
from fedleak.updates.naming import joined


@contextmanager
def linear_factors(model: nn.Module) -> Iterator[dict[str, Factors]]:
    """Within the block, record the factors of the weight gradients for a batch of one sample.

    Args:
        model: the model that computes a gradient in the block.

    Yields:
        Name of a linear layer's weight -> gradient with respect to the layer's output ``(out,)``
        and the layer's input ``(in,)``; the weight's gradient is their outer product. The backward
        pass fills it. A layer that is called twice, or with more than one sample, has no entry.
    """
    calls: Counter[str] = Counter()
    found: dict[str, Factors] = {}
    handles = []

    def register(name: str, layer: nn.Linear) -> None:
        weight = joined(name, "weight")

        def forward(
            _layer: nn.Module,
            arguments: tuple[Tensor, ...],
            named: dict[str, Tensor],
            output: Tensor,
        ) -> None:
            calls[name] += 1
            found.pop(weight, None)
            inputs = module_input(arguments, named)
            if output.requires_grad and inputs.dim() == 2 and len(inputs) == 1:
                sample = inputs.detach()[0].cpu()
                output.register_hook(lambda gradient: backward(gradient, sample))

        def backward(gradient: Tensor, sample: Tensor) -> None:
            if calls[name] == 1:
                found[weight] = gradient.detach()[0].cpu(), sample

        handles.append(layer.register_forward_hook(forward, with_kwargs=True))

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            register(name, layer)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
