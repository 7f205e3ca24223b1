"""The front door: five lines on a plain module, in every form that people have a gradient in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    gaussian_nll_loss,
    mse_loss,
    softplus,
)

from fedleak.api import attack, read_results, score
from fedleak.attacks import IGA, RGAP
from fedleak.errors import BadInput
from fedleak.models.bottleneck import VariationalBottleneck
from fedleak.runs.results import append_rows
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.spies import Spy

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A plain module: a convolution, a sigmoid, maybe a bottleneck, a classifier."""

    def __init__(self, *, bottleneck: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Sigmoid(), nn.Flatten())
        self.guard = VariationalBottleneck(768, bottleneck_size=16) if bottleneck else nn.Identity()
        self.head = nn.Linear(768, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.guard(self.body(x)))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(1, *SHAPE), torch.tensor([3])


def net(**settings: Any) -> Net:
    torch.manual_seed(0)
    return Net(**settings)


def gradient_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    loss = cross_entropy(model(batch[0]), batch[1])
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_five_lines(bottleneck: bool, batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    model = net(bottleneck=bottleneck)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attack(model, gradient_of(model, batch), input_shape=SHAPE)
    text = str(found)
    assert "\n" not in text
    assert text.startswith("1 sample of shape (3, 8, 8), labels [3], by ")
    assert ("exact_nra" if bottleneck else "rgap") in text
    assert found.explained > 0.999
    assert "explains 100.0% of the update" in text
    scores = score(found, *batch)
    assert scores.ssim > 0.99
    assert scores.labels == 1
    assert str(scores).startswith("ssim 1.0000, psnr ")
    assert str(scores).endswith("labels 100% right")
    picture = found.show(batch[0], tmp_path / "found.png")
    # Two rows of one image, whole pixels as blocks of 16.
    assert picture.size == (4 + 132, 4 + 2 * 132)
    pixels = np.asarray(Image.open(tmp_path / "found.png").convert("RGB"))
    expected = (batch[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(pixels[4 + 8 : 132 : 16, 4 + 8 : 132 : 16], expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


FORMS: dict[str, Callable[[Net, list[Tensor]], Any]] = {
    "tuple": lambda model, found: tuple(found),
    "list": lambda model, found: found,
    "numpy": lambda model, found: [value.numpy() for value in found],
    "dict": lambda model, found: dict(zip(names(model), found, strict=True)),
    "wrapped": lambda model, found: {
        f"module._orig_mod.{name}": value for name, value in zip(names(model), found, strict=True)
    },
}


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_gradient(form: str, batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    gradient = FORMS[form](model, list(gradient_of(model, batch)))
    update = InterceptedUpdate.of(model, gradient=gradient)
    for name, value in zip(names(model), gradient_of(model, batch), strict=True):
        assert torch.equal(update.received[name], value)
    assert list(update.sent) == list(model.state_dict())


@pytest.mark.parametrize("sends", ["weights_after", "delta"])
def test_the_facts_of_the_local_training(sends: str, batch: tuple[Tensor, Tensor]) -> None:
    """Three steps of SGD with momentum and weight decay on one image, by torch's own optimiser."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Sigmoid(), nn.Linear(32, 5))
    images, labels = batch
    own = copy.deepcopy(model)
    optimizer = torch.optim.SGD(own.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(own(images), labels).backward()
        optimizer.step()
    before, after = model.state_dict(), own.state_dict()
    sent: Any = {n: v - before[n] if sends == "delta" else v for n, v in after.items()}
    facts = LocalTraining(learning_rate=0.05, momentum=0.9, weight_decay=0.01, steps=3)
    found = attack(model, input_shape=SHAPE, local_training=facts, **{sends: sent})
    assert float((found.inputs - images).square().mean()) < 1e-3
    assert found.explained > 0.9
    short = RGAP(nra_iterations=5, joint_steps=20)
    wrong = attack(
        model, input_shape=SHAPE, learning_rate=0.001, local_steps=3, method=short, **{sends: sent}
    )
    assert wrong.findings


def test_an_unused_parameter_has_no_gradient(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    model.spare = nn.Parameter(torch.ones(2))
    loss = cross_entropy(model(batch[0]), batch[1])
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert None in found
    update = InterceptedUpdate.of(model, gradient=found)
    assert "spare" not in update.received
    result = attack(model, found, input_shape=SHAPE)
    assert score(result, *batch).ssim > 0.99
    assert "`spare` did not come and is left out" in result.findings


def test_frozen_parameters_may_be_left_out_of_a_list(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 5))
    model[3].requires_grad_(False)
    trained = [value for value in model.parameters() if value.requires_grad]
    gradient = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), trained)
    found = attack(model, gradient, input_shape=SHAPE, method="analytic", labels=batch[1])
    assert score(found, *batch).ssim > 0.99
    assert "`3.weight`, `3.bias` did not come and are left out" in found.findings


@pytest.mark.parametrize("form", ["weights", "delta"])
def test_weights_and_their_change(form: str, batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    gradient = gradient_of(model, batch)
    after = {
        name: value.detach() - 0.1 * part
        for (name, value), part in zip(model.named_parameters(), gradient, strict=True)
    }
    given = after if form == "weights" else {n: v - model.state_dict()[n] for n, v in after.items()}
    update = InterceptedUpdate.of(model, **{form: given})
    assert update.protocol == {"weights": "fedavg", "delta": "delta"}[form]
    for name, value in given.items():
        torch.testing.assert_close(update.received[name], value)
    found = attack(model, weights_after=after, learning_rate=0.1, input_shape=SHAPE)
    assert score(found, *batch).ssim > 0.9
    assert found.explained > 0.99


def test_a_batch_in_another_order(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(3)
    images, labels = torch.rand(2, *SHAPE), torch.tensor([4, 1])
    model = net()
    found = attack(model, gradient_of(model, (images, labels)), input_shape=SHAPE, labels=[1, 4])
    assert len(found.inputs) == 2
    scores = score(found, images, labels)
    assert scores.ssim > 0.9
    assert scores.labels == 1


def test_methods_by_name_class_and_instance(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    gradient = gradient_of(model, batch)
    for method in ("rgap", RGAP, RGAP()):
        assert attack(model, gradient, input_shape=SHAPE, method=method).method == "rgap"
    found = attack(model, gradient, input_shape=SHAPE, method=IGA(iterations=3), labels=[3])
    assert found.method == "iga"
    assert found.iterations == 3
    assert 0 <= found.explained < 0.999


LOSSES = {
    "weights and smoothing": (nn.CrossEntropyLoss(torch.rand(5) + 0.5, label_smoothing=0.1), 3),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), 3),
    "weights, sum": (nn.CrossEntropyLoss(torch.arange(1.0, 6), reduction="sum"), 3),
    "factor": (lambda outputs, labels: -5 * cross_entropy(outputs, labels), 3),
    "soft labels": (nn.CrossEntropyLoss(), [0.0, 0.0, 0.0, 1.0, 0.0]),
    "regression": (mse_loss, [0.2, -3.0, 1.0, 4.0, 0.5]),
    "many labels": (binary_cross_entropy_with_logits, [1.0, 0.0, 0.0, 1.0, 1.0]),
    "weights of labels": (
        nn.BCEWithLogitsLoss(pos_weight=torch.rand(5) + 0.5),
        [0.0, 1.0, 1, 0, 0],
    ),
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "recovered"])
@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_outputs_and_labels(
    name: str, known: bool, batch: tuple[Tensor, Tensor]
) -> None:
    model = net()
    loss, label = LOSSES[name]
    labels = torch.tensor([label])
    gradient = torch.autograd.grad(loss(model(batch[0]), labels), list(model.parameters()))
    if name == "soft labels" and not known:
        labels = torch.tensor([3])  # that loss takes classes as well
    found = attack(model, gradient, input_shape=SHAPE, loss=loss, labels=labels if known else None)
    assert found.labels.dtype == labels.dtype
    torch.testing.assert_close(found.labels, labels, rtol=1e-3, atol=1e-3)
    assert score(found, batch[0]).ssim > 0.99
    assert found.explained > 0.99


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_row_of_a_table(outputs: int) -> None:
    """No image: no box, no classes, and targets that are numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, outputs))
    row, target = 3 * torch.randn(1, 14), torch.randn(1, outputs)
    gradient = torch.autograd.grad(mse_loss(model(row), target), list(model.parameters()))
    for method in ("analytic", "rgap"):
        found = attack(model, gradient, input_shape=(14,), loss=mse_loss, method=method)
        assert float((found.inputs - row).norm() / row.norm()) < 1e-5
        torch.testing.assert_close(found.labels, target, rtol=1e-3, atol=1e-4)
    told = attack(
        model, gradient, input_shape=(14,), loss=mse_loss, method="analytic", value_range=(-1, 2)
    )
    torch.testing.assert_close(told.inputs, row.clamp(-1, 2))


def test_targets_that_were_not_told_depend_on_the_scale_of_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 32), nn.Tanh(), nn.Linear(32, 1))
    row, target = torch.randn(1, 14), torch.tensor([[2.3]])
    cost = 100 * mse_loss(model(row), target)
    gradient = torch.autograd.grad(cost, list(model.parameters()))
    text = "they depend on the scale of the loss"
    found = attack(model, gradient, input_shape=(14,), loss=mse_loss)
    assert float(found.labels) > 100
    assert text in " ".join(found.findings)
    told = attack(model, gradient, input_shape=(14,), loss=mse_loss, labels=target)
    assert text not in " ".join(told.findings)


def test_the_shape_of_targets_is_presumed_if_the_loss_takes_several() -> None:
    def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
        return gaussian_nll_loss(outputs[:, :1], targets, softplus(outputs[:, 1:]))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 32), nn.Tanh(), nn.Linear(32, 2))
    row, target = torch.randn(1, 14), torch.tensor([[3.0]])
    gradient = torch.autograd.grad(gaussian(model(row), target), list(model.parameters()))
    text = "targets of shape (2,) a sample are presumed, the loss takes (1,) too"
    found = attack(model, gradient, input_shape=(14,), loss=gaussian)
    assert any(finding.startswith(text) for finding in found.findings)
    told = attack(model, gradient, input_shape=(14,), loss=gaussian, labels=target)
    assert text not in " ".join(told.findings)


