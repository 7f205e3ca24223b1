"""Noise and image from one gradient in closed form, and by a search only where that ends."""

import copy
from collections import Counter
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Problem, Reconstruction, Report
from fedleak.attacks.calls import Call, calls_of, chain_to
from fedleak.attacks.closed_form import AGREEMENT, Head, KnownInput, known_inputs, restore_noise
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching import GradientMatching, Known
from fedleak.attacks.nra import NRA
from fedleak.attacks.peeling import Signal, peel
from fedleak.attacks.smoothest import Remainder, smoothest_image
from fedleak.attacks.unmixing import unmix
from fedleak.errors import require
from fedleak.models.noise import Noise, inject, noise_slots
from fedleak.updates import Knowledge, Tensors

# Of the gradient of what was found, as a share of the client's; that of an image that the equations
# do not determine is below.
DOUBTFUL = 0.5
# Layers that draw and are no noise slots.
DRAWING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class _Reading(NamedTuple):
    """What was read without a search.

    Args:
        image: the images, if it came to that, ``(samples, C, H, W)``.
        features: the input of the earliest layer whose input is known, by the layer's name.
        findings: how it went.
        evaluations: passes that it took.
    """

    image: Tensor | None
    features: Tensors
    findings: list[str]
    evaluations: int = 0


class ExactNRA(Attack):
    """Restores a bottleneck's noise in closed form and peels the layers before it off.

    Of one sample, the inputs of all linear layers with bias stand in the gradient, and with those
    around a bottleneck its noise. Of several samples those inputs are mixed there, and the model
    itself unmixes them, from the classifier on (:mod:`fedleak.attacks.unmixing`). With the inputs
    and the noise known, so is the loss's gradient at the earliest of these layers, and those before
    it come off one by one (:mod:`fedleak.attacks.peeling`). What follows depends on what the model
    and the update allow, and the findings say which it was:

    - the equations determine the images: they are read without a search;
    - they end before, as a layer has more inputs than equations (behind a ReLU, outputs of 0 are
      but upper bounds; of several samples there is but one gradient): the smoothest images that
      the layers left take to what is known of their output, a convex problem where one is left;
    - the layers are no chain: gradient matching by L-BFGS in float64, every layer by its own
      relative squared error, with the noise put in and known features matched;
    - no such input is known (several local steps, no bias, a defence's noise, as many samples as
      classes), or the layers are no chain and the noise is not to be had: a search as NRA's, with
      what is known.

    The cost is the relative squared error of the reconstruction's gradient, up to a factor common
    to all parameters and averaged over them; in the last case it is NRA's, and there is none of an
    image without its noise.

    Args:
        solver_iterations: the most that a layer's solver takes, at least 1.
        image_iterations: iterations of L-BFGS in each stage to the smoothest image.
        matching_steps: steps of L-BFGS, of up to 20 evaluations each.
        features: weight of the known features in the cost of the matching, at least 0.
        total_variation: weight of the total variation in the matching, at least 0.
        nra_iterations: iterations of NRA where nothing better can be done.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "exact_nra"
    paper: ClassVar[str] = (
        "of this project, from Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715, "
        "and R-GAP, ICLR 2021, https://arxiv.org/abs/2010.07733"
    )
    needs: ClassVar[str] = "a gradient, biased linear layers around the noise"
    restores_noise: ClassVar[bool] = True

    def __init__(
        self,
        *,
        solver_iterations: int = 4000,
        image_iterations: int = 200,
        matching_steps: int = 75,
        features: float = 10.0,
        total_variation: float = 1e-5,
        nra_iterations: int = 7000,
    ) -> None:
        for name, count in (
            ("solver_iterations", solver_iterations), ("image_iterations", image_iterations),
            ("matching_steps", matching_steps), ("nra_iterations", nra_iterations),
        ):  # fmt: skip
            require(count >= 1, f"Expected `{name}` to be at least 1, got {count}.")
        for name, weight in (("features", features), ("total_variation", total_variation)):
            require(weight >= 0, f"Expected `{name}` to be at least 0, got {weight}.")
        self.solver_iterations = solver_iterations
        self.image_iterations = image_iterations
        self.matching_steps = matching_steps
        self.features = features
        self.total_variation = total_variation
        self.nra_iterations = nra_iterations

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`."""
        facts = problem.knowledge
        if facts.labels is None:
            labels = recover_labels(problem.model, problem.gradient, facts)
            problem = replace(problem, knowledge=replace(facts, labels=labels))
        if facts.local_steps > 1:
            reason = f"the update is of {facts.local_steps} local steps"
            return self._search(problem, Known(), report, [reason])
        reading = _Reader(self, problem)
        if not reading.begun:
            return self._search(problem, Known(), report, reading.findings)
        noise, failed = reading.noise, reading.failed
        found = reading.read(report)
        if found.image is not None:
            return _reconstruction(problem, found.image, noise, found.findings, found.evaluations)
        if failed:
            return self._search(problem, Known(noise=noise), report, found.findings)
        matching = _Informed(self, Known(noise, found.features))
        result = matching.run(problem, report)
        image = _within(result.inputs.double().cpu(), facts)
        found.findings.append(f"gradient matching from there, {result.iterations} steps")
        return _reconstruction(problem, image, noise, found.findings, result.iterations)

    def _search(
        self, problem: Problem, known: Known, report: Report, findings: list[str]
    ) -> Reconstruction:
        search = _Search(self.nra_iterations, known)
        found = search.run(problem, report)
        return replace(found, findings=(*findings, "so a search as nra's, with what is known"))


