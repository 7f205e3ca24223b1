"""The closed form from end to end: images, noise, and what is said where they are not had."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import NRA, RGAP, Analytic, ExactNRA, Reconstruction
from fedleak.defenses import PPP, Outgoing, Sign, protect
from fedleak.errors import BadInput
from fedleak.models import DMLP, SMLP, LeNet, LeNetR, Precode, VariationalBottleneck, kl_penalty
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate
from tests.cases import STD, Victim, client_gradient, make_victim, several_steps
from tests.toys import OwnClassifier

SHAPE = (3, 16, 16)


def victim_of(kind: Any, *, precode: bool = True, shape: Any = SHAPE, **settings: Any) -> Victim:
    torch.manual_seed(0)
    bottleneck = Precode(bottleneck_size=32, beta=1e-3) if precode else None
    model = kind(input_shape=shape, num_classes=4, precode=bottleneck)
    return make_victim(model, shape, **settings)


# What the caller of an attack adds: how far the update supports the reconstruction, in what size.
ADDED = re.compile(
    r"not (supported|settled|checked)|how far off|the update is [\d.e+-]+ times|the gradient of `"
)


def said(found: Reconstruction) -> tuple[str, ...]:
    """What the attack itself found."""
    return tuple(finding for finding in found.findings if not ADDED.match(finding))


def missed(victim: Victim, found: Tensor) -> float:
    """The largest error of a pixel, pixels being from 0 to 1."""
    scale = torch.tensor(STD[: found.shape[1]]).reshape(-1, 1, 1)
    return float(((found - victim.truth.inputs) * scale).abs().max())


@pytest.mark.parametrize(
    ("kind", "precode", "largest", "ends"),
    [
        (SMLP, True, 1e-5, "no optimisation"),
        (SMLP, False, 1e-5, "no optimisation"),
        (LeNet, True, 1e-2, "no optimisation"),
        (LeNet, False, 1e-2, "no optimisation"),
        (LeNetR, True, 1e-2, "no optimisation"),
        (LeNetR, False, 0.2, "minimum total variation image"),
    ],
    ids=str,
)
def test_image_and_noise(kind: Any, precode: bool, largest: float, ends: str) -> None:
    # Of a larger image, the first convolution behind a ReLU does not determine all pixels.
    side = 32 if "variation" in ends else 16
    victim = victim_of(kind, precode=precode, shape=(3, side, side))
    attack = ExactNRA() if precode else RGAP()
    (found,) = attack([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < largest
    assert ends in said(found)[-1]
    assert set(found.noise) == set(victim.truth.noise)
    for slot, noise in found.noise.items():
        torch.testing.assert_close(noise, victim.truth.noise[slot], rtol=1e-3, atol=1e-4)
    assert found.cost < (1e-8 if largest < 0.1 else 0.1)


def test_labels_are_recovered_where_they_are_not_known() -> None:
    victim = victim_of(LeNet)
    facts = type(victim.knowledge)(**vars(victim.knowledge) | {"labels": None})
    (found,) = ExactNRA()([victim.update], facts)
    assert torch.equal(found.labels, victim.truth.labels)
    assert missed(victim, found.inputs) < 1e-2


@pytest.mark.parametrize("batch", [1, 3])
def test_clipping_is_no_obstacle_to_the_noise(batch: int) -> None:
    """A common factor: noise and images are read as well, and the cost is no worse."""
    victim = victim_of(SMLP, batch=batch, labels=[1, 3, 2][:batch])
    for value in victim.update.received.values():
        value.mul_(0.01)
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 1e-3
    assert set(found.noise) == set(victim.truth.noise) != set()
    for slot, noise in found.noise.items():
        torch.testing.assert_close(noise, victim.truth.noise[slot], rtol=1e-2, atol=1e-3)
    assert found.cost < 1e-6


def test_a_layer_that_is_not_trained_does_not_spoil_the_cost() -> None:
    victim = victim_of(DMLP)
    frozen = "classifier.weight"
    victim.update.received[frozen].zero_()
    victim.model.get_parameter(frozen).requires_grad_(False)
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 1e-3
    assert found.cost < 1e-6
    assert "treat it as failed" not in " ".join(said(found))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_functional_dropout_is_no_failure(share: float) -> None:
    """With other units dropped, not even the true image has the client's gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 4))

    def loss(net: nn.Module, batch: Any) -> Tensor:
        logits = net[2](functional.dropout(net[1](net[0](batch[0])), share))
        return functional.cross_entropy(logits, batch[1])

    inputs, labels = torch.rand(1, 12), torch.tensor([1])
    gradients = torch.autograd.grad(loss(model, (inputs, labels)), list(model.parameters()))
    sent = dict(model.state_dict())
    update = InterceptedUpdate(
        1, 0, "fedsgd", 1, "net", sent, dict(zip(sent, gradients, strict=True))
    )
    facts = Knowledge(model, (12,), 4, num_samples=1, labels=labels, loss=loss)
    (found,) = RGAP()([update], facts)
    torch.testing.assert_close(found.inputs, inputs, rtol=1e-4, atol=1e-4)
    assert "treat it as failed" not in " ".join(found.findings)
    doubted = "not checked against the update" in found.findings[-1]
    assert (doubted, math.isnan(found.cost)) == ((True, True) if share else (False, False))


