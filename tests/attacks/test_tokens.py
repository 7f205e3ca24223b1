"""The sequence of a client's numbers, exactly where the update determines it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fedleak.attacks.tokens import Tokens
from fedleak.errors import BadInput
from fedleak.updates.local_training import LocalTraining
from tests.attacks.numbers import (
    Bag,
    LanguageModel,
    Rating,
    Reader,
    gradient_of,
    next_word_loss,
    seeded,
    told,
    weights_of,
)

TEXT, LABEL = torch.tensor([[7, 3, 44, 3, 12]]), torch.tensor([2])
RATE = 0.05
ORDER = "the order of a sample's numbers is not determined: it changes nothing"
quick = Tokens(iterations=4)


def test_a_bag_has_no_order_and_that_is_said() -> None:
    model = seeded(Bag)
    (found,) = quick([gradient_of(model, TEXT, LABEL)], told(model, TEXT, LABEL))
    assert found.inputs.tolist() == [[3, 3, 7, 12, 44]]
    assert ORDER in found.findings
    assert found.explained > 0.9999
    assert found.rows["embed"].tolist() == [3, 7, 12, 44]


def test_a_sequence_in_its_order() -> None:
    model = seeded(Reader)
    (found,) = quick([gradient_of(model, TEXT, LABEL)], told(model, TEXT, LABEL))
    assert torch.equal(found.inputs, TEXT)
    assert ORDER not in found.findings
    assert found.explained > 0.9999


def test_the_search_over_embeddings_alone() -> None:
    """Without a comparison of single numbers, what is nearest is what was matched."""
    model = seeded(Reader)
    attack = Tokens(iterations=30, evaluations=0)
    (found,) = attack([gradient_of(model, TEXT, LABEL)], told(model, TEXT, LABEL))
    assert torch.equal(found.inputs, TEXT)
    assert found.cost < 1e-6


def test_a_batch_of_two_texts() -> None:
    model = seeded(Reader, length=3)
    texts, labels = torch.tensor([[7, 3, 44], [1, 30, 7]]), torch.tensor([2, 1])
    (found,) = quick([gradient_of(model, texts, labels)], told(model, texts, labels))
    assert torch.equal(found.inputs, texts)


def test_a_language_model_with_tied_weights() -> None:
    """Its rows cannot be told, and its targets are the numbers themselves."""
    model, text = seeded(LanguageModel), TEXT[:, :4]
    update = gradient_of(model, text, LABEL, next_word_loss)
    (found,) = Tokens(iterations=2)([update], told(model, text, LABEL, loss=next_word_loss))
    assert torch.equal(found.inputs, text)
    assert not found.rows


@pytest.mark.parametrize(
    ("make", "facts"),
    [(torch.optim.SGD, {}), (torch.optim.AdamW, {"optimizer": "adamw", "weight_decay": 0.01})],
    ids=["sgd", "adamw"],
)
def test_weights_after_several_steps(make: Any, facts: dict[str, Any]) -> None:
    model = seeded(Reader)
    update = weights_of(model, TEXT, LABEL, partial(make, lr=RATE), steps=3)
    training = LocalTraining(learning_rate=RATE, steps=3, batch_size=1, **facts)
    (found,) = quick([update], told(model, TEXT, LABEL, local_training=training))
    assert torch.equal(found.inputs, TEXT)
    assert found.explained > 0.99


def test_which_user_has_which_item() -> None:
    """Two embeddings take parts of a sample: there is no search over vectors, only over rows."""
    model = seeded(Rating)
    pairs, labels = torch.tensor([[13, 29], [4, 2], [11, 7]]), torch.tensor([2, 1, 0])
    (found,) = Tokens()([gradient_of(model, pairs, labels)], told(model, pairs, labels))
    assert torch.equal(found.inputs, pairs)
    assert ORDER not in found.findings


def test_labels_that_are_not_known() -> None:
    model = seeded(Reader)
    (found,) = quick([gradient_of(model, TEXT, LABEL)], told(model, TEXT, None, num_samples=1))
    assert torch.equal(found.inputs, TEXT)
    assert found.labels.tolist() == [2]


def test_a_model_that_draws_is_not_compared_number_by_number() -> None:
    class Dropping(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(60, 4))

    model = seeded(Dropping)
    (found,) = Tokens(iterations=5)([gradient_of(model, TEXT, LABEL)], told(model, TEXT, LABEL))
    assert "numbers not compared one by one, as out.0 draws" in found.findings


def test_images_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    images = torch.rand(1, 1, 4, 4)
    with pytest.raises(BadInput, match="tokens needs samples that are whole numbers for an embed"):
        Tokens()([gradient_of(model, images, LABEL)], told(model, images, LABEL))


def test_settings_are_checked() -> None:
    with pytest.raises(BadInput, match="Expected `evaluations` to be at least 0, got -1"):
        Tokens(evaluations=-1)
