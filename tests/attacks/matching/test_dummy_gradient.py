"""Products of gradients that are never built, against the gradients that plain autograd builds."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional

from fedleak.attacks import IGA
from fedleak.attacks.matching import dummy_gradient
from fedleak.attacks.matching.costs import COSTS
from fedleak.attacks.matching.dummy_gradient import DummyGradient, linear_products, low_rank_factors
from fedleak.models import SMLP, noise_slots
from fedleak.updates.compression import CompactTensors, encode
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import batch_loss
from tests.cases import CLASSES, LIGHT_MODELS, MODELS, ModelCase, Victim, case_victim, make_victim
from tests.reference import cost_of, dense_gradient, shared_values
from tests.toys import Normalised

Loss = Callable[[nn.Module, Any], Tensor]


def ready(model: nn.Module) -> nn.Module:
    """A copy as an attack gets it."""
    return copy.deepcopy(model).requires_grad_(False)


def dummy_of(
    model: nn.Module, inputs: Tensor, labels: Tensor, noise: Tensors, loss: Loss = batch_loss
) -> DummyGradient:
    return DummyGradient(ready(model), loss, (inputs, labels), noise)


def first(targets: dict[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(value[0] for value in values) for name, values in targets.items()}


def assert_products_equal_autograd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    noise: Tensors | None = None,
    *,
    target: Tensors | None = None,
    loss: Loss = batch_loss,
    rank: int = 1,
) -> DummyGradient:
    """Inner products and norms of every parameter's gradient, and both derivatives of the cost."""
    noise = noise or {}
    dummy = dummy_of(model, inputs, labels, noise, loss)
    built = dense_gradient(model, inputs, labels, noise, loss=loss)
    if target is None:
        generator = torch.Generator().manual_seed(9)
        target = {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in built.items()
        }
    prepared = first(dummy.targets([target], rank))
    products = dummy.products(inputs, labels, noise, prepared)
    assert set(products) == {name for name, _ in model.named_parameters()}
    for name, found in products.items():
        expected = (
            (built[name] * target[name]).sum(),
            built[name].square().sum(),
            target[name].square().sum(),
        )
        for value, wanted in zip(found, expected, strict=True):
            assert value.shape == ()
            torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-14, msg=name)

    for kind, cost in COSTS.items():

        def clever(x: Tensor, eps: Tensors, cost=cost) -> Tensor:
            return cost(dummy.products(x, labels, eps, prepared))

        leaf = inputs.clone().requires_grad_(True)
        slots = {name: value.clone().requires_grad_(True) for name, value in noise.items()}
        literal = cost_of(
            kind, dense_gradient(model, leaf, labels, slots, create_graph=True, loss=loss), target
        )
        torch.testing.assert_close(clever(inputs, noise), literal.detach(), rtol=1e-9, atol=1e-12)
        wanted = torch.autograd.grad(literal, [leaf, *slots.values()])
        towards, noise_towards = grad(clever, argnums=(0, 1))(inputs, noise)
        found = [towards, *(noise_towards[name] for name in slots)]
        for value, expected in zip(found, wanted, strict=True):
            assert expected.abs().max() > 0
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-12)
    return dummy


def other_start(victim: Victim) -> tuple[Tensor, Tensor, Tensors]:
    """Inputs and noise that are not the victim's."""
    generator = torch.Generator().manual_seed(5)
    inputs, noise = victim.truth.inputs, victim.truth.noise
    return (
        torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype),
        victim.truth.labels,
        {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in noise.items()},
    )


