"""Noise and image from one gradient in closed form, and by a search only where that ends."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.base import JointAttack, Problem, Reconstruction, Report
from fedleak.attacks.closed_form.linear import linear_input
from fedleak.attacks.closed_form.reader import Reader, within
from fedleak.attacks.labels import recover_labels
from fedleak.attacks.matching.engine import GradientMatching, Known
from fedleak.attacks.matching.local_steps import MOST_STEPS, UNORDERED, cannot_simulate
from fedleak.attacks.module_facts import drawing_layers, enters_unchanged, first_linear
from fedleak.attacks.nra import NRA
from fedleak.errors import require
from fedleak.models.noise import inject, noise_slots
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge

# Of the gradient of what was found, as a share of the client's; that of an image that the equations
# do not determine is below.
DOUBTFUL = 0.5
# Of a search by L-BFGS, which ends orders of magnitude below it, or has been led astray: by the
# kinks of a ReLU, or by noise that was added to the gradient.
MATCHED = 1e-3
# Of the gradient's norm: less of it is rounding, as of a bias before a batch norm.
NOTHING = 1e-6


class ExactNRA(JointAttack):
    """Restores a bottleneck's noise in closed form and peels the layers before it off.

    Of one sample, the inputs of all linear layers with bias stand in the gradient, and with those
    around a bottleneck its noise. Of several samples those inputs are mixed there, and the model
    itself unmixes them, from the classifier on (:mod:`fedleak.attacks.closed_form.batch_unmixing`).
    With the inputs and the noise known, so is the loss's gradient at the earliest of these
    layers, and those before it come off one by one
    (:mod:`fedleak.attacks.closed_form.layer_inversion`). What follows depends
    on what the model and the update allow, and the findings say which it was:

    - the equations determine the images: they are read without a search;
    - they end before, as a layer has more inputs than equations (behind a ReLU, outputs of 0 are
      but upper bounds; of several samples there is but one gradient): the smoothest images that
      the layers left take to what is known of their output, a convex problem where one is left;
    - the layers are no chain: gradient matching by L-BFGS in float64, every layer by its own
      relative squared error, with the noise put in and known features matched;
    - noise is drawn before the known layers (a convolutional bottleneck, which has no biases): the
      same matching, of the images and that noise together;
    - no such input is known (no bias, much noise of a defence, signs instead of a gradient, as many
      samples as classes), noise behind them is not to be had, that matching does not find the
      gradient, a layer draws anew in every evaluation (a dropout in train mode), or noise is to be
      found of samples that are no images: a search as NRA's, with the noise that is known and from
      what that matching has found, if no noise is missing;
    - no image fits what is known, as where noise was added to the gradient, entries were cut from
      it, or a solver went astray: the same search, from the smoothest image on.

    Updates are read one by one; those left for a search as NRA's are searched together.

    Several local steps of plain SGD on one image leave it in the first layer's gradient, if that
    is linear with bias. Else images and the noise of every step are searched together, through all
    the steps if they are no more than 32, and as NRA does where that does not find the gradient.

    The cost is the relative squared error of the reconstruction's gradient, averaged over the
    parameters and up to a factor common to all of them; that of a search as NRA's is NRA's, that
    of one through several steps has no such factor, and there is none of an image without its
    noise, or of one that was read from several steps.

    Args:
        solver_iterations: the most that a layer's solver takes, at least 1.
        image_iterations: iterations of L-BFGS in each stage to the smoothest image.
        soft_gates: whether the smoothest image is then to match the gradients of the layers before
            a ReLU, too, through a ReLU that is soft at first.
        matching_steps: steps of L-BFGS in the matching, of up to 20 evaluations each.
        joint_steps: the same where noise is searched together with the images, and through several
            local steps.
        features: weight of the known features in the cost of the matching, at least 0.
        total_variation: weight of the total variation in the matching, at least 0.
        nra_iterations: iterations of NRA where nothing better can be done.
        at_once: number of updates that are searched as NRA does in one batched computation.

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
        soft_gates: bool = False,
        matching_steps: int = 75,
        joint_steps: int = 300,
        features: float = 10.0,
        total_variation: float = 1e-5,
        nra_iterations: int = 7000,
        at_once: int = 8,
    ) -> None:
        for name, count in (
            ("solver_iterations", solver_iterations), ("image_iterations", image_iterations),
            ("matching_steps", matching_steps), ("joint_steps", joint_steps),
            ("nra_iterations", nra_iterations), ("at_once", at_once),
        ):  # fmt: skip
            require(count >= 1, f"Expected `{name}` to be at least 1, got {count}.")
        for name, weight in (("features", features), ("total_variation", total_variation)):
            require(weight >= 0, f"Expected `{name}` to be at least 0, got {weight}.")
        self.solver_iterations = solver_iterations
        self.image_iterations = image_iterations
        self.soft_gates = soft_gates
        self.matching_steps = matching_steps
        self.joint_steps = joint_steps
        self.features = features
        self.total_variation = total_variation
        self.nra_iterations = nra_iterations
        self.at_once = at_once

    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Read updates one by one, then search what is left of them together.

        See :meth:`Attack.run_many`; the results of those that are read come first.
        """
        left: list[tuple[int, _Left, float]] = []
        for index, problem in enumerate(problems):
            started = time.perf_counter()
            found = self._read(problem, report)
            seconds = time.perf_counter() - started
            if isinstance(found, _Left):
                left.append((index, found, seconds))
            else:
                yield index, replace(found, seconds=seconds)
        search = _Search(self, [item for _, item, _ in left])
        for at, found in search.run_many(search.problems, report):
            index, item, seconds = left[at]
            findings, seconds = (*item.findings, item.told), seconds + found.seconds
            yield index, replace(found, findings=findings, seconds=seconds)

    def _read(self, problem: Problem, report: Report) -> "Reconstruction | _Left":
        facts = problem.knowledge
        recovered = facts.labels is None
        if recovered:
            labels = recover_labels(problem.model, problem.gradient, facts)
            problem = replace(problem, knowledge=replace(facts, labels=labels))
        if facts.local_steps > 1:
            return self._of_several_steps(problem, report, recovered=recovered)
        reading = Reader(
            problem,
            solver_iterations=self.solver_iterations,
            image_iterations=self.image_iterations,
            soft_gates=self.soft_gates,
        )
        layer = reading.known_layer()
        if layer is None:
            return _Left(problem, Known(), reading.findings)
        noise, failed = layer.noise, layer.failed
        found = reading.read(layer, report)
        if not found.fits:
            return _Left(problem, Known(noise, begin=found.image), found.findings)
        if found.image is not None:
            return _reconstruction(problem, found.image, noise, found.findings, found.evaluations)
        if drawing := drawing_layers(problem.model):
            found.findings.append(f"{drawing[0]} draws anew in every evaluation")
            return _Left(problem, Known(noise), found.findings)
        drawn_behind = bool(failed) and failed != layer.before
        if drawn_behind or (failed and len(facts.input_shape) != 3):
            return _Left(problem, Known(noise), found.findings)
        steps = self.joint_steps if failed else self.matching_steps
        # The matching, unlike its cost here, is no search for a factor too.
        gradient = {name: value / layer.factor for name, value in problem.gradient.items()}
        matching = _Precise(self, steps, Known(noise, found.features))
        result = matching.run(replace(problem, gradient=gradient), report)
        image = within(result.inputs.double().cpu(), facts)
        what = " of image and noise" if failed else ""
        found.findings.append(f"gradient matching{what} from there, {result.iterations} steps")
        missed = _relative_error(problem, image, result.noise)
        if not missed <= MATCHED:
            found.findings.append(f"relative squared error {missed:.1e}: it has not found them")
            # With all noise known it has but not come to its end; else it has been led astray.
            known = Known(noise, begin=None if failed else image)
            return _Left(problem, known, found.findings)
        return _reconstruction(problem, image, result.noise, found.findings, result.iterations)

    def _of_several_steps(
        self, problem: Problem, report: Report, *, recovered: bool
    ) -> "Reconstruction | _Left":
        facts = problem.knowledge
        findings = [f"the update is of {facts.local_steps} local steps"]
        layer = first_linear(facts)
        if facts.num_samples > 1:
            findings.append(f"on {facts.num_samples} images")
        elif layer is None or not enters_unchanged(facts, layer):
            findings.append("no linear layer with bias is given the image first")
        elif facts.plain_sgd:
            weight, bias = (problem.gradient[f"{layer}.{name}"] for name in ("weight", "bias"))
            entering = linear_input(weight, bias)
            findings.append(f"input of {layer} in closed form, error {entering.error:.1e}")
            if entering.trusted:
                # Every step's gradient there is a product with the image, and so is their sum.
                unread = ", and the steps' noise is not" if problem.noise_shapes else ""
                findings.append(f"the image is read without a search{unread}")
                image = within(entering.value.cpu(), facts)
                return _reconstruction(problem, image, {}, findings, 0)
        reason = cannot_simulate(facts, problem.noise_shapes)
        if reason is None and facts.local_steps > MOST_STEPS:
            reason = f"more than {MOST_STEPS} are too many to be searched through"
        if reason is not None:
            findings.append(f"they are taken for one, as {reason}")
            return _Left(problem, Known(), findings)
        if recovered and len(facts.local_batches) > 1:
            findings.append(UNORDERED)
        own = ", each with noise of its own" if problem.noise_shapes else ""
        findings.append(f"so a search by L-BFGS through all steps{own}")
        found = _Precise(self, self.joint_steps, Known()).run(problem, report)
        if not found.cost <= MATCHED:
            findings.append(f"relative squared error {found.cost:.1e}: it has not found them")
            return _Left(problem, Known(), findings)
        image = within(found.inputs.double().cpu(), facts)
        return replace(found, inputs=image.to(found.inputs), findings=tuple(findings))


class RGAP(ExactNRA):
    """The same for models that draw no noise.

    The published attack peels all layers off from the loss on, with biases or without. This one
    begins at the earliest linear layer whose input its bias gives away, and without such a layer
    searches. Where a layer's equations do not determine its input, the published attack takes the
    solution of least norm; here it goes on as :class:`ExactNRA` does.
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


