"""One fact told wrong at a time: what follows is right all the same, or something is said."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedleak.errors import BadInput
from fedleak.updates.evidence import check
from fedleak.updates.knowledge import Knowledge
from tests.attacks.test_federations import ACCUSES, WRONG_FROM, fault_of_refusal, outcome_of
from tests.federations import OPTIMIZERS, Cell, Victim, loss_named, make_victim

FACTORS = (2, 5, 20, 100)


def rate(facts: Knowledge, factor: float) -> Knowledge:
    return facts.with_training(learning_rate=facts.local.rate * factor)


def protocol(victim: Victim, told: str) -> Victim:
    return replace(
        victim,
        update=replace(victim.update, protocol=told),  # type: ignore[arg-type]
        knowledge=replace(victim.knowledge, protocol=told),  # type: ignore[arg-type]
    )


def of_knowledge(change: Callable[[Knowledge], Knowledge]) -> Callable[[Victim], Victim]:
    return lambda victim: replace(victim, knowledge=change(victim.knowledge))


def optimizer(name: str) -> Callable[[Victim], Victim]:
    own = OPTIMIZERS[name]
    plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    return of_knowledge(
        lambda facts: facts.with_training(**plain | {"optimizer": own.name} | own.options)
    )


def labels(facts: Knowledge) -> Knowledge:
    return replace(facts, labels=None if facts.labels is None else (facts.labels + 1) % 4)


def samples(number: int) -> Callable[[Victim], Victim]:
    return of_knowledge(
        lambda facts: replace(
            facts, num_samples=number,
            labels=None if facts.labels is None else torch.arange(number) % 4,
        )
    )  # fmt: skip


# Fact -> what is told in its place.
WRONG: dict[str, Callable[[Victim], Victim]] = {
    **{f"rate times {f}": of_knowledge(lambda k, f=f: rate(k, f)) for f in FACTORS},
    **{f"rate over {f}": of_knowledge(lambda k, f=f: rate(k, 1 / f)) for f in FACTORS},
    **{
        f"{steps} steps": of_knowledge(lambda k, n=steps: k.with_training(steps=n))
        for steps in (1, 2, 3, 9)
    },
    **{f"{number} samples": samples(number) for number in (1, 2, 4)},
    "batches of 1": of_knowledge(lambda k: k.with_training(batch_size=1)),
    **{
        f"protocol {told}": lambda v, told=told: protocol(v, told)
        for told in ("fedsgd", "fedavg", "delta")
    },
    **{f"optimiser {name}": optimizer(name) for name in OPTIMIZERS},
    "momentum 0.5": of_knowledge(lambda k: k.with_training(momentum=0.5)),
    "weight decay 0.5": of_knowledge(lambda k: k.with_training(weight_decay=0.5)),
    "train mode": of_knowledge(lambda k: replace(k, training=True)),
    "eval mode": of_knowledge(lambda k: replace(k, training=False)),
    **{
        f"loss {name}": of_knowledge(lambda k, name=name: replace(k, loss=loss_named(name)))
        for name in ("mean", "sum", "weights", "smoothing")
    },
    "mean 0.5, std 0.25": of_knowledge(lambda k: replace(k, mean=(0.5,), std=(0.25,))),
    "range 0 to 0.3": of_knowledge(lambda k: replace(k, value_range=(0.0, 0.3))),
    "labels": of_knowledge(labels),
}  # fmt: skip


def said(name: str, victim: Victim) -> bool:
    """Whether what an attack returns is right, or something is said, or it is refused."""
    outcome = outcome_of(name, victim)
    if outcome.found is None:
        return fault_of_refusal(outcome.refusal) is None
    if outcome.error <= WRONG_FROM or outcome.doubts:
        return True
    texts = outcome.found.findings
    return any(ACCUSES in text or "told" in text for text in texts) or bool(
        check(victim.knowledge.model, victim.update, victim.knowledge)
    )


CASES = given(
    cell=st.builds(
        Cell,
        attack=st.sampled_from(["iga", "dlg", "rgap", "analytic"]),
        optimizer=st.sampled_from(list(OPTIMIZERS)),
        reply=st.sampled_from(["gradient", "weights", "delta", "three steps"]),
        mode=st.sampled_from(["train", "eval", "mixed"]),
        loss=st.sampled_from(["mean", "weights", "sum"]),
        kind=st.sampled_from(["images", "rows", "series"]),
        number=st.integers(1, 2),
        told=st.booleans(),
    ),
    wrong=st.sampled_from(list(WRONG)),
    seed=st.integers(0, 1000),
)


def check_case(cell: Cell, wrong: str, seed: int) -> None:
    victim = make_victim(cell, seed)
    try:
        victim = WRONG[wrong](victim)
    except BadInput:  # facts that contradict each other, such as Nesterov without momentum
        return
    assert said(cell.attack, victim)


def of_examples(number: int) -> settings:
    return settings(
        max_examples=number, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@of_examples(12)
@CASES
def test_one_fact_told_wrong_is_never_silently_wrong(cell: Cell, wrong: str, seed: int) -> None:
    check_case(cell, wrong, seed)


@pytest.mark.slow
@of_examples(100)
@CASES
def test_one_fact_of_many_cases_told_wrong(cell: Cell, wrong: str, seed: int) -> None:
    check_case(cell, wrong, seed)
