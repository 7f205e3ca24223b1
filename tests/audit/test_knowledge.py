"""Knowledge found by itself: with the truth, it makes the client's update again."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import RGAP, Rows
from fedleak.audit.batches import load_batches
from fedleak.audit.canary import replay
from fedleak.audit.facts import LossFacts, OptimizerFacts, Place, TensorFacts
from fedleak.audit.knowledge import Known, RecordedLoss, find_model, knowledge_of
from fedleak.audit.ladder import batches_of, touched_rows
from fedleak.audit.run import conclude
from fedleak.audit.simulation import Observed, run_app
from fedleak.errors import BadInput
from fedleak.updates.update import InterceptedUpdate
from tests.audit.apps import (
    PADDED,
    PAIRS,
    TABLE,
    TASKS,
    TWO_INPUTS,
    imports_undone,
    in_process,
    observe,
    write_kind,
)

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def observed(tmp_path: Path, kind: str, **options: Any) -> tuple[Any, Observed]:
    app = write_kind(tmp_path / "app", kind, **options)
    found = run_app(app, tmp_path / "audit", clients=2, rounds=1, engine=in_process)
    assert found.failures == []
    return app, found


def known(app: Any, found: Observed, path: Path) -> tuple[Known, InterceptedUpdate]:
    facts = found.facts(path.stem)
    update = found.update(path)
    model = find_model(app, facts, update, found.models)
    return knowledge_of(app, facts, model, update), update.for_model(model)


def trained_again(told: Known, update: InterceptedUpdate, found: Observed) -> nn.Module:
    """The client's training, by the knowledge and the truth alone."""
    knowledge = told.knowledge
    model = copy.deepcopy(knowledge.model)
    model.load_state_dict(update.sent)
    if knowledge.training is not None:
        model.train(knowledge.training)
    local = knowledge.local
    settings: dict[str, Any] = {"lr": local.learning_rate, "weight_decay": local.weight_decay}
    settings |= (
        {"momentum": local.momentum}
        if local.optimizer == "sgd"
        else {"betas": local.betas, "eps": local.eps}
    )
    optimizer = OPTIMIZERS[local.optimizer](model.parameters(), **settings)
    batches = load_batches(found.truth(update.key))
    assert len(batches) == local.steps
    for batch in batches:
        samples = batch.inputs[told.inputs]
        labels = batch.targets if told.labels is None else batch.inputs[told.labels]
        assert tuple(samples.shape[1:]) == knowledge.input_shape
        optimizer.zero_grad()
        knowledge.loss(model, (samples, labels)).backward()
        optimizer.step()
    return model


EXPECTED: dict[str, dict[str, Any]] = {
    "images": {"optimizer": "sgd", "momentum": 0.9, "steps": 2, "batch_size": 4},
    "table": {"optimizer": "adam", "learning_rate": 0.05, "steps": 6, "batch_size": 3},
    "text": {"optimizer": "adamw", "weight_decay": 0.1, "steps": 3, "batch_size": 2},
    "lightning": {"optimizer": "adam", "learning_rate": 0.001, "steps": 3, "batch_size": 2},
    "hugging_face": {"optimizer": "adamw", "steps": 2, "batch_size": 2},
    "old": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05, "steps": 2},
}
SHAPES = {
    "images": (3, 16, 16), "table": (7,), "text": (8,), "lightning": (1, 8, 8),
    "hugging_face": (6,), "old": (3, 16, 16),
}  # fmt: skip
NOTES = {"hugging_face": "attention_mask is taken to be 1, as in all recorded batches"}


