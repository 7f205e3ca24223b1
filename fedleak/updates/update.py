"""The update of one client in one round, as the server intercepts it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fedleak.errors import BadInput, require
from fedleak.updates.compression import CompactTensors, Factors, check_encoded
from fedleak.updates.files import (
    GLOBAL_FORMAT,
    KEY,
    UPDATE_FORMAT,
    Tensors,
    check_name,
    read_tensors,
    short,
    update_key,
    write_tensors,
)
from fedleak.updates.gradient_estimate import GradientEstimate, change_of, estimate_gradient
from fedleak.updates.knowledge import Aggregation, Knowledge, Protocol
from fedleak.updates.naming import by_name, known_names
from fedleak.updates.stored_tensors import StoredTensors

# What is given -> protocol.
PROTOCOLS: dict[str, Protocol] = {"gradient": "fedsgd", "weights": "fedavg", "delta": "delta"}

# How a header writes rounds, clients and examples.
_NUMBER = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)


def gradient_to_weights(
    sent: Mapping[str, Tensor], gradient: Mapping[str, Tensor], *, learning_rate: float
) -> Tensors:
    """The weights after one SGD step: ``sent - learning_rate * gradient``.

    Args:
        sent: the weights that the server sent; names without a gradient stay unchanged.
        gradient: gradient by parameter name.
        learning_rate: the step's learning rate.
    """
    return {
        name: value - learning_rate * gradient[name] if name in gradient else value
        for name, value in sent.items()
    }


@dataclass(frozen=True, repr=False)
class InterceptedUpdate:
    """The update of one client in one round, as the server intercepts it.

    Args:
        round: number of the round, from 1.
        client: number of the client, from 0.
        protocol: ``fedsgd``: ``received`` is a gradient; ``fedavg``: it is weights; ``delta``: it
            is a change of weights, new minus old.
        num_examples: number of examples that the client reports.
        model: name of the model, such as ``smlp+precode``.
        sent: the global parameters and buffers that the server sent, by name.
        received: the client's reply, by the same names, or part of them; stays encoded if it was
            sent encoded.
        clients: number of clients whose updates were combined in this one.
        aggregation: how, see :class:`fedleak.updates.knowledge.Knowledge`.
    """

    round: int
    client: int
    protocol: Protocol
    num_examples: int
    model: str
    sent: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    clients: int = 1
    aggregation: Aggregation = "weighted_mean"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        gradient: Mapping[str, Any] | Sequence[Any] | None = None,
        weights: Mapping[str, Any] | Sequence[Any] | None = None,
        delta: Mapping[str, Any] | Sequence[Any] | None = None,
        num_examples: int = 1,
        round: int = 1,
        client: int = 0,
    ) -> Self:
        """Make an update from a gradient, from weights, or from a change of weights.

        Each is given by name or in the order of ``model.parameters()``, all of them or those that
        require a gradient, as tensors or numpy arrays.
        In a gradient, None stands for an unused parameter and counts as 0. Prefixes of wrappers
        (``module.``, ``_orig_mod.``, ``_module.``) are recognised on both sides.

        Args:
            model: the model with the weights that were sent.
            gradient: the client's gradient.
            weights: the weights that the client returned, with or without buffers.
            delta: the change of the client's weights, new minus old.
            num_examples: number of examples that the client used.
            round: number of the round, from 1.
            client: number of the client, from 0.

        Raises:
            BadInput: if not exactly one of the three is given, or if it does not fit the model.
        """
        given = {"gradient": gradient, "weights": weights, "delta": delta}
        kinds = [name for name, value in given.items() if value is not None]
        require(
            len(kinds) == 1,
            f"Expected one of {', '.join(given)}, got {' and '.join(kinds) or 'none'}.",
        )
        (kind,) = kinds
        counts: list[tuple[str, Any, int]] = [
            ("num_examples", num_examples, 0),
            ("round", round, 1),
            ("client", client, 0),
        ]
        for count, number, least in counts:
            require(
                isinstance(number, int) and least <= number < 10**9,
                f"Expected `{count}` to be a whole number from {least}, got {number!r:.60}.",
            )
        module: Any = model
        require(
            isinstance(module, nn.Module),
            f"Expected a module, got {type(model).__name__}.",
        )
        lazy = [n for n, v in model.named_parameters() if isinstance(v, UninitializedParameter)]
        require(
            not lazy,
            f"Expected {type(model).__name__} to have parameters with numbers in them, got "
            f"`{(lazy or [''])[0]}` of a lazy layer: call the model once.",
        )
        values: list[Any] = list(model.state_dict().values())
        require(
            all(isinstance(value, Tensor) and not value.is_meta for value in values)
            and next(model.parameters(), None) is not None,
            f"Expected {type(model).__name__} to have parameters with numbers in them.",
        )
        sent = {n: v.detach().cpu().clone() for n, v in model.state_dict().items()}
        parameters = [name for name, _ in model.named_parameters()]
        found = by_name(given[kind], kind, parameters, sent, _trained(model))
        return cls(
            round=round,
            client=client,
            protocol=PROTOCOLS[kind],
            num_examples=num_examples,
            model=type(model).__name__.lower(),
            sent=sent,
            received=found,
        )

    def for_model(self, model: nn.Module) -> Self:
        """The same update by a model's own names.

        Lists take the names of the model's parameters or of its state, in order; prefixes of
        wrappers are recognised; weights that were not sent, such as those of a frozen base, are the
        model's.

        Args:
            model: the architecture.

        Raises:
            BadInput: if names, number or shapes do not fit the model, or a value is not a tensor.
        """
        state = model.state_dict()
        parameters = [name for name, _ in model.named_parameters()]
        given: Any = self.sent
        sent, received = self.sent, self.received
        filled = dict(sent)
        if _is_of_another(given, state):
            return self  # :meth:`check` says so
        if not (_is_by_name(given, state) and len(given) == len(state)):
            own = {name: value.detach().cpu().clone() for name, value in state.items()}
            sent = filled = own | by_name(given, "sent weights", parameters, own)
        if not isinstance(received, CompactTensors) and not _is_by_name(received, state):
            kinds = {protocol: kind for kind, protocol in PROTOCOLS.items()}
            kind = kinds[self.protocol]
            received = by_name(received, kind, parameters, filled, _trained(model))
        return replace(self, sent=sent, received=received)

    def __repr__(self) -> str:
        size = sum(value.numel() for value in self.sent.values())
        return (
            f"<InterceptedUpdate {self.key} of {self.model} ({size:,} numbers sent), "
            f"{self.protocol}, {self.num_examples} examples>"
        )

    @property
    def key(self) -> str:
        """The name of the update's files, such as ``r0001-c0003``."""
        return update_key(self.round, self.client)

    def check(self, model: nn.Module) -> None:
        """Check that the update is complete, finite and fits a model.

        Args:
            model: the architecture.

        Raises:
            BadInput: if names or shapes differ from the model's, a parameter is not floating point,
                or a value is NaN or infinite.
        """
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for title, tensors in (("sent", self.sent), ("received", self.received)):
            names = set(expected) if title == "sent" else parameters
            missing, strange = sorted(names - set(tensors)), sorted(set(tensors) - set(expected))
            # A client may return a part, such as adapters, or no gradient of an unused layer.
            partial = title == "received" and len(missing) < len(names)
            if strange or (missing and not partial):
                raise BadInput(
                    f"Expected an update of {type(model).__name__}, but its {title} tensors lack "
                    f"{missing[:3] or 'nothing'} and additionally have "
                    f"{short(strange[:3]) if strange else 'nothing'}: "
                    "give the model that the federation trained."
                )
            # Before any tensor is decoded: its size is then at most that of the model's.
            for name in tensors:
                shape = tensors.shape(name) if isinstance(tensors, CompactTensors) else None
                shape = tuple(tensors[name].shape) if shape is None else shape
                if shape != expected[name]:
                    raise BadInput(
                        f"Expected `{name}` of shape {expected[name]} in an update of "
                        f"{type(model).__name__}, got {shape}: give the model that the federation "
                        "trained."
                    )
            for name, value in tensors.items():
                if name in parameters and not value.is_floating_point():
                    raise BadInput(
                        f"Expected floating point numbers in `{name}` of update {self.key}, got "
                        f"{value.dtype}."
                    )
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise BadInput(
                        f"Expected finite numbers, got NaN or infinity in `{name}` of update "
                        f"{self.key}: this client's training diverged, leave it out."
                    )

    def change(self, names: Iterable[str]) -> Tensors:
        """The change of weights, new minus old, in float64.

        Args:
            names: parameters to return; those that did not come are left out.

        Raises:
            BadInput: if the update is a gradient.
        """
        require(self.protocol != "fedsgd", "Expected weights or their change, got a gradient.")
        received = {name: self.received[name] for name in names if name in self.received}
        if self.protocol == "delta":
            return {name: value.double() for name, value in received.items()}
        return change_of(self.sent, received)

    def gradient(self, model: nn.Module, knowledge: Knowledge) -> Tensors:
        """The client's gradient by parameter name: as received, or estimated from weights.

        Args:
            model: the architecture; the gradient of its parameters (not buffers) is returned, as
                far as they came.
            knowledge: gives the local training.

        Raises:
            BadInput: if weights came and the learning rate is not known.
        """
        return self.estimate(model, knowledge).gradient

    def estimate(self, model: nn.Module, knowledge: Knowledge) -> GradientEstimate:
        """The client's gradient, see :meth:`gradient`, with what is known of its error.

        Args:
            model: see :meth:`gradient`.
            knowledge: see :meth:`gradient`.

        Raises:
            BadInput: see :meth:`gradient`.
        """
        names = [name for name, _ in model.named_parameters()]
        if self.protocol == "fedsgd":
            return GradientEstimate({n: self.received[n] for n in names if n in self.received})
        # The number of steps is that of weights, whatever the knowledge was made for.
        clients = replace(knowledge, protocol=self.protocol).by_client
        steps = [(client.weight, client.steps) for client in clients]
        return estimate_gradient(self.sent, self.change(names), knowledge.local, steps)

    def as_mean(self, knowledge: Knowledge) -> tuple[Self, Knowledge]:
        """The same update as a mean of the clients' updates, if it is their sum.

        Args:
            knowledge: tells how many clients there are and how their updates were combined.

        Returns:
            The update and the knowledge about it, in which the aggregation is ``mean``.

        Raises:
            BadInput: if it is a sum of weights, which holds the sent ones several times.
        """
        if knowledge.aggregation != "sum" or knowledge.number_of_clients == 1:
            return self, knowledge
        number = knowledge.number_of_clients
        require(
            self.protocol != "fedavg",
            f"Expected a sum of gradients or of changes of weights, got a sum of the weights of "
            f"{number} clients: divide it by their number and give it as their mean.",
        )
        received = {
            name: value / number if value.is_floating_point() else value
            for name, value in self.received.items()
        }
        return (
            replace(self, received=received, aggregation="mean"),
            replace(knowledge, aggregation="mean"),
        )

    def factors(self) -> dict[str, Factors]:
        """Name of a parameter -> two vectors whose outer product is its gradient.

        Contains the gradients that the client sent in this form; empty for weights.
        """
        if self.protocol != "fedsgd" or not isinstance(self.received, CompactTensors):
            return {}
        return self.received.factors()

    def save(self, folder: Path | str, *, compare: bool = True, own: bool = False) -> Path:
        """Write the update to ``folder``; the sent weights go to one file per round.

        Args:
            folder: an existing folder.
            compare: whether to compare the sent weights with those in a file of the round that is
                there already, as another federation may have written it.
            own: whether the sent weights are this client's own; they then go to a file of their
                own.

        Returns:
            The path of the update's file.

        Raises:
            BadInput: if the model's name is not valid in a file name, there is no such folder, or
                it holds other sent weights of this round.
        """
        check_name("the model", self.model)
        folder = Path(folder)
        require(folder.is_dir(), f"Expected a folder for updates at {folder}, found none.")
        shared = folder / f"{self.key}-sent" if own else folder / f"r{self.round:04d}-global"
        shared = shared.with_suffix(".safetensors")
        if shared.exists() and compare and not own:
            found, _ = read_tensors(shared, GLOBAL_FORMAT)
            require(
                found.keys() == self.sent.keys()
                and all(torch.equal(value, self.sent[name]) for name, value in found.items()),
                f"Expected the weights that were sent in round {self.round} in {shared}, found "
                "others, as of another federation: choose another folder.",
            )
        if own or not shared.exists():
            header = {"format": GLOBAL_FORMAT, "round": str(self.round), "model": self.model}
            write_tensors(self.sent, shared, header)
        path = folder / f"{self.key}.safetensors"
        header = {
            "format": UPDATE_FORMAT,
            "round": str(self.round),
            "client": str(self.client),
            "protocol": self.protocol,
            "num_examples": str(self.num_examples),
            "model": self.model,
        }
        if self.clients > 1:
            header |= {"clients": str(self.clients), "aggregation": self.aggregation}
        received = self.received
        write_tensors(
            received.encoded if isinstance(received, CompactTensors) else received, path, header
        )
        return path

    @classmethod
    def load(cls, path: Path, *, stored: bool = False) -> Self:
        """Read an update and the weights that the server sent in its round.

        Args:
            path: a file that :meth:`save` wrote; the file of sent weights lies beside it, of the
                client or of the round.
            stored: whether the tensors stay in the files, and each is read when it is used; see
                :meth:`loaded`.

        Raises:
            BadInput: if a file is missing, truncated or of another format, if the header has no
                valid round, client, number of examples or name, or if an encoded gradient is
                inconsistent or decodes to more than ``files.LARGEST`` bytes.
        """
        received, header = _read(path, UPDATE_FORMAT, stored)
        numbers = [header.get(name, "") for name in ("round", "client", "num_examples")]
        numbers.append(header.get("clients", "1"))
        valid = all(map(_NUMBER.fullmatch, numbers)) and "0" not in (numbers[0], numbers[3])
        if "model" not in header or not valid:
            raise BadInput(f"Expected a complete header in {path}, got {short(header, 200)}.")
        round_, client, examples, clients = map(int, numbers)
        aggregation = header.get("aggregation", "weighted_mean")
        if aggregation not in get_args(Aggregation):
            raise BadInput(
                f"Expected aggregation {', '.join(get_args(Aggregation))} in {path}, got "
                f"{short(aggregation)}."
            )
        protocol = header.get("protocol")
        if protocol not in get_args(Protocol):
            raise BadInput(
                f"Expected protocol {', '.join(get_args(Protocol))} in {path}, got "
                f"{short(protocol)}."
            )
        key = update_key(round_, client)
        if KEY.fullmatch(path.stem) and path.stem != key:
            raise BadInput(f"Expected the header of {path} to be that of its name, got {key}.")
        model = check_name(f"the model in {path}", header["model"])
        if protocol == "fedsgd":
            check_encoded(received, path)
        own = path.with_name(f"{key}-sent.safetensors")
        shared = path.with_name(f"r{round_:04d}-global.safetensors")
        sent, _ = _read(own if own.is_file() else shared, GLOBAL_FORMAT, stored)
        return cls(
            round_, client, cast(Protocol, protocol), examples, model,
            sent, CompactTensors(received) if protocol == "fedsgd" else received,
            clients, cast(Aggregation, aggregation),
        )  # fmt: skip

    def loaded(self) -> Self:
        """The same update with all tensors in memory."""
        received = self.received
        return replace(
            self,
            sent=dict(self.sent),
            received=CompactTensors(dict(received.encoded))
            if isinstance(received, CompactTensors)
            else dict(received),
        )


def _read(path: Path, expected: str, stored: bool) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    if not stored:
        return read_tensors(path, expected)
    found = StoredTensors(path, expected)
    return found, found.header


def _is_of_another(values: Any, state: Mapping[str, Any]) -> bool:
    """Whether these are tensors by names of which most are not a model's."""
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        return False
    return bool(values) and 2 * known_names(values, state) < len(values)


def _trained(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.requires_grad]


def _is_by_name(values: Any, state: Mapping[str, Any]) -> bool:
    """Whether these are tensors by names of a model's state."""
    return isinstance(values, Mapping) and all(
        name in state and isinstance(value, Tensor) for name, value in values.items()
    )
