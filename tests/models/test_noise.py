import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedleak.errors import BadInput
from fedleak.models import (
    DropoutNoise,
    NormalNoise,
    VariationalBottleneck,
    inject,
    noise_slots,
    record,
)
from fedleak.models.noise import before_noise


class Noisy(nn.Module):
    """``weight * value + first noise + second noise``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.first = NormalNoise()
        self.inner = nn.ModuleDict({"second": NormalNoise()})

    def forward(self, value: Tensor) -> Tensor:
        scaled = self.weight * value
        return scaled + self.first(scaled) + self.inner["second"](scaled)


@pytest.fixture
def model() -> Noisy:
    return Noisy()


def is_clear(model: nn.Module) -> bool:
    return all(
        slot._injected is None and slot._recorded is None for slot in noise_slots(model).values()
    )


def test_slots_by_path_in_the_models_order(model: Noisy) -> None:
    assert list(noise_slots(model)) == ["first", "inner.second"]
    assert noise_slots(model)["inner.second"] is model.inner["second"]
    assert noise_slots(nn.Linear(2, 2)) == {}


def test_draws_standard_normal_from_torchs_generator() -> None:
    slot = NormalNoise()
    torch.manual_seed(5)
    drawn = slot(torch.zeros(200, 100, dtype=torch.float64))
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(200, 100, dtype=torch.float64))
    assert abs(float(drawn.mean())) < 0.03
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    assert not torch.equal(drawn, slot(drawn))


def test_draws_in_eval_mode_too(model: Noisy) -> None:
    model.eval()
    assert not torch.equal(model(torch.zeros(4)), model(torch.zeros(4)))


def test_record_notes_every_pass_in_order(model: Noisy) -> None:
    with record(model) as notes:
        outputs = [model(torch.zeros(2, 3)) for _ in range(2)]
    assert {name: len(values) for name, values in notes.items()} == {
        "first": 2, "inner.second": 2,
    }  # fmt: skip
    for at, output in enumerate(outputs):
        torch.testing.assert_close(output.detach(), notes["first"][at] + notes["inner.second"][at])
    model(torch.zeros(2, 3))
    assert len(notes["first"]) == 2
    assert is_clear(model)


def test_recorded_noise_injected_repeats_a_pass(model: Noisy) -> None:
    value = torch.randn(2, 3)
    with record(model) as notes:
        output = model(value)
    with inject(model, {name: values[0] for name, values in notes.items()}):
        assert torch.equal(model(value), output)
        assert torch.equal(model(value), output)
    assert not torch.equal(model(value), output)


def test_what_is_recorded_is_a_copy_without_a_graph(model: Noisy) -> None:
    given = torch.zeros(3, requires_grad=True)
    with record(model) as notes, inject(model, {"first": given}):
        model(torch.zeros(3))
    (noted,) = notes["first"]
    assert not noted.requires_grad
    assert noted.data_ptr() != given.data_ptr()


def test_slots_that_are_not_named_go_on_drawing(model: Noisy) -> None:
    with inject(model, {"first": torch.full((500,), 10.0)}):
        output = model(torch.zeros(500)).detach()
    assert float(output.mean()) == pytest.approx(10, abs=0.3)
    assert float(output.std()) == pytest.approx(1, abs=0.2)


def test_injection_within_an_injection(model: Noisy) -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    with inject(model, {"first": zero, "inner.second": zero}):
        with inject(model, {"first": one}):
            assert torch.equal(model(zero), one)
        assert torch.equal(model(zero), zero)
    assert is_clear(model)


def test_shape_mismatch(model: Noisy) -> None:
    with inject(model, {"first": torch.zeros(2)}):
        with pytest.raises(ValueError, match=r"noise of shape \(3,\), got \(2,\)"):
            model(torch.zeros(3))
        with pytest.raises(ValueError, match=r"noise of shape \(\), got \(2,\)"):
            model(torch.tensor(0.0))  # what would broadcast is refused as well
        with pytest.raises(ValueError, match=r"noise of shape \(2, 1\), got \(2,\)"):
            model(torch.zeros(2, 1))
    assert is_clear(model)


def test_unknown_slot(model: Noisy) -> None:
    with (
        pytest.raises(
            BadInput,
            match=r"Unknown noise slot `inner.secnd`: expected one of first, inner.second. "
            r"Did you mean `inner.second`\?",
        ),
        inject(model, {"first": torch.zeros(3), "inner.secnd": torch.zeros(3)}),
    ):
        pytest.fail("the block must not run")
    assert is_clear(model)
    with pytest.raises(BadInput, match=r"expected one of \(none\)"), inject(nn.ReLU(), {"x": None}):
        pass


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_clear_after_an_exception(model: Noisy, kind: type[BaseException]) -> None:
    with pytest.raises(kind), inject(model, {"first": torch.zeros(3)}), record(model):
        raise kind
    assert is_clear(model)


# ------------------------------------------------------------------------------- under torch.func


def test_under_functional_call(model: Noisy) -> None:
    noise = {"first": torch.ones(3), "inner.second": torch.ones(3)}
    with inject(model, noise):
        output = functional_call(model, {"weight": torch.tensor(5.0)}, (torch.ones(3),))
    assert torch.equal(output, torch.full((3,), 7.0))


def test_under_grad(model: Noisy) -> None:
    def value(noise: dict[str, Tensor]) -> Tensor:
        with inject(model, noise):
            return (model(torch.ones(2)) ** 2).sum()

    noise = {"first": torch.tensor([1.0, 2.0]), "inner.second": torch.tensor([0.0, -1.0])}
    # The outputs are (3 + 1 + 0, 3 + 2 - 1) = (4, 4), and the slope of their squares twice that.
    towards = grad(value)(noise)
    for slope in towards.values():
        assert torch.equal(slope, torch.tensor([8.0, 8.0]))
    assert is_clear(model)


def test_under_vmap(model: Noisy) -> None:
    def value(noise: Tensor) -> Tensor:
        with inject(model, {"first": noise, "inner.second": noise}):
            return model(torch.zeros(2))

    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(vmap(value)(rows), 2 * rows)
    hessian = vmap(grad(lambda n: grad(lambda m: (value(m) ** 3).sum())(n).sum()))(rows)
    # (2n)^3 has the second derivative 48 n.
    torch.testing.assert_close(hessian, 48 * rows)
    assert is_clear(model)


class Latent(nn.Module):
    """A slot in a module of its own, with no parameter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.latent, self.decoder = nn.Linear(2, 2), nn.Module(), nn.Linear(2, 2)
        self.latent.noise = NormalNoise()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Latent(), ["encoder.weight", "encoder.bias"]),
        (
            nn.Sequential(nn.Linear(2, 2), DropoutNoise(0.5), nn.Linear(2, 2)),
            ["0.weight", "0.bias"],
        ),
        (nn.Sequential(nn.Linear(2, 2), VariationalBottleneck(2)), ["0.weight", "0.bias"]),
        (nn.Sequential(DropoutNoise(0.5), nn.Linear(2, 2)), []),
        (nn.Linear(2, 2), []),
    ],
    ids=["latent", "sequential", "precode", "first", "none"],
)
def test_parameters_before_the_noise(model: nn.Module, expected: list[str]) -> None:
    assert before_noise([name for name, _ in model.named_parameters()], model) == expected


def test_masks_keep_the_mean() -> None:
    torch.manual_seed(0)
    mask = DropoutNoise(0.3)(torch.ones(200, 500))
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert mask.mean() == pytest.approx(1, abs=0.01)
