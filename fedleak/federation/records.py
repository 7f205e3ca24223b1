"""Tensors in Flower's messages, and Flower's messages as updates."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from fedleak.updates.compression import CompactTensors, weighted_sum
from fedleak.updates.files import Tensors

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


def to_compact(record: ArrayRecord) -> CompactTensors:
    """Flower's record of a gradient as :func:`fedleak.updates.compression.encode` has made it."""
    return CompactTensors(to_tensors(record))


def to_metrics(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Metrics as Flower's record, with the number of examples that they are weighted by."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def sends_gradient(content: RecordDict) -> bool:
    """Whether a client's reply follows the protocol fedsgd."""
    return GRADIENT in content.array_records


class SteppedWeights(Array):
    """One tensor of the weights after a step with a gradient, computed whenever it is asked for.

    In float64: in float32, a small step is lost in the rounding of the weights, which strategies
    subtract again.

    Args:
        sent: what the server had sent.
        gradient: the client's gradient.
        name: of the tensor.
        learning_rate: of the step.
    """

    def __init__(
        self, sent: Tensor, gradient: CompactTensors, name: str, learning_rate: float
    ) -> None:
        self.dtype, self.shape, self.stype = "float64", tuple(sent.shape), "numpy.ndarray"
        self._sent, self._gradient, self._name = sent, gradient, name
        self._learning_rate = learning_rate

    def numpy(self) -> npt.NDArray[np.float64]:
        """See flwr.app.Array."""
        return stepped(self._sent, self._gradient[self._name], self._learning_rate)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """See flwr.app.Array."""
        return Array(self.numpy()).data


def stepped(sent: Tensor, gradient: Tensor, learning_rate: float) -> npt.NDArray[np.float64]:
    """A tensor of the weights after one step with a gradient, in float64."""
    result: npt.NDArray[np.float64] = (sent.double() - learning_rate * gradient.double()).numpy()
    return result


def as_weights(
    reply: Message, gradient: CompactTensors, sent: Tensors, learning_rate: float
) -> None:
    """Replace the gradient in a fedsgd reply by the weights after one step with it.

    A strategy of Flower's then treats the reply like any other. Buffers are those of the client.

    Args:
        reply: a reply that :func:`sends_gradient`; its content is replaced.
        gradient: the gradient in it.
        sent: what the server had sent.
        learning_rate: of the step.
    """
    buffers = reply.content.array_records.get(BUFFERS, ArrayRecord())
    # Put in one by one: a record that is made of a whole mapping copies the numbers.
    arrays = ArrayRecord()
    for name, value in sent.items():
        if name in buffers:
            arrays[name] = buffers[name]
        elif name in gradient:
            arrays[name] = SteppedWeights(value, gradient, name, learning_rate)
        else:
            arrays[name] = Array(value.numpy())
    metrics = reply.content.metric_records[METRICS]
    reply.content = RecordDict({ARRAYS: arrays, METRICS: metrics})


def are_alike(replies: Sequence[Message], gradients: Sequence[CompactTensors]) -> bool:
    """Whether fedsgd replies have the same names in all their records, and so can be merged.

    Args:
        replies: replies that :func:`sends_gradient`.
        gradients: the gradients in them.
    """
    names = set()
    for reply, gradient in zip(replies, gradients, strict=True):
        arrays, metrics = reply.content.array_records, reply.content.metric_records
        buffers = arrays.get(BUFFERS, ArrayRecord())
        known = frozenset(metrics[METRICS]) if METRICS in metrics else frozenset[str]()
        names.add((frozenset(gradient), frozenset(buffers), known))
    return len(names) == 1 and EXAMPLES in next(iter(names))[2]


def merge(
    replies: Sequence[Message],
    gradients: Sequence[CompactTensors],
    sent: Tensors,
    learning_rate: float,
) -> Message:
    """The one reply that counts for a weighted mean as much as several fedsgd replies do.

    The mean of the weights after one step is the weights after a step with the mean gradient, which
    needs none of the clients' gradients in full.

    Args:
        replies: replies that :func:`sends_gradient` and :func:`are_alike`; the first one's content
            is replaced.
        gradients: the gradients in them.
        sent: what the server had sent.
        learning_rate: of the steps.

    Returns:
        A reply with weights, and with the mean of the clients' metrics.
    """
    contents = [reply.content for reply in replies]
    examples = [float(cast(float, c.metric_records[METRICS][EXAMPLES])) for c in contents]
    total = sum(examples)
    shares = [count / total for count in examples]
    mean = weighted_sum(gradients, shares)
    buffers: dict[str, npt.NDArray[np.float64]] = {}
    for content, share in zip(contents, shares, strict=True):
        for name, value in content.array_records.get(BUFFERS, ArrayRecord()).items():
            buffers[name] = buffers.get(name, 0.0) + share * value.numpy().astype(np.float64)
    arrays = {
        name: buffers[name]
        if name in buffers
        else stepped(value, mean[name], learning_rate)
        if name in mean
        else value.numpy()
        for name, value in sent.items()
    }
    metrics = aggregate_metricrecords(contents, EXAMPLES)
    reply = replies[0]
    reply.content = RecordDict({
        ARRAYS: ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()}),
        METRICS: MetricRecord({**metrics, EXAMPLES: total}),
    })  # fmt: skip
    return reply


def as_sent(record: ArrayRecord, sent: Tensors) -> ArrayRecord:
    """A strategy's result in the types of the weights that it was computed from."""
    return to_record({
        name: _as(value, sent[name].dtype) if name in sent else value
        for name, value in to_tensors(record).items()
    })  # fmt: skip


def _as(value: Tensor, kind: torch.dtype) -> Tensor:
    # The mean of equal counts may be a little less.
    return value.to(kind) if kind.is_floating_point else value.round().to(kind)
