"""What a server reads through SecAgg+ with its masks, in a real Flower simulation of ten clients.

    python experiments/active-server/secagg.py --output experiments/active-server/results

Ten clients of Flower's quickstart with 4,000 different images each, of CIFAR-10's 50,000 as JPEG,
answer through Flower's own ``secaggplus_mod``; the server runs Flower's ``SecAggPlusWorkflow``,
which hands it the sum without the masks and nothing else. It chooses the weights, and in one half
of the settings the ranges that the mod takes from its message. It appends to secagg.csv and skips
what is there. With ``--in-process`` the clients are called one after the other in this process, by
the same messages and without Ray, which takes longer to start than it waits on a busy machine.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import uuid4

# No usage statistics leave this machine.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedleak.servers.base import Crafted
from fedleak.servers.bins import Bins
from fedleak.servers.conv_network import find_network
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import COLUMNS, SHAPE, Setting, append_row, knowledge, read_rows, scored, untrained
from quickstart import IMAGES, Net, Training, train
from sums import CLIENTS, NOISY, jpeg_images

HERE = str(Path(__file__).resolve().parent)
CLIENT_RATE, SERVER_RATE = 0.1, 1e-12
STEPS = 2**24
"""Steps of the quantiser that the server sets; float32, in which a client quantises, has no
more. Flower's default is 2^22."""
MARGIN = 10.0
"""The clipping range over the largest entry in the rows of one client of public images. Of clients
whose signals add up otherwise it is larger: at a margin of 2 rows were clipped, and 12 of 39 images
were read."""
RANGES = {"ranges set": True, "default ranges": False}


class Quickstart(NumPyClient):
    """Trains the weights that come for one epoch, as the quickstart's client does."""

    def __init__(self, partition: int) -> None:
        self.partition = partition

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[Any, int, Any]:
        """Weights and number of images after an epoch at the rate of the message."""
        # A worker imports this file alone.
        sys.path.insert(0, HERE)
        from quickstart import Net, Training, train

        torch.set_num_threads(1)
        with np.load(Path(str(config["folder"])) / f"{self.partition}.npz") as own:
            images, labels = torch.from_numpy(own["images"]), torch.from_numpy(own["labels"])
        net = Net()
        values = [torch.from_numpy(value.copy()) for value in parameters]
        net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
        weights = train(
            net, images, labels, Training(float(config["lr"])),
            seed=1000 * int(config["seed"]) + 10 * self.partition + int(config["round"]),
        )  # fmt: skip
        return [value.numpy() for value in weights.values()], len(images), {}


def client_fn(context: Context) -> Client:
    """The client of a partition."""
    return Quickstart(int(context.node_config["partition-id"])).to_client()


client_app = ClientApp(client_fn, mods=[secaggplus_mod])


@dataclass
class Sums:
    """What the malicious server has sent, and the sums that came back.

    Args:
        setting: server and training.
        facts: what the server knows.
        public: public images and labels.
        seed: number of the repetition.
        folder: of the clients' images.
    """

    setting: Setting
    facts: Knowledge
    public: tuple[Tensor, Tensor]
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        self.rounds: tuple[tuple[Crafted, InterceptedUpdate], ...] = ()
        self.draw = torch.Generator().manual_seed(self.seed)
        self.sent = Crafted({})

    def craft(self) -> Crafted:
        """What is sent to all clients in the next round."""
        self.sent = self.setting.server.craft(
            self.facts, public=self.public[0], generator=self.draw, earlier=self.rounds
        )
        return self.sent

    def came(self, mean: list[np.ndarray]) -> None:
        """Take up the mean of the clients' weights."""
        came = [torch.from_numpy(value) for value in mean]
        weights = dict(zip(self.sent.weights, came, strict=True))
        update = InterceptedUpdate(
            len(self.rounds) + 1, 0, "fedavg", self.facts.num_samples, "net", self.sent.weights,
            weights, self.facts.number_of_clients, "mean",
        )  # fmt: skip
        self.rounds += ((self.sent, update),)


