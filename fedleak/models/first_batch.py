"""What holds at the start of a client's first training batch: modes of modules, and optimiser."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fedleak.errors import BadInput, first_line, require
from fedleak.models.lightning import quiet_trainer
from fedleak.models.optimiser_facts import optimizer_facts
from fedleak.models.step_hooks import has_hooks, own_step, tried_hooks
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.private_model import private_copy

# Of more steps no schedule is tabulated.
MOST_STEPS = 100_000


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
    example: tuple[Tensor, Tensor] | None = None,
) -> FirstBatch:
    """Find what a client's model is at its first batch, by Lightning on a copy, up to that batch.

    Nothing of the client's data is used: the hooks of the module run with inputs of zeros. Those
    that may change gradients or weights are tried in a training of their own.

    Args:
        model: the LightningModule; it is left as it is.
        input_shape: shape of one sample.
        train: the mode in which the client puts the whole module before Lightning's hooks run.
        samples: number of the client's samples.
        batch_size: samples in a step.
        epochs: number of local epochs. If None, the client makes one step.
        example: a sample and its label, whose types and shapes alone are used. If None, a sample
            of floating-point numbers and a class.

    Raises:
        BadInput: if the module fails before its first batch, or has no optimiser.
    """
    if example is None:
        example = torch.zeros(input_shape), torch.tensor(0)
    form = tuple((tuple(part.shape), part.dtype) for part in example)
    key = (form, train, samples, batch_size, epochs)
    found = _FOUND.setdefault(model, {})
    if key not in found:
        sample, label = map(torch.zeros_like, example)
        loader = DataLoader(_Alike(sample, label, samples), batch_size=batch_size)
        found[key] = _first_batch(model, loader, train, epochs)
    return found[key]


class _Reached(Exception):
    """The first batch begins."""


class _Alike(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, sample: Tensor, label: Tensor, number: int) -> None:
        self._pair, self._number = (sample, label), number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._pair


def _first_batch(
    model: nn.Module, loader: DataLoader[Any], train: bool, epochs: int | None
) -> FirstBatch:
    kind = type(model).__name__
    own: Any = private_copy(model).train(train)
    tried = private_copy(own) if has_hooks(own) else None
    modes: dict[str, bool] = {}

    def training_step(*_args: Any, **_kwargs: Any) -> None:
        modes.update({name: module.training for name, module in own.named_modules()})
        raise _Reached

    own.training_step = training_step
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
        steps = 1 if epochs is None else epochs * len(loader)
        facts = optimizer_facts(optimizers[0], own.named_parameters())
        schedule, known = _schedule(trainer, steps, len(loader))
        reason = facts.reason or own_step(own, optimizers)
        if reason is None and not known:
            reason = f"the learning rate of {kind} depends on what it measures, or more changes"
        if reason is None and tried is not None:
            reason = tried_hooks(tried, loader, epochs=epochs)
    if reason is not None:
        facts = LocalTraining(optimizer="unknown", reason=reason, learning_rate=facts.learning_rate)
        schedule = None
    held = {
        id(value)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for value in group["params"]
    }
    untrained = frozenset(name for name, v in own.named_parameters() if id(v) not in held)
    size = loader.batch_size if epochs is not None else None
    training = replace(facts, schedule=schedule, steps=steps, batch_size=size)
    return FirstBatch(modes, training, untrained)


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
