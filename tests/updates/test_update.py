import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file
from torch import Tensor, nn

from fedleak.attacks import IGA
from fedleak.errors import BadInput
from fedleak.metrics import score_images
from fedleak.models import SMLP
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import NAME, Tensors, remove_round, update_files, update_key
from fedleak.updates.gradient_estimate import change_of, estimate_gradient
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate, gradient_to_weights
from tests.cases import MODELS, Victim, case_victim, make_victim
from tests.reference import dense_gradient, shared_values
from tests.toys import Linear, Normalised

# ------------------------------------------------------------------------- gradients and weights


def weights_to_gradient(
    sent: Tensors, received: Tensors, *, learning_rate: float, steps: int
) -> Tensors:
    facts = LocalTraining(learning_rate=learning_rate)
    return estimate_gradient(sent, change_of(sent, received), facts, steps).gradient


def test_weights_to_gradient_by_hand() -> None:
    """Weights move against the gradient, once a step, by the learning rate."""
    sent = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5])}
    received = {"w": torch.tensor([0.9, 2.4]), "b": torch.tensor([0.5])}
    found = weights_to_gradient(sent, received, learning_rate=0.1, steps=2)
    # (1.0 - 0.9) / 0.2 and (2.0 - 2.4) / 0.2
    torch.testing.assert_close(found["w"], torch.tensor([0.5, -2.0]))
    assert found["b"] == 0


def test_gradient_to_weights_by_hand() -> None:
    sent = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor([7])}
    found = gradient_to_weights(sent, {"w": torch.tensor([0.5, -2.0])}, learning_rate=0.1)
    torch.testing.assert_close(found["w"], torch.tensor([0.95, 2.2]))
    assert torch.equal(found["count"], sent["count"])


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5),
    st.floats(1e-3, 10),
)
def test_each_is_the_inverse_of_the_other(values: list[float], learning_rate: float) -> None:
    gradient = {"w": torch.tensor(values, dtype=torch.float64)}
    sent = {"w": torch.linspace(-1, 1, len(values), dtype=torch.float64)}
    moved = gradient_to_weights(sent, gradient, learning_rate=learning_rate)
    back = weights_to_gradient(sent, moved, learning_rate=learning_rate, steps=1)
    torch.testing.assert_close(back["w"], gradient["w"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_several_steps_give_their_mean_gradient(steps: int) -> None:
    """torch's own SGD does the steps; the gradient of W x is worked out by its formula."""
    model = Linear()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.1]]))
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(2, 3)
    for step in range(steps):
        x, y = torch.randn(1, 3, generator=generator), torch.tensor([step % 2])
        probabilities = torch.softmax(x @ model.layer.weight.T, dim=1).detach()
        one_hot = torch.eye(2)[y]
        mean += (probabilities - one_hot).T @ x / steps
        optimizer.zero_grad()
        model.batch_loss((x, y)).backward()
        optimizer.step()
    received = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = weights_to_gradient(sent, received, learning_rate=0.3, steps=steps)
    torch.testing.assert_close(found["layer.weight"], mean, rtol=1e-4, atol=1e-6)


def one_step(model: nn.Module, victim: Victim, learning_rate: float) -> InterceptedUpdate:
    """The same client, had it taken an SGD step and sent its weights."""
    twin = type(model)(input_shape=(1, 8, 8), num_classes=4, width=64)
    twin.load_state_dict(victim.update.sent)
    optimizer = torch.optim.SGD(twin.parameters(), lr=learning_rate)
    batch_loss(twin, (victim.truth.inputs, victim.truth.labels)).backward()
    optimizer.step()
    received = {name: value.detach().clone() for name, value in twin.state_dict().items()}
    return replace(victim.update, protocol="fedavg", received=received)


