"""The same reading in a real Flower simulation: ten clients train, four of them are attacked.

    python experiments/active-server/simulation.py --output experiments/active-server/results

The client app is the quickstart's: it trains the weights that come at the rate in the message. The
server sends the honest model to six clients and what it made to four, in two rounds, and reads. It
writes simulation.csv.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# No usage statistics leave this machine.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedleak.servers.bins import Bins
from fedleak.updates.update import InterceptedUpdate

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import COLUMNS, Setting, append_row, knowledge, scored, untrained
from quickstart import IMAGES, Training, client_images, public_images

HERE = str(Path(__file__).resolve().parent)
CLIENTS = 10
ATTACKED = {0: "client", 1: "client", 2: "server", 3: "server"}
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Train one epoch at the rate of the message."""
    # A worker imports this file alone.
    sys.path.insert(0, HERE)
    from quickstart import Net, Training, client_images, train

    torch.set_num_threads(1)
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    config = message.content["config"]
    partition = int(context.node_config["partition-id"])
    images, labels = client_images(Path(str(config["folder"])), partition)
    seed = 100 * partition + int(config["round"])
    weights = train(net, images, labels, Training(float(config["lr"])), seed=seed)
    content = {
        "arrays": ArrayRecord(weights),
        "metrics": MetricRecord({"num-examples": len(images), "partition": partition}),
    }
    return Message(RecordDict(content), reply_to=message)


def ask(
    grid: Grid, round_: int, models: dict[int, Any], rates: dict[int, float], folder: Path
) -> dict[int, tuple[int, dict[str, torch.Tensor]]]:
    """Send a model to each node; the partition and the weights that come back."""
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(models[node]),
                    "config": ConfigRecord(
                        {"lr": rates[node], "round": round_, "folder": str(folder)}
                    ),
                }
            ),
            dst_node_id=node, message_type="train",
        )
        for node in models
    ]  # fmt: skip
    return {
        reply.metadata.src_node_id: (
            int(reply.content["metrics"]["partition"]),
            reply.content["arrays"].to_torch_state_dict(),
        )
        for reply in grid.send_and_receive(messages)
    }


def attack(grid: Grid, folder: Path, output: Path) -> None:
    """Two rounds, of which some clients get what the server made, and the readings."""
    torch.set_num_threads(1)
    while len(nodes := sorted(grid.get_node_ids())) < CLIENTS:
        time.sleep(0.2)
    public, honest = public_images(folder), untrained(0)
    model = {name: value.clone() for name, value in honest.state_dict().items()}
    servers = {
        node: Setting(
            Bins(rate=rate, steps=0), training=Training(0.1 if rate == "client" else 1e-12)
        )
        for node, rate in zip(nodes, ATTACKED.values(), strict=False)
    }
    facts = {node: knowledge(honest, setting, IMAGES) for node, setting in servers.items()}
    rounds: dict[int, Any] = dict.fromkeys(servers, ())
    draws = {node: torch.Generator().manual_seed(at) for at, node in enumerate(servers)}
    for number in (1, 2):
        sent = {
            node: setting.server.craft(
                facts[node], public=public, generator=draws[node], earlier=rounds[node]
            )
            for node, setting in servers.items()
        }
        models = {node: sent[node].weights if node in sent else model for node in nodes}
        rates = {
            node: float(sent[node].config.get("lr", 0.1)) if node in sent else 0.1 for node in nodes
        }
        came = ask(grid, number, models, rates, folder)
        for at, node in enumerate(servers):
            update = InterceptedUpdate(
                number, at, "fedavg", IMAGES, "net", sent[node].weights, came[node][1]
            )
            rounds[node] += ((sent[node], update),)
        # The honest federation goes on with the clients that are not attacked.
        others = [came[node][1] for node in nodes if node not in servers]
        model = {name: sum(one[name] for one in others) / len(others) for name in model}
    for node, setting in servers.items():
        # What the client told for the scores alone: nodes have random numbers.
        partition = came[node][0]
        row = scored(setting, facts[node], rounds[node], client_images(folder, partition), public)
        named = {"setting": f"{setting.server.rate}'s rate", "client": partition}
        append_row(output / "simulation.csv", COLUMNS, named | row | {"seconds": ""})


def main(arguments: list[str] | None = None) -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with cifar10.npz as --data or in FEDLEAK_DATA, got none.")
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "simulation.csv").unlink(missing_ok=True)
    server_app.main()(
        lambda grid, context: attack(grid, Path(given.data).resolve(), given.output.resolve())
    )
    run_simulation(
        server_app, client_app, CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
