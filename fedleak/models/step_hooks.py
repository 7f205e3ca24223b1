"""What a LightningModule does around the steps of its optimiser: told from its hooks by trying."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fedleak.errors import first_line
from fedleak.models.lightning import lightning_of, quiet_trainer
from fedleak.updates.knowledge import takes_index

# Methods with which a module makes a step of its own.
OWN_STEPS = ("optimizer_step", "backward", "lr_scheduler_step")
# Hooks that may change gradients or weights, and those that add callbacks, which may as well.
HOOKS = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "configure_gradient_clipping", "on_train_batch_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip
_ADDING = ("configure_callbacks", "setup", "teardown")
# A hook that clears the gradients, and callbacks that are in every trial.
_CLEARING = ("optimizer_zero_grad",)
_OF_LIGHTNING = {"Watch", "TQDMProgressBar", "RichProgressBar", "ModelSummary"}
# Size of the gradients with which they are tried: large enough for any clipping.
TRIED_SIZE = 1e3
# Steps that are tried, at most and at least, and most numbers in them.
MOST_STEPS, LEAST_STEPS, NUMBERS = 64, 2, 3e8


def own_step(model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> str | None:
    """What in a module makes another step than its optimiser, as far as that needs no trial.

    Args:
        model: the LightningModule, with the hooks that it sets before training.
        optimizers: its optimisers.

    Returns:
        A clause such as ``several optimisers``; None if nothing is found.
    """
    kind = type(model).__name__
    if len(optimizers) > 1:
        return f"{kind} has {len(optimizers)} optimisers"
    if not model.automatic_optimization:
        return f"{kind} makes its steps by hand (`automatic_optimization` is off)"
    for name in OWN_STEPS:
        if overrides(model, name):
            return f"{kind} has its own `{name}`"
    for optimizer in optimizers:
        if _has_hooks(optimizer):
            return f"{kind} registers hooks on the step of its optimiser"
    for name, value in model.named_parameters():
        if _has_hooks(value):
            return f"{kind} registers hooks on the gradient of `{name}`"
    return None


def has_hooks(model: Any) -> bool:
    """Whether a module has hooks that may change gradients or weights.

    Args:
        model: the LightningModule.
    """
    return any(overrides(model, name) for name in (*HOOKS, *_ADDING))


def overrides(model: Any, name: str) -> bool:
    """Whether a class between a model's and Lightning's own has a method of the name.

    Args:
        model: a LightningModule.
        name: name of the method.
    """
    for owner in type(model).__mro__:
        if ".core." in owner.__module__ and owner.__name__ == "LightningModule":
            return False
        if name in vars(owner):
            return True
    return False


def tried_hooks(model: Any, loader: DataLoader[Any], *, epochs: int | None) -> str | None:
    """What in a module changes gradients or weights around its optimiser's steps, by a training.

    The loss of the trial has known gradients; the module's training step is called as well, so that
    its hooks find what that keeps. At most 64 steps are tried, of large models fewer.

    Args:
        model: the LightningModule; it is changed.
        loader: batches of the client's form.
        epochs: number of epochs. If None, one step is made.

    Returns:
        A clause such as ```on_train_end` of Net changes the weights``; None if nothing does.
    """
    entries = sum(value.numel() for value in model.parameters())
    most = int(min(MOST_STEPS, max(LEAST_STEPS, NUMBERS // max(1, entries))))
    limit: dict[str, Any] = {"max_steps": 1}
    if epochs is not None:
        each = min(len(loader), max(1, most // epochs))
        limit = {"max_epochs": min(epochs, most), "limit_train_batches": each}
    trial = _Trial(model, several=epochs is not None and epochs * len(loader) > 1)
    trial.watch()
    trial.trainer = quiet_trainer(model, callbacks=[trial.callback()], **limit)
    try:
        trial.trainer.fit(model, train_dataloaders=loader)
    except Exception as error:  # of the user's own callbacks
        trial.found.append(f"{trial.kind} fails where its hooks are tried: {first_line(error)}")
    return trial.end()


def _has_hooks(holder: Any) -> bool:
    """Whether hooks may change gradients or weights around the step of an optimiser's own."""
    names = (
        "_backward_hooks", "_post_accumulate_grad_hooks",
        "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks",
    )  # fmt: skip
    return any(getattr(holder, name, None) for name in names)


