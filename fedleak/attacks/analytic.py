"""The closed form: what entered a biased linear layer stands in its gradient."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Family, Problem, Reconstruction, Report
from fedleak.attacks.closed_form.linear import linear_input
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.module_facts import enters_unchanged, first_linear
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge

# So many deviations of the noise count as signal.
DEVIATIONS = 5.0
# The ratio of the deviation of normal numbers to their median distance from the median.
MEDIAN_TO_DEVIATION = 1.4826
# Of float32, what remains of a sum that should be 0.
ROUNDING = 1e-5


class Analytic(Attack):
    """Reads one sample out of the gradient of the first linear layer, without any iteration.

    Of one sample, the gradient of a layer ``W h + b`` is ``d h^T`` in W and ``d`` in b, so
    h follows by weighted least squares over all its rows
    (:func:`fedleak.attacks.closed_form.linear.linear_input`), whatever follows the layer: the
    noise of a bottleneck does not change it. Where the layer takes the sample itself, that is the
    sample, and steps of plain SGD on it add up to ``(sum of d) h^T``, however many there are.

    A recommender scales a user's vector to unit length and may drop some of it. There the items are
    those whose entry of h is not 0 and, if the gradient of the output's bias adds up to 0 as that
    of a multinomial does (it is ``n softmax - x`` of a user with n items), those whose entry of it
    is negative. Entries count from five deviations of the noise, which is estimated from the
    entries of all items, as most are none of the user's.

    The cost is the share of the layer's gradient (in norm) that ``b_grad h^T`` does not explain:
    0 to rounding where the update is what it is taken for.
    """

    name: ClassVar[str] = "analytic"
    paper: ClassVar[str] = (
        "Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715, section III; Balunovic et al., "
        "ICLR 2022, https://arxiv.org/abs/2111.04706"
    )
    family: ClassVar[Family] = "analytic"
    needs: ClassVar[str] = "a gradient of one sample; a biased linear layer first"
    batches: ClassVar[bool] = False
    needs_first_linear: ClassVar[bool] = True
    boxed: ClassVar[bool] = True

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        reason = super().refuses(knowledge)
        if reason is not None:
            return reason
        if knowledge.local_steps > 1 and not knowledge.plain_sgd:
            return (
                f"{self.name} reads sums of gradients, and {knowledge.local_steps} local steps of "
                "another optimiser than plain SGD are none"
            )
        layer = first_linear(knowledge)
        # What a recommender does to a user's vector leaves its zeros where they are.
        images = len(knowledge.input_shape) == 3
        if layer is None or (images and not enters_unchanged(knowledge, layer)):
            return (
                f"{self.name} needs a linear layer with bias that takes the sample first and "
                f"{type(knowledge.model).__name__} has none"
            )
        return None

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`."""
        facts, gradient = problem.knowledge, problem.gradient
        layer = first_linear(facts)
        weight, bias = gradient[f"{layer}.weight"].double(), gradient[f"{layer}.bias"].double()
        entering, error = linear_input(weight, bias)
        unexplained = (weight - torch.outer(bias, entering)).norm() / weight.norm()
        if len(facts.input_shape) == 1:
            found = self._items(facts, gradient, entering)
        else:
            low, high = (bound.to(entering) for bound in facts.bounds)
            found = entering.reshape(facts.input_shape).clamp(low, high)
        labels = facts.labels
        if labels is None:
            labels = recover_labels(problem.model, gradient, facts)
        return Reconstruction(
            inputs=found[None].to(gradient[f"{layer}.weight"].dtype),
            labels=labels,
            costs=[(0, float(unexplained))],
            findings=(f"input of {layer} in closed form, error {error:.1e}",),
        )

    def _items(self, facts: Knowledge, gradient: Tensors, entering: Tensor) -> Tensor:
        """1 at the user's items, else 0."""
        noise = _deviation(entering)
        least = max(DEVIATIONS * noise, ROUNDING * float(entering.abs().max()))
        found = entering.abs() > least
        output = _output_bias(facts)
        if output is not None:
            entries = gradient[output].double()
            # Without noise the sign is enough: popular items of a trained model are near 0.
            least = DEVIATIONS * _deviation(entries) if noise else 0.0
            rounding = ROUNDING * float(entries.abs().sum())
            if abs(float(entries.sum())) <= least * len(entries) ** 0.5 + rounding:
                found |= entries < -least
        return found.double()


def _output_bias(knowledge: Knowledge) -> str | None:
    """The bias of the last linear layer, if it has an output for every entry of a sample."""
    layers = [(n, m) for n, m in knowledge.model.named_modules() if isinstance(m, nn.Linear)]
    name, last = layers[-1]
    fits = (last.out_features,) == tuple(knowledge.input_shape)
    return f"{name}.bias" if fits and last.bias is not None else None


def _deviation(entries: Tensor) -> float:
    """The deviation of what most entries are: of noise, if few hold a signal."""
    return MEDIAN_TO_DEVIATION * float((entries - entries.median()).abs().median())