def test_weights_instead_of_a_gradient() -> None:
    """One local step of SGD: the difference of float32 weights is a gradient with more rounding."""
    victim = victim_of(LeNet)
    sent = victim.update.sent
    received = {n: sent[n] - 0.1 * value for n, value in victim.update.received.items()}
    update = type(victim.update)(
        **vars(victim.update) | {"received": received, "protocol": "fedavg"}
    )
    facts = type(victim.knowledge)(
        **vars(victim.knowledge) | {"protocol": "fedavg", "learning_rate": 0.1}
    )
    (found,) = ExactNRA()([update], facts)
    noise, truth = found.noise["bottleneck.noise"], victim.truth.noise["bottleneck.noise"]
    assert float((noise - truth).abs().max()) < 0.05
    assert missed(victim, found.inputs) < 0.3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_samples": 5}, "the gradient of classifier does not have rank 5"),
        ({"steps": 3, "optimizer": "unknown", "learning_rate": 0.1}, "3 local steps"),
    ],
)
def test_falls_back_on_nra(settings: dict[str, Any], says: str) -> None:
    victim = victim_of(LeNet, batch=settings.get("num_samples", 1))
    facts, update = victim.knowledge, victim.update
    if "num_samples" in settings:
        facts = replace(facts, **settings)
    else:
        facts, update = facts.with_training(**settings), replace(update, protocol="delta")
    (found,) = ExactNRA(nra_iterations=3)([update], facts)
    assert any(says in finding for finding in said(found))
    assert "fallback to nra" in said(found)
    assert found.iterations == 3
    assert found.inputs.shape == victim.truth.inputs.shape


@pytest.mark.parametrize("kind", [SMLP, DMLP], ids=str)
def test_image_of_several_steps(kind: Any) -> None:
    victim = several_steps(victim_of(kind), batch_size=1, epochs=3)
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 1e-2
    assert said(found)[0] == "the update is of 3 local steps"
    assert any("in closed form (no optimisation)" in finding for finding in said(found))
    assert found.noise == {}
    assert math.isnan(found.cost)


def test_no_number_of_steps_hides_an_image_behind_a_linear_layer() -> None:
    victim = several_steps(victim_of(SMLP), batch_size=1, epochs=40)
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 0.05
    assert "image recovered in closed form (no optimisation)" in said(found)[-1]


