"""Second runs of apps with malicious servers, without Ray."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak.audit.probe import DONE, Probe, run_probe
from fedleak.errors import BadInput
from fedleak.servers import Crafted, Hyperparameters, MaliciousServer
from fedleak.updates.update import InterceptedUpdate
from tests.audit.apps import ONE_STEP, imports_undone, in_process, observe
from tests.servers.toy_servers import FirstLayer

probe_in_process = partial(run_probe, clients=4, engine=in_process)


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def probed(tmp_path: Path, server: MaliciousServer, kind: str = "images", **settings: Any) -> Probe:
    app, _, victims = observe(tmp_path, kind, **settings)
    facts = victims[0].known.knowledge
    return probe_in_process(app, tmp_path / "probe", lambda entries: server, facts)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_client_is_asked_as_often_as_the_server_needs(tmp_path: Path) -> None:
    probe = probed(tmp_path, FirstLayer(rounds=2), task=ONE_STEP)
    assert probe.reason == ""
    assert probe.entries == {"lr": 0.05, "server-round": 1}
    (first, second) = probe.rounds()
    clients = {key.partition("-")[2] for key, _ in (first, second)}
    assert len(clients) == 1
    assert [key[:5] for key, _ in (first, second)] == ["r0001", "r0002"]
    for number, (key, crafted) in enumerate((first, second)):
        assert int(crafted.memory["number"]) == number
        update = InterceptedUpdate.load(probe.folder / "updates" / f"{key}.safetensors")
        assert all(torch.equal(update.sent[n], v) for n, v in crafted.weights.items())
        assert probe.observed.facts(key).steps == 1
        assert probe.observed.truth(key).is_file()
    # What the client was sent is half of what the app's server would have sent.
    app = names(tmp_path / "out" / "updates")
    own = InterceptedUpdate.load(tmp_path / "out" / "updates" / app[0])
    assert all(torch.equal(first[1].weights[n], 0.5 * v) for n, v in own.sent.items())


def test_the_apps_own_run_is_not_touched_and_a_complete_probe_is_not_repeated(
    tmp_path: Path,
) -> None:
    app, observed, victims = observe(tmp_path, "images", task=ONE_STEP)
    facts = victims[0].known.knowledge
    before = {path.name: path.read_bytes() for path in observed.updates}
    state = {name: value.clone() for name, value in facts.model.state_dict().items()}
    first = probe_in_process(app, tmp_path / "probe", lambda entries: FirstLayer(), facts)
    assert {path.name: path.read_bytes() for path in observed.updates} == before
    assert all(torch.equal(v, state[n]) for n, v in facts.model.state_dict().items())
    again = run_probe(
        app, tmp_path / "probe", lambda entries: FirstLayer(), facts, clients=4,
        engine=lambda *_: pytest.fail("it runs again"),
    )  # fmt: skip
    assert [key for key, _ in again.rounds()] == [key for key, _ in first.rounds()]
    (tmp_path / "probe" / DONE).unlink()
    third = probe_in_process(app, tmp_path / "probe", lambda entries: FirstLayer(), facts)
    assert len(third.rounds()) == 1


def test_hyperparameters_replace_those_of_the_app(tmp_path: Path) -> None:
    server = Hyperparameters(rate=1e-4, epochs=None, batch=None, rate_name="lr")
    probe = probed(tmp_path, server)
    ((key, crafted),) = probe.rounds()
    assert crafted.config == {"lr": 1e-4}
    facts = probe.observed.facts(key)
    assert facts.optimizer is not None
    assert facts.optimizer.groups[0]["lr"] == 1e-4


@pytest.mark.parametrize("kind", ["old", "table"])
def test_other_apps(kind: str, tmp_path: Path) -> None:
    """Of Flower's API from before the Message API, whose weights are lists; and of a table."""
    probe = probed(tmp_path, FirstLayer(rounds=2), kind)
    assert probe.reason == ""
    assert len(probe.rounds()) == 2


class Broken(FirstLayer):
    """Raises what it should not."""

    def craft(self, knowledge: Any, **given: Any) -> Crafted:
        raise ZeroDivisionError("a mistake in the plugin")


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (Broken(), "ZeroDivisionError: a mistake in the plugin"),
        (
            Hyperparameters(),
            "Expected `local_epochs` in the training configuration of the app's server",
        ),
        (FirstLayer(factor=float("nan")), "Expected finite numbers in"),
    ],
)
def test_what_cannot_be_sent_is_told(server: MaliciousServer, reason: str, tmp_path: Path) -> None:
    probe = probed(tmp_path, server, task=ONE_STEP)
    assert probe.reason.startswith(reason)
    assert probe.rounds() == []
    # Nor is it tried again, unless it is asked for anew.
    assert (probe.folder / DONE).is_file()


def test_a_client_that_refuses_is_told(tmp_path: Path) -> None:
    refusing = ONE_STEP.replace(
        "x, y = examples.tensors",
        'x, y = examples.tensors\n    assert model[1].weight.abs().max() > 0.09, "that is odd"',
    )
    probe = probed(tmp_path, FirstLayer(), task=refusing)
    assert probe.reason.startswith("Expected the client's update, got: ")
    assert "that is odd" in probe.reason


def test_an_app_that_fails(tmp_path: Path) -> None:
    app, _, victims = observe(tmp_path, "images", task=ONE_STEP)
    facts = victims[0].known.knowledge

    def none(entries: Any) -> MaliciousServer:
        raise BadInput("Expected something to attack, got nothing.")

    probe = probe_in_process(app, tmp_path / "probe", none, facts)
    assert probe.reason == "Expected something to attack, got nothing"
    assert probe_in_process(app, tmp_path / "probe", none, facts).reason == probe.reason
