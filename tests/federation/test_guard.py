"""The guard around a Flower client: honest models pass, others are refused with the reason."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    RecordDict,
)  # fmt: skip
from flwr.client.mod import secaggplus_mod
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.compat.common.recorddict_compat import fitins_to_recorddict
from torch import Tensor, nn

from fedleak import experiment
from fedleak.errors import BadInput
from fedleak.federation import GuardMod, records
from fedleak.runs.folder import RunFolder
from fedleak.updates.files import update_files
from tests.federation.fakes import context_of, fails, sends_weights
from tests.federation.runs import in_process, tiny_config, tiny_data


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 4))


def samples(message: Message, context: Context) -> Tensor:
    return torch.randn(128, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def malicious() -> nn.Sequential:
    model = make_model()
    model[0].weight.copy_(model[0].weight[:1].expand(40, 32))
    model[2].weight.copy_(model[2].weight[:, :1].expand(4, 40))
    found = samples(None, None) @ model[0].weight[0]
    model[0].bias.copy_(-torch.quantile(found, torch.linspace(0.7, 0.995, 40)))
    return model


def question(model: nn.Module, kind: str = MessageType.TRAIN, **config: Any) -> Message:
    content = RecordDict({
        records.ARRAYS: records.to_record(model.state_dict()),
        records.CONFIG: ConfigRecord({records.ROUND: 1, **config}),
    })  # fmt: skip
    return Message(content, 3, kind)


class App:
    """Adds to the weights what it is told to; counts its calls."""

    def __init__(self, step: float = 0.01) -> None:
        self.calls, self.step = 0, step

    def __call__(self, message: Message, context: Context) -> Message:
        self.calls += 1
        sent = records.to_tensors(message.content.array_records[records.ARRAYS])
        moved = {name: value + self.step for name, value in sent.items()}
        return sends_weights(message, moved, 5)


@pytest.mark.parametrize("action", ["refuse", "warn"])
def test_an_honest_model_is_trained(action: str) -> None:
    app = App()
    reply = GuardMod(make_model, samples, action=action)(
        question(make_model(1)), context_of(0), app
    )
    assert app.calls == 1
    assert not reply.has_error()
    assert reply.content.metric_records[records.METRICS][records.EXAMPLES] == 5


def test_a_malicious_model_is_refused_with_the_layers_name() -> None:
    app = App()
    reply = GuardMod(make_model, samples)(question(malicious()), context_of(0), app)
    assert app.calls == 0
    assert reply.has_error()
    assert "GuardMod: 100% of the rows of layer `0` are parallel" in reply.error.reason
    assert "of 128 samples, more than with random weights, could be read" in reply.error.reason


def test_a_warning_is_logged_and_the_app_trains(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, logger="flwr"):
        reply = GuardMod(make_model, samples, action="warn")(
            question(malicious()), context_of(0), app
        )
    assert app.calls == 1
    assert not reply.has_error()
    assert "the rows of layer `0` are parallel" in caplog.text


def test_what_an_honest_model_exposes_is_logged_and_it_is_trained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()
    logging.getLogger("flwr").propagate = True
    mod = GuardMod(make_model, samples, limits={"exposed_64": 0.0, "exposed_128": 0.0})
    model = make_model()
    with torch.no_grad():
        model[0].weight *= torch.arange(len(model[0].weight))[:, None] + 1
    with caplog.at_level(logging.WARNING, logger="flwr"):
        reply = mod(question(model), context_of(0), app)
    exposed = mod.inspect(question(model), context_of(0)).remarks
    assert app.calls == 1
    assert not reply.has_error()
    assert [text for text in exposed if text not in caplog.text] == []


@pytest.mark.parametrize(
    ("config", "agreed", "refused"),
    [
        ({"lr": 0.1}, None, False),
        ({"lr": 1e-12}, None, True),
        ({"lr": 0.001}, {"lr": 0.1}, True),
        ({"lr": 0.05}, {"lr": 0.1}, False),
    ],
)
def test_the_configuration_is_looked_at(
    config: dict[str, float], agreed: dict[str, float] | None, refused: bool
) -> None:
    mod = GuardMod(make_model, samples, agreed=agreed)
    reply = mod(question(make_model(), **config), context_of(0), App())
    assert reply.has_error() is refused
    assert not refused or "The server set `lr`" in reply.error.reason


def test_the_change_is_compared_with_the_clients_own_update_of_the_round_before() -> None:
    mod, context = GuardMod(make_model, samples), context_of(0)
    first = make_model()
    assert not mod(question(first), context, App(0.01)).has_error()
    second = make_model()
    with torch.no_grad():
        for value in second.parameters():
            value += 0.02
    assert not mod(question(second), context, App(0.001)).has_error()
    with torch.no_grad():
        for value in second.parameters():
            value += 0.02
    reply = mod(question(second), context, App())
    assert "changed the model by 20 times the client's own last update" in reply.error.reason


def test_replies_that_are_no_weights_are_not_remembered() -> None:
    mod, context = GuardMod(make_model, samples), context_of(0)
    mod(question(make_model()), context, lambda message, _: fails(message))
    other = RecordDict({"x": records.to_record({"x": torch.zeros(2)})})
    mod(question(make_model()), context, lambda message, _: Message(other, reply_to=message))
    assert not context.state.array_records


def test_other_messages_are_passed_on() -> None:
    app = App()
    GuardMod(make_model, samples)(question(malicious(), MessageType.EVALUATE), context_of(0), app)
    assert app.calls == 1


def test_arrays_without_names_are_taken_in_the_models_order() -> None:
    state = malicious().state_dict()
    unnamed = {str(number): value for number, value in enumerate(state.values())}
    content = RecordDict({"parameters": records.to_record(unnamed)})
    app = App()
    reply = GuardMod(make_model, samples)(
        Message(content, 3, MessageType.TRAIN), context_of(0), app
    )
    assert "rows of layer `0` are parallel" in reply.error.reason


def test_weights_of_another_model_are_refused() -> None:
    reply = GuardMod(make_model, samples)(question(nn.Linear(3, 2)), context_of(0), App())
    assert reply.error.reason == (
        "GuardMod: The server sent no arrays that are the weights of Sequential."
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="Unknown action `stop`: expected one of refuse, warn"):
        GuardMod(make_model, samples, action="stop")
    with pytest.raises(BadInput, match="`model` and `samples` together"):
        GuardMod(make_model)
    with pytest.raises(BadInput, match="Unknown limit `x`"):
        GuardMod(make_model, samples, limits={"x": 1.0})
    with pytest.raises(BadInput, match=r"outside of fedleak's runs"):
        GuardMod()(question(make_model()), context_of(0), App())


def guarded(tmp_path: Path, **settings: Any) -> tuple[dict[str, Any], int]:
    """The summary of a run with the guard, and the number of updates that were intercepted."""
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", protocol="fedavg", batch_size=8, clients=2,
        rounds=2, victim_rounds=[1],
        mods=[{"class_path": "fedleak.federation.guard.GuardMod", "init_args": settings}],
    )  # fmt: skip
    with in_process():
        summary = experiment.run(config)
    return summary, len(update_files(RunFolder(Path(config.output)).updates()))


def test_an_honest_run_of_fedleak_passes_the_guard(tmp_path: Path) -> None:
    # A tiny network and few samples, for which units fire seldom by chance.
    summary, updates = guarded(tmp_path, limits={"rare": 1.0})
    assert summary["status"] == "complete"
    assert summary["federation"]["failures"] == 0
    assert updates == 2


def test_in_a_run_of_fedleak_a_refusal_is_a_failure_of_the_client(tmp_path: Path) -> None:
    summary, updates = guarded(tmp_path, limits={"bias": 0.0})
    assert summary["federation"]["failures"] == 4
    assert updates == 0


def setup_of_secagg(**ranges: float) -> Message:
    """The first message of Flower's SecAgg+ to a client, at its default ranges unless told."""
    defaults = {"clipping_range": 8.0, "target_range": 2**22, "max_weight": 1000.0}
    told = {"stage": "setup", "sample_num": 4, "share_num": 4, "threshold": 2, "mod_range": 2**32}
    content = RecordDict({"secaggplus_configs": ConfigRecord({**told, **defaults, **ranges})})
    return Message(content, 3, MessageType.TRAIN)


def test_the_ranges_of_secure_aggregation_are_looked_at_in_its_first_message() -> None:
    """Before secaggplus_mod, with its real reply."""
    guard = GuardMod(make_model, samples)
    reply = guard(setup_of_secagg(), context_of(3), lambda *given: secaggplus_mod(*given, App()))
    assert not reply.has_error()
    assert "pk1" in reply.content["secaggplus_configs"]
    app = App()
    reply = guard(setup_of_secagg(clipping_range=5e-18), context_of(3), app)
    assert reply.error.reason.startswith("GuardMod: The server set `clipping_range` to 5e-18")
    assert app.calls == 0


def test_weights_of_the_older_api_are_looked_at() -> None:
    """Its arrays have numbers for names, and no shapes."""
    guard = GuardMod(make_model, samples)
    for model, reason in ((make_model(3), ""), (malicious(), "parallel")):
        values = [value.numpy() for value in model.state_dict().values()]
        fitted = FitIns(ndarrays_to_parameters(values), {"lr": 0.1})
        found = guard.inspect(
            Message(fitins_to_recorddict(fitted, True), 3, MessageType.TRAIN), context_of(3)
        )
        assert found.suspicious == bool(reason)
        assert reason in " ".join(found.reasons)
