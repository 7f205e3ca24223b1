"""How labels act on the gradient of the last linear layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe, in_own_precision

CLASSES = 4
WEIGHTS = torch.tensor([1.0, 0.5, 3.0, 2.0])


def network(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, outputs))


def of_outputs(criterion: Any) -> Any:
    return lambda model, batch: criterion(model(batch[0]), batch[1])


def probe(criterion: Any, outputs: int = CLASSES, **settings: Any) -> LossProbe:
    model = network(outputs)
    facts = {"num_samples": 3} | settings
    return LossProbe(model, Knowledge(model, (6,), loss=of_outputs(criterion), **facts))


class Inside(nn.Module):
    """A loss inside the model, of labels that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(6)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.body(batch[0]), batch[0])


def squeezed(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.squeeze(1), labels.to(outputs))


@pytest.mark.parametrize(
    ("criterion", "outputs", "kind", "shape", "whole"),
    [
        (functional.cross_entropy, 4, "classes", (), True),
        (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), 4, "classes", (), True),
        (nn.MultiMarginLoss(), 4, "classes", (), True),
        (lambda z, y: (z - functional.one_hot(y, 4)).square().mean(), 4, "classes", (), True),
        (squeezed, 1, "binary", (), True),
        (functional.binary_cross_entropy_with_logits, 1, "binary", (1,), False),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), 4, "binary", (4,), False),
        (lambda z, y: functional.mse_loss(z.squeeze(1), y), 1, "numbers", (), False),
        (functional.mse_loss, 1, "numbers", (1,), False),
        (functional.mse_loss, 3, "numbers", (3,), False),
        (functional.l1_loss, 4, "numbers", (4,), False),
        (functional.poisson_nll_loss, 4, "numbers", (4,), False),
        (lambda z, y: ((z - y[:, None]) ** 2).mean(), 4, "numbers", (), None),
        (lambda z, y: ((z - y) ** 2).mean(), 3, "numbers", (3,), False),
        (lambda z, y: z.square().mean(), 4, "none", (), True),
    ],
)  # fmt: skip
def test_kinds_of_labels(
    criterion: Any, outputs: int, kind: str, shape: tuple[int, ...], whole: bool | None
) -> None:
    found = probe(criterion, outputs)
    assert (found.kind, found.shape, found.layer, found.outputs) == (kind, shape, "2", outputs)
    assert whole is None or found.whole == whole


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.gaussian_nll_loss(
        outputs[:, :1], targets, functional.softplus(outputs[:, 1:])
    )


def test_other_shapes_of_targets_that_a_loss_takes() -> None:
    found = probe(gaussian, 2)
    assert (found.kind, found.shape, found.other_shapes) == ("numbers", (2,), ((1,),))
    assert found.shape == (2,)
    for plain in (functional.mse_loss, functional.huber_loss):
        assert probe(plain, 1).other_shapes == probe(plain, 3).other_shapes == ()
    assert probe(functional.cross_entropy).other_shapes == ()


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 3]), torch.tensor([2, 2, 2])])
def test_the_gradient_of_the_weight(labels: Tensor) -> None:
    found, model = probe(functional.cross_entropy), network().double()
    inputs = torch.randn(3, 6, dtype=torch.float64)
    value = functional.cross_entropy(model(inputs), labels)
    expected = torch.autograd.grad(value, model[2].weight)[0]
    torch.testing.assert_close(found.weight_gradient(inputs, labels).double(), expected)
    assert not any(value.requires_grad for value in found.model.parameters())


def test_a_loss_that_takes_no_labels_that_are_tried() -> None:
    def of_pairs(outputs: Tensor, labels: Tensor) -> Tensor:
        left, right = labels.unbind(dim=-1)
        return (outputs.squeeze(1) - left * right).square().mean()

    assert probe(of_pairs, 1).kind == "other"
    assert probe(of_pairs, 1, label_example=torch.zeros(1, 2)).kind == "numbers"