def test_gradient_from_the_weights_of_one_step() -> None:
    learning_rate = 0.03
    torch.manual_seed(0)
    model = SMLP(input_shape=(1, 8, 8), num_classes=4, width=64)
    victims = [make_victim(model, (1, 8, 8), client=client) for client in range(2)]
    facts = [replace(v.knowledge, learning_rate=learning_rate) for v in victims]
    weights = [one_step(model, victim, learning_rate) for victim in victims]
    for victim, update, known in zip(victims, weights, facts, strict=True):
        estimate, gradient = update.gradient(model, known), victim.update.received
        assert estimate.keys() == gradient.keys()
        for name, value in gradient.items():
            cosine = torch.cosine_similarity(estimate[name].flatten(), value.flatten(), dim=0)
            assert cosine > 0.999, name
            assert float(estimate[name].norm() / value.norm()) == pytest.approx(1, abs=1e-3)
    attack = IGA(iterations=200, learning_rate=0.03)
    decibels = {}
    for protocol, updates in (("fedsgd", [v.update for v in victims]), ("fedavg", weights)):
        results = attack(updates, facts)
        decibels[protocol] = [
            score_images(victim.truth, result, mean=known.mean, std=known.std)[0].psnr
            for victim, result, known in zip(victims, results, facts, strict=True)
        ]
    assert min(decibels["fedsgd"]) > 20
    assert decibels["fedavg"] == pytest.approx(decibels["fedsgd"], abs=0.5)


def test_gradient_is_of_parameters_alone() -> None:
    torch.manual_seed(0)
    model = Normalised()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    received = {name: value + 1 for name, value in sent.items()}
    update = InterceptedUpdate(1, 0, "fedavg", 4, "own", sent, received)
    knowledge = Knowledge(model, (1, 6, 6), 3, learning_rate=0.5, local_steps=4)
    found = update.gradient(model, knowledge)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for value in found.values():
        torch.testing.assert_close(value, torch.full_like(value, -0.5))
    sgd = replace(update, protocol="fedsgd").gradient(model, knowledge)
    assert all(torch.equal(sgd[name], received[name]) for name in found)


# ------------------------------------------------------------------------------------- knowledge


# ----------------------------------------------------------------------------------- what is saved


@pytest.fixture
def victim() -> Victim:
    return case_victim(MODELS[0], precode=True, batch=2, client=3)


def with_buffers(protocol: str = "fedavg") -> InterceptedUpdate:
    torch.manual_seed(0)
    model = Normalised()
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    model.batch_loss((torch.randn(2, 1, 6, 6), torch.tensor([0, 1])))
    received = {name: value.clone() for name, value in model.state_dict().items()}
    return InterceptedUpdate(2, 5, protocol, 17, "own", sent, received)


def facts_of(update: InterceptedUpdate) -> dict[str, object]:
    return {n: v for n, v in vars(update).items() if n not in ("sent", "received")}


def assert_same(left: InterceptedUpdate, right: InterceptedUpdate) -> None:
    assert facts_of(left) == facts_of(right)
    for name in ("sent", "received"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert shared_values(ours, theirs)
        assert {n: v.dtype for n, v in ours.items()} == {n: v.dtype for n, v in theirs.items()}


def test_saved_and_loaded_is_the_same_to_the_bit(victim: Victim, tmp_path: Path) -> None:
    path = victim.update.save(tmp_path)
    assert path == tmp_path / "r0001-c0003.safetensors"
    assert_same(InterceptedUpdate.load(path), victim.update)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "r0001-c0003.safetensors", "r0001-global.safetensors",
    ]  # fmt: skip


