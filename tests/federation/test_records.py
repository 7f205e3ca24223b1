"""Replies with gradients as weights: merged, or computed on access."""

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fedleak.federation import records
from fedleak.updates.compression import CompactTensors, encode
from tests.federation.fakes import same_tensors, sends_gradient, train_question, weights


def test_a_merged_reply_has_the_effect_of_all_replies(tmp_path: Path) -> None:
    sent = weights(0)
    replies = []
    for node, examples in ((1, 2), (2, 6)):
        gradient = weights(node)
        buffers = {"norm.running_mean": gradient.pop("norm.running_mean")}
        question = train_question(node, sent)
        question.metadata.__dict__["_message_id"] = str(node)
        replies.append(sends_gradient(question, gradient, buffers, examples, loss=float(node)))
    merged = records.merge(replies, gradients_of(replies), sent, 0.5)
    metrics: MetricRecord = merged.content.metric_records[records.METRICS]
    assert metrics[records.EXAMPLES] == 8
    assert metrics["loss"] == pytest.approx(0.25 * 1 + 0.75 * 2)
    arrays: ArrayRecord = merged.content.array_records[records.ARRAYS]
    assert list(arrays) == list(sent)
    for name, value in records.to_tensors(arrays).items():
        mean = 0.25 * weights(1)[name] + 0.75 * weights(2)[name]
        expected = mean if "running" in name else sent[name] - 0.5 * mean
        torch.testing.assert_close(value, expected.double(), rtol=1e-6, atol=1e-6)


def gradients_of(replies: list[Message]) -> list[CompactTensors]:
    return [records.to_compact(r.content.array_records[records.GRADIENT]) for r in replies]


def test_steps_are_computed_on_access() -> None:
    sent, gradient = weights(0), weights(1)
    buffers = {"norm.running_mean": gradient.pop("norm.running_mean")}
    question = train_question(1, sent)
    question.metadata.__dict__["_message_id"] = "1"
    reply = sends_gradient(question, gradient, buffers)
    records.replace_gradient_by_weights(reply, *gradients_of([reply]), sent, 0.5)
    arrays = reply.content.array_records[records.ARRAYS]
    kinds = [type(value) is records.LazySteppedWeights for value in arrays.values()]
    assert kinds == [True, True, False]
    for name, value in gradient.items():
        expected = sent[name].double() - 0.5 * value.double()
        assert torch.equal(torch.from_numpy(arrays[name].numpy()), expected)
        assert len(arrays[name].data) > expected.numel() * 8


def test_replies_with_different_names_are_not_merged() -> None:
    replies = []
    for node in (1, 2):
        question = train_question(node, weights(0))
        question.metadata.__dict__["_message_id"] = str(node)
        replies.append(sends_gradient(question, weights(node), loss=1.0))
    assert records.can_be_merged(replies, gradients_of(replies))
    del replies[1].content.array_records[records.GRADIENT]["layer.bias"]
    assert not records.can_be_merged(replies, gradients_of(replies))


def test_counts_are_rounded_and_not_truncated() -> None:
    sent = {"count": torch.tensor(7), "w": torch.zeros(2)}
    mean = records.to_record({"count": torch.tensor(7.9999999), "w": torch.ones(2).double()})
    found = records.to_tensors(records.with_dtypes_of(mean, sent))
    assert (int(found["count"]), found["count"].dtype) == (8, torch.int64)
    assert found["w"].dtype == torch.float32


def test_tensors_survive_the_conversion_in_their_order() -> None:
    tensors = {"b": torch.arange(3), "a": torch.randn(2, 2).double(), "c": torch.tensor(True)}
    found = records.to_tensors(records.to_record(tensors))
    assert list(found) == ["b", "a", "c"]
    assert same_tensors(found, tensors)
    assert [value.dtype for value in found.values()] == [v.dtype for v in tensors.values()]


def test_a_compressed_gradient_survives_the_conversion() -> None:
    sparse = torch.zeros(4, 50)
    sparse[1, 3], sparse[2, 40] = 2.0, -1.0
    gradient = {"weight": sparse, "bias": torch.randn(4)}
    record = records.to_record(encode(gradient, {}))
    assert same_tensors(dict(records.to_compact(record)), gradient)


def test_metrics_carry_the_number_of_examples() -> None:
    found = records.to_metrics({"loss": 0.5}, 7)
    assert dict(found) == {"loss": 0.5, "num-examples": 7}


def test_the_record_of_a_gradient_marks_fedsgd() -> None:
    question = train_question(1, weights(0))
    question.metadata.__dict__["_message_id"] = "1"
    assert records.sends_gradient(sends_gradient(question, weights(1)).content)
    assert not records.sends_gradient(question.content)