def test_an_autoencoder_has_no_labels() -> None:
    model = Inside()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = LossProbe(model, Knowledge(model, (6,), 10, num_samples=2))
    assert (found.kind, found.labels(2).tolist()) == ("none", [0, 0])
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_gradient_in_chosen_outputs() -> None:
    found = probe(nn.CrossEntropyLoss(WEIGHTS))
    outputs = torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 2])
    loss = functional.cross_entropy(outputs, labels, WEIGHTS.double())
    (expected,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(
        found.gradient(outputs, labels).double(), expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("samples", [1, 2, 3, 8])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_form_of_a_cross_entropy(
    samples: int, reduction: str, smoothing: float, weighted: bool
) -> None:
    """Its prediction of a batch's gradient agrees with autograd."""
    criterion = nn.CrossEntropyLoss(
        WEIGHTS if weighted else None, reduction=reduction, label_smoothing=smoothing
    )
    form = probe(criterion, num_samples=samples).cross_entropy
    assert form is not None
    assert form.is_even == (not weighted)
    assert form.is_smoothed == (smoothing > 0)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    outputs = torch.randn(samples, CLASSES, generator=generator).requires_grad_()
    (expected,) = torch.autograd.grad(criterion(outputs, labels), outputs)
    rows = form.slope[labels, None] * outputs.detach().softmax(dim=1) - form.target[labels]
    found = rows / form.divisor[labels].sum()
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-5)
    if not weighted and not smoothing:
        assert form.step == pytest.approx(1 if reduction == "mean" else samples, rel=1e-5)
        assert form.limit == pytest.approx(form.step, rel=1e-5)


def test_a_loss_that_is_no_cross_entropy_has_no_form() -> None:
    assert probe(nn.MultiMarginLoss()).cross_entropy is None
    assert probe(functional.mse_loss).cross_entropy is None
    focal = probe(lambda z, y: (functional.cross_entropy(z, y, reduction="none") ** 2).mean())
    assert (focal.kind, focal.cross_entropy) == ("classes", None)


@pytest.mark.parametrize(
    ("criterion", "outputs"),
    [
        (functional.mse_loss, 1),
        (functional.mse_loss, 4),
        (functional.huber_loss, 2),
        (functional.poisson_nll_loss, 3),
        (lambda z, y: (z.tanh() - y).square().sum(), 2),
        (functional.binary_cross_entropy_with_logits, 3),
    ],
)
def test_the_target_of_a_gradient(criterion: Any, outputs: int) -> None:
    found = probe(criterion, outputs, num_samples=1)
    generator = torch.Generator().manual_seed(2)
    output, target = torch.rand(2, 1, outputs, generator=generator, dtype=torch.float64)
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(leaf, target), leaf)
    solved = found.solve(output[0], gradient[0])
    assert solved is not None
    torch.testing.assert_close(solved.double(), target, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_no_target_has() -> None:
    found = probe(functional.l1_loss, 2, num_samples=1)
    assert found.solve(torch.zeros(2), torch.tensor([0.3, -0.1])) is None


@pytest.mark.parametrize(("reduction", "limit"), [("mean", 1.0), ("sum", 5.0)])
def test_the_largest_gradient_of_a_binary_cross_entropy(reduction: str, limit: float) -> None:
    criterion = nn.BCEWithLogitsLoss(reduction=reduction)
    found = probe(criterion, 1, num_samples=5)
    assert found.binary_limit == pytest.approx(limit, rel=1e-5)
    assert probe(functional.mse_loss, 1).binary_limit is None


def test_a_penalty_on_the_bias_is_noticed() -> None:
    model = network()

    def penalised(module: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = functional.cross_entropy(module(batch[0]), batch[1])
        return loss + module[2].bias.square().sum()

    plain = Knowledge(model, (6,), num_samples=2, loss=of_outputs(functional.cross_entropy))
    assert LossProbe(model, plain).bias_is_alone
    facts = Knowledge(model, (6,), num_samples=2, loss=penalised)
    assert not LossProbe(model, facts).bias_is_alone


def test_a_loss_of_one_precision_in_another() -> None:
    model = network().double()
    loss = of_outputs(nn.CrossEntropyLoss(WEIGHTS))
    batch = torch.randn(2, 6, dtype=torch.float64), torch.tensor([1, 3])
    with pytest.raises(RuntimeError):
        loss(model, batch)
    found = in_own_precision(loss, torch.float32)(model, batch)
    expected = functional.cross_entropy(model(batch[0]), batch[1], WEIGHTS.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_in_double_precision_is_examined_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[torch.dtype] = []
    find = LossProbe._find

    def noted(self: LossProbe) -> None:
        looked.append(next(self.model.parameters()).dtype)
        find(self)

    monkeypatch.setattr(LossProbe, "_find", noted)
    model = network().to(dtype)
    found = LossProbe(model, Knowledge(model, (6,), loss=of_outputs(functional.cross_entropy)))
    assert looked == list(dict.fromkeys([dtype, torch.float64]))
    assert (found.kind, found.layer, found.in_float64) == ("classes", "2", True)
