"""Notes what the training in this thread does, with no line of its code changed.

Facts and truth are kept apart: facts are what an attacker knows who has read the app's code; the
truth, the batches themselves, is for the scorer alone.

Everything is seen through torch's own hooks for all modules and optimisers, and through a
``TorchFunctionMode``, which sees loss functions and ``Tensor.backward``. They only look on:
results, random numbers and weights are the same to the last bit.
"""

import inspect
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from fedleak.audit.batches import Batch
from fedleak.audit.facts import (
    LossFacts,
    ModelFacts,
    OptimizerFacts,
    Place,
    TensorFacts,
    TrainingFacts,
)
from fedleak.audit.module_watch import WatchedModules, fit, state_of, watched_modules
from fedleak.audit.other_inputs import InputRelations
from fedleak.audit.privacy_watch import ClientMechanisms, client_mechanisms
from fedleak.audit.torch_calls import (
    APPLIED,
    BACKWARD,
    CASTS,
    LIGHTNING,
    LOSSES,
    MEANS,
    RESHAPES,
    SCALES,
    TRANSPOSES,
    change_of,
    copied,
    dtype_name,
    has_parameters,
    identity_of,
    is_lightning,
    is_same,
    plain,
    reference,
    size_of,
    tensors_in,
)
from fedleak.errors import first_line
from fedleak.updates.naming import is_listed, unwrapped

# Bounds on what is kept of one training: batches and bytes of truth, steps whose size is listed,
# numbers of a tensor that is an argument of a loss, and calls that wait for their backward pass.
MOST_BATCHES = 256
MOST_BYTES = 256 * 2**20
MOST_STEPS = 100_000
MOST_NUMBERS = 10_000
MOST_WAITING = 16
MOST_FAULTS = 10

# Torch's own default arguments that say nothing.
OLD_ARGUMENTS = ("size_average", "reduce")
WRAPPED_AS = ("module", "_module", "_orig_mod")


@dataclass
class _Call:
    """A call of a model, or of a LightningModule's ``training_step``."""

    module: nn.Module
    inputs: dict[Place, Tensor]
    changed: bool = False

    @property
    def samples(self) -> int:
        """The size of its batch."""
        sizes = [value.shape[0] for value in self.inputs.values() if value.dim()]
        return int(sizes[0]) if sizes else 1


@dataclass(frozen=True)
class _Output:
    """A tensor in a model's output, or one made from it by changes that are known."""

    call: _Call
    place: Place
    changes: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class _Loss:
    """What a loss function returned; ``target`` is the client's data."""

    call: _Call | None
    facts: LossFacts
    target: Tensor | None = None