class _Left(NamedTuple):
    """An update that only a search can go on with."""

    problem: Problem
    known: Known
    findings: list[str]

    @property
    def told(self) -> str:
        told = ", with the noise that is known" if self.known.noise else ""
        told += ", from that image on" if self.known.begin is not None else ""
        return f"so a search as nra's{told}"


class _Search(NRA):
    """NRA from what is known of each update."""

    def __init__(self, settings: ExactNRA, left: Sequence[_Left]) -> None:
        # Known features are of no use to its signed steps: with them it finds less.
        super().__init__(iterations=settings.nra_iterations, at_once=settings.at_once)
        self.problems = [item.problem for item in left]
        self._known = {id(item.problem): item.known for item in left}

    def known(self, problem: Problem) -> Known:
        """See :meth:`GradientMatching.known`."""
        return self._known[id(problem)]


class _Precise(GradientMatching):
    """Gradient matching in float64 by L-BFGS, every layer by its own relative squared error.

    Noise that is not known is searched together with the images, through all local steps.
    """

    name: ClassVar[str] = "precise"
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
    # Without the noise there is nothing to compare with, nor with one step of several.
    whole = set(noise) == set(problem.noise_shapes) and problem.knowledge.local_steps == 1
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
    # For what a client does not train it sends zeros.
    trained = {n for n, v in problem.knowledge.model.named_parameters() if v.requires_grad}
    pairs = [
        (value.double(), problem.gradient[name].double())
        for name, value in zip(names, found, strict=True)
        if name in trained or not trained
    ]
    common = sum(float((value * sent).sum()) for value, sent in pairs)
    common /= max(sum(float(value.square().sum()) for value, _ in pairs), 1e-300)
    whole = torch.stack([sent.norm() for _, sent in pairs]).norm()
    errors = [
        ((common * value - sent).norm() / sent.norm()).square()
        for value, sent in pairs
        if bool(sent.norm() > NOTHING * whole)
    ]
    return float(torch.stack(errors).mean())
