"""Shares of labels by shadow clients, asked of small apps without Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedleak.audit.label_shares import (
    ShadowTraining,
    _shares,
    common_training,
    label_shares,
    label_shares_of_sum,
)
from fedleak.audit.ladder import Public
from fedleak.audit.sums import sum_of_round
from tests.audit.apps import TEXT, imports_undone, observe


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fedleak.audit.label_shares.MOST_SHADOWS", 60)
    with imports_undone():
        yield


def test_labels_that_the_loss_does_not_use_are_not_asked_for(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "lightning")
    training = ShadowTraining(victims, None, seconds=60)
    assert label_shares(observed, training) is None
    assert label_shares_of_sum(observed, training, sum_of_round(victims)) is None


# Clients of 40 samples, three quarters of which are of one class.
CLASSES = """
import torch
from torch import nn
from torch.nn import functional as F

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

def data(number):
    torch.manual_seed(100 + number)
    labels = torch.tensor([number % 4] * 30 + [(number + 1) % 4] * 10)
    return torch.utils.data.TensorDataset(torch.randn(40, 6), labels)

def train(model, examples, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for x, y in torch.utils.data.DataLoader(examples, batch_size=10, shuffle=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()
"""


def test_shares_of_each_client_and_of_all_together(tmp_path: Path) -> None:
    # Classes 0 and 1 of four clients: 3 of 4 samples of all are of classes 0 to 3 in other shares.
    task = CLASSES.replace("number % 4", "number % 2").replace("(number + 1) % 4", "2")
    _, observed, victims = observe(tmp_path, "images", task=task)
    training = ShadowTraining(victims, None, seconds=60)
    answer = label_shares(observed, training)
    assert answer is not None
    assert answer.rung == 2
    assert answer.answer.mean < 0.1
    assert answer.status == "leaks"
    shadows = training.shadows
    of_all = label_shares_of_sum(observed, training, sum_of_round(victims))
    assert of_all is not None
    assert training.shadows is shadows  # not trained again
    assert of_all.rung == 0
    assert of_all.answer.n == 1
    # 3/8, 3/8, 1/4 and 0: 1/4 from equal shares.
    assert of_all.guess.mean == pytest.approx(0.25)
    assert of_all.answer.mean < 0.1


# Clients of 40 samples with one yes or no each, three quarters of which are alike.
BINARY = (
    CLASSES.replace("nn.Linear(8, 4)", "nn.Linear(8, 1)")
    .replace("[number % 4]", "[number % 2]").replace("[(number + 1) % 4]", "[1 - number % 2]")
    .replace("torch.randn(40, 6), labels", "torch.randn(40, 6), labels.float()[:, None]")
    .replace("F.cross_entropy", "F.binary_cross_entropy_with_logits")
    .replace("torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)",
             "torch.optim.Adam(model.parameters(), lr=0.01)")
)  # fmt: skip


def test_shares_of_yes_and_no(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=BINARY)
    training = ShadowTraining(victims, None, seconds=60)
    assert training.classes == 2
    answer = label_shares(observed, training)
    assert answer is not None
    # 1/4 from equal shares, and more from those of the other clients.
    assert answer.guess.mean == pytest.approx(0.25)
    assert "the guess is equal shares, the mean of the other clients has" in answer.note
    assert answer.answer.mean < 0.15
    of_all = label_shares_of_sum(observed, training, sum_of_round(victims))
    assert of_all is not None
    assert of_all.rung == 0


def test_several_labels_of_a_sample_are_said(tmp_path: Path) -> None:
    task = (
        BINARY.replace("nn.Linear(8, 1)", "nn.Linear(8, 3)")
        .replace("labels.float()[:, None]", "labels.float()[:, None].expand(40, 3)")
    )  # fmt: skip
    _, observed, victims = observe(tmp_path, "images", task=task)
    training = ShadowTraining(victims, None, seconds=60)
    for answer in (
        label_shares(observed, training),
        label_shares_of_sum(observed, training, sum_of_round(victims)),
    ):
        assert answer is not None
        assert answer.status == "not tried"
        assert "a sample has several labels, each yes or no" in answer.sentence


def test_public_samples_give_the_guess_of_all_clients(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=CLASSES)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    public = Public(torch.randn(8, 6, generator=generator), labels, "public.npz")
    training = ShadowTraining(victims, public, seconds=60)
    answer = label_shares_of_sum(observed, training, sum_of_round(victims))
    assert answer is not None
    assert answer.threat_model == "D"
    # The clients have equal shares, the public samples 5/8, 1/8, 1/8 and 1/8.
    assert answer.guess.mean == pytest.approx(0.375)
    assert "the guess is the shares in public.npz" in answer.note


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_public_samples_correct_the_shares(seconds: float, tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=CLASSES)
    generator = torch.Generator().manual_seed(0)
    public = Public(torch.randn(60, 6, generator=generator), torch.arange(60) % 4, "public.npz")
    training = ShadowTraining(victims, public, seconds=60)
    assert len(training.shadows) == 60
    training.seconds = seconds  # what is left is for the correction
    answer = label_shares(observed, training)
    assert answer is not None
    said = (
        "and 3 times 3 for each client with the shares found for it, which correct them"
        if seconds else "without correction, for which there was no time"
    )  # fmt: skip
    assert f"60 shadow clients on public.npz, {said}; the guess is" in answer.note
    assert answer.answer.mean < 0.1


# The output layer is made before the hidden one, which has fewer units than there are classes.
OTHER_ORDER = CLASSES.replace(
    """    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
""",
    """    return Net()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(3, 4), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))
""",
)


def test_the_output_layer_is_the_one_that_is_called_last(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=OTHER_ORDER)
    training = ShadowTraining(victims, None, seconds=60)
    assert (training.layer, training.classes) == ("head", 4)
    answer = label_shares(observed, training)
    assert answer is not None
    assert answer.guess.mean > 0.2


def test_labels_that_a_loss_leaves_out_have_no_share() -> None:
    labels = torch.tensor([0, 1, 1, -100, 3])
    assert _shares(labels, 4).tolist() == [0.25, 0.5, 0.0, 0.25]


def test_an_optimiser_that_cannot_be_followed_is_said(tmp_path: Path) -> None:
    _, observed, victims = observe(tmp_path, "images", task=CLASSES)
    unknown = victims[0].known.knowledge.with_training(optimizer="unknown")
    victims = [replace(v, known=replace(v.known, knowledge=unknown)) for v in victims]
    training = ShadowTraining(victims, None, seconds=60)
    for answer in (
        label_shares(observed, training),
        label_shares_of_sum(observed, training, sum_of_round(victims)),
    ):
        assert answer is not None
        assert answer.status == "not tried"
        assert "the clients' optimiser cannot be followed" in answer.sentence


def test_shadow_clients_have_as_many_samples_as_the_clients(tmp_path: Path) -> None:
    """Their steps follow from them where all clients make the same number of passes."""
    task = TEXT.replace("(5, 8)", "(4 + number, 8)").replace("(4, (5,))", "(4, (4 + number,))")
    _, _, victims = observe(tmp_path, "text", task=task)
    training, numbers = common_training(victims)
    assert numbers == [4, 5, 6, 7]
    assert (training.steps, training.epochs, training.batch_size) == (None, 1, 2)
    facts = victims[0].known.knowledge
    other = replace(victims[0].known, knowledge=facts.with_training(steps=3, epochs=None))
    training, numbers = common_training([replace(victims[0], known=other), *victims[1:]])
    assert (training.steps, numbers) == (3, [6])