def test_clients_that_were_combined_are_saved(victim: Victim, tmp_path: Path) -> None:
    for number, update in enumerate(
        [victim.update, replace(victim.update, clients=3, aggregation="sum")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = InterceptedUpdate.load(update.save(folder))
        assert (found.clients, found.aggregation) == (update.clients, update.aggregation)


def test_buffers_are_saved_too(tmp_path: Path) -> None:
    update = with_buffers()
    assert update.received["norm.num_batches_tracked"] == 1
    assert not torch.equal(update.sent["norm.running_mean"], update.received["norm.running_mean"])
    assert_same(InterceptedUpdate.load(update.save(tmp_path)), update)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(victim: Victim, tmp_path: Path, dtype: torch.dtype) -> None:
    received = {name: value.to(dtype) for name, value in victim.update.received.items()}
    update = replace(victim.update, received=received)
    assert_same(InterceptedUpdate.load(update.save(tmp_path)), update)


def test_tensors_that_share_memory_or_lie_askew(tmp_path: Path) -> None:
    """Tied weights, a transposed view, a slice of something larger, a parameter itself."""
    value = torch.arange(12.0).reshape(3, 4)
    sent = {"a": value, "b": value, "c": value.T, "d": value[1:], "e": nn.Parameter(value)}
    update = InterceptedUpdate(1, 0, "fedavg", 1, "own", sent, dict(sent))
    loaded = InterceptedUpdate.load(update.save(tmp_path))
    for name, tensor in sent.items():
        assert torch.equal(loaded.sent[name], tensor)
        assert torch.equal(loaded.received[name], tensor)


def test_a_round_shares_what_was_sent(victim: Victim, tmp_path: Path) -> None:
    victim.update.save(tmp_path)
    shared = tmp_path / "r0001-global.safetensors"
    stamp = shared.stat().st_mtime_ns
    replace(victim.update, client=4).save(tmp_path)
    replace(victim.update, round=2).save(tmp_path)
    assert shared.stat().st_mtime_ns == stamp
    assert [path.name for path in update_files(tmp_path)] == [
        "r0001-c0003.safetensors", "r0001-c0004.safetensors", "r0002-c0003.safetensors",
    ]  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 5


def test_key() -> None:
    assert update_key(1, 3) == "r0001-c0003"
    assert update_key(123, 45678) == "r0123-c45678"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    round_=st.integers(1, 10**6),
    client=st.integers(0, 10**6),
    protocol=st.sampled_from(["fedsgd", "fedavg"]),
    examples=st.integers(0, 10**9 - 1),
    model=st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name.encode()) <= 100),
)
def test_any_header_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    round_: int,
    client: int,
    protocol: str,
    examples: int,
    model: str,
) -> None:
    tensors = {"w": torch.tensor([1.5])}
    update = InterceptedUpdate(round_, client, protocol, examples, model, tensors, tensors)
    loaded = InterceptedUpdate.load(update.save(tmp_path_factory.mktemp("update")))
    assert facts_of(loaded) == facts_of(update)


# ------------------------------------------------------------------------------- what is refused


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def header_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path)


def scribbled(path: Path) -> None:
    path.write_text("round,client\n1,2\n")


@pytest.mark.parametrize("damage", [truncated, header_cut, emptied, pickled, scribbled])
@pytest.mark.parametrize("which", ["r0001-c0003", "r0001-global"])
def test_damaged_file(
    victim: Victim, tmp_path: Path, damage: Callable[[Path], None], which: str
) -> None:
    path = victim.update.save(tmp_path)
    damage(tmp_path / f"{which}.safetensors")
    with pytest.raises(BadInput, match=rf"complete safetensors file at .*{which}.*copy it again"):
        InterceptedUpdate.load(path)


def test_missing_files(victim: Victim, tmp_path: Path) -> None:
    path = victim.update.save(tmp_path)
    with pytest.raises(BadInput, match=r"file at .*r0001-c0009.safetensors, found none"):
        InterceptedUpdate.load(path.with_name("r0001-c0009.safetensors"))
    (tmp_path / "r0001-global.safetensors").unlink()
    with pytest.raises(BadInput, match=r"file at .*r0001-global.safetensors, found none"):
        InterceptedUpdate.load(path)


def test_other_format(victim: Victim, tmp_path: Path) -> None:
    path = victim.update.save(tmp_path)
    with pytest.raises(BadInput, match=r"of format fedleak-update-1 at .* got 'fedleak-global-1'"):
        InterceptedUpdate.load(tmp_path / "r0001-global.safetensors")
    with pytest.raises(BadInput, match=r"of format fedleak-truth-1 at .* got 'fedleak-update-1'"):
        GroundTruth.load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(
        BadInput, match=r"fedleak-update-1 at .* a safetensors file without a format"
    ):
        InterceptedUpdate.load(path)
    save_file({"w": torch.ones(1)}, path, {"format": "fedleak-update-2"})
    with pytest.raises(BadInput, match=r"fedleak-update-1 at .* got 'fedleak-update-2'"):
        InterceptedUpdate.load(path)


