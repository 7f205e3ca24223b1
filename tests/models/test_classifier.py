"""The LightningModule that image classifiers share."""

import inspect
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedleak.errors import BadInput
from fedleak.models import SMLP
from tests.cases import ModelCase
from tests.models.model_cases import OURS, batch_for

every_own_model = pytest.mark.parametrize("case", OURS, ids=str)


def test_what_is_logged() -> None:
    case = OURS[0]
    model = case.make(precode=True)
    images, labels = batch_for(case)
    noted: dict[str, Any] = {}
    model.log_dict = lambda values, **settings: noted.update(values)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(torch.tensor([0.0, 3.0, 0.0, 0.0]))
    loss = model.training_step((images, labels), 0)
    assert noted["train/loss"] is loss
    # Class 1 is predicted for all of the labels 0, 1, 2, 3, 0.
    assert noted["train/accuracy"] == pytest.approx(0.2)
    entropy = functional.cross_entropy(model.classifier.bias.expand(5, 4), labels)
    torch.testing.assert_close(loss, entropy + noted["train/kl"])
    for stage, step in (("val", model.validation_step), ("test", model.test_step)):
        noted.clear()
        step((images, labels), 0)
        assert set(noted) == {f"{stage}/loss", f"{stage}/accuracy", f"{stage}/kl"}


@every_own_model
def test_signature_fits_the_registry(case: ModelCase) -> None:
    parameters = inspect.signature(case.kind).parameters
    assert {"input_shape", "num_classes", "precode"} <= set(parameters)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())


@every_own_model
def test_images_of_another_shape(case: ModelCase) -> None:
    channels, height, width = case.shape
    model = case.make(precode=False)
    with pytest.raises(ValueError, match=rf"\({channels}, {height}, {width}\), got \({channels}, "):
        model(torch.zeros(1, channels, height + 1, width))


@every_own_model
@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_learning_rate_out_of_range(case: ModelCase, rate: float) -> None:
    with pytest.raises(BadInput, match=f"`model.learning_rate` to be positive, got {rate}"):
        case.make(precode=False, learning_rate=rate)


@every_own_model
def test_too_few_classes(case: ModelCase) -> None:
    with pytest.raises(BadInput, match="at least 2 classes, got 1"):
        case.make(precode=False, num_classes=1)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_optimizers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = SMLP(input_shape=(1, 2, 2), num_classes=2, width=3, optimizer=name, learning_rate=0.07)
    found = model.configure_optimizers()
    assert isinstance(found, kind)
    (group,) = found.param_groups
    assert group["lr"] == 0.07
    assert group["weight_decay"] == 0
    assert group.get("momentum", 0) == 0
    assert [id(value) for value in group["params"]] == [id(v) for v in model.parameters()]
