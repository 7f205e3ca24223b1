"""NRA: the noise-restoring attack on variational bottlenecks."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedleak.attacks.base import NoiseUse
from fedleak.attacks.matching.costs import CostName
from fedleak.attacks.matching.engine import Choices, GradientMatching, StartName
from fedleak.updates.knowledge import Knowledge

# Those of the public code, whose samples are images.
PUBLISHED = Choices(7000, 0.01, "cosine", "normal")
# Those of vectors of which most entries are 0, see experiments/fedvae: the gradient of an untrained
# recommender hardly changes where a constant is added to all entries, so that what a normal start
# adds to them stays; and the cosine does not distinguish a vector from its complement with the
# noise negated.
OF_ITEMS = Choices(500, 0.03, "relative_error", "zeros")


@dataclass(kw_only=True, eq=False, repr=False)
class NRA(GradientMatching):
    """IGA that optimises the noise of the forward pass together with the inputs.

    The noise ``(num_samples, ...)`` of every slot starts from N(0, 1) and is updated by the same
    Adam, with its gradient instead of the sign, without clamping or prior. The dummy loss contains
    the bottleneck's KL divergence, as the client's does. Where ``iterations``, ``learning_rate``,
    ``cost`` or ``start`` is None, the samples decide: 500, 0.03, ``relative_error`` and ``zeros``
    for a user's items, that is vectors whose ``value_range`` was told to begin at 0; and the public
    code's 7,000, 0.01, ``cosine`` and ``normal``, which find the items of few users, for others.

    Args:
        iterations: see :class:`GradientMatching`, or None.
        learning_rate: see :class:`GradientMatching`, or None.
        cost: see :class:`GradientMatching`, or None.
        start: see :class:`GradientMatching`, or None.

    Raises:
        BadInput: if a value is out of its range or two values contradict each other.
    """

    name: ClassVar[str] = "nra"
    paper: ClassVar[str] = "noise-restoring attack on PRECODE, public code of November 2022"
    needs: ClassVar[str] = "as iga, and a model that draws noise"
    noise: ClassVar[NoiseUse] = "required"
    restores_noise: ClassVar[bool] = True

    # Wider than in the base class, which reads them through `choices` alone.
    iterations: int | None = None  # type: ignore[assignment]
    learning_rate: float | None = None  # type: ignore[assignment]
    cost: CostName | None = None  # type: ignore[assignment]
    start: StartName | None = None  # type: ignore[assignment]

    def choices(self, knowledge: Knowledge) -> Choices:
        """See :meth:`GradientMatching.choices`."""
        default = OF_ITEMS if _has_items(knowledge) else PUBLISHED
        own = {name: getattr(self, name) for name in default._fields}
        return default._replace(**{name: value for name, value in own.items() if value is not None})


def _has_items(knowledge: Knowledge) -> bool:
    """Whether the samples are vectors of numbers from 0 on, as those of a user's items are."""
    if knowledge.value_range is None or len(knowledge.input_shape) != 1:
        return False
    return bool((torch.as_tensor(knowledge.value_range[0]) == 0).all())
