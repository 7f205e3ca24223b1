"""What stands in one gradient: the layers peeled off from a known one on, and the image."""

import copy
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Problem, Report
from fedleak.attacks.closed_form.batch_unmixing import unmix
from fedleak.attacks.closed_form.estimates import Signal
from fedleak.attacks.closed_form.layer_inversion import peel
from fedleak.attacks.closed_form.linear import KnownInput, known_inputs
from fedleak.attacks.closed_form.min_variation import Remainder, smoothest_image
from fedleak.attacks.closed_form.noise import AGREEMENT, Head, restore_noise
from fedleak.attacks.module_calls import Call, calls_of, chain_to, same_entries
from fedleak.attacks.module_facts import draws, sharing_layers
from fedleak.models.noise import Noise, noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge

# What an image may leave unexplained of what is known, as a share of it. Where noise was added to
# the gradient or entries were cut from it, it is more, and where a solver has gone astray.
FITS = 1e-2


class Reading(NamedTuple):
    """What was read without a search.

    Args:
        image: the images, if it came to that, ``(samples, C, H, W)``.
        features: the input of the earliest layer whose input is known, by the layer's name.
        findings: how it went.
        evaluations: passes that it took.
        fits: whether what is known can be true of one image.
    """

    image: Tensor | None
    features: Tensors
    findings: list[str]
    evaluations: int = 0
    fits: bool = True


