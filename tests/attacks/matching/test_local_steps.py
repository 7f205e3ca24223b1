"""Several local steps: what a client would send, against a client that takes them with torch."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional

from fedleak.attacks import DLG, IGA, NRA
from fedleak.attacks.base import _prepare
from fedleak.attacks.matching import engine as matching
from fedleak.attacks.matching.costs import COSTS
from fedleak.attacks.matching.local_steps import (
    DummyUpdate,
    cannot_simulate,
    compared_update,
    reason_to_average,
    smoothing_at,
)
from fedleak.errors import BadInput
from fedleak.models import inject
from fedleak.models.noise import NormalNoise
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.local_training import LocalTraining, OptimizerName
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import (
    LIGHT_MODELS,
    RATE,
    ModelCase,
    Victim,
    case_victim,
    make_victim,
    several_steps,
    smooth_victim,
)
from tests.reference import cost_of, dense_gradient
from tests.toys import Normalised


def toy_victim(model: nn.Module, inputs: Tensor, labels: Tensor) -> Victim:
    """A client with these samples, of three classes, that has not trained yet."""
    shape = tuple(inputs.shape[1:])
    facts = Knowledge(model, shape, 3, num_samples=len(inputs), labels=labels)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    update = InterceptedUpdate(1, 0, "fedsgd", len(inputs), "toy", sent, {})
    return Victim(update, facts, GroundTruth(inputs, labels))


def dummy_of(victim: Victim) -> DummyUpdate:
    model = copy.deepcopy(victim.model).requires_grad_(False)
    truth = victim.truth
    return DummyUpdate(model, victim.knowledge, (truth.inputs, truth.labels), truth.noise)


def target_of(dummy: DummyUpdate, gradient: Tensors) -> dict[str, tuple[Tensor, ...]]:
    samples = dummy._facts.num_samples
    return {
        n: tuple(v[0] for v in found) for n, found in dummy.targets([gradient], samples).items()
    }


def assert_is_gradient(victim: Victim, gradient: Tensors, *, names: set[str] | None = None) -> None:
    """What is simulated of the truth has this gradient's products, with itself and with noise."""
    dummy = dummy_of(victim)
    torch.manual_seed(5)
    for target in ({n: torch.randn_like(v) for n, v in gradient.items()}, gradient):
        products, _, _ = dummy.evaluate(*_truth(victim), target_of(dummy, target))
        assert products.keys() == gradient.keys()
        for name in names or gradient.keys():
            value = gradient[name]
            expected = ((value * target[name]).sum(), value.square().sum())
            for found, wanted in zip(products[name][:2], expected, strict=True):
                torch.testing.assert_close(
                    found, wanted, rtol=1e-7, atol=1e-12,
                    msg=lambda text, name=name: f"{name}: {text}",
                )  # fmt: skip


def literal_mean(victim: Victim, inputs: Tensor, noise: Tensors) -> Tensors:
    """The mean gradient by plain autograd, with a graph through all steps."""
    facts = victim.knowledge
    weights = dict(victim.model.named_parameters())
    size, total = facts.batch_size or len(inputs), dict.fromkeys(weights, 0)
    for epoch in range(facts.epochs):
        for at in range(0, len(inputs), size):
            part = slice(at, at + size)
            drawn = {n: v[part, epoch] if facts.epochs > 1 else v[part] for n, v in noise.items()}
            batch = inputs[part], victim.truth.labels[part]
            with inject(victim.model, drawn):
                loss = torch.func.functional_call(
                    _Loss(victim.model), {f"model.{n}": v for n, v in weights.items()}, (batch,)
                )
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            total = {n: total[n] + g for n, g in zip(weights, found, strict=True)}
            weights = {
                n: w - facts.local.rate * g
                for (n, w), g in zip(weights.items(), found, strict=True)
            }
    return {name: value / facts.steps for name, value in total.items()}


class _Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch_loss(self.model, batch)


STEPS = [(3, 1), (3, 2), (2, 1), (1, 3)]


