"""Shares of labels in the clients' data, by shadow clients: of each client, and of all together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.audit.ladder import Public, Report, Victim, setting_of, truth_of
from fedleak.audit.shadow_clients import (
    LabelShares,
    Shadow,
    sum_shadows,
    total_variation_distance,
    train_shadows,
    weights_of,
)
from fedleak.audit.share_correction import PASSES, correct_shares
from fedleak.audit.simulation import Observed
from fedleak.audit.verdict import Answer, Estimate
from fedleak.errors import BadInput
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.files import Tensors
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.loss_probe import LossProbe
from fedleak.updates.private_model import private_copy

# Shadow clients: as many as the time allows, within these numbers.
FEWEST_SHADOWS, MOST_SHADOWS = 40, 160
# Shadow clients by which it is foreseen how long the fewest take.
TRIED_SHADOWS = 3
# Shadow clients with the shares that were found for a client, in each pass of the correction, and
# the part of the time that the others leave for them.
SHADOWS_OF_A_CLIENT, CORRECTION_SHARE = 3, 0.5
MADE_UP = "made-up inputs"
SEVERAL = "a sample has several labels, each yes or no"


class ShadowTraining:
    """Shadow clients like the clients of the first round, trained when they are first needed.

    Args:
        victims: the victims; those of the first round are asked about.
        public: samples like the clients'. If None, they are made up: normal random numbers.
        seconds: time for the shadow clients.
        seed: seed of the shadow clients.
        report: told what is being done.
        train: trains them. If None, :func:`fedleak.audit.shadow_clients.train_shadows`.

    Attributes:
        victims: those of the first round.
        public: samples like the clients', or None.
        seconds: time for all shadow clients.
        layer: the path of the linear layer that is called last, or None.
    """

    def __init__(
        self,
        victims: Sequence[Victim],
        public: Public | None,
        *,
        seconds: float,
        seed: int = 0,
        report: Report = lambda text: None,
        train: Callable[..., Iterator[Shadow]] | None = None,
    ) -> None:
        self._train = train or train_shadows
        self.victims = [v for v in victims if v.update.round == victims[0].update.round]
        self.public, self.seconds, self._seed, self._report = public, seconds, seed, report
        self._spent = 0.0
        self.layer, self._outputs = _head(victims[0])

    @cached_property
    def applies(self) -> bool:
        """Whether labels are classes, or one yes or no a sample, and the loss uses them.

        An autoencoder may be given labels that it does not use.
        """
        return self._kind in ("classes", "binary")

    @cached_property
    def _kind(self) -> str:
        """What the labels are: classes, binary, several (of a sample), or none that have shares."""
        facts = self.victims[0].known.knowledge
        example = facts.label_example
        if self.layer is None or example is None:
            return "none"
        model = private_copy(facts.model)
        if facts.training is not None:
            model.train(facts.training)
        kind = LossProbe(model, facts).kind
        if kind == "binary":
            return "binary" if example.numel() == len(example) else "several"
        if kind in ("none", "numbers") or example.is_floating_point() or example.dim() != 1:
            return "none"
        return "classes"

    @property
    def classes(self) -> int:
        """Number of classes; 2 where a sample has one label, yes or no."""
        return 2 if self._kind == "binary" else self._outputs

    @property
    def several(self) -> bool:
        """Whether a sample has several labels, each yes or no, which are not asked about."""
        return self._kind == "several"

    @property
    def _loss(self) -> Callable[[nn.Module, Any], Tensor]:
        """The loss of a batch whose labels are numbers of classes ``(N,)``."""
        facts = self.victims[0].known.knowledge
        example = facts.label_example
        if self._kind != "binary" or example is None:
            return facts.loss
        kind, shape = example.dtype, example.shape[1:]

        def of_binary(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return facts.loss(model, (batch[0], batch[1].to(kind).reshape(-1, *shape)))

        return of_binary

    @property
    def source(self) -> Public:
        """The samples that the shadow clients train on."""
        if self.public is not None:
            return self.public
        facts, whole = self.victims[0].known.knowledge, self.victims[0].whole
        generator = torch.Generator().manual_seed(self._seed)
        number = 20 * self.classes
        shape = (number, *facts.input_shape)
        made = (
            torch.randn(shape, generator=generator) if whole is None
            else torch.randint(whole, shape, generator=generator)
        )  # fmt: skip
        return Public(made, torch.arange(number) % self.classes, MADE_UP)

    @cached_property
    def shadows(self) -> list[Shadow]:
        """The shadow clients.

        Raises:
            BadInput: if the clients' optimiser cannot be followed, a class has no public sample, or
                the time does not suffice.
        """
        training, numbers = common_training(self.victims)
        if training.optimizer == "unknown" or training.learning_rate is None:
            raise BadInput("the clients' optimiser cannot be followed")
        begun, found = time.monotonic(), list[Shadow]()
        seconds = self.seconds
        enough = seconds if self.public is None else (1 - CORRECTION_SHARE) * seconds
        for shadow in self._shadows(numbers, MOST_SHADOWS, self._seed):
            found.append(shadow)
            self._report(f"shadow client {len(found)} of at most {MOST_SHADOWS}")
            self._spent = time.monotonic() - begun
            needed = FEWEST_SHADOWS * self._spent / len(found)
            if len(found) >= FEWEST_SHADOWS and self._spent > enough:
                break
            if TRIED_SHADOWS <= len(found) < FEWEST_SHADOWS and needed > seconds:
                raise BadInput(
                    f"{FEWEST_SHADOWS} shadow clients need about {needed:.0f} s, more than the "
                    f"{seconds:.0f} s that the budget has for them"
                )
        return found

    def with_shares(self, shares: Tensor, number: int) -> list[Shadow] | None:
        """Shadow clients that have the shares of labels which were found for the victims.

        Args:
            shares: ``(victims, classes)``.
            number: number of the pass, whose shadow clients have samples of their own.

        Returns:
            The shadow clients, see :func:`fedleak.audit.share_correction.correct_shares`; None if
            the time does not suffice.
        """
        many = SHADOWS_OF_A_CLIENT * len(shares)
        each = self._spent / max(1, len(self.shadows))
        if self._spent + many * each > self.seconds:
            return None
        _, numbers = common_training(self.victims)
        begun, found = time.monotonic(), list[Shadow]()
        for shadow in self._shadows(numbers, many, derive_seed(self._seed, number), shares):
            found.append(shadow)
            self._report(
                f"shadow client {len(found)} of {many} with the shares found, pass {number + 1} of "
                f"at most {PASSES}"
            )
        self._spent += time.monotonic() - begun
        return found

    def _shadows(
        self, numbers: Sequence[int], many: int, seed: int, shares: Tensor | None = None
    ) -> Iterator[Shadow]:
        """So many shadow clients of the first round, with numbers of samples in turn."""
        first, facts, public = self.victims[0], self.victims[0].known.knowledge, self.source
        training, _ = common_training(self.victims)
        model = facts.model if facts.training is None else facts.model.train(facts.training)
        return self._train(
            model, dict(first.update.sent), self._loss, training, public.inputs, public.labels,
            samples=numbers, classes=self.classes, number=many, layer=self.layer, shares=shares,
            seed=seed,
        )  # fmt: skip


def label_shares(observed: Observed, training: ShadowTraining) -> Answer | None:
    """Shares of labels in each client's data.

    Args:
        observed: what the app's run has left; its truth is read after the attack.
        training: the shadow clients.

    Returns:
        The answer; None where the clients' samples have no labels that have shares.
    """
    victims, layer = training.victims, training.layer
    if training.several:
        return _not_tried(training, victims, 2, SEVERAL)
    if not training.applies:
        return None
    assert layer is not None  # where it applies
    try:
        fitted = LabelShares.fit(training.shadows, layer)
    except BadInput as error:
        return _not_tried(training, victims, 2, str(error))
    found, passes = fitted([_change(victim, layer) for victim in victims]), 0
    # Made-up samples tell how clients of made-up samples are misjudged, not the app's.
    if training.public is not None:
        found, passes = correct_shares(found, fitted, training.with_shares)
    truth = _true_shares(observed, victims, training.classes)
    others = (truth.sum(0) - truth) / max(1, len(truth) - 1)
    equal = torch.full_like(truth, 1 / training.classes)
    # Of the guesses that need no update, the one that is nearer decides.
    guesses = {"the mean of the other clients": others, "equal shares": equal}
    far = {of: float(total_variation_distance(g, truth).mean()) for of, g in guesses.items()}
    if len(truth) == 1:
        del far["the mean of the other clients"]
    best = min(far, key=lambda of: far[of])
    verbs = {of: "have" if of == "equal shares" else "has" for of in far}
    rest = "".join(f", {of} {verbs[of]} {far[of]:.3g}" for of in far if of != best)
    note = (
        f"{len(training.shadows)} shadow clients on {training.source.name}"
        f"{_of_correction(training, passes)}; the guess is {best}{rest}"
    )
    return _answer(training, victims, 2, found, truth, guesses[best], note)


def _of_correction(training: ShadowTraining, passes: int) -> str:
    """What corrected the shares, for an answer's note."""
    if training.public is None:
        return ""
    if not passes:
        return ", without correction, for which there was no time"
    return (
        f", and {passes} times {SHADOWS_OF_A_CLIENT} for each client with the shares found for it, "
        "which correct them"
    )


