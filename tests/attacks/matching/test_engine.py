"""The engine's options: layers, optimisers, the batch-norm prior, tracing."""

import math
from collections.abc import Iterator
from dataclasses import replace
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks import DLG, IDLG, IGA, NRA, Reconstruction
from fedleak.attacks.base import _prepare
from fedleak.attacks.matching.best_iterate import BestIterates, cost_rounding
from fedleak.attacks.matching.compile import Step, TracedStep
from fedleak.attacks.matching.costs import COSTS, Products, layer_weights
from fedleak.attacks.matching.dummy_gradient import DummyGradient
from fedleak.attacks.matching.engine import Known
from fedleak.attacks.matching.optimizers import OPTIMIZERS
from fedleak.attacks.matching.priors import batch_norm_distance, expected_statistics
from fedleak.errors import BadInput
from fedleak.metrics import label_recovery_rate
from fedleak.models import DropoutNoise
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss
from tests.cases import CLASSES, MODELS, Victim, case_victim, make_victim, smooth_victim
from tests.reference import cost_of, dense_gradient

SHAPE = (1, 8, 8)


class Normed(nn.Module):
    """A small classifier with batch norm and a dropout that draws outside the noise slots."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Dropout(dropout),
            nn.Flatten(), nn.Linear(256, CLASSES),
        )  # fmt: skip

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.body(batch[0]), batch[1])


def normed(dropout: float = 0.0) -> Normed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Normed(dropout)


# ---------------------------------------------------------------------------------- the layers


def test_the_last_pattern_that_fits_counts() -> None:
    names = ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert layer_weights(names, None) == dict.fromkeys(names, 1.0)
    assert layer_weights(names, {"*": 2, "*.bias": 0}) == {"a.weight": 2, "b.weight": 2}
    assert layer_weights(names, {"b.*": 3}) == {"b.weight": 3, "b.bias": 3}


def test_weights_by_hand() -> None:
    def products(dummy: list[float], target: list[float]) -> Products:
        ours, theirs = torch.tensor([dummy, target], dtype=torch.float64)
        return Products((ours * theirs).sum(), ours.square().sum(), theirs.square().sum())

    both = {"a": products([3, 4], [0, 5]), "b": products([1], [2])}
    weights = {"a": 2.0, "b": 3.0}
    assert COSTS["squared_error"](both, weights) == pytest.approx(2 * 10 + 3 * 1)
    inner, ours, theirs = 2 * 20 + 3 * 2, 2 * 25 + 3 * 1, 2 * 25 + 3 * 4
    assert COSTS["cosine"](both, weights) == pytest.approx(1 - inner / math.sqrt(ours * theirs))
    assert COSTS["relative_error"](both, weights) == pytest.approx((2 * 10 / 25 + 3 * 1 / 4) / 5)


def test_layers_left_out_do_not_count() -> None:
    victim = case_victim(MODELS[2], precode=False, dtype=torch.float64)
    attack = IGA(iterations=4, layers={"features.*": 1}, total_variation=0.0)
    (result,) = attack([victim.update], victim.knowledge)
    dummy = dense_gradient(victim.model, result.inputs, result.labels, {})
    compared = {n: g for n, g in dummy.items() if n.startswith("features.")}
    assert len(compared) < len(dummy)
    assert result.cost == pytest.approx(
        float(cost_of("cosine", compared, victim.update.received)), rel=1e-9
    )


# ------------------------------------------------------------------------------ the optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_are_moved_as_if_each_were_alone(name: str) -> None:
    """Minimises a different quadratic in each row; L-BFGS needs few steps, SGD as by hand."""
    targets = torch.tensor([[1.0, -2.0], [30.0, 5.0], [0.0, 0.25]], dtype=torch.float64)

    def run(rows: list[int]) -> Tensor:
        values = {"x": torch.zeros(len(rows), 2, dtype=torch.float64)}
        optimizer = OPTIMIZERS[name](values, learning_rate=0.1)

        def evaluate(row: int) -> tuple[dict[str, Tensor], Tensor]:
            away = values["x"][row] - targets[rows[row]]
            return {"x": 2 * away[None]}, away.square().sum()

        for _ in range(5):
            optimizer.step({"x": 2 * (values["x"] - targets[rows])}, evaluate)
        return values["x"]

    together = run([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], run([row])[0])
    if name == "adam":
        expected = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([expected], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (expected - targets).square().sum().backward()
            optimizer.step()
        assert torch.equal(together, expected)
    if name == "sgd":
        torch.testing.assert_close(together, targets * (1 - 0.8**5))
    if name == "lbfgs":
        torch.testing.assert_close(together, targets, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [DLG, IDLG])
def test_dlg_reconstructs_in_its_papers_setting(kind: type[DLG]) -> None:
    victim = smooth_victim()
    attack = kind(iterations=25, restarts=2)
    (result,) = attack([victim.update], victim.knowledge)
    assert label_recovery_rate(victim.truth.labels, result.labels) == 1
    error = (result.inputs - victim.truth.inputs).square().mean()
    assert error < 1e-3 * victim.truth.inputs.var()


# ------------------------------------------------------------------------- the batch-norm prior


def after_one_step(victim: Victim) -> Victim:
    """With the buffers that a client returns whose model was in train mode."""
    model = normed()
    model.load_state_dict(victim.update.sent)
    model.train()
    model.batch_loss((victim.truth.inputs, victim.truth.labels))
    parameters = dict(model.named_parameters())
    found = {n: v for n, v in model.state_dict().items() if n not in parameters}
    victim.update.received.update(found)
    return victim


@pytest.mark.parametrize("delta", [False, True])
def test_returned_buffers_tell_the_batchs_own_statistics(delta: bool) -> None:
    victim = after_one_step(make_victim(normed(), SHAPE, batch=3))
    update, facts = victim.update, victim.knowledge
    if delta:
        names = dict(victim.model.named_parameters())
        change = {
            name: -0.1 * value if name in names else value - update.sent[name]
            for name, value in update.received.items()
        }
        update = replace(update, protocol="delta", received=change)
        facts = replace(facts.with_training(learning_rate=0.1), protocol="delta")
    problem = _prepare(update, facts, 0, "cpu", [])
    found = expected_statistics(problem, problem.model)
    entering = victim.model.body[0](victim.truth.inputs).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["body.1"][0], entering.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["body.1"][1], entering.var(dim=1), rtol=1e-4, atol=1e-5)


def test_without_them_the_running_statistics_count() -> None:
    victim = make_victim(normed(), SHAPE, batch=3, training=False)
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    found = expected_statistics(problem, problem.model)
    assert torch.equal(found["body.1"][0], torch.zeros(4))
    assert torch.equal(found["body.1"][1], torch.ones(4))


def test_distance_of_statistics_by_hand() -> None:
    ours = {"a": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))}
    theirs = {"a": (torch.tensor([4.0, 6.0]), torch.tensor([1.0, 3.0]))}
    assert batch_norm_distance(ours, theirs) == pytest.approx(5 + 2)
    same = ours["a"][0].clone().requires_grad_(True)
    batch_norm_distance({"a": (same, ours["a"][1])}, ours).backward()
    assert same.grad.isfinite().all()


def test_the_prior_draws_towards_the_expected_statistics() -> None:
    victim = after_one_step(make_victim(normed(), SHAPE, batch=2))
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    wanted = expected_statistics(problem, problem.model)["body.1"]

    def distance(weight: float) -> float:
        attack = IGA(iterations=60, batch_norm=weight, learning_rate=0.05)
        (result,) = attack([victim.update], victim.knowledge)
        entering = victim.model.body[0](result.inputs).detach().transpose(0, 1).flatten(1)
        found = {"x": (entering.mean(dim=1), entering.var(dim=1))}
        return float(batch_norm_distance(found, {"x": wanted}))

    assert distance(10.0) < 0.5 * distance(0.0)


# -------------------------------------------------------------------------------- the computation


@pytest.mark.parametrize("precode", [False, True], ids=["iga", "nra"])
def test_tracing_changes_nothing(precode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victim = case_victim(MODELS[2], precode=precode)
    results = []
    for way in ("off", "trace"):
        attack = (NRA if precode else IGA)(iterations=12, compile=way, restarts=2)
        results += attack([victim.update], victim.knowledge)
    assert torch.equal(results[0].inputs, results[1].inputs)
    assert results[0].costs == results[1].costs


def test_tracing_keeps_the_draws_of_iga_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is drawn anew in every iteration must not be traced as a constant."""
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victim = case_victim(MODELS[0], precode=True)
    results = [
        IGA(iterations=12, compile=way)([victim.update], victim.knowledge)[0]
        for way in ("off", "trace")
    ]
    assert torch.equal(results[0].inputs, results[1].inputs)


