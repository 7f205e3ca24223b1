"""Analytic attacks: noise and images layer by layer, with gradient matching as the fallback."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.base import (
    Family,
    JointAttack,
    LocalSteps,
    NoiseUse,
    Problem,
    Reconstruction,
    Report,
)
from fedleak.attacks.closed_form.linear import input_of
from fedleak.attacks.closed_form.rank_one import completed
from fedleak.attacks.closed_form.reader import Reader, within
from fedleak.attacks.gradient_origin import adds_up, origin_findings
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching.engine import GradientMatching, Known
from fedleak.attacks.matching.local_steps import MOST_STEPS, cannot_simulate, order_findings
from fedleak.attacks.module_facts import drawing_layers, enters_unchanged, first_linear
from fedleak.attacks.nra import NRA
from fedleak.attacks.whole_batch import inverted_by_features, read_whole
from fedleak.errors import require
from fedleak.models.noise import inject
from fedleak.updates.files import Tensors

# Relative squared error of a reconstruction's gradient above which the reconstruction has failed.
# Images of minimum total variation, which the equations do not determine, stay below.
FAILED_ABOVE = 0.5
# Relative squared error below which L-BFGS has converged: by orders of magnitude where it does, and
# above where the kinks of a ReLU or noise added to the gradient have led it to a local minimum.
CONVERGED_BELOW = 1e-3
# A parameter's gradient below this share of the whole gradient's norm is rounding, such as that of
# a bias before a batch norm.
NEGLIGIBLE = 1e-6


@dataclass(kw_only=True, eq=False, repr=False)
class ExactNRA(JointAttack):
    """Recovers a bottleneck's noise in closed form and inverts the layers before it one by one.

    For one sample, the gradient determines the inputs of all linear layers with bias (Phong et al.
    2018, section III), and the inputs of the layers around a bottleneck determine its noise. For
    several samples these inputs are mixed; they are separated from the classifier on
    (:mod:`fedleak.attacks.closed_form.batch_unmixing`). Inputs and noise give the gradient of the
    loss in the input of the earliest of these layers, and the layers before it are inverted
    recursively, as in R-GAP (:mod:`fedleak.attacks.closed_form.layer_inversion`). How the attack
    continues depends on the model and the update; the findings say which case applied:

    - The equations determine the images: they are solved, with no optimisation.
    - A layer has more inputs than equations (outputs of 0 of a ReLU are only upper bounds; of
      several samples there is only one gradient): the images of minimum total variation that the
      remaining layers map to what is known of their output, a convex problem if one layer remains.
    - The layers before the known one have functions between them, or max pooling: for one image,
      the image of a smooth spectrum that yields the known input and the gradients before it
      (:mod:`fedleak.attacks.closed_form.smooth_image`). Where a convolution, ReLU and max pooling
      end them, the entries that the pooling took are searched first, for which the convolution's
      input follows from linear equations (:mod:`fedleak.attacks.closed_form.pool_choices`).
    - The layers are no chain otherwise: gradient matching by L-BFGS in float64 with the relative
      squared error of each layer, known noise injected and known features in the cost.
    - Noise is drawn before the known layers (a convolutional bottleneck, which has no biases): the
      same gradient matching, over the images and that noise together.
    - Fallback to NRA, with the known noise, and started from the images of that gradient matching
      if no noise is missing. It applies if no layer's input is known (no bias, much noise of a
      defence, signs instead of a gradient, as many samples as classes), if noise behind the known
      layers cannot be recovered, if the gradient matching does not converge, if a layer draws
      random numbers outside the noise slots (a dropout in train mode), or if noise is missing and
      the samples are no images.
    - Fallback to NRA from the image of minimum total variation or of a smooth spectrum, if no image
      fits the equations: noise was added to the gradient, entries were cut from it, or a solver did
      not converge.

    A batch is read whole where every sample of it can be certified: by
    :class:`fedleak.attacks.exact_batch.ExactBatch` where the model begins with linear layers with
    ReLU; where it ends with a linear layer, ReLU and a linear layer behind others, by each sample's
    features, from which it is inverted alone (:mod:`fedleak.attacks.whole_batch`).

    The closed form attacks updates one by one; those that fall back to NRA are attacked together.

    For several local steps of SGD on one image, and for one step of Adam and its kin, the closed
    form gives the image if the first layer is linear with bias. Otherwise one such step is left to
    NRA, which knows the bounds of the gradient's entries. Of several steps, images and the noise of
    every step are optimised together through all steps, if they are no more than 32, with NRA as
    fallback.

    The cost is the mean over the parameters of the relative squared error of the reconstruction's
    gradient, up to one common factor. That of the fallback is NRA's (cosine distance), that of
    simulated steps has no common factor. There is none where the noise is unknown, or where the
    image of several steps was recovered in closed form.

    Args:
        solver_iterations: maximum number of iterations of a layer's least-squares solver, at
            least 1.
        image_iterations: iterations of L-BFGS in each stage of minimising the total variation, or
            of the search of a smooth image, at least 1.
        soft_gates: whether the image of minimum total variation is then fitted to the gradients of
            the layers before a ReLU, through a smooth approximation of the ReLU that is sharpened.
        matching_steps: L-BFGS steps of the gradient matching, of up to 20 evaluations each, at
            least 1.
        joint_steps: the same where noise is optimised together with the images, and for simulated
            local steps, at least 1.
        features: weight of the known features in the cost of the gradient matching, at least 0.
        total_variation: weight of the total variation in the gradient matching, at least 0.
        nra_iterations: iterations of NRA where it is the fallback, at least 1.
        at_once: number of updates that the fallback attacks in one batched computation, at least 1.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "exact_nra"
    paper: ClassVar[str] = (
        "this project, after Phong et al., TIFS 2018, https://eprint.iacr.org/2017/715, "
        "and R-GAP, ICLR 2021, https://arxiv.org/abs/2010.07733"
    )
    family: ClassVar[Family] = "analytic"
    needs: ClassVar[str] = "a gradient, biased linear layers around the noise"
    local_steps: ClassVar[LocalSteps] = "simulated"
    noise: ClassVar[NoiseUse] = "required"
    restores_noise: ClassVar[bool] = True
    boxed: ClassVar[bool] = True

    solver_iterations: int = 4000
    image_iterations: int = 200
    soft_gates: bool = False
    matching_steps: int = 75
    joint_steps: int = 300
    features: float = 10.0
    total_variation: float = 1e-5
    nra_iterations: int = 7000
    at_once: int = 8

    def __post_init__(self) -> None:
        for name in (
            "solver_iterations", "image_iterations", "matching_steps", "joint_steps",
            "nra_iterations", "at_once",
        ):  # fmt: skip
            count = getattr(self, name)
            require(count >= 1, f"Expected `{name}` to be at least 1, got {count}.")
        for name in ("features", "total_variation"):
            weight = getattr(self, name)
            require(weight >= 0, f"Expected `{name}` to be at least 0, got {weight}.")

    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Attack updates one by one in closed form, then the unresolved ones together by NRA.

        See :meth:`Attack.run_many`; the results of the closed form come first.
        """
        unresolved: list[tuple[int, _Unresolved, float]] = []
        for index, problem in enumerate(problems):
            started = time.perf_counter()
            found = self._attack_one(problem, report)
            seconds = time.perf_counter() - started
            if isinstance(found, _Unresolved):
                unresolved.append((index, found, seconds))
            else:
                yield index, replace(found, seconds=seconds)
        fallback = _Fallback(self, [item for _, item, _ in unresolved])
        for at, found in fallback.run_many(fallback.problems, report):
            index, item, seconds = unresolved[at]
            findings, seconds = (*item.findings, item.next_step), seconds + found.seconds
            yield index, replace(found, findings=findings, seconds=seconds)

    def _attack_one(self, problem: Problem, report: Report) -> "Reconstruction | _Unresolved":
        facts, altered = problem.knowledge, problem.deviation or problem.entries
        if facts.num_samples > 1 and facts.is_one_step and not altered:
            whole = self._attack_whole(problem, report)
            if whole is not None:
                return whole
        if facts.labels is None:
            labels = recover_labels(problem.model, problem.gradient, facts, problem.loss)
            problem = replace(problem, knowledge=replace(facts, labels=labels))
        if not facts.is_one_step:
            order = order_findings(facts)
            return self._attack_local_steps(problem, report, order)
        origins = origin_findings(problem)
        if problem.deviation:
            return self._attack_inverted_step(problem, list(origins))
        reading = self._reader(problem)
        reading.findings += origins
        layer = reading.known_layer()
        if layer is None:
            return _Unresolved(problem, Known(), reading.findings)
        noise, failed = layer.noise, layer.failed
        found = reading.read(layer, report)
        if not found.fits:
            return _Unresolved(problem, Known(noise, begin=found.image), found.findings)
        if found.image is not None:
            return _reconstruction(problem, found.image, noise, found.findings, found.evaluations)
        if drawing := drawing_layers(problem.model):
            found.findings.append(f"{drawing[0]} draws new random numbers in every forward pass")
            return _Unresolved(problem, Known(noise), found.findings)
        drawn_behind = bool(failed) and failed != layer.before
        if drawn_behind or (failed and len(facts.input_shape) != 3):
            return _Unresolved(problem, Known(noise), found.findings)
        steps = self.joint_steps if failed else self.matching_steps
        # The matching's cost, unlike that of this attack, has no common factor to fit.
        gradient = {name: value / layer.factor for name, value in problem.gradient.items()}
        matching = _LBFGSMatching(self, steps, Known(noise, found.features))
        result = matching.run(replace(problem, gradient=gradient), report)
        image = within(result.inputs.double().cpu(), facts)
        what = " of image and noise" if failed else ""
        found.findings.append(f"gradient matching by L-BFGS{what}, {result.iterations} steps")
        missed = _relative_error(problem, image, result.noise)
        if not missed <= CONVERGED_BELOW:
            found.findings.append(_not_converged(missed))
            # With all noise known its image is a start; else it is in a wrong local minimum.
            known = Known(noise, begin=None if failed else image)
            return _Unresolved(problem, known, found.findings)
        return _reconstruction(problem, image, result.noise, found.findings, result.iterations)

    def _reader(self, problem: Problem) -> Reader:
        return Reader(
            problem,
            solver_iterations=self.solver_iterations,
            image_iterations=self.image_iterations,
            soft_gates=self.soft_gates,
        )

    def _attack_whole(self, problem: Problem, report: Report) -> Reconstruction | None:
        """A batch in which every sample is certified; None if it is no such."""
        found = read_whole(problem, report)
        if found is not None:
            return found
        alone = inverted_by_features(problem, self._reader, report)
        if alone is None:
            return None
        facts = replace(problem.knowledge, labels=alone.labels)
        images = within(alone.images, facts)
        return _reconstruction(
            replace(problem, knowledge=facts), images, {}, alone.findings, alone.evaluations
        )

    def _attack_inverted_step(
        self, problem: Problem, findings: list[str]
    ) -> "Reconstruction | _Unresolved":
        """An update that tells the gradient's entries only up to a bound, some only by sign."""
        image = self._first_input(problem, findings)
        if image is not None:
            return _reconstruction(problem, image, {}, findings, 0)
        findings.append("the equations of the layers need the gradient itself")
        return _Unresolved(problem, Known(), findings)

    def _first_input(self, problem: Problem, findings: list[str]) -> Tensor | None:
        """The image in closed form, if the first layer takes it; what was found is added."""
        facts = problem.knowledge
        layer = first_linear(facts)
        if facts.num_samples > 1:
            findings.append(f"on {facts.num_samples} images")
        elif layer is None or not enters_unchanged(facts, layer):
            findings.append("the first layer is not a linear layer with bias that takes the image")
        elif facts.steps == 1 or adds_up(facts.local, layer):
            whole = completed(problem, layer)
            entering = (
                input_of(layer, problem.gradient, problem.deviation)
                if whole is None
                else whole.input
            )
            findings.append(f"input of {layer} in closed form, error {entering.error:.1e}")
            if entering.trusted:
                # Every step's weight gradient is an outer product with the image; so is their sum.
                noise = "; the noise of the steps is not recovered" if problem.noise_shapes else ""
                findings.append(f"image recovered in closed form (no optimisation){noise}")
                return within(entering.value.cpu(), facts)
        return None

    def _attack_local_steps(
        self, problem: Problem, report: Report, order: Sequence[str]
    ) -> "Reconstruction | _Unresolved":
        facts = problem.knowledge
        several = facts.number_of_clients > 1
        steps = f"{facts.steps} local step{'s' * (facts.steps > 1)}"
        each = f" of each of {facts.number_of_clients} clients" * several
        findings = [f"the update is of {steps}{each}"]
        image = self._first_input(problem, findings)
        if image is not None:
            return _reconstruction(problem, image, {}, findings, 0)
        reason = cannot_simulate(facts, problem.noise_shapes)
        if reason is None and facts.total_steps > MOST_STEPS:
            reason = f"more than {MOST_STEPS} are too many to simulate"
        if reason is not None:
            what = "mean gradient" if facts.local.is_linear else "change of weights, no gradient,"
            findings.append(f"their {what} is attacked, as {reason}")
            return _Unresolved(problem, Known(), findings)
        findings += order
        own = ", each with its own noise" if problem.noise_shapes else ""
        findings.append(f"gradient matching by L-BFGS, with all steps simulated{own}")
        found = _LBFGSMatching(self, self.joint_steps, Known()).run(problem, report)
        if not found.cost <= CONVERGED_BELOW:
            findings.append(_not_converged(found.cost))
            return _Unresolved(problem, Known(), findings)
        image = within(found.inputs.double().cpu(), facts)
        return replace(found, inputs=image.to(found.inputs), findings=tuple(findings))