def label_shares_of_sum(
    observed: Observed, training: ShadowTraining, whole: Victim
) -> Answer | None:
    """Shares of labels in the data of all clients, from the sum of their updates.

    The map is learned from federations of shadow clients
    (:func:`fedleak.audit.shadow_clients.sum_shadows`). The guess without the update is the shares
    of the public samples, or equal shares.

    Args:
        observed: what the app's run has left; its truth is read after the attack.
        training: the shadow clients.
        whole: the sum of the updates of the first round, see
            :func:`fedleak.audit.sums.sum_of_round`.

    Returns:
        The answer; None where the clients' samples have no labels that have shares.
    """
    if training.several:
        return _not_tried(training, [whole], 0, SEVERAL)
    if not training.applies:
        return None
    layer, classes = training.layer, training.classes
    assert layer is not None  # where it applies
    numbers = whole.known.knowledge.client_samples
    weights = [number / sum(numbers) for number in numbers]
    try:
        federations = sum_shadows(training.shadows, layer, weights)
        fitted = LabelShares.fit(federations, layer)
    except BadInput as error:
        return _not_tried(training, [whole], 0, str(error))
    found = fitted([_change(whole, layer)])
    truth = _true_shares(observed, [whole], classes)
    guess, of = torch.full_like(truth, 1 / classes), "equal shares"
    if training.public is not None:
        guess = _shares(training.public.labels, classes)[None]
        of = f"the shares in {training.public.name}"
    note = (
        f"federations of {len(weights)} drawn from {len(training.shadows)} shadow clients on "
        f"{training.source.name}; the guess is {of}"
    )
    return _answer(training, [whole], 0, found, truth, guess, note)


