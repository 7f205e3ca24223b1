"""Every defence: the contract, and its numbers against what its paper says, computed literally."""

import inspect
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from fedleak.defenses import (
    DPSGD,
    PPP,
    SVT,
    Censor,
    Clipping,
    Defense,
    GradientDropout,
    NoisyGradients,
    Outgoing,
    Percentile,
    Pruning,
    Quantization,
    Sign,
    Soteria,
    TopK,
)
from fedleak.defenses import protect as apply
from fedleak.defenses.base import Family, total_norm
from fedleak.defenses.soteria import feature_sensitivity
from fedleak.errors import BadInput
from fedleak.models import SMLP, Precode, inject
from fedleak.registry import load_class, names
from tests.cases import client_gradient, pictures

CASES = [
    NoisyGradients(sigma=0.1),
    NoisyGradients(sigma=0.5, distribution="laplace", relative=True),
    PPP(sigma=0.1),
    PPP(sigma=0.5, distribution="laplace", relative=True),
    Pruning(ratio=0.7),
    Pruning(ratio=0.7, error_feedback=True),
    Clipping(max_norm=0.01),
    Sign(),
    Sign(scaled=False),
    Soteria(ratio=0.3),
    DPSGD(max_norm=0.1, noise_multiplier=0.5),
    Percentile(percentile=30.0, gamma=0.01),
    SVT(gamma=0.01),
    SVT(gamma=0.01, replace=False, clip="before"),
    Quantization(bits=4),
    TopK(share=0.2),
    TopK(share=0.2, error_feedback=True),
    GradientDropout(probability=0.3),
    Censor(trials=5),
]
SHAPE = (1, 6, 6)


def name(defense: Defense) -> str:
    return f"{defense.name}-{'-'.join(str(value) for value in vars(defense).values())}"


@pytest.fixture
def outgoing() -> Outgoing:
    torch.manual_seed(0)
    model = SMLP(input_shape=SHAPE, num_classes=4, width=20, precode=Precode(bottleneck_size=5))
    inputs, labels = pictures(3, SHAPE).float(), torch.tensor([0, 2, 3])
    gradient, noise = client_gradient(model, inputs, labels)
    return Outgoing(gradient, model, (inputs, labels), noise)


def test_the_table_has_every_registered_defence():
    registered = {load_class(p.value.replace(":", ".")) for p in names("defenses").values()}
    assert registered == {type(defense) for defense in CASES}


@pytest.mark.parametrize("defense", CASES, ids=name)
def test_contract(defense, outgoing):
    before = {n: value.clone() for n, value in outgoing.update.items()}
    weights = {n: value.clone() for n, value in outgoing.model.state_dict().items()}
    random = torch.random.get_rng_state()
    first, report = apply([defense], outgoing, seed=1, memory={})
    again, _ = apply([defense], outgoing, seed=1, memory={})
    assert list(first) == list(before)
    for key, value in first.items():
        assert value.shape == before[key].shape
        assert value.dtype == before[key].dtype
        assert torch.equal(value, again[key])
        assert torch.equal(outgoing.update[key], before[key])
    assert any(not torch.equal(first[key], value) for key, value in before.items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(weights[n], v) for n, v in outgoing.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in outgoing.model.modules())
    assert set(report) == {f"defense/{defense.name}/{n}" for n in ("norm", "sparsity", "snr_db")}


@pytest.mark.parametrize("defense", CASES, ids=name)
def test_facts(defense, outgoing):
    kind = type(defense)
    for fact in inspect.get_annotations(Defense):
        assert getattr(kind, fact) is getattr(defense, fact)
    assert kind.family in get_args(Family)
    for fact in ("name", "paper", "threat_model", "needs"):
        assert getattr(kind, fact).strip() == getattr(kind, fact) != ""
    one, _ = apply([defense], outgoing, seed=1, memory={})
    other, _ = apply([defense], outgoing, seed=2, memory={})
    assert kind.randomised == any(not torch.equal(one[key], other[key]) for key in one)
    assert kind.needs_batch == (defense.refuses("fedavg") is not None)
    if kind.recomputes_gradient:  # what the update was before makes no difference
        zero = {key: torch.zeros_like(value) for key, value in outgoing.update.items()}
        again, _ = apply([defense], replace(outgoing, update=zero), seed=1, memory={})
        assert all(torch.equal(one[key], again[key]) for key in one)


