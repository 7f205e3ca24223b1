"""What every attack owes to whoever calls it, on every model of the table."""

import inspect
import itertools
import math
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks import (
    IGA,
    NRA,
    Attack,
    GradientMatching,
    PartialIGA,
    Progress,
    Reconstruction,
)
from fedleak.attacks.matching import optimizers
from fedleak.errors import BadInput
from fedleak.metrics import score_images
from fedleak.models import SMLP, FedVAE, Precode, Regressor, noise_slots
from fedleak.registry import load_class, names
from fedleak.updates.knowledge import batch_loss
from tests.cases import (
    ATTACKS,
    FIRST_OF_KIND,
    LIGHT_MODELS,
    MODELS,
    PAIRS,
    AttackCase,
    ModelCase,
    Pair,
    Victim,
    case_victim,
    make_victim,
    several_steps,
)
from tests.reference import (
    cost_of,
    dense_gradient,
    match_literally,
    shared_values,
    total_variation_of,
)
from tests.spies import Spy
from tests.toys import Normalised

SEED = 3
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
every_attack = pytest.mark.parametrize("case", ATTACKS, ids=str)
every_kind = pytest.mark.parametrize("case", FIRST_OF_KIND, ids=str)
# The suites that need no second look at every model take these.
FEW = [
    pair
    for pair in PAIRS
    if pair.precode and pair.attack.kind.iterative and pair.model in (MODELS[0], MODELS[3])
]
few_pairs = pytest.mark.parametrize("pair", FEW, ids=str)


@cache
def victim_of(pair: Pair, batch: int | None = None) -> Victim:
    batch = batch or pair.attack.batch
    return case_victim(pair.model, precode=pair.precode, batch=batch, dtype=torch.float64)


@cache
def result_of(pair: Pair) -> Reconstruction:
    victim = victim_of(pair)
    (result,) = pair.attack.make()([victim.update], victim.knowledge, seed=SEED)
    return result


# ---------------------------------------------------------------------------------- the table


def test_every_attack_of_fedleak_is_in_the_table() -> None:
    """But for those on whole numbers: tests/attacks/test_rows.py and test_tokens.py are theirs."""
    ours = [p.load() for p in names("attacks").values() if "fedleak." in p.value]
    on_images = {kind for kind in ours if not kind.takes_numbers}
    assert len(ours) - len(on_images) == 2
    assert on_images <= {case.kind for case in ATTACKS}


def test_every_model_of_fedleak_is_in_the_table() -> None:
    """But for those that classify no images: test_fedvae.py and test_regressor.py are theirs."""
    ours = [point.load() for point in names("models").values() if "fedleak." in point.value]
    assert set(ours) - {FedVAE, Regressor} <= {case.kind for case in MODELS}


def test_an_attack_is_registered_under_its_name() -> None:
    for name, point in names("attacks").items():
        assert load_class(point.value.replace(":", ".")).name == name


# ------------------------------------------------------------------------------ what comes out


@every_pair
def test_shapes_and_types(pair: Pair) -> None:
    victim, result = victim_of(pair), result_of(pair)
    assert result.inputs.shape == victim.truth.inputs.shape
    assert result.inputs.dtype == victim.truth.inputs.dtype
    if not pair.attack.kind.restores_labels:
        assert torch.equal(result.labels, victim.truth.labels)
    assert result.labels.shape == victim.truth.labels.shape
    assert result.labels.dtype == torch.int64
    assert result.inputs.isfinite().all()
    restored = victim.truth.noise if pair.attack.kind.restores_noise else {}
    assert {n: v.shape for n, v in result.noise.items()} == {
        n: v.shape for n, v in restored.items()
    }
    assert not result.inputs.requires_grad
    assert result.seconds > 0


@every_pair
def test_box_holds(pair: Pair) -> None:
    low, high = (bound.double() for bound in victim_of(pair).knowledge.bounds)
    if pair.attack.boxed:
        assert (result_of(pair).inputs >= low - 1e-6).all()
        assert (result_of(pair).inputs <= high + 1e-6).all()