class RGAP(ExactNRA):
    """The same for models that draw no noise: layers are peeled off from the classifier on.

    Where a layer's equations do not determine its input, the published attack takes the solution of
    least norm; here it goes on as :class:`ExactNRA` does.
    """

    name: ClassVar[str] = "rgap"
    paper: ClassVar[str] = "Zhu and Blaschko, R-GAP, ICLR 2021, https://arxiv.org/abs/2010.07733"
    needs: ClassVar[str] = "a gradient, a biased linear layer, no noise"
    restores_noise: ClassVar[bool] = False

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        if noise_slots(knowledge.model):
            return (
                f"{self.name} knows of no noise and {type(knowledge.model).__name__} draws some: "
                "try exact_nra"
            )
        return super().refuses(knowledge)


class _Search(NRA):
    """NRA from what is known."""

    def __init__(self, iterations: int, facts: Known) -> None:
        super().__init__(iterations=iterations)
        self._facts = facts

    def known(self, problem: Problem) -> Known:
        """See :meth:`GradientMatching.known`."""
        return self._facts


class _Informed(GradientMatching):
    """Gradient matching with noise and features that are known."""

    name: ClassVar[str] = "informed"
    paper: ClassVar[str] = ExactNRA.paper
    needs: ClassVar[str] = ExactNRA.needs

    def __init__(self, settings: ExactNRA, facts: Known) -> None:
        super().__init__(
            iterations=settings.matching_steps, learning_rate=1.0, optimizer="lbfgs", signed=False,
            cost="relative_error", total_variation=settings.total_variation, decay=False,
            features=settings.features, precision="float64", box=False,
        )  # fmt: skip
        self._facts = facts

    def known(self, problem: Problem) -> Known:
        """See :meth:`GradientMatching.known`."""
        return self._facts


