"""The client, called as Flower calls it, but without Ray."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import MessageType
from safetensors import safe_open
from torch.nn import functional

from fedleak import experiment
from fedleak.attacks.matching.costs import COSTS
from fedleak.attacks.matching.local_steps import DummyUpdate
from fedleak.build import client_samples, knowledge_of, make_data, make_model
from fedleak.config import RunConfig
from fedleak.federation import client_app, records
from fedleak.federation.engine.client import TruthFolder
from fedleak.models import noise_slots
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.gradient_estimate import change_of, estimate_gradient
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.fakes import ask, same_tensors
from tests.federation.runs import clients_by_class, in_process, tiny_config, tiny_data
from tests.federation.user_models import RAISES, SLEEPS
from tests.federation.user_runs import config, literal_gradient, run, updates_of
from tests.reference import dense_gradient

PRECODE = {"bottleneck_size": 6, "beta": 0.01}
MODULES = "tests.federation.user_models"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data(tmp_path)


def config_of(data: Path, **changes: Any) -> RunConfig:
    return tiny_config(data, data.parent / "run", **changes)


def model_and_weights(config: RunConfig) -> tuple[Any, Tensors]:
    model = make_model(config, make_data(config))
    return model, {name: value.clone() for name, value in model.state_dict().items()}


def trained(config: RunConfig, client: int = 1, round_: int = 1) -> tuple[Any, GroundTruth]:
    """The reply of one client and its truth."""
    folder = Path(config.output)
    folder.mkdir(exist_ok=True)
    _, sent = model_and_weights(config)
    content = ask(client_app(config, TruthFolder(folder)), client, sent, round_=round_)
    return content, GroundTruth.load(folder / f"r{round_:04d}-c{client:04d}.safetensors")


def gradient_in(content: Any) -> Tensors:
    return dict(records.to_compact(content[records.GRADIENT]))


def weights_in(content: Any) -> Tensors:
    return records.to_tensors(content[records.ARRAYS])


def close(left: Tensors, right: Tensors, *, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("precode", [None, PRECODE], ids=["plain", "precode"])
@pytest.mark.parametrize("kind", ["mlp.SMLP", "lenet.LeNet"])
def test_fedsgd_sends_the_gradient_of_its_batch(kind: str, precode: Any, data: Path) -> None:
    args = {"precode": precode} | ({"width": 12} if kind == "mlp.SMLP" else {})
    config = config_of(data, path=f"fedleak.models.{kind}", model_args=args, batch_size=3)
    content, truth = trained(config)
    model, sent = model_and_weights(config)
    assert set(truth.noise) == set(noise_slots(model))
    assert bool(truth.noise) == (precode is not None)
    expected = dense_gradient(model, truth.inputs, truth.labels, truth.noise)
    close(gradient_in(content), expected)
    if precode:
        # The noise matters: without it the gradient is another one.
        torch.manual_seed(0)
        other = dense_gradient(model, truth.inputs, truth.labels)
        assert not torch.allclose(other["classifier.weight"], expected["classifier.weight"])
    assert content["metrics"][records.EXAMPLES] == 3
    assert content["metrics"]["train/loss"] > 0
    assert same_tensors(sent, model.state_dict())
    assert records.BUFFERS not in content


def test_the_truth_is_a_batch_of_the_clients_own_samples(data: Path) -> None:
    config = config_of(data, batch_size=3)
    _, truth = trained(config, client=2)
    images = make_data(config)
    mine, labels = images.train_set.batch(client_samples(config, images)[2])
    for image, label in zip(truth.inputs, truth.labels, strict=True):
        (place,) = torch.nonzero((mine == image).flatten(1).all(dim=1)).flatten().tolist()
        assert labels[place] == label


def test_batches_depend_on_seed_round_and_client_alone(data: Path) -> None:
    torch.manual_seed(1)
    first, _ = trained(config_of(data))
    torch.manual_seed(2)
    again, _ = trained(config_of(data))
    assert same_tensors(gradient_in(first), gradient_in(again))
    for other in (
        trained(config_of(data), round_=2), trained(config_of(data), client=3),
        trained(config_of(data, seed=1)),
    ):  # fmt: skip
        assert not same_tensors(gradient_in(first), gradient_in(other[0]))


@pytest.mark.parametrize("precode", [None, PRECODE], ids=["plain", "precode"])
def test_fedavg_with_one_step_sends_weights_less_the_gradient(precode: Any, data: Path) -> None:
    config = config_of(
        data, protocol="fedavg", batch_size=21, clients=3,
        model_args={"width": 12, "precode": precode, "learning_rate": 0.5},
    )  # fmt: skip
    content, truth = trained(config)
    model, sent = model_and_weights(config)
    gradient = dense_gradient(model, truth.inputs, truth.labels, truth.noise)
    expected = {name: sent[name] - 0.5 * gradient[name] for name in sent}
    close(weights_in(content), expected, rtol=1e-6)
    assert content["metrics"][records.EXAMPLES] == 21 == len(truth.inputs)


def test_fedavg_over_epochs_equals_sgd_by_hand(data: Path) -> None:
    config = config_of(
        data, protocol="fedavg", batch_size=5, local_epochs=2, path=f"{MODULES}.OnlyTrainingStep",
        model_args={},
    )  # fmt: skip
    content, truth = trained(config)
    assert content["metrics"][records.EXAMPLES] == len(truth.inputs) == 16
    model, sent = model_and_weights(config)
    moved = weights_in(content)
    assert not same_tensors(moved, sent)
    # The first epoch's batches are the truth in their order; the second epoch goes on from there,
    # so the loss over the client's samples has fallen.
    loss = functional.cross_entropy(model(truth.inputs), truth.labels)
    model.load_state_dict(moved)
    assert functional.cross_entropy(model(truth.inputs), truth.labels) < loss
    assert truth.noise == {}


@pytest.mark.parametrize(
    ("batch_size", "epochs", "clients"), [(4, 1, 4), (1, 3, 64)], ids=["one-epoch", "one-sample"]
)
def test_truth_of_several_steps_explains_the_weights(
    batch_size: int, epochs: int, clients: int, data: Path
) -> None:
    """With the stored noise, the attacks' own simulation of the steps gives the weights sent."""
    config = config_of(
        data, protocol="fedavg", batch_size=batch_size, local_epochs=epochs, clients=clients,
        model_args={"width": 12, "precode": PRECODE},
    )  # fmt: skip
    content, truth = trained(config)
    samples, (noise,) = len(truth.inputs), truth.noise.values()
    assert tuple(noise.shape[:-1]) == ((1, epochs) if epochs > 1 else (samples,))
    model, sent = model_and_weights(config)
    found = knowledge_of(
        config, make_data(config), model, labels=truth.labels,
        update=InterceptedUpdate(1, 0, "fedavg", samples, "smlp", sent, {}),
    )  # fmt: skip
    assert found.steps > 1
    frozen, batch = copy.deepcopy(model).requires_grad_(False), (truth.inputs, truth.labels)
    dummy = DummyUpdate(frozen, found, batch, truth.noise)
    change = change_of(sent, weights_in(content))
    gradient = estimate_gradient(sent, change, found.local, found.steps).gradient
    target = {n: tuple(v[0] for v in t) for n, t in dummy.targets([gradient], samples).items()}
    products, _, _ = dummy.evaluate(*batch, truth.noise, target)
    assert COSTS["relative_error"](products) < 1e-6


