"""What was seen of the training of an audited app's clients, in a few lines."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedleak.audit.facts import (
    LossFacts,
    ModelFacts,
    OptimizerFacts,
    TensorFacts,
    TrainingFacts,
)
from fedleak.audit.folder import AuditFolder

MOST_FILES = 1000  # of the clients' facts
# Settings of an optimiser that say nothing of how it computes.
INTERNAL = ("names", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")


def read_facts(folder: AuditFolder) -> dict[str, list[str]]:
    """What was seen, each fact with the different things that were.

    Args:
        folder: the audit's folder.

    Returns:
        Title -> what was seen, the most frequent first, with the number of the trainings if they
        differ; empty if nothing was.

    Raises:
        BadInput: if a file is damaged.
    """
    paths = sorted(folder.facts.glob("*.json"))[:MOST_FILES] if folder.facts.is_dir() else []
    counts: dict[str, Counter[str]] = {}
    for path in paths:
        for title, text in _described(TrainingFacts.load(path)).items():
            counts.setdefault(title, Counter())[text] += 1
    return {
        title: [
            text if len(found) == 1 and number == len(paths) else f"{text} ({number} trainings)"
            for text, number in found.most_common()
        ]
        for title, found in counts.items()
    }


def _described(facts: TrainingFacts) -> dict[str, str]:
    found = {
        "Model": _model(facts.model),
        "Mode": _mode(facts.model),
        "Inputs": "; ".join(map(_input, facts.inputs)) or "not seen",
        "Loss": _loss(facts.loss),
        "Optimiser": _optimizer(facts.optimizer),
        "Steps": str(facts.steps),
        "Samples in a step": _sizes(facts.batch_sizes),
        "Sent": {
            "weights": "the weights after the training",
            "delta": "the change of the weights",
            "gradient": "the gradient",
            "other": "the weights, changed after the training",
            None: "not known",
        }[facts.sends],
    }
    changes = [
        text
        for is_so, text in (
            (facts.gradients_changed, "gradients are changed before a step, as by clipping"),
            (facts.weights_changed, "weights are changed outside the steps"),
        )
        if is_so
    ]
    return found | ({"Besides": "; ".join(changes)} if changes else {})


def _model(model: ModelFacts | None) -> str:
    if model is None:
        return "not seen"
    entries = sum(math.prod(shape) for _, shape, _ in model.state)
    frozen = f", {len(model.frozen)} parameters frozen" if model.frozen else ""
    return f"{model.path.replace(':', '.')}, {entries:,} entries{frozen}"


def _input(item: TensorFacts) -> str:
    name = f"{item.path[-1]} " if item.path and isinstance(item.path[-1], str) else ""
    return f"{name}{list(item.shape[1:])} of {item.dtype}"


def _mode(model: ModelFacts | None) -> str:
    if model is None:
        return "not seen"
    if model.training is None:
        return f"train, but eval of {', '.join(model.in_eval_mode)}"
    return "train" if model.training else "eval"


def _loss(loss: LossFacts | None) -> str:
    if loss is None:
        return "not seen"
    if loss.kind == "function":
        return f"{loss.function}{_settings(loss.arguments)}"
    if loss.kind == "unknown":
        return f"not known: {loss.reason}"
    return {"output": "an output of the model", "training_step": "the model's training_step"}[
        loss.kind
    ]


def _optimizer(optimizer: OptimizerFacts | None) -> str:
    if optimizer is None:
        return "not seen"
    name = optimizer.path.rpartition(":")[2]
    groups = [_settings(group) for group in optimizer.groups]
    rates = ""
    if optimizer.rates:
        rates = f", rate from {optimizer.rates[0]:g} to {optimizer.rates[-1]:g}"
    return f"{name}{'; '.join(dict.fromkeys(groups))}{rates}"


def _settings(values: Mapping[str, Any]) -> str:
    """Settings that are neither internal nor off, in brackets."""
    shown = [
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in values.items()
        if name not in INTERNAL and value not in (None, False, 0, 0.0)
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sizes(sizes: Sequence[int]) -> str:
    counts = Counter(sizes)
    if len(counts) == 1:
        return str(next(iter(counts)))
    parts = [f"{size} in {_count(number, 'step')}" for size, number in counts.most_common(5)]
    return ", ".join(parts) or "none"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
