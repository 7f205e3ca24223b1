"""The guard: silent on honest models, and a sentence with the layer's name on the others."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fedleak
from fedleak.defenses.guard import LIMITS, inspect_model
from fedleak.errors import BadInput

EXPOSED = (
    "of 128 samples, more than with random weights, could be read one by one from the update of "
    "layer `fc1`"
)


class Net(nn.Module):
    """Two convolutions and three linear layers, as in Flower's quickstart, for 1x12x12 images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(200, 60), nn.Linear(60, 30), nn.Linear(30, 10)

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.max_pool2d(torch.relu(self.conv(images)), 2).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(self.features(images))))))


def images(number: int = 128) -> Tensor:
    return torch.randn((number, 1, 12, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def bins(model: Net) -> None:
    """Rows of fc1 that compare one feature with thresholds, and equal columns of fc2."""
    feature = model.features(images())[:, 7]
    thresholds = torch.quantile(feature, torch.linspace(0.4, 0.99, 60))
    model.fc1.weight.zero_()
    model.fc1.weight[:, 7] = 1
    model.fc1.bias.copy_(-thresholds)
    model.fc2.weight.fill_(0.01)


@torch.no_grad()
def rare_units(model: Net) -> None:
    """Random rows of fc1 whose biases let each unit fire for about one image."""
    features = model.features(images())
    model.fc1.weight -= (model.fc1.weight @ features.mean(0))[:, None] / features.mean(0).sum()
    found = features @ model.fc1.weight.T
    model.fc1.bias.copy_(-torch.quantile(found, 1 - 0.7 / len(found), dim=0))


@torch.no_grad()
def far_thresholds(model: Net) -> None:
    model.fc1.bias.fill_(-200)


@torch.no_grad()
def overflow(model: Net) -> None:
    model.fc2.bias.fill_(1e25)


@torch.no_grad()
def not_finite(model: Net) -> None:
    model.fc2.weight[3, 4] = math.nan


def test_an_honest_model_is_not_suspicious() -> None:
    found = inspect_model(Net(), batch=(images(), torch.zeros(128)), config={"lr": 0.1})
    assert not found.suspicious
    assert found.reasons == ()
    assert set(found.statistics) == {
        "exposed_64", "exposed_128", "parallel", "bias", "offset", "rare", "largest"
    }  # fmt: skip
    assert all(value <= LIMITS[name] for name, value in found.statistics.items())
    assert repr(found).startswith("<Inspection: nothing suspicious. Few samples: with 128 it")


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (bins, "100% of the rows of layer `fc1` are parallel to another row"),
        (
            bins,
            EXPOSED,
        ),
        (
            rare_units,
            EXPOSED,
        ),
        (rare_units, "The largest bias of layer `fc1` is"),
        (rare_units, "as they act on the samples, so that it decides"),
        (rare_units, "of the units of layer `fc1` fire for less than 2 % of the samples"),
        (far_thresholds, "The largest bias of layer `fc1` is"),
        (overflow, "`fc2.bias` has a value of 1e+25, whose square overflows"),
        (not_finite, "`fc2.weight` has a value that is not finite"),
    ],
)
def test_reasons_name_the_layer(attack: Callable[[Net], None], sentence: str) -> None:
    model = Net()
    attack(model)
    found = inspect_model(model, batch=images())
    assert found.suspicious
    assert any(sentence in reason for reason in found.reasons), found