class Reader:
    """Reads one problem; on the CPU, where the solvers are.

    Args:
        problem: the problem, whose labels are known.
        solver_iterations: the most that a layer's solver takes.
        image_iterations: iterations in each stage to the smoothest image.
        soft_gates: whether that one is to match the gradients of layers before a ReLU, too.

    Attributes:
        begun: whether there is a layer whose input is known.
        noise: slot -> noise ``(samples, ...)``, of those whose noise is to be had.
        failed: the other slots.
        before: those of them that draw before the layer whose input is known.
        factor: what the gradient of the samples was multiplied with, as by a client that clips; 1
            where that is not to be told.
        findings: how it went so far.
    """

    def __init__(
        self, problem: Problem, *, solver_iterations: int, image_iterations: int, soft_gates: bool
    ) -> None:
        self._solver_iterations, self._image_iterations = solver_iterations, image_iterations
        self._soft_gates = soft_gates
        self._facts = problem.knowledge
        self._gradient = {name: value.double().cpu() for name, value in problem.gradient.items()}
        self._model = copy.deepcopy(problem.model).double().cpu()
        self._seed = int(torch.randint(2**31, (), generator=problem.generator))
        assert problem.knowledge.labels is not None
        labels = problem.knowledge.labels.cpu()
        self._batch = torch.zeros(problem.batch_shape, dtype=torch.float64), labels
        self.findings: list[str] = []
        self.noise: Tensors = {}
        self.failed: list[str] = []
        self.before: list[str] = []
        self.factor = 1.0
        # A forward pass in train mode moves batch-norm statistics.
        calls = calls_of(copy.deepcopy(self._model), self._facts.loss, self._batch)
        self._calls = [call._replace(module=self._model.get_submodule(call.name)) for call in calls]
        if self._facts.num_samples == 1:
            inputs = known_inputs(self._gradient, self._calls)
        else:
            unmixing = unmix(
                self._model, self._facts.loss, self._batch, self._calls, self._gradient,
                generator=problem.generator,
            )  # fmt: skip
            self.findings += unmixing.findings
            inputs = unmixing.inputs
        trusted = {name for name, known in inputs.items() if known.trusted}
        first = next((at for at, call in enumerate(self._calls) if call.name in trusted), None)
        self.begun = first is not None
        if first is None:
            self.findings.append("no input of a linear layer with bias stands in the gradient")
            return
        self._layer = self._calls[first]
        known, name = inputs[self._layer.name], self._layer.name
        value = known.value.reshape(self._layer.entering.shape)
        self._head = Head(self._model, self._facts.loss, self._batch, name, value)
        self._error = known.error
        slots = set(noise_slots(self._model))
        self.before = sorted({call.name for call in self._calls[:first]} & slots)
        if self._facts.num_samples > 1:
            self.noise, self.factor = unmixing.noise, unmixing.factor
            self._signal = self.factor * self._head.signal(self.noise)
        else:
            self.findings.append(f"input of {name} in closed form, error {known.error:.1e}")
            self._signal = self._signal_at(name).reshape(value.shape)
            self.noise, self.failed = self._restore(first, inputs)
        self.failed += self.before
        if self.failed:
            self.findings.append(f"the noise of {', '.join(self.failed)} is not to be had")

    def _signal_at(self, layer: str) -> Tensor:
        """The gradient in a known layer's input: exact, whatever is drawn behind it."""
        weight = self._model.get_parameter(f"{layer}.weight").detach()
        return self._gradient[f"{layer}.bias"] @ weight

    def _restore(self, first: int, inputs: dict[str, KnownInput]) -> tuple[Tensors, list[str]]:
        """Noise behind the known layer, and the slots whose noise is not to be had.

        It is restored from the last known layer in front of it, as those before may be perturbed.
        """
        calls = self._calls
        slot = next(
            (at for at in range(first, len(calls)) if isinstance(calls[at].module, Noise)), first
        )
        near = max(
            at
            for at in range(first, max(slot, first + 1))
            if calls[at].name in inputs and inputs[calls[at].name].trusted
        )
        name = calls[near].name
        value = inputs[name].value.reshape(calls[near].entering.shape)
        head = Head(self._model, self._facts.loss, self._batch, name, value)
        noise, failed = restore_noise(head, calls[near:], inputs)
        if failed:
            # Nothing can be checked, and what was restored may rest on what was not.
            return {}, [*noise, *failed]
        given, wanted = head.signal(noise), self._signal_at(name).reshape(value.shape)
        factor = float((given * wanted).sum() / given.square().sum())
        agrees = float((factor * given - wanted).norm() / wanted.norm()) <= AGREEMENT
        if not (agrees and factor > 0):
            # Something else is drawn behind the layer, or the labels are not these.
            self.findings.append(f"the gradient in the input of {name} is not what they explain")
            return {}, list(noise)
        self.factor = factor
        return noise, failed

    def read(self, report: Report) -> Reading:
        """Peel the layers off, and solve for what is before those that stay."""
        findings, value = self.findings, self._head.value
        features = {self._layer.name: value}
        calls = self._calls
        chain = chain_to(calls, self._layer.name, self._batch[0])
        if chain is None or not self._head.is_all():
            findings.append(f"the loss depends on more than the input of {self._layer.name}")
            return Reading(None, features, findings)
        nothing = torch.zeros_like(value, dtype=torch.bool)
        size = value.square().mean().sqrt()
        last = Signal(value, torch.full_like(value, self._error) * size, nothing, self._signal)
        often = Counter(call.name for call in calls)
        repeated = [call for call in chain if often[call.name] > 1 and _has_weights(call)]
        if repeated:
            findings.append(f"{repeated[-1].name} is called more than once")
            return Reading(None, features, findings)
        sharing = sharing_layers(self._model.named_modules())
        if shared := [call.name for call in chain if call.name in sharing]:
            findings.append(f"{shared[-1]} shares parameters with another layer")
            return Reading(None, features, findings)
        off, steps, reason = peel(
            chain, last, self._gradient,
            iterations=self._solver_iterations, seed=self._seed,
        )  # fmt: skip
        findings += [str(step) for step in steps]
        for call, found in off:
            if bool(found.known.all()) and often[call.name] == 1:
                features = {call.name: found.value}
        first = chain[0] if chain else self._layer
        if not same_entries(first.entering, self._batch[0]) or first.entered:
            findings.append(f"{first.name} is not given what a layer before it has left")
            return Reading(None, features, findings)
        if reason is None:
            image = off[-1][1] if off else last
            missing = float((~image.known).double().mean())
            but = f", but for {missing:.1%} of it" if missing else ""
            findings.append(f"the image is read without a search{but}")
            return Reading(within(image.value, self._facts), features, findings)
        findings.append(reason)
        rest = chain[: len(chain) - len(off)]
        drawing = [c.name for c in rest if isinstance(c.module, Noise) or draws(c.module)]
        if len(self._facts.input_shape) != 3 or drawing:
            findings.append(f"{drawing[0]} draws noise" if drawing else "the input is no image")
            return Reading(None, features, findings)
        signals = [last, *(found for _, found in off)]
        # A ReLU lets the gradient through where its input, which may be in doubt, is positive.
        through = bool(off) and isinstance(off[-1][0].module, nn.ReLU)
        low, high = (bound.double() for bound in self._facts.bounds)
        remainder = Remainder(
            rest,
            signals[-1],
            signals[-2].gradient if through else None,
            self._gradient,
            (low, high),
            self._batch[0].shape,
        )
        smoothest = smoothest_image(
            remainder, iterations=self._image_iterations, soft_gates=self._soft_gates,
            report=report,
        )  # fmt: skip
        doubts = int((~(signals[-1].known | signals[-1].at_most)).sum())
        findings.append(
            f"the smoothest image for {smoothest.equations} equations and {smoothest.bounds} upper "
            f"bounds of what leaves {remainder.layers[-1].name}, {doubts} outputs in doubt, "
            f"residual {smoothest.residual:.1e}"
        )
        if smoothest.residual > FITS:
            findings.append(
                "no image fits what is known: the gradient was changed, or a solver went astray"
            )
            return Reading(smoothest.image, features, findings, smoothest.evaluations, fits=False)
        return Reading(smoothest.image, features, findings, smoothest.evaluations)


def _has_weights(call: Call) -> bool:
    """Whether a call's module has weights of its own."""
    return next(call.module.parameters(), None) is not None


def within(image: Tensor, facts: Knowledge) -> Tensor:
    """An image as a batch of the sample's shape, its pixels within the valid range."""
    low, high = (bound.to(image) for bound in facts.bounds)
    return torch.minimum(torch.maximum(image.reshape(-1, *facts.input_shape), low), high)