def test_many_steps_are_not_simulated() -> None:
    victim = several_steps(victim_of(LeNet), batch_size=1, epochs=33)
    (found,) = ExactNRA(nra_iterations=2)([victim.update], victim.knowledge)
    assert said(found) == (
        "the update is of 33 local steps",
        "the first layer is not a linear layer with bias that takes the image",
        "their mean gradient is attacked, as more than 32 are too many to simulate",
        "fallback to nra",
    )  # fmt: skip


def test_image_of_several_steps_without_noise() -> None:
    victim = several_steps(victim_of(SMLP, precode=False), batch_size=1, epochs=5)
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 1e-2
    assert said(found)[-1] == "image recovered in closed form (no optimisation)"
    assert math.isnan(found.cost)


class Scaled(SMLP):
    """Its first layer is not given the image itself."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(0.3 * images)


def test_a_layers_input_is_not_taken_for_the_image() -> None:
    victim = several_steps(victim_of(Scaled), batch_size=1, epochs=2)
    (found,) = ExactNRA(joint_steps=2, nra_iterations=2)([victim.update], victim.knowledge)
    first, matching, failed, last = said(found)[1:]
    assert first == "the first layer is not a linear layer with bias that takes the image"
    assert "gradient matching by L-BFGS, with all steps simulated" in matching
    assert "L-BFGS did not converge" in failed
    assert last == "fallback to nra"


def test_recovered_labels_are_said_to_be_in_no_order() -> None:
    victim = several_steps(victim_of(SMLP, batch=2, shape=(1, 8, 8)), batch_size=1, epochs=1)
    for labels, unordered in ((None, True), (victim.truth.labels, False)):
        facts = replace(victim.knowledge, labels=labels)
        (found,) = ExactNRA(joint_steps=1, nra_iterations=1)([victim.update], facts)
        ordered = "the order of the labels over the steps is not known" in said(found)
        assert ordered == unordered


def test_images_and_noise_of_several_steps_are_optimised_together() -> None:
    victim = several_steps(victim_of(LeNet, shape=(1, 8, 8)), batch_size=1, epochs=2)
    (found,) = ExactNRA(joint_steps=12)([victim.update], victim.knowledge)
    assert said(found)[-1].startswith(
        "gradient matching by L-BFGS, with all steps simulated, each with"
    )
    (noise,), (truth,) = found.noise.values(), victim.truth.noise.values()
    assert noise.shape == truth.shape
    assert truth.shape[:2] == (1, 2)
    assert missed(victim, found.inputs) < 0.1
    assert float((noise - truth).square().mean()) < 0.1


@pytest.mark.parametrize(
    ("kind", "precode", "batch", "largest", "ends"),
    [
        (SMLP, True, 3, 5e-2, "no optimisation"),
        (SMLP, False, 3, 5e-2, "no optimisation"),
        (LeNet, True, 2, 1e-2, "no optimisation"),
        (LeNetR, True, 2, 1e-2, "no optimisation"),
        (LeNetR, True, 3, 0.3, "minimum total variation image"),
    ],
    ids=str,
)
def test_images_of_a_batch(kind: Any, precode: bool, batch: int, largest: float, ends: str) -> None:
    victim = victim_of(kind, precode=precode, batch=batch)
    attack = ExactNRA() if precode else RGAP()
    (found,) = attack([victim.update], victim.knowledge)
    assert ends in said(found)[-1]
    # Samples of one label come in any order.
    rows = torch.cdist(victim.truth.inputs.flatten(1), found.inputs.flatten(1)).argmin(dim=1)
    assert sorted(rows.tolist()) == list(range(batch))
    assert missed(victim, found.inputs[rows]) < largest
    assert found.cost < (1e-2 if "read" in ends else 0.2)
    for slot, noise in victim.truth.noise.items():
        torch.testing.assert_close(found.noise[slot][rows], noise, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2])
def test_noise_before_the_bottleneck_does_not_hide_the_bottlenecks_own(batch: int) -> None:
    """PPP leaves the layers around PRECODE as they are, and the first one's rows are many."""
    victim = victim_of(SMLP, batch=batch, labels=[1, 3][:batch])
    outgoing = Outgoing(victim.update.received, victim.model)
    sent, _ = protect([PPP(sigma=0.01, relative=True)], outgoing, seed=0, memory={})
    victim.update.received.update(sent)
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    for slot, noise in victim.truth.noise.items():
        torch.testing.assert_close(found.noise[slot], noise, rtol=1e-2, atol=1e-3)
    assert missed(victim, found.inputs) < 0.2