def test_another_loss(batch: tuple[Tensor, Tensor]) -> None:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return mse_loss(outputs, nn.functional.one_hot(labels, 5).to(outputs))

    model = net()
    gradient = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    found = attack(model, gradient, input_shape=SHAPE, labels=[3], loss=loss)
    assert score(found, *batch).ssim > 0.99
    wrong = attack(model, gradient, input_shape=SHAPE, labels=[3], method=IGA(iterations=3))
    assert wrong.explained < 0.9


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gradient": None}, "Expected a gradient or `weights_after` or `delta`, got none"),
        ({"weights_after": {}}, "or `delta`, got a gradient and `weights_after`"),
        ({"gradient": None, "weights_after": {}}, "Expected `learning_rate` with `weights_after`"),
        ({"gradient": [torch.ones(2)]}, "the gradient of 4 parameters, got 1 tensors"),
        ({"gradient": torch.ones(2)}, "a mapping or a sequence of tensors, got Tensor"),
        ({"gradient": {"hed.bias": torch.ones(5)}},
         r"Unknown parameter in the gradient `hed.bias`: .*Did you mean `head.bias`\?"),
        ({"gradient": dict.fromkeys(["head.bias"])}, "of the model's parameters, got none of them"),
        ({"method": "igaa"}, r"Unknown attack `igaa`: .* Did you mean `iga`\?"),
        ({"method": 3}, "`method` to be the name, class or instance of an attack, got 3"),
        ({"input_shape": (3, 9, 9)}, r"a model that takes inputs of shape \(3, 9, 9\)"),
        ({"labels": [1, 2], "num_samples": 3}, "Expected 3 known labels, got shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    changes: dict[str, Any], text: str, batch: tuple[Tensor, Tensor]
) -> None:
    model = net()
    settings = {"gradient": gradient_of(model, batch), "input_shape": SHAPE} | changes
    with pytest.raises(BadInput, match=text):
        attack(model, **settings)


