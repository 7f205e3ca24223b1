"""The app's ClientApp in a simulation, recorded in the worker that runs it."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from fedleak.audit.app import FlowerApp
from fedleak.audit.batches import save_batches
from fedleak.audit.recorder import TrainingRecorder
from fedleak.errors import BadInput, require
from fedleak.federation.records import GRADIENT
from fedleak.federation.reply_checks import decoded
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import KEY, Tensors

logger = logging.getLogger(__name__)

PARTITION = "partition-id"
MESSAGE_ID = re.compile(r"[\w-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class RecordFolder:
    """Where the workers leave what they have recorded: facts and truth in separate folders.

    A worker does not know the round, so its files have the message's id as their name at first.

    Args:
        path: an existing folder that all workers can access.
    """

    path: Path

    def __post_init__(self) -> None:
        for folder in (self.facts, self.truth, self.nodes):
            folder.mkdir(exist_ok=True)

    @property
    def facts(self) -> Path:
        """The folder of the facts."""
        return self.path / "facts"

    @property
    def truth(self) -> Path:
        """The folder of the batches, for the scorer alone."""
        return self.path / "truth"

    @property
    def nodes(self) -> Path:
        """The folder of the clients' numbers: a file for each node."""
        return self.path / "nodes"

    def write(
        self,
        message: str,
        client: int,
        recorder: TrainingRecorder,
        received: Tensors,
        sent: Tensors,
        *,
        gradient: bool = False,
    ) -> None:
        """Write what was recorded of one training.

        Args:
            message: the id of the server's message.
            client: number of the client.
            recorder: what was recorded.
            received: the arrays in the server's message.
            sent: the arrays in the client's reply.
            gradient: whether the reply says that it is a gradient.

        Raises:
            BadInput: if the id cannot be a file's name.
        """
        require(
            MESSAGE_ID.fullmatch(message) is not None,
            f"Expected a message id of letters and digits, got {message!r:.100}.",
        )
        # The facts come last: where they are, the truth is.
        save_batches(recorder.batches, self.truth / f"{message}.safetensors")
        facts = recorder.facts(client, sent, received, gradient=gradient)
        facts.save(self.facts / f"{message}.json")

    def note_client(self, node: int, client: int) -> None:
        """Note the number of the client at a node."""
        path = self.nodes / str(node)
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_text(str(client))
            part.replace(path)

    def client_of(self, node: int) -> int | None:
        """The number of the client at a node; None if no worker has noted it."""
        path = self.nodes / str(node)
        return int(path.read_text()) if path.is_file() else None

    def rename(self, message: str, key: str) -> None:
        """Give the files of a message the name of its update; where there are none, nothing."""
        for folder, suffix in ((self.facts, ".json"), (self.truth, ".safetensors")):
            path = folder / f"{message}{suffix}"
            if MESSAGE_ID.fullmatch(message) and path.is_file():
                path.replace(folder / f"{key}{suffix}")

    def remove_unnamed(self) -> None:
        """Remove the files of messages whose updates were not kept."""
        for folder in (self.facts, self.truth):
            for path in folder.iterdir():
                if KEY.fullmatch(path.stem) is None:
                    path.unlink()


class RecordedClientApp(ClientApp):
    """Calls the ClientApp of an app, with its run config, and records its trainings.

    It is loaded in the worker, from the app's folder. Messages and replies are not changed, and an
    error of the recorder is logged and goes no further. A reply that answers another message is an
    error: Flower would drop it, and the server would wait for it for ever.

    Args:
        app: the app.
        folder: where to write what was recorded.

    Raises:
        BadInput: if the app's reply is none to the server's message.
    """

    def __init__(self, app: FlowerApp, folder: RecordFolder) -> None:
        super().__init__()
        self._app = app
        self._folder = folder

    def __call__(self, message: Message, context: Context) -> Message:
        """See flwr.clientapp.ClientApp."""
        config, context.run_config = context.run_config, dict(self._app.run_config)
        try:
            return self._recorded(message, context)
        finally:
            context.run_config = config  # Flower refuses a context whose config was changed

    def _recorded(self, message: Message, context: Context) -> Message:
        number = context.node_config.get(PARTITION)
        client = number if isinstance(number, int) else None
        try:
            if client is not None:
                self._folder.note_client(message.metadata.dst_node_id, client)
        except OSError as error:
            logger.warning("the client's number is not noted: %s", error)
        client_app = self._app.client_app()
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return _checked(client_app(message, context), message)
        received = _arrays(message)
        recorder = TrainingRecorder()
        with recorder.recording():
            reply = _checked(client_app(message, context), message)
        try:
            if client is not None:
                self._folder.write(
                    message.metadata.message_id, client, recorder, received, _arrays(reply),
                    gradient=reply.has_content() and GRADIENT in reply.content.array_records,
                )  # fmt: skip
        except Exception as error:  # whatever it is, the training goes on
            logger.warning("what was recorded is lost: %s", error)
        return reply


def _checked(reply: Message, message: Message) -> Message:
    """The reply, if it is one to the message.

    Mods of Flower, such as LocalDpMod around an evaluation, reply to the app's own reply instead.

    Raises:
        BadInput: if it is not.
    """
    if reply.metadata.reply_to_message_id == message.metadata.message_id:
        return reply
    kind = message.metadata.message_type.partition(".")[0]
    said = f": {reply.error.reason}" if reply.has_error() and reply.error.reason else ""
    raise BadInput(
        f"Expected a reply to the server's {kind} message, got one to another message, which "
        "Flower drops: a mod for trainings alone belongs in `@app.train(mods=[...])`"
        f"{' '.join(said.split(chr(10))).rstrip('.')}."
    )


def _arrays(message: Message) -> Tensors:
    """The gradient in a message, or the arrays of its largest record; empty if it has none."""
    if not message.has_content():
        return {}
    gradient = message.content.array_records.get(GRADIENT)
    if gradient is not None:
        return dict(CompactTensors(decoded(gradient)[0]))
    found = max(message.content.array_records.values(), key=len, default=None)
    return {} if found is None else decoded(found)[0]
