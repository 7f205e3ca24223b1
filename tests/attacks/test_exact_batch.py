"""The attack on whole batches: what it returns, says and refuses, and no false certificate."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional

import fedleak
from fedleak import attack
from fedleak.attacks.exact_batch import ExactBatch
from fedleak.errors import BadInput
from fedleak.updates.update import InterceptedUpdate
from tests.attacks.exact_batches.batches import (
    Batch,
    cross_entropy,
    each_has_its_own,
    make_batch,
    make_noisy_batch,
    near_images,
    with_samples,
)

WIDTHS = (64, 90, 70, 5)


def found_of(batch: Batch, **changes):
    (found,) = ExactBatch(starts=200, rows=2, **changes)([batch.update], batch.knowledge)
    return found


def errors_of(batch: Batch, found) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each sample to the nearest one of the batch, and whether the label is right."""
    flat = found.inputs.flatten(1).double()
    error, at = torch.cdist(flat, batch.inputs.flatten(1).double()).min(dim=1)
    return error, found.labels == batch.labels[at]


def test_a_whole_batch_with_its_labels() -> None:
    batch = make_batch(WIDTHS, 8, mean=0.5, deviation=0.25, kind=torch.float32)
    found = found_of(batch)
    error, right = errors_of(batch, found)
    assert float(error.max()) < 1e-5
    assert bool(right.all())
    assert found.error_bounds.isfinite().all()
    assert found.findings[0].startswith("8 of 8 samples certified, norm of the error at most")
    assert found.explained > 0.999
    assert found.cost < 1e-5


def test_told_labels_give_the_order() -> None:
    batch = make_batch(WIDTHS, 5)
    labels = torch.tensor([3, 0, 4, 1, 2])
    loss = cross_entropy(batch.model, (batch.inputs, labels))
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    told = batch._replace(
        labels=labels, gradient=dict(zip(batch.gradient, values, strict=True)),
        knowledge=replace(batch.knowledge, labels=labels),
    )  # fmt: skip
    found = found_of(told)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.inputs, batch.inputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_a_gradient_that_is_larger_than_told_certifies_nothing(factor: int) -> None:
    """As of a loss that is a sum: each sample's part looks like that of so many equal samples."""
    batch = make_batch(WIDTHS, 8)
    gradient = {name: factor * value for name, value in batch.gradient.items()}
    update = InterceptedUpdate.of(batch.model, gradient=gradient, num_examples=8)
    (found,) = ExactBatch(starts=200, rows=2)([update], batch.knowledge)
    error, _ = errors_of(batch, found)
    assert not found.error_bounds.isfinite().any()
    assert int((error < 1e-6).sum()) >= factor
    assert any("multiples of one sample's" in text for text in found.findings)
    assert found.explained < 0.9


def test_a_sample_that_occurs_twice_is_found_twice_and_not_certified() -> None:
    """It may be the mean of two near ones."""
    batch = make_batch(WIDTHS, 3)
    twice = with_samples(batch, batch.inputs[[0, 1, 0, 2]], batch.labels[[0, 1, 0, 2]])
    found = found_of(twice)
    error, at = torch.cdist(found.inputs.flatten(1), batch.inputs.flatten(1)).min(dim=1)
    assert float(error.max()) < 1e-6
    assert sorted(at.tolist()) == [0, 0, 1, 2]
    assert torch.equal(found.error_bounds.isfinite(), at != 0)
    (text,) = [text for text in found.findings if "multiples of one sample's" in text]
    assert "it occurs more than once, or it is the mean of as many near ones" in text


