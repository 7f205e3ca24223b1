"""A client's local training as facts: optimiser, learning rate, steps, batches, schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Self, get_args

from fedleak.errors import BadInput, require, unknown_name

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "unknown"]

# Settings of the optimisers that may differ between parameters.
PER_PARAMETER = (
    "learning_rate", "momentum", "dampening", "nesterov", "weight_decay", "betas", "eps",
    "amsgrad", "alpha", "centered", "lr_decay", "initial_accumulator", "maximize",
)  # fmt: skip
# torch.optim's defaults.
_EPS = {"adagrad": 1e-10}


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """What is known of a client's local training; the defaults are those of ``torch.optim``.

    Args:
        optimizer: sgd, adam, adamw, rmsprop or adagrad as in ``torch.optim``; unknown stands for
            any other, which is not simulated.
        reason: why it is unknown, for findings, such as ``Net has 2 optimisers``. If None, not
            told.
        learning_rate: learning rate of the first step, above 0. If None, it is not known; it must
            be known where a client sends weights or their difference.
        momentum: of sgd and rmsprop, at least 0.
        dampening: of sgd's momentum.
        nesterov: whether sgd's momentum is Nesterov's.
        weight_decay: at least 0; added to the gradient, in adamw applied to the weights.
        betas: decay rates of adam's and adamw's moments, each in [0, 1).
        eps: term added to the denominator. If None, 1e-8 (adagrad 1e-10).
        amsgrad: whether adam or adamw is the AMSGrad variant.
        alpha: decay rate of rmsprop's mean square.
        centered: whether rmsprop subtracts the squared mean of the gradients.
        lr_decay: of adagrad.
        initial_accumulator: of adagrad.
        maximize: whether the optimiser maximises the loss.
        steps: number of optimiser steps. If None, that of ``epochs`` epochs, or of one epoch.
        batch_size: number of samples in a step; the last step of an epoch takes the rest. If None,
            it is not known, which matters only for several steps on several samples.
        epochs: number of passes over the samples, in place of ``steps``.
        schedule: factor on the learning rate in a step, given its number from 0. If None, always 1.
        per_parameter: other settings of some parameters, such as
            ``{"*.bias": {"weight_decay": 0.0}}``; the last pattern that matches counts.

    Raises:
        BadInput: if a value is out of its range, ``steps`` and ``epochs`` are both given, or a
            setting is not one of an optimiser.
    """

    optimizer: OptimizerName = "sgd"
    reason: str | None = None
    learning_rate: float | None = None
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    amsgrad: bool = False
    alpha: float = 0.99
    centered: bool = False
    lr_decay: float = 0.0
    initial_accumulator: float = 0.0
    maximize: bool = False
    steps: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    schedule: Callable[[int], float] | None = None
    per_parameter: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise unknown_name("optimizer", str(self.optimizer), get_args(OptimizerName))
        require(
            self.reason is None or self.optimizer == "unknown",
            f"Expected `reason` of an unknown optimiser alone, got one of {self.optimizer}.",
        )
        rate = self.learning_rate
        require(
            rate is None or (_is_number(rate) and 0 < rate < math.inf),
            f"Expected `learning_rate` to be positive, got {rate!r:.60}.",
        )
        for name in ("momentum", "weight_decay", "eps", "lr_decay", "initial_accumulator"):
            value = getattr(self, name)
            require(
                value is None or (_is_number(value) and 0 <= value < math.inf),
                f"Expected `{name}` to be at least 0, got {value!r:.60}.",
            )
        for name, shares in (("betas", self.betas), ("alpha", (self.alpha,))):
            require(
                len(shares) == (2 if name == "betas" else 1)
                and all(_is_number(value) and 0 <= value < 1 for value in shares),
                f"Expected `{name}` from 0 to below 1, got {getattr(self, name)!r:.60}.",
            )
        for name in ("steps", "batch_size", "epochs"):
            value = getattr(self, name)
            require(
                value is None or (isinstance(value, int) and value >= 1),
                f"Expected `{name}` to be at least 1, got {value!r:.60}.",
            )
        require(
            self.steps is None or self.epochs is None,
            f"Expected `steps` or `epochs`, got both ({self.steps} and {self.epochs}).",
        )
        require(
            not self.nesterov or (self.momentum > 0 and self.dampening == 0),
            "Expected `momentum` above 0 and no `dampening` with `nesterov`, got "
            f"{self.momentum} and {self.dampening}.",
        )
        require(
            self.schedule is None or callable(self.schedule),
            f"Expected `schedule` to be a function of the step, got {self.schedule!r:.60}.",
        )
        for pattern, settings in self.per_parameter.items():
            for name in settings:
                if name not in PER_PARAMETER:
                    raise unknown_name(
                        f"setting in `per_parameter` of {pattern}", name, PER_PARAMETER
                    )
            replace(self, per_parameter={}, **settings)  # checks the values

    def of(self, parameter: str) -> Self:
        """The facts with the settings that hold for one parameter.

        Args:
            parameter: its name in the model.
        """
        found: Mapping[str, Any] = {}
        for pattern, settings in self.per_parameter.items():
            if fnmatchcase(parameter, pattern):
                found = settings
        return replace(self, per_parameter={}, **found)

    def groups(self, names: Iterable[str]) -> dict[str, Self]:
        """The facts of each parameter.

        Args:
            names: the parameters' names in the model.
        """
        own = replace(self, per_parameter={}) if self.per_parameter else self
        if not self.per_parameter:
            return dict.fromkeys(names, own)
        return {name: self.of(name) for name in names}

    @property
    def rate(self) -> float:
        """The learning rate.

        Raises:
            BadInput: if it is not known.
        """
        if self.learning_rate is None:
            raise BadInput(
                "Expected the client's `learning_rate` where weights or their difference are "
                "attacked, got none."
            )
        return self.learning_rate

    def rate_at(self, step: int) -> float:
        """The learning rate in a step, from 0.

        Raises:
            BadInput: if it is not known, or ``schedule`` gives no number of at least 0.
        """
        if self.schedule is None:
            return self.rate
        factor = self.schedule(step)
        require(
            _is_number(factor) and 0 <= factor < math.inf,
            f"Expected `schedule` to give a factor of at least 0, got {factor!r:.60}.",
        )
        return self.rate * factor

    @property
    def not_known(self) -> str:
        """What findings say where the optimiser is unknown."""
        reason = "" if self.reason is None else f": {self.reason}"
        return f"the clients' optimiser is not known{reason}"

    @property
    def epsilon(self) -> float:
        """``eps``, or the optimiser's default."""
        return _EPS.get(self.optimizer, 1e-8) if self.eps is None else self.eps

    @property
    def is_plain_sgd(self) -> bool:
        """Whether each step subtracts the gradient times one constant."""
        return (
            self.optimizer == "sgd"
            and not (self.momentum or self.weight_decay or self.maximize or self.per_parameter)
            and self.schedule is None
        )

    @property
    def is_linear(self) -> bool:
        """Whether the update is a linear function of the gradients, as by every form of SGD."""
        return self.optimizer == "sgd"

    def __str__(self) -> str:
        shown: list[str] = [self.optimizer]
        for item in fields(self):
            value = getattr(self, item.name)
            plain = item.name in ("optimizer", "reason", "per_parameter", "schedule")
            if not plain and value is not None and value != item.default:
                shown.append(f"{item.name} {value}")
        shown += ["with a schedule"] if self.schedule is not None else []
        shown += ["with settings by parameter"] if self.per_parameter else []
        return ", ".join(shown)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
