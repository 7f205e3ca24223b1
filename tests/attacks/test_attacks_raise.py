"""Bad input to attacks: one sentence that names what was wrong."""

import inspect
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks import IGA, NRA
from fedleak.errors import BadInput
from fedleak.models import LeNet
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate
from tests.cases import ATTACKS, MODELS, AttackCase, Victim, case_victim

KINDS = list({case.kind: case for case in ATTACKS}.values())
every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind.name)


OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("iterations", 0, "`iterations` to be at least 1, got 0"),
    ("iterations", -5, "`iterations` to be at least 1, got -5"),
    ("restarts", 0, "`restarts` to be at least 1, got 0"),
    ("at_once", 0, "`at_once` to be at least 1, got 0"),
    ("patience", 0, "`patience` to be at least 1, got 0"),
    ("learning_rate", 0.0, "`learning_rate` to be positive, got 0.0"),
    ("learning_rate", -1.0, "`learning_rate` to be positive, got -1.0"),
    ("learning_rate", math.nan, "`learning_rate` to be positive, got nan"),
    ("total_variation", -1e-9, "`total_variation` to be at least 0, got -1e-09"),
    ("cost", "cosin", "Unknown cost `cosin`: .*squared_error.* Did you mean `cosine`"),
    ("optimizer", "adm", "Unknown optimizer `adm`: .*lbfgs.* Did you mean `adam`"),
    ("optimizer", "lbfgs", "`signed: false` with `optimizer: lbfgs`"),
    ("precision", "float16", "Unknown precision `float16`: .*float32, float64"),
    ("compile", "traced", "Unknown compile `traced`: .* Did you mean `trace`"),
    ("batch_norm", -1.0, "`batch_norm` to be at least 0, got -1.0"),
    ("layers", {"*": -1.0}, r"`layers.\*` to be at least 0, got -1.0"),
]


def settings_of(case: AttackCase) -> set[str]:
    return set(inspect.signature(case.kind).parameters)


@pytest.mark.parametrize(
    ("case", "name", "value", "text"),
    [
        pytest.param(case, name, value, text, id=f"{case.kind.name}-{name}-{value}")
        for case in KINDS
        for name, value, text in OUT_OF_RANGE
        # What does not sign anything goes with L-BFGS.
        if name in settings_of(case) and (value != "lbfgs" or "signed" in settings_of(case))
    ],
)
def test_hyperparameter_out_of_range(case: AttackCase, name: str, value: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        case.kind(**{name: value})


@every_kind
def test_a_hyperparameter_that_does_not_exist(case: AttackCase) -> None:
    with pytest.raises(TypeError, match=r"iteration|takes no arguments"):
        case.kind(iteration=3)


@pytest.fixture
def victim() -> Victim:
    return case_victim(MODELS[0], precode=True, batch=2)


@every_kind
def test_as_many_facts_as_updates(case: AttackCase, victim: Victim) -> None:
    attack = case.make()
    with pytest.raises(BadInput, match=r"`knowledge`.* each of 2 updates, got 3"):
        attack([victim.update] * 2, [victim.knowledge] * 3)
    with pytest.raises(BadInput, match=r"`knowledge`.* each of 1 updates, got 0"):
        attack([victim.update], [])


@every_kind
@pytest.mark.parametrize("labels", [torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor(1)])
def test_as_many_labels_as_samples(case: AttackCase, victim: Victim, labels: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="Expected 2 known labels, got shape"):
        case.make()([victim.update], replace(victim.knowledge, labels=labels))


@every_kind
def test_update_of_another_model(case: AttackCase, victim: Victim) -> None:
    other = LeNet(input_shape=(1, 8, 8), num_classes=4)
    with pytest.raises(BadInput, match=r"update of LeNet, .*lack .*'features.0.bias'"):
        case.make()([victim.update], replace(victim.knowledge, model=other))
    wider = MODELS[0].make(precode=True, width=25)
    with pytest.raises(BadInput, match=r"of shape \(25, 64\) in an update of SMLP, got \(24, 64\)"):
        case.make()([victim.update], replace(victim.knowledge, model=wider))


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["sent", "received"])
def test_update_that_is_not_finite(
    case: AttackCase, victim: Victim, value: float, where: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in getattr(victim.update, where).items()}
    tensors["classifier.weight"][0, 0] = value
    with pytest.raises(BadInput, match=r"NaN or infinity in `classifier.weight` .*r0001-c0000"):
        case.make()([replace(victim.update, **{where: tensors})], victim.knowledge)


