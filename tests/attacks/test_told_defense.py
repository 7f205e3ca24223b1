"""A defence that the server knows: checked against the update, and used by the attacks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedleak import attack
from fedleak.attacks import IGA, RGAP, Analytic, ExactBatch, ExactNRA
from fedleak.attacks.told_defense import told_defense
from fedleak.defenses import (
    Censor,
    Defense,
    GradientDropout,
    NoisyGradients,
    Outgoing,
    Percentile,
    Pruning,
    Quantization,
    TopK,
    protect,
)
from fedleak.errors import BadInput
from fedleak.models import SMLP, LeNet, Precode
from fedleak.models.noise import record
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate
from tests.cases import pictures

SHAPE = (1, 8, 8)


def client(
    model: nn.Module, defense: Defense, *, samples: int = 1, rate: float | None = None
) -> tuple[InterceptedUpdate, Knowledge, Tensor]:
    """A client's update through a defence, what the server knows of it, and the inputs."""
    torch.manual_seed(5)
    inputs, labels = pictures(samples, SHAPE).float(), torch.arange(samples) % 4
    names, weights = zip(*model.named_parameters(), strict=True)
    with record(model) as drawn:
        gradient = torch.autograd.grad(model.batch_loss((inputs, labels)), weights)
    noise = {slot: torch.cat(values).detach() for slot, values in drawn.items() if values}
    factor = 1.0 if rate is None else -rate
    update = {n: factor * value for n, value in zip(names, gradient, strict=True)}
    outgoing = Outgoing(update, model, (inputs, labels), noise)
    sent, _ = protect([defense], outgoing, seed=1, memory={})
    given = {"gradient": sent} if rate is None else {"delta": sent}
    knowledge = Knowledge(
        model=model, input_shape=SHAPE, num_classes=4, labels=labels, num_samples=samples,
        protocol="fedsgd" if rate is None else "delta", learning_rate=rate,
        value_range=(float(inputs.min()), float(inputs.max())), defense=defense,
    )  # fmt: skip
    return InterceptedUpdate.of(model, num_examples=samples, **given), knowledge, inputs


