"""What a model's embeddings read is found by a probe, and it decides which attacks fit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import DLG, IGA, RGAP, Analytic, Attack
from fedleak.attacks.embeddings import embedding_uses, takes_numbers
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge
from tests.attacks.numbers import (
    Bag,
    LanguageModel,
    Rating,
    class_loss,
    gradient_of,
    next_word_loss,
    seeded,
    told,
)

TEXT, LABEL = torch.tensor([[7, 3, 44, 3, 12]]), torch.tensor([2])


def facts_of(model: nn.Module, *shape: int, **facts: Any) -> Knowledge:
    return Knowledge(model, shape, 4, num_samples=2, **{"loss": class_loss} | facts)


@pytest.mark.parametrize("attack", [IGA(), DLG(), RGAP(), Analytic()], ids=lambda a: a.name)
def test_an_attack_on_real_numbers_names_those_for_tokens(attack: Attack) -> None:
    model = seeded(Bag)
    update = gradient_of(model, TEXT, LABEL)
    with pytest.raises(
        BadInput, match=r"whole numbers that `embed` takes: choose `rows`.*`tokens`"
    ):
        attack([update], told(model, TEXT, LABEL))


def test_embeddings_themselves_are_real_numbers() -> None:
    """A model that takes vectors in place of tokens can be attacked on these."""
    model = seeded(Bag)
    vectors = Knowledge(model, (5, 16), 4, labels=LABEL, loss=class_loss)
    assert takes_numbers(vectors) is None
    (found,) = IGA(iterations=2, box=False)([gradient_of(model, TEXT, LABEL)], vectors)
    assert found.inputs.shape == (1, 5, 16)


def test_what_is_read_where() -> None:
    uses, kind = embedding_uses(facts_of(seeded(Rating), 2))
    assert kind == torch.int64
    found = {use.name: [at.tolist() for at in use.reads if at is not None] for use in uses}
    assert found == {"users": [[0, 2]], "items": [[1, 3]]}
    assert [use.shape for use in uses] == [(2, 8), (2, 8)]


def test_positions_of_a_text_are_no_samples() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Embedding(6, 4)
            self.out = nn.Linear(4, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            places = torch.arange(tokens.shape[1])
            return self.out((self.words(tokens) * self.places(places)).mean(1))

    uses, _ = embedding_uses(facts_of(seeded(Placed), 6))
    assert [(use.name, use.takes_samples) for use in uses] == [("words", True), ("places", False)]


def test_a_word_that_is_only_predicted_is_a_word() -> None:
    class Shifted(LanguageModel):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens[:, :-1])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        return functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    assert takes_numbers(facts_of(seeded(Shifted), 5, loss=loss)) == "embed"


def test_a_weight_in_two_places() -> None:
    for tied in (True, False):
        (use,), _ = embedding_uses(
            facts_of(seeded(LanguageModel, tied=tied), 5, loss=next_word_loss)
        )
        assert use.elsewhere == tied
        assert use.weight == "embed.weight"


@pytest.mark.parametrize("shape", [(3, 8, 8), (5,)])
def test_images_and_rows_of_a_table_are_no_numbers(shape: tuple[int, ...]) -> None:
    """An embedding of something else, such as a class, does not make them so."""

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = nn.Embedding(4, 6)
            self.read = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 6))
            self.out = nn.Linear(6, 4)

        def batch_loss(self, batch: Any) -> Tensor:
            hidden = self.read(batch[0]) * self.classes(batch[1])
            return functional.cross_entropy(self.out(hidden), batch[1])

    facts = Knowledge(seeded(Conditioned), shape, 4, num_samples=1)
    uses, kind = embedding_uses(facts)
    assert [(use.name, use.takes_samples) for use in uses] == [("classes", False)]
    assert kind == torch.float32
    assert takes_numbers(facts) is None


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(Bag, max_norm=0.5, sparse=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    takes_numbers(facts_of(model, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.embed.sparse  # type: ignore[union-attr]
