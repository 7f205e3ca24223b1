"""Rungs 4 and 5 of an audit, on small apps without Ray."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedleak.audit.active_rungs import answer_by, hyperparameters_for, parameters_for, probe_app
from fedleak.audit.probe import Probe, run_probe
from fedleak.audit.run import audit
from fedleak.audit.simulation import run_app
from fedleak.audit.verdict import Answer
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge
from tests.audit.apps import ONE_STEP, imports_undone, in_process, observe, write_kind
from tests.federation.fakes import same_tensors

TOYS = "tests.servers.toy_servers"


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tests' own server alone were installed."""
    install(monkeypatch, "FirstLayer")


def install(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    points = {kind: EntryPoint(kind, f"{TOYS}:{kind}", "fedleak.servers") for kind in kinds}
    monkeypatch.setattr("fedleak.audit.active_rungs.names", lambda kind: points)


probe_in_process = partial(run_probe, engine=in_process)


def answers(tmp_path: Path, kind: str = "images", **settings: Any) -> dict[int, Answer]:
    app, observed, victims = observe(tmp_path, kind, **settings)
    probes = probe_app(app, tmp_path, victims[0], probe=probe_in_process, clients=4)
    assert (tmp_path / "active" / "rung-5" / "done.json").is_file()
    return {
        rung: answer_by(app, probe, rung, observed, victims, 1.0) for rung, probe in probes.items()
    }


def test_a_client_of_one_sample_is_read_by_both(tmp_path: Path) -> None:
    found = answers(tmp_path, task=ONE_STEP)
    for rung, answer in found.items():
        assert answer.rung == rung
        assert answer.threat_model == "F"
        # One value has no interval, but it is exact.
        assert (answer.status, answer.answer.n) == ("leaks", 1)
        assert answer.gains[0] > 0.3
        assert answer.answer.mean < 1e-2  # relative error: images too small for SSIM
        assert answer.guess.mean > 0.3
    assert "lr 0.0005 sent" in found[4].note
    assert "the guard on the client would have noticed" in found[4].note
    assert "the guard on the client would" in found[5].note
    assert "first_layer read 1 of 1 samples of one client and certified 1" in found[5].note
    assert found[5].title == "inputs by chosen parameters"


def test_what_is_not_certified_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "Nothing")
    found = answers(tmp_path, task=ONE_STEP)[5]
    assert found.status == "not shown"
    assert not found.conclusive
    assert found.gains == (0.0,)
    assert "nothing read 0 of 1 samples" in found.note


GUARDED = """
from flwr.app import Error
from flwr.common.constant import ErrorCode
from fedleak.federation import GuardMod

def own(message, context):
    return data(context.node_config["partition-id"]).tensors[0]

def wary(message, context, call_next):
    weight = message.content["arrays"].to_torch_state_dict()["1.weight"]
    if weight.abs().max() > 0.09:
        return call_next(message, context)
    reason = "wary: the first weights are small."
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)

app = ClientApp(mods=[GuardMod(make, own, agreed={"lr": 0.05}), wary])
"""


def test_a_client_that_refuses_was_asked(tmp_path: Path) -> None:
    """Its mods refuse both servers, which are left with the guess, and the reason is told."""
    app, observed, victims = observe(tmp_path, "images", task=ONE_STEP, client_app=GUARDED)
    first = probe_app(app, tmp_path, victims[0], probe=probe_in_process, clients=4)
    # What a finished probe has left says the same.
    again = probe_app(app, tmp_path, victims[0], probe=probe_in_process, clients=4)
    refused = {4: "the client refused the training configuration: GuardMod: ",
               5: "the client refused the model: wary: the first weights are small; "}  # fmt: skip
    for probes in (first, again):
        for rung, words in refused.items():
            answer = answer_by(app, probes[rung], rung, observed, victims, 1.0)
            assert (answer.rung, answer.status, answer.tried) == (rung, "not shown", True)
            assert answer.conclusive
            assert answer.note.startswith(words)
            assert "were not shown to leak" in answer.sentence
            assert words in answer.sentence
            assert answer.answer == answer.guess
            assert answer.answer.mean > 0.3  # relative error of the mean of the other clients
            assert answer.gains == (0.0,)


