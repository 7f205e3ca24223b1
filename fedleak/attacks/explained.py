"""What share of a client's update a reconstruction explains, beyond a guess without the inputs."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from fedleak.attacks.module_facts import drawing_layers
from fedleak.attacks.uncertainty import (
    HALF,
    Around,
    Estimate,
    error_of_gradient,
    error_of_signs,
    krylov_dimensions,
    moved_by_half,
)
from fedleak.errors import first_line
from fedleak.models.noise import inject, noise_slots, record
from fedleak.updates.blocks import blocks, inner_product
from fedleak.updates.entries import Entries
from fedleak.updates.files import Tensors
from fedleak.updates.gradient_estimate import response
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.module_state import ModuleState, state_kept
from fedleak.updates.optimizer_steps import State, optimizer_step
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate

SUPPORTED_FROM = 0.5
"""Share of an update from which a reconstruction is supported by it."""
SETTLED_FROM, SETTLED_TO = 0.9, 0.25
"""Share of an update from which, and likely error up to which, it settles a reconstruction."""
# The same share of several steps of Adam and its kin, as what they leave does not show the error:
# measured on three steps of RMSprop, a share of 0.9965 at an error of 0.68, and of 0.9987 at 0.03.
SETTLED_FROM_SIGNS = 0.999
# Share of an update below which what is left is said even where the reconstruction is settled.
NEARLY_ALL = 0.99
# Share of a gradient's entries of which a step of Adam tells the size, from which signs are not all
# that settles the inputs. Measured below it, at an explained share of 1.00: errors of 0.08 to 1.1.
SIZES_FROM = 0.1
# Share of an update from which what is left is rounding, so that an error that is not estimated, as
# the model is large, is not said.
ALL_EXPLAINED = 1 - 1e-6
# What the error from the signs of the first gradient is multiplied by for several steps. Measured
# on 19 reconstructions of two samples and three steps: 0.5 to 2.7.
SEVERAL_STEPS = 2.0
NOT_SETTLED = "not settled by the update"
"""How the finding begins that a reconstruction is supported and may yet be far off."""
# Whole numbers that are replaced one by one, and samples whose labels are.
REPLACED, RELABELLED = 6, 16
# A target that is a number is moved by this share of 1 plus its size.
LABEL_STEP = 0.1
# The update is compared in size where the directions agree to this squared cosine,
SAME_DIRECTION = 0.9
# and told to differ beyond this factor.
SAME_SIZE = 1.15
# A guess explains all but rounding if it leaves no larger share of the update than this, and no
# more than this many times the rounding of each entry.
NO_MORE, ROUNDED = 1e-8, 10.0
# Share of what is left that is said, where it is this many times more than that rounding.
REST_FROM, ROUNDED_FROM = 0.5, 100.0
# Inputs are as far from the guess as this share of half their range, or of 1 where they have none.
NEAREST = 1e-3
# Of inputs in another order, least distance over their own spread.
MOVED_FROM = 0.1
# Relative difference of losses from which random numbers act on them.
SAME_LOSS = 1e-9
# Draws that are compared: one such as whether an image is flipped has the same result in many.
DRAWS = 8


@dataclass(frozen=True)
class Explained:
    """How well the update of a reconstruction agrees with the client's.

    Args:
        share: 0 to 1, see :func:`explained_share`; NaN if it cannot be computed.
        factor: the client's update over that of the reconstruction, in size. None if they differ in
            direction.
        reason: why the share cannot be computed.
        error: likely error of the inputs over their distance from a guess without the update, see
            :mod:`fedleak.attacks.uncertainty`; of whole numbers, what the update leaves unexplained
            over what another number in their place would change. None if it is not estimated, as
            where little is explained.
        not_estimated: why the error is not estimated where much is explained.
        whole: whether the samples are whole numbers.
        sizes: of one step of Adam or its kin, the share of the gradient's entries of which the
            update tells the size, and not the sign alone; else None.
        rest: of one step, share of what is left unexplained, in norm, that other inputs near these
            do not explain either, if it is more than rounding.
        by_guess: whether the guess explains all of the update up to rounding.
        off_guess: root mean square of the inputs, which is their distance from the guess.
        twin: what can be done to the inputs without changing their update, such as ``reversed along
            axis 1``; None if nothing that is tried.
        by_signs: whether the update is of several steps of Adam or its kin.
        open_labels: numbers of the samples of which other labels have the same update.
    """

    share: float
    factor: float | None = None
    reason: str | None = None
    error: float | None = None
    not_estimated: str | None = None
    whole: bool = False
    sizes: float | None = None
    rest: float = 0.0
    by_guess: bool = False
    off_guess: float = 0.0
    twin: str | None = None
    by_signs: bool = False
    open_labels: tuple[int, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether the update tells the inputs well enough, as far as that can be estimated."""
        if self._leaves_much or (self.error or 0.0) > SETTLED_TO or self.twin is not None:
            return False
        return self.whole or self.sizes is None or self.sizes >= SIZES_FROM

    @property
    def _leaves_much(self) -> bool:
        return self.share < (SETTLED_FROM_SIGNS if self.by_signs else SETTLED_FROM)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is amiss, in sentences without a full stop; empty if nothing is."""
        if self.reason is not None:
            return (f"not checked against the update, as {self.reason}",)
        found = []
        if self.share < SUPPORTED_FROM and self.by_guess:
            found.append(
                "not supported by the update: inputs of 0 explain all of it, so the client's are "
                f"likely 0, and the reconstruction is {self.off_guess:.2g} away from that (root "
                "mean square)"
            )
        elif self.share < SUPPORTED_FROM:
            found.append(
                f"not supported by the update: the reconstruction explains {self.share:.0%} of it, "
                "so nothing follows from it"
            )
        elif not self.settled:
            found.append(f"{NOT_SETTLED}: {self._doubt}")
        elif self.share < NEARLY_ALL:
            found.append(
                f"the reconstruction leaves {1 - self.share:.1%} of the update unexplained, of "
                "which the client's own inputs leave nothing unless it added noise or something "
                "was told wrong"
            )
        elif self.rest > REST_FROM:
            found.append(
                f"of what is left unexplained, {1 - self.share:.1g} of the update, no inputs near "
                "these explain much: the search ended in another minimum, or there is noise or "
                "rounding by the client, or labels, loss or number of samples are not those told"
            )
        if self.open_labels:
            of = f"{'s' * (len(self.open_labels) > 1)} {', '.join(map(str, self.open_labels))}"
            found.append(
                f"the labels of sample{of} are not determined by the update: others have the same "
                "update, as of a loss that takes the sign of an error alone"
            )
        if self.not_estimated is not None:
            found.append(f"how far off the inputs may be is not estimated: {self.not_estimated}")
        if self.factor is not None and not 1 / SAME_SIZE <= self.factor <= SAME_SIZE:
            found.append(
                f"the update is {self.factor:.2g} times as large as that of the reconstruction: "
                "learning rate, steps, number of samples or loss are not those told, or the client "
                "scales or clips what it sends"
            )
        return tuple(found)

    @property
    def _doubt(self) -> str:
        if self._leaves_much:
            share = f"{self.share:.0%}" if self.share < SETTLED_FROM else f"{self.share:.1%}"
            return (
                f"the reconstruction explains {share} of it, and the client's own inputs "
                "all of it, unless it added noise or something was told wrong"
            )
        if self.whole:
            return "what is left unexplained is as much as another number in the samples changes"
        if self.error is None or self.error <= SETTLED_TO:
            if self.twin is not None:
                return f"the same inputs {self.twin} have the same update"
            return (
                f"of {1 - (self.sizes or 0.0):.0%} of the gradient's entries it tells the sign "
                "alone, which other inputs have too"
            )
        far = f"{self.error:.0%}" if self.error < 1 else "100% or more"
        return f"the inputs may be off by {far} of their distance from a guess without it"


def explained_share(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    inputs: Tensor,
    labels: Tensor,
    noise: Mapping[str, Tensor],
    left_out: frozenset[str] = frozenset(),
    *,
    labels_act: bool = False,
    entries: Mapping[str, Entries] | None = None,
) -> Explained:
    """The share of what an update tells of the inputs that a reconstruction explains.

    ``1 - min_c |u - c v|^2 / min_c |u - c b|^2`` with c at least 0, over the parameters of which
    the update tells anything, in float64. u is the client's gradient or change of weights; v is
    that of the reconstruction, by its inputs, labels and noise through the same model, modes, loss,
    optimiser and steps; b is that of a guess that knows nothing of the inputs: all 0 (of images,
    the data set's mean), with the same labels and noise. Without b, any image with the right label
    explains 0.9999 of a LeNet's gradient, most of which is the classifier's. Where the guess itself
    explains all of the update, as of a black image, b is of inputs moved from it by half of their
    range, or by 1 where they have none. The factors c allow
    for a client that clips its gradient; where c is far from 1, a finding says so.

    Args:
        update: what the server saw, by the model's names.
        knowledge: what it knows; ``num_samples`` is that of the reconstruction.
        inputs: the reconstruction.
        labels: its labels.
        noise: its noise, by slot.
        left_out: parameters of which the update tells nothing.
        labels_act: whether the loss depends on labels. Those that are not the known ones are then
            replaced by others.
        entries: of a gradient that a told defence has changed, what is known of its entries, by
            parameter name; ``update`` then has their estimates. Only what a gradient is outside of
            it counts as a difference.

    Returns:
        A share of 0 as well where the guess is nearer, or the reconstruction is not finite. No
        share where the model draws random numbers that were not restored: with others, even the
        true inputs explain little of an update.
    """
    if update.protocol != "fedsgd" and knowledge.local.optimizer == "unknown":
        return Explained(math.nan, reason=knowledge.local.not_known)
    if not bool(inputs.isfinite().all()):
        return Explained(0.0)
    if not inputs.is_floating_point() and bool((inputs < 0).any()):
        return Explained(math.nan, reason="some numbers of the samples are not known")
    told = knowledge.labels
    known = told is not None and told.shape == labels.shape and torch.equal(told.cpu(), labels)
    relabels = labels_act and not known
    arguments = (update, knowledge, inputs, labels, noise, left_out, relabels, entries or {})
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        try:
            found = _compare(*arguments, torch.float64)
        except Exception:
            # Some models compute in one type of number only.
            try:
                return _compare(*arguments, None)
            except Exception as error:  # of the user's own code
                return Explained(math.nan, reason=f"the model fails: {first_line(error)}")
        linear = update.protocol == "fedsgd" or knowledge.local.is_linear
        if linear and found.share < SETTLED_FROM and not found.by_guess:
            # The gradient of a confident model is a difference of nearly equal numbers, which is
            # that of the true inputs in the client's precision alone.
            with suppress(Exception):
                own = _compare(*arguments, None)
                return own if own.share > found.share else found
        return found


def _compare(
    update: InterceptedUpdate,
    knowledge: Knowledge,
    inputs: Tensor,
    labels: Tensor,
    noise: Mapping[str, Tensor],
    left_out: frozenset[str],
    relabels: bool,
    entries: Mapping[str, Entries],
    kind: torch.dtype | None,
) -> Explained:
    model = private_copy(knowledge.model).cpu()
    kind = kind or next(model.parameters()).dtype
    model.to(kind).load_state_dict(update.sent)
    if knowledge.training is not None:
        model.train(knowledge.training)
    model.requires_grad_(True)
    names = [name for name, _ in model.named_parameters() if name not in left_out]
    if inputs.is_floating_point():
        inputs = inputs.to(kind)
    if labels.is_floating_point():
        labels = labels.to(kind)
    noise = {slot: value.to(kind) for slot, value in noise.items()}
    dimensions = _dimensions(model, knowledge, (inputs, labels))
    random = [*drawing_layers(model), *(slot for slot in dimensions if slot not in noise)]
    if random:
        return Explained(math.nan, reason=f"the random numbers of {random[0]} were not restored")
    client = _Client(model, update, knowledge, labels, names, dimensions, entries)
    missed, factor, own = [], None, _Scaled({}, 0.0)
    for guess in (False, True):
        before = torch.get_rng_state()
        found = client.simulated(torch.zeros_like(inputs) if guess else inputs, noise)
        # What is drawn need not act on the loss.
        drew = not guess and not torch.equal(torch.get_rng_state(), before)
        if drew and client.is_random(inputs, noise):
            title = type(knowledge.model).__name__
            return Explained(math.nan, reason=f"the random numbers of {title} were not restored")
        inner, size, whole_size = client.products(found)
        if not math.isfinite(size):
            return Explained(0.0)
        best = max(0.0, inner / size) if size else 0.0
        missed.append(client.missed(_Scaled(found, best)))
        alike = inner > 0 and inner**2 > SAME_DIRECTION * size * whole_size
        if not guess:
            own, factor = _Scaled(found, best), best if alike else None
    share = max(0.0, 1 - missed[0] / missed[1]) if missed[1] else 0.0
    rounding = client.rounding if missed[1] <= NO_MORE * whole_size else -1.0
    by_guess = missed[1] <= rounding
    if by_guess:
        # The inputs are all 0, or act on nothing.
        moved = client.missed_by(client.moved_guess(inputs), noise)
        share = float(missed[0] <= rounding)
        if moved > rounding and not share:
            share = max(0.0, 1 - missed[0] / moved)
    if share < SUPPORTED_FROM:
        off = float(inputs.double().square().mean().sqrt())
        return Explained(share, factor, by_guess=by_guess, off_guess=off)
    if entries:
        told = "a told defence has left out or changed entries of the update"
        return Explained(share, factor, not_estimated=told if share < ALL_EXPLAINED else None)
    whole = not inputs.is_floating_point()
    estimate = client.error_of_numbers if whole else client.error
    error, why, rest = None, None, 0.0
    try:
        estimated = estimate(inputs, noise, own)
        if estimated is not None:
            error, rest = estimated
        too_large = error is None and share < ALL_EXPLAINED
        why = "the model is too large" if too_large else None
    except Exception as failed:  # of the user's own code, beside the inputs that it was made for
        why = f"the model fails beside them: {first_line(failed)}"
    explained = Explained(
        share, factor, error=error, not_estimated=why, whole=whole, sizes=client.sizes, rest=rest,
        by_signs=client.is_by_signs,
        open_labels=client.open_labels(inputs, noise, own.update) if relabels else (),
    )  # fmt: skip
    if not explained.settled or whole:
        return explained
    return replace(explained, twin=client.twin(inputs, noise, own.update))


@dataclass(frozen=True)
class _Scaled:
    """An update of a reconstruction, and the factor with which it is nearest to the client's."""

    update: Tensors
    factor: float


@dataclass(frozen=True, eq=False)
class _Client:
    """A client's update and its simulation; vectors are ``(entries,)`` of the compared parameters.

    Args:
        model: a private copy of the model with the weights that were sent, in the client's modes.
        update: the update.
        knowledge: what the server knows.
        labels: the labels.
        names: the compared parameters.
        dimensions: see :func:`simulated_update`.
        entries: see :func:`explained_share`.
    """

    model: nn.Module
    update: InterceptedUpdate
    knowledge: Knowledge
    labels: Tensor
    names: list[str]
    dimensions: Mapping[str, int]
    entries: Mapping[str, Entries] = field(default_factory=dict)

    @cached_property
    def _received(self) -> Tensors:
        return {name: self.update.received[name] for name in self.names}

    @cached_property
    def _weights(self) -> list[Tensor]:
        """Copies of the weights that were sent."""
        return [self.model.get_parameter(name).detach().clone() for name in self.names]

    @cached_property
    def _state(self) -> ModuleState:
        return ModuleState(self.model)

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values by parameter as a vector."""
        return torch.cat([values[name].double().flatten() for name in self.names])

    def _blocks(self, found: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The client's gradient or change of weights and another one, block by block."""
        for name, got in self._received.items():
            if self.update.protocol == "fedavg":
                for new, old, other in blocks(got, self.update.sent[name], found[name]):
                    yield new - old, other
            else:
                for own, other in blocks(got, found[name]):
                    yield own, other

    def products(self, found: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """The inner products of the client's update with another, of that, and of the client's."""
        inner = size = whole = 0.0
        for one, other in self._blocks(found):
            inner += float(one @ other)
            size += float(other @ other)
            whole += float(one @ one)
        return inner, size, whole

    def missed(self, own: _Scaled) -> float:
        """The squared distance of the client's update from another."""
        return sum(
            float((one - own.factor * other).square().sum())
            for one, other in self._blocks(own.update)
        )

    def missed_by(self, inputs: Tensor, noise: Mapping[str, Tensor]) -> float:
        """The least squared distance of the client's update from a multiple of that of inputs."""
        found = self.simulated(inputs, noise)
        inner, size, _ = self.products(found)
        return self.missed(_Scaled(found, max(0.0, inner / size) if size else 0.0))

    def moved_guess(self, inputs: Tensor) -> Tensor:
        """Inputs of 0, moved by half of their range, or by 1 where they have none."""
        if not inputs.is_floating_point():
            return torch.ones_like(inputs)
        low, high = self.knowledge.bounds
        half = (high - low) / 2
        return torch.where(half.isfinite(), half, 1.0).to(inputs).expand_as(inputs)

    @property
    def rounding(self) -> float:
        """The squared distance up to which the client's update and a simulated one are equal."""
        total, gradient = 0.0, self.update.protocol == "fedsgd"
        for name, got in self._received.items():
            sent = self.update.sent[name]
            kept = ROUNDED * torch.finfo((got if gradient else sent).dtype).eps
            for new, old in blocks(got, sent):
                size = new.abs() if gradient else new.abs() + old.abs()
                total += float((kept * size).square().sum())
        return total

    @property
    def sent_back(self) -> Tensor:
        """The client's gradient or change of weights."""
        gradient = self.update.protocol == "fedsgd"
        return self.flat(self._received if gradient else self.update.change(self.names))

    @property
    def _is_one_step(self) -> bool:
        """Whether the update is one step of one client, which can be inverted."""
        return self.update.protocol != "fedsgd" and self.knowledge.is_one_step

    @property
    def is_by_signs(self) -> bool:
        """Whether the update is of several steps of Adam or its kin."""
        linear = self.update.protocol == "fedsgd" or self.knowledge.local.is_linear
        return not linear and not self.knowledge.is_one_step

    @property
    def sizes(self) -> float | None:
        """See :class:`Explained`."""
        if not self._is_one_step or self.knowledge.local.is_linear:
            return None
        estimate = self.update.estimate(self.knowledge.model, self.knowledge)
        # Entries that are 0, as of inactive units, tell little.
        told = self.flat(estimate.deviation)[self.flat(estimate.gradient) != 0]
        return float(told.isfinite().double().mean()) if len(told) else 0.0

    def simulated(self, inputs: Tensor, noise: Mapping[str, Tensor]) -> Tensors:
        """The same for given inputs and noise, by parameter."""
        found = self._simulated(inputs, noise, self.knowledge, self.update.protocol)
        for name, known in self.entries.items():
            if name in found:
                found[name] = known.value + known.outside(found[name].double())
        return found

    def gradient(self, inputs: Tensor, noise: Mapping[str, Tensor]) -> Tensors:
        """The gradient at the weights that were sent, for given inputs and noise."""
        return self._simulated(inputs, noise, replace(self.knowledge, protocol="fedsgd"), "fedsgd")

    def _simulated(
        self, inputs: Tensor, noise: Mapping[str, Tensor], knowledge: Knowledge, protocol: str
    ) -> Tensors:
        alone = knowledge.number_of_clients == 1
        moves = protocol != "fedsgd" and alone and knowledge.steps > 1
        batch = inputs, self.labels
        with self._state.kept():
            return simulated_update(
                copy.deepcopy(self.model) if moves else self.model, knowledge, batch, noise,
                self.names, protocol, self.dimensions,
            )  # fmt: skip

    def loss(self, inputs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The loss at the weights that were sent, without a graph."""
        first = self._first(noise)
        with torch.no_grad(), self._state.kept(), inject(self.model, first):
            return self.knowledge.loss(self.model, (inputs, self.labels))

    def is_random(self, inputs: Tensor, noise: Mapping[str, Tensor]) -> bool:
        """Whether the loss depends on random numbers that no noise slot draws."""
        found = []
        for seed in range(DRAWS):
            torch.manual_seed(seed)
            found.append(float(self.loss(inputs, noise)))
            if not math.isclose(found[0], found[-1], rel_tol=SAME_LOSS):
                return True
        return False

    def twin(self, inputs: Tensor, noise: Mapping[str, Tensor], update: Tensors) -> str | None:
        """See :class:`Explained`.

        Args:
            inputs: the reconstruction.
            noise: its noise, by slot.
            update: its update.
        """
        loss = self.loss(inputs, noise)
        rounding = SAME_LOSS if loss.dtype == torch.float64 else SAME_LOSS**0.5
        size = sum(inner_product(value, value) for value in update.values())
        for title, moved in _moves(inputs, self.knowledge):
            # The loss costs less than the update, and tells nearly all apart.
            with suppress(Exception):  # of the user's own code, beside the inputs of the client
                if not math.isclose(self.loss(moved, noise), loss, rel_tol=rounding):
                    continue
                found = self.simulated(moved, noise)
                off = sum(
                    float((a - b).square().sum())
                    for name in self.names
                    for a, b in blocks(found[name], update[name])
                )
                if off <= rounding * size:
                    return title
        return None

    def open_labels(
        self, inputs: Tensor, noise: Mapping[str, Tensor], update: Tensors
    ) -> tuple[int, ...]:
        """See :class:`Explained`; of many samples the first ones are tried.

        Args:
            inputs: the reconstruction.
            noise: its noise, by slot.
            update: its update.
        """
        return tuple(
            sample
            for sample in range(min(RELABELLED, len(inputs)))
            if any(
                self._is_same(inputs, noise, update, labels) for labels in self._relabelled(sample)
            )
        )

    def _is_same(
        self, inputs: Tensor, noise: Mapping[str, Tensor], update: Tensors, labels: Tensor
    ) -> bool:
        """Whether other labels have the same update, up to the client's rounding."""
        with suppress(Exception):  # there may be no such class
            found = replace(self, labels=labels).simulated(inputs, noise)
            off = sum(
                float((a - b).square().sum())
                for name in self.names
                for a, b in blocks(found[name], update[name])
            )
            return off <= self.rounding
        return False

    def _relabelled(self, sample: int) -> Iterator[Tensor]:
        """The labels with others of one sample: moved both ways, or other classes."""
        own = self.labels[sample]
        if own.is_floating_point():
            step = LABEL_STEP * (1 + own.abs())
            others = [own + step, own - step]
        elif own.numel() == 1 and self.knowledge.num_classes:
            classes = [k for k in range(self.knowledge.num_classes) if k != int(own)]
            others = [torch.full_like(own, k) for k in classes[:REPLACED]]
        else:
            others = []
        for other in others:
            labels = self.labels.clone()
            labels[sample] = other
            yield labels

    def _first(self, noise: Mapping[str, Tensor]) -> Tensors:
        """Of noise of several epochs, that of the first."""
        return {
            slot: value[:, 0] if value.dim() > self.dimensions.get(slot, value.dim()) else value
            for slot, value in noise.items()
        }

    def input_gradient(
        self, inputs: Tensor, noise: Mapping[str, Tensor], offset: Tensor
    ) -> Tensors:
        """The gradient of the loss in inputs and noise, at the sent weights plus a vector.

        Args:
            inputs: the inputs.
            noise: the noise, by slot.
            offset: what is added to the weights, ``(entries,)``.

        Returns:
            Slot -> gradient, that of the inputs by an empty name.
        """
        leaves = {"": inputs, **noise}
        leaves = {slot: value.detach().clone().requires_grad_() for slot, value in leaves.items()}
        first = self._first({slot: value for slot, value in leaves.items() if slot})
        weights = [self.model.get_parameter(name) for name in self.names]
        parts = offset.split([value.numel() for value in weights])
        kept = self._weights
        try:
            # In place, as other tensors of the model may be views of its weights.
            for value, part in zip(weights, parts, strict=True):
                value.data += part.reshape(value.shape).to(value)
            with self._state.kept(), inject(self.model, first):
                loss = self.knowledge.loss(self.model, (leaves[""], self.labels))
            found = torch.autograd.grad(
                loss, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        finally:
            for value, own in zip(weights, kept, strict=True):
                value.data.copy_(own)
        return dict(zip(leaves, found, strict=True))

    def error(self, inputs: Tensor, noise: Mapping[str, Tensor], own: _Scaled) -> Estimate | None:
        """The likely error of a reconstruction, see :mod:`fedleak.attacks.uncertainty`.

        Args:
            inputs: the reconstruction.
            noise: its noise, by slot.
            own: its update, as near to the client's as it can be.
        """
        update, local, steps = self.update, self.knowledge.local, self.knowledge.steps
        low, high = (bound.to(inputs).expand_as(inputs[0]) for bound in self.knowledge.bounds)
        # Of normalised images 0 is the mean of all; else it may be at the end of their range.
        inside = ((low < 0) & (high > 0)) | ~(low.isfinite() & high.isfinite())
        guess = torch.where(inside, 0.0, (low + high) / 2).expand_as(inputs)
        entries = sum(update.sent[name].numel() for name in self.names)
        if not krylov_dimensions(len(inputs), entries):
            return None
        in_float64 = self.loss(inputs, noise).dtype == torch.float64
        around = Around(
            lambda *moved: self.flat(self.gradient(*moved)),
            partial(self.input_gradient, inputs, noise),
            lambda *moved: self.flat(self.simulated(*moved)),
            inputs, noise, guess, self.flat(update.sent), in_float64,
            _least_distance(inputs, low, high),
        )  # fmt: skip
        target, found = self.sent_back, own.factor * self.flat(own.update)
        missed = target - found
        rounding = torch.finfo(update.received[self.names[0]].dtype).eps
        if update.protocol == "fedsgd":
            return self._more_than_rounding(
                error_of_gradient(around, missed, rounding * target.abs()), own
            )
        sizes = self.flat(update.sent).abs() + target.abs()
        groups = local.groups(self.names)
        if local.is_linear:
            scale = self.flat(
                {
                    name: torch.full_like(update.sent[name].double(), response(own, steps))
                    for name, own in groups.items()
                }
            )
            return self._more_than_rounding(
                error_of_gradient(around, missed / scale, rounding * sizes / scale.abs()), own
            )
        known = torch.full_like(target, math.inf)
        if self._is_one_step:
            estimate = update.estimate(self.knowledge.model, self.knowledge)
            known = self.flat(estimate.deviation)
            size = self.flat(estimate.gradient).abs()
            measured = known.isfinite() & (size > 0)
            if bool(measured.any()):
                off = self.flat(self.gradient(inputs, noise)).abs()[measured] / size[measured] - 1
                known = known + float(off.square().mean().sqrt()) * size
        error = error_of_signs(around, known)
        if error is not None and steps > 1:
            # The signs are those of the first gradient; over several steps they tell less of it.
            error *= SEVERAL_STEPS
        # How far a move changes the update by as much as is left unexplained: wrong signs.
        moved = max(moved_by_half(around, found), 1e-300)
        wrong = HALF * math.sqrt(float(missed.square().sum()) / moved)
        return None if error is None else Estimate(math.hypot(error, wrong))

    def _more_than_rounding(self, found: Estimate | None, own: _Scaled) -> Estimate | None:
        """An estimate without a rest that is rounding, or that of steps of other gradients."""
        one = self.update.protocol == "fedsgd" or self.knowledge.is_one_step
        if found is None or (one and self.missed(own) > ROUNDED_FROM**2 * self.rounding):
            return found
        return found._replace(rest=0.0)

    def error_of_numbers(
        self, inputs: Tensor, noise: Mapping[str, Tensor], own: _Scaled
    ) -> Estimate:
        """The same of whole numbers: what is left over the least change by another number."""
        base = self.simulated(inputs, noise)
        generator = torch.Generator().manual_seed(0)
        changes = []
        for place in torch.randperm(inputs.numel(), generator=generator)[:REPLACED].tolist():
            moved = inputs.clone()
            flat = moved.view(-1)
            # Up to the numbers that are there, any is one that an embedding takes.
            others = {int(flat[place]) - 1, 0, *inputs.flatten(1)[:, place % inputs[0].numel()]}
            others = {int(other) for other in others} - {-1, int(flat[place])}
            if others:
                flat[place] = min(others)
                found = self.simulated(moved, noise)
                changes.append(
                    sum(
                        float((a - b).square().sum())
                        for name in self.names
                        for a, b in blocks(found[name], base[name])
                    )
                )
        return Estimate(self.missed(own) / max(min(changes, default=math.inf), 1e-300))


def simulated_update(
    model: nn.Module,
    knowledge: Knowledge,
    batch: tuple[Tensor, Tensor],
    noise: Mapping[str, Tensor],
    names: list[str],
    protocol: str,
    dimensions: Mapping[str, int],
) -> Tensors:
    """The gradient, or the change of weights, that a client would send for given inputs.

    Of several clients it is the mean of theirs, each from the same weights.

    Args:
        model: a private copy of the model with the weights that were sent, in the client's modes;
            its weights are moved by several steps.
        knowledge: gives loss, optimiser, steps and clients.
        batch: inputs and labels of all samples, the first client's first.
        noise: slot -> noise ``(num_samples, ...)``, or ``(num_samples, epochs, ...)``; other slots
            draw their own.
        names: the parameters to return.
        protocol: ``fedsgd`` for a gradient.
        dimensions: slot -> number of dimensions of what it draws in one forward pass.
    """
    inputs, labels = batch
    if knowledge.number_of_clients > 1:
        total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        for client in knowledge.by_client:
            samples = client.samples
            moved = simulated_update(
                copy.deepcopy(model), client.knowledge, (inputs[samples], labels[samples]),
                {slot: value[samples] for slot, value in noise.items()}, names, protocol,
                dimensions,
            )  # fmt: skip
            total = {name: value + client.weight * moved[name] for name, value in total.items()}
        return total
    steps = knowledge.steps
    batches = knowledge.local_batches if steps > 1 else [slice(0, len(inputs))]
    parameters = {name: model.get_parameter(name) for name in names}
    # One step moves no weight that is read again.
    begin = {n: v.detach().clone() for n, v in parameters.items()} if steps > 1 else {}
    state: State = {}
    for step in range(steps):
        part = batches[step % len(batches)]
        # Of epochs that were simulated, the noise has an axis for them.
        own = {
            name: value[part, step // len(batches)]
            if value.dim() > dimensions.get(name, value.dim())
            else value[part]
            for name, value in noise.items()
        }
        with inject(model, own):
            loss = knowledge.loss(model, (inputs[part], labels[part]))
        found = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        gradients = dict(zip(parameters, found, strict=True))
        if protocol == "fedsgd":
            return gradients
        weights = {name: value.detach() for name, value in parameters.items()}
        changes, state = optimizer_step(knowledge.local, weights, gradients, state, step)
        if steps == 1:
            return changes
        for name, value in parameters.items():
            value.data += changes[name]
    return {name: value.detach() - begin[name] for name, value in parameters.items()}


def _moves(inputs: Tensor, knowledge: Knowledge) -> Iterator[tuple[str, Tensor]]:
    """The samples in other orders and with the other sign, far from what they are.

    A model that takes a set, a mean over places, or squares, does not tell them apart.
    """
    # Of images the channels, which no model takes for each other, stay.
    axes = range(2 if inputs.dim() == 4 else 1, inputs.dim())
    found = [(f"shifted along axis {axis - 1}", inputs.roll(1, axis)) for axis in axes]
    found += [(f"reversed along axis {axis - 1}", inputs.flip(axis)) for axis in axes]
    low, high = (bound.to(inputs) for bound in knowledge.bounds)
    if bool(((-inputs >= low) & (-inputs <= high)).all()):
        found.append(("with the other sign", -inputs))
    size = MOVED_FROM * float((inputs - inputs.mean()).norm())
    for title, moved in found:
        if float((moved - inputs).norm()) > max(size, _least_distance(inputs, low, high)):
            yield title, moved


def _least_distance(inputs: Tensor, low: Tensor, high: Tensor) -> float:
    """What is not nearer than rounding: a share of half the range of each entry, or of 1."""
    width = torch.where(low.isfinite() & high.isfinite(), (high - low) / 2, 1.0)
    return NEAREST * float(width.expand_as(inputs[0]).norm() * len(inputs) ** 0.5)


def _dimensions(
    model: nn.Module, knowledge: Knowledge, batch: tuple[Tensor, Tensor]
) -> dict[str, int]:
    """Slot -> number of dimensions of what it draws in one forward pass."""
    if not noise_slots(model):
        return {}
    with record(model) as notes, torch.no_grad(), state_kept(model):
        knowledge.loss(model, batch)
    return {name: values[0].dim() for name, values in notes.items() if values}
