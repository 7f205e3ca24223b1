"""Filters of single entries, against their definitions computed by hand or literally."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedleak.defenses import (
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
    TopK,
    protect,
)
from fedleak.errors import BadInput
from fedleak.models import SMLP
from fedleak.updates.entries import SentUpdate
from fedleak.updates.knowledge import batch_loss
from tests.cases import client_gradient, pictures

MODEL = nn.Linear(1, 1)


def through(defense: Defense, update: dict[str, Tensor], *, steps: int = 1, seed: int = 0):
    outgoing = Outgoing(update, MODEL, steps=steps)
    return protect([defense], outgoing, seed=seed, memory={})[0]


def random_update() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    one = torch.randn(40, 50, generator=generator)
    return {"weight": one * torch.randn(40, 50, generator=generator), "bias": one[:, 0] * 3}


def test_percentile_by_hand():
    update = {"a": torch.tensor([[0.1, -0.4], [2.0, -6.0]]), "b": torch.tensor([0.2, 0.8])}
    # Magnitudes 0.1 0.2 0.4 0.8 2 6: the 40th percentile lies at position 2, which is 0.4.
    after = through(Percentile(percentile=40, gamma=1.0), update)
    torch.testing.assert_close(after["a"], torch.tensor([[0.0, -0.4], [1.0, -1.0]]))
    torch.testing.assert_close(after["b"], torch.tensor([0.0, 0.8]))
    # Of two steps, each entry is compared with gamma by half of itself.
    halved = through(Percentile(percentile=40, gamma=1.0), update, steps=2)
    torch.testing.assert_close(halved["a"], torch.tensor([[0.0, -0.4], [2.0, -2.0]]))


def test_percentile_interpolates_as_numpy_does():
    update = random_update()
    every = np.abs(np.concatenate([value.numpy().ravel() for value in update.values()]))
    cutoff = np.percentile(every, 33.3)
    after = through(Percentile(percentile=33.3, gamma=0.5), update)
    for name, value in {n: value.numpy() for n, value in update.items()}.items():
        kept = np.clip(np.where(np.abs(value) < cutoff, 0, value), -0.5, 0.5)
        np.testing.assert_array_equal(after[name].numpy(), kept)


def test_top_k_takes_the_largest_of_all_tensors():
    update = {"a": torch.tensor([1.0, -5.0, 2.0]), "b": torch.tensor([4.0, 3.0])}
    after = through(TopK(share=0.4), update)
    assert after["a"].tolist() == [0.0, -5.0, 0.0]
    assert after["b"].tolist() == [4.0, 0.0]
    assert [v.tolist() for v in through(TopK(share=1.0), update).values()] == [
        value.tolist() for value in update.values()
    ]


def test_top_k_sends_later_what_it_kept():
    memory: dict[str, Tensor] = {}
    defense, sent = TopK(share=0.5, error_feedback=True), []
    for values in ([1.0, 0.6], [0.1, 0.6]):
        outgoing = Outgoing({"a": torch.tensor(values)}, MODEL)
        sent.append(protect([defense], outgoing, seed=0, memory=memory)[0]["a"])
    assert sent[0].tolist() == [1.0, 0.0]
    torch.testing.assert_close(sent[1], torch.tensor([0.0, 1.2]))


def test_nearest_levels_by_hand():
    update = {"a": torch.tensor([3.0, -1.4, 0.4, 1.6, 0.0]), "zero": torch.zeros(2)}
    after = through(Quantization(bits=3, stochastic=False), update)
    # Three levels on either side of 0, up to 3.
    assert after["a"].tolist() == pytest.approx([3.0, -1.0, 0.0, 2.0, 0.0])
    assert after["zero"].tolist() == [0.0, 0.0]


def test_stochastic_levels_are_unbiased():
    value = torch.tensor([1.0, 0.3, -0.77]).repeat(20_000, 1)
    after = through(Quantization(bits=2), {"a": value})["a"]
    assert set(after.unique().tolist()) == {-1.0, 0.0, 1.0}
    spread = 5 * 0.5 / math.sqrt(len(value))
    torch.testing.assert_close(after.mean(dim=0), value[0], atol=spread, rtol=0)


def test_dropout_is_unbiased_and_scaled():
    value = torch.full((50_000,), 2.0)
    after = through(GradientDropout(probability=0.75), {"a": value})["a"]
    assert set(after.unique().tolist()) == {0.0, 8.0}
    assert float((after == 0).double().mean()) == pytest.approx(0.75, abs=0.01)
    plain = through(GradientDropout(probability=0.75, rescale=False), {"a": value})["a"]
    assert set(plain.unique().tolist()) == {0.0, 2.0}


def test_svt_sends_a_fraction_with_noise_within_gamma():
    update = {"a": torch.full((20_000,), 5e-6)}
    after = through(SVT(replace=False), update)["a"]
    assert int(after.count_nonzero()) == 2000
    assert float(after.abs().max()) <= 1.00001e-5
    # With replacement fewer are sent: of 2,000 drawn among those that passed.
    assert 1000 < int(through(SVT(), update)["a"].count_nonzero()) < 2000
    before = through(SVT(replace=False, clip="before", fraction=1.0), update)["a"].double()
    assert float(before.mean()) == pytest.approx(5e-6, abs=5 * 2.9e-4 / math.sqrt(20_000))
    assert float(before.std()) == pytest.approx(math.sqrt(2) * 2e-4, rel=0.05)


def test_svt_prefers_large_entries_where_its_noise_is_small():
    update = {"a": torch.cat([torch.full((100,), 1.0), torch.zeros(900)])}
    loud = SVT(gamma=1.0, tau=0.5, epsilon=1e4, noise_var=1e6, replace=False)
    after = through(loud, update)["a"]
    torch.testing.assert_close(after[:100], torch.ones(100), atol=1e-4, rtol=0)
    assert not bool(after[100:].any())


def test_censor_is_orthogonal_of_the_same_norms_and_takes_the_least_loss():
    torch.manual_seed(1)
    model = SMLP(input_shape=(1, 6, 6), num_classes=4, width=12)
    batch = pictures(3, (1, 6, 6)).float(), torch.tensor([0, 2, 3])
    gradient, _ = client_gradient(model, *batch)
    outgoing = Outgoing(gradient, model, batch)
    once, after = (
        protect([Censor(trials=trials)], outgoing, seed=0, memory={})[0] for trials in (1, 30)
    )
    for name, value in gradient.items():
        inner = float((after[name] * value).sum()) / float(value.norm()) ** 2
        assert abs(inner) < 1e-5
        assert float(after[name].norm()) == pytest.approx(float(value.norm()), rel=1e-5)
    losses = []
    for step in (once, after):
        moved = copy.deepcopy(model).double()
        with torch.no_grad():
            for name, value in moved.named_parameters():
                value -= 1e-4 * step[name].double()
        losses.append(float(batch_loss(moved, (batch[0].double(), batch[1]))))
    assert losses[1] < losses[0]
    with pytest.raises(BadInput, match="one batch"):
        protect([Censor()], Outgoing(gradient, model), seed=0, memory={})


FILTERS = [
    Percentile(percentile=40, gamma=0.5), Percentile(percentile=90, gamma=0.01),
    Pruning(ratio=0.6), TopK(share=0.3), GradientDropout(probability=0.4),
    GradientDropout(probability=0.4, rescale=False), Quantization(bits=5),
    Quantization(bits=3, stochastic=False), NoisyGradients(sigma=0.2),
    NoisyGradients(sigma=0.7, relative=True), SVT(gamma=0.3), SVT(gamma=0.3, clip="before"),
    Sign(),
]  # fmt: skip


def label(defense: Defense) -> str:
    return f"{defense.name}-{'-'.join(map(str, vars(defense).values()))}"


@pytest.mark.parametrize("defense", FILTERS, ids=label)
def test_what_is_told_of_the_entries_is_true(defense):
    update = random_update()
    sent = SentUpdate(through(defense, update, seed=4), MODEL)
    assert defense.contradiction(sent) is None
    for name, known in defense.entries_before(sent).items():
        true = update[name]
        slack = 1e-5 * float(true.abs().max())
        assert bool((known.lowest <= true + slack).all())
        assert bool((known.highest >= true - slack).all())
        torch.testing.assert_close(known.value[known.exact], true[known.exact])
        noisy = known.measured & ~known.exact
        # Those clipped by SVT's noise are right on average for small entries alone.
        if bool(noisy.any()) and not isinstance(defense, SVT):
            error = (known.value - true)[noisy].double()
            told = float(known.deviation[noisy].double().square().mean().sqrt())
            assert float(error.square().mean().sqrt()) == pytest.approx(told, rel=0.35)


def test_the_estimate_of_svt_is_unbiased_for_small_entries():
    update = {"a": torch.full((200_000,), 2e-6)}
    defense = SVT(fraction=1.0, replace=False)
    sent = SentUpdate(through(defense, update), MODEL)
    known = defense.entries_before(sent)["a"]
    estimates = known.value[known.measured].double()
    told = float(known.deviation[known.measured].mean())
    spread = 5 * told / math.sqrt(len(estimates))
    assert float(estimates.mean()) == pytest.approx(2e-6, abs=spread)
    assert float(estimates.std()) == pytest.approx(told, rel=0.02)


@pytest.mark.parametrize(
    ("told", "applied"),
    [
        (Percentile(percentile=50), Percentile(percentile=10)),
        (Percentile(gamma=0.01), Percentile(gamma=0.1)),
        (Pruning(ratio=0.5), Pruning(ratio=0.3)),
        (TopK(share=0.1), TopK(share=0.3)),
        (GradientDropout(probability=0.5), GradientDropout(probability=0.2)),
        (Quantization(bits=4), Quantization(bits=8)),
        (NoisyGradients(sigma=0.1), Pruning(ratio=0.5)),
        (SVT(fraction=0.1, gamma=1.0), TopK(share=0.4)),
        (SVT(gamma=0.1), SVT(gamma=1.0)),
        (Clipping(max_norm=1.0), Clipping(max_norm=2.0)),
        (Sign(), Quantization(bits=4)),
    ],
    ids=lambda defense: label(defense),
)
def test_an_update_contradicts_other_settings(told, applied):
    sent = SentUpdate(through(applied, random_update()), MODEL)
    assert told.contradiction(sent) is not None
    # Noise shows where it left zeros alone.
    unfiltered = told.contradiction(SentUpdate(random_update(), MODEL))
    assert (unfiltered is None) == isinstance(told, NoisyGradients)
    assert told.contradiction(SentUpdate(through(told, random_update()), MODEL)) is None


@pytest.mark.parametrize(
    "defense", [Percentile(), SVT(), Quantization(), TopK(), GradientDropout()], ids=label
)
def test_whole_numbers_pass_and_nan_does_not(defense):
    update = {"a": torch.randn(30, 4), "seen": torch.tensor([7, 900]), "one": torch.tensor(3.5)}
    after = through(defense, update)
    assert torch.equal(after["seen"], update["seen"])
    assert torch.equal(after["one"], update["one"])
    for strange in (math.nan, math.inf):
        update["a"][3, 1] = strange
        with pytest.raises(BadInput, match=f"finite numbers for {defense.name}.*`a`"):
            through(defense, update)


def test_of_kept_error_nothing_is_known_after_the_first_round():
    update = through(Pruning(ratio=0.5), random_update())
    for defense in (Pruning(ratio=0.5, error_feedback=True), TopK(share=0.9, error_feedback=True)):
        assert defense.entries_before(SentUpdate(update, MODEL, round=1)) is not None
        assert defense.entries_before(SentUpdate(update, MODEL, round=2)) is None


@pytest.mark.parametrize("value", [math.nan, -1.0])
@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (Percentile, "percentile"), (Percentile, "gamma"), (SVT, "fraction"), (SVT, "epsilon"),
        (SVT, "noise_var"), (SVT, "gamma"), (SVT, "tau"), (Quantization, "bits"),
        (TopK, "share"), (GradientDropout, "probability"), (Censor, "trials"),
        (Censor, "learning_rate"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_and_nan(kind, setting, value):
    with pytest.raises(BadInput, match=f"Expected `{setting}` of {kind.name} to be"):
        kind(**{setting: value})