class RGAP(ExactNRA):
    """Inverts a model without noise layer by layer, from the earliest known layer on.

    The published attack inverts all layers recursively from the loss on, with biases or without
    (Zhu and Blaschko 2021). This one begins at the earliest linear layer whose input follows from
    its bias, and falls back to gradient matching if there is none. Where a layer's equations do not
    determine its input, the published attack takes the solution of minimum norm; this one continues
    as :class:`ExactNRA` does.
    """

    name: ClassVar[str] = "rgap"
    paper: ClassVar[str] = "Zhu and Blaschko, R-GAP, ICLR 2021, https://arxiv.org/abs/2010.07733"
    needs: ClassVar[str] = "a gradient, a biased linear layer, no noise"
    noise: ClassVar[NoiseUse] = "refused"
    restores_noise: ClassVar[bool] = False


class _Unresolved(NamedTuple):
    """An update left to gradient matching by NRA, with what is known so far."""

    problem: Problem
    known: Known
    findings: list[str]

    @property
    def next_step(self) -> str:
        noise = ", with the known noise" if self.known.noise else ""
        start = ", started from this image" if self.known.begin is not None else ""
        return f"fallback to nra{noise}{start}"


class _Fallback(NRA):
    """NRA with what is known of each update."""

    def __init__(self, settings: ExactNRA, unresolved: Sequence[_Unresolved]) -> None:
        # Known features do not help its signed steps: with them the reconstructions were worse.
        super().__init__(iterations=settings.nra_iterations, at_once=settings.at_once)
        self.problems = [item.problem for item in unresolved]
        self._known = {id(item.problem): item.known for item in unresolved}

    def known(self, problem: Problem) -> Known:
        """See :meth:`GradientMatching.known`."""
        return self._known[id(problem)]


