"""Which replies of clients can be aggregated: others would end the round or spoil the model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Strategy

from fedleak.errors import BadInput
from fedleak.federation import records
from fedleak.updates.compression import (
    COLUMNS,
    INDICES,
    ROWS,
    SHAPE,
    CompactTensors,
    check_encoded,
)
from fedleak.updates.files import Tensors, short
from fedleak.updates.naming import is_listed

MOST_EXAMPLES = 10**9 - 1
"""Largest number of examples that a client can report."""
# The array that Flower sends in place of an empty list of arrays from before the Message API.
EMPTY = "_empty"
# A reply may be this many times as large as what was sent, beside a few large records.
SEVERAL = 16
FREE_BYTES = 2**26
# Nearly the largest number of float32.
LARGEST_NUMBER = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class Keys:
    """The names that a strategy gives to the parts of a reply.

    Args:
        examples: key of the number of examples in the metrics.
        arrays: key of the record of weights.
        alike: whether the strategy sends to all clients or aggregates as Flower does, so that all
            replies consist of the same parts.
    """

    examples: str = records.EXAMPLES
    arrays: str = records.ARRAYS
    alike: bool = False

    @classmethod
    def of(cls, strategy: Strategy) -> "Keys":
        """The keys of a strategy, or of the one that it wraps."""
        wrapped = vars(strategy).get("strategy")
        if not hasattr(strategy, "weighted_by_key") and isinstance(wrapped, Strategy):
            return cls.of(wrapped)
        return cls(
            str(getattr(strategy, "weighted_by_key", records.EXAMPLES)),
            str(getattr(strategy, "arrayrecord_key", records.ARRAYS)),
            any(
                getattr(type(strategy), name).__module__.startswith("flwr.")
                for name in ("configure_train", "aggregate_train")
            ),
        )


def main_record(content: RecordDict, keys: Keys) -> ArrayRecord | None:
    """The record of a reply with its gradient or weights; None if there is none.

    Of several records, such as weights and control variates, it is the one with the strategy's own
    key.
    """
    arrays = content.array_records
    for name in (records.GRADIENT, keys.arrays):
        if name in arrays:
            return arrays[name]
    return next(iter(arrays.values())) if len(arrays) == 1 else None


def examples_of(content: RecordDict, keys: Keys) -> Any:
    """The number of examples that a client reports; None if it reports none."""
    for metrics in content.metric_records.values():
        if keys.examples in metrics:
            return metrics[keys.examples]
    return None


def named_as_sent(tensors: Tensors, sent: Mapping[str, Any]) -> Tensors:
    """Tensors under the names that were sent, if they came as a list of as many arrays."""
    fits = is_listed(tensors) and len(tensors) == len(sent)
    return dict(zip(sent, tensors.values(), strict=True)) if fits else tensors


def trains_trees(strategy: Strategy) -> bool:
    """Whether a strategy trains decision trees, whose arrays grow in each round."""
    return isinstance(strategy, FedXgbBagging | FedXgbCyclic)


def check_metrics(content: RecordDict, keys: Keys, most: int) -> str | None:
    """What makes a reply's metrics useless; None if nothing does.

    Args:
        content: the reply.
        keys: the strategy's keys.
        most: largest number of examples.
    """
    if not content.metric_records:
        return "it has no metrics"
    number = examples_of(content, keys)
    if number is None:
        return f"its metrics lack the number of examples, {short(keys.examples)}"
    if isinstance(number, list) or not isfinite(number) or not 0 < number <= most:
        return f"it reports {short(number)} examples where 1 to {most:,} are possible"
    return None


def check_arrays(
    content: RecordDict, keys: Keys, sent: Tensors
) -> tuple[str | None, Tensors | CompactTensors]:
    """What makes a reply's arrays useless, or None, and the arrays of its main record.

    Args:
        content: the reply.
        keys: the strategy's keys.
        sent: what the client was sent.
    """
    main = main_record(content, keys)
    if main is None or not main:
        return "it has no arrays", {}
    size = sum(record.count_bytes() for record in content.values())
    limit = FREE_BYTES + SEVERAL * sum(value.nbytes for value in sent.values())
    if sent and size > limit:
        return f"it is of {size:,} bytes where at most {limit:,} make sense", {}
    found: Tensors | CompactTensors = {}
    for key, record in content.array_records.items():
        tensors, fault = decoded(record)
        if fault is not None:
            return fault, {}
        if key == records.GRADIENT:
            found = CompactTensors(tensors)
            fault = _check_gradient(found, sent)
        else:
            # Of other records, such as control variates, the shapes are the strategy's affair.
            known = sent if record is main or key == records.BUFFERS else {}
            tensors = named_as_sent(tensors, known) if known else tensors
            fault = _check_tensors(tensors, known)
            if record is main:
                found = tensors
        if fault is not None:
            return fault, {}
    return None, found


def odd_ones(
    contents: Sequence[RecordDict], agreed: frozenset[str], sent: Tensors
) -> tuple[dict[int, str], frozenset[str]]:
    """Which replies have other records, arrays or metrics than most, and what most have.

    Args:
        contents: the replies.
        agreed: what most had in an earlier round, which decides a tie; empty if not known.
        sent: the arrays that were sent, which decide if it does not.

    Returns:
        Position of a reply -> what is odd about it, and the layout that most have.
    """
    layouts = [_layout(content) for content in contents]
    if not layouts:
        return {}, agreed
    counts = Counter(layouts)
    expected = frozenset(
        _array(name, not value.is_floating_point()) for name, value in sent.items()
    )

    def rank(layout: frozenset[str]) -> tuple[int, bool, int]:
        strange = {name.partition(" in ")[0] for name in layout if name.startswith("array ")}
        return counts[layout], layout == agreed, -len(strange - expected)

    usual = max(counts, key=rank)
    odd: dict[int, str] = {}
    for position, layout in enumerate(layouts):
        if layout != usual:
            parts = [
                f"{verb} {', '.join(short(name) for name in sorted(names)[:3])}"
                for verb, names in (("has", layout - usual), ("lacks", usual - layout))
                if names
            ]
            odd[position] = f"it differs from the other replies: it {' and '.join(parts)}"
    return odd, usual


def _layout(content: RecordDict) -> frozenset[str]:
    """What a reply consists of."""
    names = {f"record {name}" for name in content}
    for key, record in content.array_records.items():
        if key == records.GRADIENT:  # which may be encoded in one form or another
            present = CompactTensors(dict.fromkeys(record, torch.empty(0)))
            names |= {f"{_array(name, False)} in {key}" for name in present}
        else:
            whole = {name: not array.dtype.startswith("float") for name, array in record.items()}
            names |= {f"{_array(name, whole[name])} in {key}" for name in record}
    for key, metrics in content.metric_records.items():
        names |= {
            f"metric {name} in {key}"
            + (f", {len(value)} numbers" if isinstance(value, list) else "")
            for name, value in metrics.items()
        }
    return frozenset(names)


def _array(name: str, whole: bool) -> str:
    return f"array {name}{' of whole numbers' if whole else ''}"


def decoded(record: ArrayRecord) -> tuple[Tensors, str | None]:
    """The tensors of a record, or what is wrong with the bytes of one.

    Args:
        record: the record. Arrays from before Flower's Message API say neither type nor shape.
    """
    tensors: Tensors = {}
    for name, array in record.items():
        if name == EMPTY:
            continue
        try:
            value = array.numpy()
            legacy = not array.dtype and not array.shape
            if not legacy and (str(value.dtype), value.shape) != (array.dtype, tuple(array.shape)):
                return {}, (
                    f"its array {short(name)} is of type {value.dtype} and shape {value.shape}, "
                    f"not {short(array.dtype)} and {short(tuple(array.shape))} as it says"
                )
            tensors[name] = torch.from_numpy(value)
        except Exception as error:  # rubbish makes numpy and torch raise all kinds
            text = " ".join(str(error).split())
            return {}, f"its array {short(name)} cannot be read: {text:.100}"
    return tensors, None


def _check_gradient(gradient: CompactTensors, sent: Tensors) -> str | None:
    try:
        check_encoded(gradient.encoded, Path("the gradient"))
    except BadInput as error:
        return f"its gradient cannot be decoded: {error}".removesuffix(".")
    for name in gradient:
        if name not in sent:
            return f"its gradient is of {short(name)}, which was not sent"
        if gradient.shape(name) != tuple(sent[name].shape):
            return _of_shape(name, gradient.shape(name), sent)
    floats = {n: v for n, v in gradient.encoded.items() if not n.endswith((INDICES, SHAPE))}
    for name, value in floats.items():
        if not value.is_floating_point():
            return f"its array {short(name)} is of type {value.dtype} instead of floating point"
        if not bool(value.isfinite().all()):
            return f"its array {short(name)} holds NaN or infinity"
        if name.endswith(ROWS) and value.numel():
            other = floats[name.removesuffix(ROWS) + COLUMNS]
            largest = float(value.abs().max()) * float(other.abs().max()) if other.numel() else 0
            if largest > LARGEST_NUMBER:
                return f"its array {short(name.removesuffix(ROWS))} holds infinity"
    return None


def _check_tensors(tensors: Tensors, sent: Tensors) -> str | None:
    for name, value in tensors.items():
        if name in sent and value.shape != sent[name].shape:
            return _of_shape(name, tuple(value.shape), sent)
        if value.is_complex():
            return f"its array {short(name)} is of type {value.dtype} instead of floating point"
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"its array {short(name)} holds NaN or infinity"
    return None


def _of_shape(name: str, shape: tuple[int, ...], sent: Tensors) -> str:
    return f"its array {short(name)} is of shape {shape} instead of {tuple(sent[name].shape)}"
