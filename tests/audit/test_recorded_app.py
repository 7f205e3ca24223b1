"""The recorded ClientApp: what it leaves, and what it must not change."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedleak.audit.app import FlowerApp
from fedleak.audit.batches import load_batches
from fedleak.audit.facts import TrainingFacts
from fedleak.audit.recorded_app import RecordedClientApp, RecordFolder
from fedleak.errors import BadInput
from fedleak.federation import records
from tests.audit.apps import imports_undone, write_kind
from tests.federation.fakes import same_tensors


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def ask(app: FlowerApp, client: object, *, kind: str = "train", id_: str = "m-1") -> Message:
    """The reply of the app's client 2, asked with the weights of a new model."""
    model = app.load(f"{app.client.partition('.')[0]}.task:make", "the model")()
    content = RecordDict({
        "arrays": records.to_record(model.state_dict()), "config": ConfigRecord({"lr": 0.1}),
    })  # fmt: skip
    question = Message(content, 77, kind)
    question.metadata.__dict__["_message_id"] = id_
    context = Context(1, 77, {"partition-id": 2}, RecordDict(), dict(app.run_config))
    reply: Message = client(question, context)  # type: ignore[operator]
    return reply


def test_a_reply_to_another_message_is_an_error(tmp_path: Path) -> None:
    """LocalDpMod around an evaluation replies to the app's own reply, which Flower drops."""
    client_app = """
from flwr.clientapp.mod import LocalDpMod
app = ClientApp(mods=[LocalDpMod(1, 1, 1, 0.1)])

@app.evaluate()
def evaluate(msg, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=msg)
"""
    app = write_kind(tmp_path / "app", "images", client_app=client_app)
    (tmp_path / "audit").mkdir()
    client = RecordedClientApp(app, RecordFolder(tmp_path / "audit"))
    with pytest.raises(BadInput, match=r"got one to another message.*@app.train.*LocalDpMod"):
        ask(app, client, kind=MessageType.EVALUATE)
    assert ask(app, client).has_content()


def test_a_reply_is_the_same_and_facts_and_truth_are_left(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "images")
    (tmp_path / "audit").mkdir()
    folder = RecordFolder(tmp_path / "audit")
    client = RecordedClientApp(app, folder)
    replies = [ask(app, app.client_app()), ask(app, client)]
    arrays = [records.to_tensors(reply.content["arrays"]) for reply in replies]
    assert same_tensors(*arrays)
    assert dict(replies[0].content["metrics"]) == dict(replies[1].content["metrics"])
    assert (folder.client_of(77), folder.client_of(78)) == (2, None)
    folder.rename("m-1", "r0001-c0002")
    folder.rename("m-2", "r0001-c0003")
    ask(app, client, id_="m-3")
    folder.remove_unnamed()
    assert [path.name for path in folder.facts.iterdir()] == ["r0001-c0002.json"]
    assert [path.name for path in folder.truth.iterdir()] == ["r0001-c0002.safetensors"]
    facts = TrainingFacts.load(folder.facts / "r0001-c0002.json")
    assert (facts.partition, facts.batch_sizes) == (2, (4, 2))
    assert facts.model is not None
    assert facts.model.path.endswith(".task:Net")
    batches = load_batches(folder.truth / "r0001-c0002.safetensors")
    assert [len(batch.inputs[(0,)]) for batch in batches] == [4, 2]


def test_other_messages_are_passed_on_and_nothing_is_written(tmp_path: Path) -> None:
    app = write_kind(tmp_path / "app", "table")
    (tmp_path / "audit").mkdir()
    folder = RecordFolder(tmp_path / "audit")
    with pytest.raises(ValueError, match="No evaluate function"):
        ask(app, RecordedClientApp(app, folder), kind=MessageType.EVALUATE)
    assert list(folder.facts.iterdir()) == []


def test_a_disk_that_is_full_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = write_kind(tmp_path / "app", "table")
    (tmp_path / "audit").mkdir()
    folder = RecordFolder(tmp_path / "audit")
    for name in ("write", "note_client"):
        monkeypatch.setattr(RecordFolder, name, _full)
    assert ask(app, RecordedClientApp(app, folder)).has_content()
    assert "what was recorded is lost: no space left" in caplog.text
    monkeypatch.undo()
    assert ask(app, RecordedClientApp(app, folder), id_="../up").has_content()
    assert "Expected a message id of letters and digits" in caplog.text
    assert not (tmp_path / "up.json").exists()
    assert isinstance(BadInput("x"), ValueError)


def _full(*_: object, **__: object) -> None:
    raise OSError("no space left")
