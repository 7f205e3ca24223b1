"""The benchmarks of the closed form in small. No time is asserted."""

import pytest

from benchmarks.exact import (
    LOOK_EVERY,
    exact_seconds,
    exact_seconds_large,
    time_to_leak_dmlp,
    time_to_leak_lenet,
)
from fedleak.attacks.matching.optimizers import OPTIMIZERS
from fedleak.models import SMLP


def test_a_perceptron_shows_what_the_closed_form_of_2018_needs(monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    before = OPTIMIZERS["adam"]
    figure = time_to_leak_dmlp(victims=1, iterations=30, width=24, plain=1)
    assert OPTIMIZERS["adam"] is before
    assert figure.value > 0
    assert figure.details["analytic_ssim_min"] > 0.99 < figure.details["exact_nra_ssim_min"]
    assert figure.details["analytic_seconds"] > 0
    # NRA has found nothing after so few iterations, and that is said.
    assert figure.lower_bound
    assert figure.details["nra_reached"] == 0
    assert figure.details["nra_iterations"] == 30
    assert "DMLP 4x24 + PRECODE" in figure.setting["model"]


def test_iterations_until_the_image_leaks_are_counted(monkeypatch):
    monkeypatch.setattr("benchmarks.exact.LEAKED", -1.0)  # any image has leaked
    figure = time_to_leak_dmlp(victims=1, iterations=30, width=24, plain=1)
    assert not figure.lower_bound
    assert figure.details["nra_reached"] == 1
    assert figure.details["nra_iterations"] == LOOK_EVERY


def test_a_closed_form_that_does_not_reach_the_image_is_no_measurement(monkeypatch):
    monkeypatch.setattr("benchmarks.exact.LEAKED", 1.5)  # no image leaks
    with pytest.raises(RuntimeError, match=r"Expected exact to reach SSIM 1\.5"):
        time_to_leak_dmlp(victims=1, iterations=10, width=24, plain=1)


def test_a_convolutional_model_has_no_first_linear_layer_to_read():
    figure = time_to_leak_lenet(victims=1, iterations=10, plain=1)
    assert "analytic_seconds" not in figure.details
    assert figure.lower_bound


@pytest.mark.parametrize(("benchmark", "size"), [(exact_seconds, 32), (exact_seconds_large, 64)])
def test_the_closed_forms_seconds_tell_what_was_reached(benchmark, size, monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    figure = benchmark(victims=1, kinds=(SMLP,))
    assert figure.value == figure.details["smlp_seconds"] > 0
    assert figure.details["smlp_ssim_min"] > 0.999
    assert f"x{size}x{size}" in figure.setting["data"]
    assert "SMLP + PRECODE" in figure.setting["model"]
