"""Ceilings against the information inequality itself, other attacks and many draws."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from fedleak.attacks import RGAP, Analytic, Attack
from fedleak.attacks.closed_form.linear import linear_input
from fedleak.errors import BadInput
from fedleak.privacy import (
    dp_sgd,
    jacobian_mse,
    linear_mse,
    mse_to_psnr,
    noise,
    reconstruction_probability,
)
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

SHAPE, OUTPUTS, DRAWS = (3, 8, 8), 16, 1000
# Standard errors by which a mean of draws exceeds its expectation by chance: one time in 30,000.
CHANCE = 4.0


class Net(nn.Sequential):
    """A linear layer first, and cross entropy."""

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Client:
    """A sample, its gradient, and noise of a share of the first layer's gradient."""

    def __init__(self, noise_share: float = 1 / 30) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Net(
                nn.Flatten(), nn.Linear(math.prod(SHAPE), OUTPUTS), nn.Sigmoid(),
                nn.Linear(OUTPUTS, 4),
            ).double()  # fmt: skip
            self.sample, self.label = torch.rand(1, *SHAPE).double(), torch.tensor([1])
        self.names = [name for name, _ in self.net.named_parameters()]
        self.gradient = self.gradient_at(self.sample.flatten())
        self.output = self.gradient["1.bias"]
        self.deviation = noise_share * float(self.output.norm())
        self.generator = torch.Generator().manual_seed(1)

    def gradient_at(self, sample: Tensor) -> dict[str, Tensor]:
        loss = self.net.batch_loss((sample.reshape(1, *SHAPE), self.label))
        parameters = [value for _, value in self.net.named_parameters()]
        found = torch.autograd.grad(loss, parameters, create_graph=sample.requires_grad)
        return dict(zip(self.names, found, strict=True))

    def noised(self) -> dict[str, Tensor]:
        return {
            name: value + self.deviation * torch.randn(
                value.shape, generator=self.generator, dtype=value.dtype
            )
            for name, value in self.gradient.items()
        }  # fmt: skip

    def ceiling(self) -> float:
        return linear_mse(
            deviation=self.deviation, output_norm=float(self.output.norm()),
            input_norm=float(self.sample.norm()), entries=self.sample.numel(),
        )  # fmt: skip

    def jacobian(self) -> Tensor:
        """Derivatives of all entries of the gradient by those of the sample."""

        def update(sample: Tensor) -> Tensor:
            return torch.cat([value.flatten() for value in self.gradient_at(sample).values()])

        truth = self.sample.flatten().requires_grad_()
        return torch.autograd.functional.jacobian(update, truth, vectorize=True).detach()

    def whole_ceiling(self) -> float:
        return jacobian_mse(self.jacobian().numpy(), self.deviation)

    def error(self, found: Tensor) -> float:
        return float((found.flatten() - self.sample.flatten()).square().mean())

    def attacked(self, attack: Attack, gradient: dict[str, Tensor]) -> Tensor:
        sent = {name: value.clone() for name, value in self.net.state_dict().items()}
        # A range of values that binds would be a prior.
        facts = Knowledge(
            self.net, SHAPE, 4, num_samples=1, labels=self.label, value_range=(-10.0, 11.0)
        )
        update = InterceptedUpdate(1, 0, "fedsgd", 1, "net", sent, gradient)
        return attack([update], facts)[0].inputs


def check_below_the_ceiling(errors: list[float], ceiling: float, within: float) -> None:
    """No better than the ceiling by more than chance, and within some dB of it."""
    found = np.asarray(errors)
    assert found.mean() > ceiling - CHANCE * found.std(ddof=1) / math.sqrt(len(found))
    assert mse_to_psnr(ceiling) - mse_to_psnr(float(found.mean())) < within


# ----------------------------------------------------------------------------- without a prior


