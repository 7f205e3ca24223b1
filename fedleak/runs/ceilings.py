"""Ceilings on what can be reconstructed from noised updates, beside what was measured."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.module_facts import drawing_layers, enters_unchanged, first_linear
from fedleak.config import RunConfig
from fedleak.defenses import DPSGD, Clipping, Defense, NoisyGradients
from fedleak.errors import BadInput
from fedleak.models.noise import inject
from fedleak.privacy.ceilings import mse_to_psnr, reconstruction_probability, sample_mse
from fedleak.privacy.mechanisms import Mechanism, local_dp_mod
from fedleak.runs.folder import Row
from fedleak.runs.scoring import ImageScoring, Scoring
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.naming import joined
from fedleak.updates.private_model import private_copy
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

PUBLIC = 200
"""Public samples on which a guess is tried."""
LEVEL = 0.95


@dataclass(frozen=True)
class UpdateNoise:
    """What a client does to the update of one sample: clipping to a norm, then Gaussian noise.

    Args:
        clip: bound on the norm of the update; None if nothing bounds it.
        deviation: standard deviation of the noise of each entry, positive.
    """

    clip: float | None
    deviation: float


def update_noise(config: RunConfig, defenses: Sequence[Defense]) -> UpdateNoise | str:
    """The noise of a run's updates of one sample; a reason where no ceiling is known for it.

    Args:
        config: the run's configuration.
        defenses: its defences, in order. What follows the noise only takes information away.
    """
    clip: float | None = None
    for defense in defenses:
        if isinstance(defense, DPSGD) and defense.noise_multiplier:
            # The sum over the one sample of the batch.
            return UpdateNoise(defense.max_norm, defense.noise_multiplier * defense.max_norm)
        if type(defense) is NoisyGradients and defense.sigma:
            if defense.distribution != "gaussian" or defense.relative:
                return f"no ceiling is known for {defense.distribution} noise" + (
                    " relative to the update's norm" if defense.relative else ""
                )
            return UpdateNoise(clip, defense.sigma)
        if not isinstance(defense, Clipping):
            return f"no ceiling is known behind {defense.name}"
        clip = min(defense.max_norm, clip or math.inf)
    for plugin in reversed(config.mods):  # the last one acts first
        if plugin.class_path.rpartition(".")[2] != "LocalDpMod":
            return "no ceiling is known behind a mod that is not Flower's LocalDpMod"
        mod = local_dp_mod(**plugin.init_args)
        if mod.standard_deviation:
            return UpdateNoise(min(mod.clip or math.inf, clip or math.inf), mod.standard_deviation)
    return ""


def linear_ceiling(
    update: InterceptedUpdate,
    truth: GroundTruth,
    knowledge: Knowledge,
    noise: UpdateNoise,
    *,
    std: Sequence[float],
    data_range: float,
) -> float | str:
    """The ceiling of a reading of the first linear layer without a prior, in dB.

    See :func:`fedleak.privacy.linear_mse`.

    Args:
        update: what was sent; only the weights before it are read.
        truth: the client's sample and noise.
        knowledge: the model in the client's mode, and its local training.
        noise: what was done to the update.
        std: standard deviation of each channel, by which an entry is scaled for the score.
        data_range: see :func:`fedleak.privacy.mse_to_psnr`.

    Returns:
        The PSNR; a reason where no ceiling is known.
    """
    if len(truth.inputs) != 1:
        return "the linear ceiling is for updates of one sample"
    layer = first_linear(knowledge)
    if layer is None or not enters_unchanged(knowledge, layer):
        return "the linear ceiling is for models whose first layer is linear, with a bias"
    if drawing_layers(knowledge.model):
        return "the model draws numbers that are not recorded"
    rate = 1.0
    if update.protocol != "fedsgd":
        local = knowledge.local
        plain = local.optimizer == "sgd" and not local.weight_decay and not local.per_parameter
        if knowledge.steps != 1 or not plain:
            return "the linear ceiling is for a gradient, or one step of plain SGD"
        rate = local.rate_at(0)
    gradient = _gradient(update, truth, knowledge)
    whole = rate * math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
    factor = 1.0 if noise.clip is None or not whole else min(1.0, noise.clip / whole)
    output = factor * rate * float(gradient[joined(layer, "bias")].norm())
    if not output:
        return "the sample leaves no gradient in the first layer"
    sample = truth.inputs[0].double()
    scale = torch.tensor(std).double().reshape(-1, *[1] * (sample.dim() - 1)).expand_as(sample)
    mse = sample_mse(
        deviation=noise.deviation, output_norm=output, sample=sample.flatten().numpy(),
        scale=scale.flatten().numpy(),
    )  # fmt: skip
    return mse_to_psnr(mse, data_range=data_range)


def _gradient(update: InterceptedUpdate, truth: GroundTruth, knowledge: Knowledge) -> Tensors:
    """The gradient of the client's loss at the weights that it was sent, before any defence."""
    model = private_copy(knowledge.model)
    model.load_state_dict(dict(update.sent))
    model.double()
    names, values = zip(
        *((n, v) for n, v in model.named_parameters() if v.requires_grad), strict=True
    )
    labels = truth.labels
    labels = labels.double() if labels.is_floating_point() else labels
    noise = {name: value.double() for name, value in truth.noise.items()}
    with torch.random.fork_rng(devices=[]), inject(model, noise):
        loss = batch_loss(model, (truth.inputs.double(), labels))
        found = torch.autograd.grad(loss, values, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def guess_scores(scoring: Scoring, guess: Tensor, samples: Tensor) -> list[dict[str, Any]]:
    """The scores of one guess for several samples.

    Args:
        scoring: how the run's samples are scored.
        guess: the guess, normalised, of the shape of a sample.
        samples: the samples, ``(N, ...)``.
    """
    labels, found = torch.zeros(1, dtype=torch.int64), []
    for sample in samples:
        truth = GroundTruth(sample[None], labels, {})
        found += scoring.scores(truth, Reconstruction(guess[None], labels))
    return found


def success_of_guess(scores: Sequence[Mapping[str, Any]]) -> float:
    """The upper end of the 95 % interval of a guess's rate of success (Wilson), 0 to 1.

    Args:
        scores: those of public samples.
    """
    from scipy.stats import binomtest

    right = sum(int(score["success"]) for score in scores)
    interval = binomtest(right, len(scores)).proportion_ci(LEVEL, method="wilson")
    return float(interval.high)


def ceiling_facts(
    rows: Iterable[Row],
    ceilings: Mapping[tuple[str, int, int], tuple[float, float]],
    reasons: Sequence[str],
    mechanism: Mechanism | None,
    guess: float | None,
) -> list[dict[str, Any]]:
    """What was measured beside the ceilings, an entry for each attack on each model.

    Args:
        rows: those of results.csv.
        ceilings: model, round and client -> ceiling and PSNR of the guess, in dB.
        reasons: why other updates have no ceiling.
        mechanism: the Gaussian mechanism of an update with a finite epsilon; None without one.
        guess: the largest probability that a guess without the update succeeds; None if unknown.

    Returns:
        Entries with ``attack``, ``model``, ``n`` (updates with a ceiling), the means ``psnr``,
        ``ceiling`` and ``guess`` in dB, None where there is none, ``reason`` for it, ``asr`` (the
        share of successes among all rows), and of any attack, whatever its prior, ``most_asr``
        where a guess succeeds with the probability ``guess_asr``.
    """
    bound = None
    if mechanism is not None and guess is not None:
        bound = reconstruction_probability(mechanism, guess=guess)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["attack"]), str(row["model"])), []).append(row)
    entries = []
    for (attack, model), own in groups.items():
        pairs = [
            (float(row["psnr"]), *ceilings[model, row["round"], row["client"]])
            for row in own
            if (model, row["round"], row["client"]) in ceilings and row["psnr"] is not None
        ]
        finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
        means = [statistics.fmean(values) for values in zip(*finite, strict=True)]
        psnr, ceiling, guessed = means or (None, None, None)
        known = [row["success"] for row in own if row["success"] is not None]
        entries.append(
            {
                "attack": attack, "model": model, "n": len(finite), "psnr": psnr,
                "ceiling": ceiling, "guess": guessed,
                "reason": "" if finite else next(iter(reasons), ""),
                "asr": statistics.fmean(known) if known else None,
                "most_asr": bound, "guess_asr": None if bound is None else guess,
            }
        )  # fmt: skip
    return entries


