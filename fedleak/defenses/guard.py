"""A client looks at the model that it received: was it made so that the update isolates samples?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedleak.defenses.received_model import (
    bias_ratio,
    exposed_share,
    firing,
    fresh_copy,
    layers,
    model_input,
    offsets,
    parallel_rows,
    rare_share,
    rows,
    telling_layers,
    unit_gradients,
)
from fedleak.errors import BadInput, require, unknown_name

SIZES = (64, 128, 256)
"""Numbers of samples in a gradient from which samples might be read."""
EXPOSED = tuple(f"exposed_{size}" for size in SIZES)
"""Statistics that do not make a model suspicious by themselves."""
LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "exposed_64": 0.95,
        "exposed_128": 0.30,
        "exposed_256": 0.20,
        "parallel": 0.05,
        "bias": 5.0,
        "offset": 9.0,
        "rare": 0.35,
        "largest": 1e15,
        "change": 3.0,
    }
)
"""Statistic -> largest value of an honest model."""

RANGE = (0.1, 10.0)
"""Factors of its agreed value between which an entry of the configuration may lie."""
RATES = (1e-6, 10.0)
"""Learning rates between which the client learns anything, where none was agreed."""
_FEW = "Few samples: "
"""What a remark begins with that is not about the model."""
SMALLEST_BATCH = 2
"""Samples of a batch, where no number was agreed: the gradient of one is that sample's alone."""
BATCH_NAMES = ("batch_size", "batch-size", "batchsize", "local_batch_size", "local-batch-size")
"""Names of the number of samples of a batch in configurations."""
RATE_NAMES = ("lr", "learning_rate", "learning-rate", "local_lr", "local-lr", "eta")
"""Names of the learning rate in configurations."""
SECURE_AGGREGATION: Mapping[str, float] = MappingProxyType(
    {"clipping_range": 8.0, "target_range": 4194304, "max_weight": 1000.0}
)
"""Flower's defaults of SecAgg+ (``SecAggPlusWorkflow``), by the name in the message."""

