from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedleak.build import client_samples, knowledge_of, make_data, make_model, under_orders
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.models import SMLP, Precode
from fedleak.models.first_batch import first_batch
from fedleak.preflight import prepare
from fedleak.registry import Plugin
from fedleak.updates.update import InterceptedUpdate
from tests.reference import shared_values

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


def test_models_of_a_seed(configured) -> None:
    data = make_data(configured())
    torch.manual_seed(1)
    one = make_model(configured(), data).state_dict()
    state = torch.get_rng_state()
    two = make_model(configured(), data).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    other = make_model(configured(seed=1), data).state_dict()
    assert shared_values(dict(one), dict(two))
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_weights_of_another_run(configured, tmp_path: Path) -> None:
    data = make_data(configured())
    model = make_model(configured(seed=5), data)
    save_file(dict(model.state_dict()), tmp_path / "trained.safetensors")
    config = configured(weights=str(tmp_path / "trained.safetensors"))
    found = make_model(config, data).state_dict()
    assert shared_values(dict(found), dict(model.state_dict()))
    assert config.hash != configured().hash


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "Expected a file with weights at .* found none"),
        (b"no such format", "Expected a complete safetensors file"),
        ({"classifier.weight": torch.zeros(2, 2)}, "Expected the weights of smlp.*of shape .* got"),
    ],
)
def test_weights_that_do_not_fit(configured, tmp_path: Path, content, says: str) -> None:
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    config = configured(weights=str(path))
    with pytest.raises(BadInput, match=says):
        make_model(config, make_data(config))


def test_no_weights_fit_with_and_without_a_bottleneck(configured) -> None:
    with pytest.raises(BadInput, match="Expected no `weights` where `baseline` is true"):
        configured(
            Plugin(PERCEPTRON, {"width": 6, "precode": {"bottleneck_size": 3}}),
            baseline=True, weights="some.safetensors",
        )  # fmt: skip


# ---------------------------------------------------------------------- a model that does not fit


class NoOptimizer(SMLP):
    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize("path", ["torch.nn.ReLU", "pathlib.PurePath", "fedleak.attacks.iga.IGA"])
def test_no_lightning_module(configured, path: str) -> None:
    with pytest.raises(BadInput, match=f"name a subclass of LightningModule, got `{path}`"):
        prepare(configured(Plugin(path)))


@pytest.mark.parametrize("path", ["torch.nn.ReLU", PERCEPTRON])
def test_no_attack(configured, path: str) -> None:
    settings = {"input_shape": [1, 1, 1], "num_classes": 2} if path == PERCEPTRON else {}
    with pytest.raises(BadInput, match=f"`attacks` to name a subclass of Attack, got `{path}`"):
        prepare(configured(attacks=(Plugin(path, settings),)))


def test_two_attacks_of_one_name(configured) -> None:
    """Their rows could not be told apart."""
    plugins = tuple(Plugin("fedleak.attacks.iga.IGA", {"iterations": n}) for n in (1, 2))
    with pytest.raises(BadInput, match="`attacks` of different names, got iga twice"):
        prepare(configured(attacks=plugins))


def test_no_data_set(configured) -> None:
    with pytest.raises(BadInput, match=r"`data` to name a subclass of PrivateData, got `torch"):
        prepare(configured(data=Plugin("torch.nn.ReLU")))


# ---------------------------------------------------------------------------------- the clients


def test_every_sample_belongs_to_one_client(configured) -> None:
    config = configured(federation=Federation(clients=3))
    parts = client_samples(config, make_data(config))
    assert sorted(sample for part in parts for sample in part) == list(range(20))
    assert parts == client_samples(config, make_data(config))


def test_more_clients_than_samples(configured) -> None:
    with pytest.raises(BadInput, match=r"`clients` to be at most .* samples, 20, got 21"):
        prepare(configured(federation=Federation(clients=21)))


def test_batch_larger_than_a_clients_share(configured) -> None:
    prepare(configured(federation=Federation(clients=4, batch_size=5)))
    with pytest.raises(
        BadInput, match=r"batch of `federation.batch_size` 6, but client \d has 5 of the 20 samples"
    ):
        prepare(configured(federation=Federation(clients=4, batch_size=6)))


def test_victims_beyond_the_clients(configured) -> None:

    with pytest.raises(
        BadInput, match=r"`victims.clients` to be at most 1, as the federation has 2"
    ):
        configured(federation=Federation(clients=2), victims=Victims(clients=[2]))


# -------------------------------------------------------------------------------- what is known


@pytest.mark.parametrize(
    ("labels", "method"),
    [("known", "bias_counts"), ("recovered", "bias_counts"), ("row_minima", "row_minima")],
)
def test_knowledge_names_the_method(configured, labels: Any, method: str) -> None:
    config = configured(victims=Victims(labels=labels))
    model = SMLP(input_shape=(3, 8, 6), num_classes=4, width=2)
    found = knowledge_of(config, make_data(config), model, labels=None)
    assert found.label_recovery == method


