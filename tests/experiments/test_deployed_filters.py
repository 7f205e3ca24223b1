"""The study of deployed filters: its clients, its intervals and its table."""

from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from tests.experiments.studies import EXPERIMENTS, rows_of, script

FOLDER = EXPERIMENTS / "deployed-filters"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script(FOLDER / "measure.py")


@pytest.fixture(scope="module")
def filters() -> ModuleType:
    return script(FOLDER / "filters.py")


@pytest.mark.parametrize(("successes", "number"), [(0, 8), (3, 8), (8, 8), (61, 64)])
def test_intervals_are_those_of_the_exact_binomial_test(study, successes, number):
    exact = binomtest(successes, number).proportion_ci(method="exact")
    assert study.interval(successes, number) == pytest.approx((exact.low, exact.high))


def test_flowers_mod_clips_the_change_and_adds_the_stated_noise(filters):
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 100)
    change = {name: torch.full_like(v, 1.0) for name, v in model.named_parameters()}
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sent = filters.by_flower(change, model, seed=3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    whole = torch.cat([value.flatten() for value in sent.values()]).double()
    clipped = 1 / np.sqrt(30_100)
    assert float(whole.mean()) == pytest.approx(clipped, rel=0.01)
    assert float(whole.std()) == pytest.approx(filters.MECHANISM.standard_deviation, rel=0.02)
    assert filters.FILTERS["local_dp_mod"].told.sigma == filters.MECHANISM.standard_deviation
    assert filters.epsilon_of(filters.FILTERS["percentile"], 20) is None
    assert filters.epsilon_of(filters.FILTERS["local_dp_mod"], 20) > 1e6


def test_a_client_sends_a_filtered_step(filters):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    model.batch_loss = lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    batch = torch.rand(1, 3, 32, 32), torch.tensor([3])
    plain, cut = (
        filters.victim(model, batch, filters.FILTERS[name], 0) for name in ("none", "pruning 0.5")
    )
    weights = list(model.parameters())
    gradient = torch.autograd.grad(model.batch_loss(batch), weights)
    assert plain.protocol == cut.protocol == "delta"
    torch.testing.assert_close(plain.received["1.weight"], -0.1 * gradient[0])
    assert int((cut.received["1.weight"] == 0).sum()) == weights[0].numel() // 2


def test_the_table_of_the_results_is_that_of_its_rows(study):
    rows = rows_of(FOLDER / "results" / "results.csv")
    assert study.summarise(rows) == rows_of(FOLDER / "results" / "summary.csv")
    cells = {tuple(map(str, cell)) for cell in study.cells()}
    assert {tuple(row[name] for name in study.Cell._fields) for row in rows} <= cells


def test_the_figures_of_the_page_are_those_of_the_results():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in rows_of(FOLDER / "results" / "summary.csv"):
        assert f"{row['ssim']} ± {row['spread'] or '–'}" in page, row
