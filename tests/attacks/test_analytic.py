"""The closed form: exact where its setting holds, and a refusal where it does not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import Analytic
from fedleak.errors import BadInput
from fedleak.models import FedVAE
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate, gradient_to_weights
from tests.cases import MODELS, Victim, case_victim, client_gradient, several_steps

SMLP, DMLP, LENET = MODELS[0], MODELS[1], MODELS[2]
ITEMS = 60
MOMENTUM = LocalTraining(learning_rate=0.1, momentum=0.9, steps=3)


def user(*, dropout: float = 0.5, seed: int = 0, items: int = 8) -> Victim:
    """A user of a recommender and the gradient that comes of the user's items."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FedVAE(input_shape=(ITEMS,), hidden=16, code=6, dropout=dropout)
        inputs = torch.zeros(1, ITEMS)
        inputs[0, torch.randperm(ITEMS)[:items]] = 1
    labels = torch.zeros(1, dtype=torch.long)
    gradient, _ = client_gradient(model, inputs, labels, seed=seed)
    facts = Knowledge(model, (ITEMS,), 1, labels=labels)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "fedvae", sent, gradient)
    return Victim(update, facts, GroundTruth(inputs, labels))


def attacked(victim: Victim, **changes: Tensor) -> Tensor:
    received = dict(victim.update.received) | changes
    update = replace(victim.update, received=received)
    return Analytic()([update], victim.knowledge)[0].inputs


# --------------------------------------------------------------------------------- images


@pytest.mark.parametrize("precode", [False, True])
@pytest.mark.parametrize("case", [SMLP, DMLP], ids=str)
def test_the_image_itself_whatever_the_noise(case, precode: bool) -> None:
    victim = case_victim(case, precode=precode, dtype=torch.float64)
    (result,) = Analytic()([victim.update], victim.knowledge)
    torch.testing.assert_close(result.inputs, victim.truth.inputs, rtol=1e-9, atol=1e-9)
    assert result.cost < 1e-12
    assert result.iterations == 0


def test_the_image_itself_after_several_steps_of_sgd() -> None:
    victim = case_victim(DMLP, precode=True, dtype=torch.float64)
    several = several_steps(victim, batch_size=1, epochs=4)
    assert several.knowledge.local_steps == 4
    (result,) = Analytic()([several.update], several.knowledge)
    torch.testing.assert_close(result.inputs, victim.truth.inputs, rtol=1e-7, atol=1e-7)
    assert result.cost < 1e-10


def test_labels_are_recovered_where_they_are_not_known() -> None:
    victim = case_victim(SMLP, precode=False)
    (result,) = Analytic()([victim.update], replace(victim.knowledge, labels=None))
    assert torch.equal(result.labels, victim.truth.labels)


class Plain(nn.Sequential):
    """Layers one after the other, and cross entropy."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Scaled(Plain):
    """Does something to its input before the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - 1)


def test_an_image_that_the_model_changes_first_is_refused() -> None:
    layers = (nn.Flatten(), nn.Linear(3 * 64, 8), nn.Tanh(), nn.Linear(8, 4))
    plain, scaled = (Knowledge(kind(*layers), (3, 8, 8), 4) for kind in (Plain, Scaled))
    assert Analytic().refuses(plain) is None
    assert "takes the sample first and Scaled has none" in str(Analytic().refuses(scaled))


def test_weights_after_one_step_will_do() -> None:
    victim = case_victim(SMLP, precode=True)
    update, rate = victim.update, 0.1
    moved = gradient_to_weights(update.sent, update.received, learning_rate=rate)
    facts = replace(victim.knowledge, protocol="fedavg", learning_rate=rate)
    (result,) = Analytic()([replace(update, protocol="fedavg", received=moved)], facts)
    torch.testing.assert_close(result.inputs, victim.truth.inputs, rtol=1e-2, atol=1e-2)


def test_what_was_pruned_is_left_out() -> None:
    victim = case_victim(SMLP, precode=False, dtype=torch.float64)
    name = "features.1.weight"
    value = victim.update.received[name]
    largest = value.abs() >= value.abs().flatten().quantile(0.5)
    found = attacked(victim, **{name: value * largest})
    torch.testing.assert_close(found, victim.truth.inputs, rtol=1e-9, atol=1e-9)


