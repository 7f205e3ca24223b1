"""One update read in closed form: inputs of linear layers, noise, earlier layers and the image."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Problem, Report
from fedleak.attacks.closed_form.batch_unmixing import unmix
from fedleak.attacks.closed_form.estimates import Estimate
from fedleak.attacks.closed_form.layer_inversion import invert_layers
from fedleak.attacks.closed_form.linear import KnownInput, invertible_linear, known_inputs
from fedleak.attacks.closed_form.min_variation import RemainingLayers, min_variation_image
from fedleak.attacks.closed_form.noise import AGREEMENT, Head, restore_noise
from fedleak.attacks.closed_form.pool_choices import searchable
from fedleak.attacks.closed_form.pooled_convolution import pooled_convolution
from fedleak.attacks.closed_form.pooled_trunk import before_pooling
from fedleak.attacks.closed_form.rank_one import completed
from fedleak.attacks.closed_form.smooth_image import MISFIT, KnownTrunk, smooth_image
from fedleak.attacks.closed_form.trunk import Trunk
from fedleak.attacks.module_calls import Call, calls_of, chain_to, same_entries
from fedleak.attacks.module_facts import draws, sharing_layers
from fedleak.models.noise import Noise, noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.naming import joined

# Largest relative residual of what is known at which an image counts as a fit. It is larger if
# noise was added to the gradient or entries were pruned, and if a solver did not converge.
FITS = 1e-2
# The same of an image of a smooth spectrum, which is a local minimum near the true one.
SMOOTH_FITS = 3e-2
# Share of all gradients before a layer below which a parameter's gradient is not matched: that of a
# bias before a batch norm is rounding.
NEGLIGIBLE = 1e-4


class Reading(NamedTuple):
    """What was recovered in closed form.

    Args:
        image: the images, ``(samples, C, H, W)``; None if they were not recovered.
        features: the input of the earliest layer whose input is known, by the layer's name.
        findings: one sentence per step on how it went.
        evaluations: number of forward and backward passes.
        fits: whether there is an image that agrees with what is known.
    """

    image: Tensor | None
    features: Tensors
    findings: list[str]
    evaluations: int = 0
    fits: bool = True


@dataclass(frozen=True)
class KnownLayer:
    """The earliest layer whose input is known, and the noise that is known.

    Args:
        call: the layer's call.
        error: relative standard error of its input.
        head: the model from the layer on, at its input.
        gradient: gradient of the client's loss with respect to the input, ``(samples, ...)``.
        noise: slot -> noise ``(samples, ...)``, for the slots whose noise was recovered.
        failed: the other slots.
        before: those of the other slots that draw before the layer.
        factor: the factor by which the client scaled the gradient, as by clipping; 1 if it cannot
            be determined.
    """

    call: Call
    error: float
    head: Head
    gradient: Tensor
    noise: Tensors
    failed: list[str]
    before: list[str]
    factor: float


class Reader:
    """Reads one update in closed form, on the CPU.

    Args:
        problem: the problem, with known labels.
        solver_iterations: maximum number of iterations of the solver of a layer.
        image_iterations: maximum number of iterations in each stage of the minimum total variation
            image.
        soft_gates: whether the minimum total variation image is to match the gradients of layers
            before a ReLU as well.

    Attributes:
        findings: one sentence per step so far.
    """

    def __init__(
        self, problem: Problem, *, solver_iterations: int, image_iterations: int, soft_gates: bool
    ) -> None:
        self._solver_iterations, self._image_iterations = solver_iterations, image_iterations
        self._soft_gates = soft_gates
        self._facts, self._generator = problem.knowledge, problem.generator
        self._gradient = {name: value.double().cpu() for name, value in problem.gradient.items()}
        self._model = copy.deepcopy(problem.model).double().cpu()
        self._seed = int(torch.randint(2**31, (), generator=problem.generator))
        assert problem.knowledge.labels is not None
        labels = problem.knowledge.labels.cpu()
        labels = labels.double() if labels.is_floating_point() else labels
        self._batch = torch.zeros(problem.batch_shape, dtype=torch.float64), labels
        self.findings: list[str] = []
        # A forward pass in training mode updates batch-norm statistics.
        calls = calls_of(copy.deepcopy(self._model), self._facts.loss, self._batch)
        self._calls = [call._replace(module=self._model.get_submodule(call.name)) for call in calls]
        self._known = {
            n: known.cpu() for n in self._gradient if (known := problem.known(n)) is not None
        }
        self._rows: Tensors = {}  # layer -> where its output's gradient is known, if not everywhere
        self._completed = self._complete(problem) if problem.knowledge.num_samples == 1 else {}

    def _complete(self, problem: Problem) -> dict[str, KnownInput]:
        """Complete the linear layers' gradients of which a told defence changed entries.

        Returns:
            The inputs of these layers, by the layers' names.
        """
        found = {}
        for call in invertible_linear(self._gradient, self._calls, 1):
            whole = completed(problem, call.name)
            if whole is not None:
                own = {name: value.cpu() for name, value in whole.gradient(call.name).items()}
                self._gradient |= own
                self._known = {n: known for n, known in self._known.items() if n not in own}
                if not bool(whole.rows.all()):
                    self._rows[call.name] = whole.rows.cpu()
                known = whole.input.known
                found[call.name] = whole.input._replace(
                    value=whole.input.value.cpu()[None],
                    known=None if known is None else known.cpu()[None],
                )
        return found

    def known_layer(self) -> KnownLayer | None:
        """The earliest layer whose input is known and the noise after it; None if there is none."""
        if self._facts.num_samples > 1:
            found = self._unmixed_layer()
        else:
            found = self._layer_of_one_sample()
        if found is None:
            self.findings.append("no linear-layer input can be computed from the gradient")
        elif found.failed:
            self.findings.append(f"the noise of {', '.join(found.failed)} cannot be recovered")
        return found

    def _unmixed_layer(self) -> KnownLayer | None:
        unmixing = unmix(
            self._model, self._facts.loss, self._batch, self._calls, self._gradient,
            generator=self._generator,
        )  # fmt: skip
        self.findings += unmixing.findings
        first = self._first_trusted(unmixing.inputs)
        if first is None:
            return None
        head = self._head(first, unmixing.inputs)
        gradient = unmixing.factor * head.input_gradient(unmixing.noise)
        before = self._slots_before(first)
        call = self._calls[first]
        return KnownLayer(
            call, unmixing.inputs[call.name].error, head, gradient, unmixing.noise, before, before,
            unmixing.factor,
        )  # fmt: skip

    def _layer_of_one_sample(self) -> KnownLayer | None:
        inputs = known_inputs(self._gradient, self._calls) | self._completed
        first = self._first_trusted(inputs)
        if first is None:
            return None
        call, head = self._calls[first], self._head(first, inputs)
        error = inputs[call.name].error
        self.findings.append(f"input of {call.name} in closed form, error {error:.1e}")
        gradient = self._input_gradient(call.name).reshape(head.value.shape)
        noise, failed, factor = self._restored_noise(first, inputs)
        if call.name in self._rows and not failed:
            gradient = factor * head.input_gradient(noise)
        before = self._slots_before(first)
        return KnownLayer(call, error, head, gradient, noise, failed + before, before, factor)

    def _first_trusted(self, inputs: dict[str, KnownInput]) -> int | None:
        """Index of the first call whose input is known well enough."""
        trusted = {n for n, known in inputs.items() if known.trusted and known.complete}
        return next((at for at, call in enumerate(self._calls) if call.name in trusted), None)

    def _head(self, at: int, inputs: dict[str, KnownInput]) -> Head:
        """The model from a call on, at its known input."""
        call = self._calls[at]
        value = inputs[call.name].value.reshape(call.input.shape)
        return Head(self._model, self._facts.loss, self._batch, call.name, value)

    def _slots_before(self, at: int) -> list[str]:
        """The noise slots that draw before a call."""
        return sorted({call.name for call in self._calls[:at]} & set(noise_slots(self._model)))

    def _input_gradient(self, layer: str) -> Tensor:
        """Gradient with respect to a linear layer's input, for one sample and any noise after it.

        The gradient of the bias is that of the output.
        """
        weight = self._model.get_parameter(joined(layer, "weight")).detach()
        return self._gradient[joined(layer, "bias")] @ weight

    def _restored_noise(
        self, first: int, inputs: dict[str, KnownInput]
    ) -> tuple[Tensors, list[str], float]:
        """Noise after a known layer, the slots whose noise cannot be recovered, and the factor.

        It is restored from the last known layer before the first slot: gradients of earlier layers
        may be perturbed.
        """
        calls = self._calls
        slot = next(
            (at for at in range(first, len(calls)) if isinstance(calls[at].module, Noise)), first
        )
        near = max(
            at
            for at in range(first, max(slot, first + 1))
            if calls[at].name in inputs
            and inputs[calls[at].name].trusted
            and inputs[calls[at].name].complete
        )
        name, head = calls[near].name, self._head(near, inputs)
        noise, failed = restore_noise(head, calls[near:], inputs)
        if failed:
            # Noise cannot be checked in part, and some of it may depend on what failed.
            return {}, [*noise, *failed], 1.0
        if name in self._rows:
            # Rows of which nothing is known have no output gradient to compare.
            given = head.output_gradient(noise).flatten()[self._rows[name]]
            wanted = self._gradient[joined(name, "bias")][self._rows[name]]
        else:
            given = head.input_gradient(noise)
            wanted = self._input_gradient(name).reshape(given.shape)
        factor = float((given * wanted).sum() / given.square().sum())
        agrees = float((factor * given - wanted).norm() / wanted.norm()) <= AGREEMENT
        if not (agrees and factor > 0):
            # Something else is drawn after the layer, or the labels are wrong.
            self.findings.append(
                f"labels and restored noise do not reproduce the gradient at the input of {name}"
            )
            return {}, list(noise), 1.0
        return noise, failed, factor

    def read(self, known: KnownLayer, report: Report) -> Reading:
        """Invert the layers before the known one, and fit an image to what precedes the rest.

        Args:
            known: from :meth:`known_layer`.
            report: called with the progress of the minimum total variation image.
        """
        findings, value = self.findings, known.head.value
        features = {known.call.name: value}
        chain = chain_to(self._calls, known.call.name, self._batch[0])
        if chain is None or not known.head.determines_loss():
            findings.append(f"the loss depends on more than the input of {known.call.name}")
            return Reading(None, features, findings)
        if ambiguous := self._ambiguous_gradient(chain):
            findings.append(ambiguous)
            return Reading(None, features, findings)
        smooth = self._known_trunk(known, chain)
        if smooth is not None:
            return self._smooth_image(smooth, known, features, report)
        error = torch.full_like(value, known.error) * value.square().mean().sqrt()
        last = Estimate(value, error, torch.zeros_like(value, dtype=torch.bool), known.gradient)
        inverted, steps, reason = invert_layers(
            chain, last, self._gradient,
            iterations=self._solver_iterations, seed=self._seed, known=self._known,
        )  # fmt: skip
        findings += [str(step) for step in steps]
        count = Counter(call.name for call in self._calls)
        for call, estimate in inverted:
            if bool(estimate.known.all()) and count[call.name] == 1:
                features = {call.name: estimate.value}
        if broken := self._break(chain, known):
            findings.append(broken)
            return Reading(None, features, findings)
        if reason is None:
            image = inverted[-1][1] if inverted else last
            missing = float((~image.known).double().mean())
            but = f", except for {missing:.1%} of it" if missing else ""
            findings.append(f"image recovered in closed form (no optimisation){but}")
            return Reading(within(image.value, self._facts), features, findings)
        findings.append(reason)
        rest = chain[: len(chain) - len(inverted)]
        drawing = [c.name for c in rest if isinstance(c.module, Noise) or draws(c.module)]
        if len(self._facts.input_shape) != 3 or drawing:
            findings.append(
                f"{drawing[0]} draws noise" if drawing else "the input is not an image"
            )  # fmt: skip
            return Reading(None, features, findings)
        remaining = self._remaining_layers(rest, inverted, last)
        return self._min_variation(remaining, features, report)

    def _break(self, chain: list[Call], known: KnownLayer) -> str | None:
        """Why the layers before a known one are no chain from the model's input on; else None."""
        first = chain[0] if chain else known.call
        if same_entries(first.input, self._batch[0]) and not first.input_version:
            return None
        return (
            f"the input of {first.name} is neither the model's input nor the unchanged output of "
            "the module before it"
        )

    def _known_trunk(self, known: KnownLayer, chain: list[Call]) -> KnownTrunk | None:
        """What precedes a known layer, where the layers cannot be inverted one by one; else None.

        So it is with functions between the modules, such as ``relu(conv(x))``, and max pooling.
        """
        facts = self._facts
        if facts.num_samples > 1 or len(facts.input_shape) != 3 or known.before:
            return None
        broken = self._break(chain, known)
        pooled = any(isinstance(call.module, nn.MaxPool2d) for call in chain)
        if broken is None and not pooled:
            return None
        trunk = Trunk(self._model, facts.loss, self._batch, known.call.name)
        if trunk.draws or not trunk.parameters:
            return None
        # Of a parameter that the head uses as well, or that is frozen, no gradient is matched.
        names = [name for name in trunk.parameters if name in self._gradient]
        behind = known.head.uses()
        weights = {name: self._gradient[name] for name in names if name not in behind}
        whole = torch.stack([value.norm() for value in weights.values()]).norm() if weights else 0
        weights = {n: value for n, value in weights.items() if value.norm() > NEGLIGIBLE * whole}
        if not bool(known.head.value.any()) or not bool(known.gradient.any()):
            return None
        self.findings += [broken] if broken else ["max pooling has no layer rule"]
        low, high = (bound.double() for bound in facts.bounds)
        return KnownTrunk(
            trunk, known.head.value, known.gradient, weights, (low, high), self._batch[0].shape
        )

    def _smooth_image(
        self, smooth: KnownTrunk, known: KnownLayer, features: Tensors, report: Report
    ) -> Reading:
        layer, smooth = self._before_pooling(smooth, known.call.name, report)
        found = smooth_image(smooth, iterations=self._image_iterations, report=report)
        findings = self.findings
        findings.append(
            f"smooth image from {found.equations} equations: relative error {found.residual:.1e} "
            f"of the input of {layer}, {found.misfit:.1e} of the gradients before it"
        )
        fits = found.residual <= SMOOTH_FITS and found.misfit <= MISFIT
        if not fits:
            findings.append("no smooth image was found that agrees with what is known")
        return Reading(found.image, features, findings, found.evaluations, fits=fits)

    def _before_pooling(
        self, known: KnownTrunk, layer: str, report: Report
    ) -> tuple[str, KnownTrunk]:
        """The layer whose input the image has to yield, and what is known of what precedes it.

        It is the convolution before the known layer, if its input follows from the choices of the
        max pooling in between.
        """
        model, facts = self._model, self._facts
        convolution = pooled_convolution(model, facts.loss, self._batch, self._calls, layer)
        if convolution is None or not searchable(convolution):
            return layer, known
        weight = f"{convolution.name}.weight"
        names = [call.name for call in self._calls]
        first = self._calls[names.index(convolution.name)].input
        if weight not in known.weights or same_entries(first, self._batch[0]):
            return layer, known
        before = Trunk(model, facts.loss, self._batch, convolution.name)
        if not before.parameters or weight in before.parameters:
            return layer, known
        shorter, choices = before_pooling(known, convolution, before, self._gradient, report)
        share = float(choices.known.double().mean())
        self.findings.append(
            f"input of {convolution.name} from {choices.equations} equations and the choices of "
            f"max pooling that fit them: residual {choices.residual**0.5:.1e}, known {share:.1%}"
        )
        if shorter is None:
            self.findings.append("no choices of max pooling were found that fit the gradient")
            return layer, known
        return convolution.name, shorter

    def _ambiguous_gradient(self, chain: list[Call]) -> str | None:
        """Why a parameter's gradient is not that of a single call in the chain; None if it is."""
        count = Counter(call.name for call in self._calls)
        if repeated := [c.name for c in chain if count[c.name] > 1 and _has_parameters(c)]:
            return f"{repeated[-1]} is called more than once"
        sharing = sharing_layers(self._model.named_modules())
        if shared := [call.name for call in chain if call.name in sharing]:
            return f"{shared[-1]} shares parameters with another layer"
        return None

    def _remaining_layers(
        self, rest: list[Call], inverted: list[tuple[Call, Estimate]], last: Estimate
    ) -> RemainingLayers:
        """The layers that were not inverted, and what is known after them."""
        estimates = [last, *(found for _, found in inverted)]
        # A ReLU passes the gradient where its input is positive, which may be undetermined.
        relu_follows = bool(inverted) and isinstance(inverted[-1][0].module, nn.ReLU)
        low, high = (bound.double() for bound in self._facts.bounds)
        return RemainingLayers(
            rest,
            estimates[-1],
            estimates[-2].gradient if relu_follows else None,
            self._gradient,
            (low, high),
            self._batch[0].shape,
            self._known,
        )

    def _min_variation(
        self, rest: RemainingLayers, features: Tensors, report: Report
    ) -> Reading:  # fmt: skip
        findings = self.findings
        found = min_variation_image(
            rest, iterations=self._image_iterations, soft_gates=self._soft_gates, report=report
        )
        undetermined = int((~rest.output.constrained).sum())
        findings.append(
            f"minimum total variation image from {found.equations} equations and {found.bounds} "
            f"upper bounds on the output of {rest.layers[-1].name}, {undetermined} outputs "
            f"undetermined, residual {found.residual:.1e}"
        )
        fits = found.residual <= FITS
        if not fits:
            findings.append(
                "no image fits the known values: the gradient was altered or a solver did not "
                "converge"
            )
        return Reading(found.image, features, findings, found.evaluations, fits=fits)


def _has_parameters(call: Call) -> bool:
    """Whether a call's module has parameters."""
    return next(call.module.parameters(), None) is not None


def within(image: Tensor, facts: Knowledge) -> Tensor:
    """Reshape an image to a batch of samples and clip it to the valid range.

    Args:
        image: the image, with as many entries as the samples.
        facts: gives the shape of a sample and the valid range.

    Returns:
        ``(samples, *input_shape)``.
    """
    low, high = (bound.to(image) for bound in facts.bounds)
    return torch.minimum(torch.maximum(image.reshape(-1, *facts.input_shape), low), high)
