"""A server that sends a model whose units divide one feature into bins of one sample each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require, unknown_name
from fedleak.servers.base import Change, Crafted, MaliciousServer, Reading
from fedleak.servers.bin_thresholds import Division, bin_thresholds, tail_shares
from fedleak.servers.bin_weights import (
    OVERFLOWING,
    ROUNDED,
    TINY_RATE,
    Scales,
    bin_weights,
    even_signals,
    keeping_gain,
    one_sided_signals,
    shuffled,
    without_biases,
)
from fedleak.servers.certificate import (
    LONGEST,
    Labels,
    labels_of,
    largest_turn,
    turned,
    usual_share,
)
from fedleak.servers.conv_network import (
    ConvNetwork,
    encoder_features,
    find_network,
    linear_layers_lacking,
    with_weights,
)
from fedleak.servers.feature_scale import scaled_features
from fedleak.servers.features_to_images import Likely, fitted_inputs, linear_inputs
from fedleak.updates.files import Tensors, opened
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

Rate = Literal["client", "server"]

EMPTY = 1e-6
"""A difference of two rows below this share of the rows is rounding: no sample is in the bin."""
WIDER = 2.0
"""Share of the samples that fire the first unit at the client's own rate, in units of the share
that fires the second."""
SAME = 1e-4
"""Directions of two bins that differ by less are of the same sample."""
NEARLY = 100
"""A bin that turns by up to so many times the tolerance is read, but not certified."""
TOLERANCE = {TINY_RATE: 1e-8, ROUNDED: 1e-7, OVERFLOWING: 1e-7}
"""By how much the direction of one sample may turn: by rounding, and by Adam's ``eps``."""
SMALLEST_EPS = 1e-9
"""Smallest ``eps`` of Adam below which the tiny gradients would not be tiny beside it."""


