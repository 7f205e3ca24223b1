"""Defences between a client's training and its sending."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MessageType

from fedleak import experiment
from fedleak.build import make_data, make_defenses, make_model
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.federation import client_app, records
from fedleak.registry import Plugin
from fedleak.updates.files import Tensors
from tests.federation.fakes import ask, context_of, train_question
from tests.federation.runs import tiny_config, tiny_data


def defense(name: str, **settings: Any) -> Plugin:
    module, _, kind = name.partition(".")
    return Plugin(f"fedleak.defenses.{module}.{kind}", settings)


CLIPPING = defense("clipping.Clipping", max_norm=1e-3)
PRUNING = defense("pruning.Pruning", ratio=0.5, error_feedback=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_data(tmp_path)


def config_of(data: Path, *defenses: Plugin, **changes: Any) -> RunConfig:
    return tiny_config(data, data.parent / "run", defenses=defenses, **changes)


def sent_by(config: RunConfig) -> Tensors:
    return make_model(config, make_data(config)).state_dict()


def norm(tensors: Tensors) -> float:
    return float(torch.cat([value.flatten() for value in tensors.values()]).norm())


def test_the_gradient_is_defended_and_the_effect_reported(data):
    plain, defended = config_of(data), config_of(data, CLIPPING)
    sent = sent_by(plain)
    contents = [ask(client_app(config), 1, sent) for config in (plain, defended)]
    first, second = (dict(records.to_compact(content[records.GRADIENT])) for content in contents)
    assert norm(second) == pytest.approx(1e-3, rel=1e-4)
    factor = 1e-3 / norm(first)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value * factor, rtol=1e-4, atol=1e-9)
    metrics = contents[1][records.METRICS]
    assert metrics["defense/clipping/norm"] == pytest.approx(1e-3, rel=1e-4)
    assert not any(name.startswith("defense") for name in contents[0][records.METRICS])


def test_the_change_of_weights_is_defended(data):
    config = config_of(data, CLIPPING, protocol="fedavg", local_epochs=2)
    sent = sent_by(config)
    weights = records.to_tensors(ask(client_app(config), 0, sent)[records.ARRAYS])
    assert norm({name: weights[name] - sent[name] for name in sent}) == pytest.approx(
        1e-3, rel=1e-2
    )


def test_error_feedback_is_kept_in_the_clients_own_state(data):
    config = config_of(data, PRUNING)
    plain, sent = config_of(data), sent_by(config)
    app, context, total = client_app(config), context_of(2), {}
    raw = []
    for round_ in (1, 2):
        question = train_question(2, sent, round_)
        reply = app(Message(question.content, 2, MessageType.TRAIN), context)
        for name, value in records.to_compact(reply.content[records.GRADIENT]).items():
            total[name] = total.get(name, 0) + value
        raw.append(records.to_compact(ask(client_app(plain), 2, sent, round_=round_)["gradient"]))
    kept = records.to_tensors(context.state.array_records[records.DEFENSES])
    for name, value in total.items():
        torch.testing.assert_close(value + kept[f"0/{name}"], raw[0][name] + raw[1][name])
    assert any(bool(value.any()) for value in kept.values())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dp_sgd_uses_the_noise_that_the_client_drew(data, mode):
    args = {"width": 12, "precode": {"bottleneck_size": 6}}
    exact = defense("dp_sgd.DPSGD", max_norm=1e6, noise_multiplier=0.0)
    settings = {"model_args": args, "batch_size": 4, "mode": mode}
    plain, defended = config_of(data, **settings), config_of(data, exact, **settings)
    sent = sent_by(plain)
    first, second = (
        dict(records.to_compact(ask(client_app(config), 1, sent)[records.GRADIENT]))
        for config in (plain, defended)
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


def test_what_recomputes_the_gradient_comes_first(data):
    dp_sgd = defense("dp_sgd.DPSGD")
    assert len(make_defenses(config_of(data, dp_sgd, PRUNING))) == 2
    with pytest.raises(BadInput, match="Expected dp_sgd before the other `defenses`, as it recomp"):
        make_defenses(config_of(data, PRUNING, dp_sgd))


def test_a_model_that_cannot_be_defended_is_refused_before_anything_is_written(data):
    config = config_of(
        data, defense("dp_sgd.DPSGD"), path="fedleak.models.resnet.ResNet18", model_args={}
    )
    with pytest.raises(BadInput, match="model that dp_sgd can defend, but its batch norm `feature"):
        experiment.run(config)
    assert not Path(config.output).exists()


def test_defences_that_do_not_fit_the_protocol_are_refused(data):
    soteria = defense("soteria.Soteria")
    assert len(make_defenses(config_of(data, soteria))) == 1
    with pytest.raises(BadInput, match="soteria works on the gradient of one batch"):
        make_defenses(config_of(data, soteria, protocol="fedavg"))
    with pytest.raises(BadInput, match="`defenses` to name a subclass of Defense"):
        make_defenses(config_of(data, Plugin("fedleak.attacks.iga.IGA")))


def test_the_name_in_the_tables_has_what_is_not_a_default(data):
    assert config_of(data).defense_name == "none"
    noise = defense("noise.NoisyGradients", sigma=0.5, distribution="gaussian")
    assert config_of(data, PRUNING, noise).defense_name == (
        "pruning(ratio=0.5,error_feedback=True)+noise(sigma=0.5)"
    )
