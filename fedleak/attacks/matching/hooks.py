"""Hooks that record layer inputs and statistics in a forward pass under ``torch.func``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedleak.attacks.matching.differentiation import is_ordinary
from fedleak.attacks.matching.priors import Statistics
from fedleak.attacks.module_facts import sharing_layers
from fedleak.models.module_inputs import module_input
from fedleak.updates.files import Tensors
from fedleak.updates.module_state import ModuleState
from fedleak.updates.naming import joined

# By linear layer: its inputs ``(rows, in)`` and the gradients of its outputs ``(rows, out)``. The
# weight's gradient is ``outputs^T inputs``.
Rows = dict[str, tuple[Tensor, Tensor]]


class LossModule(nn.Module):
    """The loss as a module's forward pass, for ``torch.func.functional_call``.

    The model's state is put back after each pass, and the batch is not changed in place.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._state = ModuleState(model)
        self._changes_inputs: bool | None = None

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        inputs, labels = batch
        if self._changes_inputs is not False:
            inputs = inputs.clone()
        version = inputs._version
        with self._state.kept(copies=is_ordinary()):
            loss = self._loss(self.model, (inputs, labels))
        if self._changes_inputs is None:
            self._changes_inputs = inputs._version != version
        return loss


class LinearHooks:
    """Hooks on linear layers that record their inputs and add probes to their outputs.

    The gradient with respect to a probe of zeros is the gradient of the layer's output. Layers
    whose weight is shared with another module get no hook. A layer can compute as if its weight had
    been updated by SGD, without building the new weight.
    """

    def __init__(self, model: nn.Module) -> None:
        shared = sharing_layers(model.named_modules())
        self._layers: dict[str, nn.Linear] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        self._probes: dict[str, list[Tensor]] | None = None
        self._moves: Rows = {}
        self._shapes: dict[str, list[tuple[int, ...]]] | None = None
        for name, module in model.named_modules():
            # Subclasses may compute something else than x W^T + b, and so do hooks that compute the
            # weight from others, as those of ``weight_norm`` do.
            own = [part for part, _ in module.named_parameters()]
            plain = (
                type(module) is nn.Linear and own[:1] == ["weight"] and own[1:] in ([], ["bias"])
            )
            if plain and name not in shared:
                self._layers[name] = module
                module.register_forward_hook(self._hook(name), with_kwargs=True)

    def parameters(self, layer: str) -> list[str]:
        """Names of the layer's weight and, if it has one, bias."""
        return [joined(layer, name) for name, _ in self._layers[layer].named_parameters()]

    @contextmanager
    def shapes(self) -> Iterator[dict[str, list[tuple[int, ...]]]]:
        """Within the block, record the shapes of every layer's outputs, call by call."""
        self._shapes = {}
        try:
            yield self._shapes
        finally:
            self._shapes = None

    def start(self, probes: dict[str, list[Tensor]], moves: Rows) -> None:
        """Begin to record inputs and to add probes and weight updates.

        Args:
            probes: layer -> what is added to its outputs, call by call.
            moves: layer -> factors of the update of its weight, ``outputs^T inputs``; the update of
                its bias is the sum of the outputs.
        """
        self.inputs = {layer: [] for layer in probes}
        self._probes, self._moves = probes, moves

    def stop(self) -> None:
        """Drop the tensors of the last pass, which must not outlive their transform."""
        self.inputs, self._probes, self._moves = {}, None, {}

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def hook(
            _module: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            output: Tensor,
        ) -> Tensor | None:
            if self._shapes is not None:
                self._shapes.setdefault(name, []).append(tuple(output.shape))
            if self._probes is None or name not in self._probes:
                return None
            call = len(self.inputs[name])
            given = module_input(args, kwargs)
            self.inputs[name].append(given)
            if name in self._moves:
                entering, leaving = self._moves[name]
                output = output + (given @ entering.T) @ leaving
                if self._layers[name].bias is not None:
                    output = output + leaving.sum(dim=0)
            return output + self._probes[name][call]

        return hook


class BatchNormHooks:
    """Hooks on batch-norm layers that record mean and variance of their inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.statistics: Statistics = {}
        self._active = False
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def start(self) -> None:
        """Begin to record statistics."""
        self.statistics, self._active = {}, True

    def stop(self) -> None:
        """Drop the tensors of the last pass, which must not outlive their transform."""
        self.statistics, self._active = {}, False

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if self._active:
                # Channels first: (channels, everything else).
                rows = module_input(args, kwargs).transpose(0, 1).flatten(1)
                # Unbiased, as the running variance is; a single number has none.
                variance = rows.var(dim=1, unbiased=rows.shape[1] > 1)
                self.statistics[name] = (rows.mean(dim=1), variance)

        return hook


class InputHooks:
    """Hooks on modules that record their latest input."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.entered: Tensors = {}
        self._active = False
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def start(self) -> None:
        """Begin to record inputs."""
        self.entered, self._active = {}, True

    def stop(self) -> None:
        """Drop the tensors of the last pass, which must not outlive their transform."""
        self.entered, self._active = {}, False

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if self._active:
                self.entered[name] = module_input(args, kwargs)

        return hook