def ceiling_notes(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was measured beside the ceilings, in sentences.

    Args:
        entries: see :func:`ceiling_facts`.
    """
    notes = []
    for entry in entries:
        what = f"{entry['attack']} on {entry['model']}"
        if entry["ceiling"] is not None:
            notes.append(
                f"{what}: measured {entry['psnr']:.1f} dB, ceiling {entry['ceiling']:.1f} dB, "
                f"guess {entry['guess']:.1f} dB (mean PSNR of {entry['n']}; the ceiling is that of "
                "an unbiased reading of the first layer alone, which a prior such as the range of "
                "valid values, or the other layers, may exceed)."
            )
        elif entry["reason"]:
            notes.append(f"{what}: no ceiling without a prior, as {entry['reason']}.")
        if entry["most_asr"] is not None and entry["asr"] is not None:
            notes.append(
                f"{what}: measured success {entry['asr']:.0%}; of any attack on one update, "
                f"whatever its prior, at most {entry['most_asr']:.1%} if no guess without the "
                f"update succeeds more often than {entry['guess_asr']:.1%}."
            )
    return notes


def has_ceilings(scoring: Scoring) -> bool:
    """Whether the samples of a run are scored in dB, which the ceilings are of."""
    return isinstance(scoring, ImageScoring)


def try_ceiling(*args: Any, **settings: Any) -> float | str:
    """:func:`linear_ceiling`, in which a fault of the model's own code is a reason."""
    try:
        return linear_ceiling(*args, **settings)
    except (BadInput, RuntimeError, KeyError, TypeError, ValueError) as error:
        return f"the client's gradient cannot be computed again: {' '.join(str(error).split())}"
