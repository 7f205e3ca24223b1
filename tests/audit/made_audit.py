"""An audit's folder made by hand, in milliseconds."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedleak.audit.canary import Canary
from fedleak.audit.config import AuditConfig
from fedleak.audit.facts import (
    LossFacts,
    ModelFacts,
    OptimizerFacts,
    TensorFacts,
    TrainingFacts,
)
from fedleak.audit.findings import Findings, not_tried
from fedleak.audit.folder import AuditFolder
from fedleak.audit.samples import Attacked
from fedleak.audit.summary import AuditSummary, Status
from fedleak.audit.truth_scores import Samples, Score
from fedleak.audit.verdict import Answer, Estimate

SETTING = "round 1; 2 samples, 1 step of sgd with rate 0.05; labels not known"
INPUTS = (3, "inputs")
PLAN = ((1, "number of samples"), (2, "shares of labels"), INPUTS)


def a_config(**changes: Any) -> AuditConfig:
    """The settings of an audit of an app that need not exist."""
    settings: dict[str, Any] = {
        "app": "/home/somebody/quickstart", "code": 64 * "a", "server": "task.server_app:app",
        "client": "task.client_app:app", "run_config": {"num-server-rounds": 1, "lr": 0.05},
        "settings": {"mean": [0.0], "std": [1.0], "value_range": [-1.0, 1.0], "model": None},
        "clients": 4, "rounds": 1, "seed": 0, "budget": 120.0,
    }  # fmt: skip
    return AuditConfig(**settings | changes)


def an_answer(rung: int, question: str, values: list[float], guesses: list[float]) -> Answer:
    """An answer whose measure is better if it is larger."""
    return Answer(
        rung=rung, question=question, measure="SSIM, 0 to 1", answer=Estimate.of(values),
        guess=Estimate.of(guesses), perfect=1.0, threat_model="A" if rung == 1 else "C",
        gains=tuple(a - b for a, b in zip(values, guesses, strict=True)),
        attack="iga", setting=SETTING,
    )  # fmt: skip


def attacked(
    key: str, *, samples: int = 2, shape: tuple[int, ...] = (3, 8, 8), value: float = 0.9,
    supported: bool = True, whole: bool = False,
) -> Attacked:  # fmt: skip
    """Samples of an update; the reconstructions come in the opposite order."""
    generator = torch.Generator().manual_seed(len(key) + samples)
    truth = torch.rand(samples, *shape, generator=generator)
    if whole:
        truth = torch.randint(30, (samples, *shape), generator=generator)
    found = truth.flip(0)
    score = Score.of(
        key, "iga", [value] * samples, [0.1] * samples, 0.97 if supported else 0.2, supported,
        list(range(samples))[::-1], list(range(samples)),
    )  # fmt: skip
    return Attacked(Samples(truth, None), found, torch.zeros_like(truth), score)


def some_facts(client: int, steps: int = 1) -> TrainingFacts:
    """What was seen of one client's training."""
    state = (("layer.weight", (10, 192), "float32"), ("layer.bias", (10,), "float32"))
    group = {
        "names": ["layer.weight", "layer.bias"],
        "lr": 0.05,
        "momentum": 0.9,
        "nesterov": False,
    }
    return TrainingFacts(
        partition=client, model=ModelFacts("task.task:Net", state),
        inputs=(TensorFacts((0,), (2, 3, 8, 8), "float32"),),
        loss=LossFacts("function", "cross_entropy", {"label_smoothing": 0.1}),
        optimizer=OptimizerFacts("torch.optim.sgd:SGD", (group,)),
        batch_sizes=(2,) * steps, backward_passes=steps, sends="weights", batches_kept=steps,
    )  # fmt: skip


def made_audit(
    path: Path, *, status: Status = "complete", leaks: bool = True, canary: bool | None = True,
    whole: bool = False, shape: tuple[int, ...] = (3, 8, 8), reason: str = "",
    config: AuditConfig | None = None,
) -> AuditFolder:  # fmt: skip
    """The folder of an audit of four clients; an interrupted one has attacked two of them."""
    folder, config = AuditFolder(path), config or a_config()
    folder.open(config, resume=False, overwrite=False)
    folder.facts.mkdir()
    for client in range(4):
        some_facts(client, 1 + (client == 3)).save(folder.facts / f"r0001-c{client:04d}.json")
    summary = AuditSummary(
        config.to_dict(), {"fedleak": "0.1.0", "torch": "2.12.0"}, app_complete=True,
        app_seconds=12.3, updates=4, notes=["the model's mode is that of its first client"],
    )  # fmt: skip
    findings = Findings(folder, summary)
    findings.plan(PLAN)
    findings.check_model(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))
    value = 0.99 if canary else 0.4
    if canary is not None:
        note = f"the audit's own client {'was' if canary else 'was not'} reconstructed by iga"
        own = attacked("canary", samples=1, value=value, shape=shape, whole=whole)
        findings.set_canary(Canary(canary, note, value, own))
    findings.add_answer(*PLAN[0], an_answer(*PLAN[0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]))
    findings.add_answer(
        *PLAN[1], not_tried(*PLAN[1], "40 shadow clients need about 90 s, more than the budget has")
    )
    values = [0.9, 0.8, 0.95, 0.85] if leaks else [0.1, 0.12, 0.1, 0.09]
    done = 4 if status == "complete" else 2
    for client, value in enumerate(values[:done]):
        one = attacked(
            f"r0001-c{client:04d}", value=value, supported=leaks or client != 1, shape=shape,
            whole=whole,
        )  # fmt: skip
        so_far = an_answer(*INPUTS, values[: client + 1], [0.1] * (client + 1))
        findings.add_attacked(*INPUTS, one, so_far)
    if status == "complete":
        findings.add_answer(*INPUTS, an_answer(*INPUTS, values, [0.1] * 4))
    summary.used = math.nan
    findings.save(status, reason)
    return folder
