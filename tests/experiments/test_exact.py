"""The study of the closed form in seconds, and the files of the real one."""

import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch

from fedleak.data import Photos
from fedleak.runs.diagnostics import read_diagnostics
from fedleak.sweep import expand, load_study
from tests.experiments.studies import (
    EXPERIMENTS,
    check_means_of_images,
    check_smoke_is_of_the_study,
    rows_of,
    script,
    spread,
    swept,
)

FOLDER = EXPERIMENTS / "exact"
TITLES = {
    "smlp": "SMLP", "dmlp": "DMLP", "lenet": "LeNet (sigmoid)", "lenetr": "LeNetR (ReLU)",
    "victims_cifar10": "CIFAR-10", "victims_cifar100": "CIFAR-100",
    "victims_medical_mnist": "Medical MNIST",
}  # fmt: skip

# Tables with a column of seconds for each machine: what was measured on the second one.
ON_EPYC = {"results.csv": {"lenetr"}, "batches.csv": {"lenet", "lenetr"}, "limits.csv": {"lenetr"}}


def by_machine(file: str, model: str, seconds: float) -> str:
    """The cells of both machines, one of them empty."""
    cells = [f"{seconds:.1f}", "–"]
    return " | ".join(cells[::-1] if model in ON_EPYC[file] else cells)


@pytest.mark.slow
def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = swept(FOLDER / "smoke.yaml")
    assert Counter((row["attack"], row["model"]) for row in rows) == {
        ("exact_nra", "lenetr+precode"): 2, ("exact_nra", "smlp+precode"): 2,
    }  # fmt: skip
    for row in rows:
        assert float(row["ssim"]) > (0.999 if row["model"].startswith("smlp") else 0.6)
        assert float(row["noise_mse"]) < 1e-8
    found = [
        found.model
        for path in Path("sweep/cells").glob("*/diagnostics.jsonl")
        for found in read_diagnostics(path)
    ]
    assert Counter(found) == {"lenetr+precode": 2, "smlp+precode": 2}


def test_smoke_differs_from_the_study_in_size_alone() -> None:
    check_smoke_is_of_the_study(FOLDER)


def test_every_mean_of_the_table_can_be_computed_again() -> None:
    check_means_of_images(FOLDER / "results")


@pytest.mark.parametrize(
    ("file", "by", "many"), [("results.csv", "dataset", 12), ("batches.csv", "batch_size", 9)]
)
def test_the_readmes_tables_are_those_of_the_rows(file: str, by: str, many: int) -> None:
    text = (FOLDER / "README.md").read_text()
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows_of(FOLDER / "results" / file):
        groups.setdefault((row[by], row["model"].split("+")[0]), []).append(row)
    assert len(groups) == many
    for (first, model), rows in groups.items():
        assert len(rows) == (64 if by == "dataset" else 8 * int(first))
        start = f"| {TITLES.get(first, first)} | {TITLES[model]} |"
        seconds = statistics.median(float(row["seconds"]) for row in rows)
        ssim = spread([float(row["ssim"]) for row in rows])
        end = f"| {ssim} | {by_machine(file, model, seconds)} |"
        assert any(ln.startswith(start) and ln.endswith(end) for ln in text.splitlines())


def test_the_readmes_figures_of_the_published_attack_are_those_of_its_study() -> None:
    text = (FOLDER / "README.md").read_text()
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(EXPERIMENTS / "nra-image" / "results" / "results.csv"):
        if row["attack"] == "nra":
            model = row["model"].removesuffix("+precode")
            groups.setdefault((row["dataset"], model), []).append(float(row["ssim"]))
    assert len(groups) == 12
    for (dataset, model), ssim in groups.items():
        assert f"| {TITLES[dataset]} | {TITLES[model]} | {spread(ssim)} | " in text


def test_the_results_join_the_table_of_the_published_attack() -> None:
    lines = (EXPERIMENTS / "nra-image" / "README.md").read_text().splitlines()
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(FOLDER / "results" / "results.csv"):
        key = (row["dataset"], row["model"].removesuffix("+precode"))
        groups.setdefault(key, []).append(float(row["ssim"]))
    assert len(groups) == 12
    for (dataset, model), ssim in groups.items():
        start, end = f"| {TITLES[dataset]} | {TITLES[model]} |", f"| {spread(ssim)} |"
        assert any(line.startswith(start) and line.endswith(end) for line in lines)


