"""The closed form of a linear layer with bias: its gradient determines its input."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Family, Problem, Reconstruction, Report
from fedleak.attacks.closed_form.linear import KnownInput, input_of
from fedleak.attacks.closed_form.rank_one import completed
from fedleak.attacks.gradient_origin import adds_up, origin_findings
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.module_facts import enters_unchanged, first_linear
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.naming import joined

# An entry is signal from this many standard deviations of the noise on.
STANDARD_DEVIATIONS = 5.0
# Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_STANDARD_DEVIATION = 1.4826
# Relative rounding error of a float32 sum that is 0 in exact arithmetic.
ROUNDING = 1e-5


class Analytic(Attack):
    """Recovers one sample from the gradient of the first linear layer in closed form.

    For one sample, the gradient of a layer ``W h + b`` is ``d h^T`` in W and ``d`` in b, with d the
    gradient of the layer's output, so the input h follows by weighted least squares over the rows
    (Phong et al. 2018, section III; :func:`fedleak.attacks.closed_form.linear.linear_input`). The
    layers behind do not matter, nor does the noise of a bottleneck. If the layer's input is the
    sample itself, h is the sample; steps of SGD on one sample add up to ``(sum of d) h^T``, with
    momentum in other shares, so that their update gives it too, for any number of steps. One step
    of Adam and its kin tells small entries of the gradient up to a bound, and each row's are
    weighted by it (:func:`fedleak.attacks.closed_form.linear.bounded_linear_input`).

    A recommender scales a user's vector ``(items,)`` to unit length and may apply dropout. The
    user's items are those whose entry of h is not 0 and, if the gradient of the output's bias sums
    to 0 as that of a multinomial likelihood does (``n softmax - x`` for a user with n items), those
    whose entry of that gradient is negative. Entries count from 5 standard deviations of the
    noise, which is estimated from all entries, since most items are not the user's.

    A sample that enters the layer unchanged is returned in its own shape, within its valid range if
    it has one; a recommender's vector is 0 or 1. The cost is the share of the weight
    gradient's norm that ``d h^T`` does not explain: 0 up to rounding if the update is the gradient
    of one sample.
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
        layer = first_linear(knowledge)
        if knowledge.steps > 1 and layer is not None and not adds_up(knowledge.local, layer):
            local = knowledge.local
            names = {
                "unknown": "an unknown optimiser",
                "sgd": "sgd with its bias treated otherwise",
            }
            what = names.get(local.optimizer, local.optimizer)
            return (
                f"{self.name} needs a sum of the gradients of {layer}, and {knowledge.steps} local "
                f"steps of {what} do not send one"
            )
        # A recommender scales a user's vector and drops entries, which keeps its zeros.
        others = len(knowledge.input_shape) != 1
        if layer is None or (others and not enters_unchanged(knowledge, layer)):
            return (
                f"{self.name} needs a linear layer with bias that takes the sample first and "
                f"{type(knowledge.model).__name__} has none"
            )
        return None

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`."""
        facts, gradient = problem.knowledge, problem.gradient
        layer = first_linear(facts)
        assert layer is not None  # by :meth:`refuses`
        whole = completed(problem, layer)
        if whole is None:
            known = input_of(layer, gradient, problem.deviation)
        else:
            known = whole.input
            gradient = gradient | whole.gradient(layer)
        entering, error = known.value, known.error
        weight, bias = (
            gradient[joined(layer, "weight")].double(),
            gradient[joined(layer, "bias")].double(),
        )
        # Of a completed gradient, what is left of the entries that came.
        missed = weight - torch.outer(bias, entering) if whole is None else whole.missed
        unexplained = missed.norm() / weight.norm()
        if enters_unchanged(facts, layer):
            low, high = (bound.to(entering) for bound in facts.bounds)
            found = entering.reshape(facts.input_shape).clamp(low, high)
        else:
            found = self._items(facts, gradient, entering)
        labels = facts.labels
        if labels is None:
            labels = recover_labels(problem.model, gradient, facts, problem.loss)
        origins = origin_findings(problem) if facts.steps == 1 else ()
        return Reconstruction(
            inputs=found[None].to(problem.gradient[joined(layer, "weight")].dtype),
            labels=labels,
            costs=[(0, float(unexplained))],
            findings=(
                *origins,
                f"input of {layer or 'the model'} in closed form, error {error:.1e}",
                *_open_entries(known),
            ),
        )

    def _items(self, facts: Knowledge, gradient: Tensors, entering: Tensor) -> Tensor:
        """1 at the user's items, else 0: ``(items,)``."""
        noise = _standard_deviation(entering)
        least = max(STANDARD_DEVIATIONS * noise, ROUNDING * float(entering.abs().max()))
        found = entering.abs() > least
        output = _output_bias(facts)
        if output is not None:
            entries = gradient[output].double()
            # Without noise the sign decides: for popular items of a trained model it is near 0.
            least = STANDARD_DEVIATIONS * _standard_deviation(entries) if noise else 0.0
            rounding = ROUNDING * float(entries.abs().sum())
            if abs(float(entries.sum())) <= least * len(entries) ** 0.5 + rounding:
                found |= entries < -least
        return found.double()


def _open_entries(known: KnownInput) -> tuple[str, ...]:
    """What there is to say of entries of an input that are not known."""
    if known.known is None or known.complete:
        return ()
    share = float((~known.known).double().mean())
    return (f"{share:.1%} of its entries are not known, and as near 0 as their bounds allow",)


def _output_bias(knowledge: Knowledge) -> str | None:
    """The bias of the last linear layer, if it has one output for each entry of a sample."""
    layers = [(n, m) for n, m in knowledge.model.named_modules() if isinstance(m, nn.Linear)]
    name, last = layers[-1]
    fits = (last.out_features,) == tuple(knowledge.input_shape)
    return joined(name, "bias") if fits and last.bias is not None else None


def _standard_deviation(entries: Tensor) -> float:
    """A robust estimate of the noise's standard deviation, if most entries hold noise alone."""
    return MAD_TO_STANDARD_DEVIATION * float((entries - entries.median()).abs().median())
