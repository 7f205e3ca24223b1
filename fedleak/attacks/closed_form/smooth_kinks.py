"""Smooth functions in place of ReLU and max pooling, whatever module or function calls them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RELUS: frozenset[Any] = frozenset(
    {functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
)
IN_PLACE: frozenset[Any] = frozenset({functional.relu_, torch.relu_, Tensor.relu_})
POOLINGS: frozenset[Any] = frozenset({functional.max_pool2d, torch.max_pool2d})


class SmoothKinks(TorchFunctionMode):
    """Within its block, ReLU is a softplus, and 2D max pooling a softmax-weighted mean.

    The weight gradients of a network jump with its input where a unit of a ReLU, or the largest
    entry of a window, changes; with these functions they do not. Both approach what they stand for
    as the sharpness grows.

    The functions are ``softplus`` with the inverse temperature ``s``, and ``sum_i p_i x_i`` over a
    window with ``p`` the softmax of ``s x``; ``s`` is the sharpness over the root mean square of
    the call's input in the first pass, and stays the same in later ones. A pooling whose indices
    are asked for, or of an input without a batch dimension, is left as it is.

    Args:
        sharpness: above 0.
    """

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self._sharpness = sharpness
        self._scales: list[float] = []
        self._at = 0

    def __enter__(self) -> "SmoothKinks":
        """Begin a pass."""
        self._at = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a function of torch, or its smooth form."""
        kwargs = kwargs or {}
        smooth = None
        if func in RELUS:
            smooth = self._relu(func, *args, **kwargs)
        elif func in POOLINGS:
            smooth = self._max_pool(*args, **kwargs)
        return func(*args, **kwargs) if smooth is None else smooth

    def _relu(self, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
        slope = self._slope(input)
        if inplace or func in IN_PLACE:
            return input.copy_(functional.softplus(input.clone(), slope))
        return functional.softplus(input, slope)

    def _max_pool(
        self, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if input.dim() != 4 or ceil_mode or return_indices:
            return None
        slope, (above, beside) = self._slope(input), pair(padding)
        # What is padded has no share.
        low = float(input.detach().min()) - 1e3 / slope
        padded = functional.pad(input, (beside, beside, above, above), value=low)
        # An empty stride means the kernel's size, as in torch.
        size, step = pair(kernel_size), pair(stride or kernel_size)
        windows = functional.unfold(padded, size, dilation, 0, step)
        windows = windows.reshape(*input.shape[:2], size[0] * size[1], -1)
        shares = (slope * windows).softmax(dim=2)
        like = functional.max_pool2d(input.detach(), size, step, padding, dilation)
        return (shares * windows).sum(dim=2).reshape(like.shape)

    def _slope(self, input: Tensor) -> float:
        """The sharpness of a call, for inputs on its own scale."""
        if self._at == len(self._scales):
            rms = float(input.detach().square().mean().sqrt())
            self._scales.append(rms or 1.0)
        self._at += 1
        return self._sharpness / self._scales[self._at - 1]


def pair(value: Any) -> tuple[int, int]:
    """A setting of a 2D layer for both directions, of which a single number is for both."""
    if isinstance(value, int):
        return value, value
    one, other = value if len(value) == 2 else (value[0], value[0])
    return int(one), int(other)
