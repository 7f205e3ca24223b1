"""Plugins' short names in arguments and files, replaced by dotted paths."""

from pathlib import Path

import pytest

from fedleak.attacks import IGA
from fedleak.cli.plugin_names import arguments_of, load_yaml, with_class_paths
from fedleak.errors import BadInput
from fedleak.models import SMLP

PHOTOS, PERCEPTRON = "fedleak.data.photos.Photos", "fedleak.models.mlp.SMLP"
ATTACK = "fedleak.attacks.iga.IGA"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "photos"], ["--data", PHOTOS]),
        (["--data=photos"], [f"--data={PHOTOS}"]),
        (["--model", PERCEPTRON], ["--model", PERCEPTRON]),
        (["--attacks", "iga"], ["--attacks", f"[{{class_path: {ATTACK}}}]"]),
        (["--attacks+", "iga"], ["--attacks+", ATTACK]),
        (["--attack", "iga"], ["--attack", ATTACK]),
        (["--seed", "photos"], ["--seed", "photos"]),
        (["run", "--output", "iga"], ["run", "--output", "iga"]),
        (["--model.help", "smlp"], ["--model.help", PERCEPTRON]),
        (
            ["--attacks", "[{class_path: iga, init_args: {iterations: 5}}]"],
            ["--attacks", f"[{{class_path: {ATTACK}, init_args: {{iterations: 5}}}}]"],
        ),
    ],
)
def test_names_become_paths(arguments: list[str], expected: list[str]) -> None:
    assert with_class_paths(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "fotos"], r"Unknown data set `fotos`: .* Did you mean `photos`\?"),
        (["--data", "--model"], "Expected a value after `--data`, got nothing"),
        (["--model", "fedleak.errors.BadInput"], "`model` to name a subclass of LightningModule"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        with_class_paths(arguments)


def test_the_files_of_a_configuration_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: photos\nseed: 3\n")
    assert with_class_paths(["--config", str(path)]) == ["--config", str(path)]
    path.write_text("data: photos\nsede: 3\n")
    with pytest.raises(BadInput, match=r"Unknown setting `sede`: .* Did you mean `seed`\?"):
        with_class_paths(["--config", str(path)])


def test_names_in_yaml_become_paths() -> None:
    found = load_yaml("{data: photos, attacks: [iga], seed: 3}")
    assert found == {"data": PHOTOS, "attacks": [{"class_path": ATTACK}], "seed": 3}
    assert load_yaml("[1, iga]") == [1, "iga"]


def test_what_comes_from_the_data_is_no_setting() -> None:
    assert "iterations" in arguments_of(IGA)
    found = arguments_of(SMLP)
    assert "width" in found
    assert not {"input_shape", "num_classes"} & set(found)
