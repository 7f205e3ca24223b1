"""What the weight gradients of linear layers are products of, noted as a client computes them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fedleak.models.module_inputs import module_input
from fedleak.updates.compression import Factors


@contextmanager
def linear_factors(model: nn.Module) -> Iterator[dict[str, Factors]]:
    """Within the block, the factors of one sample's pass forwards and backwards are noted.

    Args:
        model: the model that computes a gradient in the block.

    Yields:
        Name of a linear layer's weight -> gradient of its output and its input, whose outer product
        its gradient is; filled by the backward pass. A layer that is used twice, or by more than
        one sample, has none.
    """
    calls: Counter[str] = Counter()
    found: dict[str, Factors] = {}
    handles = []

    def watch(name: str, layer: nn.Linear) -> None:
        weight = f"{name}.weight"

        def forward(
            _layer: nn.Module,
            arguments: tuple[Tensor, ...],
            named: dict[str, Tensor],
            output: Tensor,
        ) -> None:
            calls[name] += 1
            found.pop(weight, None)
            given = module_input(arguments, named)
            if output.requires_grad and given.dim() == 2 and len(given) == 1:
                entering = given.detach()[0].cpu()
                output.register_hook(lambda gradient: backward(gradient, entering))

        def backward(gradient: Tensor, entering: Tensor) -> None:
            if calls[name] == 1:
                found[weight] = gradient.detach()[0].cpu(), entering

        handles.append(layer.register_forward_hook(forward, with_kwargs=True))

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            watch(name, layer)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
