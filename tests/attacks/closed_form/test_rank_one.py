"""Completion of a linear layer's gradient of one sample, against the factors it was made of."""

import math

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.closed_form.linear import linear_input
from fedleak.attacks.closed_form.rank_one import complete
from fedleak.defenses import (
    SVT,
    Defense,
    GradientDropout,
    NoisyGradients,
    Outgoing,
    Percentile,
    Pruning,
    Quantization,
    Sign,
    TopK,
    protect,
)
from fedleak.updates.entries import Entries, SentUpdate

ROWS, COLUMNS = 120, 200


def factors() -> tuple[Tensor, Tensor]:
    """A gradient of the layer's output, a third of it 0 and of widely spread sizes; an input."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(ROWS, generator=generator)
    output *= torch.randn(ROWS, generator=generator).exp()
    output[torch.rand(ROWS, generator=generator) < 0.3] = 0
    return 0.02 * output, torch.rand(COLUMNS, generator=generator)


def entries_of(defense: Defense) -> tuple[dict[str, Entries], dict[str, Tensor]]:
    output, entering = factors()
    update = {"weight": torch.outer(output, entering), "bias": output}
    sent, _ = protect([defense], Outgoing(update, nn.Linear(1, 1)), seed=1, memory={})
    return defense.entries_before(SentUpdate(sent, nn.Linear(1, 1))), sent


def off(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


# The relative error that is left of the input, at most, and that an attack which is not told the
# defence has left, at least.
CASES = [
    (Percentile(percentile=50, gamma=0.01), 0.002, 0.15),
    (GradientDropout(probability=0.9), 1e-6, 0.5),
    (Quantization(bits=8), 0.0025, 0.0026),
    (Quantization(bits=5), 0.03, 0.1),
    (Quantization(bits=4, stochastic=False), 0.04, 0.12),
    (NoisyGradients(sigma=0.01), 0.06, 0.09),
    (NoisyGradients(sigma=1.0, relative=True), 0.12, 0.2),
]


@pytest.mark.parametrize(
    ("defense", "told", "plain"), CASES, ids=lambda value: getattr(value, "name", str(value))
)
def test_a_told_defence_leaves_less_error(defense, told, plain):
    entries, sent = entries_of(defense)
    output, entering = factors()
    whole = complete(entries["weight"], entries["bias"])
    assert off(whole.input.value, entering) <= told
    assert off(whole.output, output) <= max(0.01, 4 * told)
    assert off(linear_input(sent["weight"], sent["bias"]).value, entering) >= plain
    known = whole.input.known
    assert off(whole.input.value[known], entering[known]) < 2 * whole.input.error + 1e-7


@pytest.mark.parametrize("defense", [Pruning(ratio=0.9), TopK(share=0.01)], ids=lambda d: d.name)
def test_entries_of_which_nothing_came_are_known_to_be_so(defense):
    entries, sent = entries_of(defense)
    _, entering = factors()
    whole = complete(entries["weight"], entries["bias"])
    known = whole.input.known
    assert torch.equal(known, sent["weight"].any(dim=0))
    assert 0 < int(known.sum()) < COLUMNS
    assert not whole.input.complete
    torch.testing.assert_close(
        whole.input.value[known], entering[known].double(), atol=1e-5, rtol=0
    )
    # 0 is within the bounds of the others.
    assert not bool(whole.input.value[~known].any())
    rows = sent["weight"].any(dim=1) | (sent["bias"] != 0)
    assert torch.equal(whole.rows, rows)


def test_without_the_bias_the_scale_is_open():
    entries, _ = entries_of(GradientDropout(probability=0.2))
    infinite = torch.full_like(entries["bias"].value, math.inf)
    nothing = Entries(torch.zeros_like(infinite), -infinite, infinite, infinite)
    found = complete(entries["weight"], nothing)
    _, entering = factors()
    assert found.input.error == math.inf
    cosine = torch.cosine_similarity(found.input.value, entering.double(), dim=0)
    assert abs(float(cosine)) == pytest.approx(1.0)


def test_of_bounds_alone_there_is_nothing_to_complete():
    entries, _ = entries_of(Sign())
    assert complete(entries["weight"], entries["bias"]) is None


def test_clipped_columns_are_kept_within_their_bounds():
    """The largest input's column is clipped in every row that came: it is bounded from below."""
    output, entering = torch.tensor([1.0, 2.0, -1.5]), torch.tensor([0.1, 0.2, 5.0])
    update = {"weight": torch.outer(output, entering), "bias": output}
    gamma = 3.0
    sent, _ = protect(
        [Percentile(percentile=0, gamma=gamma)],
        Outgoing(update, nn.Linear(1, 1)),
        seed=0,
        memory={},
    )
    entries = Percentile(percentile=0, gamma=gamma).entries_before(
        SentUpdate(sent, nn.Linear(1, 1))
    )
    found = complete(entries["weight"], entries["bias"]).input
    torch.testing.assert_close(found.value[:2], entering[:2].double(), atol=1e-6, rtol=0)
    assert found.known.tolist() == [True, True, False]
    assert float(found.value[2]) == pytest.approx(gamma, rel=1e-4)  # of the row of 1


def test_svt_tells_the_direction_of_many_entries():
    output, entering = factors()
    update = {"weight": 1e-3 * torch.outer(output, entering), "bias": 1e-3 * output}
    defense = SVT(fraction=0.9, replace=False)
    sent, _ = protect([defense], Outgoing(update, nn.Linear(1, 1)), seed=1, memory={})
    entries = defense.entries_before(SentUpdate(sent, nn.Linear(1, 1)))
    found = complete(entries["weight"], entries["bias"]).input
    assert found.error > 0.1  # it says that it is not exact
