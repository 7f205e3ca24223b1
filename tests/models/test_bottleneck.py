import copy
import math
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad
from torch.nn import functional

from fedleak.attacks import IGA, NRA
from fedleak.errors import BadInput
from fedleak.models import (
    SMLP,
    ConvolutionalBottleneck,
    LeNet,
    Precode,
    ResNet18,
    VariationalBottleneck,
    inject,
    kl_penalty,
    noise_slots,
)
from fedleak.models.bottleneck import kl_bits
from tests.cases import make_victim


@pytest.fixture
def bottleneck() -> VariationalBottleneck:
    torch.manual_seed(0)
    return VariationalBottleneck(6, bottleneck_size=4, beta=0.5).double()


FEATURES = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(3, 6)


def literal(bottleneck: VariationalBottleneck, features: torch.Tensor, noise: torch.Tensor):
    """The paper's formulas, number by number."""
    weight, bias = bottleneck.encoder.weight.tolist(), bottleneck.encoder.bias.tolist()
    out_weight, out_bias = bottleneck.decoder.weight.tolist(), bottleneck.decoder.bias.tolist()
    outputs, divergence = [], 0.0
    for row, eps in zip(features.tolist(), noise.tolist(), strict=True):
        coded = [
            sum(w * x for w, x in zip(line, row, strict=True)) + b
            for line, b in zip(weight, bias, strict=True)
        ]
        half = len(coded) // 2
        mean, deviation = coded[:half], [math.log1p(math.exp(value)) for value in coded[half:]]
        code = [m + e * s for m, e, s in zip(mean, eps, deviation, strict=True)]
        outputs.append([
            sum(w * z for w, z in zip(line, code, strict=True)) + b
            for line, b in zip(out_weight, out_bias, strict=True)
        ])  # fmt: skip
        for m, s in zip(mean, deviation, strict=True):
            divergence += (m * m + s * s - 1) / 2 - math.log(s)
    return outputs, divergence / len(features) / math.log(2)