def test_units_that_fire_for_several_samples_expose_smaller_batches() -> None:
    """Of 256 samples a unit fires for four, and of 64 for one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10))
    batch = torch.randn(256, 200)
    with torch.no_grad():
        found = batch @ model[0].weight.T
        model[0].bias.copy_(-torch.quantile(found, 1 - 4 / 256, dim=0))
    found = inspect_model(model, batch=batch)
    assert found.statistics["exposed_256"] <= LIMITS["exposed_256"]
    assert found.statistics["exposed_64"] > 0.9
    assert any("% of 64 samples, more than" in reason for reason in found.reasons)


def test_models_for_small_batches_are_told_by_their_biases() -> None:
    """Nothing of 64 samples is exposed where units fire for half of 16."""
    model = Net()
    with torch.no_grad():
        found = model.features(images()) @ model.fc1.weight.T
        model.fc1.bias.copy_(-torch.quantile(found, torch.rand(60), dim=0).diagonal())
    found = inspect_model(model, batch=images())
    assert found.statistics["exposed_64"] < LIMITS["exposed_64"]
    assert found.statistics["offset"] > LIMITS["offset"]
    assert found.suspicious
    # Few samples are enough.
    assert inspect_model(model, batch=images(5)).suspicious


def test_what_training_exposes_is_a_remark() -> None:
    """The biases are in the weights of an input that is the same in all samples."""
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10))
    batch = torch.randn((128, 200), generator=torch.Generator().manual_seed(0))
    batch[:, 0] = 1
    with torch.no_grad():
        model[0].weight[:, 0] = 0
        found = batch @ model[0].weight.T
        model[0].weight[:, 0] = -torch.quantile(found, 1 - 2 / 128, dim=0)
        model[0].bias.zero_()
    found = inspect_model(model, batch=batch, limits={"rare": 1.0})
    assert not found.suspicious
    assert found.reasons == ()
    (remark,) = (text for text in found.remarks if "of 64 samples" in text)
    assert "could be read one by one from the update of layer `0`" in remark
    assert remark in repr(found)
    assert "nothing suspicious" not in repr(found)


def test_biases_of_an_output_layer_decide_nothing() -> None:
    """As detectors begin with a small probability of each class."""
    model = Net()
    nn.init.normal_(model.fc3.weight, std=0.01)
    nn.init.constant_(model.fc3.bias, -4.6)
    assert inspect_model(model).statistics["bias"] > LIMITS["bias"]
    assert not inspect_model(model, batch=images()).suspicious


def test_of_few_samples_the_exposed_share_is_not_known() -> None:
    assert "exposed_64" not in inspect_model(Net(), batch=images(63)).statistics
    assert "exposed_64" in inspect_model(Net(), batch=images(64)).statistics


def test_without_a_batch_the_weights_alone_are_looked_at() -> None:
    model = Net()
    bins(model)
    assert inspect_model(model).suspicious
    model = Net()
    rare_units(model)
    assert set(inspect_model(model).statistics) == {"parallel", "bias", "largest"}


def test_gradients_that_are_not_finite_are_a_reason() -> None:
    model = Net()
    with torch.no_grad():
        model.fc2.weight.fill_(1e14)
        model.fc3.weight.fill_(1e14)
        model.fc1.weight.fill_(1e14)
    found = inspect_model(model, batch=images() * 1e14)
    assert any("is not finite" in reason for reason in found.reasons), found


def test_the_change_is_compared_with_the_clients_own() -> None:
    model = Net()
    received = {name: value.clone() for name, value in model.state_dict().items()}
    returned = {name: value + 0.01 for name, value in received.items()}
    with torch.no_grad():
        for value in model.parameters():
            value += 0.02
    found = inspect_model(model, (received, returned))
    assert found.statistics["change"] == pytest.approx(2, rel=1e-4)
    assert not found.suspicious
    with torch.no_grad():
        for value in model.parameters():
            value += 0.02
    found = inspect_model(model, (received, returned))
    assert found.reasons == (
        "The server changed the model by 4 times the client's own last update.",
    )
    assert inspect_model(model, (received, received)).statistics["change"] == math.inf
    del returned["fc2.weight"]
    with pytest.raises(BadInput, match=r"what the client sent back .* `fc2.weight`"):
        inspect_model(model, (received, returned))


@pytest.mark.parametrize(
    ("config", "agreed", "suspicious"),
    [
        ({"lr": 0.1}, {}, False),
        ({"lr": 1e-12}, {}, True),
        ({"learning-rate": 50}, {}, True),
        ({"lr": 0.02}, {"lr": 0.1}, False),
        ({"lr": 0.002}, {"lr": 0.1}, True),
        ({"lr": math.nan}, {}, True),
        ({"lr": "fast"}, {}, True),
        ({"batch-size": 1}, {"batch-size": 32}, True),
        ({"batch_size": 1}, {}, True),
        ({"local-batch-size": 8}, {}, False),
        ({"clipping_range": 8.0, "target_range": 1 << 22, "max_weight": 1000.0}, {}, False),
        ({"clipping_range": 2e-12}, {}, True),
        ({"server-round": 1, "comment": "x"}, {}, False),
    ],
)
def test_entries_of_the_configuration(
    config: dict[str, object], agreed: dict[str, float], suspicious: bool
) -> None:
    found = inspect_model(Net(), config=config, agreed=agreed)
    assert found.suspicious is suspicious
    assert all(f"`{next(iter(config))}`" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("value", "text"),
    [("0.1", "'0.1', which is no number but of type str"), (True, "True, .* of type bool")],
)
@pytest.mark.parametrize("agreed", [{}, {"lr": 0.1}])
def test_entries_that_are_no_numbers(value: object, text: str, agreed: dict[str, float]) -> None:
    (reason,) = inspect_model(Net(), config={"lr": value}, agreed=agreed).reasons
    assert re.search(text, reason)
    assert "between" not in reason


def test_a_value_that_is_not_finite_is_one_reason() -> None:
    model = Net()
    not_finite(model)
    found = inspect_model(model, batch=images())
    assert found.reasons == ("`fc2.weight` has a value that is not finite.",)
    assert found.statistics["largest"] == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_refused(value: float) -> None:
    batch = images()
    batch[3, 0, 2, :2] = value
    for given in (batch, (batch, torch.zeros(128))):
        with pytest.raises(BadInput, match=r"finite numbers in `batch`, got 2 of 18432 that are"):
            inspect_model(Net(), batch=given)
    with pytest.raises(BadInput, match=r"got 2 of 18432 in `images` that are NaN\."):
        inspect_model(Net(), batch={"images": batch * 0})


def test_a_mask_may_hold_minus_infinity() -> None:
    class Masked(Net):
        def forward(self, images: Tensor, mask: Tensor) -> Tensor:
            return super().forward(images) + mask.exp()

    mask = torch.full((128, 1), -math.inf)
    found = inspect_model(Masked(), batch={"images": images(), "mask": mask})
    assert not found.suspicious


def test_few_samples_are_a_remark() -> None:
    (remark,) = inspect_model(Net(), batch=images(100)).remarks
    assert remark == (
        "Few samples: with 100 it is not known how many of 128 or 256 could be read one by one "
        "from the update; give at least 256."
    )
    assert inspect_model(Net(), batch=images(256)).remarks == ()
    assert inspect_model(Net()).remarks == ()


def test_limits_can_be_set() -> None:
    assert inspect_model(Net(), limits={"bias": 0.0}).suspicious
    model = Net()
    bins(model)
    relaxed = inspect_model(model, limits={"parallel": 1.0, "bias": 1e9})
    assert not relaxed.suspicious
    with pytest.raises(BadInput, match=r"Unknown limit `paralel`.*Did you mean `parallel`"):
        inspect_model(model, limits={"paralel": 1.0})
    with pytest.raises(BadInput, match="Expected the limit of `bias` to be at least 0, got -1"):
        inspect_model(model, limits={"bias": -1})
    with pytest.raises(BadInput, match="Expected the agreed `lr` to be a positive number, got 0"):
        inspect_model(model, agreed={"lr": 0})


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (None, {}, "`model` to be a module, got NoneType"),
        (nn.Linear, {}, "`model` to be a module, got the class Linear"),
        (nn.Linear(3, 2, device="meta"), {}, "holds its weights, got `weight` on the device meta"),
        (nn.Sequential(nn.LazyLinear(2)), {}, "have their sizes, got `0.weight` of a lazy layer"),
        (nn.Linear(3, 2), {"config": "lr"}, "`config` to be a mapping of names to values, got str"),
        (nn.Linear(3, 2), {"agreed": 0.1}, "`agreed` to be a mapping .*, got float"),
        (
            nn.Linear(3, 2),
            {"reference": nn.Linear(3, 2).state_dict()},
            "`reference` to be a pair of states, .* got one OrderedDict",
        ),
        (nn.Linear(3, 2), {"reference": (1, 2)}, r"a pair of states, .* a tuple of 2 \(int, int\)"),
    ],
)
def test_arguments_of_another_kind_are_refused(
    model: object, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        inspect_model(model, **arguments)  # type: ignore[arg-type]


def test_it_is_public() -> None:
    assert fedleak.inspect_model is inspect_model
