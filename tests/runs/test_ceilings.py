"""Ceilings of runs against what `analytic` reaches, and against independent arithmetic."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.defenses import DPSGD, Clipping, Defense, NoisyGradients, Pruning
from fedleak.privacy import mse_to_psnr
from fedleak.registry import Plugin
from fedleak.reporting import write_report
from fedleak.runs.ceilings import UpdateNoise, ceiling_notes, linear_ceiling, update_noise
from fedleak.runs.folder import RunFolder
from fedleak.runs.summary import read_summary
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.runs import in_process, tiny_config, tiny_data

SHAPE = (2, 4, 4)
STD = (0.5, 0.2)
ANALYTIC = Plugin("fedleak.attacks.analytic.Analytic")


class Net(nn.Sequential):
    """A linear layer first, and cross entropy."""

    def batch_loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def client(protocol: Any = "fedsgd") -> tuple[InterceptedUpdate, GroundTruth, Knowledge]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(nn.Flatten(), nn.Linear(32, 12), nn.Sigmoid(), nn.Linear(12, 4))
        sample = torch.randn(1, *SHAPE)
    sent = {name: value.clone() for name, value in net.state_dict().items()}
    label = torch.tensor([1])
    training = None if protocol == "fedsgd" else LocalTraining(learning_rate=0.1, steps=1)
    known = Knowledge(
        net, SHAPE, 4, num_samples=1, labels=label, protocol=protocol, local_training=training
    )
    update = InterceptedUpdate(1, 0, protocol, 1, "net", sent, {})
    return update, GroundTruth(sample, label, {}), known


@pytest.mark.parametrize(
    ("protocol", "clip"), [("fedsgd", None), ("fedsgd", 0.3), ("fedavg", None), ("fedavg", 0.03)]
)
def test_least_squares_come_up_to_the_linear_ceiling(protocol: str, clip: float | None) -> None:
    """1,000 draws of the noise, in pixels whose channels have different scales."""
    update, truth, known = client(protocol)
    net = known.model.double()
    loss = net.batch_loss((truth.inputs.double(), truth.labels))
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    net.float()
    factor = 1.0 if protocol == "fedsgd" else -0.1
    sent = [factor * value for value in gradient]
    whole = math.sqrt(sum(float(value.square().sum()) for value in sent))
    if clip is not None:
        assert clip < whole
        sent = [value * clip / whole for value in sent]
    deviation = float(sent[1].norm()) / 50
    ceiling = linear_ceiling(
        update, truth, known, UpdateNoise(clip, deviation), std=STD, data_range=1.0
    )
    assert isinstance(ceiling, float)
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(STD).double().repeat_interleave(16)
    errors = []
    for _ in range(1000):
        weight, bias = (
            value + deviation * torch.randn(value.shape, generator=generator, dtype=torch.double)
            for value in sent[:2]
        )
        # Least squares: every row has the same noise.
        read = weight.T @ bias / bias.square().sum()
        off = (read - truth.inputs.double().flatten()) * scale
        errors.append(float(off.square().mean()))
    found = np.asarray(errors)
    # No better than the ceiling by more than chance, and within half a dB of it.
    least = found.mean() + 4 * found.std(ddof=1) / math.sqrt(len(found))
    assert mse_to_psnr(float(least)) < ceiling
    assert ceiling - mse_to_psnr(float(found.mean())) < 0.5


def test_an_update_without_a_linear_ceiling_says_why() -> None:
    update, truth, known = client()
    settings: dict[str, Any] = {"std": STD, "data_range": 1.0}
    two = GroundTruth(truth.inputs.repeat(2, 1, 1, 1), truth.labels.repeat(2), {})
    found = linear_ceiling(update, two, known, UpdateNoise(None, 0.1), **settings)
    assert found == "the linear ceiling is for updates of one sample"
    steps = replace(
        known, protocol="fedavg", local_training=LocalTraining(learning_rate=0.1, steps=2)
    )
    found = linear_ceiling(
        replace(update, protocol="fedavg"), truth, steps, UpdateNoise(None, 0.1), **settings
    )
    assert found == "the linear ceiling is for a gradient, or one step of plain SGD"


@pytest.mark.parametrize(
    ("defenses", "expected"),
    [
        ([], ""),
        ([Clipping(max_norm=0.5)], ""),
        ([NoisyGradients(sigma=0.1)], UpdateNoise(None, 0.1)),
        (
            [Clipping(max_norm=0.5), Clipping(max_norm=0.7), NoisyGradients(sigma=0.1)],
            UpdateNoise(0.5, 0.1),
        ),
        ([NoisyGradients(sigma=0.1), Pruning(ratio=0.5)], UpdateNoise(None, 0.1)),
        ([DPSGD(max_norm=2.0, noise_multiplier=0.3)], UpdateNoise(2.0, 0.6)),
        ([Pruning(ratio=0.5), NoisyGradients(sigma=0.1)], "no ceiling is known behind pruning"),
        (
            [NoisyGradients(sigma=0.1, relative=True)],
            "no ceiling is known for gaussian noise relative to the update's norm",
        ),
    ],
)
def test_the_noise_of_an_update(defenses: list[Defense], expected: UpdateNoise | str) -> None:
    config = RunConfig(Plugin("fedleak.data.photos.Photos"), Plugin("fedleak.models.mlp.SMLP"))
    assert update_noise(config, defenses) == expected


def test_a_run_prints_measured_ceiling_and_guess(tmp_path: Path) -> None:
    config = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", batch_size=1, attacks=(ANALYTIC,),
        defenses=(
            Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 1.0}),
            Plugin("fedleak.defenses.noise.NoisyGradients", {"sigma": 0.003}),
        ),
    )  # fmt: skip
    with in_process():
        summary = experiment.run(config)
    (entry,) = summary["ceilings"]
    assert entry["n"] >= 3  # one sample leaves the first layer without a gradient
    assert entry["guess"] < entry["psnr"] < entry["ceiling"] + 0.5
    # With 64 entries in a row, the weights that `analytic` estimates for its rows cost a part.
    assert entry["ceiling"] - entry["psnr"] < 3.0
    # Hayes et al., theorem 2, with noise of 0.003 for a sensitivity of 1.
    shift = norm.ppf(entry["guess_asr"]) + 1 / 0.003
    assert entry["most_asr"] == pytest.approx(norm.cdf(shift))
    assert entry["most_asr"] >= entry["asr"]
    sentence, other = ceiling_notes(summary["ceilings"])
    assert sentence.startswith(
        f"analytic on smlp: measured {entry['psnr']:.1f} dB, ceiling {entry['ceiling']:.1f} dB, "
        f"guess {entry['guess']:.1f} dB (mean PSNR of {entry['n']};"
    )
    assert "of any attack on one update" in other
    files = RunFolder(Path(config.output))
    assert read_summary(files.summary)["ceilings"] == summary["ceilings"]
    assert f"measured {entry['psnr']:.1f} dB, ceiling" in write_report(files).read_text()