def test_the_readmes_table_of_trained_models_is_that_of_the_rows() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    cells: dict[tuple[str, str, str], dict[str, list[dict[str, str]]]] = {}
    for row in rows_of(FOLDER / "results" / "trained.csv"):
        name = row["cell"].removeprefix(f"{row['attack']}_").removesuffix("_K256")
        data, model, after = name.rsplit("_", 2)
        found = cells.setdefault((data, model, after.removeprefix("after-")), {})
        found.setdefault(row["attack"], []).append(row)
    assert len(cells) == 36
    accuracies = {
        (row["cell"], row["round"]): 100 * float(row["accuracy"])
        for row in rows_of(FOLDER / "results" / "training.csv")
    }
    for (data, model, epochs), found in cells.items():
        ssim, nra = ([float(row["ssim"]) for row in found[name]] for name in ("exact_nra", "nra"))
        assert (len(ssim), len(nra)) == (64, 8)
        seconds = statistics.median(float(row["seconds"]) for row in found["exact_nra"])
        start = f"| {TITLES[f'victims_{data}']} | {TITLES[model]} | {epochs} |"
        figures = [f"{accuracies[f'{data}_{model}_K256', epochs]:.1f}", spread(nra), spread(ssim)]
        expected = [f"{start} {' | '.join(figures)} | {min(ssim):.3f} | {seconds:.1f} |"]
        failed = [row["client"] for row in found["exact_nra"] if float(row["ssim"]) < 0.6]
        expected += [f"{start} {', '.join(failed)} |"] if failed else []
        assert [line for line in lines if line.startswith(start)] == expected


def test_the_readmes_table_of_soft_gates_is_that_of_the_rows() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(FOLDER / "results" / "soft.csv"):
        found.setdefault(row["cell"], []).append(row)
    assert len(found) == 9
    before: dict[str, list[float]] = {}
    for row in rows_of(FOLDER / "results" / "trained.csv"):
        if row["attack"] == "exact_nra" and int(row["client"]) < 8:
            before.setdefault(row["cell"], []).append(float(row["ssim"]))
    for cell, rows in found.items():
        data, after = cell.removesuffix("_K256").split("_lenetr_after-")
        assert [row["client"] for row in rows] == [str(client) for client in range(8)]
        figures = [before[f"exact_nra_{cell}"], [float(row["ssim"]) for row in rows]]
        seconds = statistics.median(float(row["seconds"]) for row in rows)
        start = f"| {TITLES[f'victims_{data}']} | {after} |"
        assert f"{start} {' | '.join(map(spread, figures))} | {seconds:.1f} |" in lines


def test_the_readmes_table_of_what_answers_it_is_that_of_the_rows() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows_of(FOLDER / "results" / "answers.csv"):
        found = cells.setdefault(row["cell"], {})
        found.setdefault(row["attack"], []).append(float(row["ssim"]))
    titles = {
        "precode": "PRECODE", "ppp": "PRECODE, PPP", "cvb": "CVB", "cvb-ppp": "CVB, PPP",
        "clipping": "PRECODE, clipping", "pruning": "PRECODE, pruning", "noise": "PRECODE, noise",
    }  # fmt: skip
    assert set(cells) == {f"lenet_{answer}" for answer in titles}
    attacks = ("iga", "iga_partial", "nra", "exact_nra")
    for cell, found in cells.items():
        figures = [spread(found[attack]) for attack in attacks]
        assert f"| {' | '.join([titles[cell.removeprefix('lenet_')], *figures])} |" in lines


def test_the_readmes_table_of_several_steps_is_that_of_the_rows() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    cells: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(FOLDER / "results" / "steps.csv"):
        cells.setdefault(row["cell"], []).append(row)
    assert len(cells) == 8
    for cell, rows in cells.items():
        model, steps, _ = cell.split("_")
        ssim = spread([float(row["ssim"]) for row in rows])
        seconds = statistics.median(float(row["seconds"]) for row in rows)
        title = steps.removeprefix("steps").replace("-", " ")
        assert f"| {TITLES[model]} | {title} | {ssim} | {seconds:.1f} |" in lines