def smlp(seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    return SMLP(input_shape=SHAPE, num_classes=4, width=60, **settings)


def off(found: Tensor, inputs: Tensor) -> float:
    return float((found - inputs).norm() / inputs.norm())


@pytest.mark.parametrize("rate", [None, 0.1], ids=["gradient", "change"])
def test_analytic_sees_through_a_filter_that_it_is_told(rate):
    defense = Percentile(percentile=60, gamma=0.01 * (rate or 1))
    update, knowledge, inputs = client(smlp(), defense, rate=rate)
    told, plain = (
        Analytic()([update], known)[0] for known in (knowledge, replace(knowledge, defense=None))
    )
    assert off(told.inputs, inputs) < 1e-6 < 0.5 < off(plain.inputs, inputs)
    assert told.explained > 0.9999 > 0.5 > plain.explained
    assert any(text.startswith("percentile was told: of the entries") for text in told.findings)


def test_exact_nra_reads_the_noise_of_pruned_rows_from_the_layers_behind():
    defense = Pruning(ratio=0.5)
    update, knowledge, inputs = client(smlp(precode=Precode(bottleneck_size=20)), defense)
    (found,) = ExactNRA(nra_iterations=1)([update], knowledge)
    assert off(found.inputs, inputs) < 1e-3


def test_equations_of_cut_entries_are_left_out_of_a_convolution():
    torch.manual_seed(1)
    model = LeNet(input_shape=SHAPE, num_classes=4)
    defense = GradientDropout(probability=0.2)
    update, knowledge, inputs = client(model, defense)
    (found,) = RGAP(nra_iterations=1)([update], knowledge)
    assert off(found.inputs, inputs) < 1e-4
    # Of the 300 equations of the first convolution's weight, some are missing.
    (step,) = (text for text in found.findings if text.startswith("features.0 (Conv2d)"))
    missing = int((update.received["features.0.weight"] == 0).sum())
    assert 30 < missing < 90
    assert f"from {192 + 300 - missing} equations" in step


def test_matching_compares_what_is_known():
    """At the client's own inputs the cost is 0 to the attack that is told, and to no other."""
    torch.manual_seed(1)
    model = LeNet(input_shape=SHAPE, num_classes=4)
    update, knowledge, inputs = client(model, Percentile(percentile=30, gamma=0.02))

    class FromTruth(IGA):
        def known(self, problem):
            return replace(super().known(problem), begin=inputs)

    settings = FromTruth(iterations=1, total_variation=0.0)
    costs = [
        settings([update], known)[0].costs[0][1]
        for known in (knowledge, replace(knowledge, defense=None))
    ]
    assert costs[0] < 1e-5 < 1e-3 < costs[1]


@pytest.mark.parametrize(
    ("told", "applied", "text"),
    [
        (Percentile(percentile=90), Pruning(ratio=0.1), "percentile was told, but"),
        (Quantization(bits=4), Pruning(ratio=0.1), "do not lie on 15 levels"),
        (Censor(), Pruning(ratio=0.1), "censor was told, of which the attack has no use"),
    ],
    ids=["percentile", "quantization", "censor"],
)  # fmt: skip
def test_what_the_update_contradicts_is_said_and_not_used(told, applied, text):
    update, knowledge, _ = client(smlp(), applied)
    (found,) = Analytic()([update], replace(knowledge, defense=told))
    (plain,) = Analytic()([update], replace(knowledge, defense=None))
    assert any(text in finding for finding in found.findings)
    assert torch.equal(found.inputs, plain.inputs)


def test_a_told_defence_is_no_surprise_in_the_update():
    update, knowledge, _ = client(smlp(), Pruning(ratio=0.9))
    pruned = "noise or pruning by the client"
    (told,) = Analytic()([update], knowledge)
    (plain,) = Analytic()([update], replace(knowledge, defense=None))
    assert not any(pruned in finding for finding in told.findings)
    assert any(pruned in finding for finding in plain.findings)


def test_several_steps_are_said_not_to_be_used():
    update, knowledge, _ = client(smlp(), Pruning(ratio=0.5), rate=0.1)
    several = knowledge.with_training(steps=3)
    found = told_defense(update, several, knowledge.model)
    assert not found.entries
    assert found.knowledge.defense is None
    assert "one step of SGD alone" in found.notes[0]


def test_weight_decay_of_a_step_moves_the_bounds_too():
    update, knowledge, _ = client(smlp(), Pruning(ratio=0.5), rate=0.1)
    decayed = knowledge.with_training(weight_decay=0.5)
    found = told_defense(update, decayed, knowledge.model)
    name = "classifier.weight"
    change, old = update.received[name].double(), update.sent[name].double()
    torch.testing.assert_close(found.entries[name].value, -change / 0.1 - 0.5 * old)
    width = found.entries[name].highest - found.entries[name].lowest
    cut = float(change[change != 0].abs().min()) / 0.1
    assert float(width.max()) == pytest.approx(2 * cut, rel=1e-6)


def test_noise_is_told_as_an_error():
    update, knowledge, inputs = client(smlp(), NoisyGradients(sigma=0.5, relative=True))
    told, plain = (
        Analytic()([update], known)[0] for known in (knowledge, replace(knowledge, defense=None))
    )
    assert off(told.inputs, inputs) < off(plain.inputs, inputs)
    assert any("100.0% known up to an error" in finding for finding in told.findings)


def test_exact_batch_refuses_entries_that_were_changed():
    update, knowledge, _ = client(smlp(), Pruning(ratio=0.5), samples=2)
    with pytest.raises(BadInput, match="a told defence has changed"):
        ExactBatch()([update], knowledge)


def test_the_front_door_takes_a_defence():
    defense = GradientDropout(probability=0.5)
    update, knowledge, inputs = client(smlp(), defense)
    found = attack(
        knowledge.model, dict(update.received), input_shape=SHAPE, method="analytic",
        labels=knowledge.labels, value_range=knowledge.value_range, defense=defense,
    )  # fmt: skip
    assert off(found.inputs, inputs) < 1e-4


def test_a_defence_is_told_with_its_settings():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    gradient = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    for wrong in ("top_k", TopK, 5, [TopK()]):
        with pytest.raises(BadInput, match="Expected `defense` to be a defence with its settings"):
            attack(net, gradient, input_shape=(3, 2, 2), labels=[1], defense=wrong)


def test_too_few_known_entries_support_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 10))
    image, label = torch.rand(1, 3, 8, 8), torch.tensor([3])
    loss = nn.functional.cross_entropy(net(image), label)
    gradient = dict(
        zip(dict(net.named_parameters()), torch.autograd.grad(loss, net.parameters()), strict=True)
    )
    for share, supported in ((1e-2, False), (0.5, True)):
        cut = TopK(share=share)
        sent, _ = protect([cut], Outgoing(gradient, net), seed=0, memory={})
        found = attack(
            net, sent, input_shape=(3, 8, 8), labels=label, method="analytic", defense=cut
        )
        assert found.supported == supported
        few = [text for text in found.findings if "fewer than the 192 numbers" in text]
        assert bool(few) != supported
