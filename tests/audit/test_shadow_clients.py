"""Shadow clients: the shares of labels of clients that torch's own optimisers trained."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.audit.shadow_clients import (
    LabelShares,
    Shadow,
    sum_shadows,
    total_variation_distance,
    train_shadows,
)
from fedleak.errors import BadInput
from fedleak.updates.local_training import LocalTraining

CLASSES, SAMPLES, BATCH = 5, 60, 10
CENTRES = 1.5 * torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(1))


def samples(labels: Tensor, seed: int) -> Tensor:
    noise = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(seed))
    return CENTRES[labels] + noise


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, make: Any) -> dict[str, Tensor]:
    """The change of the weights by one epoch of torch's own optimiser."""
    own = copy.deepcopy(model)
    optimizer = make(own.parameters())
    for at in range(0, len(labels), BATCH):
        optimizer.zero_grad()
        loss(own, (inputs[at : at + BATCH], labels[at : at + BATCH])).backward()
        optimizer.step()
    before = model.state_dict()
    return {name: value.detach() - before[name] for name, value in own.named_parameters()}


def public() -> tuple[Tensor, Tensor]:
    labels = torch.arange(200) % CLASSES
    return samples(labels, 7), labels


@pytest.mark.parametrize(
    ("facts", "make"),
    [
        ({"learning_rate": 0.1, "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, 0.9)),
        ({"optimizer": "adam", "learning_rate": 0.01}, lambda p: torch.optim.Adam(p, 0.01)),
    ],
    ids=["sgd", "adam"],
)
def test_shares_of_labels_of_clients_with_private_data(facts: dict[str, Any], make: Any) -> None:
    model = network()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    training = LocalTraining(batch_size=BATCH, epochs=1, **facts)
    inputs, labels = public()
    shadows = list(
        train_shadows(
            model, sent, loss, training, inputs, labels, samples=SAMPLES, classes=CLASSES, number=80
        )
    )
    shares = LabelShares.fit(shadows, "2")
    truths, changes = [], []
    for client in range(12):
        generator = torch.Generator().manual_seed(100 + client)
        weights = torch.rand(CLASSES, generator=generator) ** 3
        own = torch.multinomial(weights, SAMPLES, replacement=True, generator=generator)
        changes.append(trained(model, samples(own, 200 + client), own, make))
        truths.append(torch.bincount(own, minlength=CLASSES).double() / SAMPLES)
    truth = torch.stack(truths)
    found = shares(changes)
    assert torch.allclose(found.sum(1), torch.ones(12, dtype=torch.float64))
    error = float(total_variation_distance(found, truth).mean())
    guess = float(total_variation_distance(torch.full_like(truth, 1 / CLASSES), truth).mean())
    assert error < 0.3 * guess
    # The error on shadows that were left out tells that of the clients.
    assert abs(error - shares.error) < 3 * shares.spread
    assert {name: bool((value == sent[name]).all()) for name, value in model.state_dict().items()}


def test_a_shadow_is_what_torchs_optimiser_trains() -> None:
    model = network()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    labels = torch.zeros(BATCH, dtype=torch.long)
    inputs = samples(labels, 3)
    training = LocalTraining(
        optimizer="adamw", learning_rate=0.01, weight_decay=0.1, batch_size=BATCH
    )
    (shadow,) = train_shadows(
        model, sent, loss, training, inputs, labels, samples=BATCH, classes=1, number=1
    )
    expected = trained(
        model, inputs, labels, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)
    )
    for name, value in expected.items():
        assert torch.allclose(shadow.change[name], value, atol=1e-6)
    assert shadow.shares.tolist() == [1.0]


def test_the_distance_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    truth = torch.tensor([[0.0, 0.5, 0.5], [0.2, 0.3, 0.5]])
    assert total_variation_distance(shares, truth).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"samples": 0}, "`samples` to be at least 1, got 0"),
        ({"concentration": 0.0}, "`concentration` above 0, got 0.0"),
        ({"classes": 6}, "public samples of each class, got none of class"),
        ({"training": LocalTraining()}, "`learning_rate`"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], sentence: str) -> None:
    model = network()
    inputs, labels = public()
    arguments: dict[str, Any] = {
        "training": LocalTraining(learning_rate=0.1), "samples": SAMPLES, "classes": CLASSES,
    } | change  # fmt: skip
    with pytest.raises(BadInput, match=sentence):
        list(
            train_shadows(
                model, model.state_dict(), loss, inputs=inputs, labels=labels, number=1, **arguments
            )
        )