@pytest.mark.parametrize("kind", TASKS)
def test_the_knowledge_of_an_app_makes_its_update_again(kind: str, tmp_path: Path) -> None:
    app, found = observed(tmp_path, kind)
    assert [path.stem for path in found.updates] == ["r0001-c0000", "r0001-c0001"]
    for path in found.updates:
        told, update = known(app, found, path)
        knowledge = told.knowledge
        assert knowledge.input_shape == SHAPES[kind]
        assert knowledge.num_samples == update.num_examples
        assert knowledge.labels is None
        assert {n: getattr(knowledge.local, n) for n in EXPECTED[kind]} == EXPECTED[kind]
        assert [note for note in told.notes if NOTES.get(kind, "#") not in note] == []
        model = trained_again(told, update, found)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, update.received[name], rtol=1e-5, atol=1e-6)
    # The facts say nothing of a client's samples: both clients' are the same but for their number.
    first, second = (found.facts(path.stem) for path in found.updates)
    assert replace(first, partition=1) == second


@pytest.mark.parametrize(("sends", "protocol"), [("v - start[k]", "delta"), ("v + 0.01", "fedavg")])
def test_a_reply_that_is_not_the_weights_is_told_apart(
    sends: str, protocol: str, tmp_path: Path
) -> None:
    app, found = observed(tmp_path, "table", sends=sends)
    told, update = known(app, found, found.updates[0])
    assert (update.protocol, told.knowledge.protocol) == (protocol, protocol)
    assert any("changed afterwards" in note for note in told.notes) == (protocol == "fedavg")
    if protocol == "delta":
        model = trained_again(told, update, found)
        for name, value in model.state_dict().items():
            moved = value - update.sent[name]
            torch.testing.assert_close(moved, update.received[name], rtol=1e-4, atol=1e-6)


NUMPY = """
import numpy as np
import torch

class Weights:
    def __init__(self):
        self.numbers = {"w": torch.zeros(3)}

    def state_dict(self):
        return self.numbers

    def load_state_dict(self, numbers):
        self.numbers = dict(numbers)

def make():
    return Weights()

def data(number):
    return [number] * 4

def train(model, examples, lr):
    model.numbers["w"] = torch.from_numpy(np.full(3, lr, dtype=np.float32))
    return 0.0
"""


def test_an_app_without_torch_is_listened_to_and_says_so(tmp_path: Path) -> None:
    app, found = observed(tmp_path, "table", task=NUMPY)
    facts = found.facts("r0001-c0001")
    update = found.update(found.updates[1])
    assert torch.equal(update.received["w"], torch.full((3,), 0.05))
    assert any("trains without torch" in note for note in facts.notes)
    with pytest.raises(BadInput, match="the ServerApp was not seen to make it: name what makes"):
        find_model(app, facts, update, found.models)
    with pytest.raises(BadInput, match="Expected to see what the model is called with, but no"):
        knowledge_of(app, facts, nn.Linear(1, 1), update)


def test_the_server_makes_the_model_of_new_apps_and_the_class_is_made_for_old_ones(
    tmp_path: Path,
) -> None:
    _, found = observed(tmp_path / "new", "table")
    assert [type(model).__name__ for model in found.models] == ["Income"]
    _, found = observed(tmp_path / "old", "old")
    assert found.models == []