def test_forward_and_divergence_as_the_paper_has_them(bottleneck: VariationalBottleneck) -> None:
    noise = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    with inject(bottleneck, {"noise": noise}):
        output = bottleneck(FEATURES)
    expected, divergence = literal(bottleneck, FEATURES, noise)
    torch.testing.assert_close(output, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(bottleneck.take_kl(), torch.tensor(divergence, dtype=torch.float64))


def test_one_slot_of_the_codes_shape(bottleneck: VariationalBottleneck) -> None:
    assert list(noise_slots(bottleneck)) == ["noise"]
    with (
        inject(bottleneck, {"noise": torch.zeros(3, 6)}),
        pytest.raises(ValueError, match=r"\(3, 4\), got \(3, 6\)"),
    ):
        bottleneck(FEATURES)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_samples_in_every_mode(bottleneck: VariationalBottleneck, training: bool) -> None:
    bottleneck.train(training)
    assert not torch.equal(bottleneck(FEATURES), bottleneck(FEATURES))
    torch.manual_seed(3)
    once = bottleneck(FEATURES)
    torch.manual_seed(3)
    assert torch.equal(once, bottleneck(FEATURES))


@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_divergence_in_bits(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    mean, deviation = torch.randn(size).double(), torch.rand(size).double() + 0.1
    nats = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(kl_bits(mean, deviation), nats / math.log(2))


def test_divergence_by_hand() -> None:
    """Mean 1 costs half a nat each; the prior itself costs nothing."""
    assert kl_bits(torch.zeros(2, 3), torch.ones(2, 3)) == 0
    found = kl_bits(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2))
    assert found == pytest.approx(0.5 / math.log(2))


def test_penalty_is_beta_times_divergence(bottleneck: VariationalBottleneck) -> None:
    bottleneck(FEATURES)
    mean, raw = bottleneck.encoder(FEATURES).chunk(2, dim=-1)
    penalty, expected = kl_penalty(bottleneck), 0.5 * kl_bits(mean, functional.softplus(raw))
    torch.testing.assert_close(penalty, expected)
    # It pulls at the encoder's weights as it should.
    pulls, wanted = (torch.autograd.grad(v, bottleneck.encoder.weight) for v in (penalty, expected))
    torch.testing.assert_close(pulls, wanted)


def test_penalty_sums_over_bottlenecks() -> None:
    torch.manual_seed(2)
    parts = [VariationalBottleneck(3, bottleneck_size=2, beta=beta) for beta in (0.1, 10.0)]
    model = nn.Sequential(*parts)
    model(torch.ones(2, 3))
    kept = [part._kl.item() for part in parts]
    assert kl_penalty(model).item() == pytest.approx(0.1 * kept[0] + 10 * kept[1])


def test_no_bottleneck_no_penalty() -> None:
    assert kl_penalty(nn.Linear(2, 2)) == 0


def test_divergence_can_be_taken_once(bottleneck: VariationalBottleneck) -> None:
    with pytest.raises(RuntimeError, match="Expected a forward pass before"):
        bottleneck.take_kl()
    bottleneck(FEATURES)
    bottleneck.take_kl()
    with pytest.raises(RuntimeError, match="Expected a forward pass before"):
        bottleneck.take_kl()
    bottleneck(FEATURES)
    kl_penalty(bottleneck)
    with pytest.raises(RuntimeError, match="Expected a forward pass before"):
        kl_penalty(bottleneck)


def test_a_copy_has_no_divergence_of_the_last_pass(bottleneck: VariationalBottleneck) -> None:
    """Its divergence has a graph, which can be neither copied nor sent to another process."""
    bottleneck(FEATURES)
    for twin in (copy.deepcopy(bottleneck), pickle.loads(pickle.dumps(bottleneck))):
        with pytest.raises(RuntimeError, match="Expected a forward pass before"):
            twin.take_kl()
        torch.manual_seed(0)
        output = twin(FEATURES)
        torch.manual_seed(0)
        assert torch.equal(output, bottleneck(FEATURES))
    assert bottleneck.take_kl() > 0


def test_gradient_of_output_and_penalty(bottleneck: VariationalBottleneck) -> None:
    """Through torch.func as through autograd, the noise's gradient included."""
    noise = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_(True)
    parameters = dict(bottleneck.named_parameters())

    def value(eps: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
        with inject(bottleneck, {"noise": eps}):
            return functional_call(bottleneck, values, (FEATURES,)).square().sum() + kl_penalty(
                bottleneck
            )

    expected = torch.autograd.grad(value(noise, parameters), [noise, *parameters.values()])
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    towards, slopes = grad(value, argnums=(0, 1))(noise.detach(), detached)
    for found, wanted in zip([towards, *slopes.values()], expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"bottleneck_size": 0}, "`precode.bottleneck_size` to be at least 1, got 0"),
        ({"bottleneck_size": -3}, "`precode.bottleneck_size` to be at least 1, got -3"),
        ({"beta": -1e-3}, "`precode.beta` to be at least 0, got -0.001"),
        ({"beta": math.nan}, "`precode.beta` to be at least 0, got nan"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Precode(**values)
    with pytest.raises(BadInput, match=text):
        VariationalBottleneck(4, **values)


def test_papers_settings_by_default() -> None:
    assert Precode().beta == 1e-3
    assert Precode().kind == "linear"
    assert VariationalBottleneck(6).decoder.in_features == 256


def test_beta_zero_leaves_the_noise() -> None:
    part = VariationalBottleneck(3, bottleneck_size=2, beta=0.0)
    assert not torch.equal(part(torch.ones(1, 3)), part(torch.ones(1, 3)))
    assert kl_penalty(part) == 0


# --------------------------------------------------------------------- the convolutional bottleneck


def test_convolutional_bottleneck_as_its_formulas_have_it() -> None:
    torch.manual_seed(0)
    bottleneck = ConvolutionalBottleneck(6, beta=0.5).double()
    maps, noise = torch.randn(2, 6, 5, 4).double(), torch.randn(2, 3, 5, 4).double()
    with inject(bottleneck, {"noise": noise}):
        found = bottleneck(maps)
    coded = functional.conv2d(maps, bottleneck.encoder.weight, padding=1)
    mean, deviation = coded[:, :3], torch.log1p(coded[:, 3:].exp())
    expected = functional.conv2d(mean + noise * deviation, bottleneck.decoder.weight, padding=1)
    torch.testing.assert_close(found, expected)
    nats = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(bottleneck.take_kl(), nats / math.log(2))
    assert [name for name, _ in bottleneck.named_parameters()] == [
        "encoder.weight",
        "decoder.weight",
    ]


@pytest.mark.parametrize(("channels", "size", "codes"), [(12, None, 6), (1, None, 1), (12, 5, 5)])
def test_size_of_a_convolutional_code(channels: int, size: int | None, codes: int) -> None:
    bottleneck = ConvolutionalBottleneck(channels, bottleneck_size=size)
    assert bottleneck.decoder.in_channels == codes
    assert bottleneck(torch.zeros(1, channels, 3, 3)).shape == (1, channels, 3, 3)


@pytest.mark.parametrize(
    ("kind", "slot"), [(LeNet, "features.2.noise"), (ResNet18, "features.maxpool.noise")], ids=str
)
def test_convolutional_bottleneck_in_a_model(kind: type[LeNet], slot: str) -> None:
    precode = Precode(kind="convolutional", beta=0.5)
    model = kind(input_shape=(3, 8, 8), num_classes=4, precode=precode)
    assert list(noise_slots(model)) == [slot]
    batch = torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    torch.manual_seed(0)
    loss = model.batch_loss(batch)
    torch.manual_seed(0)
    logits = model(batch[0])
    divergence = model.get_submodule(slot.rpartition(".")[0]).take_kl()
    assert float(divergence) > 0
    torch.testing.assert_close(loss, functional.cross_entropy(logits, batch[1]) + 0.5 * divergence)


def test_perceptrons_take_no_convolutional_bottleneck() -> None:
    with pytest.raises(BadInput, match=r"`precode.kind: linear` for SMLP, which has no conv"):
        SMLP(input_shape=(1, 4, 4), num_classes=2, precode=Precode(kind="convolutional"))


def test_kinds_of_a_bottleneck() -> None:
    with pytest.raises(BadInput, match=r"Unknown value of `precode.kind` `linaer`.* `linear`\?"):
        Precode(kind="linaer")  # type: ignore[arg-type]


class WithBottleneck(pl.LightningModule):
    """A user's module around the bottleneck alone, its loss a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(16, 8)
        self.guard = VariationalBottleneck(8, bottleneck_size=3, beta=0.1)
        self.outlet = nn.Linear(8, 3)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        hidden = self.guard(self.inlet(batch[0].flatten(1)).relu())
        return functional.cross_entropy(self.outlet(hidden), batch[1]) + kl_penalty(self)


def test_the_bottleneck_alone_in_a_users_module() -> None:
    torch.manual_seed(0)
    model = WithBottleneck()
    assert list(noise_slots(model)) == ["guard.noise"]
    victim = make_victim(model, (1, 4, 4), num_classes=3)
    for attack in (IGA(iterations=3), NRA(iterations=3)):
        (result,) = attack([victim.update], victim.knowledge)
        assert result.inputs.shape == (1, 1, 4, 4)
    assert {n: v.shape for n, v in result.noise.items()} == {"guard.noise": (1, 3)}
