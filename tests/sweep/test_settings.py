"""Settings by dotted names, merged into a run's settings."""

import pytest

from fedleak.errors import BadInput
from fedleak.sweep import expand
from fedleak.sweep.settings import check_names, fill_placeholders, flatten, merge_layers
from tests.sweep.sweeps import BASE, study_of


def test_a_longer_name_wins_in_any_order_of_the_axes(tmp_path):
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


def test_nested_settings_are_flattened_but_for_plugins():
    plugin = {"class_path": "smlp", "init_args": {"width": 8}}
    settings = {"federation": {"clients": 2, "rounds": 3}, "model": plugin, "victims": {}}
    assert flatten(settings) == {
        "federation.clients": 2, "federation.rounds": 3, "model": plugin, "victims": {},
    }  # fmt: skip
    assert flatten({"a": {"b": 1}}, "x.") == {"x.a.b": 1}


def test_placeholders_are_replaced_in_all_texts():
    settings = {"weights": "${model}/${seed}.pt", "list": ["${seed}", 3], "seed": 4}
    assert fill_placeholders(settings, {"model": "smlp", "seed": "1"}) == {
        "weights": "smlp/1.pt", "list": ["1", 3], "seed": 4,
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"Unknown axis behind \$ `sed`.*`seed`"):
        fill_placeholders("${sed}", {"seed": "1"})


def test_names_begin_with_a_setting():
    check_names("`base`", {"federation.clients": 2, "seed": 1})
    with pytest.raises(BadInput, match=r"Unknown setting in `base` `sede`.*`seed`"):
        check_names("`base`", {"sede": 1})
    with pytest.raises(BadInput, match="Expected no `output` in `base`"):
        check_names("`base`", {"output": "there"})


def test_a_position_beyond_the_list_is_refused():
    with pytest.raises(BadInput, match=r"`attacks.2.restarts` to be .* one of the 2 attacks"):
        merge_layers({"attacks": ["iga", "nra"]}, {"attacks.2.restarts": 1})
