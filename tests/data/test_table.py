"""Tables as samples: what a column becomes, what is refused, and what an update leaks of them."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.attacks import IGA
from fedleak.attacks.exact_nra import RGAP
from fedleak.attacks.matching.engine import GradientMatching
from fedleak.build import knowledge_of, make_data, make_model
from fedleak.config import Federation, RunConfig
from fedleak.data.table import Table, columns_of
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from fedleak.runs.scoring import make_scoring
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.data.tables import ROWS, write_real, write_table

# ------------------------------------------------------------------------------- what it reads


def test_columns_of_both_kinds(tmp_path: Path) -> None:
    data = Table(path=write_table(tmp_path), target="buys", test_fraction=0.25)
    assert (len(data.train_set), len(data.test_set)) == (30, 10)
    assert data.input_shape == (6,)
    assert data.classes == ["no", "yes"]
    assert [(c.name, c.start, c.categories) for c in data.columns] == [
        ("age", 0, ()), ("town", 1, ("Bonn", "Kiel", "Ulm")), ("income", 4, ()), ("floor", 5, ()),
    ]  # fmt: skip
    assert "4 columns, 1 of them categorical" in data.describe()


def test_every_row_keeps_its_cells_and_its_label(tmp_path: Path) -> None:
    data = Table(path=write_table(tmp_path), target="buys", test_fraction=0.25)
    found = []
    for part in (data.train_set, data.test_set):
        inputs, labels = part.batch(range(len(part)))
        assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
        for sample, label in zip(inputs, labels, strict=True):
            cells = [c.text(c.value(sample)) for c in data.columns]
            found.append((*cells, data.classes[int(label)]))
    told = [(a, t, f"{float(i):.6g}", f, b) for a, t, i, f, b in ROWS[1:]]
    assert sorted(found) == sorted(told)


def test_numbers_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    data = Table(path=write_table(tmp_path), target="buys")
    inputs, _ = data.train_set.batch(range(len(data.train_set)))
    for column in data.columns:
        part = inputs[:, column.start : column.start + column.width].double()
        if column.categories:
            assert part.sum(dim=1).tolist() == [1.0] * len(part)
            assert column.guess == float(part.sum(dim=0).argmax())
        else:
            assert float(part.mean()) == pytest.approx(0, abs=1e-6)
            assert float(part.std(correction=0)) == pytest.approx(1, abs=1e-6)
            assert (column.guess, column.spread) == (column.mean, column.std)
    assert len(data.mean) == len(data.std) == 6
    assert data.mean[1:4] == (0.0, 0.0, 0.0)
    raw = Table(path=write_table(tmp_path), target="buys", standardise=False)
    assert raw.mean == (0.0,) * 6
    scaled = raw.train_set.inputs.double() - torch.tensor(data.mean, dtype=torch.float64)
    scaled /= torch.tensor(data.std, dtype=torch.float64)
    assert torch.allclose(scaled, inputs.double(), atol=1e-4)
    assert raw.columns[0].spread == pytest.approx(data.columns[0].std)


def test_numbers_that_are_categories_and_the_last_column_as_target(tmp_path: Path) -> None:
    data = Table(path=write_table(tmp_path), categorical=["floor"])
    assert data.columns[3].categories == ("0", "1", "2")
    assert data.input_shape == (8,)
    assert data.classes == ["no", "yes"]


def test_a_target_of_numbers(tmp_path: Path) -> None:
    """Whole numbers are classes in their order as numbers, others are targets of a regression."""
    classes = Table(path=write_table(tmp_path), target="age")
    assert classes.classes[:2] == ["20", "21"]
    numbers = Table(path=write_table(tmp_path), target="income")
    assert numbers.num_classes == 1
    assert numbers.train_set.labels.dtype == torch.float32
    assert sorted(numbers.train_set.labels.tolist() + numbers.test_set.labels.tolist()) == [
        1000.5 + at * at for at in range(40)
    ]


def test_another_delimiter(tmp_path: Path) -> None:
    comma = Table(path=write_table(tmp_path), target="buys").train_set.inputs
    other = Table(path=write_table(tmp_path, delimiter=";"), target="buys", delimiter=";")
    assert torch.equal(other.train_set.inputs, comma)


@pytest.mark.parametrize("keys", [("x", "y"), ("data", "target"), ("inputs", "labels")])
def test_an_archive_of_arrays(tmp_path: Path, keys: tuple[str, str]) -> None:
    inputs = np.stack([np.arange(20.0), np.arange(20) % 3], axis=1)
    path = tmp_path / "table.npz"
    np.savez(path, **{keys[0]: inputs, keys[1]: np.arange(20) % 2})
    data = Table(path=str(path), categorical=["1"], standardise=False, test_fraction=0)
    assert [c.categories for c in data.columns] == [(), ("0", "1", "2")]
    assert data.input_shape == (4,)
    values = [[c.value(sample) for c in data.columns] for sample in data.train_set.inputs]
    assert sorted(values) == inputs.tolist()
    assert torch.equal(data.train_set.inputs, data.test_set.inputs)


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS, {"target": "byus"}, r"column of .*people.csv. `byus`.*buys"),
        (ROWS, {"categorical": ["flor"]}, r"`flor`.*floor"),
        ([*ROWS, ("1", "Ulm")], {}, r"Expected 5 cells in line 42 of .*people.csv., got 2"),
        ([*ROWS, ("1", "", "2", "3", "no")], {}, r"got one in column town in line 42"),
        ([("a", "a"), ("1", "2")], {}, r"columns' names, each once"),
        ([("a", ""), ("1", "2")], {}, r"columns' names, each once"),
        (ROWS[:2], {}, r"at least 2 rows .* got 1"),
        ([(*row[:4], "no") for row in ROWS[1:]], {}, r"columns' names|2 to 1000 classes"),
    ],
)
def test_a_table_that_is_none(
    tmp_path: Path, rows: list[tuple[str, ...]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        Table(path=write_table(tmp_path, rows), **settings).setup()


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"found no file .*none.csv"):
        Table(path=str(tmp_path / "none.csv")).setup()
    (tmp_path / "bytes.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(BadInput, match="Expected text in UTF-8"):
        Table(path=str(tmp_path / "bytes.csv")).setup()
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 3, 3)))
    with pytest.raises(BadInput, match="one of the arrays x, data, inputs with one of y, target"):
        Table(path=str(tmp_path / "images.npz")).setup()
    np.savez(tmp_path / "nan.npz", x=np.full((3, 2), np.nan), y=np.arange(3))
    with pytest.raises(BadInput, match=r"Expected finite numbers as inputs in"):
        Table(path=str(tmp_path / "nan.npz")).setup()
    np.savez(tmp_path / "shapes.npz", x=np.zeros((3, 2, 2)), y=np.arange(3))
    with pytest.raises(BadInput, match=r"got \(3, 2, 2\) and \(3,\)"):
        Table(path=str(tmp_path / "shapes.npz")).setup()


@pytest.mark.parametrize("settings", [{"test_fraction": 1.0}, {"delimiter": ""}], ids=str)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"Expected `{next(iter(settings))}`"):
        Table(path="table.csv", **settings)


# ---------------------------------------------------------------------- what an update leaks


def configured(path: str, target: str, tmp_path: Path, **federation: Any) -> RunConfig:
    return RunConfig(
        data=Plugin("fedleak.data.table.Table", {"path": path, "target": target}),
        model=Plugin("fedleak.models.mlp.SMLP", {"width": 64}),
        attacks=[Plugin("fedleak.attacks.exact_nra.RGAP")],
        federation=Federation(clients=2, rounds=1, **federation),
        output=str(tmp_path / "run"),
    )


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_a_row_of_a_real_table_is_read(tmp_path: Path, name: str) -> None:
    config = configured(write_real(tmp_path, name), "kind", tmp_path)
    data = make_data(config)
    model: Any = make_model(config, data)
    inputs, labels = data.train_set.batch([3])
    gradient = torch.autograd.grad(model.batch_loss((inputs, labels)), list(model.parameters()))
    update = InterceptedUpdate.of(model, gradient=list(gradient))
    knowledge = knowledge_of(config, data, model, labels=None)
    (found,) = RGAP()([update], knowledge)
    scoring = make_scoring(config, data)
    (score,) = scoring.scores(GroundTruth(inputs, labels), found)
    assert (score["exact"], score["success"], score["right"]) == (1, 1, 1.0)
    assert score["error"] < 1e-5
    assert score["right_of_guess"] < 0.9
    # Standardised columns reach beyond what a pixel could be.
    assert float(inputs.abs().max()) > 1
    file = tmp_path / "row.csv"
    scoring.keep(found.inputs[0], inputs[0], file)
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert [row["column"] for row in rows] == [column.name for column in columns_of(data)]
    assert all(row["right"] == "1" and row["found"] == row["true"] for row in rows)


def test_matching_keeps_to_no_box(tmp_path: Path) -> None:
    """A search begins where the numbers are, and ends beyond 0 and 1."""
    config = configured(write_table(tmp_path), "buys", tmp_path)
    data = make_data(config)
    model: Any = make_model(config, data)
    inputs, labels = data.train_set.batch([0])
    gradient = torch.autograd.grad(model.batch_loss((inputs, labels)), list(model.parameters()))
    update = InterceptedUpdate.of(model, gradient=list(gradient))

    class Matching(GradientMatching):
        name, paper, needs = "matching", "", ""

    attack = Matching(iterations=30, optimizer="lbfgs", learning_rate=1.0, signed=False)
    (found,) = attack([update], knowledge_of(config, data, model, labels=labels))
    assert torch.allclose(found.inputs, inputs, atol=1e-2)
    assert float(found.inputs.abs().max()) > 1


@pytest.mark.slow
def test_a_run_from_the_file_to_the_report(tmp_path: Path) -> None:
    from fedleak.experiment import run
    from fedleak.reporting.report import write_report
    from fedleak.runs.folder import RunFolder

    config = configured(write_real(tmp_path, "wine"), "kind", tmp_path, batch_size=1)
    summary = run(config)
    (entry,) = summary["attacks"]
    assert summary["status"] == "complete"
    assert (entry["right"], entry["exact"], entry["asr"]) == (1.0, 1.0, 1.0)
    assert entry["right_of_guess"] < 0.9
    assert summary["data"]["kind"] == "tables"
    kept = list((tmp_path / "run").rglob("victims/*.csv"))
    assert len(kept) == 2
    page = write_report(RunFolder(Path(config.output))).read_text(encoding="utf-8")
    assert "at least 90% of the columns right" in page
    assert "SSIM" not in page


# ----------------------------------------------------------------------------- limits of columns


def limits_of(name: str) -> dict[str, list[float]]:
    """The range of every column but the last, as scikit-learn's description of the data has it."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    lowest, highest = found.data.min(axis=0).tolist(), found.data.max(axis=0).tolist()
    pairs = zip(found.feature_names, lowest, highest, strict=True)
    return {str(column): [low, high] for column, low, high in list(pairs)[:-1]}