def test_no_optimizer_no_learning_rate() -> None:
    model = NoOptimizer(input_shape=(1, 2, 2), num_classes=2, width=2)
    with pytest.raises(BadInput, match=r"`configure_optimizers` of NoOptimizer .* got none"):
        first_batch(model, (1, 2, 2), train=True, samples=1, batch_size=1, epochs=None)


@pytest.mark.parametrize(
    ("federation", "examples", "samples", "steps"),
    [
        (Federation(batch_size=3), None, 3, 1),
        (Federation(batch_size=3), 3, 3, 1),
        (Federation(protocol="fedavg", batch_size=4, local_epochs=2), 10, 10, 6),
        (Federation(protocol="fedavg", batch_size=5, local_epochs=1), 10, 10, 2),
        (Federation(protocol="fedavg", batch_size=4, local_epochs=3, mode="eval"), None, 4, 3),
    ],
)
def test_knowledge(
    configured, federation: Federation, examples: int | None, samples: int, steps: int
) -> None:
    config = configured(federation=federation)
    data = make_data(config)
    model = SMLP(input_shape=(3, 8, 6), num_classes=4, width=2, precode=Precode(2))
    update = None
    if examples is not None:
        update = InterceptedUpdate(1, 0, federation.protocol, examples, "smlp", {}, {})
    labels = torch.tensor([1])
    found = knowledge_of(config, data, model, labels=labels, update=update)
    assert (found.num_samples, found.steps) == (samples, steps)
    assert found.model is model
    assert found.labels is labels
    assert (found.input_shape, found.num_classes) == ((3, 8, 6), 4)
    assert (found.mean, found.std) == (data.mean, data.std)
    assert (found.protocol, found.learning_rate) == (federation.protocol, 0.1)
    assert found.training is None
    assert {m.training for m in found.model.modules()} == {federation.mode == "train"}
    size = federation.batch_size
    assert [part.stop - part.start for part in found.local_batches] == (
        [size] * (samples // size) + [samples % size] * (samples % size > 0)
    )
    assert found.epochs == federation.local_epochs
    assert found.local.is_plain_sgd


# ----------------------------------------------------------------- clients that obey their server

OBEYS = {"lr": "learning_rate", "epochs": "local_epochs", "bs": "batch_size"}


def obeying(configured) -> RunConfig:
    return configured(federation=Federation(protocol="fedavg", obeys=OBEYS))


def test_what_a_client_is_told_replaces_its_own(configured) -> None:
    config = obeying(configured)
    told, rate = under_orders(config, {"lr": 1e-3, "epochs": 7, "colour": "red"})
    assert (told.federation.local_epochs, rate) == (7, 1e-3)
    assert told.federation.batch_size == config.federation.batch_size
    same, rate = under_orders(config, {"server-round": 3})
    assert (same, rate) == (config, None)
    ignoring = replace(config, federation=replace(config.federation, obeys={}))
    assert under_orders(ignoring, {"lr": 1e-3}) == (ignoring, None)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"lr": 0.0}, "a positive number as `learning_rate` in the training configuration, got 0"),
        ({"lr": "fast"}, "a positive number as `learning_rate`"),
        ({"bs": 0}, "a whole number from 1 as `batch_size`"),
        ({"epochs": 1.5}, "a whole number from 1 as `local_epochs`"),
        ({"epochs": True}, "a whole number from 1 as `local_epochs`"),
    ],
)
def test_orders_that_make_no_sense(configured, entries: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        under_orders(obeying(configured), entries)


def test_knowledge_under_orders(configured) -> None:
    config = obeying(configured)
    data = make_data(config)
    model = make_model(config, data)
    update = InterceptedUpdate(1, 0, "fedavg", 10, "net", {}, {})
    entries = {"lr": 1e-3, "epochs": 3, "bs": 5}
    facts = knowledge_of(config, data, model, labels=None, update=update, entries=entries)
    assert (facts.learning_rate, facts.batch_size, facts.steps) == (1e-3, 5, 6)


def test_clients_behind_a_mean_need_not_have_equally_many_samples(configured) -> None:
    config = configured(federation=Federation(protocol="fedavg"))
    data = make_data(config)
    model = make_model(config, data)
    update = InterceptedUpdate(1, 0, "delta", 8, "net", {}, {}, clients=3)
    facts = knowledge_of(config, data, model, labels=None, update=update)
    assert facts.clients == (3, 3, 2)


def test_a_defence_is_told_where_it_is_known(configured) -> None:
    pruning = Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.25})
    for told in ("unknown", "known"):
        config = configured(defenses=(pruning,), victims=Victims(defense=told))
        data = make_data(config)
        knowledge = knowledge_of(config, data, make_model(config, data), labels=None)
        found = knowledge.defense
        assert (found is None) == (told == "unknown")
    assert (found.name, found.ratio) == ("pruning", 0.25)


def test_no_more_than_one_defence_is_told(configured) -> None:
    pruning = Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.25})
    for defenses in ((), (pruning, pruning)):
        with pytest.raises(BadInput, match=f"one of `defenses`.*got {len(defenses) or 'none'}"):
            configured(defenses=defenses, victims=Victims(defense="known"))
    with pytest.raises(BadInput, match=r"value of `victims\.defense`.*`known`"):
        Victims(defense="knwon")  # type: ignore[arg-type]