@pytest.mark.parametrize("kind", [LeNet, LeNetR], ids=str)
def test_a_perturbed_gradient_is_matched_from_the_image_of_minimum_variation_on(kind: Any) -> None:
    victim = victim_of(kind)
    clean = dict(victim.update.received)
    outgoing = Outgoing(clean, victim.model)
    sent, _ = protect([PPP(sigma=0.1, relative=True)], outgoing, seed=0, memory={})
    update = replace(victim.update, received=clean | sent)
    first, more = (
        ExactNRA(nra_iterations=n, image_iterations=30)([update], victim.knowledge)[0]
        for n in (1, 50)
    )
    assert said(first)[-2:] == (
        "no image fits the known values: the gradient was altered or a solver did not converge",
        "fallback to nra, with the known noise, started from this image",
    )
    (noise,), (truth,) = first.noise.values(), victim.truth.noise.values()
    torch.testing.assert_close(noise, truth, rtol=1e-3, atol=1e-4)
    assert torch.equal(noise, more.noise["bottleneck.noise"])
    assert float((more.inputs - first.inputs).abs().max()) > 0.1
    assert more.cost < first.cost
    assert missed(victim, more.inputs) < missed(victim, first.inputs)


def test_unresolved_updates_are_matched_together_each_as_if_alone() -> None:
    torch.manual_seed(0)
    precode = Precode(bottleneck_size=32, beta=1e-3)
    model = LeNet(input_shape=SHAPE, num_classes=4, precode=precode).double()
    victims = [make_victim(model, SHAPE, client=client) for client in range(4)]
    facts = [victim.knowledge for victim in victims]
    updates = [victim.update for victim in victims]
    # The second client's image is read, the others' gradients were changed; the last one's so much
    # that its noise is not had either.
    generator = torch.Generator().manual_seed(0)
    for update, scale in ((updates[0], 0.5), (updates[2], 0.5), (updates[3], 10.0)):
        for name, value in update.received.items():
            if scale > 1 or name.startswith("features"):
                spread = scale * value.abs().max()
                value += spread * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    attack = ExactNRA(nra_iterations=4, image_iterations=10, at_once=2)
    together = attack(updates, facts)
    for update, knowledge, found in zip(updates, facts, together, strict=True):
        (alone,) = attack([update], knowledge)
        assert said(found) == said(alone)
        torch.testing.assert_close(found.inputs, alone.inputs, rtol=1e-6, atol=1e-6)
        assert found.cost == pytest.approx(alone.cost)
        assert found.noise.keys() == alone.noise.keys()
        assert found.seconds > 0
    assert [said(found)[-1] for found in together] == [
        "fallback to nra, with the known noise, started from this image",
        "image recovered in closed form (no optimisation)",
        "fallback to nra, with the known noise, started from this image",
        "fallback to nra",
    ]
    assert missed(victims[1], together[1].inputs) < 1e-2


def test_matching_of_image_and_noise_that_fails_is_followed_by_nra() -> None:
    torch.manual_seed(0)
    model = LeNetR(input_shape=SHAPE, num_classes=4, precode=Precode(kind="convolutional"))
    victim = make_victim(model, SHAPE)
    (found,) = ExactNRA(joint_steps=2, nra_iterations=3)([victim.update], victim.knowledge)
    (alone,) = NRA(iterations=3)([victim.update], victim.knowledge)
    assert said(found)[-3].startswith("gradient matching by L-BFGS of image and noise")
    assert "L-BFGS did not converge" in said(found)[-2]
    assert said(found)[-1] == "fallback to nra"
    assert found.iterations == 3
    assert found.cost == pytest.approx(alone.cost, rel=0.2)


