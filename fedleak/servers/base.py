"""The interface of a malicious server: it chooses what it sends, and reads what comes back."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedleak.errors import require
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

Change = Literal["hyperparameters", "parameters", "model"]


@dataclass(frozen=True, repr=False)
class Crafted:
    """What a malicious server sends to a client instead of the global model.

    Args:
        weights: the complete state of the model by name, of the shapes and dtypes of the global
            model's.
        config: entries of the training configuration that are set or replaced, such as ``lr``.
        memory: what the reading needs besides the weights, by name, such as thresholds. It is
            written to the run folder and never sent.
    """

    weights: Tensors
    config: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Reading:
    """What a malicious server read from the updates of one client.

    Of some samples of the client, in any order; how many it has is not known.

    Args:
        inputs: reconstructed inputs, normalised as the client's, ``(found, ...)``.
        labels: their labels, ``(found,)``; -1 where unknown.
        certified: whether each is certified to be one sample and no mixture, ``(found,)``.
        features: the features of the samples that the equations give, up to a positive factor,
            ``(found, features)``; of no columns if the inputs themselves were read.
        findings: what was found on the way, a sentence each.
    """

    inputs: Tensor
    labels: Tensor
    certified: Tensor
    features: Tensor
    findings: tuple[str, ...] = ()


class MaliciousServer(ABC):
    """A server that changes what it sends to the clients that it attacks.

    A plugin sets the class attributes and writes :meth:`craft` and :meth:`read`. Its
    hyperparameters are the fields of a keyword-only dataclass
    (``@dataclass(kw_only=True, eq=False, repr=False)``). It is found by name through the entry
    point group ``fedleak.servers`` or by its dotted path.

    The class attributes annotated here are the facts that the tests, ``fedleak list`` and the
    documentation read.
    """

    name: ClassVar[str]
    """The name in tables and on the command line."""
    paper: ClassVar[str]
    """Authors, venue, address."""
    threat_model: ClassVar[str]
    """What the server does, such as ``malicious server that chooses parameters``."""
    changes: ClassVar[frozenset[Change]]
    """What it changes: hyperparameters, parameters or the model itself."""
    needs: ClassVar[str]
    """What the model must have and what the server must know, in a few words."""
    reads: ClassVar[bool] = True
    """Whether it reads updates itself. One that does not prepares them for the attacks of a run,
    and its :meth:`read` is not called."""
    # No ClassVar, since it is a hyperparameter of those that have a choice.
    rounds: int = 1
    """Number of rounds in which it sends something to the same client before it reads."""

    @abstractmethod
    def craft(
        self,
        knowledge: Knowledge,
        *,
        public: Tensor | None,
        generator: torch.Generator,
        earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = (),
    ) -> Crafted:
        """What is sent to a client in a round.

        Args:
            knowledge: what the server knows of the clients; its ``model`` has the weights of the
                global model and is not to be changed. ``num_samples`` is the number of samples
                that the server expects behind the update, and labels are never known.
            public: public inputs, normalised as the clients', ``(samples, ...)``. If None, there
                are none.
            generator: random generator of every draw.
            earlier: what was sent to this client since it was last read and what came back, oldest
                first: fewer than :attr:`rounds`.

        Raises:
            BadInput: if the server cannot attack such a model.
        """

    @abstractmethod
    def read(
        self,
        knowledge: Knowledge,
        rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
        *,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> Reading:
        """Samples of a client, from what was sent to it and what came back.

        Args:
            knowledge: as for :meth:`craft`, of the last of the updates: with its number of samples
                and the local training under the configuration that was sent.
            rounds: what was sent and what came back in :attr:`rounds` rounds, oldest first; of
                several clients behind secure aggregation, their mean as one update.
            public: as for :meth:`craft`.
            generator: random generator of every draw.

        Raises:
            BadInput: if an update does not fit what was sent.
        """

    def config_names(self) -> frozenset[str]:
        """Names of the entries of the training configuration that it always sets.

        A run whose clients ignore one of them is refused before it begins. Of an entry that
        depends on the model or its training, that is seen in the first attacked round.
        """
        return frozenset()

    def features_of(self, model: nn.Module, inputs: Tensor) -> Tensor | None:
        """The features that an exact reading gives of inputs, with which a reading is scored.

        Args:
            model: the clients' model with the weights that were sent in the last of the rounds.
            inputs: inputs of the client, normalised, ``(samples, ...)``.

        Returns:
            ``(samples, features)``, each row up to a positive factor. If None, the inputs
            themselves are read.
        """
        return None

    def changed_model(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """The model that the clients are given to train, of a server that changes the model.

        Args:
            model: their own model, which may be changed.
            input_shape: shape of one sample.

        Raises:
            BadInput: if the server cannot change such a model.
        """
        return model

    def refuses_model(self, model: nn.Module) -> str | None:
        """Why the server cannot attack a model. If None, it can.

        Args:
            model: the clients' model.
        """
        return None

    def refuses_training(self, knowledge: Knowledge) -> str | None:
        """Why the server cannot read what clients send that train so. If None, it can.

        Args:
            knowledge: what is known of the clients, as for :meth:`craft`.
        """
        return None

    def check_model(self, knowledge: Knowledge) -> None:
        """Check the model, the number of samples and the training, before weights are made.

        Args:
            knowledge: as for :meth:`craft`.

        Raises:
            BadInput: if the server cannot attack the model or read the update, or the number of
                samples is not known.
        """
        reason = self.refuses_model(knowledge.model)
        require(reason is None, f"Expected a model that {self.name} can attack, but {reason}.")
        require(
            knowledge.num_samples > 0,
            f"Expected the number of samples for which {self.name} makes the weights, got 0.",
        )
        self.check_training(knowledge)

    def check_training(self, knowledge: Knowledge) -> None:
        """Check that the server can read what the clients send.

        Args:
            knowledge: as for :meth:`craft` or :meth:`read`.

        Raises:
            BadInput: if it cannot.
        """
        reason = self.refuses_training(knowledge)
        require(reason is None, f"Expected an update that {self.name} can read, but {reason}.")

    def __repr__(self) -> str:
        settings = inspect.signature(type(self)).parameters
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)
        return f"{type(self).__name__}({values})"


def not_one_step(knowledge: Knowledge) -> str | None:
    """Why an update is not the gradient or the one step of a client. If None, it is.

    Args:
        knowledge: what is known of the client.
    """
    if knowledge.protocol == "fedsgd" or knowledge.is_one_step:
        return None
    if (clients := knowledge.number_of_clients) > 1:
        return f"it reads weights after one step of one client, and theirs are of {clients} clients"
    return f"it reads the update of one step, and theirs is of {knowledge.steps} steps"