class Malicious(FedAvg):
    """Sends all clients what the server made, and keeps the mean that SecAgg+ gives it.

    Args:
        sums: what is sent and what comes.
        workflow: whose ranges are set before the clients are told. If None, they stay.
    """

    def __init__(self, sums: Sums, workflow: SecAggPlusWorkflow | None, **settings: Any) -> None:
        super().__init__(fraction_evaluate=0.0, min_available_clients=CLIENTS, **settings)
        self.sums, self.workflow = sums, workflow

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """Flower's instructions with the weights that were made."""
        sent = self.sums.craft()
        if self.workflow is not None:
            self.workflow.clipping_range = expected_range(self.sums)
        weights = ndarrays_to_parameters([value.numpy() for value in sent.weights.values()])
        told = {
            "lr": self.sums.setting.training.rate, "seed": self.sums.seed, "round": server_round,
            "folder": str(self.sums.folder),
        }  # fmt: skip
        asked = super().configure_fit(server_round, parameters, client_manager)
        return [
            (client, replace(told_to, parameters=weights, config=told)) for client, told_to in asked
        ]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Keep the mean, the same in all results; the global model stays."""
        if failures or len(results) != CLIENTS:
            raise RuntimeError(f"{len(results)} of {CLIENTS} clients answered: {failures}")
        self.sums.came(parameters_to_ndarrays(results[0][1].parameters))
        return None, {}


def expected_range(sums: Sums) -> float:
    """A clipping range that what a client sends fits into.

    The server trains the weights that it sends on as many public images as a client has, with
    labels of public images, and takes the largest entry of the first linear layer that is 0 in
    what it sends. All other weights are clipped; it does not need them.
    """
    net = Net()
    net.load_state_dict(sums.sent.weights)
    images, labels = (values[:IMAGES] for values in sums.public)
    trained = train(net, images, labels, sums.setting.training, seed=sums.seed)
    name = f"{find_network(sums.facts.model, SHAPE).linear[0]}.weight"
    own = sums.sent.weights[name] == 0
    return MARGIN * float(trained[name][own].abs().max())


def measure(
    federation: tuple[Grid, Context],
    ranges: str,
    rate: str,
    seed: int,
    data: tuple[Tensor, Tensor],
    public: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """One row: ten clients, two rounds.

    Args:
        federation: what Flower gives the ServerApp.
        ranges: which of ``RANGES``.
        rate: whose learning rate, ``server`` or ``client``.
        seed: number of the repetition.
        data: images and labels of all clients.
        public: public images and labels.
    """
    start = time.perf_counter()
    grid, context = federation
    setting = Setting(
        Bins(rate=rate, steps=0, tolerance=NOISY),
        training=Training(SERVER_RATE if rate == "server" else CLIENT_RATE),
    )
    facts = knowledge(untrained(seed), setting, CLIENTS * IMAGES, CLIENTS)
    first = [value.numpy() for value in facts.model.state_dict().values()]
    chosen = {"quantization_range": STEPS, "max_weight": float(IMAGES)}
    workflow = SecAggPlusWorkflow(1.0, 0.5, **(chosen if RANGES[ranges] else {}))
    with tempfile.TemporaryDirectory() as folder:
        for client in range(CLIENTS):
            own = slice(client * IMAGES, (client + 1) * IMAGES)
            np.savez(
                Path(folder) / f"{client}.npz", images=data[0][own].numpy(),
                labels=data[1][own].numpy(),
            )  # fmt: skip
        sums = Sums(setting, facts, public, seed, Path(folder))
        strategy = Malicious(
            sums, workflow if RANGES[ranges] else None,
            initial_parameters=ndarrays_to_parameters(first),
        )  # fmt: skip
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=strategy)
        DefaultWorkflow(fit_workflow=workflow)(grid, legacy)
    if len(sums.rounds) != 2:
        raise RuntimeError(f"Expected the sums of two rounds, got {len(sums.rounds)}.")
    row = scored(setting, facts, sums.rounds, data, public[0])
    told = {"clipping_range": f"{workflow.clipping_range:.1e}"}
    seconds = f"{time.perf_counter() - start:.0f}"
    return {"setting": f"{ranges}, {rate}'s rate", "client": seed} | row | told | {
        "seconds": seconds
    }  # fmt: skip


class InProcess(Grid):
    """A Grid whose nodes are in this process; each keeps its context between messages."""

    def __init__(self) -> None:
        # Flower's engine sets these in its processes; without them no message can be made.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._contexts = {
            node + 1: Context(1, node + 1, {"partition-id": node}, RecordDict(), {})
            for node in range(CLIENTS)
        }
        self._waiting: dict[str, Message] = {}

    @property
    def run(self) -> Any:
        """The run, of which Flower reads the id."""
        return SimpleNamespace(run_id=1)

    def set_run(self, run: Any) -> NoReturn:
        """Not called."""
        raise NotImplementedError

    def create_message(self, *_args: Any, **_settings: Any) -> NoReturn:
        """Not called."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """See flwr.serverapp.Grid."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See flwr.serverapp.Grid."""
        ids = []
        for message in messages:
            ids.append(str(uuid4()))
            # The workflow gives all clients the same record, and the mod takes entries out of it.
            own = Message(
                copy.deepcopy(message.content), message.metadata.dst_node_id,
                message.metadata.message_type, group_id=message.metadata.group_id,
            )  # fmt: skip
            own.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = own
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        asked = [self._waiting.pop(number) for number in message_ids]
        return [client_app(one, self._contexts[one.metadata.dst_node_id]) for one in asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See flwr.serverapp.Grid."""
        return self.pull_messages(self.push_messages(messages))


def simulate(work: Callable[[tuple[Grid, Context]], None], *, in_process: bool = False) -> None:
    """One Flower simulation, in whose ServerApp the work is done.

    Args:
        work: is given grid and context; what it raises is raised here.
        in_process: whether all clients are in this process, without Flower's engine.
    """
    if in_process:
        work((InProcess(), Context(1, 0, {}, RecordDict(), {})))
        return
    server_app, failed = ServerApp(), list[BaseException]()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(1)
        try:
            work((grid, context))
        except BaseException as error:
            failed.append(error)
            raise

    try:
        run_simulation(
            server_app, client_app, CLIENTS,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )  # fmt: skip
    finally:
        if failed:
            raise failed[0]


def main(arguments: list[str] | None = None) -> None:
    """Measure what secagg.csv does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--seeds", type=int, default=2, help="number of repetitions")
    parser.add_argument("--in-process", action="store_true", help="without Ray")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with the data as --data or in FEDLEAK_DATA, got none.")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "secagg.csv"
    done = {(row["setting"], int(row["client"])) for row in read_rows(path)}
    images, labels = jpeg_images(Path(given.data), "train")
    public = jpeg_images(Path(given.data), "test")
    left = [
        (seed, ranges, rate)
        for ranges in RANGES
        for seed in range(given.seeds)
        for rate in ("server", "client")
        if (f"{ranges}, {rate}'s rate", seed) not in done
    ]

    def work(federation: tuple[Grid, Context]) -> None:
        for seed, ranges, rate in left:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            own = order[: CLIENTS * IMAGES]
            row = measure(federation, ranges, rate, seed, (images[own], labels[own]), public)
            row["engine"] = "one process" if given.in_process else "simulation"
            append_row(path, (*COLUMNS[:-1], "clipping_range", "engine", "seconds"), row)

    if left:
        simulate(work, in_process=given.in_process)


if __name__ == "__main__":
    main()
