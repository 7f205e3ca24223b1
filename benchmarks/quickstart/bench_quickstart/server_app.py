"""The server: FedAvg, whose rounds are timed; wrapped by fedleak's strategy if it is to listen."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from bench_quickstart.task import Net
from fedleak.federation import MaliciousStrategy

app = ServerApp()
ends: list[float] = []
"""When the rounds of the last run ended."""


class Timed(FedAvg):
    """FedAvg that notes when a round ends."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """See Strategy."""
        found = super().aggregate_train(server_round, replies)
        ends.append(time.perf_counter())
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the run config."""
    ends.clear()
    torch.manual_seed(0)
    strategy: Strategy = Timed(fraction_evaluate=0.0)
    if folder := str(context.run_config["malicious"]):
        strategy = MaliciousStrategy(strategy, folder=Path(folder))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"images": int(context.run_config["images"])}),
    )