def test_attacks_keep_to_the_limits_of_the_columns(tmp_path: Path) -> None:
    path, told = write_real(tmp_path, "breast_cancer"), limits_of("breast_cancer")
    config = configured(path, "kind", tmp_path, batch_size=4)
    settings = {"path": path, "target": "kind"}
    bounded = replace(config, data=replace(config.data, init_args=settings | {"limits": told}))
    data = make_data(bounded)
    low, high = data.value_range
    assert low.tolist() == [*(pair[0] for pair in told.values()), -math.inf]
    assert high.tolist() == [*(pair[1] for pair in told.values()), math.inf]
    model: Any = make_model(config, data)
    inputs, labels = data.train_set.batch([3, 4, 8, 9])
    gradient = torch.autograd.grad(model.batch_loss((inputs, labels)), list(model.parameters()))
    update = InterceptedUpdate.of(model, gradient=list(gradient), num_examples=4)
    attack = IGA(iterations=80, learning_rate=0.1)
    low, high = ((v - torch.tensor(data.mean)) / torch.tensor(data.std) for v in (low, high))
    errors, outside = [], []
    for each in (config, bounded):
        knowledge = knowledge_of(each, make_data(each), model, labels=labels, update=update)
        (found,) = attack([update], knowledge)
        beyond = (found.inputs < low - 1e-5) | (found.inputs > high + 1e-5)
        outside.append(float(beyond.double().mean()))
        match = torch.cdist(found.inputs, inputs).argmin(dim=0)
        errors.append(float((found.inputs[match] - inputs).square().mean()))
    assert outside[0] > 0.02
    assert outside[1] == 0
    assert errors[1] < errors[0]


def test_a_column_of_categories_is_from_0_to_1(tmp_path: Path) -> None:
    data = Table(path=write_table(tmp_path), target="buys", limits={"age": [0, 120]})
    assert data.value_range is not None
    low, high = data.value_range
    assert low.tolist() == [0, 0, 0, 0, -math.inf, -math.inf]
    assert high.tolist() == [120, 1, 1, 1, math.inf, math.inf]
    assert Table(path=write_real(tmp_path, "wine")).value_range is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"age": [1]}, r"lowest and the highest value of age as `limits`, got \[1\]"),
        ({"age": [2, 2]}, r"lowest and the highest value of age as `limits`, got \[2, 2\]"),
        ({"aeg": [0, 120]}, "Unknown column of .* `aeg`: .*Did you mean `age`"),
        ({"town": [0, 1]}, "`limits` of numeric columns, got them of town, which has the categor"),
        ({"age": [21, 120]}, "values of age from 21 to 120, as `limits` say, got 20 to 59"),
    ],
)
def test_limits_are_checked(tmp_path: Path, limits: dict[str, list[float]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Table(path=write_table(tmp_path), target="buys", limits=limits).setup()
