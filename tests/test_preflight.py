"""What a run refuses before any file is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.attacks.labels import refusal
from fedleak.build import client_samples, knowledge_of, make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.data import Npz
from fedleak.errors import BadInput
from fedleak.preflight import check_model, prepare
from fedleak.registry import Plugin
from tests.reference import shared_values
from tests.toys import Normalised, OwnClassifier

PERCEPTRON = "fedleak.models.mlp.SMLP"


@pytest.fixture
def configured(tmp_path: Path):
    """Makes configurations of a small data set: 20 images of 3x8x6, 4 classes."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", images=images, labels=np.arange(20) % 4)
    data = Plugin("fedleak.data.npz.Npz", {"path": str(tmp_path / "faces.npz"), "test_fraction": 0})

    def make(model: Plugin | None = None, **settings: Any) -> RunConfig:
        return RunConfig(
            **{"data": data, "model": model or Plugin(PERCEPTRON, {"width": 6})} | settings
        )

    return make


def test_all_that_a_run_needs(configured) -> None:
    config = configured(
        Plugin(PERCEPTRON, {"width": 6, "precode": {"bottleneck_size": 3}}),
        baseline=True,
        attacks=(Plugin("fedleak.attacks.iga.IGA"), Plugin("fedleak.attacks.nra.NRA")),
    )
    parts = prepare(config)
    assert isinstance(parts.data, Npz)
    assert parts.data.input_shape == (3, 8, 6)
    assert list(parts.models) == ["baseline", ""]
    assert [attack.name for attack in parts.attacks] == ["iga", "nra"]
    # The same seed, the same weights, in what the variants have in common.
    left, right = (parts.models[variant].features.state_dict() for variant in ("baseline", ""))
    assert shared_values(dict(left), dict(right))


def test_model_made_for_other_images(configured) -> None:
    config = configured(Plugin(PERCEPTRON, {"width": 6, "input_shape": [1, 28, 28]}))
    with pytest.raises(
        BadInput,
        match=r"images of shape \(3, 8, 6\) \(faces\), got smlp for samples of .*1, 28, 28",
    ):
        prepare(config)