def test_noise_of_several_samples_in_several_epochs_is_not_kept(data: Path) -> None:
    config = config_of(
        data, protocol="fedavg", batch_size=4, local_epochs=2,
        model_args={"width": 12, "precode": PRECODE},
    )  # fmt: skip
    _, truth = trained(config)
    assert truth.noise == {}


def test_only_the_victims_truth_is_written(data: Path) -> None:
    config = config_of(data, victim_clients=[1], victim_rounds=[2], rounds=2)
    folder = Path(config.output)
    folder.mkdir()
    app, (_, sent) = client_app(config, TruthFolder(folder)), model_and_weights(config)
    for round_ in (1, 2):
        for client in (0, 1):
            ask(app, client, sent, round_=round_)
    assert [path.name for path in folder.iterdir()] == ["r0002-c0001.safetensors"]


def test_a_deployment_writes_no_truth(data: Path) -> None:
    config = config_of(data)
    ask(client_app(config), 0, model_and_weights(config)[1])
    assert not Path(config.output).exists()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_mode_and_buffers(mode: str, protocol: str, data: Path) -> None:
    config = config_of(
        data, mode=mode, protocol=protocol, path=f"{MODULES}.Normalising", model_args={},
        batch_size=4,
    )  # fmt: skip
    content, truth = trained(config)
    model, sent = model_and_weights(config)
    key = records.BUFFERS if protocol == "fedsgd" else records.ARRAYS
    received = records.to_tensors(content[key])
    buffers = {name: value for name, value in received.items() if "running" in name}
    assert sorted(buffers) == ["layers.1.running_mean", "layers.1.running_var"]
    if mode == "eval":
        # No dropout, stored statistics: the gradient can be computed again, the buffers stay.
        assert all(torch.equal(value, sent[name]) for name, value in buffers.items())
        if protocol == "fedsgd":
            close(gradient_in(content), dense_gradient(model.eval(), truth.inputs, truth.labels))
    else:
        twin = copy.deepcopy(model).train()
        twin(truth.inputs[:4])
        if protocol == "fedsgd":
            close(buffers, {n: v for n, v in twin.state_dict().items() if "running" in n})
        assert not torch.equal(buffers["layers.1.running_mean"], sent["layers.1.running_mean"])
        assert received["layers.1.num_batches_tracked"] == (1 if protocol == "fedsgd" else 4)