@every_pair
def test_cost_falls_and_belongs_to_the_reconstruction(pair: Pair) -> None:
    victim, result = victim_of(pair), result_of(pair)
    iterations = [at for at, _ in result.costs]
    costs = [cost for _, cost in result.costs]
    if pair.attack.kind.iterative:
        assert iterations[0] == 0
    assert iterations[-1] == result.iterations
    assert iterations == sorted(set(iterations))
    assert costs == sorted(costs, reverse=True)
    assert result.cost == costs[-1]
    if pair.repeatable:
        assert result.cost < costs[0]
        kind = pair.attack.make().choices(victim.knowledge).cost
        dummy = dense_gradient(victim.model, result.inputs, result.labels, result.noise)
        expected = cost_of(kind, dummy, victim.update.received)
        assert result.cost == pytest.approx(float(expected), rel=1e-6)


@every_pair
def test_same_seed_same_result(pair: Pair) -> None:
    """And nothing is left of it, see also the odd victims below."""
    victim, result = victim_of(pair), result_of(pair)
    before = trace_of(victim.model)
    torch.manual_seed(12345)  # what torch's global generator holds makes no difference
    (again,) = pair.attack.make()([victim.update], victim.knowledge, seed=SEED)
    assert_random_state_of(12345)
    assert_untouched(before, victim.model)
    assert torch.equal(result.inputs, again.inputs)
    assert shared_values(result.noise, again.noise)
    assert result.costs == again.costs


@few_pairs
def test_other_seed_client_or_round_other_start(pair: Pair) -> None:
    victim = victim_of(pair)
    attack = pair.attack.make()
    moved = [
        attack([victim.update], victim.knowledge, seed=SEED + 1)[0],
        *(
            attack([type(victim.update)(**vars(victim.update) | change)], victim.knowledge,
                   seed=SEED)[0]
            for change in ({"client": 7}, {"round": 2})
        ),
    ]  # fmt: skip
    for left, right in itertools.combinations([result_of(pair), *moved], 2):
        assert not torch.equal(left.inputs, right.inputs)


@few_pairs
def test_single_precision_stays_single(pair: Pair) -> None:
    victim = case_victim(pair.model, precode=True)
    (result,) = pair.attack.make()([victim.update], victim.knowledge)
    assert result.inputs.dtype == torch.float32


@few_pairs
def test_gradient_of_another_precision(pair: Pair) -> None:
    """A client may send half precision to save bandwidth; the model stays as it is."""
    victim = case_victim(pair.model, precode=True)
    halved = {name: value.half() for name, value in victim.update.received.items()}
    update = type(victim.update)(**vars(victim.update) | {"received": halved})
    (result,) = pair.attack.make()([update], victim.knowledge)
    assert result.inputs.dtype == torch.float32
    assert result.inputs.isfinite().all()


def test_no_box_when_none_is_wanted() -> None:
    victim = case_victim(MODELS[0], precode=False)
    low, high = victim.knowledge.bounds
    for box in (True, False):
        attack = ATTACKS[0].make(box=box, learning_rate=3.0, decay=False, iterations=1)
        steps: list[Tensor] = []
        for seed in range(8):  # the start may be better than the one step, and is taken then
            (result,) = attack([victim.update], victim.knowledge, seed=seed)
            steps.append(result.inputs)
        outside = [bool(((x < low - 1e-6) | (x > high + 1e-6)).any()) for x in steps]
        assert any(outside) == (not box)


# ------------------------------------------------------------------------- many updates at once