class Fixed(OwnClassifier):
    """Made for one shape, and says so nowhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=num_classes)


class TooFewClasses(OwnClassifier):
    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__(input_shape=input_shape, num_classes=2)


@pytest.mark.parametrize("name", ["Fixed", "TooFewClasses"])
def test_model_that_fails_on_the_images(configured, name: str) -> None:
    config = configured(Plugin(f"tests.test_preflight.{name}"))
    text = rf"images of shape \(3, 8, 6\) \(faces\), but {name.lower()} fails on them: "
    if name == "Fixed":
        with pytest.raises(BadInput, match=text):
            prepare(config)
    else:  # of classes 0 and 0, which the check uses, there are enough
        data = make_data(config)
        images, _ = data.train_set.batch([0, 0])
        data.train_set.labels[0] = 3
        with pytest.raises(BadInput, match=text):
            check_model(make_model(config, data), config, data)
        assert images.shape == (2, 3, 8, 6)


def test_an_attack_that_makes_no_sense_on_any_model(configured) -> None:
    attack = Plugin("fedleak.attacks.nra.NRA")
    with pytest.raises(
        BadInput, match=r"model that nra can attack, but .* draws none: choose .*`model.p"
    ):
        prepare(configured(attacks=(attack,)))
    guarded = Plugin(PERCEPTRON, {"width": 6, "precode": {"bottleneck_size": 3}})
    prepare(configured(guarded, attacks=(attack,)))
    # With a baseline it is left out there and done where it makes sense.
    prepare(configured(guarded, attacks=(attack,), baseline=True))


def test_checking_a_model_leaves_it_as_it_was(configured, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "grey.npz", images=images, labels=np.arange(4) % 2)
    config = configured(data=Plugin("fedleak.data.npz.Npz", {"path": str(tmp_path / "grey.npz")}))
    data = make_data(config)
    model = Normalised().eval()
    model.norm.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_model(model, config, data)
    assert shared_values(before, dict(model.state_dict()))
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


@pytest.mark.parametrize("name", ["gpu9", "cuda:977"])
def test_device_that_is_not_here(configured, name: str) -> None:
    with pytest.raises(BadInput, match=rf"`device` to be one that torch can use .* got `{name}`"):
        prepare(configured(device=name))


def test_an_attack_that_cannot_compute_there(configured) -> None:
    graphs = Plugin("fedleak.attacks.iga.IGA", {"compile": "cuda_graphs"})
    with pytest.raises(BadInput, match=r"settings of iga .* `device: cuda` and it is `cpu`"):
        prepare(configured(attacks=(graphs,)))


@pytest.mark.parametrize(
    ("labels", "federation", "sentence"),
    [
        ("idlg", Federation(clients=4, batch_size=2), "label of one sample, not of 2: try bias"),
        ("row_minima", Federation(clients=2, batch_size=5), "are 5 samples of 4 classes: try bias"),
        # Weights that come back were trained on all that a client has.
        ("idlg", Federation(clients=4, protocol="fedavg"), "label of one sample, not of 5: try"),
        ("row_minima", Federation(clients=3, protocol="fedavg"), "are 6 samples of 4 classes"),
    ],
)
def test_a_method_that_no_batch_suits(
    configured, labels: Any, federation: Federation, sentence: str
) -> None:
    with pytest.raises(BadInput, match=f"`victims.labels` to fit the batches, but .*{sentence}"):
        prepare(configured(federation=federation, victims=Victims(labels=labels)))
    for other in ("known", "recovered", "bias_counts"):
        prepare(configured(federation=federation, victims=Victims(labels=other)))


@pytest.mark.parametrize("labels", ["idlg", "row_minima"])
def test_a_method_that_suits_the_batches(configured, labels: Any) -> None:
    config = configured(federation=Federation(clients=4), victims=Victims(labels=labels))
    parts = prepare(config)
    known = knowledge_of(config, parts.data, parts.models[""], labels=None)
    assert known.label_recovery == labels
    assert refusal(labels, num_samples=known.num_samples, num_classes=known.num_classes) is None


ONE_STEP = ("fishing", "imprint", "imprint_module", "soliton_biases", "trap_weights")


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_server_that_reads_one_step_is_refused_where_clients_take_more(
    configured, name: str
) -> None:
    server = Plugin(f"fedleak.servers.{name}.{''.join(map(str.capitalize, name.split('_')))}")

    def federation(**settings: Any) -> Federation:
        return Federation(clients=2, batch_size=5, **settings)

    shared = {"server": server}
    prepare(configured(federation=federation(), **shared))
    prepare(configured(federation=federation(), victims=Victims(aggregated=True), **shared))
    one_step = Federation(clients=4, protocol="fedavg", batch_size=5)
    prepare(configured(federation=one_step, **shared))
    two_steps = federation(protocol="fedavg")
    with pytest.raises(
        BadInput,
        match=f"clients whose updates {name} can read, but it reads the update of one step, and "
        "theirs is of 2 steps: choose another `federation.protocol` or `server`",
    ):
        prepare(configured(federation=two_steps, **shared))
    with pytest.raises(BadInput, match=f"{name} can read, but .* and theirs are of 4 clients: ch"):
        prepare(configured(federation=one_step, victims=Victims(aggregated=True), **shared))


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        # What a server would find out in the first round is found out before it.
        (Plugin("fedleak.servers.imprint.Imprint"), "public inputs or `deviation` for imprint"),
        (
            Plugin("fedleak.servers.imprint.Imprint", {"deviation": 1.0}),
            "a model that imprint can attack, but the first layer .* is not linear: choose",
        ),
        (
            Plugin(
                "fedleak.servers.hyperparameters.Hyperparameters",
                {"rate": 1e-3, "rate_name": "lr", "epochs": None, "batch": None},
            ),
            "hyperparameters can read, but a gradient depends on the batch alone",
        ),
    ],
)
def test_a_server_that_can_make_no_weights_is_refused(
    configured, server: Plugin, sentence: str
) -> None:
    model = Plugin("fedleak.models.lenet.LeNet") if "not linear" in sentence else None
    federation = Federation(clients=4, batch_size=2, obeys={"lr": "learning_rate"})
    with pytest.raises(BadInput, match=sentence):
        prepare(configured(model, federation=federation, server=server, public=0))


def test_victims_of_which_none_can_be_read(configured) -> None:
    """A client of the usual size takes one step of 6 samples, and one with 7 takes two."""
    federation = Federation(clients=3, batch_size=6, protocol="fedavg")
    sizes = client_samples(configured(federation=federation), make_data(configured()))
    assert sorted(map(len, sizes)) == [6, 7, 7]
    large, small = (next(i for i in range(3) if len(sizes[i]) == n) for n in (7, 6))
    shared = {"federation": federation, "server": Plugin("fedleak.servers.imprint.Imprint")}
    prepare(configured(victims=Victims(clients=[large, small]), **shared))
    with pytest.raises(BadInput, match=r"imprint can read, but .* theirs is of 2 steps"):
        prepare(configured(victims=Victims(clients=[large]), **shared))
