"""From what was seen of a client's training to what an attack is told: :class:`Knowledge`."""

import copy
import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedleak.audit.app import FlowerApp
from fedleak.audit.facts import LossFacts, OptimizerFacts, Place, TensorFacts, TrainingFacts
from fedleak.audit.module_watch import fit
from fedleak.errors import BadInput, first_line, require
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate

SECTION = "[tool.fedleak] of the app's pyproject.toml"
# torch.optim's classes -> the names of LocalTraining, and of settings that have other names there.
OPTIMIZERS = {
    "torch.optim.sgd:SGD": "sgd",
    "torch.optim.adam:Adam": "adam",
    "torch.optim.adamw:AdamW": "adamw",
    "torch.optim.rmsprop:RMSprop": "rmsprop",
    "torch.optim.adagrad:Adagrad": "adagrad",
}
SETTINGS = {
    "lr": "learning_rate", "momentum": "momentum", "dampening": "dampening",
    "nesterov": "nesterov", "weight_decay": "weight_decay", "betas": "betas", "eps": "eps",
    "amsgrad": "amsgrad", "alpha": "alpha", "centered": "centered", "lr_decay": "lr_decay",
    "initial_accumulator_value": "initial_accumulator", "maximize": "maximize",
}  # fmt: skip
# Names of the argument with the labels, of models that compute their loss themselves.
LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Known:
    """What an attack is told, and what it is not.

    Args:
        knowledge: for the attack.
        notes: what is not known, or only presumed, a sentence each.
        inputs: place of the samples in a batch of the truth.
        labels: place of the labels in it; None if they are the loss's target, or there are none.
    """

    knowledge: Knowledge
    notes: tuple[str, ...]
    inputs: Place
    labels: Place | None = None


@dataclass(frozen=True)
class Schedule:
    """The factor on the learning rate in each step, as it was seen.

    Args:
        rates: the learning rate of each step; after the last one it stays.
    """

    rates: tuple[float, ...]

    def __call__(self, step: int) -> float:
        """The factor in a step, from 0."""
        return self.rates[min(step, len(self.rates) - 1)] / self.rates[0]


