"""The objective of gradient matching and its gradient, batched over updates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from fedleak.attacks.matching.compile import Step
from fedleak.attacks.matching.costs import Cost
from fedleak.attacks.matching.dummy_gradient import DummyGradient
from fedleak.attacks.matching.local_steps import DummyUpdate
from fedleak.attacks.matching.priors import batch_norm_distance, total_variation
from fedleak.updates.files import Tensors

LabelForm = Literal["classes", "binary", "given"]

# Prefix of the noise slots among the names of the variables.
NOISE = "noise/"


@dataclass(frozen=True)
class Objective:
    """The objective for one update, a function of inputs, labels and noise.

    Args:
        dummy: computes the products of the dummy gradient with the client's.
        cost: distance of the gradients.
        weights: weight of each parameter that is compared.
        total_variation: weight of the inputs' total variation; not computed if 0.
        batch_norm: weight of the distance of the batch-norm statistics; not computed if 0.
        features: weight of the known features in the cost.
        labels: how the labels follow from their variable, see :func:`as_target`.
    """

    dummy: DummyGradient | DummyUpdate
    cost: Cost
    weights: dict[str, float]
    total_variation: float
    batch_norm: float
    features: float
    labels: LabelForm

    def __call__(
        self, free: Tensors, fixed: Tensors, target: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The objective of one row.

        Args:
            free: variables that are optimised, by name.
            fixed: the other variables, by name.
            target: the targets ``gradient``, ``features`` and ``statistics``.

        Returns:
            The objective, a scalar, and as auxiliary output (objective, cost).
        """
        values = fixed | free
        products, statistics, entered = self.dummy.evaluate(
            values["inputs"],
            as_target(values["labels"], self.labels),
            noise_of(values),
            target["gradient"],
        )
        cost = self.cost({name: products[name] for name in self.weights}, self.weights)
        for layer, wanted in target["features"].items():
            missed = (entered[layer] - wanted).square().sum() / wanted.square().sum()
            cost = cost + self.features / len(target["features"]) * missed
        total = cost
        if self.total_variation:
            total = total + self.total_variation * total_variation(values["inputs"])
        if self.batch_norm:
            distance = batch_norm_distance(statistics, target["statistics"])
            total = total + self.batch_norm * distance
        return total, (total, cost)

    def step(self) -> Step:
        """A function of rows: gradients in the free variables and (objectives, costs)."""
        # Layers that draw outside the noise slots, such as a dropout, draw for each row.
        # A single row is not batched, which saves a fifth of the time of a small model.
        one_row = grad(self, has_aux=True)
        many_rows: Step = vmap(one_row, randomness="different")

        def step(
            free: Tensors, fixed: Tensors, target: dict[str, Any]
        ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
            if len(free["inputs"]) > 1:
                return many_rows(free, fixed, target)
            gradients, costs = one_row(*tree_map(lambda value: value[0], (free, fixed, target)))
            alone: tuple[Tensors, tuple[Tensor, Tensor]]
            alone = tree_map(lambda value: value[None], (gradients, costs))
            return alone

        return step


def noise_of(values: Mapping[str, Tensor]) -> Tensors:
    """The noise among the variables: slot -> noise."""
    return {n.removeprefix(NOISE): v for n, v in values.items() if n.startswith(NOISE)}


def as_target(labels: Tensor, form: LabelForm) -> Tensor:
    """Labels as the loss takes them.

    Args:
        labels: the variable ``(batch, ...)``.
        form: classes are logits of soft labels, binary are logits of numbers from 0 to 1; others
            are the labels themselves.
    """
    if form == "classes":
        return labels.softmax(dim=-1)
    return labels.sigmoid() if form == "binary" else labels
