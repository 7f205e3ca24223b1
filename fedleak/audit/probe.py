"""A second, short run of an app in which a malicious server answers in place of the app's own.

The app's ServerApp is started anew, until it asks a client to train. That one message is changed by
the malicious server and sent to that one client, as often as the server needs it, and the run ends.
The app's own run is not touched by it.
"""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import RunNotRunningException
from torch import Tensor

from fedleak.audit.app import FlowerApp
from fedleak.audit.folder import REPLIES
from fedleak.audit.recorded_app import RecordedClientApp, RecordFolder
from fedleak.audit.simulation import Observed
from fedleak.audit.update_listener import UpdateListener
from fedleak.errors import BadInput, first_line, require
from fedleak.federation import records
from fedleak.federation.engine.forwarding_grid import ForwardingGrid
from fedleak.federation.engine.ray_engine import Resources, run_engine
from fedleak.federation.engine.server import ServerControl
from fedleak.federation.reply_checks import decoded
from fedleak.federation.strategy import Stopped
from fedleak.runtime.seeds import derive_seed
from fedleak.servers.base import Crafted, MaliciousServer
from fedleak.servers.exchanges import SALT, craft
from fedleak.servers.files import load_crafted, save_crafted
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.naming import is_listed
from fedleak.updates.update import InterceptedUpdate

FOLDER = "active"
"""The folder of the second runs in an audit's."""
DONE = "done.json"
Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """What a client was sent by a malicious server, and what it answered.

    Args:
        server: the malicious server.
        folder: the files, as those of an app's run, with ``sent/`` besides.
        entries: the training configuration of the app's own server.
        reason: why there is nothing to be read; empty if there is.
        refused: whether that is because a mod of the client, such as GuardMod, refused the message.
    """

    server: MaliciousServer
    folder: Path
    entries: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    refused: bool = False

    @property
    def observed(self) -> Observed:
        """Its files as those of an app's run."""
        return Observed(self.folder)

    def rounds(self) -> list[tuple[str, Crafted]]:
        """The key of each update, and what was sent before it, in order."""
        files = update_files(self.folder / "updates")
        return [(path.stem, load_crafted(self.folder / "sent" / path.name)) for path in files]


Make = Callable[[Entries], MaliciousServer]


