"""Rule 3 of the house: an attack never receives the truth, by no way at all."""

import ast
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fedleak.attacks
from fedleak.attacks import Problem
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.data.base import PrivateData, TrainSet
from fedleak.experiment import attack_run
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.knowledge import batch_loss
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import Victim, client_gradient, make_victim
from tests.reference import shared_values
from tests.spies import Spy, reachable, truth_in
from tests.toys import OwnClassifier

# In no picture, weight or gradient by chance.
MARKER = 1.2345678e-3
ATTACKS = Path(fedleak.attacks.__file__).parent


@pytest.fixture
def run_folder(tmp_path: Path) -> RunConfig:
    """A run with one saved update whose picture and noise hold the marker."""
    images = np.random.default_rng(0).uniform(0.2, 0.8, (12, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(12) % 3)
    config = RunConfig(
        data=Plugin(
            "fedleak.data.npz.Npz",
            {"path": str(tmp_path / "set.npz"), "mean": [0.5], "std": [0.25]},
        ),
        model=Plugin("fedleak.models.mlp.SMLP", {"width": 12, "precode": {"bottleneck_size": 4}}),
        output=str(tmp_path / "run"),
        federation=Federation(clients=2),
    )
    folder = RunFolder(Path(config.output))
    folder.open(config, resume=False, overwrite=False)
    data = make_data(config)
    model = make_model(config, data)
    inputs, labels = data.train_set.batch([0])
    inputs[0, 0, 3, 3:6] = MARKER
    gradient, noise = client_gradient(model, inputs, labels)
    truth = GroundTruth(inputs, labels, {n: v.index_fill(1, torch.tensor([1]), MARKER)
                                         for n, v in noise.items()})  # fmt: skip
    InterceptedUpdate(1, 1, "fedsgd", 1, config.model_name, model.state_dict(), gradient).save(
        folder.updates()
    )
    truth.save(folder.truth() / "r0001-c0001.safetensors")
    return config


@pytest.fixture(autouse=True)
def _no_problems_yet() -> None:
    Spy.seen.clear()
    Spy.reports.clear()


@pytest.mark.parametrize("labels", ["known", "recovered"])
def test_the_truth_is_not_within_an_attacks_reach(
    run_folder: RunConfig, tmp_path: Path, labels: str
) -> None:
    truth = GroundTruth.load(tmp_path / "run" / "truth" / "r0001-c0001.safetensors")
    assert truth_in(MARKER, truth.inputs)
    assert truth_in(MARKER, truth.noise)
    config = replace(
        run_folder,
        output=str(tmp_path / "attacked"),
        victims=Victims(labels=labels),
        attacks=(Plugin("tests.spies.Spy"),),
    )
    summary = attack_run(tmp_path / "run", config)
    (problem,) = Spy.seen
    # Nor of the callback that it reports its progress to.
    assert truth_in(MARKER, problem, *Spy.reports) == []
    strange = (PrivateData, RunFolder, TrainSet)
    assert not [found for found in reachable(*Spy.reports) if isinstance(found, strange)]
    # The spy was shown all that an attack may see, and the scorer did have the truth.
    assert set(problem.gradient) == {name for name, _ in problem.model.named_parameters()}
    assert problem.noise_shapes == {"bottleneck.noise": (1, 4)}
    known = problem.knowledge.labels
    assert (known is None) == (labels == "recovered")
    assert known is None or torch.equal(known, truth.labels)
    (entry,) = summary["attacks"]
    assert entry["attack"] == "spy"
    assert entry["mse"] > 0


def test_an_attack_cannot_draw_what_its_victim_drew(run_folder: RunConfig, tmp_path: Path) -> None:
    """A simulated client is seeded from the run's seed, its round and its number."""
    config = replace(
        run_folder, output=str(tmp_path / "attacked"), attacks=(Plugin("tests.spies.Spy"),)
    )
    attack_run(tmp_path / "run", config)
    (problem,) = Spy.seen
    numbers = [(0,), (0, 1), (0, 1, 1)]
    assert problem.generator.initial_seed() not in {derive_seed(*n) for n in numbers}


# --------------------------------------------------------------- the walk finds what it should


def victim_with_marker() -> Victim:
    shape = (1, 5, 5)
    victim = make_victim(OwnClassifier(input_shape=shape, num_classes=4), shape)
    victim.truth.inputs[0, 0, 2, 2] = MARKER
    return victim


class Leak:
    """A loss that remembers the batch: by attribute, or by slot in its subclass."""

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def __call__(self, model: nn.Module, batch: object) -> torch.Tensor:
        return batch_loss(model, batch)


def leaks(victim: Victim) -> dict[str, Victim]:
    """Ways in which truth might slip into what an attack is given."""
    facts, update, inputs = victim.knowledge, victim.update, victim.truth.inputs

    def closure(model: nn.Module, batch: object) -> torch.Tensor:
        return batch_loss(model, batch) + 0 * inputs.sum()

    def partial(kept: object, model: nn.Module, batch: object) -> torch.Tensor:
        return batch_loss(model, batch)

    class Remembering(OwnClassifier):
        last_batch = (inputs,)

    remembering = Remembering(input_shape=(1, 5, 5), num_classes=4)
    buffered = OwnClassifier(input_shape=(1, 5, 5), num_classes=4)
    buffered.last = [(inputs.numpy(), 3)]
    return {
        "loss": victim._replace(knowledge=replace(facts, loss=closure)),
        "partial": victim._replace(
            knowledge=replace(facts, loss=functools.partial(partial, victim.truth))
        ),
        "callable": victim._replace(knowledge=replace(facts, loss=Leak({"x": (inputs,)}))),
        "method": victim._replace(knowledge=replace(facts, loss=Leak(victim.truth).__call__)),
        "attribute": victim._replace(knowledge=replace(facts, model=buffered)),
        "class": victim._replace(knowledge=replace(facts, model=remembering)),
        "received": victim._replace(
            update=replace(update, received=update.received | {"head.bias": inputs[0, 0, 2, 1:]})
        ),
        "path": victim._replace(
            knowledge=replace(facts, loss=functools.partial(partial, Path("run/truth")))
        ),
    }


@pytest.mark.parametrize("way", leaks(victim_with_marker()))
def test_the_walk_finds_a_leak(way: str) -> None:
    clean = victim_with_marker()
    Spy()([clean.update], clean.knowledge)
    assert truth_in(MARKER, Spy.seen.pop()) == []
    leaky = leaks(clean)[way]
    Spy()([leaky.update], leaky.knowledge)
    assert truth_in(MARKER, Spy.seen.pop())


# ----------------------------------------------------------------------------- nor by an import


@pytest.mark.parametrize("path", sorted(ATTACKS.rglob("*.py")), ids=lambda path: path.stem)
def test_no_attack_imports_the_truth(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute | ast.Name):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    strange = {name for name in names if "GroundTruth" in name or name == "read_truth"}
    assert strange == set()
    ours = {name.rsplit(".", 1)[0] for name in names if name.startswith("fedleak.")}
    allowed = {
        "fedleak.errors",
        "fedleak.lazy",
        "fedleak.models.module_inputs",
        "fedleak.models.noise",
        "fedleak.runtime.seeds",
        # Each by its name, so that it is seen which: the truth has a module of its own.
        *(
            f"fedleak.updates.{name}"
            for name in (
                "blocks",
                "entries",
                "compression",
                "evidence",
                "files",
                "gradient_estimate",
                "knowledge",
                "local_training",
                "loss_probe",
                "module_state",
                "naming",
                "optimizer_steps",
                "private_model",
                "update",
            )
        ),
    }
    assert {name for name in ours if not name.startswith("fedleak.attacks")} <= allowed


def test_a_problem_is_a_private_copy() -> None:
    """What an attack does to its model or its tensors is its own affair."""

    class Vandal(Spy):
        def run(self, problem: Problem, report):
            with torch.no_grad():
                for tensor in [*problem.model.state_dict().values(), *problem.gradient.values()]:
                    tensor.fill_(7)
            return super().run(problem, report)

    victim = victim_with_marker()
    before = [{n: v.clone() for n, v in part.items()} for part in parts_of(victim)]
    Vandal()([victim.update], victim.knowledge)
    for old, new in zip(before, parts_of(victim), strict=True):
        assert shared_values(old, new)


def parts_of(victim: Victim) -> tuple[dict[str, torch.Tensor], ...]:
    return victim.update.sent, victim.update.received, dict(victim.model.state_dict())
