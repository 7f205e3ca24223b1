"""Runs an app on Flower's Ray engine as it is, listens to its server and records its clients."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedleak.audit.app import ROUNDS_KEYS, FlowerApp
from fedleak.audit.facts import MechanismFacts, TrainingFacts
from fedleak.audit.folder import APP_FOLDERS
from fedleak.audit.folder import REPLIES as REPLIES
from fedleak.audit.listening_grid import ListeningGrid, waits_by_asking
from fedleak.audit.module_watch import watched_modules
from fedleak.audit.privacy_watch import server_mechanisms
from fedleak.audit.recorded_app import RecordedClientApp, RecordFolder
from fedleak.audit.trainings import failed_evaluations, failed_trainings, other_errors
from fedleak.audit.update_listener import UpdateListener
from fedleak.errors import BadInput, require
from fedleak.federation.engine.ray_engine import (
    FederationError,
    Resources,
    root_cause,
    run_engine,
)
from fedleak.federation.engine.server import ServerControl
from fedleak.federation.strategy import Stopped
from fedleak.runtime.quiet import flower_errors, quiet
from fedleak.updates.files import update_files
from fedleak.updates.update import InterceptedUpdate

logger = logging.getLogger(__name__)

# Seconds for a ServerApp to end after its first message was refused, and between two looks at it.
END_SECONDS, POLL_SECONDS = 5.0, 0.2


@dataclass(frozen=True)
class Observed:
    """What an app's run has left.

    Args:
        folder: ``updates/``, ``facts/``, ``truth/`` and ``replies.jsonl``; the files of the first
            three have the update's key as their name, such as ``r0001-c0003``.
        models: the modules whose weights the ServerApp was seen to take, the first of each kind.
        failures: what the clients failed of, and what went wrong in listening; the updates
            concerned are missing.
        mechanisms: Flower's strategies with central noise that the ServerApp was seen to use.
    """

    folder: Path
    models: list[nn.Module] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    mechanisms: list[MechanismFacts] = field(default_factory=list)

    @property
    def updates(self) -> list[Path]:
        """The files of the updates, in the order of rounds and clients."""
        return update_files(self.folder / "updates")

    def facts(self, key: str) -> TrainingFacts:
        """What was seen of the training behind an update.

        Args:
            key: the update's key.

        Raises:
            BadInput: if nothing was, or the file is damaged.
        """
        return TrainingFacts.load(self.folder / "facts" / f"{key}.json")

    def update(self, path: Path) -> InterceptedUpdate:
        """An update, whose tensors stay in its file until they are used.

        Where the client was seen to return a change of weights, or a gradient, it is one.

        Args:
            path: its file.

        Raises:
            BadInput: if the file is damaged.
        """
        update = InterceptedUpdate.load(path, stored=True)
        facts = self.folder / "facts" / f"{path.stem}.json"
        sends = TrainingFacts.load(facts).sends if facts.is_file() else None
        if sends == "delta":
            return replace(update, protocol="delta")
        return replace(update, protocol="fedsgd") if sends == "gradient" else update

    def truth(self, key: str) -> Path:
        """The file of the batches behind an update, for :func:`fedleak.audit.batches.load_batches`.

        Args:
            key: the update's key.
        """
        return self.folder / "truth" / f"{key}.safetensors"


def with_rounds(app: FlowerApp, rounds: int) -> FlowerApp:
    """The app with another number of rounds.

    Args:
        app: the app.
        rounds: number of rounds, at least 1.

    Raises:
        BadInput: if its run config has no key for it.
    """
    require(rounds >= 1, f"Expected at least 1 round, got {rounds}.")
    key = app.rounds_key
    if key is None:
        raise BadInput(
            f"Expected a number of rounds in the app's run config, such as `{ROUNDS_KEYS[0]}`, got "
            f"{', '.join(app.run_config) or 'an empty one'}: leave the number of rounds to the app."
        )
    return replace(app, run_config=app.run_config | {key: rounds})


def run_app(
    app: FlowerApp,
    folder: Path,
    *,
    clients: int,
    rounds: int | None = None,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    ray_address: str | None = None,
    on_update: Callable[[str], None] = lambda key: None,
    engine: Callable[[Resources, ServerApp, Any, ServerControl], None] = run_engine,
) -> Observed:
    """Run an app, keep every update, and record every client's training.

    Args:
        app: the app.
        folder: where to write; it is made if it does not exist, and must hold no run of an app.
        clients: number of simulated clients, at least 1.
        rounds: number of rounds. If None, as the app's run config says.
        cpus_per_client: CPUs that one client occupies.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster, whose workers can access the folder. If None, a
            private instance of Ray is started.
        on_update: called with the key of each update that was kept, in the server's thread.
        engine: runs ServerApp and ClientApp.

    Raises:
        BadInput: if an argument is wrong, or the resources do not suffice for one client.
        FederationError: if the app's ServerApp, or the engine, failed, or the app waits for more
            clients than there are.
        KeyboardInterrupt: if it was interrupted; what was kept so far stays.
    """
    require(clients >= 1, f"Expected at least 1 client, got {clients}.")
    app = app if rounds is None else with_rounds(app, rounds)
    resources = Resources(clients, cpus_per_client, gpus_per_client, ray_address)
    resources.check()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    require(
        not any((folder / name).exists() for name in (*APP_FOLDERS, REPLIES)),
        f"Expected a folder without an app's run at {folder}, found one: choose another one.",
    )
    observed, control = Observed(folder), ServerControl()
    records = RecordFolder(folder)

    def kept(question: Message, path: Path) -> None:
        records.rename(question.metadata.message_id, path.stem)
        on_update(path.stem)

    listener = UpdateListener(
        folder / "updates",
        folder / REPLIES,
        settings=app.settings,
        client_of=records.client_of,
        on_update=kept,
    )
    lines: list[str] = []
    server = _server_app(app, listener, control, observed, clients, lines)
    error: Exception | None = None
    try:
        engine(resources, server, RecordedClientApp(app, records), control)
    except Exception as raised:
        # A client that hangs is killed after the last round, of which the engine complains.
        error = raised
    finally:
        records.remove_unnamed()
    failed = failed_trainings(folder / REPLIES)
    failed += [
        f"{number} of the messages of round {round_} that ask for a training had no reply"
        for round_, number in listener.unanswered.items()
    ]
    failed += other_errors(lines, folder / REPLIES)
    if isinstance(control.error, FederationError):
        raise control.error
    if control.error is not None:
        before = f" Before, {failed[0].rstrip('.')}." if failed else ""
        raise FederationError(
            f"The app's ServerApp failed: {root_cause(control.error)}.{before}"
        ) from control.error
    if not control.ended.is_set():
        raise FederationError(f"The simulation failed: {root_cause(error)}.") from error
    observed.failures[:0] = failed + failed_evaluations(folder / REPLIES)
    return observed


def _server_app(
    app: FlowerApp,
    listener: UpdateListener,
    control: ServerControl,
    observed: Observed,
    clients: int,
    lines: list[str],
) -> ServerApp:
    """A ServerApp that calls the app's own, with its run config, and listens to its messages.

    What Flower logs of errors meanwhile is added to the lines.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        control.started.set()
        listening = ListeningGrid(grid, listener, stop=control.stop, clients=clients)
        try:
            present = listening.wait_for_nodes()
            if present < clients:
                observed.failures.append(
                    f"{present} of {clients} clients were connected when the app began"
                )
            context.run_config = dict(app.run_config)
            with (
                flower_errors(lines),
                waits_by_asking(listening),
                server_mechanisms(observed.mechanisms, observed.failures),
                watched_modules(once_per_kind=True) as watched,
            ):
                try:
                    app.server_app()(listening, context)
                finally:
                    observed.models.extend(watched.modules())
        except BaseException as error:
            control.error = error
            raise
        finally:
            observed.failures.extend(str(failure) for failure in listening.failures)
            control.ended.set()

    return server


