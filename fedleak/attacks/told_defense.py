"""What a told defence means for an update: checked against it, and turned to the gradient."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from fedleak.updates.entries import Entries, SentUpdate
from fedleak.updates.evidence import Finding
from fedleak.updates.gradient_estimate import response
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

# Findings of an update that are no surprise where a defence was told that changes entries.
EXPECTED = frozenset({"sparse", "levels", "signs", "rank", "fewer", "loss", "counts", "labels"})


class Told(NamedTuple):
    """What the server's knowledge of a defence is worth for one update.

    Args:
        knowledge: the knowledge; without the defence where it is of no use.
        entries: parameter name -> what is known of the entries of the client's gradient; parameters
            that came as they were are missing.
        notes: a sentence each.
    """

    knowledge: Knowledge
    entries: dict[str, Entries]
    notes: tuple[str, ...] = ()

    def unexpected(self, findings: Iterable[Finding]) -> tuple[str, ...]:
        """The findings of the update that the defence does not account for."""
        expected = EXPECTED if self.entries else frozenset()
        return tuple(str(finding) for finding in findings if finding.kind not in expected)


def told_defense(update: InterceptedUpdate, knowledge: Knowledge, model: nn.Module) -> Told:
    """Check a told defence against an update, and infer what it tells of the client's gradient.

    Args:
        update: the update, by the model's names.
        knowledge: what the server knows.
        model: the architecture.
    """
    defense = knowledge.defense
    if defense is None:
        return Told(knowledge, {})
    without, name = replace(knowledge, defense=None), defense.name
    weights = update.protocol != "fedsgd"
    if weights and not (knowledge.is_one_step and knowledge.local.is_linear):
        note = f"{name} was told and is used of a gradient or of one step of SGD alone"
        return Told(without, {}, (note,))
    sent = _sent(update, knowledge, model)
    against = defense.contradiction(sent)
    if against is not None:
        note = (
            f"{name} was told, but {against}: other settings, or it was not applied last; the "
            "update is taken for what the client computed"
        )
        return Told(without, {}, (note,))
    found = defense.entries_before(sent)
    if found is None:
        return Told(without, {}, (f"{name} was told, of which the attack has no use",))
    entries = {n: _of_gradient(e, n, update, knowledge) if weights else e for n, e in found.items()}
    return Told(knowledge, entries, (f"{name} was told: {_described(entries)}",))


def _sent(update: InterceptedUpdate, knowledge: Knowledge, model: nn.Module) -> SentUpdate:
    """The update as a defence let it out."""
    names = [name for name, _ in model.named_parameters() if name in update.received]
    rounding = {}
    if update.protocol == "fedsgd":
        tensors = {name: update.received[name] for name in names}
    else:
        tensors = update.change(names)
        for name in names if update.protocol == "fedavg" else ():
            old = update.sent[name]
            size = torch.maximum(old.double().abs(), (old + tensors[name]).abs())
            rounding[name] = torch.finfo(old.dtype).eps * size
    samples = knowledge.local_batches[0]
    return SentUpdate(
        tensors, model, rounding, update.round, knowledge.steps, samples.stop - samples.start
    )


def _of_gradient(
    entries: Entries, name: str, update: InterceptedUpdate, knowledge: Knowledge
) -> Entries:
    """The same of the gradient of one step of SGD, of which the change is known."""
    own = knowledge.local.of(name)
    found = entries.times(1 / response(own, 1))
    if own.weight_decay:
        found = found.minus(own.weight_decay * update.sent[name].double())
    return found.times(-1.0) if own.maximize else found


def _described(entries: Mapping[str, Entries]) -> str:
    """The shares of the entries of which more, less or nothing is known."""
    total = sum(one.value.numel() for one in entries.values())
    if not total:
        return "no entry was changed, but for one common factor"
    exact = sum(int(one.exact.sum()) for one in entries.values())
    noisy = sum(int((one.measured & ~one.exact).sum()) for one in entries.values())
    bounded = sum(
        int((~one.measured & (one.lowest.isfinite() | one.highest.isfinite())).sum())
        for one in entries.values()
    )
    parts = (
        (exact, "exact"), (noisy, "known up to an error"), (bounded, "bounded"),
        (total - exact - noisy - bounded, "missing"),
    )  # fmt: skip
    shares = [f"{number / total:.1%} {what}" for number, what in parts if number]
    return f"of the entries that it may change {', '.join(shares)}"
