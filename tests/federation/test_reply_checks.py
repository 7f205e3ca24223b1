"""A client that sends rubbish costs itself alone: replies made by hand, no Ray."""

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Result, Strategy

from fedleak.federation import MaliciousStrategy, records
from fedleak.federation.reply_checks import Keys, check_arrays, check_metrics, odd_ones
from fedleak.updates.compression import encode
from fedleak.updates.files import Tensors
from tests.federation.fakes import (
    FakeGrid,
    Overflowing,
    fails,
    same_tensors,
    sends_gradient,
    sends_weights,
    weights,
)

NODES = [31, 7, 19, 23]
BAD = 19
SETTINGS: dict[str, Any] = {"min_available_nodes": 4, "fraction_evaluate": 0.0}

Spoil = Callable[[RecordDict], None]


class Saving(FedAvg):
    """A user's strategy that does something of its own around Flower's aggregation."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.seen = arrays
        return arrays, metrics


def main(content: RecordDict) -> ArrayRecord:
    return content.array_records["gradient" if "gradient" in content else "arrays"]


def of_shape(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.zeros(5, np.float32))


def whole_numbers(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.zeros(4, np.int64))


def complex_numbers(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.zeros(4, np.complex64))


def texts(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.array(["a", "b", "c", "d"]))


def with_nan(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.array([0, 1, np.nan, 0], np.float32))


def with_infinity(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array(np.array([0, -np.inf, 0, 0], np.float32))


def rubbish_bytes(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array("float32", (4,), "numpy.ndarray", b"\x93NUMPY" + b"x" * 99)


def pickled(content: RecordDict) -> None:
    main(content)["layer.bias"] = Array("float32", (4,), "pickle", b"cos\nsystem\n")


def untrue_shape(content: RecordDict) -> None:
    data = Array(np.zeros((400, 3), np.float32)).data
    main(content)["layer.weight"] = Array("float32", (4, 3), "numpy.ndarray", data)


def without_arrays(content: RecordDict) -> None:
    for name in list(content.array_records):
        del content[name]


def empty_arrays(content: RecordDict) -> None:
    for name in list(main(content)):
        del main(content)[name]


def without_metrics(content: RecordDict) -> None:
    del content["metrics"]


def metrics_as_config(content: RecordDict) -> None:
    del content["metrics"]
    content["metrics"] = ConfigRecord({"num-examples": "four"})


def without_number(content: RecordDict) -> None:
    del content["metrics"]["num-examples"]


def without_loss(content: RecordDict) -> None:
    del content["metrics"]["loss"]


def another_metric(content: RecordDict) -> None:
    content["metrics"]["mood"] = 1.0


def second_metrics(content: RecordDict) -> None:
    content["more"] = MetricRecord({"num-examples": 2})


def second_arrays(content: RecordDict) -> None:
    content["more"] = ArrayRecord({"layer.bias": torch.zeros(4)})


def another_array(content: RecordDict) -> None:
    main(content)["extra"] = Array(np.zeros(4, np.float32))


def part_of_the_arrays(content: RecordDict) -> None:
    del main(content)["layer.bias"]


def huge_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"blob": b"0" * (2**26 + 10**5)})


def list_of_metrics(content: RecordDict) -> None:
    content["metrics"]["loss"] = [0.5] * 1000


def examples(number: Any) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content["metrics"]["num-examples"] = number

    return spoil


RUBBISH: dict[str, tuple[Spoil, str]] = {
    "shape": (of_shape, r"'layer.bias' is of shape \(5,\) instead of \(4,\)"),
    "whole numbers": (whole_numbers, "int64 instead of|has 'array layer.bias of whole numbers"),
    "complex": (complex_numbers, "is of type torch.complex64 instead of floating point"),
    "texts": (texts, "its array 'layer.bias' cannot be read"),
    "nan": (with_nan, "its array 'layer.bias' holds NaN or infinity"),
    "infinity": (with_infinity, "its array 'layer.bias' holds NaN or infinity"),
    "bytes": (rubbish_bytes, "its array 'layer.bias' cannot be read"),
    "pickle": (pickled, "its array 'layer.bias' cannot be read"),
    "untrue shape": (untrue_shape, r"of type float32 and shape \(400, 3\), not 'float32' and"),
    "no arrays": (without_arrays, "it has no arrays"),
    "empty arrays": (empty_arrays, "it has no arrays"),
    "no metrics": (without_metrics, "it has no metrics"),
    "metrics as config": (metrics_as_config, "it has no metrics"),
    "no number": (without_number, "its metrics lack the number of examples, 'num-examples'"),
    "0": (examples(0), "it reports 0 examples where 1 to 99 are possible"),
    "-1": (examples(-1), "it reports -1 examples"),
    "1e18": (examples(10**18), "it reports 1000000000000000000 examples"),
    "nan examples": (examples(float("nan")), "it reports nan examples"),
    "list": (examples([1, 2]), r"it reports \[1, 2\] examples"),
    "huge": (huge_record, r"it is of 67,\d{3},\d{3} bytes where at most 67,\d{3},\d{3} make sense"),
    "less metrics": (without_loss, "it lacks 'metric loss in metrics'"),
    "more metrics": (another_metric, "it has 'metric mood in metrics'"),
    "a list": (list_of_metrics, "it has 'metric loss in metrics, 1000 numbers'"),
    "second metrics": (second_metrics, "it has 'metric num-examples in more', 'record more'"),
    "second arrays": (second_arrays, "it has 'array layer.bias in more', 'record more'"),
    "another array": (another_array, "'extra', which was not sent|has 'array extra in arrays'"),
    "a part": (part_of_the_arrays, "it lacks 'array layer.bias in"),
}


def reply_of(question: Message, protocol: str) -> Message:
    node = question.metadata.dst_node_id
    tensors = weights(node)
    if protocol == "fedavg":
        return sends_weights(question, tensors, examples=node, loss=0.5)
    buffers = {"norm.running_mean": tensors.pop("norm.running_mean")}
    return sends_gradient(question, tensors, buffers, node, loss=0.5)


def rounds(
    strategy: Strategy, protocol: str, bad: Callable[[Message], Message | None], number: int = 2
) -> Result:
    """Rounds in which one client answers by ``bad``."""

    def answer(question: Message) -> Message | None:
        if question.metadata.dst_node_id == BAD:
            return bad(question)
        return reply_of(question, protocol)

    random.seed(0)  # strategies sum in the order in which they sample clients
    return strategy.start(FakeGrid(NODES, answer), records.to_record(weights(0)), number)


@pytest.mark.parametrize(
    ("spoil", "sentence", "make"),
    [
        pytest.param(spoil, sentence, make, id=f"{name}-{make.__name__}")
        for name, (spoil, sentence) in RUBBISH.items()
        for make in (FedAvg, Saving, *((FedAdam, FedMedian) if name in ("nan", "0") else ()))
    ],
)
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_rubbish_is_refused_and_counts_as_its_clients_failure(
    spoil: Spoil, sentence: str, protocol: str, make: type[FedAvg]
) -> None:
    def bad(question: Message) -> Message:
        reply = reply_of(question, protocol)
        spoil(reply.content)
        return reply

    def strategy(reported: list[tuple[int, int, str]]) -> MaliciousStrategy:
        return MaliciousStrategy(
            make(**SETTINGS), learning_rate=0.5, clients={n: n for n in NODES}, max_examples=99,
            on_failure=lambda *args: reported.append(args),
        )  # fmt: skip

    reported: list[tuple[int, int, str]] = []
    malicious = strategy(reported)
    found = rounds(malicious, protocol, bad)
    expected = rounds(strategy([]), protocol, lambda question: fails(question))
    assert same_tensors(records.to_tensors(found.arrays), records.to_tensors(expected.arrays))
    assert found.train_metrics_clientapp == expected.train_metrics_clientapp
    assert malicious.failures == 2
    assert malicious.lost == {1: 1, 2: 1}
    assert malicious.diverged is None
    assert [(round_, client) for round_, client, _ in reported] == [(1, BAD), (2, BAD)]
    for _, _, reason in reported:
        assert reason.startswith("its reply was refused: ")
        assert re.search(sentence, reason), reason
    assert {update.client for update in malicious.intercepted} == set(NODES) - {BAD}


class Sending(Saving):
    """A user's strategy that sends in a way of its own, too, as SCAFFOLD does."""

    def configure_train(self, *args: Any) -> Any:
        return list(super().configure_train(*args))