# Both updates in one computation, or two of three and one.
@pytest.mark.parametrize(
    ("case", "model", "at_once"),
    [
        *(pytest.param(case, MODELS[0], None, id=f"{case}-smlp") for case in ATTACKS),
        *(
            pytest.param(case, MODELS[2], 2, id=f"{case}-lenet-two-at-once")
            for case in FIRST_OF_KIND
            if case.kind.at_once > 1
        ),
    ],
)
def test_batch_of_updates_equals_one_by_one(
    case: AttackCase, model: ModelCase, at_once: int | None
) -> None:
    if not case.fits(model):
        model = MODELS[1]
    shared = model.make(precode=case.precode, dtype=torch.float64)
    victims = [
        case_victim(
            model, precode=case.precode, batch=case.batch, client=client, dtype=torch.float64
        )
        for client in range(2 if at_once is None else 3)
    ]
    facts = [type(v.knowledge)(**vars(v.knowledge) | {"model": shared}) for v in victims]
    updates = [victim.update for victim in victims]
    attack = case.make()
    alone = [attack([u], [k], seed=SEED)[0] for u, k in zip(updates, facts, strict=True)]
    told: dict[int, Reconstruction] = {}
    settings = {} if at_once is None else {"at_once": at_once}
    together = case.make(**settings)(updates, facts, seed=SEED, finished=told.__setitem__)
    assert sorted(told) == list(range(len(victims)))
    for left, right in zip(alone, together, strict=True):
        torch.testing.assert_close(left.inputs, right.inputs, rtol=1e-9, atol=1e-9)
        assert left.noise.keys() == right.noise.keys()
        for name in left.noise:
            torch.testing.assert_close(left.noise[name], right.noise[name])
        assert left.iterations == right.iterations
        assert [c for _, c in left.costs] == pytest.approx([c for _, c in right.costs])
    for index, left in enumerate(alone):
        torch.testing.assert_close(told[index].inputs, left.inputs, rtol=1e-9, atol=1e-9)


@every_kind
def test_updates_of_different_models_and_batches_in_one_call(case: AttackCase) -> None:
    victims = [
        case_victim(model, precode=case.precode, batch=batch, client=batch, dtype=torch.float64)
        for model, batch in (
            (MODELS[0], 1),
            (MODELS[3] if case.fits(MODELS[3]) else MODELS[1], 1),
            (MODELS[0], case.batch),
        )
    ]
    updates, facts = [v.update for v in victims], [v.knowledge for v in victims]
    attack = case.make()
    for victim, result in zip(victims, attack(updates, facts, seed=SEED), strict=True):
        (alone,) = attack([victim.update], victim.knowledge, seed=SEED)
        torch.testing.assert_close(result.inputs, alone.inputs, rtol=1e-9, atol=1e-9)


@every_kind
def test_updates_of_rounds_with_other_weights_in_one_call(case: AttackCase) -> None:
    """The architecture is one; the weights are those that were sent in the update's round."""
    model = MODELS[0].make(precode=case.precode, dtype=torch.float64)
    first = make_victim(model, MODELS[0].shape)
    with torch.no_grad():
        model.features[1].weight.mul_(-1)
    second = make_victim(model, MODELS[0].shape)
    attack = case.make()
    together = attack([first.update, second.update], first.knowledge, seed=SEED)
    for victim, result in zip((first, second), together, strict=True):
        (alone,) = attack([victim.update], first.knowledge, seed=SEED)
        torch.testing.assert_close(result.inputs, alone.inputs, rtol=1e-9, atol=1e-9)
    if case.kind.iterative:
        assert together[0].cost != pytest.approx(together[1].cost)


@every_attack
def test_no_updates_no_results(case: AttackCase) -> None:
    assert case.make()([], []) == []


def test_restarts_keep_the_best() -> None:
    """The first of two starts is that of a single start, so two are never worse."""
    case = ATTACKS[0]
    for client in range(4):
        victim = case_victim(MODELS[0], precode=False, client=client)
        one, two = (
            case.make(restarts=restarts)([victim.update], victim.knowledge)[0].cost
            for restarts in (1, 2)
        )
        assert two <= one * (1 + 1e-4)


# -------------------------------------------------------------------------- patience and progress