def test_what_is_told_of_each_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, victims = observe(tmp_path, "images", task=ONE_STEP)
    told: list[str] = []
    probe_app(app, tmp_path / "1", victims[0], probe=probe_in_process, clients=4,
              report=told.append)  # fmt: skip
    assert told == ["a server that chooses hyperparameters asks one client",
                    "a server that chooses parameters asks one client"]  # fmt: skip
    told.clear()
    install(monkeypatch)
    probe_app(app, tmp_path / "2", victims[0], probe=probe_in_process, clients=4,
              report=told.append)  # fmt: skip
    assert told[1] == (
        "a server that chooses parameters asks no client: Expected a model that a malicious server "
        "can attack, got one that none can"
    )


def test_an_update_of_a_mixture_is_scored_as_what_it_is(tmp_path: Path) -> None:
    """Of a batch of three, the quotient is none of the samples, whatever the server certifies."""
    batch = ONE_STEP.replace("rand(1, 3, 6, 6)", "rand(3, 3, 8, 8)").replace(
        "(4, (1,))", "(4, (3,))"
    )
    found = answers(tmp_path, task=batch.replace("108", "192"))[5]
    assert found.measure.startswith("SSIM")
    assert "first_layer read 1 of 3 samples" in found.note
    assert found.answer.n == 1
    assert found.answer.mean < 0.9


def test_why_a_rung_was_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    found = answers(tmp_path, task=ONE_STEP)[5]
    assert found.status == "not tried"
    assert (
        found.note == "Expected a model that a malicious server can attack, got one that none can"
    )


@pytest.mark.parametrize(
    ("entries", "settings"),
    [
        ({"lr": 0.1}, {"lr": 1e-3}),
        ({"local-epochs": 3, "batch-size": 8, "lr": 0.1}, {"local-epochs": 1, "batch-size": 40}),
        ({"client_learning_rate": 1.0, "n": 2}, {"client_learning_rate": 0.01}),
        ({"epochs": 5}, {"epochs": 1}),
    ],
)
def test_the_entries_of_an_app_are_set(entries: dict[str, Any], settings: dict[str, Any]) -> None:
    assert hyperparameters_for(40, entries).config == pytest.approx(settings)


@pytest.mark.parametrize("entries", [{}, {"server-round": 1, "colour": "red"}, {"lr": "auto"}])
def test_an_app_whose_server_sets_nothing(entries: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="Expected hyperparameters in the training configuration"):
        hyperparameters_for(1, entries)


def test_the_first_server_that_can_attack_a_model_is_taken() -> None:
    facts = Knowledge(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 2)
    assert parameters_for(facts).name == "first_layer"
    with pytest.raises(BadInput, match="that none can: FirstLayer: it has no linear layer"):
        parameters_for(Knowledge(nn.Conv2d(1, 1, 1), (1, 2, 2), 2))


@pytest.mark.slow
def test_an_audit_with_malicious_servers(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images", task=ONE_STEP)
    run = partial(run_app, engine=in_process)
    options = {"clients": 4, "rounds": 1, "budget": 40, "run": run}
    alone = audit(app, tmp_path / "out", probe=lambda *_: pytest.fail("not asked for"), **options)
    assert [a.status for a in alone.verdict.answers if a.rung > 3] == ["not tried"] * 2
    found = audit(
        app, tmp_path / "out", probe=probe_in_process, malicious=True, resume=True, **options
    )
    assert [a.rung for a in found.verdict.answers] == [a.rung for a in alone.verdict.answers]
    given = {answer.rung: answer for answer in found.verdict.answers if answer.question == "inputs"}
    assert given[4].answer.mean < 1e-2
    assert given[5].answer.mean < 1e-2
    assert given[5].attack == "first_layer"
    observed = run(app, tmp_path / "honest", clients=4, rounds=1)
    for path in observed.updates:
        ours, theirs = load_file(tmp_path / "out" / "updates" / path.name), load_file(path)
        assert same_tensors(ours, theirs)


def test_a_probe_is_taken_up_again(tmp_path: Path) -> None:
    app, observed, victims = observe(tmp_path, "images", task=ONE_STEP)
    first = probe_app(app, tmp_path, victims[0], probe=probe_in_process, clients=4)

    def engine(*_: Any) -> None:
        pytest.fail("it runs again")

    again = probe_app(app, tmp_path, victims[0], probe=partial(run_probe, engine=engine), clients=4)
    for rung, probe in again.items():
        assert isinstance(probe, Probe)
        values = [
            answer_by(app, one, rung, observed, victims, 10.0).answer.mean
            for one in (first[rung], probe)
        ]
        assert torch.isclose(*map(torch.tensor, values))
