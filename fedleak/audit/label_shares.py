"""Shares of labels in the clients' data, by shadow clients."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.audit.ladder import Public, Report, Victim, setting_of, truth_of
from fedleak.audit.shadow_clients import LabelShares, total_variation_distance, train_shadows
from fedleak.audit.simulation import Observed
from fedleak.audit.verdict import Answer, Estimate

# Shadow clients: as many as the time allows, within these numbers.
FEWEST_SHADOWS, MOST_SHADOWS = 40, 160
MADE_UP = "made-up inputs"


def label_shares(
    observed: Observed,
    victims: Sequence[Victim],
    public: Public | None,
    *,
    seconds: float,
    seed: int = 0,
    report: Report = lambda text: None,
) -> Answer | None:
    """Shares of labels in each client's data, by shadow clients.

    Args:
        observed: what the app's run has left; its truth is read after the attack.
        victims: the victims; those of the first round are attacked.
        public: samples like the clients'. If None, they are made up: normal random numbers.
        seconds: time for the shadow clients.
        seed: seed of the shadow clients.
        report: told what is being done.

    Returns:
        The answer; None where the clients' labels are no classes.
    """
    victims = [v for v in victims if v.update.round == victims[0].update.round]
    facts = victims[0].known.knowledge
    layer, classes = _head(facts.model)
    example = facts.label_example
    if layer is None or example is None or example.is_floating_point() or example.dim() != 1:
        return None
    empty: dict[str, Any] = {
        "rung": 2, "question": "shares of labels", "perfect": 0.0,
        "measure": "total variation distance of the shares, 0 is exact",
        "threat_model": "C" if public is None else "D", "attack": "shadow clients",
        "setting": setting_of(victims),
    }  # fmt: skip
    nothing = Estimate.of([])
    if facts.local.optimizer == "unknown" or facts.local.learning_rate is None:
        note = "the clients' optimiser cannot be followed"
        return Answer(**empty, answer=nothing, guess=nothing, gains=(), tried=False, note=note)
    if public is None:
        generator = torch.Generator().manual_seed(seed)
        number = 20 * classes
        shape = (number, *facts.input_shape)
        made = (
            torch.randn(shape, generator=generator) if victims[0].whole is None
            else torch.randint(victims[0].whole, shape, generator=generator)
        )  # fmt: skip
        public = Public(made, torch.arange(number) % classes, MADE_UP)
    begun, shadows = time.monotonic(), []
    samples = round(sum(v.known.knowledge.num_samples for v in victims) / len(victims))
    model = facts.model if facts.training is None else facts.model.train(facts.training)
    for shadow in train_shadows(
        model, victims[0].update.sent, facts.loss, facts.local,
        public.inputs, public.labels, samples=samples, classes=classes, number=MOST_SHADOWS,
        seed=seed,
    ):  # fmt: skip
        shadows.append(shadow)
        report(f"shadow client {len(shadows)} of at most {MOST_SHADOWS}")
        if len(shadows) >= FEWEST_SHADOWS and time.monotonic() - begun > seconds:
            break
    fitted = LabelShares.fit(shadows, layer)
    found = fitted([v.update.change(list(v.update.sent)) for v in victims])
    truth = torch.stack([_shares(truth_of(observed, v).labels, classes) for v in victims])
    distances = total_variation_distance(found, truth)
    others = (truth.sum(0) - truth) / max(1, len(truth) - 1)
    guess = others if len(truth) > 1 else torch.full_like(truth, 1 / classes)
    guesses = total_variation_distance(guess, truth)
    uniform = total_variation_distance(torch.full_like(truth, 1 / classes), truth)
    return Answer(
        **empty,
        answer=Estimate.of(distances.tolist()),
        guess=Estimate.of(guesses.tolist()),
        gains=tuple((guesses - distances).tolist()),
        note=(
            f"{len(shadows)} shadow clients on {public.name}; the guess is the mean of the other "
            f"clients, and equal shares have {float(uniform.mean()):.3g}"
        ),
    )


def _shares(labels: Tensor | None, classes: int) -> Tensor:
    assert labels is not None
    return torch.bincount(labels.flatten(), minlength=classes)[:classes].double() / labels.numel()


def _head(model: nn.Module) -> tuple[str | None, int]:
    """The last linear layer and its number of outputs."""
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        return None, 0
    name, last = linear[-1]
    return name, last.out_features