@pytest.mark.parametrize(("patience", "learning_rate"), [(9, 0.8), (1, 0.2)])
def test_patience_stops_each_update_where_it_would_stop_alone(
    patience: int, learning_rate: float
) -> None:
    case = ATTACKS[0]
    model = MODELS[0].make(precode=False, dtype=torch.float64)
    victims = [
        case_victim(MODELS[0], precode=False, client=client, dtype=torch.float64)
        for client in range(4)
    ]
    facts = [type(v.knowledge)(**vars(v.knowledge) | {"model": model}) for v in victims]
    # Steps this large soon lead nowhere, sooner for one update than for another; with a patience of
    # 1, some would have gone on to lead somewhere. From 400 iterations on, they would be traced,
    # which takes longer than they do.
    attack = case.make(iterations=399, learning_rate=learning_rate, decay=False, patience=patience)
    together = attack([v.update for v in victims], facts, seed=SEED)
    assert len({result.iterations for result in together}) > 1
    assert max(result.iterations for result in together) < 399
    for victim, facts_, result in zip(victims, facts, together, strict=True):
        (alone,) = attack([victim.update], [facts_], seed=SEED)
        assert alone.iterations == result.iterations
        torch.testing.assert_close(alone.inputs, result.inputs, rtol=1e-9, atol=1e-9)
        dummy = dense_gradient(model, result.inputs, result.labels)
        expected = float(cost_of("cosine", dummy, victim.update.received))
        assert result.cost == pytest.approx(expected, rel=1e-6)
        assert result.costs[-1] == (result.iterations, result.cost)
        # An attack of that many iterations comes to the same.
        shorter = case.make(iterations=result.iterations, learning_rate=learning_rate, decay=False)
        (same,) = shorter([victim.update], [facts_], seed=SEED)
        torch.testing.assert_close(same.inputs, result.inputs, rtol=1e-9, atol=1e-9)


@every_attack
def test_progress_is_reported_to_the_end(case: AttackCase) -> None:
    victim = case_victim(MODELS[0], precode=case.precode)
    seen: list[Progress] = []
    (result,) = case.make()([victim.update], victim.knowledge, report=seen.append)
    if case.kind.iterative:
        assert [p.iteration for p in seen] == [0, case.settings["iterations"]]
        assert {p.iterations for p in seen} == {case.settings["iterations"]}
        assert seen[-1].cost == pytest.approx(result.cost, rel=0.5)


def test_learning_rate_falls_at_the_papers_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = optimizers.Adam.step

    def noted(self: optimizers.Adam, *arguments: Any) -> None:
        rates.append(self._learning_rate)
        step(self, *arguments)

    monkeypatch.setattr(optimizers.Adam, "step", noted)
    victim = case_victim(MODELS[0], precode=False)
    for decay in (False, True):
        ATTACKS[0].make(iterations=16, learning_rate=0.5, decay=decay)(
            [victim.update], victim.knowledge
        )
    # 3/8, 5/8 and 7/8 of 16 iterations are 6, 10 and 14.
    falling = [0.5] * 6 + [0.05] * 4 + [0.005] * 4 + [0.0005] * 2
    assert rates == pytest.approx([0.5] * 16 + falling)


def test_signed_steps_move_every_pixel_by_the_learning_rate() -> None:
    """Adam's first step is the learning rate times the sign; unsigned ones depend on the size."""
    victim = case_victim(MODELS[0], precode=False, dtype=torch.float64)
    paths = {
        steps: ATTACKS[0].make(iterations=steps, box=False, decay=False, learning_rate=1e-4)(
            [victim.update], victim.knowledge
        )[0]
        for steps in (1, 2)
    }
    moved = (paths[2].inputs - paths[1].inputs).abs()
    assert moved.median() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("model", [LIGHT_MODELS[0], LIGHT_MODELS[2]], ids=str)
