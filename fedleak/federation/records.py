"""Conversion between tensors and Flower's records, and of gradients in replies to weights."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from fedleak.config import ROUND_ENTRY
from fedleak.federation.nodes import CLIENT as CLIENT
from fedleak.federation.nodes import METRICS as METRICS
from fedleak.updates.compression import CompactTensors, weighted_sum
from fedleak.updates.files import Tensors

ARRAYS = "arrays"
GRADIENT = "gradient"
BUFFERS = "buffers"
CONFIG = "config"
ROUND = ROUND_ENTRY
EXAMPLES = "num-examples"
DEFENSES = "defenses"


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Convert tensors by name to Flower's record, in the same order."""
    return ArrayRecord({name: value.detach().cpu() for name, value in tensors.items()})


def to_tensors(record: ArrayRecord) -> Tensors:
    """Convert Flower's record to tensors by name, in the same order."""
    return dict(record.to_torch_state_dict())


def to_compact(record: ArrayRecord) -> CompactTensors:
    """Convert Flower's record of a gradient in the format of ``updates.compression.encode``."""
    return CompactTensors(to_tensors(record))


def to_metrics(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Convert metrics to Flower's record, with the number of examples as their weight."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def is_finite(record: ArrayRecord) -> bool:
    """Whether all floating point numbers of a record are finite."""
    arrays = (value.numpy() for value in record.values())
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind == "f")


def received_arrays(
    content: RecordDict, main: Tensors | CompactTensors
) -> Tensors | CompactTensors:
    """What a reply says of the client's training: its main arrays and its buffers, if it has any.

    Args:
        content: the reply.
        main: the tensors of its main record: weights, or a gradient.
    """
    encoded = main.encoded if isinstance(main, CompactTensors) else main
    received = dict(encoded)
    if BUFFERS in content.array_records:
        received |= to_tensors(content.array_records[BUFFERS])
    return CompactTensors(received) if isinstance(main, CompactTensors) else received


def sends_gradient(content: RecordDict) -> bool:
    """Whether a client's reply follows the protocol fedsgd."""
    return GRADIENT in content.array_records


class LazySteppedWeights(Array):
    """One tensor of the weights after a gradient step, computed on each access.

    It is float64: strategies subtract the old weights again, and in float32 a small step is lost in
    rounding.

    Args:
        sent: the tensor that the server sent.
        gradient: the client's gradient.
        name: the tensor's name.
        learning_rate: learning rate of the step.
    """

    def __init__(
        self, sent: Tensor, gradient: CompactTensors, name: str, learning_rate: float
    ) -> None:
        self.dtype, self.shape, self.stype = "float64", tuple(sent.shape), "numpy.ndarray"
        self._sent, self._gradient, self._name = sent, gradient, name
        self._learning_rate = learning_rate

    def numpy(self) -> npt.NDArray[np.float64]:
        """See flwr.app.Array."""
        return sgd_step(self._sent, self._gradient[self._name], self._learning_rate)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """See flwr.app.Array."""
        return Array(self.numpy()).data


def sgd_step(sent: Tensor, gradient: Tensor, learning_rate: float) -> npt.NDArray[np.float64]:
    """``sent - learning_rate * gradient`` in float64, of the same shape."""
    result: npt.NDArray[np.float64] = (sent.double() - learning_rate * gradient.double()).numpy()
    return result


def replace_gradient_by_weights(
    reply: Message,
    gradient: CompactTensors,
    sent: Tensors,
    learning_rate: float,
    key: str = ARRAYS,
) -> None:
    """Replace the gradient in a fedsgd reply by the weights after one step with it.

    Flower's strategies then treat the reply like any other. Buffers are those of the client.

    Args:
        reply: a reply that :func:`sends_gradient`; its content is replaced.
        gradient: the gradient in it.
        sent: the weights that the server sent.
        learning_rate: learning rate of the step.
        key: the key of the record of weights.
    """
    buffers = reply.content.array_records.get(BUFFERS, ArrayRecord())
    # Added one by one, since a record made from a mapping copies the numbers.
    arrays = ArrayRecord()
    for name, value in sent.items():
        if name in buffers:
            arrays[name] = buffers[name]
        elif name in gradient:
            arrays[name] = LazySteppedWeights(value, gradient, name, learning_rate)
        else:
            arrays[name] = Array(value.numpy())
    reply.content = RecordDict({key: arrays, **reply.content.metric_records})


def can_be_merged(replies: Sequence[Message], gradients: Sequence[CompactTensors]) -> bool:
    """Whether fedsgd replies have the same names in all their records.

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
    """Merge fedsgd replies into one that has the same effect on a weighted mean.

    The mean of the clients' weights after one step equals the weights after a step with the mean
    gradient, for which no client's gradient has to be decompressed.

    Args:
        replies: replies that :func:`sends_gradient` and :func:`can_be_merged`; the content of the
            first one is replaced.
        gradients: the gradients in them.
        sent: the weights that the server sent.
        learning_rate: learning rate of the steps.

    Returns:
        The first reply, with weights and the mean of the clients' metrics.
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
        else sgd_step(value, mean[name], learning_rate)
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


def with_dtypes_of(record: ArrayRecord, sent: Tensors) -> ArrayRecord:
    """Cast a strategy's result to the dtypes of the weights that it was computed from."""
    return to_record({
        name: _cast(value, sent[name].dtype) if name in sent else value
        for name, value in to_tensors(record).items()
    })  # fmt: skip


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    # Rounded, since the floating point mean of equal counts may be slightly less.
    return value.to(dtype) if dtype.is_floating_point else value.round().to(dtype)
