"""The objective of gradient matching and its gradient, batched over updates."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from fedleak.attacks.matching.compile import Step
from fedleak.attacks.matching.costs import Cost
from fedleak.attacks.matching.differentiation import Road, gradients, ordinary_autograd
from fedleak.attacks.matching.dummy_gradient import DummyGradient
from fedleak.attacks.matching.local_steps import DummyUpdate
from fedleak.attacks.matching.priors import Statistics, batch_norm_distance, total_variation
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
            target: the targets ``gradient``, ``features`` and ``statistics``, and ``smoothing``
                where steps of Adam and its kin are simulated, see :class:`DummyUpdate`.

        Returns:
            The objective, a scalar, and as auxiliary output (objective, cost).
        """
        values = fixed | free
        smoothing = target.get("smoothing")
        total, statistics, entered = self._distance(values, target, smoothing)
        cost = total
        if smoothing is not None:
            # The cost that iterates are chosen by is that of the client's own optimiser.
            cost, _, _ = self._distance(tree_map(Tensor.detach, values), target, None)
        for layer, wanted in target["features"].items():
            missed = (entered[layer] - wanted).square().sum() / wanted.square().sum()
            total = cost = cost + self.features / len(target["features"]) * missed
        if self.total_variation:
            total = total + self.total_variation * total_variation(values["inputs"])
        if self.batch_norm:
            distance = batch_norm_distance(statistics, target["statistics"])
            total = total + self.batch_norm * distance
        return total, (total, cost)

    def _distance(
        self, values: Tensors, target: dict[str, Any], smoothing: Tensor | None
    ) -> tuple[Tensor, Statistics, Tensors]:
        """Distance of the gradients, batch-norm statistics, and the watched modules' inputs."""
        more = () if smoothing is None else (smoothing,)
        products, statistics, entered = self.dummy.evaluate(
            values["inputs"],
            as_target(values["labels"], self.labels),
            noise_of(values),
            target["gradient"],
            *more,
        )
        cost = self.cost({name: products[name] for name in self.weights}, self.weights)
        return cost, statistics, entered

    def step(self, road: Road = "batched") -> Step:
        """A function of rows: gradients in the free variables and (objectives, costs).

        Args:
            road: how it is differentiated; the results are the same up to rounding.
        """

        def one_row(
            free: Tensors, fixed: Tensors, target: dict[str, Any]
        ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
            found: tuple[Tensors, tuple[Tensor, Tensor]] = gradients(
                self, 0, free, fixed, target, again=False
            )
            return found

        # Layers that draw outside the noise slots, such as a dropout, draw for each row.
        many_rows: Step = vmap(one_row, randomness="different")

        def step(
            free: Tensors, fixed: Tensors, target: dict[str, Any]
        ) -> tuple[Tensors, tuple[Tensor, Tensor]]:
            rows = len(free["inputs"])
            # A single row is not batched, which saves a fifth of the time of a small model.
            if rows > 1 and road == "batched":
                return many_rows(free, fixed, target)
            arguments = (free, fixed, target)
            with ordinary_autograd() if road == "ordinary" else nullcontext():
                found = [one_row(*tree_map(itemgetter(row), arguments)) for row in range(rows)]
            if road == "ordinary":
                found = tree_map(Tensor.detach, found)
            together: tuple[Tensors, tuple[Tensor, Tensor]]
            if rows == 1:
                together = tree_map(lambda value: value[None], found[0])
            else:
                together = tree_map(lambda *values: torch.stack(values), *found)
            return together

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