State = Mapping[str, Tensor]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What a client found in a model that it received.

    Args:
        reasons: why the model is suspicious, a sentence each, with the layer's name; empty if it is
            not.
        statistics: the largest value over the layers, by name: ``exposed_64``, ``exposed_128`` and
            ``exposed_256`` (share of so many of the batch's samples that could be read one by one
            from a layer's rows of their gradient, beyond the share in the same model with new
            random weights; of layers with at least a twentieth of a sample's numbers as inputs),
            ``parallel`` (share of a layer's rows that are parallel to another
            one), ``bias`` (largest bias over the root mean square of the weights times the root of
            the fan-in; with a batch, of layers whose units do not all fire for all samples),
            ``offset`` (largest bias beside what the weights make of the samples, see
            :func:`fedleak.defenses.received_model.offsets`; of the layers that ``exposed_64`` and
            ``bias`` have in common), ``rare`` (share of a layer's units that fire for less than 2 %
            of the samples, but for some), ``largest`` (largest absolute weight; infinite if one is
            not finite) and ``change`` (norm of the server's change since the last round over that
            of the client's own). Missing are ``rare`` and ``offset`` without a batch,
            ``exposed_64`` and so on without a batch of as many samples, and ``change`` without a
            reference.
        remarks: what the update of a model that is not suspicious would give away, a sentence each:
            the exposed shares above their limits. Training leads to such models too, so that they
            are no reason by themselves; next to another one they are among the reasons. Also which
            shares are not known, if the batch had fewer than 256 samples.
    """

    reasons: tuple[str, ...] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def suspicious(self) -> bool:
        """Whether there is a reason not to train the model."""
        return bool(self.reasons)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.statistics.items())
        quiet = not self.reasons and all(text.startswith(_FEW) for text in self.remarks)
        verdict = ("nothing suspicious.",) if quiet else ()
        text = " ".join((*verdict, *self.reasons, *self.remarks))
        return f"<Inspection: {text} ({figures})>"


def inspect_model(
    model: nn.Module,
    reference: tuple[State, State] | None = None,
    batch: Any = None,
    config: Mapping[str, Any] | None = None,
    *,
    agreed: Mapping[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
) -> Inspection:
    """Look at a received model before it is trained: would its update isolate single samples?

    A server that chooses the weights can make the rows of the update hold one sample each: by units
    that fire for one sample only (Boenisch et al. 2023), or by neighbouring units that differ in
    one sample (Fowl et al. 2022). Both show in the weights, and in which units fire for the
    client's own samples. Embeddings, recurrent layers and attention's own projections are not
    looked at.

    Args:
        model: the received model; it is left as it was.
        reference: the state that the client received in the round before and the one that it sent
            back. If None, the change since then is not looked at.
        batch: as many of the client's own samples as there are, best at least 256: inputs
            ``(samples, ...)`` as the model takes them, a pair of inputs and labels, or a mapping of
            keyword arguments. If None, only the weights are looked at, which misses much; with
            fewer than 64 samples it is not known which could be read.
        config: the received training configuration. If None, it is not looked at.
        agreed: values of the configuration that the client knows, by name, such as ``lr``; a
            received value must be between 0.1 and 10 times the agreed one. Where none is agreed,
            a learning rate must be between 1e-6 and 10, a batch have at least 2 samples, and the
            ranges of SecAgg+ be between 0.1 and 10 times Flower's defaults.
        limits: limits of statistics by name, see :class:`Inspection`, instead of the ones measured
            in ``experiments/active-server``.

    Returns:
        The reasons, the statistics and the remarks.

    Raises:
        BadInput: if the model is no module or has no values, it cannot compute the batch, the batch
            has inputs that are not finite (of a mapping: NaN), the reference is no pair of states
            or has other tensors than the model, an agreed value is not a positive number, or a
            limit has an unknown name.
    """
    _check_model(model)
    for title, value in (("config", config), ("agreed", agreed), ("limits", limits)):
        require(
            value is None or isinstance(value, Mapping),
            f"Expected `{title}` to be a mapping of names to values, got {type(value).__name__}.",
        )
    bounds = _limits(limits)
    few = [] if batch is None else _few_samples(_check_batch(batch))
    by_layer, reasons = _weight_statistics(model)
    if not reasons and batch is not None:
        gradients, reasons = _gradients(model, batch)
        by_layer |= _batch_statistics(model, batch, gradients)
        # Where all units fire for all samples, as in the output layer, biases decide nothing.
        idle = [name for name, value in gradients.items() if bool(firing(value).all())]
        for part in ("bias", "offset"):
            kept = by_layer.get(part, {})
            by_layer[part] = {name: value for name, value in kept.items() if name not in idle}
    statistics = {name: max(values.values(), default=0.0) for name, values in by_layer.items()}
    exposed: list[str] = []
    for name, values in by_layer.items():
        infinite = name == "largest" and math.isinf(statistics[name])
        if statistics[name] > bounds[name] and not infinite:
            layer = max(values, key=values.__getitem__)
            sentence = _SENTENCES[name].format(layer=layer, value=statistics[name])
            (exposed if name in EXPOSED else reasons).append(sentence)
    if reference is not None:
        statistics["change"] = _change(model, reference)
        if not statistics["change"] <= bounds["change"]:
            reasons.append(
                f"The server changed the model by {statistics['change']:.3g} times the client's "
                "own last update."
            )
    reasons += _config_reasons(config or {}, agreed or {})
    if reasons:
        return Inspection((*reasons, *exposed), statistics)
    return Inspection((), statistics, (*exposed, *few))


_SENTENCES = {
    **{
        name: (
            f"{{value:.0%}} of {size} samples, more than with random weights, could be read one by "
            "one from the update of layer `{layer}`."
        )
        for name, size in zip(EXPOSED, SIZES, strict=True)
    },
    "parallel": (
        "{value:.0%} of the rows of layer `{layer}` are parallel to another row, so that their "
        "updates differ in single samples."
    ),
    "bias": (
        "The largest bias of layer `{layer}` is {value:.3g} times the size of its weights, so that "
        "it decides which samples a unit fires for."
    ),
    "offset": (
        "The largest bias of layer `{layer}` is {value:.3g} times the size of the weights, as they "
        "act on the samples, so that it decides which samples a unit fires for."
    ),
    "rare": (
        "{value:.0%} of the units of layer `{layer}` fire for less than 2 % of the samples, but "
        "for some."
    ),
    # By the parameter's own name; one that is not finite has a reason of its own.
    "largest": "`{layer}` has a value of {value:.3g}, whose square overflows in training.",
}


def _check_model(model: Any) -> None:
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    require(isinstance(model, nn.Module), f"Expected `model` to be a module, got {kind}.")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        require(
            not is_lazy(value),
            f"Expected a model whose layers have their sizes, got `{name}` of a lazy layer that "
            "has computed no batch yet.",
        )
        require(
            not value.is_meta,
            f"Expected a model that holds its weights, got `{name}` on the device meta.",
        )


def _check_batch(batch: Any) -> int:
    """Refuse inputs that are not finite, which say nothing of the model; the number of samples."""
    inputs = model_input(batch)
    named = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    for name, value in named:
        if not isinstance(value, Tensor):
            continue
        # Among keyword arguments may be a mask of attention, whose entries may be -inf.
        bad = value.isnan() if name else ~value.isfinite()
        whose = f" in `{name}`" if name else ""
        require(
            not bool(bad.any()),
            f"Expected finite numbers in `batch`, got {int(bad.sum())} of {value.numel()}{whose} "
            f"that are NaN{'' if name else ' or infinite'}.",
        )
    return min(len(value) for _, value in named if isinstance(value, Tensor) and value.dim())


def _few_samples(number: int) -> list[str]:
    """A remark on the shares that so few samples leave unknown; empty if they leave none."""
    unknown = [str(size) for size in SIZES if size > number]
    if not unknown:
        return []
    return [
        f"{_FEW}with {number} it is not known how many of {' or '.join(unknown)} could be "
        f"read one by one from the update; give at least {max(SIZES)}."
    ]


def _limits(limits: Mapping[str, float] | None) -> dict[str, float]:
    for name, value in (limits or {}).items():
        if name not in LIMITS:
            raise unknown_name("limit", name, LIMITS)
        _check_number(f"the limit of `{name}`", value, value >= 0, "at least 0")
    return {**LIMITS, **(limits or {})}


def _check_number(title: str, value: Any, condition: bool, expected: str) -> None:
    require(bool(condition), f"Expected {title} to be {expected}, got {value}.")


def _weight_statistics(model: nn.Module) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Statistic -> layer -> value, and a reason if a value is not finite."""
    largest: dict[str, float] = {}
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.numel():
            size = float(value.detach().double().abs().max())
            largest[name] = size if math.isfinite(size) else math.inf
    bad = [name for name, size in largest.items() if math.isinf(size)]
    if bad:
        return {"largest": {bad[0]: math.inf}}, [f"`{bad[0]}` has a value that is not finite."]
    found = dict(layers(model))
    return {
        "parallel": {name: parallel_rows(rows(layer)) for name, layer in found.items()},
        "bias": {name: bias_ratio(layer) for name, layer in found.items()},
        "largest": largest,
    }, []


def _gradients(model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The units' gradients by layer, and a reason if one is not finite."""
    gradients = unit_gradients(model, batch)
    for name, value in gradients.items():
        if not bool(value.isfinite().all()):
            return {}, [f"The gradient at the output of layer `{name}` is not finite."]
    return gradients, []


def _batch_statistics(
    model: nn.Module, batch: Any, gradients: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Statistic -> layer -> value."""
    samples = min((len(value) for value in gradients.values()), default=0)
    sizes = [size for size in SIZES if size <= samples]
    usual = unit_gradients(fresh_copy(model), batch) if sizes else {}
    telling = telling_layers(model, batch)
    found = {"offset": {n: v for n, v in offsets(model, batch).items() if n in telling}}
    for size in sizes:
        shares = {n: exposed_share(v, size) for n, v in gradients.items() if n in telling}
        found[f"exposed_{size}"] = {
            name: max(share - exposed_share(usual[name], size), 0.0) if share else 0.0
            for name, share in shares.items()
        }
    return found | {"rare": {n: rare_share(value) for n, value in gradients.items()}}


def _change(model: nn.Module, reference: Any) -> float:
    """The norm of the server's change since the last round over that of the client's own."""
    pair = isinstance(reference, tuple | list) and len(reference) == 2
    if not pair or not all(isinstance(state, Mapping) for state in reference):
        raise BadInput(
            "Expected `reference` to be a pair of states, the one that was received in the round "
            f"before and the one that was sent back, got {_kinds(reference)}."
        )
    received, returned = reference
    now = {n: v for n, v in model.state_dict().items() if v.is_floating_point()}
    for title, state in (("received", received), ("sent back", returned)):
        wrong = [n for n in now if n not in state or state[n].shape != now[n].shape]
        require(
            not wrong,
            f"Expected what the client {title} before to have the model's tensors, got none of "
            f"that name and shape for {', '.join(f'`{name}`' for name in wrong[:3])}.",
        )
    server = _norm(now, received)
    own = _norm(returned, received, now)
    if not own:
        return 0.0 if not server else math.inf
    return server / own


def _kinds(value: Any) -> str:
    if not isinstance(value, tuple | list):
        return f"one {type(value).__name__}"
    names = ", ".join(type(part).__name__ for part in value[:3])
    return f"a {type(value).__name__} of {len(value)}" + (f" ({names})" if names else "")


def _norm(one: State, other: State, names: State | None = None) -> float:
    """The norm of the difference of two states, of the tensors of certain names."""
    squares = (
        float((one[name].double().cpu() - other[name].double().cpu()).square().sum())
        for name in names or one
    )
    return math.sqrt(sum(squares))


def _config_reasons(config: Mapping[str, Any], agreed: Mapping[str, float]) -> list[str]:
    reasons = []
    for name, value in agreed.items():
        _check_number(f"the agreed `{name}`", value, value > 0, "a positive number")
    for name, value in config.items():
        if name in agreed or name in SECURE_AGGREGATION:
            usual = agreed.get(name, SECURE_AGGREGATION.get(name, 1.0))
            low, high = RANGE[0] * usual, RANGE[1] * usual
        elif name.lower() in RATE_NAMES:
            low, high = RATES
        elif name.lower() in BATCH_NAMES:
            low, high = SMALLEST_BATCH, math.inf
        else:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            reasons.append(
                f"The server set `{name}` to {value!r:.100}, which is no number but of type "
                f"{type(value).__name__}."
            )
        elif not low <= value <= high:
            reasons.append(
                f"The server set `{name}` to {value}, which is not between {low:.3g} and "
                f"{high:.3g}."
            )
    return reasons