@pytest.mark.parametrize("dense", [False, True], ids=["exact-target", "noisy-target"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", LIGHT_MODELS, ids=str)
def test_every_model(case: ModelCase, precode: bool, batch: int, dense: bool) -> None:
    victim = case_victim(case, precode=precode, batch=batch, dtype=torch.float64)
    target = victim.update.received
    if dense:  # as after a defence that adds noise
        torch.manual_seed(0)
        target = {name: value + 0.1 * torch.randn_like(value) for name, value in target.items()}
    inputs, labels, noise = other_start(victim)
    dummy = assert_products_equal_autograd(
        victim.model, inputs, labels, noise, target=target, rank=batch
    )
    factorised = {n for n, values in dummy.targets([target], batch).items() if len(values) == 3}
    layers = {
        f"{name}.weight"
        for name, module in victim.model.named_modules()
        if isinstance(module, nn.Linear)
        and 2 * batch * (module.in_features + module.out_features) <= module.weight.numel()
    }
    assert factorised == (set() if dense else layers)
    assert batch > 1 or layers


@pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])
@pytest.mark.parametrize("case", LIGHT_MODELS, ids=str)
def test_at_the_truth_the_gradients_agree(case: ModelCase, precode: bool) -> None:
    """With the client's inputs and noise the dummy gradient is the client's: cost 0, slope 0."""
    victim = case_victim(case, precode=precode, batch=2, dtype=torch.float64)
    inputs, labels, noise = victim.truth.inputs, victim.truth.labels, victim.truth.noise
    dummy = dummy_of(victim.model, inputs, labels, noise)
    target = first(dummy.targets([victim.update.received], 2))
    size = sum(value.square().sum() for value in victim.update.received.values())
    products = dummy.products(inputs, labels, noise, target)
    assert COSTS["cosine"](products).abs() < 1e-12
    assert COSTS["squared_error"](products).abs() < 1e-12 * size
    if noise:
        moved = {name: value + 0.1 for name, value in noise.items()}
        assert COSTS["cosine"](dummy.products(inputs, labels, moved, target)) > 1e-6


def test_gradcheck() -> None:
    """The cost's derivative by finite differences, inputs and noise, on a smooth tiny model."""
    case = ModelCase(MODELS[2].kind, (1, 4, 4), {}, "lenet")
    victim = case_victim(case, precode=True, batch=2, dtype=torch.float64)
    inputs, labels, noise = other_start(victim)
    (slot,) = noise
    dummy = dummy_of(victim.model, inputs, labels, noise)
    target = first(dummy.targets([victim.update.received], 2))
    for cost in COSTS.values():

        def value(x: Tensor, eps: Tensor, cost=cost) -> Tensor:
            return cost(dummy.products(x, labels, {slot: eps}, target))

        point = (inputs.requires_grad_(True), noise[slot].requires_grad_(True))
        assert torch.autograd.gradcheck(value, point)