@pytest.mark.parametrize("kind", [IGA, NRA], ids=lambda kind: kind.name)
def test_step_by_step_as_the_papers_tell_it(kind: type[Attack], model: ModelCase) -> None:
    """Against a literal version on plain autograd, from the same start."""
    precode = kind.restores_noise
    victim = case_victim(model, precode=precode, batch=2, dtype=torch.float64)
    (result,) = kind(iterations=24)([victim.update], victim.knowledge, seed=SEED)
    Spy.seen.clear()
    Spy()([victim.update], victim.knowledge, seed=SEED)
    (problem,) = Spy.seen
    low, high = (bound.double() for bound in victim.knowledge.bounds)
    start = problem.normal(problem.batch_shape).clamp(low, high)
    noise = {name: problem.normal(shape) for name, shape in problem.noise_shapes.items()}
    inputs, restored, cost = match_literally(
        victim.model, victim.update.received, start, victim.truth.labels, noise, (low, high),
        iterations=24,
    )  # fmt: skip
    torch.testing.assert_close(result.inputs, inputs, rtol=1e-7, atol=1e-9)
    assert result.noise.keys() == restored.keys()
    for name, value in restored.items():
        torch.testing.assert_close(result.noise[name], value, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(value, noise[name])
    assert result.cost == pytest.approx(cost, rel=1e-6)


# ------------------------------------------------------------------------------- what it is worth


@cache
def success(kind: type[Attack], precode: bool) -> list[dict[str, float]]:
    """Scores of two victims of a small perceptron, and those of a trivial guess."""
    shape = (1, 8, 8)
    bottleneck = Precode(bottleneck_size=16) if precode else None
    torch.manual_seed(0)
    model = SMLP(input_shape=shape, num_classes=4, width=64, precode=bottleneck)
    victims = [make_victim(model, shape, client=client) for client in range(2)]
    iterations = 60 if precode and not kind.restores_noise else 400
    attack = kind(iterations=iterations, learning_rate=0.04)
    results = attack([victim.update for victim in victims], [v.knowledge for v in victims])
    found = []
    for victim, result in zip(victims, results, strict=True):
        scaling = {"mean": victim.knowledge.mean, "std": victim.knowledge.std}
        (item,) = score_images(victim.truth, result, **scaling)
        grey = Reconstruction(torch.zeros_like(result.inputs), result.labels)
        (trivial,) = score_images(victim.truth, grey, **scaling)
        found.append(vars(item) | {"trivial": trivial.mse, "first": result.costs[0][1],
                                   "last": result.cost})  # fmt: skip
    return found


@pytest.mark.parametrize(("kind", "precode"), [(IGA, False), (NRA, True)], ids=["iga", "nra"])
def test_reconstructs_the_pictures_of_a_small_perceptron(kind: type[Attack], precode: bool) -> None:
    for item in success(kind, precode):
        assert item["ssim"] > 0.9
        assert item["mse"] < 0.1 * item["trivial"]
        assert item["last"] < 0.02 * item["first"]
        assert item["success"]


def test_the_restored_noise_is_the_clients() -> None:
    """Drawn from N(0, 1), it would be 2 away in mean square were it not restored."""
    for item in success(NRA, True):
        assert item["noise_mse"] < 0.02


def test_iga_sees_nothing_behind_precode() -> None:
    for item in success(IGA, True):
        assert item["ssim"] < 0.5
        assert item["mse"] > 0.5 * item["trivial"]
        assert math.isnan(item["noise_mse"])


# ------------------------------------------------------------------------------ leave no trace


def trace_of(model: nn.Module) -> dict[str, object]:
    """All that an attack must not change about a model, tensors by their values."""
    modules = dict(model.named_modules())
    return {
        "weights": {n: v.clone() for n, v in model.state_dict().items()},
        "identity": {n: id(v) for n, v in model.named_parameters()},
        "gradients": {n: v.grad for n, v in model.named_parameters()},
        "requires_grad": {n: v.requires_grad for n, v in model.named_parameters()},
        "mode": {n: m.training for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "hooks": {
            n: [len(value) for key, value in vars(m).items() if key.endswith("_hooks")]
            for n, m in modules.items()
        },
        "slots": [(s._injected, s._recorded) for s in noise_slots(model).values()],
    }


def assert_untouched(before: dict[str, object], model: nn.Module) -> None:
    after = trace_of(model)
    assert shared_values(before.pop("weights"), after.pop("weights"))
    assert before == after


@pytest.fixture
def odd_victim(pair: Pair) -> Victim:
    """A victim whose model is in an unusual state that an attack might be tempted to tidy."""
    victim = case_victim(pair.model, precode=pair.precode)
    victim.model.eval()
    first, *_ = victim.model.parameters()
    first.requires_grad_(False)
    torch.manual_seed(77)
    return victim


def assert_random_state_of(seed: int) -> None:
    expected = torch.Generator().manual_seed(seed).get_state()
    assert torch.equal(torch.get_rng_state(), expected)


# Each attack on two models, and each model under two attacks.
ODD = [
    pair
    for pair in PAIRS
    if pair.model in (MODELS[0], MODELS[3]) or pair.attack in (ATTACKS[0], ATTACKS[3])
]


@pytest.mark.parametrize("pair", ODD, ids=str)
def test_model_update_and_random_state_stay_as_they_were(pair: Pair, odd_victim: Victim) -> None:
    victim = odd_victim
    before = trace_of(victim.model)
    sent = {n: v.clone() for n, v in victim.update.sent.items()}
    received = {n: v.clone() for n, v in victim.update.received.items()}
    settings = {"iterations": 2} if pair.attack.kind.iterative else {}
    pair.attack.make(**settings)([victim.update], victim.knowledge)
    assert_random_state_of(77)
    assert_untouched(before, victim.model)
    assert shared_values(sent, victim.update.sent)
    assert shared_values(received, victim.update.received)
    assert torch.equal(victim.knowledge.labels, victim.truth.labels)


@pytest.mark.parametrize("calls", [0, 2, 4], ids=["at-once", "early", "on-the-way"])
@few_pairs
def test_no_trace_after_an_exception(pair: Pair, odd_victim: Victim, calls: int) -> None:
    counter = itertools.count()

    def failing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if next(counter) >= calls:
            raise ZeroDivisionError("the loss broke")
        return batch_loss(model, batch)

    knowledge = type(odd_victim.knowledge)(**vars(odd_victim.knowledge) | {"loss": failing})
    before = trace_of(odd_victim.model)
    with pytest.raises((ZeroDivisionError, BadInput), match="the loss broke"):
        pair.attack.make()([odd_victim.update], knowledge)
    assert_random_state_of(77)
    assert_untouched(before, odd_victim.model)


@few_pairs
def test_no_trace_after_an_interruption(pair: Pair, odd_victim: Victim) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    before = trace_of(odd_victim.model)
    with pytest.raises(KeyboardInterrupt):
        pair.attack.make()([odd_victim.update], odd_victim.knowledge, report=stop)
    assert_random_state_of(77)
    assert_untouched(before, odd_victim.model)


@few_pairs
def test_a_model_that_was_just_used_can_be_attacked(pair: Pair) -> None:
    """Its bottleneck holds the divergence, with a graph, that nobody has taken yet."""
    victim = case_victim(pair.model, precode=True)
    (expected,) = pair.attack.make()([victim.update], victim.knowledge)
    victim.model(victim.truth.inputs)
    (result,) = pair.attack.make()([victim.update], victim.knowledge)
    assert torch.equal(result.inputs, expected.inputs)


# ------------------------------------------------------------------------------ what it says


@every_attack
def test_repr_shows_every_hyperparameter(case: AttackCase) -> None:
    attack = case.make()
    shown = repr(attack)
    assert shown.startswith(f"{case.kind.__name__}(")
    for name in inspect.signature(case.kind).parameters:
        assert f"{name}={getattr(attack, name)!r}" in shown
    assert repr(eval(shown, {case.kind.__name__: case.kind})) == shown


@every_attack
def test_facts_are_class_attributes(case: AttackCase) -> None:
    hints = get_type_hints(Attack)
    for fact in inspect.get_annotations(Attack):
        hint = hints[fact]
        kind = get_args(hint)[0] if get_origin(hint) is ClassVar else hint
        value = getattr(case.kind, fact)
        if get_origin(kind) is Literal:
            assert value in get_args(kind), fact
        else:
            assert type(value) is kind, fact
        if kind is str:
            assert value.strip() == value != "", fact
    assert case.kind.name == case.kind.name.lower()
    assert case.kind.threat_model == "honest-but-curious server"


@every_attack
def test_facts_of_models_and_batches_are_what_the_attack_refuses(case: AttackCase) -> None:
    def refused(model: ModelCase, *, precode: bool, batch: int = 1) -> bool:
        victim = case_victim(model, precode=precode, batch=batch)
        return case.make().refuses(victim.knowledge) is not None

    perceptron, lenet, precode = MODELS[0], MODELS[2], case.precode
    assert refused(perceptron, precode=False) == (case.kind.noise == "required")
    assert refused(perceptron, precode=True) == (case.kind.noise == "refused")
    assert refused(lenet, precode=precode) == case.kind.needs_first_linear
    assert refused(perceptron, precode=precode, batch=2) != case.kind.batches


@every_attack
def test_facts_of_settings(case: AttackCase) -> None:
    settings = inspect.signature(case.kind).parameters
    assert ("iterations" in settings) == case.kind.iterative
    assert (case.kind.family == "optimisation-based") == issubclass(case.kind, GradientMatching)
    if "at_once" in settings:
        assert settings["at_once"].default == case.kind.at_once > 1
    else:
        assert case.kind.at_once == 1
    if "box" in settings:
        assert settings["box"].default == case.kind.boxed


@every_attack
def test_local_steps_are_handled_as_stated(case: AttackCase) -> None:
    model = MODELS[0] if case.kind.needs_first_linear else MODELS[2]
    one = case_victim(model, precode=case.precode, batch=case.batch)
    victim = several_steps(one, batch_size=1, epochs=1 if case.kind.batches else 2)
    assert victim.knowledge.local_steps == 2
    (result,) = case.make()([victim.update], victim.knowledge, seed=SEED)
    text = " ".join(result.findings)
    assert (case.kind.local_steps == "simulated") == ("simulated" in text)


@every_attack
def test_hyperparameters_are_keyword_only_with_defaults_and_types(case: AttackCase) -> None:
    for parameter in inspect.signature(case.kind).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty
        assert parameter.annotation is not inspect.Parameter.empty


def test_papers_defaults() -> None:
    for case in (ATTACKS[0], ATTACKS[3]):
        attack = case.kind()
        facts = case_victim(MODELS[0], precode=True).knowledge
        assert attack.choices(facts) == (7000, 0.01, "cosine", "normal")
        assert (attack.total_variation, attack.restarts) == (1e-6, 1)
        assert (attack.signed, attack.box, attack.decay) == (True, True, True)


def test_the_public_call_is_final() -> None:
    for case in ATTACKS:
        assert case.kind.__call__ is Attack.__call__


def test_partial_matching_is_blind_from_the_bottleneck_on() -> None:
    """Whatever a client sends for these layers, it comes to the same; those before them count."""
    victim = case_victim(MODELS[0], precode=True)
    blind = ("bottleneck.encoder", "bottleneck.decoder", "classifier")
    names = [f"{layer}.{part}" for layer in blind for part in ("weight", "bias")]
    attack = PartialIGA(iterations=8)
    (expected,) = attack([victim.update], victim.knowledge)
    for name, value in victim.update.received.items():
        received = victim.update.received | {name: torch.ones_like(value)}
        update = type(victim.update)(**vars(victim.update) | {"received": received})
        (found,) = attack([update], victim.knowledge)
        assert (found.costs == expected.costs) == (name in names), name


def test_total_variation_is_part_of_the_objective() -> None:
    victim = case_victim(MODELS[0], precode=False)
    rough, smooth = (
        ATTACKS[0].make(iterations=60, learning_rate=0.05, total_variation=weight)(
            [victim.update], victim.knowledge
        )[0]
        for weight in (0.0, 1.0)
    )
    assert total_variation_of(smooth.inputs) < 0.7 * total_variation_of(rough.inputs)
    # The reported cost is that of the gradients alone.
    assert rough.cost < smooth.cost < 1


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_clients_mode_not_the_models(training: bool) -> None:
    """Batch norm uses the batch's statistics or the running ones, as it did at the client."""
    torch.manual_seed(0)
    model = Normalised().double()
    model.norm.running_var.fill_(3.0)
    victim = make_victim(model, (1, 6, 6), batch=2, num_classes=3, training=training)
    model.train(not training)
    before = trace_of(model)
    (result,) = ATTACKS[0].make()([victim.update], victim.knowledge)
    assert_untouched(before, model)
    dummy = dense_gradient(model.train(training), result.inputs, result.labels)
    expected = float(cost_of("cosine", dummy, victim.update.received))
    assert result.cost == pytest.approx(expected, rel=1e-6)
    assert result.cost < result.costs[0][1]
