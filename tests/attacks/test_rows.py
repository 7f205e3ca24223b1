"""The rows are those of the client's numbers, whatever its optimiser; where they cannot be told,
that is said."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.iga import IGA
from fedleak.attacks.rows import Rows
from fedleak.errors import BadInput
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate
from tests.attacks.numbers import (
    Bag,
    LanguageModel,
    Rating,
    gradient_of,
    next_word_loss,
    seeded,
    told,
    weights_of,
)

TEXT = torch.tensor([[7, 3, 44, 3, 12]])
TEXTS = torch.tensor([[7, 3, 44, 3, 12], [1, 1, 49, 0, 7]])
LABELS = torch.tensor([2, 1])
RATE = 0.01


def words(numbers: Tensor) -> list[int]:
    return sorted(set(numbers.flatten().tolist()))


def test_the_rows_of_a_gradient() -> None:
    model = seeded(Bag)
    update, knowledge = gradient_of(model, TEXT, LABELS[:1]), told(model, TEXT, LABELS[:1])
    (found,) = Rows()([update], knowledge)
    assert found.rows["embed"].tolist() == [3, 7, 12, 44]
    assert found.inputs.tolist() == [[-1] * 5]
    assert math.isnan(found.explained)
    assert "4 of 50 rows of embed were touched" in found.findings


SGD = torch.optim.SGD
OPTIMIZERS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (SGD, {}, {}),
    (SGD, {"momentum": 0.9, "weight_decay": 0.01}, {}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}, {}),
    (torch.optim.Adam, {}, {"optimizer": "adam"}),
    (torch.optim.Adam, {"weight_decay": 0.01}, {"optimizer": "adam"}),
    (torch.optim.Adam, {"weight_decay": 0.01, "amsgrad": True}, {"optimizer": "adam"}),
    (torch.optim.AdamW, {"weight_decay": 0.1}, {"optimizer": "adamw"}),
    (torch.optim.RMSprop, {"weight_decay": 0.01, "momentum": 0.5}, {"optimizer": "rmsprop"}),
    (torch.optim.Adagrad, {"weight_decay": 0.01}, {"optimizer": "adagrad"}),
]


@pytest.mark.parametrize("delta", [False, True], ids=["weights", "delta"])
@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize(
    ("kind", "settings", "facts"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_optimiser_of_torch(
    kind: Any, settings: dict[str, Any], facts: dict[str, Any], steps: int, delta: bool
) -> None:
    model = seeded(Bag)
    make = partial(kind, lr=RATE, **settings)
    update = weights_of(model, TEXTS, LABELS, make, steps=steps, delta=delta)
    training = LocalTraining(learning_rate=RATE, steps=steps, batch_size=2, **settings, **facts)
    knowledge = told(model, TEXTS, LABELS, protocol=update.protocol, local_training=training)
    (found,) = Rows()([update], knowledge)
    assert found.rows["embed"].tolist() == words(TEXTS)


def test_a_schedule_and_settings_of_one_parameter() -> None:
    model = seeded(Bag)

    def make(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.AdamW(
            [{"params": [first], "weight_decay": 0.3}, {"params": rest}], lr=RATE
        )

    update = weights_of(model, TEXTS, LABELS, make, steps=3)
    own = {"embed.*": {"weight_decay": 0.3}}
    training = LocalTraining(
        optimizer="adamw", learning_rate=RATE, steps=3, weight_decay=0.01, per_parameter=own
    )
    (found,) = Rows()([update], told(model, TEXTS, LABELS, local_training=training))
    assert found.rows["embed"].tolist() == words(TEXTS)


def test_an_unknown_optimiser_without_decay() -> None:
    model = seeded(Bag)
    update = weights_of(model, TEXTS, LABELS, partial(torch.optim.Adamax, lr=RATE), steps=4)
    training = LocalTraining(optimizer="unknown", learning_rate=RATE, steps=4)
    (found,) = Rows()([update], told(model, TEXTS, LABELS, local_training=training))
    assert found.rows["embed"].tolist() == words(TEXTS)


def test_a_decay_that_was_not_told_is_noticed() -> None:
    model = seeded(Bag)
    make = partial(SGD, lr=RATE, weight_decay=0.1)
    update = weights_of(model, TEXTS, LABELS, make, steps=1)
    with pytest.raises(BadInput, match=r"50 rows of `embed.weight` moved where .* at most 10 numb"):
        Rows()([update], told(model, TEXTS, LABELS, learning_rate=RATE))


def test_noise_on_all_rows_is_noticed() -> None:
    model = seeded(Bag)
    update = gradient_of(model, TEXT, LABELS[:1])
    noisy = {name: v + 1e-3 * torch.randn_like(v) for name, v in update.received.items()}
    update = InterceptedUpdate.of(model, gradient=noisy)
    with pytest.raises(BadInput, match="moved where the samples have at most 5 numbers: noise"):
        Rows()([update], told(model, TEXT, LABELS[:1]))


@pytest.mark.parametrize(
    "settings",
    [{"sparse": True}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"padding_idx": 0}],
    ids=str,
)
def test_settings_of_an_embedding(settings: dict[str, Any]) -> None:
    model = seeded(Bag, **settings)
    (found,) = Rows()([gradient_of(model, TEXTS, LABELS)], told(model, TEXTS, LABELS))
    expected = [word for word in words(TEXTS) if word != settings.get("padding_idx")]
    assert found.rows["embed"].tolist() == expected
    said = "row 0 of embed is padding, which has no gradient" in found.findings
    assert said == ("padding_idx" in settings)


def test_weights_of_an_embedding_that_scales_its_rows() -> None:
    """With ``max_norm`` a forward pass alone moves the rows that it reads."""
    model = seeded(Bag, max_norm=1.0)
    update = weights_of(model, TEXTS, LABELS, partial(SGD, lr=RATE), steps=3)
    knowledge = told(model, TEXTS, LABELS, learning_rate=RATE, local_steps=3, batch_size=2)
    (found,) = Rows()([update], knowledge)
    assert found.rows["embed"].tolist() == words(TEXTS)


def test_a_bag_of_embeddings() -> None:
    model = seeded(lambda: nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 4)))
    (found,) = Rows()([gradient_of(model, TEXTS, LABELS)], told(model, TEXTS, LABELS))
    assert found.rows["0"].tolist() == words(TEXTS)


def test_one_pair_of_user_and_item_is_known() -> None:
    model, pair = seeded(Rating), torch.tensor([[13, 29]])
    (found,) = Rows()([gradient_of(model, pair, LABELS[:1])], told(model, pair, LABELS[:1]))
    assert torch.equal(found.inputs, pair)
    assert found.explained > 0.999
    assert {name: rows.tolist() for name, rows in found.rows.items()} == {
        "users": [13], "items": [29],
    }  # fmt: skip


def test_which_user_has_which_item_is_not_claimed() -> None:
    model, pairs = seeded(Rating), torch.tensor([[13, 29], [13, 2]])
    (found,) = Rows()([gradient_of(model, pairs, LABELS)], told(model, pairs, LABELS))
    assert found.inputs.tolist() == [[13, -1], [13, -1]]
    assert found.rows["items"].tolist() == [2, 29]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own"])
def test_an_output_layer_with_the_embeddings_weight(tied: bool) -> None:
    model = seeded(LanguageModel, tied=tied)
    update = gradient_of(model, TEXT, LABELS[:1], next_word_loss)
    knowledge = told(model, TEXT, LABELS[:1], loss=next_word_loss)
    if tied:
        with pytest.raises(BadInput, match=r"`embed.weight` is used in another place too"):
            Rows()([update], knowledge)
    else:
        (found,) = Rows()([update], knowledge)
        # The last word is predicted only, and read with a gradient of 0.
        assert found.rows["embed"].tolist() == words(TEXT[:, :-1])


def test_a_frozen_embedding_says_nothing() -> None:
    model: Any = seeded(Bag)
    update = gradient_of(model, TEXT, LABELS[:1])
    still = dict(update.received) | {"embed.weight": torch.zeros(50, 16)}
    with pytest.raises(BadInput, match=r"`embed.weight` did not move: frozen, or not sent"):
        Rows()([InterceptedUpdate.of(model, gradient=still)], told(model, TEXT, LABELS[:1]))


def test_a_model_without_an_embedding_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4))
    inputs = torch.randn(1, 5)
    with pytest.raises(BadInput, match="rows needs an embedding and Sequential has none"):
        Rows()([gradient_of(model, inputs, LABELS[:1])], told(model, inputs, LABELS[:1]))


def test_columns_of_categories_among_real_numbers() -> None:
    """A model that makes whole numbers of some of its inputs: the rows are told, not the inputs."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towns, self.out = nn.Embedding(9, 4), nn.Linear(6, 4)

        def forward(self, rows: Tensor) -> Tensor:
            return self.out(torch.cat([self.towns(rows[:, 0].long()), rows[:, 1:]], dim=1))

    model, rows = seeded(Mixed), torch.tensor([[5.0, 0.3, -1.2], [8.0, 1.0, 2.0]])
    update, knowledge = gradient_of(model, rows, LABELS), told(model, rows, LABELS)
    (found,) = Rows()([update], knowledge)
    assert found.rows["towns"].tolist() == [5, 8]
    (searched,) = IGA(iterations=2)([update], knowledge)  # not refused: its inputs are real numbers
    assert searched.inputs.shape == rows.shape