def run_probe(
    app: FlowerApp,
    folder: Path,
    make: Make,
    knowledge: Knowledge,
    *,
    clients: int,
    public: Tensor | None = None,
    seed: int = 0,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    ray_address: str | None = None,
    engine: Callable[[Resources, ServerApp, Any, ServerControl], None] = run_engine,
) -> Probe:
    """Have a malicious server ask one client of an app to train.

    Args:
        app: the app.
        folder: where to write. What an interrupted probe has left is removed; a complete one is
            taken as it is.
        make: makes the malicious server from the training configuration in the app's message.
        knowledge: what the server knows of the clients, as seen in the app's own run.
        clients: number of simulated clients, as in the app's own run.
        public: public inputs as the clients' models take them. If None, there are none.
        seed: seed of the malicious server.
        cpus_per_client: CPUs that one client occupies.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster. If None, a private instance of Ray is started.
        engine: runs ServerApp and ClientApp.

    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    folder = folder.resolve()
    if (folder / DONE).is_file():
        told = json.loads((folder / DONE).read_text(encoding="utf-8"))
        try:
            server, refused = make(told["entries"]), told.get("refused", False)
            return Probe(server, folder, told["entries"], told["reason"], refused)
        except BadInput as error:
            return Probe(_NoServer(), folder, told["entries"], str(error).rstrip("."))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sent").mkdir(parents=True)
    kept = RecordFolder(folder)
    control = ServerControl()
    run = _Run(app, folder, kept, make, knowledge, public, seed, control)
    try:
        engine(
            Resources(clients, cpus_per_client, gpus_per_client, ray_address),
            run.server_app(),
            RecordedClientApp(app, kept),
            control,
        )
    except Exception as error:  # of the app's own code, or the end of the run
        if not run.ended:
            run.reason = run.reason or f"the app's second run failed: {first_line(error)}"
    finally:
        kept.remove_unnamed()
    if isinstance(control.error, KeyboardInterrupt | SystemExit):
        raise control.error
    if not run.ended and not run.reason:
        run.reason = "the app asked no client to train in its second run"
    entries = {n: v for n, v in run.entries.items() if isinstance(v, bool | int | float | str)}
    reason = run.reason.rstrip(".")
    part = folder / f"{DONE}.part"
    told = {"entries": entries, "reason": reason, "refused": run.refused}
    part.write_text(json.dumps(told), encoding="utf-8")
    part.replace(folder / DONE)
    return Probe(run.server or _NoServer(), folder, entries, reason, run.refused)


class _NoServer(MaliciousServer):
    """Stands for a server that could not be made."""

    name = "none"
    paper = needs = "none"
    threat_model = "malicious server that could not be made"
    changes = frozenset()

    def craft(self, knowledge: Knowledge, **_given: Any) -> Crafted:
        raise BadInput("Expected a malicious server, got none.")

    def read(self, knowledge: Knowledge, *_rounds: Any, **_given: Any) -> NoReturn:
        raise BadInput("Expected a malicious server, got none.")


class _Run:
    """The state of one probe, in the thread of its ServerApp."""

    def __init__(
        self,
        app: FlowerApp,
        folder: Path,
        kept: RecordFolder,
        make: Make,
        knowledge: Knowledge,
        public: Tensor | None,
        seed: int,
        control: ServerControl,
    ) -> None:
        self._app, self._folder, self._kept = app, folder, kept
        self._make, self._knowledge = make, knowledge
        self._public, self._seed, self._control = public, seed, control
        self._lock = threading.Lock()
        self._paths: list[Path] = []
        self.server: MaliciousServer | None = None
        self.entries: dict[str, Any] = {}
        self.reason = ""
        self.refused = False
        self.ended = False
        self.listener = UpdateListener(
            folder / "updates", folder / REPLIES, client_of=kept.client_of, on_update=self._keep
        )

    def server_app(self) -> ServerApp:
        """A ServerApp that calls the app's own until it asks a client to train."""
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            self._control.started.set()
            probing = ProbeGrid(grid, self, stop=self._control.stop)
            context.run_config = dict(self._app.run_config)
            try:
                self._app.server_app()(probing, context)
            except Stopped:
                pass
            except Exception as error:  # of the app's own code
                # What the app makes of the end of the run is of no interest.
                if not self.ended:
                    self.reason = f"the app's ServerApp failed: {first_line(error)}"
            except BaseException as error:
                self._control.error = error
            finally:
                self._control.ended.set()

        return server

    def ask(self, grid: Grid, question: Message) -> None:
        """Ask the client of a message as the malicious server does; nothing is raised."""
        with self._lock:
            if self.ended:
                return
            try:
                self._ask(grid, question)
            except BadInput as error:
                self.reason = str(error)
            except Exception as error:  # a faulty plugin, or the app's own code
                self.reason = f"{type(error).__name__}: {first_line(error)}"
            finally:
                self.ended = True

    def _ask(self, grid: Grid, question: Message) -> None:
        content = question.content
        key = next((name for name, record in content.array_records.items() if len(record)), "")
        require(bool(key), "Expected arrays in the server's message, got none.")
        sent, fault = decoded(content.array_records[key])
        require(fault is None, f"Expected the weights that the server sends, but {fault}.")
        for record in content.config_records.values():
            self.entries |= dict(record)
        self.server = server = self._make(self.entries)
        reason = server.refuses_model(self._knowledge.model)
        require(reason is None, f"Expected a model that {server.name} can attack, but {reason}.")
        names = _names(sent, self._knowledge)
        earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = ()
        for number in range(1, server.rounds + 1):
            draws = torch.Generator().manual_seed(derive_seed(self._seed, number, SALT))
            crafted = craft(
                server, self._knowledge, {names[n]: v for n, v in sent.items()},
                public=self._public, generator=draws, earlier=earlier,
            )  # fmt: skip
            update = self._exchange(grid, question, key, names, crafted)
            earlier = (*earlier, (crafted, update.for_model(self._knowledge.model)))

    def _exchange(
        self, grid: Grid, question: Message, key: str, names: dict[str, str], crafted: Crafted
    ) -> InterceptedUpdate:
        """Send something to the client of a message; its update."""
        assert self.server is not None
        content = RecordDict(dict(question.content))
        content[key] = records.to_record({own: crafted.weights[n] for own, n in names.items()})
        for entry, value in crafted.config.items():
            holders = [n for n, r in question.content.config_records.items() if entry in r]
            require(
                bool(holders),
                f"Expected `{entry}` in the training configuration of the app's server, which "
                f"{self.server.name} sets, found none.",
            )
            own = dict(content.config_records[holders[0]])
            content[holders[0]] = ConfigRecord({**own, entry: value})
        metadata = question.metadata
        message = Message(
            content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id
        )
        before = len(self._paths)
        self.listener.asked(message)
        replies = list(grid.send_and_receive([message]))
        require(bool(replies), "Expected the client to answer, but it did not.")
        self.listener.replied(message, replies[0])
        if replies[0].has_error() and replies[0].error.code == ErrorCode.MOD_FAILED_PRECONDITION:
            self.refused = True
            raise BadInput(replies[0].error.reason or "it gave no reason")
        if len(self._paths) == before:
            line = (self._folder / REPLIES).read_text(encoding="utf-8").splitlines()[-1]
            raise BadInput(f"Expected the client's update, got: {json.loads(line)['reason']}")
        path = self._paths[-1]
        save_crafted(crafted, self._folder / "sent" / path.name, self.server.name)
        return Observed(self._folder).update(path)

    def _keep(self, question: Message, path: Path) -> None:
        self._kept.rename(question.metadata.message_id, path.stem)
        self._paths.append(path)


