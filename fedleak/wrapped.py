"""A plain module as a model of a run: of an imported update, only the module is known."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import BadInput, require
from fedleak.models.base import LightningModule
from fedleak.registry import load_class
from fedleak.schema import parameters_of, takes_any


class Wrapped(LightningModule):
    """Any module as a LightningModule that is trained by plain SGD.

    The loss is that of the module's ``batch_loss(batch)`` or ``training_step(batch, batch_idx)``,
    or else the cross entropy of its output for ``(images, labels)``.

    Args:
        module: dotted path of the module's class.
        settings: the arguments with which it is made.
        learning_rate: learning rate of the client, positive; a gradient does not depend on it.
        input_shape: passed to the class if it takes it; taken from the data set.
        num_classes: as ``input_shape``.

    Raises:
        BadInput: if the class is no module or does not take the arguments.
    """

    def __init__(
        self,
        *,
        module: str,
        settings: dict[str, Any] | None = None,
        learning_rate: float = 0.1,
        input_shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        super().__init__()
        require(
            learning_rate > 0,
            f"Expected `learning_rate` to be positive, got {learning_rate}.",
        )
        self.learning_rate = learning_rate
        found = load_class(module)
        require(
            issubclass(found, nn.Module),
            f"Expected a subclass of torch.nn.Module, got `{module}`.",
        )
        context = {"input_shape": tuple(input_shape), "num_classes": num_classes}
        known, any_name = parameters_of(found), takes_any(found)
        given = {name: value for name, value in context.items() if name in known or any_name}
        try:
            # Under this name, as wrappers name theirs, updates are found by the module's own names.
            self.module = found(**given | (settings or {}))
        except Exception as error:  # a class of a user's own may raise anything
            text = " ".join(str(error).split())
            raise BadInput(
                f"Expected arguments with which `{module}` can be made, got {settings or {}}: "
                f"{type(error).__name__}: {text:.200}"
            ) from error

    def forward(self, inputs: Tensor) -> Any:
        """The module's own output."""
        return self.module(inputs)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Any:
        """The module's own loss of a batch, or the mean cross entropy of its output."""
        for name, arguments in (("batch_loss", ()), ("training_step", (0,))):
            if callable(method := getattr(self.module, name, None)):
                return method(batch, *arguments)
        return functional.cross_entropy(self.module(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """See :meth:`batch_loss`."""
        return self.batch_loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