def test_convolutional_bottleneck_ends_the_closed_form() -> None:
    """The features are read, but what is drawn before them has no biased layers around it."""
    torch.manual_seed(0)
    shape = (1, 8, 8)
    model = LeNet(input_shape=shape, num_classes=4, precode=Precode(kind="convolutional"))
    victim = make_victim(model, shape)
    facts = victim.knowledge
    (found,) = ExactNRA(joint_steps=19)([victim.update], facts)
    assert "input of classifier in closed form" in said(found)[0]
    assert any("the noise of features.2.noise cannot be recovered" in f for f in said(found))
    assert said(found)[-1].startswith("gradient matching by L-BFGS of image and noise")
    assert found.cost < 1e-4
    assert missed(victim, found.inputs) < 0.1
    # A client that clips.
    received = {name: 0.01 * value for name, value in victim.update.received.items()}
    (clipped,) = ExactNRA(joint_steps=19)([replace(victim.update, received=received)], facts)
    torch.testing.assert_close(clipped.inputs, found.inputs, rtol=1e-3, atol=1e-3)


def test_noise_of_a_defence_is_too_much_for_it() -> None:
    victim = victim_of(LeNet)
    generator = torch.Generator().manual_seed(0)
    for value in victim.update.received.values():
        value += 10 * value.abs().max() * torch.randn(value.shape, generator=generator)
    (found,) = ExactNRA(nra_iterations=2)([victim.update], victim.knowledge)
    assert "no linear-layer input can be computed" in said(found)[0]
    assert found.iterations == 2


class Stack(nn.Sequential):
    """Layers one after the other, and cross entropy."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])


class OneWay(nn.Module):
    """A bottleneck without biases: nothing stands in its gradient in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8, bias=False), nn.Tanh())
        self.bottleneck = VariationalBottleneck(8, bottleneck_size=4, beta=1e-3)
        self.bottleneck.decoder = nn.Linear(4, 8, bias=False)
        self.classifier = nn.Linear(8, 4)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.classifier(self.bottleneck(self.features(batch[0])))
        return functional.cross_entropy(logits, batch[1]) + kl_penalty(self)


def test_the_image_does_not_need_the_noise() -> None:
    """z is not to be had without the decoder's bias, and the layers come off all the same."""
    torch.manual_seed(0)
    victim = make_victim(OneWay(), (3, 8, 8))
    (found,) = ExactNRA()([victim.update], victim.knowledge)
    assert any("the noise of bottleneck.noise cannot be recovered" in f for f in said(found))
    assert found.noise == {}
    assert missed(victim, found.inputs) < 1e-4


@pytest.mark.parametrize("several", [False, True])
def test_a_model_without_any_bias_is_matched(several: bool) -> None:
    torch.manual_seed(0)
    model = OneWay()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_parameter("bias", None)
    victim = make_victim(model, (3, 8, 8))
    if several:
        victim = several_steps(victim, batch_size=1, epochs=2)
    (found,) = ExactNRA(nra_iterations=3, joint_steps=3)([victim.update], victim.knowledge)
    assert ("the update is of 2 local steps" in said(found)) == several
    says = "not a linear layer with bias" if several else "no linear-layer input can be computed"
    assert any(says in finding for finding in said(found))
    step = "gradient matching by L-BFGS, with all steps" if several else "fallback to nra"
    assert said(found)[-1].startswith(step)
    assert found.inputs.isfinite().all()
    assert set(found.noise) == {"bottleneck.noise"}