class _LBFGSMatching(GradientMatching):
    """Gradient matching by L-BFGS in float64, with the relative squared error of each parameter.

    Unknown noise is optimised together with the images, through all local steps.
    """

    name: ClassVar[str] = "lbfgs_matching"
    paper: ClassVar[str] = ExactNRA.paper
    needs: ClassVar[str] = ExactNRA.needs
    restores_noise: ClassVar[bool] = True

    def __init__(self, settings: ExactNRA, steps: int, facts: Known) -> None:
        super().__init__(
            iterations=steps, learning_rate=1.0, optimizer="lbfgs", signed=False,
            cost="relative_error", total_variation=settings.total_variation, decay=False,
            features=settings.features, precision="float64", box=False, simulate_steps=True,
        )  # fmt: skip
        self._facts = facts

    def known(self, problem: Problem) -> Known:
        """See :meth:`GradientMatching.known`."""
        return self._facts


def _reconstruction(
    problem: Problem, image: Tensor, noise: Tensors, findings: list[str], iterations: int
) -> Reconstruction:
    like = next(iter(problem.gradient.values()))
    labels = problem.knowledge.labels
    assert labels is not None
    # Without the noise, with several steps, or of a gradient that is known only up to bounds, there
    # is none to compare, nor with random numbers that are not restored, as of a dropout.
    exact = problem.knowledge.steps == 1 and not problem.deviation
    comparable = exact and set(noise) == set(problem.noise_shapes)
    comparable = comparable and not _draws(problem, image.to(like), noise)
    costs = [(iterations, _relative_error(problem, image, noise))] if comparable else []
    if costs and costs[0][1] > FAILED_ABOVE:
        findings.append(
            "the reconstruction does not reproduce the client's gradient (relative squared error "
            f"{costs[0][1]:.1e}): treat it as failed"
        )
    return Reconstruction(
        inputs=image.to(like),
        labels=labels,
        noise={slot: value.to(like) for slot, value in noise.items()},
        costs=costs,
        iterations=iterations,
        findings=tuple(findings),
    )


