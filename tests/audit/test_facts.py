import json
from pathlib import Path

import pytest

from fedleak.audit.facts import LossFacts, ModelFacts, OptimizerFacts, TensorFacts, TrainingFacts
from fedleak.errors import BadInput

FACTS = TrainingFacts(
    partition=3,
    model=ModelFacts(
        "app.task:Net", (("w", (2, 3), "float32"), ("n", (), "int64")), called="wrapped",
        training=None, in_eval_mode=("norm",), frozen=("w",),
    ),
    inputs=(TensorFacts(("tokens", 0), (4, 5), "int64"), TensorFacts((), (4,), "bool")),
    loss=LossFacts(
        "function", "cross_entropy", {"weight": {"tensor": [1.0, 2.0], "dtype": "float32"}},
        output=("logits", 1), changes=({"reshape": [-1, 2]}, {"apply": "softmax", "dim": -1}),
        target=("float32", (2,)), target_input=(0,), reduction="mean", scale=0.5,
    ),
    optimizer=OptimizerFacts(
        "torch.optim.sgd:SGD", ({"lr": 0.1, "names": ["w"]}, {"lr": 0.2, "names": None}),
        rates=(0.1, 0.05), carried_over=True, others=("a:B",),
    ),
    batch_sizes=(4, 2), backward_passes=2, gradients_changed=True, weights_changed=True,
    sends="delta", batches_kept=2,
    notes=("a note",), faults=("a fault",),
)  # fmt: skip


@pytest.mark.parametrize("facts", [FACTS, TrainingFacts()], ids=["full", "empty"])
def test_facts_come_back_as_they_were(facts: TrainingFacts, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    facts.save(path)
    assert TrainingFacts.load(path) == facts
    assert facts.steps == len(facts.batch_sizes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "found none"),
        ("{", "damaged file"),
        ("[" * 100_000, "damaged file"),
        ("[]", "Expected settings as .* in .*facts.json"),
        ('{"partitions": 1}', "Unknown setting of facts `partitions`.*facts.json"),
        ('{"batch_sizes": ["a"]}', "Expected `facts.batch_sizes` to be a list of whole numbers"),
        ('{"loss": {"kind": "none"}}', "facts.loss.kind"),
        ('{"inputs": [{"path": [0]}]}', "damaged file"),
    ],
)
def test_a_damaged_file_is_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        TrainingFacts.load(path)


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    FACTS.save(tmp_path / "facts.json")
    assert json.loads((tmp_path / "facts.json").read_text())["inputs"][0]["path"] == ["tokens", 0]
