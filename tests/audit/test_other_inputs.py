"""A model's inputs besides the samples: what is the same in all batches, and how it is made."""

from dataclasses import replace

import pytest
import torch

from fedleak.audit.facts import Place, Relation, TensorFacts, TrainingFacts
from fedleak.audit.other_inputs import (
    Fields,
    InputRelations,
    OtherInput,
    arguments_of,
    assembled,
    common_relations,
)

IDS, MASK, KINDS, LABELS = ("input_ids",), ("attention_mask",), ("token_type_ids",), ("labels",)
TOKENS = torch.tensor([[5, 3, 0, 0], [2, 7, 9, 0]])
OTHER = torch.tensor([[1, 1, 8, 4]])


def relations_of(*batches: dict[Place, torch.Tensor]) -> dict[Place, Relation | None]:
    relations = InputRelations()
    for batch in batches:
        relations.note(batch)
    return {place: relations.of(place) for place in batches[0]}


def batch_of(tokens: torch.Tensor, mask: torch.Tensor) -> dict[Place, torch.Tensor]:
    return {
        IDS: tokens, MASK: mask, KINDS: torch.zeros_like(tokens), LABELS: tokens.clone(),
    }  # fmt: skip


def test_what_the_apps_code_makes_is_told_apart() -> None:
    whole = batch_of(OTHER, torch.ones_like(OTHER))
    found = relations_of(batch_of(TOKENS, (TOKENS != 0).long()), whole)
    assert found == {
        IDS: None, MASK: Relation(mask_of=IDS, padding=0), KINDS: Relation(value=0.0),
        LABELS: Relation(copy_of=IDS),
    }  # fmt: skip
    assert relations_of(whole)[MASK] == Relation(value=1.0)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),  # leaves out a token that occurs elsewhere
        torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]),  # leaves out two tokens
        torch.tensor([[2, 1, 1, 1], [1, 1, 1, 1]]),  # is no mask
    ],
)
def test_a_mask_of_its_own_is_none_of_padding(mask: torch.Tensor) -> None:
    tokens = torch.tensor([[5, 3, 5, 0], [2, 7, 9, 0]])
    assert relations_of(batch_of(tokens, mask))[MASK] is None


def test_a_mask_that_does_not_hold_in_a_later_batch() -> None:
    # There the padding is a token, and no padding.
    later = batch_of(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
    assert relations_of(batch_of(TOKENS, (TOKENS != 0).long()), later)[MASK] is None


def test_labels_that_are_all_alike_are_not_told() -> None:
    inputs = {(0,): torch.rand(3, 1), (1,): torch.ones(3, 1), (2,): torch.ones(3)}
    assert relations_of(inputs) == {(0,): None, (1,): None, (2,): None}
    assert relations_of({IDS: TOKENS, LABELS: torch.ones_like(TOKENS)})[LABELS] is None


def facts_with(relation: Relation | None) -> TrainingFacts:
    return TrainingFacts(inputs=(TensorFacts(MASK, (2, 4), "int64", relation),))


def test_what_holds_of_all_clients() -> None:
    ones, padded = Relation(value=1.0), Relation(mask_of=IDS, padding=0)
    for clients, expected in (
        ([ones, ones], {MASK: ones}),
        ([ones, padded], {MASK: padded}),
        ([padded, replace(padded, padding=1)], {}),
        ([ones, Relation(value=0.0)], {}),
        ([ones, None], {}),
    ):
        assert common_relations([facts_with(one) for one in clients]) == expected


def other(relation: Relation | None, name: str = "extra", dtype: str = "int64") -> OtherInput:
    return OtherInput((name,), (4,), dtype, True, relation)


def test_inputs_are_made_for_the_samples() -> None:
    double = torch.float64
    assert torch.equal(other(Relation(copy_of=IDS)).make(TOKENS, double), TOKENS)
    made = other(Relation(mask_of=IDS, padding=0), dtype="float32").make(TOKENS, double)
    assert torch.equal(made, (TOKENS != 0).double())
    made = other(Relation(value=2.0)).make(TOKENS[:, :3], double)
    assert torch.equal(made, torch.full((2, 3), 2))
    assert torch.equal(other(None, "my_mask").make(TOKENS, double), torch.ones_like(TOKENS))
    assert torch.equal(other(None).make(TOKENS, double), torch.zeros_like(TOKENS))
    numbers = other(None, dtype="float32").make(TOKENS, double)
    assert (numbers.dtype, numbers.std() > 0) == (double, True)
    assert torch.equal(numbers, other(None, dtype="float32").make(TOKENS, double))


def test_a_relation_to_another_input_is_none_to_the_samples() -> None:
    samples, item = TensorFacts(IDS, (2, 4), "int64"), TensorFacts(MASK, (2, 4), "int64")
    known = Relation(mask_of=IDS, padding=0)
    assert OtherInput.of(item, samples, known).relation == known
    assert OtherInput.of(item, samples, replace(known, mask_of=KINDS)).relation is None
    assert "is not known" in OtherInput.of(item, samples, None).note


def test_calls_are_put_together() -> None:
    assert assembled({(): 1}) == 1
    assert assembled({(1,): "b", (0,): "a"}) == ("a", "b")
    assert assembled({(2,): "c", (0, 1): "a"}) == ((None, "a"), None, "c")
    batch = assembled({("x",): 1, ("more", "y"): 2})
    assert batch == {"x": 1, "more": {"y": 2}}
    assert isinstance(batch, Fields)
    assert batch.more.y == 2
    assert not hasattr(batch, "z")
    assert arguments_of({(0, "x"): 1, ("mask",): 2}) == (({"x": 1},), {"mask": 2})
