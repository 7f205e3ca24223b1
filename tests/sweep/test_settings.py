"""Settings by dotted names, merged into a run's settings."""

import pytest

from fedleak.errors import BadInput
from fedleak.sweep import (
    expand,
)
from fedleak.sweep.settings import merge_layers
from tests.sweep.sweeps import BASE, study_of


def test_a_longer_name_wins_whatever_the_order_of_the_axes(tmp_path):
    grid = {"width": [{"name": "narrow", "set": {"model.width": 8}}], "model": ["dmlp"]}
    (cell,) = expand(study_of(tmp_path, grid=grid))
    assert cell.config.model_name == "dmlp"
    assert cell.config.model.init_args == {"width": 8}


def test_arguments_of_every_attack_or_of_one(tmp_path):
    base = BASE | {"attacks": ["iga", "nra"]}
    grid = {"size": [{"name": "s", "set": {"attacks.iterations": 5, "attacks.1.restarts": 2}}]}
    (cell,) = expand(study_of(tmp_path, base=base, grid=grid))
    assert [plugin.init_args for plugin in cell.config.attacks] == [
        {"iterations": 5}, {"iterations": 5, "restarts": 2},
    ]  # fmt: skip


def test_defences_are_a_list_of_plugins_too():
    assert merge_layers({"defenses": "pruning"}, {"defenses.0.ratio": 0.5}) == {
        "defenses": [{"class_path": "pruning", "init_args": {"ratio": 0.5}}]
    }
    with pytest.raises(BadInput, match="Expected `defenses` to be given"):
        merge_layers({}, {"defenses.ratio": 0.5})


def test_base_is_not_changed_by_cells(tmp_path):
    base = BASE | {"model": {"class_path": "smlp", "init_args": {"precode": {"beta": 0.1}}}}
    grid = {"k": [{"name": str(k), "set": {"model.precode.bottleneck_size": k}} for k in (1, 2)]}
    cells = expand(study_of(tmp_path, base=base, grid=grid))
    assert [cell.config.model.init_args["precode"] for cell in cells] == [
        {"beta": 0.1, "bottleneck_size": 1}, {"beta": 0.1, "bottleneck_size": 2},
    ]  # fmt: skip