HEADER = {
    "format": "fedleak-update-1", "round": "1", "client": "2", "protocol": "fedsgd",
    "num_examples": "1", "model": "m",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"round": None}, "complete header in"),
        ({"client": "two"}, "complete header in .*'client': 'two'"),
        ({"num_examples": ""}, "complete header in"),
        ({"model": None}, "complete header in"),
        ({"round": "0"}, "complete header in"),
        ({"round": "-1"}, "complete header in"),
        ({"round": "1" * 10}, "complete header in"),
        ({"client": "٣"}, "complete header in"),
        ({"client": "1_0"}, "complete header in"),
        ({"num_examples": "-8"}, "complete header in"),
        ({"client": "3"}, r"the header of .*r0001-c0002.safetensors to be .*, got r0001-c0003"),
        ({"model": "../../x"}, r"the name of the model in .* to consist of .*, got '../../x'"),
        ({"protocol": "gossip"}, "protocol fedsgd, fedavg, delta in .*, got 'gossip'"),
        ({"clients": "0"}, "complete header in"),
        ({"clients": "two"}, "complete header in"),
        ({"aggregation": "max"}, "aggregation weighted_mean, mean, sum in .*, got 'max'"),
    ],
)
def test_bad_header(tmp_path: Path, change: dict[str, str | None], text: str) -> None:
    header = {name: value for name, value in (HEADER | change).items() if value is not None}
    path = tmp_path / "r0001-c0002.safetensors"
    save_file({"w": torch.ones(1)}, tmp_path / "r0001-global.safetensors",
              {"format": "fedleak-global-1"})  # fmt: skip
    save_file({"w": torch.ones(1)}, path, header)
    with pytest.raises(BadInput, match=text):
        InterceptedUpdate.load(path)


def test_names_that_are_none_are_not_written(victim: Victim, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the name of the model to consist of"):
        replace(victim.update, model="../x").save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_compact_gradient_is_compared_with_the_model_before_it_is_written_out(
    victim: Victim,
) -> None:
    """2**60 numbers: written out, they would be more than any memory."""
    name = next(iter(victim.update.received))
    long = torch.zeros(1).expand(2**30)
    received = dict(victim.update.received)
    del received[name]
    received |= {f"{name}..rows": long, f"{name}..columns": long}
    with pytest.raises(BadInput, match=r"of shape .* got \(1073741824, 1073741824\)"):
        replace(victim.update, received=CompactTensors(received)).check(victim.model)


@pytest.mark.parametrize("where", ["sent", "received"])
def test_weights_are_floating_point(victim: Victim, where: str) -> None:
    tensors = dict(getattr(victim.update, where))
    name = next(iter(tensors))
    tensors[name] = tensors[name].long()
    with pytest.raises(BadInput, match=f"floating point numbers in `{name}` of update r0001-c0003"):
        replace(victim.update, **{where: tensors}).check(victim.model)


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        (
            "sent",
            {"features.1.bias": None},
            r"its sent tensors lack \['features.1.bias'\] and additionally have noth",
        ),
        (
            "received",
            {"strange": torch.ones(1)},
            r"tensors lack nothing and additionally have \['strange'\]",
        ),
        (
            "sent",
            {"features.1.bias": torch.ones(25)},
            r"`features.1.bias` of shape \(24,\) .*\(25,",
        ),
        ("received", {"features.1.bias": torch.ones(24, 1)}, r"of shape \(24,\) .*got \(24, 1\)"),
        (
            "sent",
            {"features.1.bias": torch.full((24,), math.nan)},
            "`features.1.bias` of update r0",
        ),
        ("received", {"features.1.bias": torch.full((24,), math.inf)}, "NaN or infinity in `feat"),
    ],
)
def test_update_that_does_not_fit(
    victim: Victim, where: str, change: dict[str, Tensor | None], text: str
) -> None:
    tensors: Tensors = {
        name: value
        for name, value in (getattr(victim.update, where) | change).items()
        if value is not None
    }
    victim.update.check(victim.model)
    with pytest.raises(BadInput, match=text):
        replace(victim.update, **{where: tensors}).check(victim.model)


