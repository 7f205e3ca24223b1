"""Batches of which every sample is determined: read whole, or by features and one by one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedleak.attacks.base import Problem, Progress, Reconstruction, Report
from fedleak.attacks.closed_form.reader import Reader
from fedleak.attacks.exact_batch import ExactBatch, order_of, rounding_of_weights
from fedleak.attacks.exact_batches.features import Features, features_of, gradient_of
from fedleak.attacks.exact_batches.network import Network, read_head
from fedleak.updates.files import Tensors

# Random starts in succession that find nothing: a batch that is read whole needs fewer.
STARTS = 400


@dataclass(frozen=True)
class Inverted:
    """Images of a batch, each inverted from its own features.

    Args:
        images: ``(samples, C, H, W)``, float64, within the valid range.
        labels: ``(samples,)``.
        findings: a sentence each.
        evaluations: number of evaluations in all.
    """

    images: Tensor
    labels: Tensor
    findings: list[str]
    evaluations: int


def read_whole(problem: Problem, report: Report) -> Reconstruction | None:
    """What ``exact_batch`` finds, if it certifies every sample; else None.

    Args:
        problem: a batch.
        report: called with the progress.
    """
    exact = ExactBatch(starts=STARTS)
    if exact.refuses(problem.knowledge) is not None:
        return None
    found = exact.run(_with_own_generator(problem), report)
    bounds = found.error_bounds
    if bounds is None or not bool(bounds.isfinite().all()):
        return None
    return replace(found, findings=(*found.findings, "read by exact_batch, with no optimisation"))


def inverted_by_features(
    problem: Problem, reader: Callable[[Problem], Reader], report: Report
) -> Inverted | None:
    """The images of a batch by its features, if the model's head certifies them all; else None.

    The gradient of a head of linear layers with ReLU gives each sample's features and label
    (:mod:`fedleak.attacks.exact_batches.features`), and so its own gradient in the head: the layers
    before are inverted for each sample alone. Their own gradients are sums over the batch, and are
    not used.

    Args:
        problem: a batch.
        reader: makes the reader of a sample's problem.
        report: called with the progress.
    """
    facts = problem.knowledge
    if problem.left_out or facts.number_of_clients > 1:
        return None
    network = read_head(replace(facts, model=problem.model), problem.loss)
    if isinstance(network, str) or not network.has_bias(0):
        return None
    own = _with_own_generator(problem)
    features = features_of(
        network, problem.gradient, facts.num_samples, own.generator,
        starts=STARTS, noise=rounding_of_weights(problem, network, network.hidden),
        progress=lambda found: report(Progress(found, facts.num_samples, float("nan"))),
    )  # fmt: skip
    if len(features.labels) < facts.num_samples:
        return None
    if facts.labels is not None:
        order = order_of(features.labels, facts.labels.cpu())
        features = Features(*(value[order] for value in features))
    error = float((features.bounds / features.inputs.norm(dim=1)).max())
    findings = [
        f"features and labels of all {facts.num_samples} samples from the gradient of "
        f"{network.names[0]} and what follows, relative error at most {error:.1e}"
    ]
    images, evaluations, failed = [], 0, []
    for at in range(facts.num_samples):
        alone = reader(_alone(own, network, features, at))
        layer = alone.known_layer()
        reading = None if layer is None else alone.read(layer, report)
        if at == 0:
            findings += [f"sample 0: {text}" for text in alone.findings]
        if reading is None or reading.image is None:
            return None
        if not reading.fits:
            failed.append(at)
        images.append(reading.image.reshape(1, *facts.input_shape))
        evaluations += reading.evaluations
    if failed:
        findings.append(f"samples {failed}: no image agrees with the features")
    return Inverted(torch.cat(images), features.labels, findings, evaluations)


def _with_own_generator(problem: Problem) -> Problem:
    """The problem with a generator of its own, so that what follows draws what it always draws."""
    seed = problem.generator.initial_seed()
    return replace(problem, generator=torch.Generator().manual_seed(seed))


def _alone(problem: Problem, network: Network, features: Features, at: int) -> Problem:
    """One sample of a batch: its gradient in the head, and none before."""
    own = gradient_of(network, features, at)
    gradient: Tensors = {
        name: own[name].to(value.device) if name in own else torch.zeros_like(value)
        for name, value in problem.gradient.items()
    }
    label = features.labels[at][None]
    facts = replace(problem.knowledge, num_samples=1, labels=label, model=problem.model)
    return replace(
        problem, gradient=gradient, knowledge=facts, name=f"{problem.name}, sample {at}", loss=None
    )