@pytest.mark.parametrize(("batch_size", "epochs"), STEPS)
@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", LIGHT_MODELS, ids=str)
def test_what_a_client_sends(case: ModelCase, precode: bool, batch_size: int, epochs: int) -> None:
    victim = several_steps(
        case_victim(case, precode=precode, batch=3, dtype=torch.float64),
        batch_size=batch_size, epochs=epochs,
    )  # fmt: skip
    assert_is_gradient(victim, victim.update.gradient(victim.model, victim.knowledge))


@pytest.mark.parametrize(("batch_size", "epochs"), STEPS)
def test_derivatives_go_through_all_steps(batch_size: int, epochs: int) -> None:
    victim = several_steps(
        case_victim(LIGHT_MODELS[2], precode=True, batch=3, dtype=torch.float64),
        batch_size=batch_size, epochs=epochs,
    )  # fmt: skip
    dummy, labels = dummy_of(victim), victim.truth.labels
    sent = victim.update.gradient(victim.model, victim.knowledge)
    target = target_of(dummy, sent)
    torch.manual_seed(0)
    inputs = torch.randn_like(victim.truth.inputs)
    noise = {n: torch.randn_like(v) for n, v in victim.truth.noise.items()}

    def clever(x: Tensor, eps: Tensors) -> Tensor:
        return COSTS["cosine"](dummy.evaluate(x, labels, eps, target)[0])

    leaf = inputs.clone().requires_grad_()
    slots = {n: v.clone().requires_grad_() for n, v in noise.items()}
    literal = cost_of("cosine", literal_mean(victim, leaf, slots), sent)
    wanted = torch.autograd.grad(literal, [leaf, *slots.values()])
    towards, noise_towards = grad(clever, argnums=(0, 1))(inputs, noise)
    for value, expected in zip([towards, *noise_towards.values()], wanted, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-12)
    rows = vmap(grad(clever, argnums=0))(torch.stack([inputs, victim.truth.inputs]), _twice(noise))
    torch.testing.assert_close(rows[0], towards, rtol=1e-9, atol=1e-14)


def test_one_step_is_the_gradient() -> None:
    victim = case_victim(LIGHT_MODELS[0], precode=True, batch=2, dtype=torch.float64)
    facts = victim.knowledge.with_training(learning_rate=RATE)
    victim = victim._replace(knowledge=facts)
    assert_is_gradient(victim, dense_gradient(victim.model, *_truth(victim)))


@pytest.mark.parametrize("frozen", ["classifier.weight", "classifier.bias", "features.0.weight"])
def test_frozen_parameters_stay(frozen: str) -> None:
    victim = case_victim(LIGHT_MODELS[2], precode=False, batch=2, dtype=torch.float64)
    victim.model.get_parameter(frozen).requires_grad_(False)
    several = several_steps(victim, batch_size=1, epochs=2)
    sent = several.update.gradient(several.model, several.knowledge)
    assert not bool(sent[frozen].any())
    assert_is_gradient(several, sent, names=sent.keys() - {frozen})


def test_a_model_that_is_frozen_as_a_whole_was_frozen_for_the_attack() -> None:
    several = several_steps(
        case_victim(LIGHT_MODELS[2], precode=False, batch=2, dtype=torch.float64),
        batch_size=1, epochs=2,
    )  # fmt: skip
    sent = several.update.gradient(several.model, several.knowledge)
    several.model.requires_grad_(False)
    assert_is_gradient(several, sent)


