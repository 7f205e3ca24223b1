"""The ClientApp: it trains a model of fedleak on the client's samples."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedleak.federation import node_number, tell_number

app = ClientApp()


@app.query()
def number(message: Message, context: Context) -> Message:
    """Answer with the client's number.

    Args:
        message: the server's message.
        context: its ``node_config`` has the number as partition-id.
    """
    return tell_number(message, node_number(context))


@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Answer with a gradient or weights after training, or with the metrics of the model.

    Args:
        message: the server's message.
        context: run config, and the configuration of the node.
    """
    # Here, as a node starts a process for each message, and the number needs no torch.
    from fedleak.federation import client_in_app

    return client_in_app(message, context)(message, context)