def _not_converged(error: float) -> str:
    return f"L-BFGS did not converge (relative squared error {error:.1e})"


def _draws(problem: Problem, image: Tensor, noise: Tensors) -> bool:
    """Whether the loss of an image draws random numbers beside its noise."""
    model = copy.deepcopy(problem.model)
    before = torch.get_rng_state()
    with torch.no_grad(), inject(model, {slot: v.to(image) for slot, v in noise.items()}):
        problem.knowledge.loss(model, (image, problem.knowledge.labels))
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    return not torch.equal(before, after)


def _relative_error(problem: Problem, image: Tensor, noise: Tensors) -> float:
    """Mean over the parameters of ``|c g - sent|^2 / |sent|^2``, g the gradient of an image.

    The factor c is common to all parameters, since a client may clip its gradient.
    """
    model = copy.deepcopy(problem.model).requires_grad_()
    like = next(iter(problem.gradient.values()))
    image = image.to(like)
    with inject(model, {slot: value.to(like) for slot, value in noise.items()}):
        loss = problem.knowledge.loss(model, (image, problem.knowledge.labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    pairs = [
        _exact(problem, name, value)
        for name, value in zip(names, found, strict=True)
        if name not in problem.left_out
    ]
    common = sum(float((value * sent).sum()) for value, sent in pairs)
    common /= max(sum(float(value.square().sum()) for value, _ in pairs), 1e-300)
    whole = torch.stack([sent.norm() for _, sent in pairs]).norm()
    errors = [
        ((common * value - sent).norm() / sent.norm()).square()
        for value, sent in pairs
        if bool(sent.norm() > NEGLIGIBLE * whole)
    ]
    return float(torch.stack(errors).mean()) if errors else math.nan


def _exact(problem: Problem, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter's gradient and the client's, in the entries that are known."""
    sent, known = problem.gradient[name].double(), problem.known(name)
    return (value.double(), sent) if known is None else (value.double()[known], sent[known])
