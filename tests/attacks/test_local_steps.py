"""Several local steps: what a client would send, against a client that takes them with torch."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional

from fedleak.attacks import IGA, NRA
from fedleak.attacks.costs import COSTS
from fedleak.attacks.local_steps import DummyUpdate, cannot_simulate
from fedleak.errors import BadInput
from fedleak.models import inject
from fedleak.updates import GroundTruth, InterceptedUpdate, Knowledge, Tensors, batch_loss
from tests.cases import LIGHT_MODELS, RATE, ModelCase, Victim, case_victim, several_steps
from tests.reference import cost_of, dense_gradient
from tests.toys import Normalised


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
                n: w - facts.learning_rate * g
                for (n, w), g in zip(weights.items(), found, strict=True)
            }
    return {name: value / facts.local_steps for name, value in total.items()}


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
    assert_is_gradient(victim, dense_gradient(victim.model, *_truth(victim)))


@pytest.mark.parametrize("frozen", ["classifier.weight", "classifier.bias", "features.0.weight"])
def test_frozen_parameters_stay(frozen: str) -> None:
    victim = case_victim(LIGHT_MODELS[2], precode=False, batch=2, dtype=torch.float64)
    victim.model.get_parameter(frozen).requires_grad_(False)
    several = several_steps(victim, batch_size=1, epochs=2)
    sent = several.update.gradient(several.model, several.knowledge)
    assert not bool(sent[frozen].any())
    assert_is_gradient(several, sent, names=sent.keys() - {frozen})
    assert bool(several.update.received["classifier.bias"].isfinite().all())


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
        model, (1, 6, 6), 3, num_samples=4, learning_rate=RATE, local_steps=2, batch_size=2
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
    assert result.findings == (f"{victim.knowledge.local_steps} local steps simulated",)
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
    assert off.findings == ("2 local steps taken for one, as `simulate_steps` is off",)
    other = replace(victim.knowledge, plain_sgd=False)
    adam = NRA(iterations=2)([victim.update], other)[0]
    assert adam.findings == (
        "2 local steps taken for one, as the clients' optimiser is not plain SGD",
    )
    assert torch.equal(off.inputs, adam.inputs)
    with pytest.raises(BadInput, match=r"not plain SGD, so that they cannot be simulated"):
        NRA(iterations=2, simulate_steps=True)([victim.update], other)
    broken = replace(victim.knowledge, local_steps=3)
    assert cannot_simulate(broken) == "3 local steps are no whole epochs of 2 batches"


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
