"""What precedes a known layer, shortened by the convolution and the max pooling before it."""

import torch

from fedleak.attacks.base import Report
from fedleak.attacks.closed_form.pool_choices import PoolChoices, pool_choices
from fedleak.attacks.closed_form.pooled_convolution import PooledConvolution
from fedleak.attacks.closed_form.smooth_image import KnownTrunk, coarse_image
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.updates.files import Tensors

# Relative squared error of the weight's gradient up to which the convolution's input was found.
# With one wrong choice of a unit of a small gradient it is 1e-6 to 1e-5.
FOUND = 1e-4
# Searches of the choices: the first from the image that fits all that is known, others from the
# image that fits the best input found so far, if its squared error is no larger than this.
SEARCHES, NEAR = 3, 1e-2


def before_pooling(
    known: KnownTrunk, convolution: PooledConvolution, before: Trunk, gradient: Tensors,
    report: Report,
) -> tuple[KnownTrunk | None, PoolChoices]:  # fmt: skip
    """What is known of the part of a model before a convolution with ReLU and max pooling.

    Args:
        known: what is known of the part that ends with the pooling.
        convolution: the convolution.
        before: the model before it.
        gradient: gradient by parameter name; it has that of the convolution's weight.
        report: called now and then with the progress of the search of the start.

    Returns:
        What is known of that part, None if the convolution's input was not found, and the best
        choices that were found.
    """
    weights = {name: value for name, value in known.weights.items() if name in before.parameters}

    def shortened(found: PoolChoices) -> KnownTrunk:
        return known._replace(
            trunk=before, value=found.value, gradient=found.gradient, weights=weights,
            certain=found.known,
        )  # fmt: skip

    best: PoolChoices | None = None
    part = known
    for _ in range(SEARCHES):
        image = coarse_image(part, report=report)
        with torch.no_grad():
            start = before(image)
        found = pool_choices(
            convolution, known.value, known.gradient, gradient[f"{convolution.name}.weight"], start
        )
        if best is not None and found.residual >= best.residual:
            break
        best = found
        if best.residual <= FOUND or best.residual > NEAR:
            break
        part = shortened(best)._replace(certain=torch.ones_like(best.known))
    assert best is not None  # there are searches
    return (shortened(best) if best.residual <= FOUND else None), best
