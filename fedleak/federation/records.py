"""Tensors in Flower's messages, and Flower's messages as updates."""

from collections.abc import Mapping

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedleak.updates import Tensors, gradient_to_weights

ARRAYS = "arrays"
GRADIENT = "gradient"
BUFFERS = "buffers"
METRICS = "metrics"
CONFIG = "config"
ROUND = "server-round"
EXAMPLES = "num-examples"
CLIENT = "client"
DEFENSES = "defenses"


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors by name as Flower's record, in the same order."""
    return ArrayRecord({name: value.detach().cpu() for name, value in tensors.items()})


def to_tensors(record: ArrayRecord) -> Tensors:
    """Flower's record as tensors by name, in the same order."""
    return dict(record.to_torch_state_dict())


def to_metrics(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Metrics as Flower's record, with the number of examples that they are weighted by."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def sends_gradient(content: RecordDict) -> bool:
    """Whether a client's reply follows the protocol fedsgd."""
    return GRADIENT in content.array_records


def as_weights(reply: Message, sent: Tensors, learning_rate: float) -> None:
    """Replace the gradient in a fedsgd reply by the weights after one step with it.

    A strategy of Flower's then treats the reply like any other. Buffers are those of the client.

    Args:
        reply: a reply that :func:`sends_gradient`; its content is replaced.
        sent: what the server had sent.
        learning_rate: of the step.
    """
    gradient = to_tensors(reply.content.array_records[GRADIENT])
    weights = gradient_to_weights(sent, gradient, learning_rate=learning_rate)
    if BUFFERS in reply.content.array_records:
        weights |= to_tensors(reply.content.array_records[BUFFERS])
    metrics = reply.content.metric_records[METRICS]
    reply.content = RecordDict({ARRAYS: to_record(weights), METRICS: metrics})