def test_what_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    app, found = observed(tmp_path, "table")
    (path, _), update = found.updates, InterceptedUpdate.load(found.updates[0])
    facts = found.facts(path.stem)
    # A class that needs arguments, and a server that does not make the model.
    with pytest.raises(BadInput, match=r"find the model whose .*layers.0.weight \(5, 7\).* 2 more"):
        find_model(app, facts, update)
    for more, sentence in (
        ("nowhere", r"Expected `nowhere` in the module"),
        ("data", r"to make the model when it is called without arguments, got TypeError"),
        ("torch", r"to make the model, got module"),
        ("other", r"to make the model whose weights are sent, got Linear with other names"),
        ("DataLoader", "without arguments, got TypeError"),
    ):
        settings = replace(app.settings, model=f"{app.client.partition('.')[0]}.task:{more}")
        task = __import__(settings.model.partition(":")[0], fromlist=["x"])
        task.other = lambda: nn.Linear(2, 2)
        with pytest.raises(BadInput, match=sentence):
            find_model(replace(app, settings=settings), facts, update)
    model = found.models[0]
    told = replace(app, settings=replace(app.settings, model=settings.model[:-10] + "make"))
    assert isinstance(find_model(told, facts, update), type(model))

    unknown = replace(facts, loss=LossFacts("unknown", reason="it is a sum of terms"))
    with pytest.raises(BadInput, match=r"Expected to see the loss .*it is a sum.*loss = .module"):
        knowledge_of(app, unknown, model, update)
    with pytest.raises(BadInput, match="no backward pass was seen"):
        knowledge_of(app, replace(facts, loss=None), model, update)
    with pytest.raises(BadInput, match="Expected to see what the model is called with"):
        knowledge_of(app, replace(facts, inputs=()), model, update)
    two = (*facts.inputs, TensorFacts((1,), (3, 2), "float32"))
    several = knowledge_of(app, replace(facts, inputs=two), model, update)
    assert several.unknown == ("argument 1",)
    assert any("argument 1, an input of the model besides" in note for note in several.notes)
    assert facts.model is not None
    parts = replace(facts, model=replace(facts.model, called="parts"))
    with pytest.raises(BadInput, match="calls parts of the model"):
        knowledge_of(app, parts, model, update)


def test_a_loss_that_the_settings_name_is_used(tmp_path: Path) -> None:
    task = TABLE.replace("loss = criterion(model(x).squeeze(), y)", "loss = own(model(x), y)")
    task += "\ndef own(out, y):\n    return (out.squeeze(1) - y).square().mean() + 0.0\n"
    app, found = observed(
        tmp_path, "table", task=task, more='[tool.fedleak]\nloss = "{name}.task:own"'
    )
    facts = found.facts("r0001-c0000")
    assert facts.loss is not None
    assert facts.loss.kind == "unknown"
    told, update = known(app, found, found.updates[0])
    assert facts.sends == "weights"
    batches = load_batches(found.truth(update.key))
    # No loss function of torch was called, so the truth has no targets.
    assert all(batch.targets is None for batch in batches)
    x = batches[0].inputs[(0,)]
    y = torch.ones(3)
    model = told.knowledge.model
    expected = (model(x).squeeze(1) - y).square().mean()
    torch.testing.assert_close(told.knowledge.loss(model, (x, y)), expected)


STEP = LossFacts("training_step")


def with_optimizer(facts: Any, **changes: Any) -> Any:
    return replace(facts, optimizer=replace(facts.optimizer, **changes))


