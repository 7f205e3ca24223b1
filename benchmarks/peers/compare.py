"""fedleak beside breaching 0.1.2: the same victims, weights and hyperparameters, one thread.

breaching has an environment of its own, which ``make bench-peers`` makes. Updates are passed to it
as .npz files, and so are its reconstructions. The libraries take turns, victim by victim, each
after the same number of warm-up iterations.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.measure import Figure, median, ratios, seconds_of
from benchmarks.victims import make_victims, published_victims
from fedleak.attacks import IGA, Reconstruction
from fedleak.metrics import score_images
from fedleak.models import SMLP, ImageClassifier, LeNet
from fedleak.sweep.processes import THREAD_VARIABLES
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

ROOT = Path(__file__).parents[2]
INTERPRETER = ROOT / ".venv-peers" / "bin" / "python"
SCRIPT = Path(__file__).with_name("breaching_run.py")
# As many as breaching_run.py takes, which cannot import this file.
WARM_UP = 20


@dataclass(frozen=True)
class PeerResult:
    """What breaching made of an update.

    Args:
        inputs: the reconstruction ``(1, C, H, W)``, normalised.
        seconds: time of its call, without start-up and warm-up.
        cost: its cosine distance.
        versions: of breaching, torch and torchvision.
    """

    inputs: Tensor
    seconds: float
    cost: float
    versions: dict[str, str]


def peer_breaching_speedup(victims: int = 4, iterations: int = 7000, batched: int = 32) -> Figure:
    """Iterations per second on one LeNet victim, over breaching's."""
    return _compare(LeNet, "LeNet with sigmoid", victims, iterations, batched)


def peer_breaching_speedup_smlp(
    victims: int = 3, iterations: int = 1000, batched: int = 16
) -> Figure:
    """Iterations per second on one SMLP victim, over breaching's; fewer, as it is slow there."""
    return _compare(SMLP, "SMLP 2x1024", victims, iterations, batched)