def test_many_updates_at_once() -> None:
    """Under vmap each update gets the products that it gets alone."""
    model = MODELS[0].make(precode=True, dtype=torch.float64)
    victims = [
        case_victim(MODELS[0], precode=True, batch=2, client=client, dtype=torch.float64)
        for client in range(3)
    ]
    starts = [other_start(victim) for victim in victims]
    dummy = dummy_of(model, *starts[0])
    targets = dummy.targets([victim.update.received for victim in victims], 2)
    inputs, labels = (torch.stack([start[i] for start in starts]) for i in (0, 1))
    noise = {name: torch.stack([start[2][name] for start in starts]) for name in starts[0][2]}
    together = vmap(dummy.products)(inputs, labels, noise, targets)
    for row, (start, victim) in enumerate(zip(starts, victims, strict=True)):
        built = dense_gradient(model, *start)
        for name, found in together.items():
            wanted = (built[name] * victim.update.received[name]).sum()
            torch.testing.assert_close(found.inner[row], wanted, rtol=1e-9, atol=1e-14)
            wanted = built[name].square().sum()
            torch.testing.assert_close(found.dummy[row], wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("case", [case for case in MODELS if case.heavy], ids=str)
def test_heavy_models(case: ModelCase) -> None:
    victim = case_victim(case, precode=True, dtype=torch.float64)
    assert_products_equal_autograd(
        victim.model, *other_start(victim), target=victim.update.received
    )


# ----------------------------------------------------------------------- models that are not plain


class Own(nn.Module):
    """Layers and a forward pass given from outside, cross entropy on top."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self._forward(self, batch[0]), batch[1])


def own(forward: Callable[..., Tensor], **layers: nn.Module) -> Own:
    torch.manual_seed(1)
    for layer in layers.values():
        for module in layer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return Own(forward, **layers).double()


def batch_of(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(shape[0]) % 3


def tied() -> nn.Module:
    model = own(
        lambda m, x: m.head(m.second(m.one(x).tanh()).tanh()),
        one=nn.Linear(6, 6), second=nn.Linear(6, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    model.second.weight = model.one.weight
    return model


def tied_in_use() -> nn.Module:
    """A decoder that uses the encoder's weight, without being a module itself."""
    return own(
        lambda m, x: m.head(functional.linear(m.one(x).tanh(), m.one.weight.T)),
        one=nn.Linear(6, 5), head=nn.Linear(6, 3),
    )  # fmt: skip


class Scaled(nn.Linear):
    """Not what a linear layer computes."""

    def forward(self, value: Tensor) -> Tensor:
        return 2 * super().forward(value)


ODD_MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]]] = {
    "layer called twice": lambda: (
        own(lambda m, x: m.head(m.one(m.one(x).tanh())), one=nn.Linear(6, 6),
            head=nn.Linear(6, 3)),
        batch_of(2, 6),
    ),
    "layer called on batches of different sizes": lambda: (
        own(lambda m, x: m.head(m.one(x) + m.one(x[:, None].tanh() * x[:, :, None]).sum(1)),
            one=nn.Linear(6, 5), head=nn.Linear(5, 3)),
        batch_of(2, 6),
    ),
    "many rows": lambda: (
        own(lambda m, x: m.head(m.one(x).tanh().mean(1)), one=nn.Linear(3, 4),
            head=nn.Linear(4, 3)),
        batch_of(2, 15, 3),
    ),
    "images of rows": lambda: (
        own(lambda m, x: m.head(m.one(x).tanh().mean((1, 2))), one=nn.Linear(3, 4),
            head=nn.Linear(4, 3)),
        batch_of(2, 5, 4, 3),
    ),
    "a vector": lambda: (
        own(lambda m, x: m.head(x + m.one(x.mean(0)).tanh()), one=nn.Linear(6, 6),
            head=nn.Linear(6, 3)),
        batch_of(2, 6),
    ),
    "no bias": lambda: (
        own(lambda m, x: m.head(m.one(x).tanh()), one=nn.Linear(6, 5, bias=False),
            head=nn.Linear(5, 3, bias=False)),
        batch_of(2, 6),
    ),
    "layer norm": lambda: (
        own(lambda m, x: m.head(m.norm(m.one(x))), one=nn.Linear(6, 5), norm=nn.LayerNorm(5),
            head=nn.Linear(5, 3)),
        batch_of(2, 6),
    ),
    "in place": lambda: (
        own(lambda m, x: m.body(x), body=nn.Sequential(
            nn.Linear(6, 5), nn.ELU(inplace=True), nn.Linear(5, 3))),
        batch_of(2, 6),
    ),
    "a layer that is not called": lambda: (
        own(lambda m, x: m.head(x), spare=nn.Linear(6, 5), head=nn.Linear(6, 3)),
        batch_of(2, 6),
    ),
    "called by keyword": lambda: (
        own(lambda m, x: m.head(input=m.one(x).tanh()), one=nn.Linear(6, 5),
            head=nn.Linear(5, 3)),
        batch_of(2, 6),
    ),
    "another kind of linear layer": lambda: (
        own(lambda m, x: m.head(m.one(x).tanh()), one=Scaled(6, 5), head=nn.Linear(5, 3)),
        batch_of(2, 6),
    ),
    "tied weights": lambda: (tied(), batch_of(2, 6)),
    "a weight used twice": lambda: (tied_in_use(), batch_of(2, 6)),
    "attention": lambda: (
        own(lambda m, x: m.head(m.mix(x, x, x)[0].tanh().mean(1)),
            mix=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)),
        batch_of(2, 5, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_MODELS)
def test_odd_models(name: str) -> None:
    model, (inputs, labels) = ODD_MODELS[name]()
    assert_products_equal_autograd(model, inputs, labels)


def test_weight_penalty_in_the_loss() -> None:
    """A loss may use a weight outside its layer, such as for an L2 penalty."""
    model, (inputs, labels) = ODD_MODELS["no bias"]()

    def penalised(module: nn.Module, batch: Any) -> Tensor:
        size = sum(value.square().sum() for value in module.parameters())
        return batch_loss(module, batch) + 0.1 * size

    assert_products_equal_autograd(model, inputs, labels, loss=penalised)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm(training: bool) -> None:
    torch.manual_seed(4)
    model = Normalised().double()
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.5, 2)
    model.train(training)
    inputs, labels = batch_of(3, 1, 6, 6)
    before = copy.deepcopy(model.state_dict())
    assert_products_equal_autograd(model, inputs, labels)
    assert shared_values(before, dict(model.state_dict()))
    # The mode matters: batch statistics and running ones give other gradients.
    other = copy.deepcopy(model).train(not training)
    left, right = (dense_gradient(m, inputs, labels)["conv.weight"] for m in (model, other))
    assert not torch.allclose(left, right, rtol=0.1)