def test_batch_norm_sees_the_batches_own_statistics() -> None:
    model = Normalised().double()
    seen: list[Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.train()
    for part in (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        batch_loss(model, (inputs[part], labels[part])).backward()
        optimizer.step()
    hook.remove()
    received = {n: v.detach().clone() for n, v in model.state_dict().items()}
    model.load_state_dict(sent)
    facts = Knowledge(
        model,
        (1, 6, 6),
        3,
        num_samples=4,
        protocol="fedavg",
        learning_rate=RATE,
        local_steps=2,
        batch_size=2,
    )
    update = InterceptedUpdate(1, 0, "fedavg", 4, "toy", sent, received)
    victim = Victim(update, facts, GroundTruth(inputs, labels))
    sent = update.gradient(model, facts)
    assert_is_gradient(victim, sent)
    dummy = dummy_of(victim)
    _, statistics, _ = dummy.evaluate(inputs, labels, {}, target_of(dummy, sent))
    means = torch.stack([value.mean(dim=(0, 2, 3)) for value in seen]).mean(dim=0)
    torch.testing.assert_close(statistics["norm"][0], means)


def test_simulated_steps_end_where_the_client_began_and_averaged_ones_do_not() -> None:
    """The truth costs nothing if the steps are simulated, and something if they are averaged."""
    victim = several_steps(
        case_victim(LIGHT_MODELS[2], precode=False, batch=2, dtype=torch.float64),
        batch_size=1, epochs=2,
    )  # fmt: skip
    sent = victim.update.gradient(victim.model, victim.knowledge)
    dummy = dummy_of(victim)
    products, _, _ = dummy.evaluate(*_truth(victim), target_of(dummy, sent))
    averaged = dense_gradient(victim.model, *_truth(victim)[:2])
    assert COSTS["cosine"](products) < 1e-12
    assert cost_of("cosine", averaged, sent) > 1e-4


@pytest.mark.parametrize(("batch_size", "epochs"), [(2, 3), (1, 1)])
def test_noise_of_every_epoch_is_restored(batch_size: int, epochs: int) -> None:
    victim = several_steps(
        case_victim(LIGHT_MODELS[0], precode=True, batch=2), batch_size=batch_size, epochs=epochs
    )
    (result,) = NRA(iterations=6)([victim.update], victim.knowledge)
    (slot,) = result.noise
    shape = (2, epochs, 5) if epochs > 1 else (2, 5)
    assert tuple(result.noise[slot].shape) == shape == tuple(victim.truth.noise[slot].shape)
    found = result.findings[0]
    assert found.startswith(f"{victim.knowledge.local_steps} local steps simulated: {epochs} epoch")
    # The cost that is told is that of what was found.
    dummy = dummy_of(victim)
    target = target_of(dummy, victim.update.gradient(victim.model, victim.knowledge))
    products, _, _ = dummy.evaluate(result.inputs, result.labels, result.noise, target)
    assert result.cost == pytest.approx(float(COSTS["cosine"](products)), rel=1e-3)


def test_averaged_if_asked_or_not_to_be_simulated() -> None:
    victim = several_steps(
        case_victim(LIGHT_MODELS[0], precode=True, batch=2), batch_size=1, epochs=1
    )
    off = NRA(iterations=2, simulate_steps=False)([victim.update], victim.knowledge)[0]
    assert off.findings[0] == "mean gradient of 2 local steps attacked, as `simulate_steps` is off"
    other = victim.knowledge.with_training(optimizer="unknown")
    unknown = NRA(iterations=2)([victim.update], other)[0]
    assert unknown.findings[0] == (
        "change of weights by 2 local steps attacked as a gradient, which it is not, as the "
        "clients' optimiser is not known"
    )
    assert math.isnan(unknown.explained)
    assert torch.equal(off.inputs, unknown.inputs)
    with pytest.raises(BadInput, match="is not available, as the clients' optimiser is"):
        NRA(iterations=2, simulate_steps=True)([victim.update], other)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 3}, "3 local steps are no whole epochs of 2 batches"),
        ({"batch_size": None}, "`batch_size`, the samples of a local step, is not known"),
        ({"optimizer": "unknown"}, "the clients' optimiser is not known"),
    ],
)
def test_what_cannot_be_simulated(changes: dict[str, Any], reason: str) -> None:
    victim = case_victim(LIGHT_MODELS[0], precode=False, batch=2)
    facts = replace(victim.knowledge, protocol="fedavg").with_training(steps=2, batch_size=1)
    assert cannot_simulate(facts) is None
    assert cannot_simulate(facts.with_training(**changes)) == reason
    slots = {"drawer": (6, 5)}
    assert cannot_simulate(facts, slots) == "drawer draws 6 rows for 2 samples"