def attack_with_breaching(
    update: InterceptedUpdate, knowledge: Knowledge, *, iterations: int, seed: int = 0
) -> PeerResult:
    """Attack one update in the peer's environment, with as many threads as here.

    Args:
        update: a gradient of an untrained LeNet or SMLP without a bottleneck.
        knowledge: what the server knows, labels included.
        iterations: number of iterations.
        seed: seed of its start.

    Raises:
        RuntimeError: if the environment is not there, the peer fails, or it does not work on the
            same model, cost and number of iterations.
    """
    if not INTERPRETER.exists():
        raise RuntimeError(f"Expected the peer's environment at {INTERPRETER}: `make bench-peers`.")
    assert knowledge.labels is not None
    probe = (
        torch.randn(2, *knowledge.input_shape, generator=torch.Generator().manual_seed(seed)),
        torch.tensor([0, knowledge.num_classes - 1]),
    )
    threads = torch.get_num_threads()
    settings = {
        "model": type(knowledge.model).__name__.lower(),
        "input_shape": list(knowledge.input_shape), "num_classes": knowledge.num_classes,
        "mean": list(knowledge.mean), "std": list(knowledge.std),
        "iterations": iterations, "seed": seed, "threads": threads,
    }  # fmt: skip
    names = [name for name, _ in knowledge.model.named_parameters()]
    arrays = {
        "settings": np.array(json.dumps(settings)),
        "labels": knowledge.labels.numpy(),
        "probe": probe[0].numpy(),
        "probe_labels": probe[1].numpy(),
    }
    for place, name in enumerate(names):
        arrays[f"parameter{place}"] = update.sent[name].numpy()
        arrays[f"gradient{place}"] = update.received[name].numpy()
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.npz", Path(folder) / "result"
        np.savez(job, **arrays)
        done = subprocess.run(
            [INTERPRETER, SCRIPT, job, result],
            capture_output=True,
            text=True,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
            cwd=folder,
        )
        if done.returncode:
            raise RuntimeError(f"breaching failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        facts = json.loads(result.with_suffix(".json").read_text())
        with np.load(result.with_suffix(".npz"), allow_pickle=False) as found:
            tensors = {name: torch.from_numpy(found[name]) for name in found.files}
    peer = PeerResult(tensors["inputs"], facts["seconds"], facts["cost"], facts["versions"])
    if (facts["iterations"], facts["threads"]) != (iterations, threads):
        raise RuntimeError(f"Expected {iterations} iterations, {threads} thread(s), got {facts}.")
    loss = batch_loss(knowledge.model, probe)
    here = torch.autograd.grad(loss, tuple(knowledge.model.parameters()))
    for place, value in enumerate(here):
        if not torch.allclose(tensors[f"probe{place}"], value, rtol=1e-3, atol=1e-6):
            raise RuntimeError(f"Expected the same gradient of `{names[place]}`: another model?")
    cost = _cosine_distance(update, knowledge, peer.inputs)
    if abs(cost - peer.cost) > 1e-4:
        raise RuntimeError(f"Expected breaching's cost to be {cost}, got {peer.cost}: another one?")
    return peer


def _compare(
    kind: type[ImageClassifier], name: str, victims: int, iterations: int, batched: int
) -> Figure:
    data, source = published_victims()
    updates, knowledge, truths = make_victims(kind, max(victims, batched), data)
    theirs, ours, results = [], [], []
    for index in range(victims):
        chosen = [updates[index]], [knowledge[index]]
        peer = attack_with_breaching(
            updates[index], knowledge[index], iterations=iterations, seed=index
        )
        IGA(iterations=WARM_UP)(*chosen)  # as breaching has one for every victim
        found: list[Reconstruction] = []
        ours.append(seconds_of(lambda: found.extend(IGA(iterations=iterations)(*chosen))))  # noqa: B023
        theirs.append(peer.seconds)
        results.append((peer, found[0]))
    few = min(iterations, 500)
    together = IGA(iterations=few, at_once=batched)
    seconds = seconds_of(lambda: together(updates[:batched], knowledge[:batched]))
    similarity = [
        [_ssim(truths[index], pair[side], knowledge[index]) for side in (0, 1)]
        for index, pair in enumerate(results)
    ]
    costs = [
        [_cosine_distance(updates[index], knowledge[index], item.inputs) for item in pair]
        for index, pair in enumerate(results)
    ]
    versions = results[0][0].versions
    samples = ratios(theirs, ours)
    return Figure(
        value=median(samples),
        unit="times the iterations per second of breaching",
        samples=samples,
        of="victims in turn",
        setting={
            "attack": "iga (cosine, signed Adam 0.01, total variation 1e-6, box, decay)",
            "model": f"{name}, untrained", "data": source, "victims": victims, "batch_size": 1,
            "labels": "known", "iterations": iterations, "threads": torch.get_num_threads(),
            "peer": {"configuration": "invertinggradients", **versions},
        },
        details={
            "fedleak_iterations_per_second": iterations / median(ours),
            "breaching_iterations_per_second": iterations / median(theirs),
            "fedleak_ssim": mean(pair[1] for pair in similarity),
            "breaching_ssim": mean(pair[0] for pair in similarity),
            "fedleak_cosine_distance": mean(pair[1] for pair in costs),
            "breaching_cosine_distance": mean(pair[0] for pair in costs),
            "victims_together": batched,
            "fedleak_together_victim_iterations_per_second": batched * few / seconds,
        },
    )  # fmt: skip


def _cosine_distance(update: InterceptedUpdate, knowledge: Knowledge, inputs: Tensor) -> float:
    """The cost of a reconstruction, by plain differentiation."""
    assert knowledge.labels is not None
    dummy = reference.dummy_gradient(knowledge.model, inputs, knowledge.labels, {})
    target = tuple(update.received[name] for name, _ in knowledge.model.named_parameters())
    return float(reference.cosine_distance(dummy, target).detach())


def _ssim(truth: Tensor, found: PeerResult | Reconstruction, knowledge: Knowledge) -> float:
    assert knowledge.labels is not None
    original = GroundTruth(inputs=truth, labels=knowledge.labels)
    reconstruction = Reconstruction(inputs=found.inputs, labels=knowledge.labels)
    return score_images(original, reconstruction, mean=knowledge.mean, std=knowledge.std)[0].ssim