@dataclass(frozen=True)
class RecordedLoss:
    """The loss of a batch ``(inputs, labels)`` as the client was seen to compute it.

    Args:
        facts: what is differentiated.
        inputs: the place of the samples among the model's arguments.
        labels: the place of the labels among them; None if they are the loss's target.
        function: the loss of outputs and labels, in place of the one that was seen.
        scale: factor of the loss.
    """

    facts: LossFacts
    inputs: Place = (0,)
    labels: Place | None = None
    function: Callable[[Any, Any], Tensor] | None = None
    scale: float = 1.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss, a scalar tensor.

        Args:
            model: the model.
            batch: samples and labels, each with a batch dimension.
        """
        samples, labels = batch[0], batch[1]
        if self.facts.kind == "training_step" and self.function is None:
            return self._training_step(model, samples, labels)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for place, value in ((self.inputs, samples), (self.labels, labels)):
            if place is None:
                continue
            if isinstance(place[0], int):
                args.insert(place[0], value)
            else:
                kwargs[place[0]] = value
        output = model(*args, **kwargs)
        if self.function is not None:
            return self.scale * self.function(output, labels)
        found: Tensor = _at(output, self.facts.output)
        if self.facts.kind == "output":
            return self.scale * found
        for change in self.facts.changes:
            found = changed_again(found, change)
        if self.facts.target_input is not None:
            labels = samples.reshape(found.shape)
        arguments = {n: _argument(v, found) for n, v in self.facts.arguments.items()}
        loss: Tensor = getattr(F, self.facts.function)(found, labels, **arguments)
        if self.facts.reduction is not None:
            loss = getattr(loss, self.facts.reduction)()
        return self.scale * loss

    def _training_step(self, model: nn.Module, samples: Any, labels: Any) -> Tensor:
        if not self.inputs:
            batch: Any = samples
        elif isinstance(self.inputs[0], str):
            batch = {self.inputs[0]: samples}
            if self.labels is not None:
                batch[self.labels[0]] = labels
        else:
            batch = (samples, labels)
        result = model.training_step(batch, 0)  # type: ignore[operator]
        loss: Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss


def find_model(
    app: FlowerApp,
    facts: TrainingFacts | None,
    update: InterceptedUpdate,
    seen: Sequence[nn.Module] = (),
) -> nn.Module:
    """The model whose weights are sent, as the server has it.

    Args:
        app: the app, whose settings may say what makes the model.
        facts: what was seen of a client's training; None if nothing was.
        update: an update, for the names and shapes of what is sent.
        seen: the modules whose weights the ServerApp was seen to take.

    Returns:
        A copy of the module.

    Raises:
        BadInput: if the settings name something else, or no module is found.
    """
    sent = [(name, tuple(value.shape)) for name, value in update.sent.items()]
    told = app.settings.model
    if told is not None:
        what = f"`model` of {SECTION}"
        maker = app.load(told, what)
        made = maker if isinstance(maker, nn.Module) else _made(maker, told)
        require(
            isinstance(made, nn.Module),
            f"Expected `{told}`, {what}, to make a torch module, got {type(made).__name__}.",
        )
        require(
            fit(made, sent) > 0,
            f"Expected `{told}`, {what}, to make the model whose weights are sent, got "
            f"{type(made).__name__} with other names or shapes than {_listed(sent)}.",
        )
        return copy.deepcopy(made)
    path = facts.model.path if facts is not None and facts.model is not None else None
    fitting = [module for module in seen if fit(module, sent) > 0]
    for module in fitting:
        if path in (None, f"{type(module).__module__}:{type(module).__qualname__}"):
            return copy.deepcopy(module)
    if path is not None and "<locals>" not in path:
        try:
            made = app.load(path, "the class that the clients train")()
        except Exception:  # it needs arguments, or its module is none that can be imported
            made = None
        if isinstance(made, nn.Module) and fit(made, sent) > 0:
            return made
    if fitting:
        return copy.deepcopy(fitting[0])
    raise BadInput(
        f"Expected to find the model whose weights are sent ({_listed(sent)}), but the ServerApp "
        f"was not seen to make it{'' if path is None else f', and `{path}` cannot be made alone'}: "
        f'name what makes it by `model = "module:attribute"` in {SECTION}.'
    )


def knowledge_of(
    app: FlowerApp, facts: TrainingFacts, model: nn.Module, update: InterceptedUpdate
) -> Known:
    """What an attacker knows of an update who knows the app's code, but no sample and no label.

    Args:
        app: the app, for its settings.
        facts: what was seen of this client's training.
        model: the model; see :func:`find_model`.
        update: the update.

    Raises:
        BadInput: if the samples, or the loss, are not known; the sentence says what to name.
    """
    settings, notes = app.settings, [*facts.notes]
    require(
        bool(facts.inputs),
        "Expected to see what the model is called with, but "
        f"{'; '.join(facts.notes) or 'no call was seen'}.",
    )
    model = copy.deepcopy(model)
    training = _set_modes(model, facts, notes)
    samples, labels, inputs = _places(facts, notes, told=settings.loss is not None)
    loss = _loss(app, facts, samples.path, None if labels is None else labels.path)
    local, number = _local_training(facts, update.num_examples, notes)
    if facts.sends == "other":
        notes.append(
            "what the client returns is not its model's weights as they were when the training "
            "ended: it is changed afterwards, as by noise, clipping or compression"
        )
    own_labels = facts.loss is not None and facts.loss.target_input is not None
    if facts.faults:
        notes.append(f"the recorder met errors: {'; '.join(facts.faults)}")
    knowledge = Knowledge(
        model=model,
        input_shape=samples.shape[1:],
        num_classes=settings.num_classes,
        mean=settings.mean,
        std=settings.std,
        num_samples=number,
        # Where the target is the input itself, the loss has no labels.
        labels=torch.zeros(max(1, number), dtype=torch.long) if own_labels else None,
        protocol=update.protocol,
        local_training=local,
        training=training,
        loss=loss,
        value_range=settings.value_range,
        label_example=None if own_labels else _label_example(facts, labels),
    )
    return Known(knowledge, tuple(notes), inputs, None if labels is None else labels.path)


def _set_modes(model: nn.Module, facts: TrainingFacts, notes: list[str]) -> bool | None:
    """Set modes and frozen parameters as they were seen; returns the mode if all share one."""
    if facts.model is None:
        notes.append("whether the client's model was in train mode is not known")
        return None
    for name, value in model.named_parameters():
        value.requires_grad_(name not in facts.model.frozen)
    if facts.model.training is None:
        off = set(facts.model.in_eval_mode)
        for name, part in model.named_modules():
            part.training = name not in off
    return facts.model.training


def _places(
    facts: TrainingFacts, notes: list[str], *, told: bool
) -> tuple[TensorFacts, TensorFacts | None, Place]:
    """The samples and the labels among the tensors that the model is called with."""
    kind = facts.loss.kind if facts.loss is not None else "unknown"
    labelled = {"training_step", "output"}
    named = [item for item in facts.inputs if item.path and item.path[-1] in LABELS]
    labels = named[0] if named and kind in labelled else None
    rest = [item for item in facts.inputs if item is not labels]
    samples = rest[0] if rest else facts.inputs[0]
    others = [item for item in rest if item is not samples]
    if labels is None and kind == "training_step" and others:
        labels, others = others[0], others[1:]
    nested = [item for item in (samples, labels) if item is not None and len(item.path) > 1]
    require(
        not nested,
        f"Expected the model's samples and labels as arguments of their own, got "
        f"{[item.path for item in nested]}: such a call cannot be made again.",
    )
    if others:
        names = ", ".join(str(item.path[-1]) for item in others)
        keywords = all(item.path and isinstance(item.path[0], str) for item in others)
        require(
            keywords and kind != "training_step",
            f"Expected a model of one tensor of samples, but it is called with {names} besides, "
            "which the server does not know.",
        )
        notes.append(f"the model is called without {names}, which the server does not know")
    if kind == "output" and labels is None and not told:
        notes.append("the model computes its loss without labels")
    return samples, labels, samples.path


def _loss(
    app: FlowerApp, facts: TrainingFacts, inputs: Place, labels: Place | None
) -> Callable[[nn.Module, Any], Tensor]:
    told = app.settings.loss
    seen = facts.loss or LossFacts("unknown", reason="no backward pass was seen")
    if told is not None:
        function = app.load(told, f"`loss` of {SECTION}")
        require(
            callable(function),
            f"Expected `{told}`, `loss` of {SECTION}, to be a function of outputs and targets, "
            f"got {type(function).__name__}.",
        )
        return RecordedLoss(seen, inputs, None, function)
    reason = seen.reason
    called = facts.model.called if facts.model is not None else "never"
    if seen.kind in ("function", "output") and called not in ("itself", "wrapped"):
        reason = "the client calls parts of the model, not the model whose weights it sends"
    require(
        not reason,
        f"Expected to see the loss that the client differentiates, but {reason}: name a function "
        f'of outputs and targets by `loss = "module:function"` in {SECTION}.',
    )
    return RecordedLoss(seen, inputs, labels, scale=_scale(facts, seen))


def _scale(facts: TrainingFacts, loss: LossFacts) -> float:
    """The factor of the loss of a whole step, of which each backward pass has a part."""
    passes = facts.backward_passes / max(1, facts.steps)
    mean = loss.kind == "output" or "mean" in (loss.reduction, loss.arguments.get("reduction"))
    return loss.scale * (passes if mean and passes > 1 else 1.0)


def _local_training(
    facts: TrainingFacts, examples: int, notes: list[str]
) -> tuple[LocalTraining, int]:
    """The local training, and the number of samples."""
    told: dict[str, Any] = {}
    if facts.optimizer is not None:
        told = _optimizer(facts.optimizer, notes)
    else:
        told = {"optimizer": "unknown"}
    if facts.gradients_changed:
        notes.append(
            "gradients are changed between backward pass and step, as by clipping or noise, which "
            "is not accounted for"
        )
    if facts.weights_changed:
        notes.append(
            "weights are changed outside the optimiser's steps, as by an average, a correction or "
            "noise, which is not accounted for"
        )
    sizes, steps = facts.batch_sizes, facts.steps
    if not steps:
        return LocalTraining(**told), examples
    if facts.backward_passes != steps:
        notes.append(
            f"{facts.backward_passes} backward passes for {steps} steps: the gradients of a step "
            "are taken to be those of one batch"
        )
    total, size = sum(sizes), max(sizes)
    number, epochs = _epochs(sizes, examples)
    if epochs is None:
        notes.append(
            f"the {steps} steps on {total} samples are no whole passes over the {examples} "
            "examples that the client reports"
        )
        number = examples or total
    elif not examples:
        notes.append(f"the client reports no number of examples, taken to be {number} in one pass")
    elif number != examples:
        notes.append(f"a pass takes {number} of the {examples} examples that the client reports")
    return LocalTraining(steps=steps, batch_size=min(size, number), **told), number


def _epochs(sizes: Sequence[int], examples: int) -> tuple[int, int | None]:
    """Samples of one pass, and the number of passes, if the steps are whole passes."""
    size, total = max(sizes), sum(sizes)
    # A number of samples that is not reported, or of which an incomplete last batch is left out.
    for number in dict.fromkeys((examples or total, examples // size * size)):
        if number < 1 or total % number:
            continue
        rest = number % size
        once = [size] * (number // size) + ([rest] if rest else [])
        if list(sizes) == once * (total // number):
            return number, total // number
    return examples, None


def _optimizer(facts: OptimizerFacts, notes: list[str]) -> dict[str, Any]:
    """Arguments of LocalTraining."""
    name = OPTIMIZERS.get(facts.path, "unknown")
    first, *others = facts.groups
    if name == "adam" and first.get("decoupled_weight_decay"):
        name = "adamw"
    if name == "unknown":
        notes.append(f"the optimiser {facts.path} is none that an attack can follow")
    told: dict[str, Any] = {"optimizer": name} | _settings(first, name)
    if not told.get("learning_rate"):
        told["learning_rate"] = None
        notes.append("the learning rate of the first step is 0 or not known")
    elif len(facts.rates) > 1:
        told["schedule"] = Schedule(facts.rates)
    per_parameter: dict[str, dict[str, Any]] = {}
    for group in others:
        own = {n: v for n, v in _settings(group, name).items() if told.get(n) != v}
        if own and group.get("names") is None:
            notes.append("settings of some parameters differ, and which these are is not known")
        for parameter in group.get("names") or ():
            if own:
                per_parameter[glob.escape(parameter)] = own
    told |= {"per_parameter": per_parameter} if per_parameter else {}
    if facts.carried_over:
        notes.append("the optimiser begins with state of an earlier training, taken to be none")
    if facts.others:
        notes.append(f"of several optimisers the first alone is followed: {facts.path}")
    return told


def _settings(group: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    """Settings of a group in LocalTraining's names."""
    if optimizer == "unknown":
        return {"learning_rate": group["lr"]} if "lr" in group else {}
    found = {SETTINGS[name]: value for name, value in group.items() if name in SETTINGS}
    if "betas" in found:
        found["betas"] = tuple(found["betas"])
    return {name: value for name, value in found.items() if value is not None}


