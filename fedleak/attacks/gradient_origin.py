"""What the gradient that an attack inverts comes from, where the client did not send it as such."""

from dataclasses import replace

from fedleak.attacks.base import Problem
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.naming import joined

# Share of a bound that is a typical error: a bound adds up the largest roundings of a step. As the
# weight of differences within it, measured on one step of AdamW on an image of 16x16: SSIM 0.81,
# with 0 instead 0.69.
TYPICAL = 0.3

UNKNOWN = "change of weights taken for a gradient, as "
"""How the finding begins where the clients' optimiser is unknown."""


def origin_findings(problem: Problem) -> tuple[str, ...]:
    """The findings about the gradient of one step; none where it is exact.

    Args:
        problem: an update of one step.
    """
    facts = problem.knowledge
    if facts.protocol != "fedsgd" and facts.local.optimizer == "unknown":
        return (UNKNOWN + facts.local.not_known,)
    bounds = [value for name, value in problem.deviation.items() if name not in problem.left_out]
    if not bounds:
        return ()
    known = sum(int(value.isfinite().sum()) for value in bounds)
    share = known / sum(value.numel() for value in bounds)
    return (
        f"gradient from one step of {facts.local.optimizer}: the size of {share:.0%} of its "
        "entries up to rounding, of the others the sign and a lower bound",
    )


def adds_up(local: LocalTraining, layer: str) -> bool:
    """Whether an update of several steps adds up a linear layer's gradients, all with equal shares.

    Then the changes of weight and bias are ``sum_k c_k d_k h_k^T`` and ``sum_k c_k d_k``, so that
    one sample's input follows from them, as from the gradient of one step. So it is with every form
    of SGD that treats weight and bias alike, up to their weight decay.

    Args:
        local: the client's local training.
        layer: the layer's name.
    """
    weight, bias = (
        replace(local.of(joined(layer, name)), weight_decay=0.0) for name in ("weight", "bias")
    )
    return local.is_linear and weight == bias
