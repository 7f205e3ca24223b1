"""The recommender: its loss, its noise, its ranking metrics, and attacks on it."""

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedleak.attacks import IGA, NRA
from fedleak.data import PlantedGroups
from fedleak.errors import BadInput
from fedleak.metrics import score_items
from fedleak.models import FedVAE
from fedleak.models.noise import inject, noise_slots, record
from fedleak.models.ranking import mask_given_items, ndcg, recall
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

ITEMS = 30


def vae(**settings: object) -> FedVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FedVAE(**({"input_shape": (ITEMS,), "hidden": 8, "code": 4} | settings))  # type: ignore[arg-type]


def vectors(count: int = 3, items: int = ITEMS) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return (torch.rand(count, items, generator=random) < 0.3).float()


# ------------------------------------------------------------------------------------ the model


def literal_loss(model: FedVAE, inputs: Tensor, mask: Tensor, eps: Tensor) -> float:
    """Liang et al., equations 2, 5 and 7, number by number."""
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    losses = []
    for x, kept, e in zip(inputs.double().numpy(), mask.numpy(), eps.numpy(), strict=True):
        h = x / math.sqrt((x**2).sum()) * kept
        h = np.tanh(weights["encoder.0.weight"] @ h + weights["encoder.0.bias"])
        h = weights["encoder.2.weight"] @ h + weights["encoder.2.bias"]
        mean, log_variance = h[:4], h[4:]
        z = mean + e * np.exp(log_variance / 2)
        h = np.tanh(weights["decoder.0.weight"] @ z + weights["decoder.0.bias"])
        logits = weights["decoder.2.weight"] @ h + weights["decoder.2.bias"]
        share = logits - math.log(np.exp(logits).sum())
        kl = sum((m * m + math.exp(v) - 1 - v) / 2 for m, v in zip(mean, log_variance, strict=True))
        losses.append(model.beta * kl - (share * x).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("training", [True, False])
def test_loss_by_hand(training: bool) -> None:
    model, inputs = vae(beta=0.3).train(training), vectors()
    with record(model) as notes:
        loss = model.batch_loss((inputs, torch.zeros(3, dtype=torch.long)))
    mask, eps = torch.ones(3, ITEMS), torch.zeros(3, 4)
    if training:
        mask, eps = notes["dropout"][0], notes["noise"][0]
    else:
        assert not any(notes.values())
    assert float(loss.detach()) == pytest.approx(literal_loss(model, inputs, mask, eps), rel=1e-5)


def test_sizes_are_the_papers() -> None:
    model = FedVAE(input_shape=(1000,))
    shapes = {tuple(value.shape) for name, value in model.named_parameters() if "weight" in name}
    assert shapes == {(600, 1000), (400, 600), (600, 200), (1000, 600)}
    assert (model.beta, model.dropout.probability) == (0.2, 0.5)


def test_slots() -> None:
    assert list(noise_slots(vae())) == ["dropout", "noise"]
    assert list(noise_slots(vae(dropout=0.0))) == ["noise"]


def test_noise_put_in_decides_the_loss() -> None:
    model, inputs = vae().train(), vectors()
    batch = (inputs, torch.zeros(3, dtype=torch.long))
    with record(model) as notes:
        loss = model.batch_loss(batch)
    with inject(model, {name: drawn[0] for name, drawn in notes.items()}):
        assert torch.equal(model.batch_loss(batch), loss)
    assert not torch.equal(model.batch_loss(batch), loss)


def test_gradients_under_torch_func_are_autograds() -> None:
    model, inputs = vae(dropout=0.0).eval().double(), vectors().double()
    names = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (row[None],))
        return -(logits.log_softmax(dim=-1) * row).sum()

    found = vmap(grad(loss), in_dims=(None, 0))(names, inputs)
    for position, row in enumerate(inputs):
        logits = model(row[None])
        expected = torch.autograd.grad(
            -(logits.log_softmax(dim=-1) * row).sum(), list(names.values()), allow_unused=True
        )
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name][position], value)


def test_beta_rises_and_stays() -> None:
    model = vae(beta=0.4, anneal_steps=8)
    found = []
    for step in range(12):
        if step in (0, 4, 8, 11):
            found.append(float(model.current_beta()))
        model.on_train_batch_end(None, (vectors(), torch.zeros(3)), 0)
    assert found == pytest.approx([0, 0.2, 0.4, 0.4])
    assert vae(beta=0.4).current_beta() == 0.4
    assert "steps" not in vae(beta=0.4).state_dict()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden": 0}, "`model.hidden` to be at least 1, got 0"),
        ({"code": 0}, "`model.code` to be at least 1, got 0"),
        ({"anneal_steps": -1}, "`model.anneal_steps` to be at least 0, got -1"),
        ({"beta": -0.1}, "`model.beta` to be at least 0, got -0.1"),
        ({"dropout": 1.0}, "`dropout` to be from 0 to below 1, got 1.0"),
        ({"learning_rate": 0.0}, "`model.learning_rate` to be positive, got 0.0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        vae(**settings)


# ---------------------------------------------------------------------------- the ranking metrics


def test_training_finds_the_planted_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "level", logging.ERROR)
    data = PlantedGroups()
    torch.manual_seed(0)
    model = FedVAE(input_shape=data.input_shape, hidden=64, code=16)
    trainer = pl.Trainer(
        max_epochs=40, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, data)
    (found,) = trainer.test(model, data, verbose=False)
    given = torch.stack([pair[0] for pair in data.test_set])
    hidden = torch.stack([pair[1] for pair in data.test_set])
    popular = torch.from_numpy(data.train_set.matrix.sum(axis=0)).float()
    ranked = mask_given_items(popular.expand(len(given), -1), given)
    assert found["test/recall@20"] > 2 * recall(ranked, hidden, 20).mean()
    assert found["test/ndcg@100"] > 1.3 * ndcg(ranked, hidden, 100).mean()


