"""Private copies of models: they compute the same, and leave nothing outside of themselves."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.updates.module_state import entries, state_places

# Modules around a model that pass its inputs and outputs on, and train or compile it elsewhere.
_WRAPPERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "OptimizedModule", "AbstractGradSampleModule"}
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model, with the same names of modules, parameters and buffers, and the same modes.

    The copy computes what the model computes, with these differences: it is run by Python where
    the model is compiled; on one device where the model is parallel; without Opacus' gradients by
    sample; and of a LightningModule nothing is logged, and the trainer is a stand-in before its
    first step. What cannot be copied, such as an open file, is replaced by an object that takes
    every call and does nothing.

    Args:
        model: the model, which is left as it is.
    """
    memo: dict[int, Any] = {}
    for place, _ in state_places(model):
        for _, value in entries(place):
            # A tensor that a pass has left, with the graph that it came from.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, torch.Generator):
                memo[id(value)] = value.clone_state()
    for wrapper in reversed([module for module in model.modules() if _is_wrapper(module)]):
        memo[id(wrapper)] = _PassingOn(wrapper)
    try:
        made = _copied(model, dict(memo))
    except Exception:  # whatever the objects raise that a model holds
        for place, hidden in state_places(model):
            for name, value in entries(place):
                if name not in hidden and not _can_be_copied(value, memo):
                    memo[id(value)] = ABSENT
        made = _copied(model, memo)
    trainer = _Trainer(made)
    for module in made.modules():
        attributes = vars(module)
        attributes.pop("_compiled_call_impl", None)
        for name in _HOOKS:
            hooks = attributes[name]
            for key in [key for key, hook in hooks.items() if _is_opacus(hook)]:
                del hooks[key]
        if "_trainer" in attributes:
            attributes |= {"_trainer": trainer, "log": ABSENT, "log_dict": ABSENT}
    if "_trainer" in vars(made):
        # A LightningModule leaves its trainer out of its copies.
        vars(made)["__deepcopy__"] = _Copier(made)
    return made


class _Copier:
    """Copies a private model with its stand-ins.

    Args:
        model: the model, in whose attributes it is found by ``copy.deepcopy``.
    """

    __slots__ = ("_model",)

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, _memo: dict[int, Any]) -> nn.Module:
        attributes = vars(self._model)
        own = attributes.pop("__deepcopy__")
        try:
            return private_copy(self._model)
        finally:
            attributes["__deepcopy__"] = own


def _is_wrapper(module: nn.Module) -> bool:
    names = {owner.__name__ for owner in type(module).__mro__}
    return bool(names & _WRAPPERS) and len(module._modules) == 1


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for shell in [value for value in memo.values() if isinstance(value, _PassingOn)]:
        for name, inner in shell._modules.items():
            shell._modules[name] = copy.deepcopy(inner, memo)
    return copy.deepcopy(model, memo)


def _can_be_copied(value: Any, memo: dict[int, Any]) -> bool:
    if isinstance(value, nn.Module | Tensor | dict | list | tuple):
        return True
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _is_opacus(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("opacus")


class _PassingOn(nn.Module):
    """In the place of a wrapper: passes everything on to the only module in it."""

    def __init__(self, wrapper: nn.Module) -> None:
        super().__init__()
        self._modules.update(wrapper._modules)
        self.training = wrapper.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (inner,) = self._modules.values()
        assert inner is not None
        return inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or not self.__dict__.get("_modules"):
                raise
            (inner,) = self._modules.values()
            return getattr(inner, name)


class _Absent:
    """Takes every call, has every attribute and every item, and does nothing; it is no number."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> "_Absent":
        return self

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __getitem__(self, _key: Any) -> "_Absent":
        return self

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __enter__(self) -> "_Absent":
        return self

    def __exit__(self, *_args: object) -> None:
        pass

    def __deepcopy__(self, _memo: Any) -> "_Absent":
        return self


ABSENT = _Absent()


class _Trainer:
    """In the place of Lightning's trainer before the first step; what it does not know is absent.

    Args:
        model: the model that it trains, for its optimisers.
    """

    # No `__dict__`: it is no state that a pass leaves, and the optimisers are made once.
    __slots__ = ("_model", "_optimizers")

    global_step = current_epoch = global_rank = local_rank = node_rank = 0
    world_size = num_devices = num_nodes = 1
    training = True
    testing = validating = predicting = sanity_checking = evaluating = barebones = False
    is_global_zero = is_last_batch = False
    datamodule = log_dir = None
    logger = ABSENT
    loggers = callbacks = lr_scheduler_configs = ()
    callback_metrics: Mapping[str, Any] = MappingProxyType({})
    logged_metrics = progress_bar_metrics = callback_metrics

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._optimizers: list[Any] | None = None

    @property
    def optimizers(self) -> list[Any]:
        """The model's own optimisers, over the copy's parameters; absent if it cannot make them."""
        if self._optimizers is None:
            configure: Any = getattr(self._model, "configure_optimizers", ABSENT)
            try:
                self._optimizers = _optimizers_in(configure()) or [ABSENT]
            except Exception:  # of the user's own code
                self._optimizers = [ABSENT]
        return self._optimizers

    @property
    def strategy(self) -> Any:
        """What ``LightningModule.optimizers`` reads."""
        return SimpleNamespace(
            _lightning_optimizers=self.optimizers, reduce=lambda value, *_args, **_kwargs: value
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return ABSENT


def _optimizers_in(found: Any) -> list[Any]:
    """The optimisers in what ``configure_optimizers`` returns."""
    if isinstance(found, torch.optim.Optimizer):
        return [found]
    if isinstance(found, dict):
        return _optimizers_in(found.get("optimizer"))
    if isinstance(found, list | tuple):
        return [optimizer for item in found for optimizer in _optimizers_in(item)]
    return []