class Drawer(nn.Module):
    """Draws once for both samples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drawer = nn.Linear(2 * 3 * 8 * 8, 4), NormalNoise()

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        both = batch[0].reshape(1, -1)
        return self.layer(both + self.drawer(both)).square().sum()


def test_noise_that_cannot_be_simulated_is_refused_if_asked_for() -> None:
    torch.manual_seed(0)
    victim = make_victim(Drawer(), (3, 8, 8), batch=2)
    facts = victim.knowledge.with_training(learning_rate=RATE, steps=2, batch_size=2)
    victim = victim._replace(update=replace(victim.update, protocol="delta"))
    with pytest.raises(BadInput, match="but drawer draws 1 rows for 2 samples: leave"):
        NRA(iterations=2, simulate_steps=True)([victim.update], facts)
    (found,) = NRA(iterations=2)([victim.update], facts)
    assert (
        "mean gradient of 2 local steps attacked, as drawer draws 1 rows for 2 samples"
        in found.findings
    )


def test_many_steps_are_simulated_only_if_asked() -> None:
    facts = replace(case_victim(LIGHT_MODELS[0], precode=False).knowledge, protocol="fedavg")
    facts = facts.with_training(steps=33)
    assert "more than 32 are simulated only with `simulate_steps: true`" in reason_to_average(
        facts, {}
    )
    assert reason_to_average(facts, {}, True) is None
    assert reason_to_average(facts.with_training(steps=32), {}) is None


def test_one_step_is_not_simulated_whatever_is_asked() -> None:
    victim = case_victim(LIGHT_MODELS[0], precode=False, batch=2)
    facts = victim.knowledge.with_training(optimizer="unknown")
    (result,) = IGA(iterations=2, simulate_steps=True)([victim.update], facts)
    assert not any("step" in finding for finding in result.findings)


def test_updates_of_other_steps_are_attacked_as_if_alone() -> None:
    victim = case_victim(LIGHT_MODELS[0], precode=True, batch=2, dtype=torch.float64)
    victims = [
        several_steps(victim, batch_size=1, epochs=1),
        several_steps(victim, batch_size=2, epochs=3),
        several_steps(victim, batch_size=1, epochs=2),
    ]
    attack = NRA(iterations=4)
    updates = [replace(item.update, client=at) for at, item in enumerate(victims)]
    together = attack(updates, [item.knowledge for item in victims])
    for update, item, found in zip(updates, victims, together, strict=True):
        (alone,) = attack([update], item.knowledge)
        torch.testing.assert_close(found.inputs, alone.inputs, rtol=1e-9, atol=1e-9)
        assert found.noise.keys() == alone.noise.keys()
        assert found.findings == alone.findings
        assert found.cost == pytest.approx(alone.cost, rel=1e-6)


class TimeFirst(nn.Module):
    """A linear layer that takes samples in its second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        rows = batch[0].reshape(len(batch[0]), 4, 4).transpose(0, 1)
        return functional.cross_entropy(self.layer(rows).sigmoid().mean(dim=0), batch[1])


def test_a_last_batch_of_less_samples_in_any_layout() -> None:
    torch.manual_seed(0)
    model = TimeFirst().double()
    inputs, labels = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    several = several_steps(toy_victim(model, inputs, labels), batch_size=2, epochs=2)
    assert_is_gradient(several, several.update.gradient(model, several.knowledge))