def test_too_few_shadows_or_another_layer() -> None:
    shadow = Shadow({"a.weight": torch.zeros(2, 3)}, torch.tensor([0.5, 0.5]))
    with pytest.raises(BadInput, match="at least 10 shadow clients, got 3"):
        LabelShares.fit([shadow] * 3, "a")
    with pytest.raises(BadInput, match="got `b`"):
        LabelShares.fit([shadow] * 10, "b")


def test_federations_of_shadow_clients_are_means_of_those_of_one_fold() -> None:
    def shadow(number: int) -> Shadow:
        weight, shares = torch.full((2, 3), float(2**number)), torch.tensor([number / 20, 0.5])
        return Shadow({"out.weight": weight, "other": torch.ones(1)}, shares.double())

    federations = sum_shadows([shadow(n) for n in range(20)], "out", [0.75, 0.25])
    assert len(federations) == 20
    for number, found in enumerate(federations):
        assert list(found.change) == ["out.weight"]
        # Two clients of the same fold whose powers of two, so weighted, add up to the weight.
        fold = range(number % 5, 20, 5)
        pairs = [
            (0.75 * a + 0.25 * b) / 20
            for a in fold
            for b in fold
            if 0.75 * 2**a + 0.25 * 2**b == float(found.change["out.weight"][0, 0])
        ]
        assert len(pairs) == 1
        assert found.shares.tolist() == pytest.approx([pairs[0], 0.5])
    assert len({float(found.shares[0]) for found in federations}) > 10


def test_shares_of_all_clients_follow_from_the_sum_of_their_updates() -> None:
    inputs, labels = public()
    shadows = list(train_shadows(
        network(), network().state_dict(), loss, LocalTraining(learning_rate=0.1, batch_size=BATCH),
        inputs, labels, samples=SAMPLES, classes=CLASSES, number=130,
    ))  # fmt: skip
    clients, weights = shadows[:30], [1 / 6] * 6
    learned = LabelShares.fit(sum_shadows(shadows[30:], "2", weights), "2")
    sums = [clients[first : first + 6] for first in range(0, 30, 6)]
    changes = [
        {
            name: sum(client.change[name].double() for client in group) / 6
            for name in ("2.weight", "2.bias")
        }
        for group in sums
    ]
    truth = torch.stack([torch.stack([c.shares for c in group]).mean(0) for group in sums])
    distance = total_variation_distance(learned(changes), truth).mean()
    uniform = total_variation_distance(torch.full_like(truth, 1 / CLASSES), truth).mean()
    assert float(distance) < 0.05
    assert float(uniform) > 2 * float(distance)


def test_clients_of_several_sizes_are_made_in_turn() -> None:
    model = network()
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    labels = torch.arange(40) % CLASSES
    training = LocalTraining(learning_rate=0.1, epochs=1, batch_size=2)
    settings: dict[str, Any] = {"classes": CLASSES, "number": 4, "layer": "2"}
    given = model, sent, loss, training, samples(labels, 0), labels
    for number, shadow in enumerate(train_shadows(*given, samples=[3, 8], **settings)):
        counts = shadow.shares * (3, 8)[number % 2]
        torch.testing.assert_close(counts, counts.round())
        assert shadow.change.keys() == {"2.weight", "2.bias"}
    with pytest.raises(BadInput, match="Expected `samples` to be at least 1, got"):
        list(train_shadows(*given, samples=[], **settings))
