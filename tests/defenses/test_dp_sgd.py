"""DP-SGD against its algorithm 1, computed literally: one sample after the other, by autograd."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.defenses import DPSGD, Outgoing, protect
from fedleak.defenses.dp_sgd import sample_gradients
from fedleak.errors import BadInput
from fedleak.models import inject
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss
from tests.cases import MODELS, ModelCase, client_gradient, pictures
from tests.toys import Linear, Normalised

LABELS = [0, 2, 3, 0, 1]
BY_NAME = {str(case): case for case in MODELS}


def outgoing_of(
    case: ModelCase, *, precode: bool, batch: int = 5, training: bool = True
) -> Outgoing:
    model = case.make(precode=precode, dtype=torch.float64).train(training)
    inputs, labels = pictures(batch, case.shape), torch.tensor(LABELS[:batch])
    gradient, noise = client_gradient(model, inputs, labels, training=training)
    return Outgoing(gradient, model, (inputs, labels), noise)


def one_by_one(outgoing: Outgoing) -> list[Tensors]:
    """The gradient of each sample's loss, with the noise that the sample met in its batch."""
    (inputs, labels), result = outgoing.batch, []
    for i in range(len(labels)):
        own = {slot: value[i : i + 1] for slot, value in outgoing.noise.items()}
        with inject(outgoing.model, own):
            loss = batch_loss(outgoing.model, (inputs[i : i + 1], labels[i : i + 1]))
        names, values = zip(*outgoing.model.named_parameters(), strict=True)
        result.append(dict(zip(names, torch.autograd.grad(loss, values), strict=True)))
    return result


def norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in tensors.values()))


def sent(outgoing: Outgoing, seed: int = 0, **settings: float) -> Tensors:
    return protect([DPSGD(**settings)], outgoing, seed=seed, memory={})[0]


def same(left: Tensors, right: Tensors) -> None:
    assert list(left) == list(right)
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("precode", [False, True])
@pytest.mark.parametrize("case", MODELS, ids=str)
def test_without_bound_and_noise_it_is_the_plain_gradient(case, precode, batch):
    outgoing = outgoing_of(case, precode=precode, batch=batch)
    same(sent(outgoing, max_norm=1e9, noise_multiplier=0), outgoing.update)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precode", [False, True])
@pytest.mark.parametrize("name", ["smlp-1x8x8", "lenet-3x12x10", "resnet18-1x8x8"])
def test_every_samples_gradient_is_clipped_on_its_own(name, precode, training):
    outgoing = outgoing_of(BY_NAME[name], precode=precode, training=training)
    literal = one_by_one(outgoing)
    norms = sorted(norm(gradient) for gradient in literal)
    bound = (norms[1] + norms[2]) / 2  # some are cut, some are not
    expected = {n: torch.zeros_like(value) for n, value in outgoing.update.items()}
    for gradient in literal:
        factor = min(1.0, bound / norm(gradient)) / len(literal)
        for n, value in gradient.items():
            expected[n] += factor * value
    same(sent(outgoing, max_norm=bound, noise_multiplier=0), expected)
    assert outgoing.model.training == training
    assert not any(hasattr(value, "grad_sample") for value in outgoing.model.parameters())


def test_the_recorded_noise_is_used_and_no_other():
    outgoing = outgoing_of(BY_NAME["smlp-1x8x8"], precode=True, batch=1)
    exact = {"max_norm": 1e9, "noise_multiplier": 0.0}
    other = Outgoing(outgoing.update, outgoing.model, outgoing.batch)
    drawn_anew = sent(other, **exact)["classifier.weight"]
    assert not torch.allclose(drawn_anew, outgoing.update["classifier.weight"], rtol=1e-2)
    same(sent(outgoing, **exact), outgoing.update)


def test_the_noise_has_the_stated_deviation():
    outgoing = outgoing_of(BY_NAME["lenet-3x12x10"], precode=False)
    settings = {"max_norm": 0.5, "noise_multiplier": 3.0}
    clean, noisy = sent(outgoing, max_norm=0.5, noise_multiplier=0), sent(outgoing, **settings)
    noise = torch.cat([(noisy[n] - clean[n]).flatten() for n in clean])
    assert float(noise.std()) == pytest.approx(3 * 0.5 / 5, rel=0.05)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(len(noise))
    other = sent(outgoing, seed=1, **settings)
    assert not any(torch.equal(other[n], value) for n, value in noisy.items())


def test_what_is_not_trained_gets_no_noise():
    outgoing = outgoing_of(BY_NAME["smlp-1x8x8"], precode=False)
    outgoing.model.classifier.bias.requires_grad_(False)
    outgoing.update["classifier.bias"] = torch.zeros(4, dtype=torch.float64)
    after = sent(outgoing)
    assert not bool(after["classifier.bias"].any())
    assert bool(after["classifier.weight"].all())


# -------------------------------------------------------------------------------- what is refused


class Mixing(Linear):
    """A loss that uses a layer's weight outside of the layer, where samples meet."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.layer(batch[0])
        return functional.cross_entropy(logits, batch[1]) + self.layer.weight.sum() * logits.mean()


class Loose(Linear):
    """A weight outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.scale * self.layer(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Mixing, Loose])
def test_a_loss_that_opacus_cannot_take_apart_is_refused(kind):
    model, batch = kind(), (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(BadInput, match=f"loss of {kind.__name__} to be the mean of its samples'"):
        sample_gradients(model, batch, {})


class Failing(nn.Module):
    """A layer of one's own, which fails on a sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        if len(values) == 1:
            raise ValueError("one sample\nis too few")
        return values * self.weight


class Strange(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(Failing(), self.layer)


def test_a_layer_that_opacus_cannot_repeat_is_told():
    batch = (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(BadInput, match=r"Opacus .* fails on Strange: one sample is too few"):
        sample_gradients(Strange(), batch, {})


def test_batch_norm_several_steps_and_fedavg_are_refused():
    model = Normalised()
    assert "batch norm `norm`" in DPSGD().refuses_model(model)
    assert DPSGD().refuses_model(Linear()) is None
    assert "fedavg" in DPSGD().refuses("fedavg")
    batch = (torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))
    with pytest.raises(BadInput, match="model for dp_sgd, but its batch norm `norm` mixes the"):
        sent(Outgoing({}, model, batch))
    with pytest.raises(BadInput, match="one batch for dp_sgd, got several steps"):
        sent(Outgoing({}, Linear()))
