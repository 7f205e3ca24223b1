"""The client: it trains the weights that came, and returns them."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bench_quickstart.task import Net, train

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train one epoch."""
    torch.set_num_threads(1)
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    number = train(model, client, int(message.content["config"]["images"]))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": number}),
        }
    )
    return Message(content, reply_to=message)
