"""The mechanism of differential privacy that a sequence of defences comes to."""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fedleak.config import Federation
from fedleak.defenses import DPSGD, SVT, Clipping, Defense, NoisyGradients
from fedleak.privacy.mechanisms import Mechanism, dp_sgd, noise


def of_defenses(
    defenses: Sequence[Defense],
    model: nn.Module,
    federation: Federation,
    *,
    samples: int | None = None,
) -> Mechanism | None:
    """What a client's defences release in one round.

    The first noise counts: what follows is post-processing if it uses the noised update alone, and
    undoes the guarantee if it reads the client's data again. Clipping bounds what the noise behind
    it hides, if nothing between the two can make the norm larger.

    Args:
        defenses: the defences, in order.
        model: the clients' model.
        federation: how clients train.
        samples: number of the client's samples, of which DP-SGD draws a batch of a fixed size. If
            None, it is not known, and the drawing is not counted.

    Returns:
        The mechanism; None if no defence clips or adds noise to the whole update.
    """
    bound: float | None = None
    raised = ""
    found: Mechanism | None = None
    for defense in defenses:
        if isinstance(defense, DPSGD):
            found = _of_dp_sgd(defense, federation, samples)
        elif found is not None and not defense.uses_update_alone:
            reason = f"{defense.name}, behind the noise, may read the client's samples again"
            found = replace(found, no_guarantee=found.no_guarantee or reason)
        elif found is not None:
            continue
        elif type(defense) is NoisyGradients:
            found = _of_noise(defense, bound, model)
            if bound is None and raised:
                found = replace(found, no_guarantee=f"{raised} may make the clipped norm larger")
        elif isinstance(defense, SVT):
            found = _of_svt(defense)
        elif isinstance(defense, Clipping):
            bound, raised = min(defense.max_norm, bound or defense.max_norm), ""
        elif bound is not None and not defense.keeps_norm():
            bound, raised = None, defense.name
    if found is None and bound is None:
        return None
    if found is None:
        # Clipping alone bounds what one client contributes, and hides nothing.
        return replace(noise(sigma=0.0, max_norm=bound), name="clipping")
    statistics = _statistics(model) if federation.mode == "train" else ""
    if statistics and not found.infinite:
        reason = f"the running statistics of `{statistics}` are sent without noise"
        found = replace(found, no_guarantee=reason)
    return found


def _of_dp_sgd(defense: DPSGD, federation: Federation, samples: int | None) -> Mechanism:
    # One batch of a fixed size, drawn from the client's samples.
    ordered = "batch_size" in federation.obeys.values()  # the server may ask for all samples
    known = samples is not None and not ordered
    rate = min(1.0, federation.batch_size / samples) if known and samples else 1.0
    return dp_sgd(
        noise_multiplier=defense.noise_multiplier,
        max_norm=defense.max_norm,
        sampling="fixed",
        sampling_rate=rate,
        adjacency="replace",
    )


def _of_noise(defense: NoisyGradients, bound: float | None, model: nn.Module) -> Mechanism:
    laplace = defense.distribution == "laplace" and bound is not None
    return noise(
        sigma=defense.sigma,
        max_norm=bound,
        distribution=defense.distribution,
        relative=defense.relative,
        entries=sum(value.numel() for value in model.parameters()) if laplace else None,
    )


def _of_svt(defense: SVT) -> Mechanism:
    # The technique counts entries that pass; the filter draws from any number of those.
    return replace(
        noise(sigma=math.sqrt(8) * defense.gamma / defense.noise_var, distribution="laplace"),
        name="svt",
        epsilon=defense.epsilon,
        no_guarantee="more entries may pass the noisy threshold than its epsilon is for, and each "
        "that is sent has a value of the update with noise of its own",
    )


def _statistics(model: nn.Module) -> str:
    """Name of the first layer with running statistics, which a client sends beside its update."""
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            return str(name)
    return ""