class _NoGrid(Grid):
    """A Grid that ends the ServerApp when it is used, and says so."""

    def __init__(self) -> None:
        self.used = threading.Event()

    def _end(self) -> NoReturn:
        self.used.set()
        raise Stopped

    def set_run(self, run: Any) -> None:
        """See flwr.serverapp.Grid."""

    @property
    def run(self) -> Any:
        """See flwr.serverapp.Grid."""
        self._end()

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See flwr.serverapp.Grid."""
        self._end()

    def get_node_ids(self) -> Iterable[int]:
        """See flwr.serverapp.Grid."""
        self._end()

    def get_nodes(self) -> Iterable[Any]:
        """See flwr.serverapp.Grid."""
        self._end()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See flwr.serverapp.Grid."""
        self._end()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        self._end()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        self._end()


def server_models(app: FlowerApp) -> list[nn.Module]:
    """The modules whose weights the ServerApp takes before it asks a client for anything.

    The ServerApp is started with its run config, and ended at its first message. What it raises is
    of no interest here.

    Args:
        app: the app.

    Raises:
        BadInput: if its ServerApp cannot be loaded.
    """
    server, grid, found = app.server_app(), _NoGrid(), list[nn.Module]()

    def start() -> None:
        with watched_modules(once_per_kind=True) as watched:
            try:
                server(grid, Context(0, 0, {}, RecordDict(), dict(app.run_config)))
            except BaseException as error:  # of the app's own code, or the end
                logger.info("the ServerApp ended: %s", error)
            finally:
                found.extend(watched.modules())

    thread = threading.Thread(target=start, daemon=True)
    with quiet():
        thread.start()
        while thread.is_alive() and not grid.used.wait(POLL_SECONDS):
            pass
        thread.join(END_SECONDS)
    return found