def common_training(victims: Sequence[Victim]) -> tuple[LocalTraining, list[int]]:
    """The local training of shadow clients, and their numbers of samples.

    Where the clients make the same number of passes over their samples, shadow clients have as many
    samples as they, which messages tell or steps show; else as many as they have on average, and as
    many steps as the first one. Of a gradient it is one step of rate 1.

    Args:
        victims: the clients.
    """
    own = [victim.known.knowledge for victim in victims]
    numbers = [facts.num_samples for facts in own]
    first = own[0]
    if first.protocol == "fedsgd":
        return LocalTraining(learning_rate=1.0, steps=1), numbers
    whole = all(facts.steps % len(facts.local_batches) == 0 for facts in own)
    if whole and {facts.epochs for facts in own} == {first.epochs}:
        return replace(first.local, steps=None, epochs=first.epochs), numbers
    return first.local, [round(sum(numbers) / len(numbers))]


def _change(victim: Victim, layer: str) -> Tensors:
    """The change of a layer's weights; of a gradient, by one step of rate 1."""
    update, names = victim.update, weights_of(layer)
    if update.protocol == "fedsgd":
        return {n: -update.received[n].double() for n in names if n in update.received}
    return update.change(names)


def _answer(
    training: ShadowTraining, victims: Sequence[Victim], rung: int, found: Tensor, truth: Tensor,
    guess: Tensor, note: str,
) -> Answer:  # fmt: skip
    """The answer for shares ``(victims, classes)`` that were found, are true, and were guessed."""
    distances = total_variation_distance(found, truth)
    guesses = total_variation_distance(guess, truth)
    return Answer(
        **_question(training, victims, rung),
        answer=Estimate.of(distances.tolist()),
        guess=Estimate.of(guesses.tolist()),
        gains=tuple((guesses - distances).tolist()),
        note=note,
    )


def _not_tried(
    training: ShadowTraining, victims: Sequence[Victim], rung: int, reason: str
) -> Answer:
    nothing = Estimate.of([])
    return Answer(
        **_question(training, victims, rung),
        answer=nothing,
        guess=nothing,
        gains=(),
        tried=False,
        note=reason.rstrip("."),
    )


def _question(training: ShadowTraining, victims: Sequence[Victim], rung: int) -> dict[str, Any]:
    return {
        "rung": rung, "question": "shares of labels", "perfect": 0.0, "worst": 1.0,
        "measure": "total variation distance of the shares, 0 is exact",
        "threat_model": "C" if training.public is None else "D", "attack": "shadow clients",
        "setting": setting_of(victims),
    }  # fmt: skip


def _true_shares(observed: Observed, victims: Sequence[Victim], classes: int) -> Tensor:
    return torch.stack([_shares(truth_of(observed, v).labels, classes) for v in victims])


def _shares(labels: Tensor | None, classes: int) -> Tensor:
    assert labels is not None
    numbers = labels.flatten().round().long()
    counted = numbers[numbers >= 0]  # a loss leaves out labels such as -100
    shares = torch.bincount(counted, minlength=classes)[:classes].double()
    return shares / max(1, counted.numel())


def _head(victim: Victim) -> tuple[str | None, int]:
    """The linear layer that is called last, and its number of outputs."""
    facts = victim.known.knowledge
    model = private_copy(facts.model)
    if facts.training is not None:
        model.train(facts.training)
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    called: list[tuple[str, nn.Linear]] = []
    for name, part in linear:
        part.register_forward_hook(lambda *_, own=(name, part): called.append(own))
    kind = torch.float32 if victim.whole is None else torch.long
    inputs = torch.zeros(2, *facts.input_shape, dtype=kind)
    with suppress(Exception):  # of the app's own code, which may need other samples
        facts.loss(model, (inputs, facts.dummy_labels(2)))
    # Layers may be called in another order than they are made in.
    if not (called or linear):
        return None, 0
    name, last = (called or linear)[-1]
    return name, last.out_features
