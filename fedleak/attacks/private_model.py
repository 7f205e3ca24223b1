"""The private model of an attack: a copy with the sent weights, whose metrics do nothing."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from fedleak.attacks.embeddings import takes_numbers
from fedleak.errors import BadInput, ModelFailed, first_line, require
from fedleak.models.noise import record
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.loss_probe import LossProbe
from fedleak.updates.module_state import entries, state_kept, state_places
from fedleak.updates.private_model import ABSENT, private_copy
from fedleak.updates.update import InterceptedUpdate


@dataclass(frozen=True)
class Loaded:
    """A private copy of a model and its origin, reused for updates with the same sent weights."""

    model: nn.Module
    original: nn.Module
    training: bool | None
    sent: Mapping[str, Tensor]
    probes: dict[tuple[object, ...], LossProbe] = field(default_factory=dict)

    def loss(self, knowledge: Knowledge) -> LossProbe:
        """What the loss does with labels.

        Args:
            knowledge: gives the loss, and number and shape of the samples.
        """
        told = knowledge.labels if knowledge.labels is not None else knowledge.label_example
        like = None if told is None else (told.dtype, told.shape[1:])
        key = (
            knowledge.client_samples, knowledge.batch_size, knowledge.steps, knowledge.num_classes,
            tuple(knowledge.input_shape), id(knowledge.loss), like,
        )  # fmt: skip
        if key not in self.probes:
            self.probes[key] = LossProbe(self.model, knowledge)
        return self.probes[key]


@dataclass(frozen=True)
class GuardedLoss:
    """A loss whose errors, of whatever kind, are :class:`~fedleak.errors.ModelFailed`.

    Args:
        loss: the loss of a batch, given model and batch.
    """

    loss: Callable[[nn.Module, Any], Tensor]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch."""
        try:
            return self.loss(model, batch)
        except BadInput:
            raise
        except Exception as error:
            raise ModelFailed(
                f"Expected a model that computes its loss, but {type(model).__name__} fails: "
                f"{first_line(error)}"
            ) from error


def guarded(known: Sequence[Knowledge]) -> list[Knowledge]:
    """The same knowledge with losses whose errors are sentences, see :class:`GuardedLoss`.

    Args:
        known: what is known of each update; those of one loss keep one.

    Raises:
        BadInput: if a model is compiled by TorchScript, which cannot be copied and changed.
    """
    for name, module in (pair for facts in known for pair in facts.model.named_modules()):
        compiled = isinstance(module, torch.jit.ScriptModule)
        where = f"`{name}`" if name else "the model itself"
        require(
            not compiled,
            f"Expected modules of Python code, got {where} compiled by TorchScript: give the one "
            "that it was made of.",
        )
    losses = {id(facts.loss): GuardedLoss(facts.loss) for facts in known}
    return [replace(facts, loss=losses[id(facts.loss)]) for facts in known]


def loaded_model(
    update: InterceptedUpdate, knowledge: Knowledge, device: str, models: list[Loaded]
) -> Loaded:
    """The private model of an update: the sent weights, no gradients, in the client's modes.

    Args:
        update: the update, by the model's names.
        knowledge: gives the model, the modes and the loss.
        device: where to compute.
        models: those made so far, which a new one is appended to.
    """
    for known in models:
        if (known.original, known.training) == (knowledge.model, knowledge.training) and all(
            torch.equal(known.sent[name], value) for name, value in update.sent.items()
        ):
            return known
    model = private_copy(knowledge.model).to(device)
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters()):
        model = model.float()  # gradients of gradients are lost in half precision
    model.load_state_dict(update.sent)
    model.requires_grad_(False)
    if knowledge.training is not None:
        model.train(knowledge.training)
    quieten_metrics(model, knowledge)
    models.append(Loaded(model, knowledge.model, knowledge.training, update.sent))
    return models[-1]


def mixed_modes(knowledge: Knowledge) -> str | None:
    """A finding where one mode was told of a model whose modules are in different ones."""
    if knowledge.training is None:
        return None
    own = knowledge.model
    modes = {name: module.training for name, module in own.named_modules()}
    other = next((n for n, mode in modes.items() if n and mode != own.training), None)
    if other is None:
        return None
    told = private_copy(own).train(knowledge.training)
    if modes == {name: module.training for name, module in told.named_modules()}:
        return None
    return (
        f"all modules taken to be in {'train' if knowledge.training else 'eval'} mode, as "
        f"`training` says, while `{other}` of the model is not in the mode of the whole: without "
        "`training`, each module's own mode counts"
    )