def test_an_update_may_leave_buffers_out_or_bring_them() -> None:
    model = Normalised()
    update = with_buffers()
    parameters = {name for name, _ in model.named_parameters()}
    received = {n: v for n, v in update.received.items() if n in parameters}
    assert set(update.received) > parameters
    for protocol, values in (("fedavg", update.received), ("fedsgd", received)):
        found = replace(update, protocol=protocol, received=values)
        found.check(model)
        knowledge = Knowledge(model, (3, 4, 4), 2, learning_rate=0.5)
        assert set(found.gradient(model, knowledge)) == parameters
    part = replace(update, received=dict(list(received.items())[1:]))
    part.check(model)  # as of adapters, or without the gradient of an unused layer
    buffers = {n: v for n, v in update.received.items() if n not in parameters}
    for values in ({}, buffers):
        with pytest.raises(BadInput, match="its received tensors lack"):
            replace(update, received=values).check(model)


def test_the_estimate_agrees_with_autograd_of_the_model(victim: Victim) -> None:
    """What the tests call a client's gradient is the gradient by definition."""
    expected = dense_gradient(
        victim.model, victim.truth.inputs, victim.truth.labels, victim.truth.noise
    )
    for name, value in victim.update.received.items():
        torch.testing.assert_close(value, expected[name])


def test_another_federations_folder_is_not_written_to(tmp_path: Path) -> None:
    """The weights that were sent lie in one file of a round: those of another are not taken."""
    one, other = (torch.nn.Linear(3, 2) for _ in range(2))
    gradient = [torch.ones_like(value) for value in one.parameters()]
    InterceptedUpdate.of(one, gradient=gradient).save(tmp_path)
    InterceptedUpdate.of(one, gradient=gradient, client=1).save(str(tmp_path))
    with pytest.raises(BadInput, match=r"weights that were sent in round 1 in .*, found others"):
        InterceptedUpdate.of(other, gradient=gradient, client=2).save(tmp_path)
    with pytest.raises(BadInput, match=r"a folder for updates at .*nowhere, found none"):
        InterceptedUpdate.of(one, gradient=gradient).save(tmp_path / "nowhere")
    remove_round(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_arrays_keeps_its_order_and_a_client_its_own_sent_weights(tmp_path: Path) -> None:
    """More than ten: as text, "10" comes before "2"."""
    arrays = {str(at): torch.full((2,), float(at)) for at in range(13)}
    for client, own in ((0, False), (1, True), (2, False)):
        sent = {name: value + client for name, value in arrays.items()} if own else arrays
        InterceptedUpdate(3, client, "fedavg", 1, "net", sent, sent).save(tmp_path, own=own)
    for client, own in ((0, 0), (1, 1), (2, 0)):
        update = InterceptedUpdate.load(tmp_path / f"r0003-c{client:04d}.safetensors")
        for tensors in (update.sent, update.received):
            assert list(tensors) == list(arrays)
        assert all(torch.equal(update.sent[n], arrays[n] + own) for n in arrays)
    assert len(update_files(tmp_path)) == 3
    remove_round(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_lazy_layer_that_was_never_called_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(BadInput, match=r"got `1\.weight` of a lazy layer: call the model once"):
        InterceptedUpdate.of(model, gradient=[torch.zeros(3, 4), torch.zeros(3)])
    model(torch.zeros(1, 4))
    found = InterceptedUpdate.of(model, gradient=[torch.zeros(3, 4), torch.zeros(3)])
    assert set(found.received) == {"1.weight", "1.bias"}