class Tied(nn.Module):
    """A layer that is called twice, and one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.first.weight
        self.again = nn.Linear(16, 16)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.twin(self.first(batch[0].flatten(1)).sigmoid()).sigmoid()
        hidden = self.again(self.again(hidden).sigmoid()).sigmoid()
        return functional.cross_entropy(self.head(hidden), batch[1])


def test_layers_called_twice_and_shared_weights() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    inputs, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2])
    several = several_steps(toy_victim(model, inputs, labels), batch_size=1, epochs=2)
    assert_is_gradient(several, several.update.gradient(model, several.knowledge))


def test_labels_that_are_recovered_are_said_to_be_in_no_order() -> None:
    victim = several_steps(
        case_victim(LIGHT_MODELS[0], precode=False, batch=2), batch_size=1, epochs=1
    )
    facts = replace(victim.knowledge, labels=None)
    (result,) = IGA(iterations=2)([victim.update], facts)
    assert result.findings[1] == "the order of the labels over the steps is not known"


@pytest.mark.parametrize("batch_norm", [0.0, 0.1])
def test_traced_steps_are_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch, batch_norm: float
) -> None:
    monkeypatch.setattr(matching, "TRACE_FROM", 20)
    model = Normalised().double()
    inputs, labels = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 2])
    victim = several_steps(toy_victim(model, inputs, labels), batch_size=1, epochs=1)
    found = [
        IGA(iterations=20, learning_rate=0.2, batch_norm=batch_norm, compile=compiler)(
            [victim.update], victim.knowledge
        )[0]
        for compiler in ("off", "trace")
    ]
    torch.testing.assert_close(found[0].inputs, found[1].inputs, rtol=1e-6, atol=1e-6)
    assert found[0].cost < 0.5 * found[0].costs[0][1]


def test_labels_are_restored_through_several_steps() -> None:
    victim = several_steps(smooth_victim(), batch_size=1, epochs=2)
    (result,) = DLG(iterations=15)([victim.update], victim.knowledge)
    assert torch.equal(result.labels, victim.truth.labels)
    error = (result.inputs - victim.truth.inputs).square().mean()
    assert error < 0.05 * victim.truth.inputs.var()


def test_an_attack_that_simulates_finds_the_image() -> None:
    """An image that four steps were taken on, from a start that is far away."""
    victim = case_victim(LIGHT_MODELS[0], precode=False, dtype=torch.float64)
    several = several_steps(victim, batch_size=1, epochs=4)
    attack = IGA(iterations=300, learning_rate=0.1, total_variation=0.0)
    (found,) = attack([several.update], several.knowledge)
    error = functional.mse_loss(found.inputs, several.truth.inputs)
    assert error < 0.05 * several.truth.inputs.var()


def _truth(victim: Victim) -> tuple[Tensor, Tensor, Tensors]:
    return victim.truth.inputs, victim.truth.labels, victim.truth.noise


def _twice(noise: Tensors) -> Tensors:
    return {name: torch.stack([value, value]) for name, value in noise.items()}


# ------------------------------------------------------------------------- every optimiser


OPTIMISERS: list[tuple[OptimizerName, Any, dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "maximize": True}),
    ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("adam", torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.01}),
    ("adam", torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}),
    ("adamw", torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    ("rmsprop", torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.5, "centered": True}),
    ("adagrad", torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.01}),
]


def trained_by(
    name: OptimizerName, kind: Any, settings: dict[str, Any], dtype: torch.dtype, frozen: str = ""
) -> Victim:
    """A client who took ten steps of torch's optimiser: five epochs of batches of 3 and 2 samples.

    The rate falls from step to step, and biases have a rate of their own.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 3)
    ).to(dtype)
    inputs, labels = torch.randn(5, 1, 6, 6, dtype=dtype), torch.tensor([0, 2, 1, 1, 0])
    own = copy.deepcopy(model)
    groups = {
        biased: [v for n, v in own.named_parameters() if n.endswith("bias") is biased]
        for biased in (False, True)
    }
    if frozen:
        own.get_parameter(frozen).requires_grad_(False)
    optimizer = kind(
        [{"params": groups[False]}, {"params": groups[True], "lr": settings["lr"] / 2}], **settings
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(5):
        for part in (slice(0, 3), slice(3, 5)):
            optimizer.zero_grad()
            functional.cross_entropy(own(inputs[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    told = {"learning_rate" if n == "lr" else n: value for n, value in settings.items()}
    local = LocalTraining(
        optimizer=name, steps=10, batch_size=3, schedule=lambda step: 1 / (1 + step),
        per_parameter={"*.bias": {"learning_rate": settings["lr"] / 2}}, **told,
    )  # fmt: skip
    facts = Knowledge(
        model, (1, 6, 6), 3, num_samples=5, labels=labels, protocol="fedavg", local_training=local,
        loss=lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1]),
    )  # fmt: skip
    sent, received = (
        {n: value.detach().clone() for n, value in net.state_dict().items()} for net in (model, own)
    )
    update = InterceptedUpdate(1, 0, "fedavg", 5, "toy", sent, received)
    return Victim(update, facts, GroundTruth(inputs, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "kind", "settings"), OPTIMISERS, ids=str)
def test_ten_steps_of_every_optimiser(
    name: OptimizerName, kind: Any, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    victim = trained_by(name, kind, settings, dtype)
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    wanted = compared_update(problem)
    dummy = dummy_of(victim)
    target = target_of(dummy, wanted)
    products, _, _ = dummy.evaluate(*_truth(victim), target)
    assert float(1 - COSTS["cosine"](products)) > 0.9999
    rounding = 3e-3 if dtype == torch.float32 else 1e-7
    for name, (inner, ours, theirs) in products.items():
        assert float(ours - 2 * inner + theirs) <= rounding**2 * float(theirs), name
    # Costs are compared by vmap's rows, and differentiated, as one at a time.
    torch.manual_seed(1)
    inputs = torch.randn_like(victim.truth.inputs)
    costs = vmap(lambda x: COSTS["cosine"](dummy.evaluate(x, _truth(victim)[1], {}, target)[0]))
    both = costs(torch.stack([inputs, victim.truth.inputs]))
    assert float(both[1]) < 1e-4 < float(both[0])


@pytest.mark.parametrize(("name", "kind", "settings"), [OPTIMISERS[2], OPTIMISERS[5]], ids=str)
def test_derivatives_go_through_the_optimisers_state(
    name: OptimizerName, kind: Any, settings: dict[str, Any]
) -> None:
    victim = trained_by(name, kind, settings, torch.float64)
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    dummy = dummy_of(victim)
    target = target_of(dummy, compared_update(problem))
    torch.manual_seed(1)
    inputs, direction = torch.randn(2, 5, 1, 6, 6, dtype=torch.float64).unbind()

    def cost(x: Tensor) -> Tensor:
        return COSTS["cosine"](dummy.evaluate(x, victim.truth.labels, {}, target)[0])

    slope = float((grad(cost)(inputs) * direction).sum())
    step = 1e-6
    literal = float(cost(inputs + step * direction) - cost(inputs - step * direction)) / (2 * step)
    assert slope == pytest.approx(literal, rel=1e-5)


@pytest.mark.parametrize("left_out", [True, False])
def test_a_parameter_that_did_not_move_is_not_moved(left_out: bool) -> None:
    """The client froze a layer, which the model does not tell; the update does."""
    victim = trained_by(*OPTIMISERS[3], torch.float64, frozen="0.weight")
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    assert problem.left_out == {"0.weight"}
    model = copy.deepcopy(victim.model).requires_grad_(False)
    truth = victim.truth
    dummy = DummyUpdate(
        model, victim.knowledge, (truth.inputs, truth.labels), {},
        problem.left_out if left_out else (),
    )  # fmt: skip
    products, _, _ = dummy.evaluate(*_truth(victim), target_of(dummy, compared_update(problem)))
    del products["0.weight"]
    assert (float(COSTS["cosine"](products)) < 1e-12) is left_out


def test_smoothing_vanishes_before_the_end() -> None:
    assert smoothing_at(0.0) == 1
    assert smoothing_at(0.375) == pytest.approx(1e-2)
    assert smoothing_at(0.75) == smoothing_at(1.0) == 0


def test_the_cost_of_smoothed_steps_is_that_of_the_clients_own() -> None:
    victim = trained_by(*OPTIMISERS[5], torch.float64)
    attack = IGA(iterations=4, learning_rate=0.05, simulate_steps=True)
    (result,) = attack([victim.update], victim.knowledge)
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    dummy = dummy_of(victim)
    target = target_of(dummy, compared_update(problem))
    products, _, _ = dummy.evaluate(result.inputs, result.labels, {}, target)
    assert result.cost == pytest.approx(float(COSTS["cosine"](products)), rel=1e-9)
    smoothed, _, _ = dummy.evaluate(
        result.inputs, result.labels, {}, target, torch.tensor(smoothing_at(0.5))
    )
    assert float(COSTS["cosine"](smoothed)) != pytest.approx(result.cost, rel=1e-3)
    assert result.findings[0] == "10 local steps simulated: 5 epochs of 2 batches"


def test_several_steps_of_adam_that_are_not_simulated_are_no_gradient() -> None:
    victim = trained_by(*OPTIMISERS[5], torch.float64)
    (result,) = IGA(iterations=1, simulate_steps=False)([victim.update], victim.knowledge)
    assert result.findings[0] == (
        "change of weights by 10 steps of adamw attacked as a gradient, which it is not, as "
        "`simulate_steps` is off"
    )
