"""What sequences of defences come to, each case by the argument that decides it."""

from typing import Any

import pytest
import torch
from torch import nn

from fedleak.config import Federation
from fedleak.defenses import (
    DPSGD,
    PPP,
    SVT,
    Censor,
    Clipping,
    Defense,
    GradientDropout,
    NoisyGradients,
    Outgoing,
    Percentile,
    Pruning,
    Quantization,
    Sign,
    Soteria,
    TopK,
)
from fedleak.runs.mechanisms import of_defenses

NET = nn.Sequential(nn.Linear(3, 2))
CLIP, NOISE = Clipping(max_norm=0.5), NoisyGradients(sigma=2.0)


def found(*defenses: Defense, model: nn.Module = NET, **settings: Any) -> Any:
    return of_defenses(defenses, model, Federation(**settings), samples=10)


def test_clipping_bounds_the_noise_behind_it() -> None:
    mechanism = found(CLIP, NOISE)
    assert (mechanism.name, mechanism.unit, mechanism.trust) == ("noise", "client", "local")
    # Replacing an update moves it by up to 1.
    assert (mechanism.sensitivity, mechanism.standard_deviation) == (1.0, 2.0)
    assert mechanism.infinite == ""
    assert found(CLIP, Clipping(max_norm=3.0), NOISE) == mechanism
    assert found(CLIP, Pruning(ratio=0.5), NOISE) == mechanism
    # What follows uses the noised update alone.
    assert found(CLIP, NOISE, Pruning(ratio=0.5), Sign(), CLIP) == mechanism


@pytest.mark.parametrize(
    ("defenses", "reason"),
    [
        ([NOISE, CLIP], "nothing bounds"),
        ([CLIP], "no noise is added"),
        ([CLIP, Sign(), NOISE], "sign may make the clipped norm larger"),
        (
            [CLIP, Pruning(ratio=0.5, error_feedback=True), NOISE],
            "pruning may make the clipped norm larger",
        ),
        ([CLIP, NOISE, Soteria()], "soteria, behind the noise, may read the client's samples"),
        ([CLIP, NoisyGradients(relative=True)], "scaled by the update's own norm"),
    ],
)
def test_without_a_guarantee_the_reason_is_said(defenses: list[Defense], reason: str) -> None:
    mechanism = found(*defenses)
    assert reason in mechanism.infinite
    assert mechanism.noise_multiplier() == 0


def test_noise_in_a_part_of_the_update_and_other_defences_are_no_mechanism() -> None:
    assert found() is None
    assert found(Sign(), PPP(sigma=1.0)) is None
    assert found(CLIP, PPP(sigma=1.0)) is None


def test_a_defence_of_ones_own_is_not_trusted_to_use_the_update_alone() -> None:
    class Own(Defense):
        name = "own"

        def protect(
            self, outgoing: Outgoing, *, generator: torch.Generator, memory: dict[str, Any]
        ) -> dict[str, torch.Tensor]:
            return dict(outgoing.update)

    assert "own, behind the noise" in found(CLIP, NOISE, Own()).infinite
    assert "own may make" in found(CLIP, Own(), NOISE).infinite


def test_dp_sgd_draws_a_batch_of_a_fixed_size() -> None:
    mechanism = found(NOISE, DPSGD(max_norm=2.0, noise_multiplier=1.5), batch_size=4)
    assert (mechanism.unit, mechanism.adjacency) == ("sample", "replace")
    assert (mechanism.sampling, mechanism.sampling_rate) == ("fixed", 0.4)
    assert mechanism.noise_multiplier() == pytest.approx(1.5 / 2)
    # A server that chooses the batch may ask for all samples.
    assert found(DPSGD(), batch_size=4, obeys={"b": "batch_size"}).sampling_rate == 1
    assert of_defenses([DPSGD()], NET, Federation(batch_size=4)).sampling_rate == 1


def test_running_statistics_are_sent_without_noise() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert found(CLIP, NOISE, model=model).infinite == (
        "the running statistics of `1` are sent without noise"
    )
    assert found(CLIP, NOISE, model=model, mode="eval").infinite == ""


def test_laplace_noise_counts_the_entries() -> None:
    mechanism = found(CLIP, NoisyGradients(sigma=2.0, distribution="laplace"))
    assert mechanism.bound == pytest.approx(0.5 * 8**0.5)  # of 6 weights and 2 biases


def test_the_sparse_vector_filter_has_no_epsilon_but_a_declared_one() -> None:
    mechanism = found(SVT(epsilon=0.3))
    assert (mechanism.name, mechanism.epsilon) == ("svt", 0.3)
    assert "more entries may pass" in mechanism.infinite


@pytest.mark.parametrize("behind", [Percentile(), TopK(), Quantization(), GradientDropout()])
def test_filters_of_single_entries_do_not_read_the_samples_again(behind: Defense) -> None:
    assert not found(CLIP, NOISE, behind).infinite


@pytest.mark.parametrize(
    ("between", "bounded"),
    [
        (Percentile(), True), (TopK(), True), (TopK(error_feedback=True), False),
        (Quantization(), False), (GradientDropout(), False), (Censor(), False),
    ],
)  # fmt: skip
def test_filters_that_keep_the_clipped_norm(between: Defense, bounded: bool) -> None:
    assert (not found(CLIP, between, NOISE).infinite) == bounded