def test_the_readmes_table_of_less_knowledge_is_that_of_the_rows() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    cells: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(FOLDER / "results" / "limits.csv"):
        cells.setdefault(row["cell"], []).append(row)
    assert len(cells) == 6
    for cell, rows in cells.items():
        model, known, _ = cell.split("_")
        ssim = [float(row["ssim"]) for row in rows]
        assert len(ssim) == 16
        title = known.replace("-", " ").replace(" labels", ", labels")
        seconds = statistics.median(float(row["seconds"]) for row in rows)
        cells = by_machine("limits.csv", model, seconds)
        assert f"| {TITLES[model]} | {title} | {spread(ssim)} | {cells} |" in lines


def test_the_readmes_table_of_the_cost_is_that_of_its_rows() -> None:
    cost = script(FOLDER / "cost.py")
    rows = rows_of(FOLDER / "results" / "cost.csv")
    assert {tuple(row[name] for name in cost.COLUMNS[:4]) for row in rows} == {
        tuple(map(str, point)) for point in cost.points()
    }
    assert cost.table(rows) in (FOLDER / "README.md").read_text()


def test_cost_of_a_point() -> None:
    cost = script(FOLDER / "cost.py")
    threads = torch.get_num_threads()
    try:
        row = cost.measure(("victims", "dmlp", 2, 16))
    finally:
        torch.set_num_threads(threads)
    model = cost.make("dmlp", 16, Photos())
    parameters = sum(value.numel() for value in model.parameters())
    assert (row["victims"], row["parameters"]) == ("2", str(parameters))
    assert float(row["seconds"]) > 0
    assert float(row["peak_mb"]) > 100  # torch alone takes as much
    assert f"| victims | dmlp | 2 | 16 | {parameters:,} | {row['seconds']} |" in cost.table([row])
    assert len(cost.figure([row]).axes) == 4


def test_models_of_the_cost_are_up_to_sixteen_times_as_large() -> None:
    cost = script(FOLDER / "cost.py")
    with torch.device("meta"):
        counts = {
            (model, size): sum(v.numel() for v in cost.make(model, size, Photos()).parameters())
            for axis, model, _, size in cost.points()
            if axis == "parameters"
        }
    for model, sizes in (("dmlp", cost.WIDTHS), ("lenet", cost.SIZES)):
        factors = [counts[model, size] / counts[model, sizes[0]] for size in sizes]
        assert factors == pytest.approx([1, 2, 4, 8, 16], rel=0.05)


def test_soft_gates_are_tried_on_cells_of_the_trained_models() -> None:
    soft, trained = (expand(load_study(FOLDER / name)) for name in ("soft.yaml", "trained.yaml"))
    weights = {f"{c.axes['data']} {c.axes['epochs']}": c.config.weights for c in trained
               if c.axes["attack"] == "exact_nra" and c.axes["model"] == "lenetr"}  # fmt: skip
    assert {f"{c.axes['data']} {c.axes['epochs']}": c.config.weights for c in soft} == weights
    assert len(weights) == 9


def test_trained_models_are_those_that_the_training_leaves() -> None:
    training, trained = (
        expand(load_study(FOLDER / name)) for name in ("training.yaml", "trained.yaml")
    )
    expected = {
        (
            cell.config.model_name,
            f"runs/exact-training/cells/{cell.name}/updates/r{number:04d}-global.safetensors",
            attack,
        )
        for cell in training
        for number in cell.config.victims.rounds
        for attack in ("exact_nra", "nra")
    }
    for cell in trained:
        after = int(cell.axes["epochs"].removeprefix("after "))
        assert f"/{cell.axes['data']}_" in str(cell.config.weights)
        # The round that begins with the weights which so many epochs have left.
        assert f"r{after + 1:04d}-global" in str(cell.config.weights)
    found = [(c.config.model_name, c.config.weights, c.axes["attack"]) for c in trained]
    assert set(found) == expected
    assert len(found) == len(expected) == 72
