"""Flower's clipping mods as classes: the same reply as of Flower's functions."""

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod

from fedleak.federation import records
from fedleak.federation.clipping_mods import AdaptiveClipping, FixedClipping
from tests.federation.fakes import sends_weights, train_question, weights


@pytest.mark.parametrize(
    ("mod", "function"),
    [(FixedClipping(), fixedclipping_mod), (AdaptiveClipping(), adaptiveclipping_mod)],
)
def test_the_reply_is_that_of_flowers_function(mod: Any, function: Any) -> None:
    question = train_question(1, weights(0))
    question.content[records.CONFIG] = ConfigRecord({"clipping_norm": 0.5})
    context = Context(1, 1, {}, RecordDict(), {})

    def train(message: Message, _: Context) -> Message:
        return sends_weights(message, weights(1), 4)

    replies = [call(question, context, train) for call in (mod, function)]
    first, second = (reply.content.array_records[records.ARRAYS] for reply in replies)
    found = first.to_torch_state_dict()
    for name, value in second.to_torch_state_dict().items():
        assert torch.equal(found[name], value)
    squares = [(found[n] - v).square().sum() for n, v in weights(0).items()]
    assert float(sum(squares)) == pytest.approx(0.25, rel=1e-4)