class _Trial:
    """A training with known gradients, in which hooks are watched.

    Args:
        model: the LightningModule.
        several: whether several steps are made, of which the later depend on frozen weights too.
    """

    def __init__(self, model: Any, *, several: bool) -> None:
        self.kind = type(model).__name__
        self.trainer: Any = None
        self._model = model
        self._trained = [v for v in model.parameters() if v.requires_grad]
        self._watched = list(model.parameters()) if several else self._trained
        generator = torch.Generator().manual_seed(0)
        self._told = [
            (TRIED_SIZE * torch.randn(v.shape, generator=generator)).to(v) for v in self._trained
        ]
        self._expected = self._weights()
        self._begun = self._stepped = 0
        self.found: list[str] = []

    def watch(self) -> None:
        """Replace the training step, and look at the weights before and after each hook."""
        for name in HOOKS:
            if overrides(self._model, name):
                setattr(self._model, name, self._around(name, getattr(self._model, name)))
        self._model.training_step = partial(self._training_step, self._model.training_step)

    def callback(self) -> Any:
        """A callback that replaces the optimiser's step."""
        trial = self

        def step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            return trial.step(optimizer, closure)

        class Watch(lightning_of(self._model).Callback):  # type: ignore[misc]
            def on_train_start(self, trainer: Any, module: Any) -> None:
                for optimizer in trainer.optimizers:
                    # A method, as schedulers wrap it.
                    vars(optimizer)["step"] = MethodType(step, optimizer)

        return Watch()

    def end(self) -> str | None:
        """What was found first."""
        self._compare()
        self._count(self._stepped)
        return self.found[0] if self.found else None

    def step(self, optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
        """The optimiser's step, before which the gradients are looked at."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        self._count(self._stepped + 1)
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        for value, told in zip(self._trained, self._told, strict=True):
            if id(value) in held and value.requires_grad and not _same(value.grad, told):
                self.found.append(f"{self._others} changes the gradients")
                break
        self._compare()
        type(optimizer).step(optimizer)
        self._stepped += 1
        self._expected = self._weights()
        return loss

    def _count(self, steps: int) -> None:
        if self._begun != steps:
            self.found.append(f"{self.kind} does not make one step for each batch")

    def _training_step(self, real: Callable[..., Any], batch: Any, index: int = 0) -> Tensor:
        self._compare()
        self._begun += 1
        with suppress(Exception):  # of the user's own code, by batches that are not the client's
            real(*((batch, index) if takes_index(real) else (batch,)))
        self._compare(f"`training_step` of {self.kind}")
        sums = [(v * g).sum() for v, g in zip(self._trained, self._told, strict=True)]
        return torch.stack(sums).sum()

    def _around(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        what = f"`{name}` of {self.kind}"

        @wraps(hook)
        def call(*arguments: Any, **settings: Any) -> Any:
            self._compare()
            before = [None if v.grad is None else v.grad.clone() for v in self._trained]
            result = None
            try:
                result = hook(*arguments, **settings)
            except Exception as error:  # of the user's own code
                self.found.append(f"{what} fails where it is tried: {first_line(error)}")
            self._compare(what)
            after = [value.grad for value in self._trained]
            if name not in _CLEARING and not all(map(_same, after, before)):
                self.found.append(f"{what} changes the gradients")
            return result

        return call

    def _compare(self, what: str | None = None) -> None:
        now = self._weights()
        if not all(map(torch.equal, now, self._expected)):
            self.found.append(f"{what or self._others} changes the weights")
            self._expected = now

    def _weights(self) -> list[Tensor]:
        return [value.detach().clone() for value in self._watched]

    @property
    def _others(self) -> str:
        """What is no hook of the module's own."""
        names = {type(each).__name__ for each in getattr(self.trainer, "callbacks", ())}
        own = ", ".join(f"`{name}`" for name in sorted(names - _OF_LIGHTNING))
        return f"a callback of {self.kind} ({own})" if own else f"another hook of {self.kind}"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