def test_reported_effect_by_hand():
    update = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0, 0.5]])}
    outgoing = Outgoing(update, torch.nn.Linear(1, 1))
    after, report = apply([Pruning(ratio=0.5)], outgoing, seed=0, memory={})
    assert after["a"].tolist() == [3.0, 0.0]
    assert after["b"].tolist() == [[4.0, 0.0]]
    assert report["defense/pruning/norm"] == pytest.approx(5.0)
    assert report["defense/pruning/sparsity"] == 0.5
    expected = 10 * math.log10((9 + 16 + 0.25) / 0.25)
    assert report["defense/pruning/snr_db"] == pytest.approx(expected)
    _, unchanged = apply([Clipping(max_norm=10)], outgoing, seed=0, memory={})
    assert unchanged["defense/clipping/snr_db"] == math.inf


def test_two_of_a_name_are_told_apart():
    outgoing = Outgoing({"a": torch.tensor([3.0, -4.0])}, torch.nn.Linear(1, 1))
    defenses = [Clipping(max_norm=2.5), Clipping(max_norm=1.0)]
    _, report = apply(defenses, outgoing, seed=0, memory={})
    assert report["defense/clipping/norm"] == pytest.approx(2.5)
    assert report["defense/clipping 2/norm"] == pytest.approx(1.0)


def test_defences_act_one_after_the_other():
    outgoing = Outgoing({"a": torch.tensor([3.0, -4.0, 0.1, 0.2])}, torch.nn.Linear(1, 1))
    after, report = apply([Pruning(ratio=0.5), Clipping(max_norm=1)], outgoing, seed=0, memory={})
    assert after["a"].tolist() == pytest.approx([0.6, -0.8, 0, 0])
    assert report["defense/clipping/norm"] == pytest.approx(1)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_noise_has_the_stated_deviation_and_kurtosis(distribution):
    outgoing = Outgoing({"a": torch.zeros(200_000)}, torch.nn.Linear(1, 1))
    defense = NoisyGradients(sigma=0.25, distribution=distribution)
    noise = apply([defense], outgoing, seed=3, memory={})[0]["a"].double()
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.01)
    kurtosis = float((noise**4).mean() / noise.var() ** 2)
    assert kurtosis == pytest.approx(3 if distribution == "gaussian" else 6, rel=0.1)


def test_partial_noise_is_in_the_layers_before_the_bottleneck(outgoing):
    after, _ = apply([PPP(sigma=0.5, relative=True)], outgoing, seed=0, memory={})
    before = outgoing.update
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert changed == [name for name in after if name.startswith("features.")]
    noise = total_norm({name: after[name] - before[name] for name in changed})
    ratio = noise / total_norm({name: before[name] for name in changed})
    assert ratio == pytest.approx(0.5, rel=0.1)


def test_partial_noise_needs_a_bottleneck():
    plain = SMLP(input_shape=SHAPE, num_classes=4, width=20)
    assert PPP().refuses_model(plain) == ("it has no layers before a bottleneck or other noise")


def test_relative_noise_has_that_share_of_the_norm():
    update = {"a": torch.full((300, 100), 2.0), "b": torch.zeros(5000)}
    after, _ = apply(
        [NoisyGradients(sigma=0.1, relative=True)],
        Outgoing(update, torch.nn.Linear(1, 1)),
        seed=0,
        memory={},
    )
    noise = math.sqrt(sum(float((after[n] - update[n]).square().sum()) for n in update))
    assert noise == pytest.approx(0.1 * 2 * math.sqrt(30_000), rel=0.02)


def test_error_feedback_sends_later_what_was_cut():
    memory: dict = {}
    defense = Pruning(ratio=0.5, error_feedback=True)
    rounds = [torch.tensor([1.0, 0.6, 0.0, 2.0]), torch.tensor([0.0, 0.6, 0.1, 0.2])]
    sent = []
    for update in rounds:
        outgoing = Outgoing({"a": update}, torch.nn.Linear(1, 1))
        sent.append(apply([defense], outgoing, seed=0, memory=memory)[0]["a"])
    assert sent[0].tolist() == [1.0, 0.0, 0.0, 2.0]
    # 0.6 was kept and comes with the second 0.6; 0.2 beats 0.1.
    assert sent[1].tolist() == pytest.approx([0.0, 1.2, 0.0, 0.2])
    assert sum(sent).add(memory["0/a"]).tolist() == pytest.approx(sum(rounds).tolist())


