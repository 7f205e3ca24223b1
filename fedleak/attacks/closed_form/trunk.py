"""The part of a model before one of its layers, as a function of the model's input."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.attacks.module_facts import drop_running_statistics
from fedleak.models.module_inputs import module_input
from fedleak.updates.files import Tensors
from fedleak.updates.module_state import ModuleState


class _Reached(BaseException):
    """The forward pass has come to the layer; no error, so that no handler of errors takes it."""


class Trunk:
    """The part of a model before one of its layers.

    Whatever the model computes there, by modules or by functions, is computed; what follows is not.

    Args:
        model: the model, in the client's modes; it is left as it is.
        loss: the loss of a batch.
        batch: inputs and labels; of the inputs, only the shape is used.
        layer: name of a layer that is called once.

    Attributes:
        parameters: the parameters that the layer's input depends on, by name.
        draws: whether two passes of the same inputs differ.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
        batch: tuple[Tensor, Tensor],
        layer: str,
    ) -> None:
        model = copy.deepcopy(model).requires_grad_()
        drop_running_statistics(model)
        self._seen: list[Tensor] = []
        model.get_submodule(layer).register_forward_pre_hook(self._stop, with_kwargs=True)
        self._model, self._loss, self._labels = model, loss, batch[1]
        self._state = ModuleState(model)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(batch[0].shape, generator=generator, dtype=batch[0].dtype)
        named = dict(model.named_parameters())
        with torch.random.fork_rng():
            one, other = self(probe), self(probe).detach()
        self.draws = not torch.equal(one.detach(), other)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            one.sum(), list(named.values()), allow_unused=True
        )
        self.parameters: Tensors = {
            name: named[name]
            for name, gradient in zip(named, found, strict=True)
            if gradient is not None
        }

    def __call__(self, inputs: Tensor) -> Tensor:
        """The layer's input, of any shape.

        Args:
            inputs: the model's inputs, ``(samples, ...)``.
        """
        try:
            # Clones, as the model may change its inputs in place.
            with self._state.kept():
                self._loss(self._model, (inputs.clone(), self._labels))
        except _Reached:
            return self._seen.pop()
        raise RuntimeError("the layer was not called")

    def _stop(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen.append(module_input(args, kwargs))
        raise _Reached