def _names(sent: Tensors, knowledge: Knowledge) -> dict[str, str]:
    """Name of an array in the app's messages -> its name in the model's state.

    Raises:
        BadInput: if the arrays are not those of the model's state or of its parameters.
    """
    state = list(knowledge.model.state_dict())
    parameters = [name for name, _ in knowledge.model.named_parameters()]
    if not is_listed(sent) and set(sent) <= set(state):
        return {name: name for name in sent}
    for order in (state, parameters):
        if is_listed(sent) and len(sent) == len(order):
            return dict(zip(sent, order, strict=True))
    raise BadInput("Expected the server to send the model's weights by its own names or in order.")


class ProbeGrid(ForwardingGrid):
    """A Grid that hands the first message which asks for a training to a probe, and ends there.

    Other messages, such as questions for evaluations, are passed on.

    Args:
        grid: Flower's own grid.
        run: the probe.
        stop: set from outside to end the run.
    """

    def __init__(self, grid: Grid, run: _Run, *, stop: threading.Event) -> None:
        super().__init__(grid)
        self._run, self._stop = run, stop
        self._thread = threading.get_ident()  # that of the ServerApp

    def get_node_ids(self) -> Iterable[int]:
        """See flwr.serverapp.Grid."""
        own = threading.get_ident() == self._thread
        if not own and (self._run.ended or self._stop.is_set()):
            raise RunNotRunningException  # ends the thread of Flower's older API without a trace
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See flwr.serverapp.Grid."""
        return self._grid.push_messages(self._without_trainings(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        return self._grid.send_and_receive(self._without_trainings(messages), timeout=timeout)

    def _check(self) -> None:
        if self._run.ended or self._stop.is_set():
            raise Stopped

    def _without_trainings(self, messages: Iterable[Message]) -> list[Message]:
        """The messages, if none of them asks for a training.

        Raises:
            Stopped: if one did: the probe has taken its place.
        """
        self._check()
        drawn = list(messages)
        for message in drawn:
            if re.match(rf"{MessageType.TRAIN}(\.|$)", message.metadata.message_type):
                self._run.ask(self._grid, message)
                raise Stopped
        return drawn