def test_what_is_presumed_of_a_training_is_noted(tmp_path: Path) -> None:
    app, found = observed(tmp_path, "table")
    facts, (path, _) = found.facts("r0001-c0000"), found.updates
    update = InterceptedUpdate.load(path)
    assert facts.optimizer is not None
    group = facts.optimizer.groups[0]
    own = {"names": ["layers.0.bias"], **{n: v for n, v in group.items() if n != "names"}}
    for changed, note in (
        (replace(facts, gradients_changed=True), "clipping or noise"),
        (replace(facts, weights_changed=True), "outside the optimiser's steps"),
        (replace(facts, backward_passes=12), "12 backward passes for 6 steps"),
        (replace(facts, batch_sizes=(3, 3)), "no whole passes over the 9 examples"),
        (replace(facts, batch_sizes=(4, 4)), "a pass takes 8 of the 9 examples"),
        (with_optimizer(facts, carried_over=True), "state of an earlier training"),
        (with_optimizer(facts, others=("torch.optim.sgd:SGD",)), "the first alone is followed"),
        (with_optimizer(facts, path="torch.optim.lbfgs:LBFGS"), "none that an attack can follow"),
        (with_optimizer(facts, groups=({**group, "lr": 0.0},)), "learning rate of the first"),
        (with_optimizer(facts, groups=(group, {**own, "lr": 9.0, "names": None})), "which these"),
        (replace(facts, model=None, loss=STEP), "train mode is not known"),
        (replace(facts, faults=("it broke",)), "the recorder met errors: it broke"),
    ):
        told = knowledge_of(app, changed, found.models[0], update)
        assert [n for n in told.notes if note in n], (note, told.notes)
    unreported = replace(update, num_examples=0)
    told = knowledge_of(app, facts, found.models[0], unreported)
    assert told.notes == ("the client reports no number of examples, taken to be 18 in one pass",)
    rates = (0.05, 0.025, 0.0125, 0.0125, 0.0125, 0.0125)
    changed = with_optimizer(facts, rates=rates, groups=(group, {**own, "weight_decay": 0.5}))
    local = knowledge_of(app, changed, found.models[0], update).knowledge.local
    assert [local.rate_at(step) for step in (0, 1, 5, 9)] == [0.05, 0.025, 0.0125, 0.0125]
    assert local.of("layers.0.bias").weight_decay == 0.5
    assert local.of("layers.0.weight").weight_decay == 0
    assert isinstance(changed.optimizer, OptimizerFacts)


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 6)

    def forward(self, features: Tensor) -> dict[str, list[Tensor]]:
        return {"heads": [features, self.out(features)]}


def test_a_recorded_loss_makes_every_change_again() -> None:
    """By hand: two positions of three classes, a class weight, a scale, half precision back."""
    facts = LossFacts(
        "function", "nll_loss",
        {"weight": {"tensor": [1.0, 2.0, 3.0], "dtype": "float64"}, "reduction": "none"},
        output=("heads", 1),
        changes=(
            {"reshape": [-1, 2, 3]}, {"dtype": "float64"}, {"permute": [0, 2, 1]},
            {"apply": "log_softmax", "dim": 1},
        ),
        target=("int64", (2,)), reduction="sum",
    )  # fmt: skip
    model, x, y = Dict(), torch.randn(5, 4), torch.randint(3, (5, 2))
    loss = RecordedLoss(facts, inputs=("features",), scale=0.25)
    logits = model.out(x).double().reshape(10, 3)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = 0.25 * nn.functional.cross_entropy(logits, y.flatten(), weight, reduction="sum")
    torch.testing.assert_close(loss(model, (x, y)), expected)


@pytest.mark.parametrize("kind", ["text", "hugging_face"])
def test_an_attack_reads_the_tokens_of_a_whole_training(kind: str, tmp_path: Path) -> None:
    """Over several steps of AdamW, by the rows of the embedding that moved."""
    app, found = observed(tmp_path, kind)
    for path in found.updates:
        told, update = known(app, found, path)
        (result,) = Rows()([update], told.knowledge, seed=0, device="cpu")
        batches = load_batches(found.truth(path.stem))
        tokens = torch.cat([batch.inputs[told.inputs].flatten() for batch in batches]).unique()
        (rows,) = result.rows.values()
        assert torch.equal(rows, tokens)


def test_an_attack_reads_the_one_row_of_a_client(tmp_path: Path) -> None:
    """One step of SGD on one row of a table, and its label: nothing is told but what was seen."""
    task = TABLE.replace("torch.randn(9, 7), torch.rand(9)", "torch.randn(1, 7), torch.rand(1)")
    task = task.replace("range(2)", "range(1)").replace(".squeeze()", ".squeeze(1)")
    app, found = observed(tmp_path, "table", task=task.replace("optim.Adam(", "optim.SGD("))
    for path in found.updates:
        told, update = known(app, found, path)
        (result,) = RGAP()([update], told.knowledge, seed=0, device="cpu")
        (batch,) = load_batches(found.truth(path.stem))
        torch.testing.assert_close(result.inputs, batch.inputs[told.inputs], atol=1e-4, rtol=0)
        assert batch.targets is not None
        assert torch.equal(result.labels.flatten().round(), batch.targets)