@every_kind
def test_one_bad_update_among_good_ones_starts_nothing(case: AttackCase, victim: Victim) -> None:
    received = {n: torch.full_like(v, math.nan) for n, v in victim.update.received.items()}
    bad = replace(victim.update, client=9, received=received)
    with pytest.raises(BadInput, match="r0001-c0009"):
        case.make()([victim.update, bad], victim.knowledge, report=pytest.fail)


@every_kind
def test_inputs_that_the_model_does_not_take(case: AttackCase, victim: Victim) -> None:
    with pytest.raises(BadInput, match=r"inputs of shape \(1, 9, 9\) and .*, but SMLP fails"):
        case.make()([victim.update], replace(victim.knowledge, input_shape=(1, 9, 9)))


@every_kind
def test_model_without_a_loss(case: AttackCase) -> None:
    layer = torch.nn.Linear(3, 2)
    victim = case_victim(MODELS[0], precode=False)
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    update = replace(victim.update, sent=state, received=state)
    facts = replace(victim.knowledge, model=layer, input_shape=(3,), mean=(0.0,), std=(1.0,))
    with pytest.raises(BadInput, match=r"Linear to have `batch_loss.*training_step"):
        case.make()([update], facts)


@pytest.mark.parametrize("case", [c for c in KINDS if c.kind.noise == "required"], ids=str)
def test_some_need_a_model_that_draws_noise(case: AttackCase) -> None:
    victim = case_victim(MODELS[0], precode=False)
    name = case.kind.name
    with pytest.raises(
        BadInput,
        match=f"that {name} can use: {name} needs a model that draws noise and SMLP draws none",
    ):
        case.make()([victim.update], victim.knowledge)
    assert "draws none" in str(case.make().refuses(victim.knowledge))
    assert case.make().refuses(case_victim(MODELS[0], precode=True).knowledge) is None


def test_labels_cannot_be_recovered_without_a_classifier() -> None:
    victim = case_victim(MODELS[0], precode=True)
    facts = replace(victim.knowledge, labels=None, num_classes=7)
    with pytest.raises(BadInput, match="7 outputs to recover labels from, found none in SMLP"):
        NRA(iterations=1)([victim.update], facts)


def test_layers_that_are_not_there() -> None:
    victim = case_victim(MODELS[0], precode=False)
    sentence = (
        r"`layers.clasifier.\*` fits no parameter of SMLP, the nearest being `classifier.bias`"
    )
    with pytest.raises(BadInput, match=sentence):
        IGA(iterations=2, layers={"clasifier.*": 1.0})([victim.update], victim.knowledge)
    with pytest.raises(BadInput, match="to leave a parameter to compare"):
        IGA(iterations=2, layers={"*": 0.0})([victim.update], victim.knowledge)


def test_a_prior_without_statistics_to_compare_with() -> None:
    victim = case_victim(MODELS[0], precode=False)
    with pytest.raises(BadInput, match="`batch_norm` needs running statistics and SMLP keeps none"):
        IGA(iterations=2, batch_norm=0.1)([victim.update], victim.knowledge)


# ----------------------------------------------------------------------- how many samples there are


def of_eight() -> tuple[InterceptedUpdate, Knowledge]:
    """An update whose client reports 8 samples, and a server that was told of none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    inputs, labels = torch.rand(8, 3, 2, 2), torch.arange(8) % 4
    loss = functional.cross_entropy(model(inputs), labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    update = InterceptedUpdate.of(model, gradient=gradient, num_examples=8)
    facts = Knowledge(
        model, (3, 2, 2), 4, loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1])
    )
    return update, facts


def test_the_number_of_samples_is_taken_from_the_update() -> None:
    update, facts = of_eight()
    (found,) = IGA(iterations=2)([update], facts)
    assert found.inputs.shape == (8, 3, 2, 2)
    assert found.findings[0] == "number of samples taken from the update: 8"


def test_known_labels_tell_the_number_of_samples() -> None:
    update, facts = of_eight()
    (found,) = IGA(iterations=2)([update], replace(facts, labels=torch.arange(8) % 4))
    assert len(found.inputs) == 8
    assert all(finding.startswith("not supported") for finding in found.findings)


def test_what_was_told_of_the_samples_holds_and_a_contradiction_is_said() -> None:
    update, facts = of_eight()
    (found,) = IGA(iterations=2)([update], replace(facts, num_samples=3))
    assert len(found.inputs) == 3
    assert found.findings[0] == "3 samples were told, the client reports 8"


def test_an_update_of_no_samples_is_refused() -> None:
    update, facts = of_eight()
    with pytest.raises(BadInput, match="`num_samples` to be told where an update says none, got 0"):
        IGA(iterations=2)([replace(update, num_examples=0)], facts)