@pytest.mark.parametrize("classes", [2, 10])
def test_the_mean_of_near_samples_is_not_certified(classes: int) -> None:
    """Two of one label that activate the same units look like their mean, taken twice."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.ReLU(),
            torch.nn.Linear(32, classes),
        )  # fmt: skip
        spread = 0.05 if classes == 2 else 0.02
        inputs = torch.rand(1, 3, 8, 8) + spread * torch.randn(3, 3, 8, 8)
        inputs, labels = (inputs.clamp(0, 1) * 255).round() / 255, torch.zeros(3).long()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        found = fedleak.attack(
            model, gradient, input_shape=(3, 8, 8), num_samples=3, labels=labels,
            method=ExactBatch(starts=30, rows=60),
        )  # fmt: skip
        assert found.error_bounds is not None
        distance = torch.cdist(found.inputs.flatten(1).double(), inputs.flatten(1).double())
        certified = found.error_bounds.isfinite()
        within = distance.min(dim=1).values <= found.error_bounds + 1e-5
        assert bool(within[certified].all())
        if not bool(certified.all()):
            assert any("certified" in text for text in found.findings)


def test_labels_told_wrong_are_said() -> None:
    batch = make_batch(WIDTHS, 5)
    labels = batch.labels.clone()
    labels[0] = (labels[0] + 1) % 5
    (found,) = ExactBatch(starts=200, rows=2)(
        [batch.update], replace(batch.knowledge, labels=labels)
    )
    assert sorted(found.labels.tolist()) == sorted(batch.labels.tolist())
    assert any(
        f"have labels {int(batch.labels[0])} that were not told" in t for t in found.findings
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_front_door(reduction: str) -> None:
    batch = make_batch(WIDTHS, 6)
    loss = functional.cross_entropy(batch.model(batch.inputs), batch.labels, reduction=reduction)
    gradient = torch.autograd.grad(loss, list(batch.model.parameters()))
    found = attack(
        batch.model, gradient, input_shape=(1, 8, 8), num_samples=6, method=ExactBatch(starts=200),
        loss=lambda out, y: functional.cross_entropy(out, y, reduction=reduction),
    )  # fmt: skip
    error, right = errors_of(batch, found)
    assert float(error.max()) < 1e-6
    assert bool(right.all())


@pytest.mark.parametrize("protocol", ["weights", "delta"])
def test_weights_after_one_step(protocol: str) -> None:
    batch = make_batch(WIDTHS, 4, kind=torch.float32)
    rate = 0.5
    changes = {name: -rate * value for name, value in batch.gradient.items()}
    if protocol == "weights":
        changes = {
            name: value.detach() + changes[name] for name, value in batch.model.named_parameters()
        }
    update = InterceptedUpdate.of(batch.model, **{protocol: changes}, num_examples=4)
    knowledge = replace(
        batch.knowledge, protocol=update.protocol, local_training=None, learning_rate=rate
    )
    (found,) = ExactBatch(starts=200, rows=2)([update], knowledge)
    error, right = errors_of(batch, found)
    certified = found.error_bounds.isfinite()
    assert bool((right & (error < 1e-3))[certified].all())
    assert int(certified.sum()) >= (4 if protocol == "delta" else 0)


def test_samples_that_leave_no_gradient_are_told() -> None:
    """A sample that the model classifies with certainty is in the batch and not in the gradient."""
    batch = make_batch((64, 150, 5), 5, std=0.5, kind=torch.float32)
    with torch.no_grad():
        batch.model[3].weight *= 30
        batch.model[3].bias.zero_()
    labels = batch.model(batch.inputs).argmax(dim=1)
    labels[:4] = (labels[:4] + 1) % 5
    loss = cross_entropy(batch.model, (batch.inputs, labels))
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    certain = batch._replace(labels=labels, gradient=dict(zip(batch.gradient, values, strict=True)))
    text = " ".join(found_of(certain).findings)
    assert "1 sample leaves less than the rounding" in text
    assert "or the batch has fewer samples than told, or equal ones" in text
    assert "guesses, not certified: sample 4" in text


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-4, 5e-5])
def test_bounds_hold_for_images_that_lie_near_the_levels(noise: float, kind: torch.dtype) -> None:
    """All pixels are within a quarter of a level of one, and none is on it."""
    batch = make_batch((64, 150, 5), 6, std=0.3, kind=kind)
    generator = torch.Generator().manual_seed(1)
    moved = noise * torch.randn(batch.inputs.shape, generator=generator, dtype=kind)
    inputs = (batch.inputs + moved).clamp(0, 1)
    loss = cross_entropy(batch.model, (inputs, batch.labels))
    values = torch.autograd.grad(loss, list(batch.model.parameters()))
    gradient = dict(zip(batch.gradient, values, strict=True))
    near = batch._replace(inputs=inputs, gradient=gradient)
    found = found_of(near)
    error, _ = errors_of(near, found)
    certified = found.error_bounds.isfinite()
    assert int(certified.sum()) >= 5
    assert bool((error <= found.error_bounds.double() + 1e-6)[certified].all())
    assert not any("taken for 8-bit images" in text for text in found.findings)


def test_an_error_bound_of_zero_is_said_to_be_conditional() -> None:
    batch = make_batch(WIDTHS, 6, kind=torch.float32)
    found = found_of(batch)
    assert bool((found.error_bounds == 0).all())
    text = " ".join(found.findings)
    assert "6 samples are taken for 8-bit images" in text
    assert "the error is 0 only if they are, and otherwise at most" in text


def test_noise_leaves_guesses_alone() -> None:
    batch = make_batch(WIDTHS, 6)
    noisy = {
        name: value + 1e-3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        for name, value in batch.gradient.items()
    }
    found = found_of(batch._replace(gradient=noisy))
    assert not found.error_bounds.isfinite().any()
    assert found.findings[0].endswith("0 of 6 samples certified") or "0 of 6" in " ".join(
        found.findings
    )
    assert bool(((found.inputs >= 0) & (found.inputs <= 1)).all())


def test_samples_outside_of_the_range_that_was_told_are_no_certificates() -> None:
    batch = make_batch(WIDTHS, 5, mean=0.5, deviation=0.25)
    facts = replace(batch.knowledge, mean=(0.5,), std=(0.5,))
    (found,) = ExactBatch(starts=200, rows=2, levels=False)([batch.update], facts)
    error, _ = errors_of(batch, found)
    certified = found.error_bounds.isfinite()
    assert bool((error[certified] < 1e-4).all())
    assert int(certified.sum()) < 5
    assert any("lie outside the valid range" in text for text in found.findings)


def test_what_it_refuses() -> None:
    facts = make_batch(WIDTHS, 4).knowledge
    smooth = replace(
        facts, loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1], label_smoothing=0.2)
    )
    reason = ExactBatch().refuses(smooth)
    assert reason is not None
    assert "not a cross entropy in which all classes count alike" in reason


def test_several_steps_are_told_and_give_no_false_certificate() -> None:
    batch = make_batch(WIDTHS, 4)
    model, rate = copy.deepcopy(batch.model), 0.3
    for _ in range(2):
        loss = cross_entropy(model, (batch.inputs, batch.labels))
        for value, grad in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            value.data -= rate * grad
    update = InterceptedUpdate.of(batch.model, weights=model.state_dict(), num_examples=4)
    knowledge = replace(
        batch.knowledge, protocol="fedavg", local_training=None, learning_rate=rate, local_steps=2
    )
    (found,) = ExactBatch(starts=64, rows=2)([update], knowledge)
    assert any("the update is of 2 steps" in finding for finding in found.findings)
    error, right = errors_of(batch, found)
    certified = found.error_bounds.isfinite()
    assert bool((right & (error <= 1e-3))[certified].all())


@pytest.mark.parametrize("settings_", [{"starts": -1}, {"rows": -1}, {"accuracy": 0.0}])
def test_settings_out_of_range(settings_) -> None:
    with pytest.raises(BadInput, match=f"Expected `{next(iter(settings_))}` to be"):
        ExactBatch(**settings_)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    widths=st.sampled_from([(64, 30, 3), (64, 48, 5), (64, 40, 24, 4), (64, 20, 20, 20, 3)]),
    number=st.integers(1, 12),
    seed=st.integers(0, 999),
    bias=st.booleans(),
    std=st.sampled_from([None, 0.3, 1.0]),
    kind=st.sampled_from([torch.float32, torch.float64]),
    levels=st.booleans(),
    normalised=st.booleans(),
)
def test_no_certificate_is_false(widths, number, seed, bias, std, kind, levels, normalised) -> None:
    mean, deviation = (0.5, 0.25) if normalised else (0.0, 1.0)
    batch = make_batch(
        widths, number, seed=seed, bias=bias, std=std, kind=kind, mean=mean, deviation=deviation
    )
    if not any(bool(value.any()) for value in batch.gradient.values()):
        return
    (found,) = ExactBatch(starts=60, rows=2, levels=levels)([batch.update], batch.knowledge)
    error, right = errors_of(batch, found)
    certified = found.error_bounds.isfinite()
    # Rounding of the result to the client's precision comes on top of the bound.
    allowed = found.error_bounds.double() + 1e-5
    assert bool((right & (error <= allowed) & (error * deviation <= 0.0101))[certified].all())


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_certificate_is_false_among_near_samples(examples: int) -> None:
    """Samples of one label that differ little: each certificate has a sample of its own."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True,
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(
        how=st.sampled_from(["few pixels", "mirrored", "noise", "equal"]),
        size=st.sampled_from([1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        number=st.integers(2, 8),
        others=st.sampled_from([0, 0, 1, 3]),
        widths=st.sampled_from(
            [(64, 30, 3), (64, 200, 5), (64, 400, 2), (64, 40, 24, 4), (64, 60, 60, 60, 3), None]
        ),
        whole=st.sampled_from([True, True, False]),
        bias=st.sampled_from([True, True, False]),
        std=st.sampled_from([None, None, 0.3, 1.0]),
        kind=st.sampled_from([torch.float32, torch.float64]),
        levels=st.booleans(),
        normalised=st.booleans(),
        told=st.booleans(),
        seed=st.integers(0, 9999),
    )
    def no_false_one(
        how, size, number, others, widths, whole, bias, std, kind, levels, normalised, told, seed
    ) -> None:
        mean, deviation = (0.5, 0.25) if normalised else (0.0, 1.0)
        images = near_images(number, others, seed=seed, how=how, size=size, whole=whole)
        if widths is None:  # behind a bottleneck that draws noise
            batch = make_noisy_batch(
                number + others, seed=seed, kind=kind, mean=mean, deviation=deviation
            ).batch
        else:
            batch = make_batch(
                widths, number + others, seed=seed, bias=bias, std=std, kind=kind, mean=mean,
                deviation=deviation,
            )  # fmt: skip
        labels = batch.labels.clone()
        labels[:number] = labels[0]
        batch = with_samples(batch, (images.to(kind) / 255 - mean) / deviation, labels)
        if told:
            batch = batch._replace(knowledge=replace(batch.knowledge, labels=labels))
        if not any(bool(value.any()) for value in batch.gradient.values()):
            return
        (found,) = ExactBatch(starts=40, rows=2, levels=levels)([batch.update], batch.knowledge)
        certified = found.error_bounds.isfinite()
        flat, true = found.inputs.flatten(1).double(), batch.inputs.flatten(1).double()
        errors = (flat[:, None] - true).norm(dim=2)
        allowed = found.error_bounds.double() + 1e-5
        right = (errors <= allowed[:, None]) & (found.labels[:, None] == batch.labels)
        assert each_has_its_own(right[certified])

    no_false_one()


LIES = ("nothing", "one sample more", "half a gradient", "another deviation", "other weights")


def told_wrong(batch: Batch, lie: str) -> Batch:
    """What the server knows of a batch, with one thing wrong."""
    facts, gradient = batch.knowledge, batch.gradient
    if lie == "one sample more":
        facts = replace(facts, num_samples=facts.num_samples + 1)
    elif lie == "half a gradient":
        gradient = {name: value / 2 for name, value in gradient.items()}
    elif lie == "another deviation":
        facts = replace(facts, mean=(0.4,), std=(0.3,))
    elif lie == "other weights":
        model = copy.deepcopy(facts.model)
        with torch.no_grad():
            for value in model.parameters():
                value += (
                    1e-3
                    * value.std()
                    * torch.randn(
                        value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype
                    )
                )
        facts = replace(facts, model=model)
        batch = batch._replace(model=model)
    return batch._replace(knowledge=facts, gradient=gradient)


@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noisy", [False, True])
def test_no_certificate_is_false_where_something_was_told_wrong(noisy, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True,
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(
        lie=st.sampled_from(LIES),
        number=st.integers(1, 10),
        seed=st.integers(0, 999),
        kind=st.sampled_from([torch.float32, torch.float64]),
        levels=st.booleans(),
        hidden=st.sampled_from([1, 2, 3]),
        beta=st.sampled_from([0.0, 1e-3, 0.3]),
    )
    def no_false_one(lie, number, seed, kind, levels, hidden, beta) -> None:
        if noisy:
            made = make_noisy_batch(number, seed=seed, kind=kind, hidden=hidden, beta=beta)
            whole, noise = made.batch, made.noise
        else:
            widths = (64, *[48] * hidden, 4)
            whole = make_batch(widths, number, seed=seed, kind=kind, mean=0.5, deviation=0.25)
            noise = torch.zeros(number, 0)
        told = told_wrong(whole, lie)
        (found,) = ExactBatch(starts=40, rows=0, levels=levels)([told.update], told.knowledge)
        flat, true = found.inputs.flatten(1).double(), whole.inputs.flatten(1).double()
        error, at = torch.cdist(flat, true).min(dim=1)
        certified = found.error_bounds.isfinite()
        right = found.labels == whole.labels[at]
        allowed = found.error_bounds.double() + 1e-5
        assert bool((right & (error <= allowed))[certified].all())
        if number > 1 or lie != "one sample more":
            # Twice the same sample in a batch of two has the gradient of one.
            assert len(set(at[certified].tolist())) == int(certified.sum())
        for values in found.noise.values() if lie != "other weights" else ():
            # Where the gradient in the code is near 0 it says little of the noise.
            off = (values - noise[at]).abs().median(dim=1).values
            assert bool((off[certified] < 1e-3).all())

    no_false_one()