# ------------------------------------------------------------------- models of several inputs


@pytest.mark.parametrize(
    ("task", "inputs", "unknown"),
    [
        (PADDED, ("input_ids",), ()),
        (TWO_INPUTS, (1,), ("argument 0",)),
        (PAIRS, (0,), ("argument 1",)),
    ],
    ids=["padded", "two", "pairs"],
)
def test_a_model_of_several_inputs(
    task: str, inputs: Place, unknown: tuple[str, ...], tmp_path: Path
) -> None:
    """The client's update follows from its recorded batches, and its rows are read."""
    _, observed, victims = observe(tmp_path, "images", task=task)
    for victim in victims:
        assert victim.known.inputs == inputs
        assert victim.known.unknown == unknown
        assert replay(victim, batches_of(observed, victim)) > 0.999
    answer = touched_rows(observed, victims)
    assert answer is not None
    assert answer.answer.mean == 1.0
    assert answer.guess.mean < 1.0


def test_masks_and_types_are_told_and_padding_is_no_token(tmp_path: Path) -> None:
    _, _, victims = observe(tmp_path, "images", task=PADDED)
    notes = " ".join(victims[0].known.notes)
    assert "attention_mask is taken to be 0 where the samples are 0 and 1 elsewhere" in notes
    assert "token_type_ids is taken to be 0, as in all recorded batches" in notes
    assert "another shape than those of others" in notes
    assert victims[0].whole == 40


def test_what_several_inputs_leave_open_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, observed, _ = observe(tmp_path, "images", task=TWO_INPUTS)
    monkeypatch.setattr("fedleak.audit.label_shares.MOST_SHADOWS", 40)
    found = conclude(app, observed, budget=10)
    answers = {(answer.rung, answer.question): answer for answer in found.verdict.answers}
    for rung in (0, 3):
        assert answers[rung, "inputs"].status == "not tried"
        assert "no attack here reconstructs several inputs" in answers[rung, "inputs"].sentence
    assert answers[2, "set of tokens"].status == "leaks"
    assert answers[2, "shares of labels"].status != "not tried"
    assert found.verdict.overall == "leaks"
    # Without what leaks, nothing would follow.
    rest = tuple(a for a in found.verdict.answers if a.status != "leaks")
    assert replace(found.verdict, answers=rest).overall == "not proven"


def test_a_lightning_batch_of_several_tensors(tmp_path: Path) -> None:
    task = TASKS["lightning"].replace("x, _ = batch", 'x = batch["numbers"] * batch["scale"]')
    task = task.replace(
        "return TensorDataset(torch.rand(5, 1, 8, 8), torch.randint(10, (5,)))",
        'return [{"numbers": torch.rand(1, 8, 8), "scale": torch.rand(1, 8, 8),\n'
        '             "labels": torch.tensor(1)} for _ in range(5)]',
    )
    _, observed, victims = observe(tmp_path, "lightning", task=task)
    for victim in victims:
        assert victim.known.inputs == ("numbers",)
        assert victim.known.unknown == ("scale",)
        assert replay(victim, batches_of(observed, victim)) > 0.999


def test_the_lightning_package(tmp_path: Path) -> None:
    """The same Lightning under its other name; it need not be installed."""
    pytest.importorskip("lightning")
    task = TASKS["lightning"].replace("pytorch_lightning as pl", "lightning.pytorch as pl")
    task = task.replace('getLogger("pytorch_lightning")', 'getLogger("lightning.pytorch")')
    _, observed, victims = observe(tmp_path, "lightning", task=task)
    for victim in victims:
        facts = observed.facts(victim.key)
        assert facts.loss is not None
        assert (facts.loss.kind, facts.batch_sizes) == ("training_step", (2, 2, 1))
        assert facts.faults == ()
        assert replay(victim, batches_of(observed, victim)) > 0.999