class _Reader:
    """Reads one problem; on the CPU, where the solvers are.

    Attributes:
        begun: whether there is a layer whose input is known.
        noise: slot -> noise ``(samples, ...)``, of those whose noise is to be had.
        failed: the other slots.
        findings: how it went so far.
    """

    def __init__(self, settings: ExactNRA, problem: Problem) -> None:
        self._settings, self._facts = settings, problem.knowledge
        self._gradient = {name: value.double().cpu() for name, value in problem.gradient.items()}
        self._model = copy.deepcopy(problem.model).double().cpu()
        self._seed = int(torch.randint(2**31, (), generator=problem.generator))
        assert problem.knowledge.labels is not None
        labels = problem.knowledge.labels.cpu()
        self._batch = torch.zeros(problem.batch_shape, dtype=torch.float64), labels
        self.findings: list[str] = []
        self.noise: Tensors = {}
        self.failed: list[str] = []
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
        drawn = {call.name for call in self._calls[:first]} & set(noise_slots(self._model))
        if self._facts.num_samples > 1:
            self.noise, self.failed = unmixing.noise, sorted(drawn)
            # The client's gradient may have been clipped.
            self._signal = unmixing.factor * self._head.signal(self.noise)
        else:
            self.findings.append(f"input of {name} in closed form, error {known.error:.1e}")
            self._signal = self._signal_at(name).reshape(value.shape)
            self.noise, self.failed = self._restore(first, inputs)
            self.failed += sorted(drawn)
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
        if noise and not failed:
            given, wanted = head.signal(noise), self._signal_at(name).reshape(value.shape)
            # A client that clips multiplies all with one factor.
            factor = (given * wanted).sum() / given.square().sum()
            if not float((factor * given - wanted).norm() / wanted.norm()) <= AGREEMENT:
                # Something else is drawn behind the layer, or the labels are not these.
                return {}, list(noise)
        return noise, failed

    def read(self, report: Report) -> _Reading:
        """Peel the layers off, and solve for what is before those that stay."""
        findings, value = self.findings, self._head.value
        features = {self._layer.name: value}
        calls = self._calls
        chain = chain_to(calls, self._layer.name, self._batch[0])
        if chain is None or not self._head.is_all():
            findings.append(f"the loss depends on more than the input of {self._layer.name}")
            return _Reading(None, features, findings)
        nothing = torch.zeros_like(value, dtype=torch.bool)
        size = value.square().mean().sqrt()
        last = Signal(value, torch.full_like(value, self._error) * size, nothing, self._signal)
        often = Counter(call.name for call in calls)
        repeated = [call for call in chain if often[call.name] > 1 and _has_weights(call)]
        if repeated:
            findings.append(f"{repeated[-1].name} is called more than once")
            return _Reading(None, features, findings)
        off, steps, reason = peel(
            chain, last, self._gradient,
            iterations=self._settings.solver_iterations, seed=self._seed,
        )  # fmt: skip
        findings += [str(step) for step in steps]
        for call, found in off:
            if bool(found.known.all()) and often[call.name] == 1:
                features = {call.name: found.value}
        first = chain[0] if chain else self._layer
        if first.entering is not self._batch[0] or first.entered:
            findings.append(f"{first.name} is not given what a layer before it has left")
            return _Reading(None, features, findings)
        if reason is None:
            image = off[-1][1].value if off else value
            findings.append("the image is read without a search")
            return _Reading(_within(image, self._facts), features, findings)
        findings.append(reason)
        rest = chain[: len(chain) - len(off)]
        drawing = [c.name for c in rest if isinstance(c.module, (Noise, *DRAWING))]
        if len(self._facts.input_shape) != 3 or drawing:
            findings.append(f"{drawing[0]} draws noise" if drawing else "the input is no image")
            return _Reading(None, features, findings)
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
        )
        smoothest = smoothest_image(
            remainder, iterations=self._settings.image_iterations, report=report
        )
        doubts = int((~(signals[-1].known | signals[-1].at_most)).sum())
        findings.append(
            f"the smoothest image for {smoothest.equations} equations and {smoothest.bounds} upper "
            f"bounds of what leaves {remainder.layers[-1].name}, {doubts} outputs in doubt"
        )
        return _Reading(smoothest.image, features, findings, smoothest.evaluations)


def _has_weights(call: Call) -> bool:
    """Whether a call's module has weights of its own."""
    return next(call.module.parameters(), None) is not None


def _within(image: Tensor, facts: Knowledge) -> Tensor:
    low, high = (bound.to(image) for bound in facts.bounds)
    return torch.minimum(torch.maximum(image.reshape(-1, *facts.input_shape), low), high)


def _reconstruction(
    problem: Problem, image: Tensor, noise: Tensors, findings: list[str], iterations: int
) -> Reconstruction:
    like = next(iter(problem.gradient.values()))
    labels = problem.knowledge.labels
    assert labels is not None
    # Without the noise there is nothing to compare with.
    whole = set(noise) == set(problem.noise_shapes)
    costs = [(iterations, _relative_error(problem, image, noise))] if whole else []
    if costs and costs[0][1] > DOUBTFUL:
        findings.append(
            f"its gradient is not the client's (relative squared error {costs[0][1]:.1e}): "
            "something of this is wrong"
        )
    return Reconstruction(
        inputs=image.to(like),
        labels=labels,
        noise={slot: value.to(like) for slot, value in noise.items()},
        costs=costs,
        iterations=iterations,
        findings=tuple(findings),
    )


def _relative_error(problem: Problem, image: Tensor, noise: Tensors) -> float:
    """The mean over the parameters of the squared error of an image's gradient over its norm.

    Up to a factor that is common to all, since a client may clip.
    """
    model = copy.deepcopy(problem.model).requires_grad_()
    like = next(iter(problem.gradient.values()))
    image = image.to(like)
    with inject(model, {slot: value.to(like) for slot, value in noise.items()}):
        loss = problem.knowledge.loss(model, (image, problem.knowledge.labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    pairs = [
        (value.double(), problem.gradient[name].double())
        for name, value in zip(names, found, strict=True)
    ]
    common = sum(float((value * sent).sum()) for value, sent in pairs)
    common /= max(sum(float(value.square().sum()) for value, _ in pairs), 1e-300)
    errors = [
        ((common * value - sent).norm() / sent.norm()).square()
        for value, sent in pairs
        if bool(sent.any())
    ]
    return float(torch.stack(errors).mean())
