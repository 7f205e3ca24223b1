"""What holds at the start of a client's first training batch: modes of modules, and optimiser."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fedleak.errors import BadInput, first_line, require
from fedleak.models.lightning import lightning_of, quiet_trainer
from fedleak.models.optimiser_facts import optimizer_facts
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.private_model import private_copy

# Of more steps no schedule is tabulated.
MOST_STEPS = 100_000
# Hooks with which a module makes another step than its optimiser, and those with which it may: that
# is tried, with gradients of this size.
_OWN_STEPS = ("optimizer_step", "backward", "lr_scheduler_step")
_MAYBE_OWN = (
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_zero_grad",
    "configure_gradient_clipping", "on_before_zero_grad", "on_train_batch_end",
)  # fmt: skip
_TRIED_SIZE = 1e3


@dataclass(frozen=True)
class FirstBatch:
    """A client's model and training at its first batch.

    Args:
        modes: whether each module is in train mode, by its path.
        training: the local training: of one step, or of the epochs of a client that sends weights.
        untrained: the parameters that no optimiser holds.
    """

    modes: dict[str, bool]
    training: LocalTraining
    untrained: frozenset[str]

    def set_on(self, model: nn.Module) -> None:
        """Set the modes on a model, and which parameters are trained."""
        for name, module in model.named_modules():
            module.training = self.modes[name]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in self.untrained)


_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], FirstBatch]] = WeakKeyDictionary()


def first_batch(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    train: bool,
    samples: int,
    batch_size: int,
    epochs: int | None,
) -> FirstBatch:
    """Find what a client's model is at its first batch, by Lightning on a copy, up to that batch.

    Nothing of the client's data is used: the hooks of the module run with inputs of zeros.

    Args:
        model: the LightningModule; it is left as it is.
        input_shape: shape of one sample.
        train: the mode in which the client puts the whole module before Lightning's hooks run.
        samples: number of the client's samples.
        batch_size: samples in a step.
        epochs: number of local epochs. If None, the client makes one step.

    Raises:
        BadInput: if the module fails before its first batch, or has no optimiser.
    """
    key = (tuple(input_shape), train, samples, batch_size, epochs)
    found = _FOUND.setdefault(model, {})
    if key not in found:
        found[key] = _first_batch(model, *key)
    return found[key]


class _Reached(Exception):
    """The first batch begins."""


class _Zeros(Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: int, shape: tuple[int, ...]) -> None:
        self._samples, self._input = samples, torch.zeros(shape)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._input, 0


def _first_batch(
    model: nn.Module,
    input_shape: tuple[int, ...],
    train: bool,
    samples: int,
    batch_size: int,
    epochs: int | None,
) -> FirstBatch:
    kind = type(model).__name__
    own: Any = private_copy(model).train(train)
    untouched = private_copy(own) if any(_overrides(own, name) for name in _MAYBE_OWN) else None
    modes: dict[str, bool] = {}

    def training_step(*_args: Any, **_kwargs: Any) -> None:
        modes.update({name: module.training for name, module in own.named_modules()})
        raise _Reached

    overridden = any(_overrides(own, name) for name in _OWN_STEPS)
    own.training_step = training_step
    loader = DataLoader(_Zeros(samples, input_shape), batch_size=batch_size)
    limit = {"max_steps": 1} if epochs is None else {"max_epochs": epochs}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = quiet_trainer(own, **limit)
        try:
            trainer.fit(own, train_dataloaders=loader)
        except _Reached:
            pass
        except Exception as error:  # of the user's own hooks
            if not modes:
                raise BadInput(
                    f"Expected a model that Lightning can train, but {kind} fails before its first "
                    f"batch: {first_line(error)}"
                ) from error
        require(bool(modes), f"Expected {kind} to train, but it skips its first batch.")
        # Lightning has a stand-in for a module without an optimiser.
        optimizers = [each for each in trainer.optimizers if "Mock" not in type(each).__name__]
        require(
            bool(optimizers),
            f"Expected `configure_optimizers` of {kind} to return an optimiser, got none.",
        )
        batches = -(-samples // batch_size)
        steps = 1 if epochs is None else epochs * batches
        facts = optimizer_facts(optimizers[0], own.named_parameters())
        schedule, known = _schedule(trainer, steps, batches)
        simple = len(optimizers) == 1 and own.automatic_optimization
        overridden |= any(map(_has_hooks, (*optimizers, *own.parameters())))
        if untouched is not None and simple and not overridden:
            overridden = _makes_another_step(untouched, loader, limit)
    if overridden or not simple or not known:
        facts = LocalTraining(optimizer="unknown", learning_rate=facts.learning_rate)
        schedule = None
    held = {
        id(value)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for value in group["params"]
    }
    untrained = frozenset(name for name, v in own.named_parameters() if id(v) not in held)
    size = batch_size if epochs is not None else None
    training = replace(facts, schedule=schedule, steps=steps, batch_size=size)
    return FirstBatch(modes, training, untrained)


def _has_hooks(holder: Any) -> bool:
    """Whether hooks may change gradients or weights around the step of an optimiser's own."""
    names = (
        "_backward_hooks", "_post_accumulate_grad_hooks",
        "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks",
    )  # fmt: skip
    return any(getattr(holder, name, None) for name in names)


