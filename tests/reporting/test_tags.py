"""Names of tags and sub-runs: what is written can be read back."""

import pytest

from fedleak.reporting import tags


@pytest.mark.parametrize("model", ["smlp", "smlp+precode", "my model on paper"])
def test_an_attacks_sub_run_is_read_back(model: str) -> None:
    assert tags.split_attack_run(tags.attack_run("iga", model)) == ("iga", model)


@pytest.mark.parametrize("run", ["", "smlp", "smlp+precode"])
def test_other_sub_runs_are_not_of_an_attack(run: str) -> None:
    assert tags.split_attack_run(run) is None


@pytest.mark.parametrize(
    ("metric", "last"), [("accuracy", "accuracy"), ("test/accuracy", "accuracy"), ("a/b/c", "c")]
)
def test_a_metric_of_the_global_model_is_read_back(metric: str, last: str) -> None:
    assert tags.split_global_model(tags.global_model(metric)) == last


def test_the_cost_of_a_victim_is_read_back() -> None:
    assert tags.split_victim_cost(tags.victim_cost("r0001-c0003")) == "r0001-c0003"


def test_other_tags_are_told_apart() -> None:
    others = [tags.by_round("ssim"), tags.by_victim("ssim"), tags.mean_of_clients("loss")]
    others += [tags.of_client("loss", 3), tags.result("ssim"), tags.PICTURES, tags.COST]
    for tag in others:
        assert tags.split_global_model(tag) is None
        assert tags.split_victim_cost(tag) is None
    assert tags.split_victim_cost(tags.global_model("accuracy")) is None
    assert tags.split_global_model(tags.victim_cost("r0001-c0003")) is None
    names = [*others, tags.global_model("loss"), tags.victim_cost("r0001-c0003")]
    assert len(set(names)) == len(names)


def test_groups_sort_with_the_reconstructions_first() -> None:
    groups = [tags.RECONSTRUCTIONS, tags.ATTACKS, tags.TRAINING, tags.CLIENTS, tags.VICTIMS]
    assert sorted(groups) == groups
