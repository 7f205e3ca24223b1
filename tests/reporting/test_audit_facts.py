"""What was seen of an audited app's clients, in a few lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedleak.audit.facts import (
    LossFacts,
    ModelFacts,
    OptimizerFacts,
    Relation,
    TensorFacts,
    TrainingFacts,
)
from fedleak.audit.folder import AuditFolder
from fedleak.errors import BadInput
from fedleak.reporting.audit_facts import read_facts
from tests.audit.made_audit import some_facts


def read(path: Path, *facts: TrainingFacts) -> dict[str, list[str]]:
    folder = AuditFolder(path)
    folder.facts.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(facts):
        one.save(folder.facts / f"r0001-c{number:04d}.json")
    return read_facts(folder)


def test_facts_that_all_share_and_facts_that_differ(tmp_path: Path) -> None:
    assert read(tmp_path, some_facts(0), some_facts(1), some_facts(2, steps=3)) == {
        "Model": ["task.task.Net, 1,930 entries"],
        "Mode": ["train"],
        "Inputs": ["[3, 8, 8] of float32"],
        "Loss": ["cross_entropy (label smoothing 0.1)"],
        "Optimiser": ["SGD (lr 0.05, momentum 0.9)"],
        "Steps": ["1 (2 trainings)", "3 (1 trainings)"],
        "Samples in a step": ["2"],
        "Sent": ["the weights after the training"],
    }


def test_what_is_out_of_the_ordinary(tmp_path: Path) -> None:
    facts = replace(
        some_facts(0), loss=LossFacts("unknown", reason="a closure"), batch_sizes=(4, 4, 2),
        model=ModelFacts("a:B", (), training=None, in_eval_mode=("norm",), frozen=("w",)),
        optimizer=OptimizerFacts("torch.optim.adam:Adam", ({"lr": 0.1, "betas": [0.9, 0.999]},),
                                 rates=(0.1, 0.05, 0.025)),
        sends=None, gradients_changed=True, weights_changed=True,
    )  # fmt: skip
    found = read(tmp_path, facts)
    assert found["Loss"] == ["not known: a closure"]
    assert found["Mode"] == ["train, but eval of norm"]
    assert found["Model"] == ["a.B, 0 entries, 1 parameters frozen"]
    assert found["Optimiser"] == ["Adam (lr 0.1, betas [0.9, 0.999]), rate from 0.1 to 0.025"]
    assert found["Samples in a step"] == ["4 in 2 steps, 2 in 1 step"]
    assert found["Sent"] == ["not known"]
    assert found["Besides"] == [
        "gradients are changed before a step, as by clipping; weights are changed outside the steps"
    ]


def test_nothing_was_seen(tmp_path: Path) -> None:
    assert read_facts(AuditFolder(tmp_path)) == {}
    found = read(tmp_path, TrainingFacts())
    assert {found[name][0] for name in ("Model", "Mode", "Inputs", "Loss", "Optimiser")} == {
        "not seen"
    }
    assert found["Samples in a step"] == ["none"]
    (tmp_path / "facts" / "r0001-c0000.json").write_text("{")
    with pytest.raises(BadInput, match="Expected facts of a client's training"):
        read_facts(AuditFolder(tmp_path))


def test_several_inputs_and_everything_that_may_be_sent(tmp_path: Path) -> None:
    inputs = (
        TensorFacts(("input_ids",), (2, 6), "int64"),
        TensorFacts(("attention_mask",), (2, 6), "int64", Relation(mask_of=("input_ids",))),
    )
    kinds = ("weights", "delta", "gradient", "other", None)
    found = read(
        tmp_path, *[replace(some_facts(n), sends=s, inputs=inputs) for n, s in enumerate(kinds)]
    )
    assert found["Inputs"] == ["input_ids [6] of int64; attention_mask [6] of int64"]
    assert "the gradient (1 trainings)" in found["Sent"]
    assert len(found["Sent"]) == len(kinds)