@pytest.mark.parametrize("alike", [None, True, False])
def test_replies_may_differ_where_a_strategy_of_ones_own_allows_it(alike: bool | None) -> None:
    def bad(question: Message) -> Message:
        reply = reply_of(question, "fedavg")
        another_metric(reply.content)
        return reply

    class Tolerant(Sending):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays = [reply.content["arrays"] for reply in replies if reply.has_content()]
            return (arrays[0], None) if len(arrays) == 4 else (None, None)

    strict = MaliciousStrategy(Sending(**SETTINGS), alike=alike)
    assert rounds(strict, "fedavg", bad).arrays is not None  # what Flower refuses is left out
    tolerant = MaliciousStrategy(Tolerant(**SETTINGS), alike=alike)
    rounds(tolerant, "fedavg", bad)
    assert (strict.failures, tolerant.failures) == (2, 2 if alike else 0)


def test_a_reply_without_a_question_of_its_kind_ends_nothing_in_an_evaluation() -> None:
    def answer(question: Message) -> Message:
        if question.metadata.message_type == "train":
            return reply_of(question, "fedavg")
        metrics = {"num-examples": 2, "accuracy": 0.5}
        if question.metadata.dst_node_id == BAD:
            metrics = {"num-examples": 0, "accuracy": 0.5}
        if question.metadata.dst_node_id == 31:
            metrics["mood"] = 1
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=question)

    reported: list[str] = []
    strategy = MaliciousStrategy(
        FedAvg(min_available_nodes=4), on_failure=lambda _r, _c, reason: reported.append(reason)
    )
    result = strategy.start(FakeGrid(NODES, answer), records.to_record(weights(0)), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1] == {"accuracy": 0.5}
    assert len(reported) == strategy.failures == 2
    assert "it reports 0 examples" in reported[0]
    assert "it has 'metric mood in metrics'" in reported[1]