def test_sign_keeps_signs_and_mean_magnitude():
    outgoing = Outgoing({"a": torch.tensor([1.0, -2.0, 0.0, 5.0])}, torch.nn.Linear(1, 1))
    assert apply([Sign()], outgoing, seed=0, memory={})[0]["a"].tolist() == [2.0, -2.0, 0.0, 2.0]
    plain = apply([Sign(scaled=False)], outgoing, seed=0, memory={})[0]["a"]
    assert plain.tolist() == [1.0, -1.0, 0.0, 1.0]


def test_soteria_hides_the_features_that_a_literal_computation_names():
    torch.manual_seed(2)
    model = SMLP(input_shape=SHAPE, num_classes=4, width=20)
    inputs, labels = pictures(2, SHAPE).float(), torch.tensor([1, 3])
    gradient, _ = client_gradient(model, inputs, labels)
    literal = torch.zeros(2, 20)
    for sample in range(2):
        x = inputs[sample : sample + 1].clone().requires_grad_(True)
        features = model.features(x)[0]
        for index, feature in enumerate(features):
            slope = torch.autograd.grad(feature, x, retain_graph=True)[0].norm()
            literal[sample, index] = feature.abs() / slope if feature > 0 else 0
    found = feature_sensitivity(model, "classifier", inputs)
    torch.testing.assert_close(found, literal.detach())
    outgoing = Outgoing(gradient, model, (inputs, labels))
    after, _ = apply([Soteria(ratio=0.25)], outgoing, seed=0, memory={})
    hidden = set(literal.sum(dim=0).topk(5).indices.tolist())
    zero = {i for i in range(20) if not bool(after["classifier.weight"][:, i].any())}
    was_zero = {i for i in range(20) if not bool(gradient["classifier.weight"][:, i].any())}
    assert zero == hidden | was_zero
    assert torch.equal(after["features.1.weight"], gradient["features.1.weight"])


def test_soteria_looks_at_the_features_of_the_clients_own_pass(outgoing):
    inputs, noise = outgoing.batch[0], outgoing.noise
    literal = torch.zeros(3, 20)
    for sample in range(3):
        x = inputs[sample : sample + 1].clone().requires_grad_(True)
        own = {slot: value[sample : sample + 1] for slot, value in noise.items()}
        with inject(outgoing.model, own):
            features = outgoing.model.bottleneck(outgoing.model.features(x))[0]
        for index, feature in enumerate(features):
            slope = torch.autograd.grad(feature, x, retain_graph=True)[0].norm()
            literal[sample, index] = feature.detach().abs() / slope
    found = feature_sensitivity(outgoing.model, "classifier", inputs, noise)
    torch.testing.assert_close(found, literal, rtol=1e-4, atol=1e-6)
    after, _ = apply([Soteria(ratio=0.25)], outgoing, seed=0, memory={})
    hidden = literal.sum(dim=0).topk(5).indices
    assert not bool(after["classifier.weight"][:, hidden].any())
    assert sum(bool(column.any()) for column in after["classifier.weight"].T) == 15


def test_soteria_needs_a_batch_and_a_linear_layer(outgoing):
    assert Soteria().refuses("fedsgd") is None
    assert "fedavg" in Soteria().refuses("fedavg")
    assert Soteria().refuses_model(outgoing.model) is None
    assert "linear layer" in Soteria().refuses_model(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(BadInput, match="one batch"):
        apply([Soteria()], Outgoing(outgoing.update, outgoing.model), seed=0, memory={})
    with pytest.raises(BadInput, match="linear layer"):
        apply(
            [Soteria()],
            Outgoing({}, torch.nn.Conv2d(1, 1, 1), outgoing.batch),
            seed=0,
            memory={},
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyGradients(sigma=-1), "`sigma` of noise"),
        (lambda: Pruning(ratio=1.0), "`ratio` of pruning"),
        (lambda: Clipping(max_norm=0), "`max_norm` of clipping"),
        (lambda: Soteria(ratio=-0.1), "`ratio` of soteria"),
        (lambda: DPSGD(max_norm=0), "`max_norm` of dp_sgd"),
        (lambda: DPSGD(max_norm=math.inf), "`max_norm` of dp_sgd"),
        (lambda: DPSGD(noise_multiplier=-1), "`noise_multiplier` of dp_sgd"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(BadInput, match=message):
        make()