def test_nothing_is_kept_between_passes() -> None:
    """Tensors of a transform must not outlive it."""
    victim = case_victim(MODELS[0], precode=True, dtype=torch.float64)
    inputs, labels, noise = other_start(victim)
    model = ready(victim.model)
    dummy = DummyGradient(model, batch_loss, (inputs, labels), noise)
    target = first(dummy.targets([victim.update.received], 1))
    dummy.products(inputs, labels, noise, target)
    assert dummy._linear.inputs == {}
    assert dummy._linear._probes is None
    assert all(slot._injected is None for slot in noise_slots(model).values())
    # With the hooks still on it, the model computes what it did.
    assert torch.equal(
        model.classifier(inputs.flatten(1)[:, :24]),
        victim.model.classifier(inputs.flatten(1)[:, :24]).detach(),
    )


def test_labels_matter() -> None:
    victim = case_victim(MODELS[0], precode=False, batch=2, dtype=torch.float64)
    inputs, labels, noise = other_start(victim)
    wrong = (labels + 1) % CLASSES
    assert_products_equal_autograd(victim.model, inputs, wrong, noise)
    dummy = dummy_of(victim.model, inputs, labels, noise)
    target = first(dummy.targets([victim.update.received], 2))
    right, other = (
        dummy.products(inputs, y, noise, target)["classifier.bias"].inner for y in (labels, wrong)
    )
    assert not torch.isclose(right, other)


# --------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("rank", [None, 2], ids=["dense", "factors"])
@pytest.mark.parametrize("rows", [1, 4, 30], ids=lambda rows: f"{rows}-rows")
def test_linear_products(rows: int, rank: int | None) -> None:
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs, outputs = draw(rows, 5), draw(rows, 4)
    factors = (draw(4, 5),) if rank is None else (draw(4, rank), draw(5, rank))
    target = factors[0] if rank is None else factors[0] @ factors[1].T
    norm = target.square().sum()
    weight_gradient = sum(torch.outer(d, h) for d, h in zip(outputs, inputs, strict=True))
    found = linear_products(inputs, outputs, (*factors, norm))
    torch.testing.assert_close(found.inner, (weight_gradient * target).sum())
    torch.testing.assert_close(found.dummy, weight_gradient.square().sum())
    assert found.target is norm