def test_labels_that_cannot_be_recovered_are_asked_for_by_the_name_of_the_argument() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    gradient = [torch.ones_like(value) for value in model.parameters()]
    with pytest.raises(BadInput, match=r"give the labels \(`labels=` in Python"):
        attack(model, gradient, input_shape=(3, 2, 2), num_samples=4, method="rgap")


def test_an_update_that_says_nothing(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    with pytest.raises(BadInput, match="but the gradient is 0: the loss is saturated"):
        attack(model, [torch.zeros_like(v) for v in model.parameters()], input_shape=SHAPE)
    with pytest.raises(BadInput, match="what came back is what was sent"):
        attack(model, weights_after=model.state_dict(), learning_rate=0.1, input_shape=SHAPE)
    with pytest.raises(BadInput, match="Expected one of gradient, weights, delta, got none"):
        InterceptedUpdate.of(model)
    shaped = [torch.ones(3) for _ in model.parameters()]
    with pytest.raises(BadInput, match=r"Expected `body.0.weight` of shape \(12, 3, 3, 3\)"):
        InterceptedUpdate.of(model, gradient=shaped)


def test_scores_of_other_shapes(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    found = attack(model, gradient_of(model, batch), input_shape=SHAPE)
    assert score(found, batch[0][0]).labels is None
    with pytest.raises(BadInput, match=r"originals of shape \(1, 3, 8, 8\), got \(2, 3, 8, 8\)"):
        score(found, batch[0].repeat(2, 1, 1, 1))
    with pytest.raises(BadInput, match="Expected 1 labels, got 2"):
        score(found, batch[0], [1, 2])


def test_nothing_prints_pixels(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    update = InterceptedUpdate.of(model, gradient=gradient_of(model, batch))
    assert "tensor" not in repr(update)
    assert repr(update).startswith("<InterceptedUpdate r0001-c0000 of net (4,181 numbers sent)")
    found = attack(model, gradient_of(model, batch), input_shape=SHAPE)
    assert "tensor" not in repr(found)
    assert repr(GroundTruth(*batch)) == "<GroundTruth of 1 sample of shape (3, 8, 8)>"
    attack(model, gradient_of(model, batch), input_shape=SHAPE, method=Spy)
    assert repr(Spy.seen.pop()) == "<Problem r0001-c0000 of Net, inputs (1, 3, 8, 8)>"


def test_results_as_a_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the results of a run at .*results.csv, found none"):
        read_results(tmp_path)
    row = {
        "round": 1, "client": 0, "sample": 0, "attack": "iga", "model": "smlp", "batch_size": 1,
        "ssim": 0.5, "success": 0, "seconds": 1.0, "iterations": 3,
    }  # fmt: skip
    append_rows(tmp_path / "results.csv", [row, row | {"client": 1, "ssim": 0.7}])
    table = read_results(tmp_path)
    assert table["ssim"].mean() == pytest.approx(0.6)
    assert table["client"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": [9]}, r"Expected labels from 0 to 4, got \[9\]"),
        ({"labels": [-1]}, r"Expected labels from 0 to 4, got \[-1\]"),
        ({"labels": [2.7]}, "Expected labels as whole numbers, got torch.float32"),
        ({"labels": "2"}, "Expected labels as numbers, got '2'"),
        ({"labels": []}, "Expected the label of at least one sample, got none"),
        ({"num_samples": 2.5}, "Expected `num_samples` to be a whole number, got `2.5`"),
        ({"num_samples": 0}, "Expected at least 1 sample, got 0"),
        ({"input_shape": 16}, "model that takes inputs of shape"),
        ({"input_shape": (3, -8, 8)}, "`input_shape` to be sizes of at least 1"),
        ({"input_shape": ()}, "`input_shape` to be sizes of at least 1"),
        ({"input_shape": (10**9, 9)}, "at most 268,435,456 entries"),
        ({"mean": (0.5, 0.5)}, "a finite mean and a positive standard deviation for each of 3"),
        ({"std": 0.0}, "a finite mean and a positive standard deviation"),
        ({"std": "a"}, "Expected a number, or one for each channel, as mean or std, got 'a'"),
        ({"device": "nowhere"}, "Expected `device` to be one that torch can use here"),
        ({"device": "meta"}, "Expected `device` to be one that torch can use here"),
        ({"seed": -1}, r"Expected `seed` to be a whole number from 0 to 2\^63 - 1, got -1"),
        ({"method": nn.Linear}, "`method` to be the name, class or instance of an attack"),
        ({"input_shape": "3,8,8"}, r"sizes, such as \(3, 32, 32\), got '3,8,8'"),
        ({"local_training": {"learning_rate": 0.1}}, "to be a LocalTraining, .* got dict"),
        ({"loss": "mse"}, "`loss` to be a function of outputs and labels, .* got 'mse'"),
        ({"loss": nn.MSELoss}, r"got <class .*MSELoss'>: give an instance, MSELoss\(\)"),
        ({"loss": lambda outputs, labels: outputs}, r"to be a scalar tensor, got shape \(1, 5\)"),
        ({"loss": lambda outputs, labels: 1.0}, "to be a scalar tensor, got float"),
    ],
)
def test_arguments_out_of_range(
    changes: dict[str, Any], text: str, batch: tuple[Tensor, Tensor]
) -> None:
    model = net()
    settings = {"gradient": gradient_of(model, batch), "input_shape": SHAPE} | changes
    with pytest.raises(BadInput, match=text):
        attack(model, **settings)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda value: value * (1 + 1j),
            "of type torch.float32 in the gradient, got torch.comp",
        ),
        (lambda value: value.long(), "of type torch.float32 in the gradient, got torch.int64"),
        (lambda value: value.to_sparse(), "Expected a dense tensor for `body.0.weight`"),
        (lambda value: value.to("meta"), "Expected a tensor for|Expected a dense tensor for"),
    ],
)
def test_tensors_of_another_kind(change: Any, text: str, batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    with pytest.raises(BadInput, match=text):
        InterceptedUpdate.of(model, gradient=[change(g) for g in gradient_of(model, batch)])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rates_out_of_range(rate: float, batch: tuple[Tensor, Tensor]) -> None:
    after = [value.detach() + 1 for value in net().parameters()]
    with pytest.raises(BadInput, match="`learning_rate` to be positive"):
        attack(net(), weights_after=after, learning_rate=rate, input_shape=SHAPE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_turned_off(mode: Any, batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    gradient = gradient_of(model, batch)
    with mode():
        found = attack(model, gradient, input_shape=SHAPE)
    assert found.explained > 0.99


def test_what_would_be_clipped_is_not_scored(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    found = attack(model, gradient_of(model, batch), input_shape=SHAPE)
    for images in (batch[0] * 3 - 1, batch[0] * 255, batch[0] * float("nan")):
        with pytest.raises(BadInput, match=r"originals that lie in \[0, 1\] once scaled back"):
            score(found, images)
    with pytest.raises(BadInput, match="a mean and a positive standard deviation for each of 3"):
        score(found, batch[0], std=0.0)
    with pytest.raises(BadInput, match="Expected what an attack found, got Tensor"):
        score(batch[0], batch[0])  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"Expected labels as whole numbers, got torch.float32"):
        score(found, batch[0], [0.7])
    with pytest.raises(BadInput, match="Expected a file name with an extension"):
        found.show(path="nowhere/found.png")


def test_a_low_share_says_what_to_check(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    found = attack(model, gradient_of(model, batch), input_shape=SHAPE, method=IGA(iterations=1))
    assert found.explained < 0.5
    assert (
        "not supported by the update, so nothing follows from it: check num_samples, loss"
        in str(found)
    )
    assert "\n" not in str(found)


def test_steps_of_a_gradient(batch: tuple[Tensor, Tensor]) -> None:
    model = net()
    gradient = gradient_of(model, batch)
    with pytest.raises(BadInput, match="Expected `weights_after` with 3 local steps, got"):
        attack(model, gradient, input_shape=SHAPE, local_steps=3, learning_rate=0.1)
    one_hot = nn.functional.one_hot(batch[1], 5)
    with pytest.raises(BadInput, match=r"1 known labels, got shape \(1, 5\): of one-hot"):
        attack(model, gradient, input_shape=SHAPE, labels=one_hot)


@pytest.mark.parametrize("clients", [2, [1, 1]])
def test_the_sum_of_two_clients_gradients(clients: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Sigmoid(), nn.Linear(40, 4))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([3, 1])
    each = [
        torch.autograd.grad(cross_entropy(model(images[[at]]), labels[[at]]), [*model.parameters()])
        for at in (0, 1)
    ]
    total = [one + other for one, other in zip(*each, strict=True)]
    told = {"input_shape": (1, 8, 8), "aggregation": "sum", "clients": clients}
    if clients == 2:
        with pytest.raises(BadInput, match=r"a multiple of `clients` 2, .* got 1"):
            attack(model, total, **told)
        told["num_samples"] = 2
    found = attack(model, total, **told)
    assert found.labels.tolist() == [1, 3]
    torch.testing.assert_close(found.inputs, images.flip(0), rtol=0, atol=1e-3)
    assert found.explained > 0.999


def test_a_batch_of_a_perceptron_is_read_whole_by_default() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 5))
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 1, 2, 4, 3])
    found = attack(
        model, gradient_of(model, (images, labels)), input_shape=(3, 8, 8), num_samples=6
    )
    assert found.method == "exact_batch"
    assert found.error_bounds is not None
    assert bool(found.error_bounds.isfinite().all())
    assert sorted(found.labels.tolist()) == sorted(labels.tolist())
    distances = torch.cdist(found.inputs.flatten(1), images.flatten(1))
    assert float(distances.min(dim=1).values.max()) < 1e-3
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(6))


def test_where_a_batch_is_not_certified_whole_another_method_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    images, labels = torch.rand(6, 3, 2, 2), torch.tensor([0, 1, 1, 2, 0, 2])
    gradient = gradient_of(model, (images, labels))
    exact = attack(model, gradient, input_shape=(3, 2, 2), num_samples=6, method="exact_batch")
    assert exact.error_bounds is not None
    assert not bool(exact.error_bounds.isfinite().all())
    assert attack(model, gradient, input_shape=(3, 2, 2), num_samples=6).method == "rgap"