@pytest.mark.parametrize("way", ["off", "trace"])
def test_a_plain_dropout_draws_anew(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victim = make_victim(normed(dropout=0.5), SHAPE)
    attack = IGA(iterations=30, compile=way, signed=False, learning_rate=1e-9, box=False)
    (result,) = attack([victim.update], victim.knowledge)
    # The inputs hardly move, so another cost is another mask.
    assert result.costs[-1][1] < result.costs[0][1] - 1e-4


@pytest.mark.slow  # The compiler takes half a minute.
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_or_not_is_equal_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victim = case_victim(MODELS[2], precode=True)
    plain, compiled = (
        NRA(iterations=5, compile=way, signed=False)([victim.update], victim.knowledge)[0]
        for way in ("off", "inductor")
    )
    torch.testing.assert_close(compiled.inputs, plain.inputs, rtol=1e-4, atol=1e-4)


def test_cuda_graphs_need_a_gpu() -> None:
    victim = case_victim(MODELS[0], precode=False)
    with pytest.raises(BadInput, match=r"`compile: cuda_graphs` needs `device: cuda`.* `cpu`"):
        IGA(iterations=1, compile="cuda_graphs")([victim.update], victim.knowledge)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_each_number_of_rows_has_its_graph(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-BFGS evaluates all rows at the start of a step, and then one by one."""
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    traced: list[int] = []
    trace = TracedStep._trace

    def noted(self: TracedStep, free: Tensors, fixed: Tensors, target: dict[str, Any]) -> Step:
        traced.append(len(free["inputs"]))
        return trace(self, free, fixed, target)

    monkeypatch.setattr(TracedStep, "_trace", noted)
    victim = case_victim(MODELS[0], precode=False)
    IGA(iterations=2, optimizer=optimizer, signed=False, restarts=2)(
        [victim.update], victim.knowledge
    )
    assert traced == ([2, 1] if optimizer == "lbfgs" else [2])


class Branching(nn.Module):
    """A classifier whose loss looks at a number, as many do to find NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, CLASSES)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])
        if not torch.isfinite(loss):
            raise ValueError("diverged")
        return loss