@dataclass(kw_only=True, eq=False, repr=False)
class Bins(MaliciousServer):
    """Reads single samples out of an epoch's update by parameters alone.

    The model is an encoder, such as convolutions, and three linear layers with ReLU. The server
    sets the linear layers so that unit ``j`` of the first fires if one feature of a sample exceeds
    a threshold ``t_j``, and so that the same signal comes back to all units
    (:mod:`fedleak.servers.bin_weights`). Then the difference of two neighbouring rows of the
    layer's update is the sum of the samples between two thresholds, and one sample there is read up
    to a factor. The thresholds are quantiles of public samples' features, such that one of the
    client's samples is expected in each bin; about 1/e of the bins hold exactly one.

    A second round with the same thresholds and other signals of the classes shows which bins hold
    one sample: its direction stays. Every further pair of rounds divides another feature.

    The weights follow from what is known of the client's training. With SGD at the client's own
    rate, clipped or not, float32's rounding keeps them; with Adam or AdamW, not clipped, an
    overflow does; with ``rate`` server the training moves nothing. Where weight decay shrinks the
    features, the bins divide the ratio of two of them, which stays.

    Args:
        rate: ``client`` (the client keeps its learning rate) or ``server`` (the server sets a tiny
            one, of SGD; of Adam the weights alone are enough and no rate is sent).
        learning_rate: the rate that the server sets.
        rate_name: the entry of the training configuration that the client takes its rate from.
        only_class: read samples of this class alone, of which more are read; needs ``rate`` server
            and SGD. If None, of all classes.
        class_share: expected share of that class among the samples. If None, that of equal classes.
        rounds: number of rounds; two for each feature.
        samples: number of the samples of all attacked clients together. If None, that of the
            knowledge.
        above: share of the samples above the last threshold. Further up there are too few public
            samples to tell quantiles from.
        tolerance: largest ``1 - |cos|`` between two rounds at which a bin is certified. If None,
            1e-8 at the server's rate and 1e-7 otherwise. Noise in the update, as by the quantiser
            of secure aggregation, needs more; what two samples of different classes could turn by
            is never certified, at about 1e-6, and bins up to 100 times the tolerance are read.
        encoder: safetensors file with weights of the encoder that keep more of the input, by their
            names in the model. If None, the encoder stays as it is.
        steps: number of steps in which inputs are fitted to the features. If 0, they are a linear
            function of the features.
        likeliness: weight in this fit of the deviation from the public samples' mean, in units of
            their covariance, beside the mean squared error of the features.
        smoothness: weight of the total variation.

    Raises:
        BadInput: if a hyperparameter is out of its range.
    """

    name: ClassVar[str] = "bins"
    paper: ClassVar[str] = (
        "Fowl et al., ICLR 2022, https://arxiv.org/abs/2110.13057 (bins, in an added module); "
        "here in the parameters of the client's own model"
    )
    threat_model: ClassVar[str] = "malicious server that chooses parameters"
    changes: ClassVar[frozenset[Change]] = frozenset({"parameters", "hyperparameters"})
    needs: ClassVar[str] = (
        "an encoder and three linear layers with ReLU; public samples; SGD, Adam or AdamW"
    )

    rate: Rate = "client"
    learning_rate: float = 1e-12
    rate_name: str = "lr"
    only_class: int | None = None
    class_share: float | None = None
    rounds: int = 2
    samples: int | None = None
    above: float = 0.05
    tolerance: float | None = None
    encoder: str | None = None
    steps: int = 100
    likeliness: float = 0.1
    smoothness: float = 0.2

    def __post_init__(self) -> None:
        if self.rate not in ("client", "server"):
            raise unknown_name("rate of bins", str(self.rate), ("client", "server"))
        checks: list[tuple[str, Any, bool, str]] = [
            (
                "learning_rate", self.learning_rate, 0 < self.learning_rate <= 1e-9,
                "above 0, to 1e-9",
            ),
            ("rounds", self.rounds, self.rounds >= 1, "at least 1"),
            ("samples", self.samples, self.samples is None or self.samples >= 2, "at least 2"),
            ("above", self.above, 0 <= self.above < 1, "from 0 to below 1"),
            ("steps", self.steps, self.steps >= 0, "at least 0"),
            ("likeliness", self.likeliness, self.likeliness >= 0, "at least 0"),
            ("smoothness", self.smoothness, self.smoothness >= 0, "at least 0"),
            (
                "tolerance", self.tolerance, self.tolerance is None or 0 < self.tolerance < 1,
                "above 0 and below 1",
            ),
            (
                "class_share", self.class_share,
                self.class_share is None or 0 < self.class_share <= 1, "above 0, to 1",
            ),
        ]  # fmt: skip
        for name, value, fits, span in checks:
            require(fits, f"Expected `{name}` of bins {span}, got {value!r:.60}.")
        require(
            self.only_class is None or self.rate == "server",
            "Expected `rate` server with `only_class`, as at the client's own rate all classes get "
            f"a signal, got {self.rate}.",
        )

    def features_of(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`MaliciousServer.features_of`; 0 for those that the bins divide."""
        network = find_network(model, tuple(inputs.shape[1:]))
        features = encoder_features(with_weights(model, model.state_dict()), network, inputs)
        divided = model.get_parameter(f"{network.linear[0]}.weight").detach().cpu().any(dim=0)
        return torch.where(divided, 0.0, features)

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`MaliciousServer.refuses_model`."""
        reason = linear_layers_lacking(model)
        return (
            f"bins needs an encoder and three linear layers with bias, got {reason}"
            if reason
            else None
        )

    def craft(
        self,
        knowledge: Knowledge,
        *,
        public: Tensor | None,
        generator: torch.Generator,
        earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = (),
    ) -> Crafted:
        """See :meth:`MaliciousServer.craft`."""
        network = find_network(knowledge.model, knowledge.input_shape)
        scales = self._scales(knowledge)
        public = _checked_public(knowledge, public)
        # The encoder of the first round stays, so that the features do.
        sent = earlier[0][0].weights if earlier else self._encoder(knowledge, network)
        repeated = earlier[-1][0] if len(earlier) % 2 else None
        if repeated is None:
            features = encoder_features(with_weights(knowledge.model, sent), network, public)
            used = [int(sent.memory["feature"]) for sent, _ in earlier]
            division = self._division(knowledge, network, scales, features, used, generator)
            before, first_gain = None, None
            if scales is ROUNDED:
                first_gain = keeping_gain(division, features, scales)
        else:
            division = Division.from_memory(repeated.memory)
            before, first_gain = repeated.memory["signals"], float(repeated.memory["first_gain"])
        signals = self._signals(network.classes, scales, len(earlier) // 2)
        if self.only_class is None:
            signals = shuffled(signals, before, generator)
        weights = bin_weights(
            sent, network, division=division, signals=signals, scales=scales,
            only_class=self.only_class, first_gain=first_gain,
        )  # fmt: skip
        first_gain = scales.gain if first_gain is None else first_gain
        return Crafted(
            weights,
            {self.rate_name: self.learning_rate} if scales is TINY_RATE else {},
            division.to_memory()
            | {"signals": signals, "first_gain": torch.tensor(first_gain, dtype=torch.float64)},
        )

    def read(
        self,
        knowledge: Knowledge,
        rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
        *,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> Reading:
        """See :meth:`MaliciousServer.read`."""
        require(bool(rounds), "Expected at least one round to read, got none.")
        network = find_network(knowledge.model, knowledge.input_shape)
        scales = self._scales(knowledge)
        public = _checked_public(knowledge, public)
        model = with_weights(knowledge.model, rounds[0][0].weights)
        known = encoder_features(model, network, public)
        parts = [
            self._read_feature(knowledge, network, scales, rounds[at : at + 2], known)
            for at in range(0, len(rounds), 2)
        ]
        features, labels, certified = (
            torch.cat([part[name] for part in parts])
            for name in ("features", "labels", "certified")
        )
        kept = first_of_each(features, certified)
        features, labels, certified = features[kept], labels[kept], certified[kept]
        exact = torch.cat([part["exact"] for part in parts])[kept]
        return Reading(
            inputs=self._inputs(knowledge, model, network, features, known, public),
            labels=labels,
            certified=certified,
            features=torch.where(exact, features, 0.0).float(),
            findings=tuple(_findings(parts, int(certified.sum()), len(rounds))),
        )

    def _scales(self, knowledge: Knowledge) -> Scales:
        """The sizes of the weights for a client's training.

        Raises:
            BadInput: if no sizes are known under which it moves neither thresholds nor signals.
        """
        facts = knowledge.local
        if facts.optimizer == "sgd":
            return TINY_RATE if self.rate == "server" else ROUNDED
        if facts.optimizer not in ("adam", "adamw"):
            raise BadInput(f"Expected a client that trains by sgd, adam or adamw, got {facts}.")
        decays = facts.optimizer == "adam" and facts.weight_decay
        require(
            not decays and facts.epsilon >= SMALLEST_EPS and self.only_class is None,
            f"Expected adam without weight decay, or adamw, with `eps` of at least {SMALLEST_EPS} "
            f"and no `only_class`, got {facts}"
            f"{'' if self.only_class is None else ' and a class'}.",
        )
        return OVERFLOWING

    def _encoder(self, knowledge: Knowledge, network: ConvNetwork) -> Tensors:
        """The state of the model with the encoder that is sent."""
        state = {name: value.detach().cpu() for name, value in knowledge.model.state_dict().items()}
        if self.encoder is not None:
            state |= encoder_weights(Path(self.encoder), state, network)
        return without_biases(state, network) if knowledge.local.weight_decay else state

    def _signals(self, classes: int, scales: Scales, pair: int) -> Tensor:
        """The signals of the classes, in order."""
        require(classes >= 2, f"Expected a model of at least 2 classes, got {classes}.")
        if self.only_class is not None:
            require(
                0 <= self.only_class < classes,
                f"Expected `only_class` from 0 to {classes - 1}, got {self.only_class}.",
            )
            return nn.functional.one_hot(torch.tensor(self.only_class), classes).double()
        if scales is OVERFLOWING:
            return one_sided_signals(classes, pair % classes)
        return even_signals(classes)

    def _division(
        self,
        knowledge: Knowledge,
        network: ConvNetwork,
        scales: Scales,
        features: Tensor,
        used: Sequence[int],
        generator: torch.Generator,
    ) -> Division:
        """The bins of a pair of rounds, of a feature that is not used yet."""
        samples = self.samples or knowledge.num_samples
        require(
            samples > 0,
            "Expected the number of the clients' samples as `samples` of bins or in the knowledge, "
            "got none.",
        )
        if self.only_class is not None:
            samples = max(1, round(samples * (self.class_share or 1 / network.classes)))
        shrinks = knowledge.local.weight_decay > 0 and scales is not TINY_RATE
        reference = steadiest_feature(features) if shrinks else None
        useful = [at for at in useful_features(features) if at != reference and at not in used]
        require(
            bool(useful),
            "Expected a feature that is positive in three quarters of the public samples and not "
            f"used yet, got none after {len(used)} rounds.",
        )
        feature = useful[int(torch.randint(len(useful), (), generator=generator))]
        values = Division(feature, reference, torch.empty(0)).of(features)
        bins = network.units - (scales is ROUNDED)
        thresholds = bin_thresholds(values, bins, samples, self.above)
        if scales is ROUNDED:
            # The first unit keeps the next layer firing: its threshold is far below the bins.
            share = float(tail_shares(bins, samples, self.above)[0])
            below = min(WIDER * share, (1 + share) / 2)
            thresholds = torch.cat([bin_thresholds(values, 1, samples, below), thresholds])
        return Division(feature, reference, thresholds)

    def _read_feature(
        self,
        knowledge: Knowledge,
        network: ConvNetwork,
        scales: Scales,
        rounds: Sequence[tuple[Crafted, InterceptedUpdate]],
        known: Tensor,
    ) -> Tensors:
        """The bins of one feature, from one round or two with the same thresholds."""
        division = Division.from_memory(rounds[0][0].memory)
        sums = [
            bin_sums(knowledge, crafted, update, network, division.columns)
            for crafted, update in rounds
        ]
        filled = sums[0][1] & sums[-1][1]
        features = scaled_features(sums[0][0], known, division)
        exact = torch.ones(features.shape[1], dtype=torch.bool)
        exact[division.columns] = False
        labels, certified = torch.full((len(filled),), -1), torch.zeros_like(filled)
        kept = filled
        if len(rounds) == 2:
            tolerance = self.tolerance or TOLERANCE[scales]
            turn = turned(sums[0][0], sums[1][0])
            strengths = [_strengths(one, features, division.columns) for one, _ in sums]
            signals = [crafted.memory["signals"] for crafted, _ in rounds]
            # A tolerance for noise must not let a mixture pass that turns by as little.
            certain = min(tolerance, largest_turn(signals))
            found = self._labels(knowledge, network, scales, strengths, signals)
            certified = filled & (turn < certain) & (found.lengths < LONGEST)
            kept = filled & (turn < NEARLY * tolerance)
            labels = found.labels
            if self.only_class is not None:
                labels = torch.full_like(labels, self.only_class)
        return {
            "features": features[kept], "labels": labels[kept], "certified": certified[kept],
            "filled": filled, "exact": exact.expand(int(kept.sum()), -1),
        }  # fmt: skip

    def _labels(
        self,
        knowledge: Knowledge,
        network: ConvNetwork,
        scales: Scales,
        strengths: Sequence[Tensor],
        signals: Sequence[Tensor],
    ) -> Labels:
        """Labels of the bins; none at the client's own rate, where the signals drift."""
        if scales is ROUNDED:
            nothing = torch.zeros(len(strengths[0]))
            return Labels(torch.full((len(nothing),), -1), nothing)
        if scales is TINY_RATE:
            knowledge = knowledge.with_training(learning_rate=self.learning_rate)
        share = 1.0 if knowledge.protocol == "fedsgd" else usual_share(knowledge)
        usual = None
        if share is not None:
            back = network.hidden * scales.weight * scales.signal
            usual = share * back / knowledge.number_of_clients
        return labels_of(strengths, signals, usual)

    def _inputs(
        self,
        knowledge: Knowledge,
        model: nn.Module,
        network: ConvNetwork,
        features: Tensor,
        known: Tensor,
        public: Tensor,
    ) -> Tensor:
        """Inputs with these features; the features themselves if there is no encoder."""
        if not network.encoder:
            return features.float().reshape(-1, *knowledge.input_shape)
        start = linear_inputs(features, known, public)
        if not self.steps or not len(start):
            return start.clamp(*knowledge.bounds)
        return fitted_inputs(
            model, network, features, start, bounds=knowledge.bounds, spread=known.std(dim=0),
            likely=Likely.of(public), likeliness=self.likeliness, smoothness=self.smoothness,
            steps=self.steps,
        )  # fmt: skip


def bin_sums(
    knowledge: Knowledge,
    crafted: Crafted,
    update: InterceptedUpdate,
    network: ConvNetwork,
    columns: list[int],
) -> tuple[Tensor, Tensor]:
    """The sum of each bin's samples, each times its signal.

    Args:
        knowledge: what is known of the clients.
        crafted: what was sent.
        update: what came back.
        network: the model's parts.
        columns: numbers of the features that the bins divide, which are 0 in the result.

    Returns:
        float64 ``(units - 1, features)``, and whether there is anything in each bin.

    Raises:
        BadInput: if the update does not fit the model, or the layer's weights did not come.
    """
    name = f"{network.linear[0]}.weight"
    came = replace(update.for_model(knowledge.model), sent=crafted.weights)
    came.check(knowledge.model)
    require(
        name in came.received,
        f"Expected `{name}` in update {came.key}, got {', '.join(list(came.received)[:5])}.",
    )
    change = came.received if came.protocol == "fedsgd" else came.change([name])
    rows = change[name].double().cpu().clone()
    rows[:, columns] = 0
    sums = rows[:-1] - rows[1:]
    size = torch.maximum(rows[:-1].abs().amax(dim=1), rows[1:].abs().amax(dim=1))
    return sums, sums.abs().amax(dim=1) > EMPTY * size


def useful_features(features: Tensor) -> list[int]:
    """Numbers of the features that can be divided into bins.

    They are positive in three quarters of the samples and have an upper tail.

    Args:
        features: of public samples, ``(public, features)``.
    """
    shares = torch.tensor([0.25, 0.5, 0.95], dtype=features.dtype)
    low, middle, high = features.quantile(shares, dim=0)
    found: list[int] = ((low > 0) & (high > middle)).nonzero().flatten().tolist()
    return found


def steadiest_feature(features: Tensor) -> int:
    """Number of the feature that varies the least beside its mean.

    Args:
        features: of public samples, ``(public, features)``.
    """
    mean = features.mean(dim=0)
    return int((features.std(dim=0) / mean).where(mean > 0, torch.inf).argmin())


def first_of_each(features: Tensor, certified: Tensor) -> Tensor:
    """Numbers of the rows that are of different samples, certified ones first.

    Args:
        features: ``(found, features)``.
        certified: ``(found,)``.
    """
    order = (~certified).long().argsort(stable=True)
    unit = nn.functional.normalize(features.double(), dim=1)
    kept: list[int] = []
    for row in order.tolist():
        if not kept or float((unit[kept] @ unit[row]).max()) < 1 - SAME:
            kept.append(row)
    return torch.tensor(kept, dtype=torch.long)


def encoder_weights(path: Path, state: Tensors, network: ConvNetwork) -> Tensors:
    """Weights of an encoder from a file.

    Args:
        path: a safetensors file.
        state: the state of the model.
        network: its parts.

    Raises:
        BadInput: if the file cannot be read, or does not have exactly the encoder's parameters.
    """
    expected = {
        name: tuple(value.shape)
        for name, value in state.items()
        if name.rpartition(".")[0] in network.encoder
    }
    with opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    require(
        shapes == expected,
        f"Expected the encoder's weights {expected} in {path}, got {shapes}.",
    )
    return {name: value.to(state[name].dtype) for name, value in found.items()}


def _strengths(sums: Tensor, features: Tensor, columns: list[int]) -> Tensor:
    """The factor of each sum relative to features at their scale, by least squares."""
    own = features.clone()
    own[:, columns] = 0
    size = own.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    own = own / size
    square = own.square().sum(dim=1)
    return torch.where(square > 0, (sums * own).sum(dim=1) / square, 0.0) / size[:, 0]


def _checked_public(knowledge: Knowledge, public: Tensor | None) -> Tensor:
    shape = None if public is None else tuple(public.shape[1:])
    if public is None or shape != tuple(knowledge.input_shape):
        raise BadInput(
            "Expected public samples of the shape "
            f"{tuple(knowledge.input_shape)}, of which bins takes quantiles, got {shape or 'none'}."
        )
    return public


def _findings(parts: Sequence[Tensors], certified: int, rounds: int) -> list[str]:
    bins = sum(len(part["filled"]) for part in parts)
    filled = sum(int(part["filled"].sum()) for part in parts)
    found = [
        f"{filled} of {bins} bins hold samples, and {certified} are certified to hold one that no "
        "other bin holds"
    ]
    if rounds % 2:
        found.append(
            "the last round was not asked again with other signals, so that its bins are not "
            "certified"
        )
    return found