def matrices(count: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(count, 40, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(count, rank, 60, generator=generator, dtype=torch.float64)
    return (left @ right).to(dtype)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("tried", [0, 3], ids=["as-it-is", "more"])
def test_low_rank_factors_are_exact(rank: int, tried: int) -> None:
    stacked = matrices(3, rank)
    factors = low_rank_factors(stacked, rank + tried)
    assert factors is not None
    left, right = factors
    assert left.shape == (3, 40, rank + tried)
    assert right.shape == (3, 60, rank + tried)
    torch.testing.assert_close(left @ right.mT, stacked, rtol=1e-10, atol=1e-10)


def test_low_rank_factors_of_single_precision() -> None:
    """The rounding of a float32 product does not hide its rank."""
    stacked = matrices(2, 2, torch.float32)
    left, right = low_rank_factors(stacked, 2)
    assert left.dtype == right.dtype == torch.float32
    torch.testing.assert_close(left @ right.mT, stacked, rtol=1e-4, atol=1e-5)


def test_no_low_rank_factors() -> None:
    assert low_rank_factors(matrices(2, 3), 2) is None
    assert low_rank_factors(torch.randn(2, 40, 60, dtype=torch.float64), 3) is None
    faint = matrices(2, 1)
    faint[1] += 1e-4 * torch.randn(40, 60, dtype=torch.float64)  # one of the stack is enough
    assert low_rank_factors(faint, 1) is None
    assert low_rank_factors(matrices(2, 1) * torch.nan, 1) is None
    # Factors as large as the matrix would spare nothing.
    assert low_rank_factors(matrices(1, 13), 13) is None
    assert low_rank_factors(matrices(1, 12), 12) is not None


def test_targets_hold_norms_and_stack_updates() -> None:
    victim = case_victim(MODELS[0], precode=False, batch=1, dtype=torch.float64)
    twice = {name: 2 * value for name, value in victim.update.received.items()}
    inputs, labels, noise = other_start(victim)
    dummy = dummy_of(victim.model, inputs, labels, noise)
    targets = dummy.targets([victim.update.received, twice], 1)
    for name, (*tensors, norms) in targets.items():
        size = victim.update.received[name].square().sum()
        torch.testing.assert_close(norms, torch.stack([size, 4 * size]))
        built = tensors[0] if len(tensors) == 1 else tensors[0] @ tensors[1].mT
        torch.testing.assert_close(built[1], twice[name])


def test_wrong_noise_is_refused() -> None:
    victim = case_victim(MODELS[0], precode=True)
    noise = {name: value[:, :-1] for name, value in victim.truth.noise.items()}
    with pytest.raises(ValueError, match=r"noise of shape \(1, 5\), got \(1, 4\)"):
        dummy_of(victim.model, victim.truth.inputs, victim.truth.labels, noise)


def test_knowledge_gives_the_loss() -> None:
    """A server that knows of a client's penalty matches the gradient that includes it."""
    victim = case_victim(MODELS[0], precode=True, dtype=torch.float64)
    knowledge = replace(victim.knowledge, loss=lambda m, b: 3 * batch_loss(m, b))
    inputs, labels, noise = other_start(victim)
    products = [
        (dummy := dummy_of(victim.model, inputs, labels, noise, loss)).products(
            inputs, labels, noise, first(dummy.targets([victim.update.received], 1))
        )["classifier.bias"]
        for loss in (batch_loss, knowledge.loss)
    ]
    torch.testing.assert_close(3 * products[0].inner, products[1].inner)
    torch.testing.assert_close(9 * products[0].dummy, products[1].dummy)


def test_factors_that_were_sent_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products are those of the whole gradient, and nothing is factorised again."""
    victim = make_victim(SMLP(input_shape=(1, 6, 6), num_classes=4, width=40), (1, 6, 6))
    gradient = dict(victim.update.received)
    name = next(name for name, value in gradient.items() if value.dim() == 2)
    leaving = gradient[name.replace("weight", "bias")]
    compact = CompactTensors(encode(gradient, {name: (leaving, victim.truth.inputs.flatten())}))
    assert name in compact.factors()
    attack = IGA(iterations=3)
    expected = attack([victim.update], victim.knowledge)
    factorised: list[int] = []
    real = dummy_gradient.low_rank_factors
    monkeypatch.setattr(
        dummy_gradient, "low_rank_factors",
        lambda stacked, rank: factorised.append(stacked.shape[2]) or real(stacked, rank),
    )  # fmt: skip
    found = attack([replace(victim.update, received=compact)], victim.knowledge)
    assert 36 not in factorised
    torch.testing.assert_close(found[0].inputs, expected[0].inputs, rtol=1e-4, atol=1e-5)