@dataclass
class TrainingRecorder:
    """What was seen of a training within ``recording()``."""

    batches: list[Batch] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.get_ident()
        self._mode = _Watch(self)
        self._paused = False
        self._inside: list[nn.Module] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._step_call: _Call | None = None
        self._waiting: deque[_Call] = deque(maxlen=MOST_WAITING)
        self._outputs: Any = WeakTensorKeyDictionary()
        self._losses: Any = WeakTensorKeyDictionary()
        self._in_backward = False
        self._used: list[int] = []
        # Modules that were called with gradients, and those that a backward pass went through.
        self._forwarded: dict[int, nn.Module] = {}
        self._called: dict[int, nn.Module] = {}
        self._modes: dict[int, dict[str, bool]] = {}
        self._frozen: dict[int, list[str]] = {}
        self._gradients: dict[int, tuple[tuple[int, int, int], Tensor]] = {}
        # The size of each weight before the first step, and after the last one so far.
        self._first_weights: dict[int, Tensor] = {}
        self._last_weights: dict[int, tuple[Tensor, Tensor]] = {}
        self._weights_changed = False
        self._watched = WatchedModules()
        self._optimizers: dict[int, Optimizer] = {}
        self._groups: list[dict[str, Any]] = []
        self._carried = False
        self._rates: list[float] = []
        self._sizes: list[int] = []
        self._passes = 0
        self._changed = False
        self._inputs: tuple[TensorFacts, ...] = ()
        self._relations = InputRelations()
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._loss: LossFacts | None = None
        self._bytes = 0
        self._notes: list[str] = []
        self._stack = ExitStack()
        self._lightning = set[str]()
        self._mechanisms: ClientMechanisms | None = None
        self.modules = 0  # number of those that are imported, when last looked at

    # ------------------------------------------------------------------ what sees, and its end

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, the training in this thread is noted; afterwards no hook is left."""
        with ExitStack() as self._stack:
            self._watched = self._stack.enter_context(watched_modules())
            self._mechanisms = self._stack.enter_context(client_mechanisms(self.faults))
            for handle in (
                register_module_forward_pre_hook(self._before_call),
                register_module_forward_hook(self._after_call, with_kwargs=True, always_call=True),
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ):
                self._stack.callback(handle.remove)
                # Torch leaves a number behind in it.
                self._stack.callback(_global_forward_hooks_with_kwargs.pop, handle.id, None)
            self._lightning.clear()
            self.watch_lightning()
            with self._mode:
                try:
                    yield
                finally:
                    self._resume()

    def _safely(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the recorder, whose errors never reach the client."""
        try:
            with torch._C.DisableTorchFunction():  # what the recorder itself computes is not seen
                return function(*args)
        except Exception as error:
            text = f"{function.__name__.strip('_')}: {type(error).__name__}: {first_line(error)}"
            if text not in self.faults and len(self.faults) < MOST_FAULTS:
                self.faults.append(text)
            return None

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    @property
    def _is_off(self) -> bool:
        """Whether what happens now is not the training itself: another thread, a backward pass."""
        return self._in_backward or threading.get_ident() != self._thread

    # ------------------------------------------------------------------ calls of the model

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if not self._is_off:
            if not self._inside and not torch.is_grad_enabled():
                # Torch has faster kernels for transformers in evaluation, which it does not use
                # while a mode looks on; they differ in the last bit.
                self._pause()
            self._safely(self._enter_call, module, args)

    def _after_call(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # After an error in the call, torch gives no keyword arguments.
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if not self._is_off:
            self._safely(self._leave_call, module, args, kwargs, output)
            if not self._inside:
                self._resume()  # also where an error has ended a step

    def _enter_call(self, module: nn.Module, args: Any) -> None:
        if not self._inside:
            self._versions = [(value, value._version) for value in tensors_in(args).values()]
        self._inside.append(module)

    def _leave_call(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self._inside and self._inside.pop() is not module:
            pass  # calls that an error has ended without a word
        if self._inside:
            return
        changed = any(value._version != version for value, version in self._versions)
        self._versions = []
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self._note("the model runs under autocast, which an attack does not account for")
        if output is None or not torch.is_grad_enabled() or not has_parameters(module):
            return
        found = {p: v for p, v in tensors_in(output).items() if v.requires_grad}
        if not found:
            return
        self._forwarded[id(module)] = module
        call = _Call(module, tensors_in((*args, dict(kwargs))), changed)
        if kwargs:
            call.inputs = {
                (place[1:] if place[0] == len(args) else place): value
                for place, value in call.inputs.items()
            }
        self._waiting.append(call)
        for place, value in found.items():
            self._outputs[value] = _Output(call, place)

    def _pause(self) -> None:
        depth = torch._C._len_torch_function_stack()
        # A mode that the client has entered in between stays where it is.
        if depth and torch._C._get_function_stack_at(depth - 1) is self._mode:
            self._mode.__exit__(None, None, None)
            self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------ losses

    def reshaped(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Called after a change of shape or type; notes it if it is one of a model's output."""
        if not args or not isinstance(args[0], Tensor) or not isinstance(result, Tensor):
            return
        source: _Output | None = self._outputs.get(args[0])
        if source is None or result is args[0]:
            return
        change = change_of(function, args, kwargs, result, source.call.samples)
        if change is not None:
            changes = source.changes if not change else (*source.changes, change)
            self._outputs[result] = replace(source, changes=changes)

    def loss_called(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Called after a loss function."""
        if not isinstance(result, Tensor) or not result.requires_grad:
            return
        if self._inside and has_parameters(self._inside[0]):
            return  # it is a part of the model
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        prediction, target = given.pop("input"), given.pop("target")
        source: _Output | None = self._outputs.get(prediction)
        large = [n for n, v in given.items() if isinstance(v, Tensor) and v.numel() > MOST_NUMBERS]
        reason = ""
        if source is None:
            reason = f"the input of {LOSSES[function]} is not the model's output as it is"
        elif large:
            reason = f"the argument `{large[0]}` of {LOSSES[function]} is too large to be noted"
        if source is None or reason:
            self._losses[result] = _Loss(None, LossFacts("unknown", reason=reason), target)
            return
        arguments = {n: plain(v) for n, v in given.items() if n not in OLD_ARGUMENTS}
        facts = LossFacts(
            "function",
            function=LOSSES[function],
            arguments=arguments,
            output=source.place,
            changes=source.changes,
            target=(dtype_name(target.dtype), tuple(target.shape[1:])),
            target_input=next(
                (place for place, v in source.call.inputs.items() if is_same(v, target)), None
            ),
        )
        self._losses[result] = _Loss(source.call, facts, target)

    def loss_changed(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Called after a mean, a sum or a scaling; notes it if it is one of a loss."""
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if len(tensors) != 1 or not isinstance(result, Tensor):
            return
        known: _Loss | None = self._losses.get(tensors[0])
        output: _Output | None = self._outputs.get(tensors[0])
        if known is None and output is not None and not output.changes and not tensors[0].dim():
            known = _Loss(output.call, LossFacts("output", output=output.place))
        if known is None or known.facts.kind == "unknown":
            return
        facts = known.facts
        if function in MEANS:
            if len(args) > 1 or kwargs or result.dim() or facts.reduction is not None:
                return
            facts = replace(facts, reduction=MEANS[function])
        else:
            number = next((arg for arg in args[1:] if isinstance(arg, int | float)), None)
            if number is None or kwargs:
                return
            if SCALES[function] and not isinstance(args[0], Tensor):
                return  # a number divided by a loss
            factor = 1 / number if SCALES[function] else float(number)
            facts = replace(facts, scale=facts.scale * factor)
        self._losses[result] = replace(known, facts=facts)

    # ------------------------------------------------------------------ backward passes

    def before_backward(self, scalar: Any) -> None:
        """Called before a backward pass."""
        self._passes += 1
        loss: _Loss | None = self._losses.get(scalar)
        output: _Output | None = self._outputs.get(scalar)
        call, target = (self._waiting[-1] if self._waiting else None), None
        if self._step_call is not None:
            facts, call = LossFacts("training_step"), self._step_call
        elif loss is not None:
            facts, call, target = loss.facts, loss.call or call, loss.target
        elif output is not None and not output.changes and scalar.dim() == 0:
            facts, call = LossFacts("output", output=output.place), output.call
        else:
            facts = LossFacts(
                "unknown",
                reason="the scalar that is differentiated is neither the result of a loss function "
                "of torch nor an output of the model, such as a sum of several terms",
            )
        if call is not None and any(value.grad_fn is not None for value in call.inputs.values()):
            self._note("what the model is called with was itself computed with gradients")
        self._waiting.clear()
        if self._loss is None:
            self._loss = facts
        elif self._loss != facts and self._loss.kind != "unknown":
            self._loss = LossFacts("unknown", reason="it is not the same in all steps")
        if call is not None:
            self._note_call(call, target)

    def after_backward(self) -> None:
        """Called after a backward pass: the gradients as they are now."""
        self._gradients = {}
        for module in self._called.values():
            for value in module.parameters():
                if value.grad is not None:
                    self._gradients[id(value)] = identity_of(value.grad), size_of(value.grad)

    def _note_call(self, call: _Call, target: Tensor | None) -> None:
        module = call.module
        if id(module) not in self._called:
            self._called[id(module)] = module
            self._note_modes(module)
        facts = tuple(
            TensorFacts(place, tuple(value.shape), dtype_name(value.dtype))
            for place, value in call.inputs.items()
        )
        if not self._inputs or _numbers(facts) > _numbers(self._inputs):
            self._inputs = facts
        self._shapes.add(tuple(item.shape[1:] for item in facts))
        self._relations.note(call.inputs)
        self._used.append(call.samples)
        if call.changed:
            self._note("the model changes its inputs in place, so the truth is not known")
            return
        tensors = [*call.inputs.values(), *([] if target is None else [target])]
        size = sum(value.nbytes for value in tensors)
        if len(self.batches) >= MOST_BATCHES or self._bytes + size > MOST_BYTES:
            self._note(f"the truth holds the first {len(self.batches)} batches alone")
            self._bytes = MOST_BYTES  # a smaller batch later would leave a gap
            return
        self._bytes += size
        self.batches.append(
            Batch(
                {place: copied(value) for place, value in call.inputs.items()},
                None if target is None else copied(target),
            )
        )

    def _note_modes(self, module: nn.Module) -> None:
        for owner in self._owners(module):
            self._modes[id(owner)] = {n: part.training for n, part in owner.named_modules()}
            self._frozen[id(owner)] = [
                name for name, value in owner.named_parameters() if not value.requires_grad
            ]

    def _owners(self, module: nn.Module) -> list[nn.Module]:
        """The modules that may be the one whose weights are sent: itself, or one around it."""
        known = self._watched.modules()
        around = [m for m in known if m is not module and any(p is module for p in m.modules())]
        inside = [m for m in known if m is not module and any(p is m for p in module.modules())]
        return [module, *around, *inside]

    # ------------------------------------------------------------------ optimiser steps

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_off:
            self._safely(self._note_optimizer, optimizer)
            self._safely(self._compare_gradients, optimizer)
            self._safely(self._compare_weights)
            if len(args) == 1 and not kwargs:  # no closure, so that no loss is computed within it
                self._pause()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._is_off:
            self._resume()
            self._safely(self._note_step, optimizer)

    def _note_optimizer(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._optimizers:
            return
        if not self._optimizers:
            self._carried = bool(optimizer.state)
            self._groups = [
                {name: plain(value) for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            ]
        self._optimizers[id(optimizer)] = optimizer
        for value in _weights_of(optimizer):
            self._first_weights.setdefault(id(value), size_of(value))

    def _compare_weights(self) -> None:
        """Note whether weights are others than the last step has left."""
        known = [value for value, _ in self._last_weights.values()]
        self._weights_changed = self._weights_changed or not self._are_last(known)

    def _are_last(self, weights: Iterable[Tensor]) -> bool:
        """Whether weights are those that the last step has left."""
        return all(
            id(value) in self._last_weights
            and torch.equal(size_of(value), self._last_weights[id(value)][1])
            for value in weights
        )

    def _starts_elsewhere(self, owner: nn.Module | None, received: Mapping[str, Tensor]) -> bool:
        """Whether the first step began at other weights than those that were received."""
        if owner is None or not received:
            return False
        own = dict(owner.named_parameters())
        starts = dict(received)
        if is_listed(received):
            names = [name for name, _, _ in state_of(owner)]
            names = names if len(names) == len(received) else list(own)
            starts = dict(zip(names, received.values(), strict=False))
        return any(
            name in own
            and id(own[name]) in self._first_weights
            and not torch.isclose(
                self._first_weights[id(own[name])].cpu().double()[0], size_of(value).double()[0]
            )
            for name, value in starts.items()
        )

    def _compare_gradients(self, optimizer: Optimizer) -> None:
        """Note whether gradients are others than the backward pass has left."""
        for group in optimizer.param_groups:
            for value in group["params"]:
                known = self._gradients.get(id(value))
                if known is not None and value.grad is not None and not self._changed:
                    # Clipping that clips nothing writes the same numbers again.
                    same = identity_of(value.grad) == known[0]
                    self._changed = not (same or torch.equal(size_of(value.grad), known[1]))

    def _note_step(self, optimizer: Optimizer) -> None:
        if self._used:  # the backward pass may have come within the step, as a closure
            self._compare_gradients(optimizer)
        self._gradients = {}
        if not self._used and self._sizes and self._are_last(_weights_of(optimizer)):
            return  # torch calls its hooks for the step of a base class, and again for a subclass's
        for value in _weights_of(optimizer):
            self._last_weights[id(value)] = value, size_of(value)
        if next(iter(self._optimizers.values())) is not optimizer:
            return
        if len(self._sizes) >= MOST_STEPS:
            self._note(f"of its steps the first {MOST_STEPS:,} alone are listed")
            return
        self._sizes.append(sum(self._used))
        self._used, self._step_call = [], None
        rate = optimizer.param_groups[0].get("lr")
        self._rates.append(float(rate) if rate is not None else float("nan"))

    # ------------------------------------------------------------------ Lightning

    def watch_lightning(self) -> None:
        """Within the recording, note the batches of ``training_step``, which is called directly.

        A client may import Lightning, or Opacus, only when it trains, so this is called again
        whenever modules have been imported.
        """
        self.modules = len(sys.modules)
        if self._mechanisms is not None:
            self._mechanisms.look_for_opacus()
        for package in set(LIGHTNING) - self._lightning:
            strategies = sys.modules.get(f"{package}.strategies")
            kind = getattr(strategies, "Strategy", None)
            if kind is None:
                continue
            self._lightning.add(package)
            original = kind.training_step
            kind.training_step = _replaced_step(self, original)
            self._stack.callback(setattr, kind, "training_step", original)

    def enter_training_step(self, module: nn.Module, args: Any) -> None:
        """Called before a LightningModule's ``training_step`` with its arguments."""
        batch = tensors_in(args[:1])
        self._forwarded[id(module)] = module
        self._step_call = _Call(module, {place[1:]: v for place, v in batch.items()})
        self._inside.append(module)

    def leave_training_step(self) -> None:
        """Called after ``training_step``; its backward pass comes later."""
        self._inside.clear()

    # ------------------------------------------------------------------ the facts

    def facts(
        self,
        partition: int | None,
        sent: Mapping[str, Tensor],
        received: Mapping[str, Tensor] | None = None,
        *,
        gradient: bool = False,
    ) -> TrainingFacts:
        """What was seen.

        Args:
            partition: number of the client.
            sent: the arrays that the client returns, by name, or by position as text.
            received: the arrays that it got from the server. If None, they are not known.
            gradient: whether the reply says that it is a gradient.
        """
        shapes = [(name, tuple(value.shape)) for name, value in sent.items()]
        owner = self._safely(self._owner, shapes)
        model = None if owner is None else self._safely(self._model_facts, owner)
        self._safely(self._compare_weights)
        elsewhere = self._safely(self._starts_elsewhere, owner, received or {})
        sends: Any = "gradient" if gradient else None
        sends = sends or self._safely(_what_is_sent, owner, sent, received or {})
        notes = list(self._notes)
        if model is None and self._forwarded:
            notes.append("no module was seen whose weights are those that the client sends")
        if not self._forwarded and not self._optimizers:
            notes.append(
                "no call of a torch model with gradients and no step of a torch optimiser was "
                "seen: the app trains without torch, or in another process or thread"
            )
        elif not self._optimizers and sends != "gradient":
            notes.append(
                "no step of a torch optimiser was seen: the app changes the weights itself"
            )
        elif not self._passes:
            notes.append("no call of `Tensor.backward` was seen")
        if self._mode.saw_grad:
            notes.append("`torch.autograd.grad` was called")
        if any(type(module).__module__.startswith("opacus") for module in self._called.values()):
            notes.append("the model is wrapped by Opacus: its gradients are clipped and noisy")
        sizes = self._sizes
        if sends == "gradient" and not sizes and self._used:
            sizes = [sum(self._used)]
        return TrainingFacts(
            partition=partition,
            model=model,
            inputs=tuple(
                replace(item, relation=self._relations.of(item.path)) for item in self._inputs
            ),
            loss=self._loss,
            optimizer=self._safely(self._optimizer_facts, owner) if self._optimizers else None,
            batch_sizes=tuple(sizes),
            shapes_differ=len(self._shapes) > 1,
            backward_passes=self._passes,
            sends=sends,
            gradients_changed=self._changed,
            weights_changed=self._weights_changed or bool(elsewhere),
            batches_kept=len(self.batches),
            mechanisms=() if self._mechanisms is None else self._mechanisms.facts,
            notes=tuple(notes),
            faults=tuple(self.faults),
        )

    def _owner(self, sent: Sequence[tuple[str, tuple[int, ...]]]) -> nn.Module | None:
        """The module whose weights are sent."""
        loaded = self._watched.modules("load_state_dict")
        candidates = {
            id(m): m for m in (*loaded, *self._watched.modules(), *self._forwarded.values())
        }

        def rank(module: nn.Module) -> tuple[int, bool, bool]:
            parts = {id(part) for part in module.modules()}
            calls = any(id(c) in parts for c in self._called.values()) or any(
                part is module for c in self._called.values() for part in c.modules()
            )
            return fit(module, sent), calls, any(module is m for m in loaded)

        found = max(candidates.values(), key=rank, default=None)
        fits = found is not None and has_parameters(found) and (not sent or fit(found, sent) > 0)
        return found if fits else None

    def _model_facts(self, owner: nn.Module) -> ModelFacts:
        lightning = is_lightning(owner)
        called = self._called.values()
        how = "never"
        if any(module is owner for module in called):
            how = "itself"
        elif any(getattr(module, name, None) is owner for module in called for name in WRAPPED_AS):
            how = "wrapped"
        elif any(part is module for part in owner.modules() for module in called):
            how = "parts"
        modes = self._modes.get(id(owner), {name: p.training for name, p in owner.named_modules()})
        # A container has no mode of its own that would matter, but its parts have.
        eval_ = tuple(name for name, training in modes.items() if not training)
        training = None if 0 < len(eval_) < len(modes) else not eval_
        return ModelFacts(
            reference(type(owner)),
            state_of(owner),
            lightning=lightning,
            called=cast(Any, how),
            training=training,
            in_eval_mode=eval_ if training is None else (),
            frozen=tuple(self._frozen.get(id(owner), ())),
        )

    def _optimizer_facts(self, owner: nn.Module | None) -> OptimizerFacts:
        first, *others = self._optimizers.values()
        names = {id(v): n for n, v in owner.named_parameters()} if owner is not None else {}
        groups = []
        for settings, group in zip(self._groups, first.param_groups, strict=False):
            own = [names.get(id(value)) for value in group["params"]]
            groups.append(settings | {"names": None if None in own else own})
        rates = self._rates if len(set(self._rates)) > 1 else []
        return OptimizerFacts(
            reference(type(first)),
            tuple(groups),
            rates=tuple(rates),
            carried_over=self._carried,
            others=tuple(reference(type(other)) for other in others),
        )


def _numbers(facts: Sequence[TensorFacts]) -> int:
    """Numbers in the first tensor of a call."""
    return math.prod(facts[0].shape) if facts else 0


def _weights_of(optimizer: Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _what_is_sent(
    owner: nn.Module | None, sent: Mapping[str, Tensor], received: Mapping[str, Tensor]
) -> Literal["weights", "delta", "gradient", "other"] | None:
    """What a client returns, compared with its model as it is at the end."""
    if owner is None or not sent:
        return None
    listed = is_listed(sent)
    state: dict[str, Tensor] = {n: v.detach().cpu() for n, v in owner.state_dict().items()}
    if listed and len(sent) != len(state):
        state = {n: v.detach().cpu() for n, v in owner.named_parameters()}
    names = list(state) if listed else [unwrapped(name) for name in sent]
    state = state if listed else {unwrapped(name): value for name, value in state.items()}
    pairs = [(state[name], value) for name, value in zip(names, sent.values(), strict=True)]
    if all(torch.equal(own.to(value.dtype), value) for own, value in pairs):
        return "weights"
    starts = list(received.values())
    if len(starts) == len(pairs) and all(
        start.shape == own.shape and torch.allclose((own - start).to(value.dtype), value, rtol=1e-3)
        for start, (own, value) in zip(starts, pairs, strict=True)
    ):
        return "delta"
    return "gradient" if _are_gradients(owner, sent, listed) else "other"


def _are_gradients(owner: nn.Module, sent: Mapping[str, Tensor], listed: bool) -> bool:
    """Whether arrays are the gradients that the backward passes have left."""
    own = {unwrapped(name): value.grad for name, value in owner.named_parameters()}
    names = list(own) if listed else [unwrapped(name) for name in sent]
    if len(names) != len(sent) or not any(own.get(name) is not None for name in names):
        return False
    for name, value in zip(names, sent.values(), strict=True):
        found = own.get(name)
        found = torch.zeros_like(value) if found is None else found.detach().cpu()
        if name not in own or not torch.equal(found.to(value.dtype), value):
            return False
    return True


class _Watch(TorchFunctionMode):
    """Sees the functions of torch that the client calls; it changes no result."""

    def __init__(self, recorder: TrainingRecorder) -> None:
        self._recorder = recorder
        self.saw_grad = False
        self._seen: dict[Any, Callable[..., None]] = {
            **dict.fromkeys(LOSSES, recorder.loss_called),
            **dict.fromkeys((*MEANS, *SCALES), recorder.loss_changed),
            **dict.fromkeys((*RESHAPES, *TRANSPOSES, *APPLIED, *CASTS), recorder.reshaped),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self._recorder
        if len(sys.modules) != recorder.modules:
            recorder._safely(recorder.watch_lightning)
        if func is BACKWARD and not recorder._in_backward:
            recorder._safely(recorder.before_backward, args[0])
            recorder._in_backward = True
            try:
                result = func(*args, **kwargs)
            finally:
                recorder._in_backward = False
            recorder._safely(recorder.after_backward)
            return result
        result = func(*args, **kwargs)
        if func is torch.autograd.grad:
            self.saw_grad = True
        hook = self._seen.get(func)
        if hook is not None and not recorder._is_off:
            recorder._safely(hook, func, args, kwargs, result)
        return result


def _replaced_step(recorder: TrainingRecorder, original: Callable[..., Any]) -> Callable[..., Any]:
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder._is_off:
            return original(self, *args, **kwargs)
        recorder._safely(recorder.enter_training_step, self.lightning_module, args)
        try:
            return original(self, *args, **kwargs)
        finally:
            recorder._safely(recorder.leave_training_step)

    return training_step
