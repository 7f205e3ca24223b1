"""A client mod for Flower that looks at what the server sends before the app trains it."""

from collections.abc import Callable
from copy import copy
from logging import WARNING
from typing import Any, Literal, Self

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.supercore import log
from torch import Tensor, nn

from fedleak.defenses.guard import Inspection, inspect_model
from fedleak.errors import BadInput, require, unknown_name
from fedleak.federation import records
from fedleak.updates.files import Tensors

RECEIVED = "fedleak-guard-received"
RETURNED = "fedleak-guard-returned"

Action = Literal["refuse", "warn"]
MakeModel = Callable[[], nn.Module]
OwnSamples = Callable[[Message, Context], Any]


class GuardMod:
    """Inspects the received model and configuration, and refuses or warns before the app trains.

    It works on messages of the type train whose arrays are the weights of the model. Of those
    without arrays, as Flower's SecAgg+ sends before and after the training, it looks at the
    configuration; other types it passes on. See :func:`fedleak.inspect_model` for what it looks at.
    The change of the model is compared with the client's own update of the round before, which it
    keeps in the context. What the update would give away though the model is not suspicious is
    written to Flower's log.

    Args:
        model: makes a model of the app, into which the received weights are loaded. If None, the
            model of a run of fedleak, whose configuration has the mod.
        samples: the client's own samples, as the argument ``batch`` of
            :func:`fedleak.inspect_model`, given the message and the context. If None, those of a
            run of fedleak.
        action: ``refuse``: the message is answered with an error that says why; ``warn``: it is
            written to Flower's log, and the app trains.
        agreed: see :func:`fedleak.inspect_model`.
        limits: see :func:`fedleak.inspect_model`.

    Raises:
        BadInput: if the action is none of the two, or only one of model and samples is given.
    """

    def __init__(
        self,
        model: MakeModel | None = None,
        samples: OwnSamples | None = None,
        *,
        action: Action = "refuse",
        agreed: dict[str, float] | None = None,
        limits: dict[str, float] | None = None,
    ) -> None:
        if action not in ("refuse", "warn"):
            raise unknown_name("action", str(action), ("refuse", "warn"))
        require(
            (model is None) == (samples is None),
            "Expected `model` and `samples` together in GuardMod, got one without the other.",
        )
        inspect_model(nn.Identity(), agreed=agreed, limits=limits)  # refuses invalid ones now
        self.model, self.samples = model, samples
        self.action, self.agreed, self.limits = action, agreed, limits

    def of_run(self, model: MakeModel, samples: OwnSamples) -> Self:
        """The same mod with the model and samples of a run, unless it has its own.

        Args:
            model: makes the run's model.
            samples: gives a client's own samples.
        """
        if self.model is not None:
            return self
        mod = copy(self)
        mod.model, mod.samples = model, samples
        return mod

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Inspect a message, then pass it on or refuse it.

        Args:
            message: what the server sent.
            context: the client's context.
            call_next: the next mod or the app.

        Returns:
            The app's reply, or an error.
        """
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        found = self.inspect(message, context)
        if found.suspicious:
            reason = "GuardMod: " + " ".join(found.reasons)
            if self.action == "refuse":
                return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)
            log(WARNING, reason)
        if found.remarks:
            log(WARNING, "GuardMod: " + " ".join(found.remarks))
        received = {name: copy(record) for name, record in message.content.array_records.items()}
        reply = call_next(message, context)
        _remember(received, reply, context)
        return reply

    def inspect(self, message: Message, context: Context) -> Inspection:
        """What the guard finds in a message.

        Args:
            message: what the server sent to train.
            context: the client's context.

        Raises:
            BadInput: if there is no model to compare with.
        """
        if self.model is None or self.samples is None:
            raise BadInput("Expected `model` and `samples` in GuardMod outside of fedleak's runs.")
        config: dict[str, Any] = {}
        for record in message.content.config_records.values():
            config |= dict(record)
        if not message.content.array_records:
            # A stage before the training, such as the setup of SecAgg+, which sends the ranges.
            return inspect_model(nn.Identity(), config=config, agreed=self.agreed)
        model = self.model()
        state = _fitting(message.content, model)
        if state is None:
            return Inspection((
                f"The server sent no arrays that are the weights of {type(model).__name__}.",
            ))  # fmt: skip
        model.load_state_dict(state)
        return inspect_model(
            model,
            _last_round(context, model),
            self.samples(message, context),
            config,
            agreed=self.agreed,
            limits=self.limits,
        )


def _fitting(content: RecordDict, model: nn.Module) -> Tensors | None:
    """The weights of a model in a message, by name or, without names, in the model's order."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for record in content.array_records.values():
        numbered = list(record) == [str(number) for number in range(len(wanted))]
        if not numbered and set(record) != set(wanted):
            continue
        # Decoded, as the older API of Flower leaves the shapes out of the record.
        found = records.to_tensors(record)
        state = dict(zip(wanted, found.values(), strict=True)) if numbered else found
        if {name: tuple(value.shape) for name, value in state.items()} == wanted:
            return state
    return None


def _last_round(
    context: Context, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """What the client received and sent back in the round before, if it took part in one."""
    kept = context.state.array_records
    if RECEIVED not in kept or RETURNED not in kept:
        return None
    received = _fitting(RecordDict({RECEIVED: kept[RECEIVED]}), model)
    returned = _fitting(RecordDict({RETURNED: kept[RETURNED]}), model)
    return None if received is None or returned is None else (received, returned)


def _remember(received: dict[str, ArrayRecord], reply: Message, context: Context) -> None:
    """Keep what was received and sent back, if these are the same arrays."""
    if reply.has_error():
        return
    for returned in reply.content.array_records.values():
        for record in received.values():
            if list(record) == list(returned):
                context.state[RECEIVED], context.state[RETURNED] = record, returned
                return