def test_evaluation_is_on_the_clients_share_of_the_test_samples(tmp_path: Path) -> None:
    config = config_of(
        tiny_data(tmp_path, samples=200), clients=3, path=f"{MODULES}.Normalising", model_args={}
    )
    app, (model, sent) = client_app(config), model_and_weights(config)
    test_set = make_data(config).test_set
    counted = 0
    for client in range(3):
        content = ask(app, client, sent, kind=MessageType.EVALUATE)
        images, labels = test_set.batch(list(range(client, len(test_set), 3)))
        with torch.no_grad():
            hits = (model.eval()(images).argmax(dim=1) == labels).float().mean()
        metrics = content["metrics"]
        assert metrics["test_acc"] == pytest.approx(float(hits))
        assert metrics[records.EXAMPLES] == len(labels)
        counted += len(labels)
    assert counted == len(test_set)


def test_more_clients_than_test_samples_share_them(data: Path) -> None:
    config = config_of(data, clients=18, batch_size=1, model_args={"width": 12})
    test_set = make_data(config).test_set
    assert len(test_set) < 18
    content = ask(client_app(config), 17, model_and_weights(config)[1], kind=MessageType.EVALUATE)
    assert content["metrics"][records.EXAMPLES] == 1
    assert "test/accuracy" in content["metrics"]


def test_evaluation_of_a_model_that_draws_noise_is_repeatable(data: Path) -> None:
    config = config_of(data, model_args={"width": 12, "precode": PRECODE})
    app, (_, sent) = client_app(config), model_and_weights(config)
    torch.manual_seed(3)
    first = ask(app, 0, sent, kind=MessageType.EVALUATE)["metrics"]
    torch.manual_seed(4)
    again = ask(app, 0, sent, kind=MessageType.EVALUATE)["metrics"]
    assert dict(first) == dict(again)


