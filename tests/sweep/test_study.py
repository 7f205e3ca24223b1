"""The file of a study, and the cells of its grid."""

import pytest
import yaml

from fedleak.errors import BadInput
from fedleak.registry import class_path
from fedleak.sweep import expand, load_study
from fedleak.sweep.settings import fill_placeholders
from tests.sweep.sweeps import NAMES, study_of, sweep


def test_cells_are_the_cross_product_with_the_last_axis_fastest(tmp_path):
    cells = expand(study_of(tmp_path))
    assert [cell.name for cell in cells] == NAMES
    assert cells[1].axes == {"model": "smlp", "seed": "1"}
    assert cells[1].config.seed == 1
    assert cells[2].config.model_name == "lenet"
    assert {cell.config.federation.clients for cell in cells} == {3}
    assert {cell.config.attacks[0].init_args["iterations"] for cell in cells} == {7}


def test_long_and_short_forms_of_values(tmp_path):
    grid = {
        "defence": [
            {"name": "none"},
            {"name": "PRECODE, K=64", "set": {"model.precode.bottleneck_size": 64}},
        ],
        "size": [{"federation.batch_size": 2, "federation": {"rounds": 3}}],
        "attacks": ["nra"],
    }
    cells = expand(study_of(tmp_path, grid=grid))
    assert cells[1].axes == {
        "defence": "PRECODE, K=64", "size": "batch_size=2 rounds=3", "attacks": "nra",
    }  # fmt: skip
    assert cells[1].name == "PRECODE-K=64_batch_size=2-rounds=3_nra"
    config = cells[1].config
    assert config.model.init_args == {"precode": {"bottleneck_size": 64}}
    assert (config.federation.batch_size, config.federation.rounds) == (2, 3)
    assert config.federation.clients == 3
    assert [plugin.class_path for plugin in config.attacks] == [class_path("attacks", "nra")]


def test_skip_leaves_combinations_out(tmp_path):
    study = study_of(tmp_path, skip=[{"model": "lenet", "seed": [0]}])
    assert [cell.name for cell in expand(study)] == [*NAMES[:2], NAMES[3]]
    with pytest.raises(BadInput, match="at least one cell"):
        expand(study_of(tmp_path, skip=[{"seed": [0, 1]}]))


def test_placeholders_take_the_names_of_the_cells_values(tmp_path):
    grid = {
        "model": ["smlp", "lenet"],
        "after": [
            {"name": "1 epoch", "set": {"weights": "runs/${model}_${seed}/${after}.safetensors"}},
            {"name": "none", "set": {"weights": None}},
        ],
        "seed": [3],
    }
    cells = expand(study_of(tmp_path, grid=grid))
    assert [cell.config.weights for cell in cells] == [
        "runs/smlp_3/1 epoch.safetensors",
        None,
        "runs/lenet_3/1 epoch.safetensors",
        None,
    ]
    nested = {"attacks": [{"init_args": {"path": "${model}", "iterations": 7}}]}
    assert fill_placeholders(nested, {"model": "smlp"}) == {
        "attacks": [{"init_args": {"path": "smlp", "iterations": 7}}]
    }


def test_names_of_cells_are_unique(tmp_path):
    values = [{"name": name, "set": {"seed": i}} for i, name in enumerate(["a b", "a/b", "A-B"])]
    cells = expand(study_of(tmp_path, grid={"x": values}))
    assert [cell.name for cell in cells] == ["a-b", "a-b-2", "A-B-3"]


def test_a_saved_study_reads_back_equal(tmp_path):
    study = study_of(tmp_path, skip=[{"model": "lenet", "seed": 0}], processes=2, threads=3)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(study.to_dict()), encoding="utf-8")
    assert load_study(path) == study


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grit": {}}, "Unknown key of a study `grit`.* Did you mean `grid`"),
        ({"grid": {}}, "Expected `grid` to hold the values of at least one axis"),
        ({"grid": {"seed": []}}, "Expected axis `seed` to be a list of at least one value"),
        ({"grid": {"seed": 3}}, "Expected axis `seed` to be a list"),
        ({"grid": {"seed": [1, 1]}}, "axis `seed` to have names of their own, got `1` twice"),
        ({"grid": {"cell": [1]}}, "Expected another name than `cell`"),
        ({"grid": {"modle": ["smlp"]}}, "Unknown setting in axis `modle` `modle`.*`model`"),
        ({"grid": {"x": [{"name": "y", "sett": {}}]}}, "Unknown key .* `sett`.*`set`"),
        ({"grid": {"x": [{"set": {"seed": 1}}]}}, "Expected every value of axis `x` to have a `n"),
        ({"grid": {"x": [[1]]}}, "write {name: ..., set: {...}}"),
        ({"grid": {"x": [{"name": "y", "set": 3}]}}, "Expected `set` in axis `x`"),
        ({"grid": {"x": [{"output": "there"}]}}, "Expected no `output` in axis `x`"),
        ({"base": {"output": "there"}}, "Expected no `output` in `base`"),
        ({"base": {"sede": 1}}, "Unknown setting in `base` `sede`.*`seed`"),
        ({"base": [1]}, "Expected `base` to be settings"),
        ({"grid": {"seed": [1], "x": [{"seed": 2}]}}, "`seed` and `x` both set `seed`"),
        ({"skip": [{"sed": 1}]}, "Unknown axis in `skip` `sed`.*`seed`"),
        ({"skip": [{"model": "lenets"}]}, "Unknown value of axis `model` in `skip`.*`lenet`"),
        ({"skip": {"model": "lenet"}}, "Expected `skip` to be a list"),
        ({"processes": 0}, "Expected `processes` to be a number from 1, got 0"),
        ({"threads": "two"}, "Expected `threads` to be a number from 1"),
    ],
)
def test_errors_in_a_study_are_reported(tmp_path, content, message):
    with pytest.raises(BadInput, match=message):
        study_of(tmp_path, **content)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"n": [{"federation.clients": 0}]}, "In cell `clients=0`: Expected `federation.clients`"),
        ({"n": [{"federation.client": 1}]}, "In cell `client=1`: Unknown.*`clients`"),
        ({"x": [{"seed": 0}, {"name": "nil"}]}, "`seed=0` and `nil` have the same settings"),
        ({"x": [{"name": "y", "set": {"attacks.3.restarts": 1}}]}, "one of the 1 attacks"),
        (
            {"x": [{"name": "y", "set": {"weights": "${z}"}}]},
            r"In cell `y`: Unknown axis behind \$ `z`: expected one of x",
        ),
    ],
)
def test_errors_in_a_cell_are_reported_before_anything_is_written(tmp_path, grid, message):
    with pytest.raises(BadInput, match=message):
        sweep(tmp_path, study=study_of(tmp_path, grid=grid))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "found none"), ("a: [", "Expected YAML"), ("3", "a mapping")]
)
def test_files_that_are_not_a_study(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_study(path)


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a: \xff\xfe", "Expected a readable YAML file"),
        (b"a: " + b"[" * 2000, "at most 40 levels"),
        (b"base: 2020-13-45", "Expected plain values"),
        (b"base: &a {data: *a}", "refers to itself"),
        (BOMB.encode(), "at most 100,000 values"),
        (b"- a", "Expected a mapping in"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, content, text):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=text):
        load_study(path)