# ------------------------------------------------------------------------------------ the attacks


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_noise_restoring_attack_reads_a_users_items(dropout: float) -> None:
    model, inputs = vae(dropout=dropout).train(), vectors(1)
    labels = torch.zeros(1, dtype=torch.long)
    sent = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    with record(model) as notes:
        loss = batch_loss(model, (inputs, labels))
    gradient = torch.autograd.grad(loss, model.parameters())
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate(
        1, 0, "fedsgd", 1, "fedvae", sent, dict(zip(names, gradient, strict=True))
    )
    knowledge = Knowledge(
        model=model, input_shape=(ITEMS,), num_classes=1, labels=labels, value_range=(0.0, 1.0)
    )
    (found,) = NRA(iterations=300, learning_rate=0.03, restarts=4)([update], knowledge)
    assert torch.equal((found.inputs >= 0.6).float(), inputs)
    assert set(found.noise) == ({"dropout", "noise"} if dropout else {"noise"})
    (blind,) = IGA(iterations=300, learning_rate=0.03, restarts=4)([update], knowledge)
    assert found.cost < 0.1 * blind.cost
    truth = GroundTruth(inputs, labels, {name: drawn[0] for name, drawn in notes.items()})
    ((seeing,), (guessing,)) = (score_items(truth, result) for result in (found, blind))
    assert seeing.mse < 0.1 * guessing.mse
    # A guess of 0 would be off by about 1.
    assert ((found.noise["noise"] - truth.noise["noise"]) ** 2).mean() < 0.5


def test_the_slots_that_are_restored_can_be_chosen() -> None:
    model, inputs = vae(dropout=0.5).train(), vectors(1)
    labels = torch.zeros(1, dtype=torch.long)
    gradient = torch.autograd.grad(batch_loss(model, (inputs, labels)), model.parameters())
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate(
        1, 0, "fedsgd", 1, "fedvae", dict(model.state_dict()),
        dict(zip(names, gradient, strict=True)),
    )  # fmt: skip
    knowledge = Knowledge(
        model=model, input_shape=(ITEMS,), num_classes=1, labels=labels, value_range=(0.0, 1.0)
    )
    (every,), (chosen,), (one,) = (
        attack([update], knowledge)
        for attack in (
            NRA(iterations=30), IGA(**BY_DEFAULT | {"iterations": 30}, noise_slots=["*"]),
            NRA(iterations=30, noise_slots=["noi*"]),
        )
    )  # fmt: skip
    assert torch.equal(every.inputs, chosen.inputs)
    assert set(every.noise) == set(chosen.noise) == {"dropout", "noise"}
    assert set(one.noise) == {"noise"}
    assert not torch.equal(one.inputs, every.inputs)
    with pytest.raises(BadInput, match="`noise_slots` eps fits no noise slot of FedVAE, which has"):
        NRA(noise_slots=["eps"])([update], knowledge)


# What NRA does on a user's items unless it is told otherwise.
BY_DEFAULT: dict[str, Any] = {
    "iterations": 500, "learning_rate": 0.03, "cost": "relative_error", "start": "zeros",
}  # fmt: skip


@pytest.mark.parametrize(("items", "own"), [(500, 4), (200, 90)])
def test_users_with_few_items_or_many_are_read_by_default(items: int, own: int) -> None:
    model = vae(input_shape=(items,), hidden=64, code=20, dropout=0.0).train()
    inputs = torch.zeros(1, items)
    inputs[0, torch.randperm(items, generator=torch.Generator().manual_seed(2))[:own]] = 1
    labels = torch.zeros(1, dtype=torch.long)
    torch.manual_seed(6)
    gradient = torch.autograd.grad(batch_loss(model, (inputs, labels)), model.parameters())
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate(
        1, 0, "fedsgd", 1, "fedvae", dict(model.state_dict()),
        dict(zip(names, gradient, strict=True)),
    )  # fmt: skip
    knowledge = Knowledge(
        model=model, input_shape=(items,), num_classes=1, labels=labels, value_range=(0.0, 1.0)
    )
    (found,) = NRA()([update], knowledge)
    assert torch.equal((found.inputs >= 0.6).float(), inputs)
    assert found.explained > 0.9


def test_vectors_have_no_total_variation() -> None:
    model, inputs = vae(dropout=0.0).eval(), vectors(1)
    labels = torch.zeros(1, dtype=torch.long)
    gradient = torch.autograd.grad(batch_loss(model, (inputs, labels)), model.parameters())
    names = [name for name, _ in model.named_parameters()]
    update = InterceptedUpdate(
        1, 0, "fedsgd", 1, "fedvae", dict(model.state_dict()),
        dict(zip(names, gradient, strict=True)),
    )  # fmt: skip
    knowledge = Knowledge(
        model=model, input_shape=(ITEMS,), num_classes=1, labels=labels, training=False
    )
    found = [
        IGA(iterations=20, total_variation=weight)([update], knowledge)[0].inputs
        for weight in (0.0, 10.0)
    ]
    assert torch.equal(*found)