def test_a_model_with_a_training_step_alone_works(data: Path) -> None:
    config = config_of(data, path=f"{MODULES}.OnlyTrainingStep", model_args={})
    content, truth = trained(config)
    model, _ = model_and_weights(config)
    close(gradient_in(content), dense_gradient(model, truth.inputs, truth.labels))
    content = ask(client_app(config), 0, model_and_weights(config)[1], kind=MessageType.EVALUATE)
    assert list(content["metrics"]) == [records.EXAMPLES]


@pytest.mark.parametrize("name", ["ChangingItsGradient", "ByHand"])
def test_the_gradient_is_that_of_the_optimisers_step(name: str, data: Path) -> None:
    config = config_of(data, path=f"{MODULES}.{name}", model_args={})
    content, truth = trained(config)
    model, _ = model_and_weights(config)
    whole = dense_gradient(model, truth.inputs, truth.labels)
    close(gradient_in(content), {name: value / 8 for name, value in whole.items()})


def test_query_gives_the_clients_number(data: Path) -> None:
    content = ask(client_app(config_of(data)), 3, {}, kind=MessageType.QUERY)
    assert content["metrics"][records.CLIENT] == 3


def test_a_client_that_hangs_is_ended_after_its_time_limit(data: Path) -> None:
    config = config_of(
        data, path=f"{MODULES}.FailingByClass", model_args={}, partition="shards",
        shards_per_client=1, client_timeout=1.0,
    )  # fmt: skip
    by_class = clients_by_class(config)
    app, (_, sent) = client_app(config), model_and_weights(config)
    with pytest.raises(TimeoutError, match="the client did not finish within 1 s"):
        ask(app, by_class[SLEEPS], sent)
    with pytest.raises(RuntimeError, match="the camera is broken"):
        ask(app, by_class[RAISES], sent)
    # The limit is over with the client.
    time.sleep(1.1)


def test_bad_input_inside_a_worker_keeps_its_message(data: Path) -> None:
    config = config_of(data)
    app, (_, sent) = client_app(config), model_and_weights(config)
    other = data.parent / "elsewhere.npz"
    config = config_of(other)
    with pytest.raises(RuntimeError, match="found no file"):
        ask(client_app(config), 0, sent)
    ask(app, 0, sent)


CLIPPING = Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 0.1})


def test_every_client_is_the_user_of_its_number(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1)
    run(settings)
    data = make_data(settings)
    found = updates_of(settings)
    assert len(found) == 7
    for update, truth in found:
        assert torch.equal(truth.inputs[0], data.train_set[update.client][0])


def test_the_compressed_gradient_is_complete(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1)
    run(settings)
    for update, truth in updates_of(settings):
        expected = literal_gradient(settings, update.sent, truth)
        assert set(update.received) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(update.received[name], value, rtol=1e-5, atol=1e-7)
    path = update_files(RunFolder(Path(settings.output)).updates())[0]
    with safe_open(path, framework="pt") as file:
        sent = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert sent < 0.2 * sum(value.numel() for value in expected.values())


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_tied_weights_move_together(tmp_path: Path, protocol: str) -> None:
    settings = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", rounds=2, protocol=protocol, model_args={},
        path="tests.federation.user_models.Tied", defenses=(CLIPPING,),
    )  # fmt: skip
    with in_process():
        experiment.run(settings)
    first, second = (
        next(update.sent for update, _ in updates_of(settings) if update.round == round_)
        for round_ in (1, 2)
    )
    names = ("layers.in/1.weight", "layers.in/2.weight")
    for sent in (first, second):
        assert torch.equal(sent[names[0]], sent[names[1]])
    assert not torch.equal(first[names[0]], second[names[0]])


def test_a_rising_beta_is_the_same_for_client_and_attacker(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", {"anneal_steps": 4, "beta": 5.0}, rounds=3)
    run(settings)
    seen = set()
    for update, truth in updates_of(settings):
        seen.add(int(update.sent["steps"]))
        expected = literal_gradient(settings, update.sent, truth)
        for name, value in expected.items():
            torch.testing.assert_close(update.received[name], value, rtol=1e-4, atol=1e-6)
    assert seen == {0, 1, 2}