def zero_batch(model: nn.Module, knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    """Inputs and labels of zeros, in the model's precision, or whole, and on its device."""
    like = next(model.parameters())
    number = knowledge.num_samples
    inputs = torch.zeros(number, *knowledge.input_shape, dtype=like.dtype, device=like.device)
    if takes_numbers(knowledge) is not None:
        inputs = inputs.long()
    return inputs, knowledge.dummy_labels(number).to(like.device)


def noise_shapes(model: nn.Module, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
    """Shape of each slot's noise for the batch; also checks that the model takes such inputs.

    Args:
        model: the private model; it is left as it is.
        knowledge: gives the loss and the shapes.

    Raises:
        BadInput: if the model fails on them, or the loss is no scalar.
    """
    inputs, labels = zero_batch(model, knowledge)
    try:
        with record(model) as notes, torch.no_grad(), state_kept(model):
            loss: Any = knowledge.loss(model, (inputs, labels))
    except ModelFailed as error:
        raise ModelFailed(
            f"Expected a model that takes inputs of shape {tuple(knowledge.input_shape)} and "
            f"labels of shape {tuple(labels.shape[1:])}, as a pair (inputs, labels) unless `loss` "
            f"does otherwise, but {type(model).__name__} fails on them: {first_line(_cause(error))}"
        ) from error
    require(
        isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point(),
        f"Expected the loss of a batch of {type(model).__name__} to be a scalar tensor, got "
        + (
            f"shape {tuple(loss.shape)}." if isinstance(loss, Tensor) else f"{type(loss).__name__}."
        ),
    )
    return {name: tuple(values[0].shape) for name, values in notes.items() if values}


def _cause(error: ModelFailed) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


# ---------------------------------------------------------------------------------- metrics


class _Quiet:
    """In the place of a metric: gives what the metric gave once."""

    _given: Any = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._given

    def update(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def reset(self) -> None:
        pass

    def compute(self) -> Any:
        return self._given

    def __getitem__(self, _key: Any) -> Any:
        return ABSENT


class _QuietModule(_Quiet, nn.Module):
    """A metric that is a module."""


class _QuietObject(_Quiet):
    """A metric that is none."""

    __call__ = _Quiet.forward


def metrics_of(model: nn.Module) -> list[Any]:
    """The objects on a model with the methods of a metric: update, compute and reset."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if _is_metric(module) and module is not model:
            found.setdefault(id(module), module)
    for place, _ in state_places(model):
        values = place if isinstance(place, set) else [value for _, value in entries(place)]
        for value in values:
            if _is_metric(value) and value is not model:
                found.setdefault(id(value), value)
    return list(found.values())


def _is_metric(value: Any) -> bool:
    if isinstance(value, type | dict | set | _Quiet) or value is ABSENT:
        return False
    # Of the class, since some objects have whatever attribute is asked for.
    names = ("update", "compute", "reset")
    return all(callable(getattr(type(value), name, None)) for name in names)


def quieten_metrics(model: nn.Module, knowledge: Knowledge) -> None:
    """Replace the metrics of a model by such that do nothing, if the loss does not depend on them.

    A metric need not be differentiable, nor work within ``torch.func``. Whether the loss depends on
    them is tried: each result of each metric is replaced by another.

    Args:
        model: the private model, changed in place.
        knowledge: gives the loss.
    """
    if not metrics_of(model):
        return
    batch = zero_batch(model, knowledge)
    try:
        given, whole = _results(copy.deepcopy(model), knowledge, batch)
        changed = copy.deepcopy(model)
        _replace(changed, [tree_map(_other, value) for value in given])
        if torch.equal(_loss(changed, knowledge, batch), whole):
            _replace(model, given)
    except Exception:  # of the user's own code: then the metrics stay as they are
        return


def _results(model: nn.Module, knowledge: Knowledge, batch: Any) -> tuple[list[Any], Tensor]:
    """What each metric gives in a pass, and the loss."""
    given: dict[int, Any] = {}
    metrics = metrics_of(model)

    def recorded(at: int, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = method(*args, **kwargs)
            given[at] = tree_map(_detached, value)
            return value

        return call

    for at, metric in enumerate(metrics):
        for name in ("forward", "compute"):
            if callable(method := getattr(metric, name, None)):
                setattr(metric, name, recorded(at, method))
    whole = _loss(model, knowledge, batch)
    return [given.get(at) for at in range(len(metrics))], whole


def _loss(model: nn.Module, knowledge: Knowledge, batch: Any) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return knowledge.loss(model, batch)


def _replace(model: nn.Module, given: list[Any]) -> None:
    for metric, value in zip(metrics_of(model), given, strict=True):
        for name in ("forward", "update", "compute", "reset"):
            vars(metric).pop(name, None)
        metric.__class__ = _QuietModule if isinstance(metric, nn.Module) else _QuietObject
        vars(metric)["_given"] = value


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _other(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ~value if value.dtype == torch.bool else value + 1
    return value + 1 if isinstance(value, int | float) else value


# ------------------------------------------------------------------------------ computation


@contextmanager
def twice_differentiable(models: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, torch computes by operations that can be differentiated twice.

    Attention is computed by matrix products instead of a fused kernel, recurrent layers without
    cuDNN, nothing is computed anew in place of being kept (``torch.utils.checkpoint``), and
    functions that a model compiles are run by Python.

    Args:
        models: the models that are attacked.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    checkpointing = torch.utils.checkpoint
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for model in models for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        for name, plain in (
            ("CheckpointFunction", _Reentrant),
            ("_checkpoint_without_reentrant_generator", _not_reentrant),
            ("_checkpoint_without_reentrant_generator_impl", _not_reentrant),
        ):
            if hasattr(checkpointing, name):
                stack.enter_context(mock.patch.object(checkpointing, name, plain))
        if "torch._dynamo" in sys.modules:  # else the model holds no compiled function
            stack.enter_context(cast(Any, torch.compiler).set_stance("force_eager"))
        yield


class _Reentrant:
    """``torch.utils.checkpoint.CheckpointFunction`` that keeps what it computes."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)


def _not_reentrant(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    yield