def test_a_global_model_that_is_not_finite_is_noted_with_its_first_round() -> None:
    strategy = MaliciousStrategy(Overflowing(**SETTINGS))
    rounds(strategy, "fedavg", lambda question: reply_of(question, "fedavg"), number=3)
    assert strategy.diverged == 2
    assert strategy.failures == 0


def content_of(tensors: Tensors, metrics: dict[str, Any] | None = None, **more: Any) -> RecordDict:
    found = {"arrays": records.to_record(tensors), **more}
    found["metrics"] = MetricRecord(metrics or {"num-examples": 2})
    return RecordDict(found)


def test_what_most_replies_have_decides_then_an_earlier_round_then_what_was_sent() -> None:
    sent = weights(0)
    whole = content_of(sent)
    part = content_of({"layer.bias": sent["layer.bias"]})
    strange = content_of(sent | {"extra": torch.zeros(1)})
    odd, usual = odd_ones([part, whole, part], frozenset(), sent)
    assert list(odd) == [1]
    assert list(odd_ones([strange, whole], frozenset(), sent)[0]) == [0]
    _, of_strange = odd_ones([strange], frozenset(), sent)
    assert list(odd_ones([strange, whole], of_strange, sent)[0]) == [1]
    assert odd_ones([], usual, sent) == ({}, usual)
    assert odd_ones([whole], usual, sent)[0] == {}


def test_counts_may_come_back_as_whole_numbers_after_a_mean() -> None:
    sent = {"w": torch.zeros(2), "count": torch.tensor(2.5, dtype=torch.float64)}
    reply = content_of({"w": torch.ones(2), "count": torch.tensor(3)})
    fault, found = check_arrays(reply, Keys(), sent)
    assert fault is None
    assert same_tensors(dict(found), {"w": torch.ones(2), "count": torch.tensor(3)})
    assert odd_ones([reply, reply], frozenset(), sent)[0] == {}


def test_an_outer_product_that_overflows_is_refused_before_it_is_decoded() -> None:
    gradient = encode(
        {"layer.weight": torch.ones(4, 3)}, {"layer.weight": (torch.ones(4), torch.ones(3))}
    )
    assert list(gradient) == ["layer.weight..rows", "layer.weight..columns"]
    assert check_arrays(_gradient(gradient), Keys(), weights(0))[0] is None
    gradient = {name: value * 1e20 for name, value in gradient.items()}
    assert check_arrays(_gradient(gradient), Keys(), weights(0))[0] == (
        "its array 'layer.weight' holds infinity"
    )
    gradient = encode({"layer.weight": torch.eye(4, 3)})
    gradient["layer.weight..shape"] = torch.tensor([10**9, 10**9])
    fault = check_arrays(_gradient(gradient), Keys(), weights(0))[0]
    assert fault is not None
    assert "decoded" in fault


def _gradient(encoded: Tensors) -> RecordDict:
    return RecordDict({"gradient": records.to_record(encoded)})


def test_the_number_of_examples_may_be_a_weight() -> None:
    keys = Keys(examples="share")
    assert check_metrics(content_of({}, {"share": 0.25}), keys, 9) is None
    assert check_metrics(content_of({}, {"share": 9.5}), keys, 9) is not None
