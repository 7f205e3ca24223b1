"""A server that chooses the clients' hyperparameters and leaves the weights as they are."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.errors import BadInput, require
from fedleak.servers.base import Change, Crafted, MaliciousServer, Reading
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate


@dataclass(kw_only=True, eq=False, repr=False)
class Hyperparameters(MaliciousServer):
    """Sets learning rate, local epochs and batch size of a client; the weights stay honest.

    It acts through the training configuration, which many clients obey without a check. Several
    local steps at a rate near 0 leave the weights where they were: the change of the weights is
    then the sum of the steps' gradients at the weights that were sent, a single linear equation in
    the samples, up to the rounding of the client's numbers. One epoch removes the mixing of epochs,
    and a batch of one sample makes a gradient that of one sample. The attacks of the run read the
    update, and are told the hyperparameters that were sent.

    Args:
        rate: learning rate that the client is told, above 0. If None, it keeps its own. At too
            small a rate the update is lost in the rounding of the client's weights.
        epochs: number of local epochs, at least 1. If None, the client's own.
        batch: number of samples in a batch, at least 1. If None, the client's own.
        rate_name: name of the rate in the training configuration.
        epochs_name: name of the number of epochs there.
        batch_name: name of the batch size there.

    Raises:
        BadInput: if a value is out of its range, or nothing is set.
    """

    rate: float | None = None
    epochs: int | None = 1
    batch: int | None = 1
    rate_name: str = "learning_rate"
    epochs_name: str = "local_epochs"
    batch_name: str = "batch_size"

    name: ClassVar[str] = "hyperparameters"
    paper: ClassVar[str] = (
        "Carletti et al., USENIX Security 2025, https://github.com/gparrella12/sok_gias_fl, letter "
        "F: what an attacker gains that manipulates training details"
    )
    threat_model: ClassVar[str] = "malicious server that chooses hyperparameters"
    changes: ClassVar[frozenset[Change]] = frozenset({"hyperparameters"})
    needs: ClassVar[str] = "clients that obey the training configuration"
    reads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self.rate is None or (0 < self.rate < math.inf),
            f"Expected `rate` of {self.name} to be positive, got {self.rate}.",
        )
        for setting in ("epochs", "batch"):
            value = getattr(self, setting)
            require(
                value is None or value >= 1,
                f"Expected `{setting}` of {self.name} to be at least 1, got {value}.",
            )
        require(
            bool(self.config),
            f"Expected at least one of `rate`, `epochs` and `batch` of {self.name}, got none.",
        )
        names = [self.rate_name, self.epochs_name, self.batch_name]
        require(
            all(names) and len(set(names)) == len(names),
            f"Expected three different names in the training configuration, got {names}.",
        )

    @property
    def config(self) -> dict[str, float | int | str | bool]:
        """The entries of the training configuration that it sets."""
        entries = {
            self.rate_name: self.rate, self.epochs_name: self.epochs, self.batch_name: self.batch,
        }  # fmt: skip
        return {name: value for name, value in entries.items() if value is not None}

    def config_names(self) -> frozenset[str]:
        """See :meth:`MaliciousServer.config_names`."""
        return frozenset(self.config)

    def refuses_training(self, knowledge: Knowledge) -> str | None:
        """See :meth:`MaliciousServer.refuses_training`."""
        if knowledge.protocol == "fedsgd" and self.batch is None:
            return "a gradient depends on the batch alone, and no `batch` is set"
        return None

    def craft(
        self,
        knowledge: Knowledge,
        *,
        public: Tensor | None,
        generator: torch.Generator,
        earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = (),
    ) -> Crafted:
        """See :meth:`MaliciousServer.craft`: the global weights, with the hyperparameters."""
        self.check_training(knowledge)
        weights = {n: v.detach().clone() for n, v in knowledge.model.state_dict().items()}
        return Crafted(weights, self.config)

    def read(
        self,
        knowledge: Knowledge,
        rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
        *,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> Reading:
        """Not called, see :attr:`MaliciousServer.reads`.

        Raises:
            BadInput: always.
        """
        raise BadInput(
            f"Expected `attacks` that read the update, as {self.name} reads none itself."
        )