def _makes_another_step(own: Any, loader: DataLoader[Any], limit: dict[str, int]) -> bool:
    """Whether a module's hooks change gradients or weights around the step of its optimiser.

    Args:
        own: the module; it is changed.
        loader: batches of the client's form.
        limit: the trainer's limit.
    """
    parameters = [value for value in own.parameters() if value.requires_grad]
    generator = torch.Generator().manual_seed(0)
    gradients = [_TRIED_SIZE * torch.randn(v.shape, generator=generator) for v in parameters]
    gradients = [g.to(v) for g, v in zip(gradients, parameters, strict=True)]
    weights: list[list[Tensor]] = []  # in the training step, before and after the optimiser's step
    same = True

    def keep() -> None:
        weights.append([value.detach().clone() for value in parameters])

    def training_step(*_args: Any, **_kwargs: Any) -> Tensor:
        if weights:
            raise _Reached
        keep()
        sums = [(v * g).sum() for v, g in zip(parameters, gradients, strict=True)]
        return torch.stack(sums).sum()

    def step(optimizer: Any, closure: Callable[[], Any]) -> Any:
        nonlocal same
        loss = closure()
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        for value, told in zip(parameters, gradients, strict=True):
            same &= id(value) not in held or torch.equal(value.grad, told)
        keep()
        type(optimizer).step(optimizer)
        keep()
        return loss

    class Watch(lightning_of(own).Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            (optimizer,) = trainer.optimizers
            vars(optimizer)["step"] = partial(step, optimizer)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            raise _Reached

    own.training_step = training_step
    trainer = quiet_trainer(own, callbacks=[Watch()], **limit)
    try:
        trainer.fit(own, train_dataloaders=loader)
    except Exception:  # of the user's own hooks, or where this ends it
        keep()
    if len(weights) != 4:
        return True
    begun, before, after, ended = weights
    unmoved = [*zip(begun, before, strict=True), *zip(after, ended, strict=True)]
    return not same or not all(torch.equal(one, other) for one, other in unmoved)


def _overrides(model: nn.Module, name: str) -> bool:
    """Whether a class between a model's and Lightning's own has a method of the name."""
    for owner in type(model).__mro__:
        if ".core." in owner.__module__ and owner.__name__ == "LightningModule":
            return False
        if name in vars(owner):
            return True
    return False


def _schedule(trainer: Any, steps: int, batches: int) -> tuple[Callable[[int], float] | None, bool]:
    """The schedule of the learning rate, and whether it is known.

    It is not where it depends on a measured value, differs between groups of parameters, or moves
    another setting too.
    """
    configs = trainer.lr_scheduler_configs
    if not configs:
        return None, True
    if any(config.reduce_on_plateau for config in configs) or steps > MOST_STEPS:
        return None, steps == 1
    optimizer = trainer.optimizers[0]
    first = [_others(group) for group in optimizer.param_groups]
    table: list[float] = []
    for step in range(steps):
        factors = [
            float(group["lr"]) / float(group.get("initial_lr", group["lr"]) or 1)
            for group in optimizer.param_groups
        ]
        same = all(abs(factor - factors[0]) <= 1e-9 * abs(factors[0]) for factor in factors)
        if not same or [_others(group) for group in optimizer.param_groups] != first:
            return None, False
        table.append(factors[0])
        optimizer.step()  # of no gradients, as the schedulers count the steps
        # As Lightning counts: the batches of an epoch, and the epochs.
        counts = (("step", step % batches + 1), ("epoch", (step + 1) / batches))
        for interval, number in counts:
            for config in configs:
                due = number % config.frequency == 0
                if config.interval == interval and due:
                    config.scheduler.step()
    if all(abs(factor - 1) <= 1e-12 for factor in table):
        return None, True
    return _Table(tuple(table)), True


def _others(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


@dataclass(frozen=True)
class _Table:
    """Factors on the learning rate by step.

    Args:
        factors: the factor of each step from 0.
    """

    factors: tuple[float, ...]

    def __call__(self, step: int) -> float:
        require(
            step < len(self.factors),
            f"Expected a step below {len(self.factors)}, as the schedule is known, got {step}.",
        )
        return self.factors[step]