def test_the_linear_ceiling_is_that_of_the_information_of_both_unknowns() -> None:
    """Against the inverse of the Fisher information of (h, d), by automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(5, generator=generator, dtype=torch.float64)
    d = torch.randn(3, generator=generator, dtype=torch.float64)

    def sent(both: Tensor) -> Tensor:
        return torch.cat([torch.outer(both[5:], both[:5]).flatten(), both[5:]])

    jacobian = torch.autograd.functional.jacobian(sent, torch.cat([h, d]))
    covariance = 0.3**2 * torch.linalg.inv(jacobian.T @ jacobian)
    facts = {"deviation": 0.3, "output_norm": float(d.norm()), "input_norm": float(h.norm())}
    found = linear_mse(**facts, entries=5)
    assert found == pytest.approx(float(covariance.diagonal()[:5].mean()), rel=1e-9)
    # With d known, the read-out alone is left.
    known = jacobian_mse(jacobian[:15, :5].numpy(), 0.3)
    assert linear_mse(**facts, entries=5, output_known=True) == pytest.approx(known, rel=1e-9)
    assert known < found


def test_the_read_out_of_an_update_clipped_to_the_norm() -> None:
    """Of Riess et al.: with the norm clipped to C and noise of C z, the error is z^2 |h|^2."""
    h = torch.tensor([3.0, 4.0]).double()
    multiplier, clip = 0.1, 0.5
    clipped = clip / float(h.norm())  # |d| of a read-out d h^T that has the norm C
    found = linear_mse(
        deviation=multiplier * clip, output_norm=clipped, input_norm=5.0, entries=2,
        output_known=True,
    )  # fmt: skip
    assert found == pytest.approx(multiplier**2 * 25)
    assert mse_to_psnr(found, data_range=2.0) == pytest.approx(10 * math.log10(4 / 0.25))


@pytest.mark.parametrize("noise_share", [1 / 30, pytest.param(1 / 100, marks=pytest.mark.slow)])
def test_analytic_reads_up_to_the_ceiling(noise_share: float) -> None:
    """1,000 draws of the least squares that `analytic` consists of here."""
    client = Client(noise_share)
    errors = []
    for _ in range(DRAWS):
        noised = client.noised()
        errors.append(client.error(linear_input(noised["1.weight"], noised["1.bias"]).value))
    check_below_the_ceiling(errors, client.ceiling(), within=0.5)


def test_analytic_consists_of_that_least_squares() -> None:
    client = Client()
    noised = client.noised()
    found = client.attacked(Analytic(), noised)
    expected = linear_input(noised["1.weight"], noised["1.bias"]).value
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.slow
def test_analytic_itself_reads_up_to_the_ceiling() -> None:
    client = Client()
    errors = [client.error(client.attacked(Analytic(), client.noised())) for _ in range(DRAWS)]
    check_below_the_ceiling(errors, client.ceiling(), within=0.5)


@pytest.mark.slow
def test_an_attack_on_the_whole_update_stays_below_that_of_the_whole_update() -> None:
    client = Client()
    errors = [client.error(client.attacked(RGAP(), client.noised())) for _ in range(5)]
    check_below_the_ceiling(errors, client.whole_ceiling(), within=1.0)


def test_the_ceiling_of_a_whole_update_is_what_least_squares_reach() -> None:
    """One step of Gauss and Newton from the truth: maximum likelihood, where noise is small."""
    client = Client(1 / 100)
    ceiling, jacobian = client.whole_ceiling(), client.jacobian()
    # The other layer's gradients and the known weights tell more than one layer's gradient.
    assert ceiling < client.ceiling()
    inverse = torch.linalg.pinv(jacobian)
    drawn = torch.randn(DRAWS, len(jacobian), generator=client.generator, dtype=torch.float64)
    errors = (client.deviation * drawn @ inverse.T).square().mean(dim=1)
    check_below_the_ceiling(errors.tolist(), ceiling, within=0.1)


def test_an_update_that_does_not_determine_the_sample_has_no_finite_error() -> None:
    assert jacobian_mse(np.ones((4, 2)), 1.0) == math.inf
    assert jacobian_mse(np.eye(2)[:1], 1.0) == math.inf
    assert jacobian_mse(np.eye(2), 0.0) == 0
    assert jacobian_mse(2 * np.eye(2), 3.0) == pytest.approx(9 / 4)


def test_psnr_at_the_ends() -> None:
    assert mse_to_psnr(0.0) == math.inf
    assert mse_to_psnr(math.inf) == -math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deviation": -1.0}, "`deviation` of the noise at least 0, got -1.0"),
        ({"output_norm": 0.0}, "`output_norm`, the norm of the bias' gradient, positive, got 0.0"),
        ({"input_norm": math.nan}, "`input_norm` at least 0, got nan"),
        ({"entries": 0}, "`entries` of a ceiling to be a whole number from 1 on, got 0"),
    ],
)
def test_values_out_of_their_range_are_refused(settings: dict, message: str) -> None:
    valid = {"deviation": 1.0, "output_norm": 1.0, "input_norm": 1.0, "entries": 2}
    with pytest.raises(BadInput, match=message):
        linear_mse(**{**valid, **settings})


def test_bad_jacobians_and_errors_are_refused() -> None:
    with pytest.raises(BadInput, match=r"a Jacobian as a matrix of finite numbers, got .*\(3,\)"):
        jacobian_mse(np.ones(3), 1.0)
    with pytest.raises(BadInput, match="Jacobian"):
        jacobian_mse(np.full((2, 2), np.nan), 1.0)
    with pytest.raises(BadInput, match="`mse` at least 0, got -1"):
        mse_to_psnr(-1.0)
    with pytest.raises(BadInput, match="`data_range` positive, got 0"):
        mse_to_psnr(1.0, data_range=0.0)


# ----------------------------------------------------------------------------- with any prior


def most_powerful(p: np.ndarray, q: np.ndarray, guess: float) -> float:
    """Neyman and Pearson: the largest probability under p of an event of probability kappa under q.

    Densities on a grid, taken in the order of their ratio.
    """
    order = np.argsort(-p / q)
    false, true = np.cumsum(q[order]), np.cumsum(p[order])
    return float(np.interp(guess, false / false[-1], true / true[-1]))


@pytest.mark.parametrize(
    ("rate", "guess"), [(1.0, 0.001), (1.0, 0.1), (1.0, 0.6), (0.3, 0.1), (0.3, 0.6)]
)
def test_no_test_of_one_release_is_more_powerful(rate: float, guess: float) -> None:
    multiplier = 0.4
    x = np.linspace(-3, 4, 200_001)
    without = norm.pdf(x, scale=multiplier)
    with_it = (1 - rate) * without + rate * norm.pdf(x, loc=1.0, scale=multiplier)
    expected = most_powerful(with_it, without, guess)
    mechanism = dp_sgd(noise_multiplier=multiplier, sampling_rate=rate)
    found = reconstruction_probability(mechanism, guess=guess)
    assert found >= expected - 1e-6
    # Where the sample is drawn, the bound is tight for small probabilities.
    assert found == pytest.approx(expected, abs=2e-3 if guess < 0.5 or rate == 1 else 0.15)


def test_the_adjacency_of_the_epsilon_is_of_no_account() -> None:
    removed, replaced = (
        dp_sgd(noise_multiplier=0.4, adjacency=adjacency) for adjacency in ("remove", "replace")
    )
    found = reconstruction_probability(removed, guess=0.2)
    assert reconstruction_probability(replaced, guess=0.2) == found


def test_guessing_one_of_ten_after_several_rounds() -> None:
    """The maximum likelihood among ten orthogonal candidates beats a guess, not the ceiling."""
    rounds, multiplier, candidates = 5, 3.0, 10
    rng = np.random.default_rng(0)
    released = rng.normal(scale=multiplier, size=(20_000, rounds, candidates))
    released[:, :, 0] += 1
    success = float((released.sum(axis=1).argmax(axis=1) == 0).mean())
    mechanism = dp_sgd(noise_multiplier=multiplier)
    ceiling = reconstruction_probability(mechanism, guess=1 / candidates, rounds=rounds)
    assert 1 / candidates < success < ceiling < 0.4
    assert ceiling == pytest.approx(norm.cdf(norm.ppf(0.1) + math.sqrt(5) / 3))


def test_the_ends() -> None:
    mechanism = dp_sgd(noise_multiplier=1.0, sampling_rate=0.1)
    assert reconstruction_probability(mechanism, guess=0.0) == 0
    assert reconstruction_probability(mechanism, guess=1.0) == 1
    assert reconstruction_probability(noise(sigma=1.0), guess=0.2) == 1
    strong = noise(sigma=1e6, max_norm=1.0)
    assert reconstruction_probability(strong, guess=0.2) == pytest.approx(0.2, abs=1e-4)


def test_what_the_bound_does_not_take_is_refused() -> None:
    laplace = noise(sigma=1.0, max_norm=1.0, distribution="laplace", entries=4)
    with pytest.raises(BadInput, match="a Gaussian mechanism for this ceiling, got laplace"):
        reconstruction_probability(laplace, guess=0.1)
    with pytest.raises(BadInput, match=r"`guess`, a probability, from 0 to 1, got 1\.5"):
        reconstruction_probability(dp_sgd(noise_multiplier=1.0), guess=1.5)
    with pytest.raises(BadInput, match="`rounds` of a ceiling to be a whole number"):
        reconstruction_probability(dp_sgd(noise_multiplier=1.0), guess=0.5, rounds=0)
