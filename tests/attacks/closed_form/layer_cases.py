"""A layer, the estimate of its output, and its gradients by autograd."""

from typing import Any

import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.module_calls import Call


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Strides at which some pixels are in no window.
SPARSE: list[dict[str, Any]] = [
    {"stride": 2, "padding": 1, "groups": 2, "dilation": 2},
    {"stride": 3, "padding": 1, "groups": 4},
]

CONVOLUTIONS: list[dict[str, Any]] = [
    {"stride": 1, "padding": 0},
    {"stride": 2, "padding": 2},
    {"stride": (2, 1), "padding": (1, 2), "kernel_size": (3, 4)},
    {"stride": 1, "padding": "same", "kernel_size": 4},
    {"stride": 1, "padding": "valid", "bias": False},
    # Padding modes that repeat pixels.
    *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
]


def conv(**settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 16, **{"kernel_size": 3} | settings).double()


def case(layer: nn.Module, value: Tensor) -> tuple[Call, Estimate, dict[str, Tensor], Tensor]:
    """A layer's call, its exact output, the gradients of its parameters, and that of its input."""
    entering = value.clone().requires_grad_()
    leaving = layer(entering.clone())
    upstream = rand(*leaving.shape, seed=1)
    names = [f"layer.{name}" for name, _ in layer.named_parameters()]
    found = torch.autograd.grad((leaving * upstream).sum(), [entering, *layer.parameters()])
    leaving = leaving.detach()
    exact = Estimate(
        leaving, torch.full_like(leaving, 1e-12), torch.zeros_like(leaving, dtype=torch.bool),
        upstream,
    )  # fmt: skip
    call = Call("layer", layer.requires_grad_(False), value, leaving)
    return call, exact, dict(zip(names, found[1:], strict=True)), found[0]
