"""What the weight gradients of linear layers are products of, noted as a client computes them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fedleak.compact import Factors


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
    inputs: dict[str, list[Tensor]] = {}
    found: dict[str, Factors] = {}
    handles = []

    def watch(name: str, layer: nn.Linear) -> None:
        def forward(_layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen = inputs.setdefault(name, [])
            seen.append(arguments[0].detach())
            if output.requires_grad:
                output.register_hook(backward)

        def backward(gradient: Tensor) -> None:
            seen = inputs[name]
            found.pop(f"{name}.weight", None)
            if len(seen) == 1 and seen[0].dim() == 2 and len(seen[0]) == 1:
                found[f"{name}.weight"] = gradient.detach()[0].cpu(), seen[0][0].cpu()

        handles.append(layer.register_forward_hook(forward))

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            watch(name, layer)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