class Outside(Branching):
    """A classifier that draws where torch does not see it."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        noisy = batch[0] + float(DRAWS.normal())
        return functional.cross_entropy(self.layer(noisy.flatten(1)), batch[1])


DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize("kind", [Branching, Outside])
def test_what_cannot_be_traced_is_computed_without_tracing(
    kind: type[Branching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = make_victim(kind(), SHAPE)
    attack = IGA(iterations=60, compile="trace", signed=False, learning_rate=1e-9, box=False)
    (result,) = attack([victim.update], victim.knowledge)
    # The inputs hardly move: another cost is another draw.
    assert (result.cost < result.costs[0][1] - 1e-4) == (kind is Outside)


def test_frozen_parameters_are_not_compared() -> None:
    def run(frozen: bool, layers: dict[str, float] | None) -> Reconstruction:
        victim = case_victim(MODELS[2], precode=False)
        for name, value in victim.model.named_parameters():
            if name.startswith("features.0"):
                value.requires_grad_(not frozen)
                # A client that does not train a layer has no gradient of it to send.
                victim.update.received[name] = torch.zeros_like(value)
        return IGA(iterations=5, layers=layers)([victim.update], victim.knowledge)[0]

    left_out = run(False, {"*": 1, "features.0.*": 0})
    assert torch.equal(run(True, None).inputs, left_out.inputs)
    # Nor is what did not move, whatever was told of it.
    assert torch.equal(run(False, None).inputs, left_out.inputs)


def test_who_ignores_noise_draws_what_the_slot_draws() -> None:
    class Dropping(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.mask = DropoutNoise(0.75)

        def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            inputs = batch[0].flatten(1)
            return functional.cross_entropy(self.layer(inputs * self.mask(inputs)), batch[1])

    victim = make_victim(Dropping(), SHAPE)
    problem = _prepare(victim.update, victim.knowledge, 0, "cpu", [])
    drawn = IGA()._noise_starts([problem], "mask")
    assert drawn.shape == (1, 1, 64)
    assert drawn.unique().tolist() == [0, 4]
    assert NRA()._noise_starts([problem], "mask").unique().numel() == 64


@pytest.mark.parametrize(
    ("cost", "weights", "expected"),
    [
        ("cosine", {"a": 1.0, "b": 1.0}, 1.0),
        ("squared_error", {"a": 1.0, "b": 1.0}, 104.0),
        ("squared_error", {"a": 0.5}, 2.0),
    ],
)
def test_rounding_counts_what_is_compared(
    cost: str, weights: dict[str, float], expected: float
) -> None:
    target = {"a": (torch.zeros(1, 2), torch.tensor([4.0])), "b": (torch.tensor([100.0]),)}
    found = cost_rounding(cost, target, weights)
    assert found.item() == pytest.approx(16 * 2**-23 * expected)


def test_patience_ends_where_costs_are_below_nothing() -> None:
    """By rounding the cosine distance may be negative, and a share of it no progress at all."""
    state = {"inputs": torch.zeros(1, 2), "labels": torch.zeros(1)}
    best = BestIterates(state, torch.tensor([1e-6]), patience=10)
    for iteration in range(40):
        best.update(iteration, torch.tensor([1.0 if iteration < 5 else -4e-7]), state)
        best.record(iteration)
    assert best.all_stopped()
    assert best.per_update(1, 39)[0].iterations == 15


def test_the_cost_is_that_of_the_iterate_that_is_kept() -> None:
    state = {"inputs": torch.zeros(1, 1), "labels": torch.zeros(1)}
    best = BestIterates(state, torch.tensor([0.5]), patience=None)
    for iteration, cost in enumerate((3.0, 1.0, 1.25, 9.0)):
        state["inputs"][:] = iteration
        best.update(iteration, torch.tensor([cost]), state)
    (kept,) = best.per_update(1, 3)
    assert kept.variables["inputs"].item() == 2
    assert kept.costs == [(3, 1.25)]


def test_a_parameter_without_gradient_does_not_drown_the_others() -> None:
    def products(dummy: float, target: float) -> Products:
        return Products(*(torch.tensor(v) for v in (dummy * target, dummy**2, target**2)))

    both = {"a": products(2.0, 1.0), "b": products(1e-6, 0.0)}
    assert COSTS["relative_error"](both, None) == pytest.approx(0.5, rel=1e-3)


def test_a_layer_without_statistics_is_no_matter() -> None:
    model = normed()
    model.body.append(nn.BatchNorm1d(CLASSES, track_running_stats=False))
    victim = make_victim(model, SHAPE, batch=2)
    (result,) = IGA(iterations=2, batch_norm=0.1)([victim.update], victim.knowledge)
    assert result.inputs.isfinite().all()


def test_layers_that_fit_nothing_are_refused() -> None:
    victim = case_victim(MODELS[2], precode=False)
    reason = IGA(layers={"*": 1, "head.*": 2}).refuses(victim.knowledge)
    assert "`layers.head.*` fits no parameter of LeNet" in str(reason)


@pytest.mark.parametrize("several", [{"num_samples": 2}, {"local_steps": 3, "protocol": "fedavg"}])
def test_features_are_known_of_one_sample_and_step(several: dict[str, int]) -> None:
    facts = replace(case_victim(MODELS[0], precode=False).knowledge, **several)
    assert "`features` are known of one sample and one" in str(IGA(features=1.0).refuses(facts))
    assert IGA(features=0.0).refuses(facts) is None


def test_features_that_are_known_are_compared_by_their_relative_error() -> None:
    """The cost that is reported, against a plain forward pass of the result."""
    victim = case_victim(MODELS[2], precode=False, dtype=torch.float64)
    attack = IGA(iterations=3, features=2.0, total_variation=0.0)
    (result,) = attack([victim.update], victim.knowledge)
    missed = []
    for layer in [m for m in victim.model.modules() if isinstance(m, nn.Linear)]:
        seen: list[Tensor] = []
        with layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])):
            for inputs in (result.inputs, victim.truth.inputs):
                batch_loss(victim.model, (inputs, result.labels))
        found, wanted = (value.detach() for value in seen)
        missed.append(float((found - wanted).square().sum() / wanted.square().sum()))
    assert min(missed) > 1e-6
    dummy = dense_gradient(victim.model, result.inputs, result.labels, {})
    plain = float(cost_of("cosine", dummy, victim.update.received))
    expected = plain + 2.0 * sum(missed) / len(missed)
    assert result.cost == pytest.approx(expected, rel=1e-6)


def test_a_gpu_would_compute_in_full_precision() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen: list[bool] = []

    class Looking(IGA):
        def run_many(self, *arguments: Any) -> Iterator[tuple[int, Reconstruction]]:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().run_many(*arguments)

    victim = case_victim(MODELS[0], precode=False)
    Looking(iterations=1)([victim.update], victim.knowledge)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_plain_dropout_does_not_slow_the_linear_layers() -> None:
    model = normed(dropout=0.5).train()
    batch = (torch.zeros(2, *SHAPE).normal_(), torch.tensor([0, 1]))
    dummy = DummyGradient(model.requires_grad_(False), batch_loss, batch, {})
    assert list(dummy._factored) == ["body.5"]


def test_double_precision_on_request() -> None:
    victim = case_victim(MODELS[2], precode=False)
    single, double = (
        IGA(iterations=20, precision=kind)([victim.update], victim.knowledge)[0]
        for kind in ("float32", "float64")
    )
    assert double.inputs.dtype == single.inputs.dtype == torch.float32
    assert not torch.equal(double.inputs, single.inputs)
    assert double.cost == pytest.approx(single.cost, rel=0.1)


def test_of_equal_costs_the_last_iterate_is_kept() -> None:
    """Where the cost is lost in rounding, the total variation goes on to smooth the picture."""
    victim = case_victim(MODELS[2], precode=False)
    attack = IGA(iterations=160)
    (alone,) = attack([victim.update], victim.knowledge)
    other = case_victim(MODELS[2], precode=False, client=1)
    together = attack([victim.update, other.update], [victim.knowledge, other.knowledge])[0]
    early = IGA(iterations=160, patience=1)([victim.update], victim.knowledge)[0]
    assert abs(alone.cost) < 1e-5

    def error(result: Reconstruction) -> float:
        return float((result.inputs - victim.truth.inputs).square().mean())

    assert error(together) == pytest.approx(error(alone), rel=0.2)
    assert error(alone) <= error(early)


@pytest.mark.parametrize("restarts", [1, 3])
def test_what_the_inputs_start_from(restarts: int) -> None:
    """One step of nearly no length, with a layer whose gradient changes at inputs of 0."""
    victim = case_victim(MODELS[2], precode=True, batch=2)
    settings: dict[str, Any] = {
        "iterations": 1, "learning_rate": 1e-6, "restarts": restarts, "box": False,
    }  # fmt: skip
    zeros, normal, unsaid = (
        NRA(**settings | more)([victim.update], victim.knowledge)[0].inputs
        for more in ({"start": "zeros"}, {"start": "normal"}, {})
    )
    torch.testing.assert_close(zeros, torch.zeros_like(zeros), atol=1e-5, rtol=0)
    assert 0.8 < float(normal.std()) < 1.2
    assert torch.equal(unsaid, normal)
    with pytest.raises(BadInput, match="Unknown start `ones`: expected one of normal, zeros"):
        NRA(start="ones")  # type: ignore[arg-type]


def test_what_is_not_said_follows_from_the_samples() -> None:
    image = case_victim(MODELS[2], precode=True).knowledge
    items = replace(image, input_shape=(20,), mean=(0.0,), std=(1.0,), value_range=(0.0, 1.0))
    papers = (7000, 0.01, "cosine", "normal")
    assert NRA().choices(image) == IGA().choices(image) == papers
    assert IGA().choices(items) == papers
    for other in (None, (-1.0, 1.0)):  # nobody says that most entries are 0
        assert NRA().choices(replace(items, value_range=other)) == papers
    assert NRA().choices(items) == (500, 0.03, "relative_error", "zeros")
    given = NRA(iterations=5, learning_rate=1.0, cost="cosine", start="normal")
    assert given.choices(items) == (5, 1.0, "cosine", "normal")


class Begun(IGA):
    """Begins at samples of its own for every update."""

    def known(self, problem: Any) -> Known:
        value = 0.1 * float(problem.knowledge.labels[0])
        return Known(begin=torch.full(problem.batch_shape, value))


def test_every_restart_begins_where_the_known_samples_are() -> None:
    victims = [case_victim(MODELS[0], precode=False, batch=2, client=at) for at in range(3)]
    attack = Begun(iterations=1, learning_rate=1e-6, restarts=2)
    found = attack([v.update for v in victims], [v.knowledge for v in victims])
    for victim, result in zip(victims, found, strict=True):
        expected = torch.full_like(result.inputs, 0.1 * float(victim.truth.labels[0]))
        torch.testing.assert_close(result.inputs, expected, atol=1e-5, rtol=0)