def test_noise_in_some_rows_spoils_little_and_the_error_tells_how_much() -> None:
    victim = case_victim(SMLP, precode=False, dtype=torch.float64)
    name, bias = "features.1.weight", "features.1.bias"
    value = victim.update.received[name].clone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value[::2] += value.square().mean().sqrt() * torch.randn_like(value[::2])
        value[1::2] *= 1 + 1e-4 * torch.randn_like(value[1::2])
    update = replace(victim.update, received=dict(victim.update.received) | {name: value})
    (result,) = Analytic()([update], victim.knowledge)
    missed = float((result.inputs - victim.truth.inputs).square().mean().sqrt())
    signal = victim.update.received[bias]
    plain = (value.T @ signal / signal.square().sum()).reshape(victim.truth.inputs.shape)
    assert missed < 0.01 * float((plain - victim.truth.inputs).square().mean().sqrt())
    (finding,) = (finding for finding in result.findings if "in closed form" in finding)
    told = float(finding.rpartition(" ")[2])
    size = float(victim.truth.inputs.square().mean().sqrt())
    assert 0.2 * missed < told * size < 5 * missed


def test_the_cost_tells_that_it_is_not_what_it_is_taken_for() -> None:
    victim = case_victim(SMLP, precode=False)
    name = "features.1.weight"
    value = victim.update.received[name]
    update = replace(
        victim.update,
        received=dict(victim.update.received) | {name: value + value.std() * torch.randn(24, 64)},
    )
    assert Analytic()([update], victim.knowledge)[0].cost > 0.5


# ---------------------------------------------------------------------------------- users


@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.9])
def test_all_items_in_spite_of_dropout_and_noise(dropout: float) -> None:
    for seed in range(10):
        victim = user(dropout=dropout, seed=seed)
        assert torch.equal(attacked(victim), victim.truth.inputs)


def test_what_each_of_the_two_layers_tells() -> None:
    victim = user(dropout=0.5, seed=1)
    first, last = "encoder.0.weight", "decoder.2.bias"
    received = victim.update.received
    has = victim.truth.inputs[0] > 0
    # Without the output's bias, the items that the dropout has left.
    left = attacked(victim, **{last: torch.zeros(ITEMS)})[0] > 0
    assert (left <= has).all()
    assert 0 < left.sum() < has.sum()
    assert torch.equal(left, received[first].abs().sum(dim=0) > 0)
    # Without the first layer, all that have a negative entry.
    assert torch.equal(attacked(victim, **{first: torch.zeros(16, ITEMS)})[0] > 0, has)


def test_items_stand_out_of_a_little_noise() -> None:
    found, wrong = 0, 0
    for seed in range(10):
        victim = user(dropout=0.0, seed=seed)
        random = torch.Generator().manual_seed(seed)
        noisy = {
            name: value + 0.02 * value.norm() / value.numel() ** 0.5
            * torch.randn(value.shape, generator=random)
            for name, value in victim.update.received.items()
        }  # fmt: skip
        has, result = victim.truth.inputs > 0, attacked(victim, **noisy) > 0
        found, wrong = found + int((result & has).sum()), wrong + int((result & ~has).sum())
    assert found == 80
    assert wrong <= 4


def test_another_loss_says_nothing_by_its_signs() -> None:
    """Of an autoencoder with squared error the first layer alone is read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(ITEMS, 8), nn.Tanh(), nn.Linear(8, ITEMS))
    inputs = torch.zeros(1, ITEMS)
    inputs[0, [3, 11, 40]] = 1
    loss = (model(inputs) - inputs).square().sum()
    names = [name for name, _ in model.named_parameters()]
    received = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "own", dict(model.state_dict()), received)
    facts = Knowledge(
        model, (ITEMS,), 1, labels=torch.zeros(1, dtype=torch.long),
        loss=lambda model, batch: (model(batch[0]) - batch[0]).square().sum(),
    )  # fmt: skip
    assert torch.equal(Analytic()([update], facts)[0].inputs, inputs)


# ------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("changes", "case", "reason"),
    [
        ({"num_samples": 2}, SMLP, "analytic takes one sample and the update is of 2"),
        ({}, LENET, "takes the sample first and LeNet has none"),
    ],
)
def test_settings_that_do_not_allow_it(changes, case, reason: str) -> None:
    victim = case_victim(case, precode=False, batch=changes.get("num_samples", 1))
    facts = replace(victim.knowledge, **changes)
    assert reason in str(Analytic().refuses(facts))
    update = victim.update
    if facts.protocol == "fedavg":
        moved = gradient_to_weights(update.sent, update.received, learning_rate=0.1)
        update = replace(update, protocol="fedavg", received=moved)
    with pytest.raises(BadInput, match=reason):
        Analytic()([update], facts)


def test_a_layer_whose_weight_is_made_of_others_has_no_closed_form() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    facts = Knowledge(nn.Sequential(nn.Flatten(), layer), (1, 2, 2), 3)
    assert "Sequential has none" in str(Analytic().refuses(facts))


def test_no_bias_no_closed_form() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    facts = Knowledge(model, (1, 2, 2), 2)
    assert "Sequential has none" in str(Analytic().refuses(facts))