def _label_example(facts: TrainingFacts, labels: TensorFacts | None) -> Tensor | None:
    """Labels of the type and shape that the loss takes, zeros of one sample."""
    kind, shape = (labels.dtype, labels.shape[1:]) if labels is not None else ("", ())
    if facts.loss is not None and facts.loss.target is not None:
        kind, shape = facts.loss.target
    return torch.zeros(1, *shape, dtype=getattr(torch, kind)) if kind else None


def _made(maker: Any, told: str) -> Any:
    require(
        callable(maker),
        f"Expected `{told}`, `model` of {SECTION}, to make the model, got {type(maker).__name__}.",
    )
    try:
        return maker()
    except Exception as error:
        raise BadInput(
            f"Expected `{told}`, `model` of {SECTION}, to make the model when it is called without "
            f"arguments, got {type(error).__name__}: {first_line(error)}"
        ) from error


def _listed(sent: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The first arrays that are sent, for a message."""
    entries = [f"{name} {shape}" for name, shape in sent]
    return ", ".join(entries[:2]) + (f" and {len(entries) - 2} more" if len(entries) > 2 else "")


def _at(output: Any, place: Place) -> Any:
    """The tensor at a place of a model's output."""
    for key in place:
        indexed = isinstance(key, int) or isinstance(output, Mapping)
        output = output[key] if indexed else getattr(output, str(key))
    return output


def changed_again(value: Tensor, change: Mapping[str, Any]) -> Tensor:
    """A model's output after one change of shape or type.

    Args:
        value: the output.
        change: see :class:`fedleak.audit.facts.LossFacts`.
    """
    if "reshape" in change:
        return value.reshape(change["reshape"])
    if "permute" in change:
        return value.permute(change["permute"])
    if "dtype" in change:
        return value.to(getattr(torch, change["dtype"]))
    name, dim = change["apply"], change["dim"]
    function: Callable[..., Tensor] = getattr(torch, name)
    return function(value) if dim is None else function(value, dim=dim)


def _argument(value: Any, like: Tensor) -> Any:
    if isinstance(value, Mapping):
        kind = getattr(torch, value["dtype"])
        return torch.tensor(value["tensor"], dtype=kind, device=like.device)
    return value