@pytest.mark.parametrize("classes", [4, 2])
def test_signs_of_a_gradient_are_matched(classes: int) -> None:
    """Those of a client's Adam after one step, or of a defence, look like a product's factors."""
    torch.manual_seed(0)
    precode = Precode(bottleneck_size=32, beta=1e-3)
    model = SMLP(input_shape=SHAPE, num_classes=classes, precode=precode)
    victim = make_victim(model, SHAPE, num_classes=classes)
    outgoing = Outgoing(victim.update.received, victim.model)
    sent, _ = protect([Sign()], outgoing, seed=0, memory={})
    update = replace(victim.update, received=sent)
    (found,) = ExactNRA(nra_iterations=2)([update], victim.knowledge)
    assert said(found) == (
        "no linear-layer input can be computed from the gradient", "fallback to nra"
    )  # fmt: skip
    (found,) = Analytic()([update], victim.knowledge)
    assert said(found) == ("input of features.1 in closed form, error inf",)


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_nobody_records(training: bool) -> None:
    """In train mode nothing can be compared, in eval mode it is no hindrance."""
    torch.manual_seed(0)
    model = Stack(
        nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.Sigmoid(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(160, 4),
    )  # fmt: skip
    victim = make_victim(model, (3, 8, 8), training=training)
    (found,) = RGAP(matching_steps=2, nra_iterations=2)([victim.update], victim.knowledge)
    if training:
        assert said(found)[-2:] == (
            "2 draws new random numbers in every forward pass",
            "fallback to nra",
        )
    else:
        assert missed(victim, found.inputs) < 1e-2


class Reshaping(nn.Module):
    """What is between its layers changes a shape, and where it is asked to, more than that."""

    def __init__(self, *, also: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.also = also
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.one, self.two = nn.Sigmoid(), nn.Sigmoid()
        self.linear = nn.Linear(16 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        found = self.two(self.second(self.also(self.one(self.first(images)))))
        return self.linear(found.flatten(1))

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])


def test_another_shape_does_not_end_the_peeling() -> None:
    torch.manual_seed(0)
    victim = make_victim(Reshaping(), (3, 8, 8))
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert said(found)[-1] == "image recovered in closed form (no optimisation)"
    assert missed(victim, found.inputs) < 1e-2


@pytest.mark.parametrize("shape", [(3, 64), (12, 4, 4)], ids=str)
def test_images_in_another_shape_are_still_images(shape: tuple[int, ...]) -> None:
    """The smoothest one is sought as an image, whatever its shape in the first layer."""

    class First(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(len(x), *shape))

    torch.manual_seed(0)
    layers = [nn.Conv2d(12, 4, 3)] if shape == (12, 4, 4) else [nn.Flatten(), nn.Linear(192, 40)]
    many = 16 if shape == (12, 4, 4) else 40
    model = First(*layers, nn.Softplus(), nn.Flatten(), nn.Linear(many, 4))
    if shape == (3, 64):
        model[1].register_parameter("bias", None)
    victim = make_victim(model, (3, 8, 8))
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert any("minimum total variation image from" in said for said in said(found))
    assert found.inputs.shape == victim.truth.inputs.shape


@pytest.mark.parametrize(
    "also", [torch.exp, lambda x: x.transpose(2, 3)], ids=["another value", "another order"]
)
def test_a_function_between_layers_ends_the_peeling(also: Any) -> None:
    torch.manual_seed(0)
    victim = make_victim(Reshaping(also=also), (3, 8, 8))
    (found,) = RGAP(matching_steps=2, nra_iterations=2)([victim.update], victim.knowledge)
    assert any("the input of second is neither the model's input" in f for f in said(found))


class Aside(Stack):
    """The loss sees the input past the layers, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


def _twice() -> Stack:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    return Stack(layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(3 * 64, 4))


def _sharing() -> Stack:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    return Stack(first, nn.Tanh(), second, nn.Flatten(), nn.Linear(3 * 64, 4))


@pytest.mark.parametrize(
    ("make", "says", "ends"),
    [
        (
            _sharing,
            "2 shares parameters with another layer",
            "fallback to nra, started from this image",
        ),
        (_twice, "0 is called more than once", "fallback to nra, started from this image"),
        (
            lambda: Aside(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4)),
            "the loss depends on more than the input of 2",
            "gradient matching by L-BFGS, 2 steps",
        ),
    ],
    ids=["shared weights", "called twice", "seen past the layers"],
)
def test_what_ends_the_peeling_is_said(make: Any, says: str, ends: str) -> None:
    torch.manual_seed(0)
    victim = make_victim(make(), (3, 8, 8))
    (found,) = RGAP(matching_steps=2, nra_iterations=2)([victim.update], victim.knowledge)
    assert says in said(found)
    assert said(found)[-1] == ends


def test_a_vector_is_matched_where_the_recursion_ends() -> None:
    torch.manual_seed(0)
    model = Stack(nn.Linear(9, 20, bias=False), nn.Softmax(dim=1), nn.Linear(20, 4))
    inputs, labels = torch.rand(1, 9), torch.tensor([2])
    gradient, _ = client_gradient(model, inputs, labels)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "stack", sent, gradient)
    (found,) = RGAP(matching_steps=50)([update], Knowledge(model, (9,), 4, labels=labels))
    assert "the input is not an image" in said(found)
    assert "gradient matching by L-BFGS" in said(found)[-1]
    torch.testing.assert_close(found.inputs, inputs, rtol=1e-2, atol=1e-2)


def test_an_image_that_does_not_reproduce_the_gradient_is_a_failure() -> None:
    victim = victim_of(LeNet, precode=False)
    received = dict(victim.update.received)
    for name, value in received.items():
        if name.startswith("features.") and name.endswith(".bias"):
            received[name] = -value
    (found,) = RGAP()([replace(victim.update, received=received)], victim.knowledge)
    assert "does not reproduce the client's gradient" in said(found)[-1]
    assert found.cost > 0.5


def test_plain_dropout_behind_does_no_harm() -> None:
    """What is drawn behind the known layer is in the gradient of its bias."""
    torch.manual_seed(0)
    model = Stack(
        nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(768, 20),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 4),
    )  # fmt: skip
    victim = make_victim(model, SHAPE)
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert missed(victim, found.inputs) < 1e-2


@pytest.mark.parametrize("activation", [nn.GELU(), nn.LeakyReLU(0.2)], ids=str)
def test_pooling_and_other_activations(activation: nn.Module) -> None:
    """Average pooling stays on: the image is solved for through it."""
    torch.manual_seed(0)
    model = Stack(
        nn.Conv2d(3, 16, 5, padding=2), activation, nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * 36, 4),
    )  # fmt: skip
    victim = make_victim(model, (3, 12, 12))
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert any("AvgPool2d): 576 equations for 2304 unknowns" in f for f in said(found))
    assert missed(victim, found.inputs) < 0.1


def test_own_model_whose_layers_are_no_chain_has_a_smooth_image() -> None:
    torch.manual_seed(0)
    model = OwnClassifier(input_shape=(1, 7, 6), num_classes=4)
    victim = make_victim(model, (1, 7, 6))
    (found,) = RGAP()([victim.update], victim.knowledge)
    assert any("nor the unchanged output of the module before it" in f for f in said(found))
    assert "smooth image from" in said(found)[-1]
    assert missed(victim, found.inputs) < 0.25


def test_rgap_is_for_models_without_noise() -> None:
    victim = victim_of(SMLP)
    with pytest.raises(
        BadInput,
        match="rgap needs a model that draws no noise and SMLP draws some",
    ):
        RGAP()([victim.update], victim.knowledge)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"solver_iterations": 0}, "Expected `solver_iterations` to be at least 1, got 0"),
        ({"nra_iterations": -1}, "Expected `nra_iterations` to be at least 1, got -1"),
        ({"features": -1.0}, "Expected `features` to be at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ExactNRA(**setting)
