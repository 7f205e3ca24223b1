"""From what was seen of a client's training to what an attack is told: :class:`Knowledge`."""

import copy
import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedleak.audit.app import FlowerApp
from fedleak.audit.facts import (
    LossFacts,
    OptimizerFacts,
    Place,
    Relation,
    TensorFacts,
    TrainingFacts,
)
from fedleak.audit.module_watch import fit
from fedleak.audit.other_inputs import (
    LABELS,
    OtherInput,
    arguments_of,
    assembled,
    common_relations,
)
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


@dataclass(frozen=True)
class Known:
    """What an attack is told, and what it is not.

    Args:
        knowledge: for the attack.
        notes: what is not known, or only presumed, a sentence each.
        inputs: place of the samples in a batch of the truth.
        labels: place of the labels in it; None if they are the loss's target, or there are none.
        others: the other inputs of the model.
    """

    knowledge: Knowledge
    notes: tuple[str, ...]
    inputs: Place
    labels: Place | None = None
    others: tuple[OtherInput, ...] = ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the model's other inputs of which nothing is known."""
        return tuple(item.name for item in self.others if item.relation is None)


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
        others: the other inputs, which are made for each batch.
        given: other inputs of one batch by place, in place of those that are made.
        flat: whether a sample is a single number, so that the model takes ``(N,)`` and not
            ``(N, 1)``.
    """

    facts: LossFacts
    inputs: Place = (0,)
    labels: Place | None = None
    function: Callable[[Any, Any], Tensor] | None = None
    scale: float = 1.0
    others: tuple[OtherInput, ...] = ()
    given: Mapping[Place, Tensor] | None = None
    flat: bool = False

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss, a scalar tensor.

        Args:
            model: the model.
            batch: samples and labels, each with a batch dimension.
        """
        samples, labels = batch[0].flatten() if self.flat else batch[0], batch[1]
        values = self._values(model, samples, labels)
        if self.facts.kind == "training_step" and self.function is None:
            return self._training_step(model, values)
        args, kwargs = arguments_of(values)
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

    def _values(self, model: nn.Module, samples: Any, labels: Any) -> dict[Place, Any]:
        """The tensors of the call by place."""
        values: dict[Place, Any] = {self.inputs: samples}
        real = next((v.dtype for v in model.parameters() if v.is_floating_point()), torch.float32)
        for item in self.others:
            own = None if self.given is None else self.given.get(item.place)
            values[item.place] = item.make(samples, real) if own is None else own
        if self.labels is not None:
            values[self.labels] = labels
        return values

    def _training_step(self, model: nn.Module, values: dict[Place, Any]) -> Tensor:
        result = model.training_step(assembled(values), 0)  # type: ignore[operator]
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
    app: FlowerApp,
    facts: TrainingFacts,
    model: nn.Module,
    update: InterceptedUpdate,
    *,
    relations: Mapping[Place, Relation] | None = None,
    models: dict[Any, nn.Module] | None = None,
) -> Known:
    """What an attacker knows of an update who knows the app's code, but no sample and no label.

    Args:
        app: the app, for its settings.
        facts: what was seen of this client's training.
        model: the model; see :func:`find_model`.
        update: the update.
        relations: what is known of the model's inputs; see
            :func:`fedleak.audit.other_inputs.common_relations`. If None, what this client tells.
        models: copies of the model that were made before, by their modes; a new one is added.

    Raises:
        BadInput: if the samples, or the loss, are not known; the sentence says what to name.
    """
    settings, notes = app.settings, [*facts.notes]
    require(
        bool(facts.inputs),
        "Expected to see what the model is called with, but "
        f"{'; '.join(facts.notes) or 'no call was seen'}.",
    )
    model = _in_modes(model, facts, notes, {} if models is None else models)
    relations = common_relations([facts]) if relations is None else relations
    samples, labels, others = _places(
        facts, model, relations, notes, told=settings.loss is not None
    )  # fmt: skip
    notes += [item.note for item in others]
    copies = any(
        item.relation is not None and item.relation.copy_of is not None and item.place[-1] in LABELS
        for item in others
    )
    loss = replace(
        _loss(app, facts, samples.path, None if labels is None else labels.path),
        others=others,
        flat=len(samples.shape) == 1,
    )
    local, number = _local_training(facts, update.num_examples, notes)
    if facts.shapes_differ:
        notes.append("the samples of some batches have another shape than those of others")
    if facts.sends == "other":
        notes.append(
            "what the client returns is not its model's weights as they were when the training "
            "ended: it is changed afterwards, as by noise, clipping or compression"
        )
    own_labels = copies or (facts.loss is not None and facts.loss.target_input is not None)
    if facts.faults:
        notes.append(f"the recorder met errors: {'; '.join(facts.faults)}")
    knowledge = Knowledge(
        model=model,
        input_shape=samples.shape[1:] or (1,),
        num_classes=settings.num_classes,
        mean=settings.mean,
        std=settings.std,
        num_samples=number,
        # Where the target is the input itself, the loss has no labels.
        labels=torch.zeros(max(1, number), dtype=torch.long) if own_labels else None,
        protocol=update.protocol,
        local_training=local,
        training=None if facts.model is None else facts.model.training,
        loss=loss,
        value_range=settings.value_range,
        label_example=None if own_labels else _label_example(facts, labels),
    )
    place = None if labels is None else labels.path
    return Known(knowledge, tuple(notes), samples.path, place, others)


def _in_modes(
    model: nn.Module, facts: TrainingFacts, notes: list[str], models: dict[Any, nn.Module]
) -> nn.Module:
    """A copy in the modes and with the frozen parameters that were seen, one for all clients."""
    own = facts.model
    modes = None if own is None else (own.training, own.in_eval_mode, own.frozen)
    if own is None:
        notes.append("whether the client's model was in train mode is not known")
    if modes in models:
        return models[modes]
    model = models[modes] = copy.deepcopy(model)
    if own is None:
        return model
    for name, value in model.named_parameters():
        value.requires_grad_(name not in own.frozen)
    if own.training is None:
        off = set(own.in_eval_mode)
        for name, part in model.named_modules():
            part.training = name not in off
    return model


def _places(
    facts: TrainingFacts,
    model: nn.Module,
    relations: Mapping[Place, Relation],
    notes: list[str],
    *,
    told: bool,
) -> tuple[TensorFacts, TensorFacts | None, tuple[OtherInput, ...]]:
    """Samples, labels and other inputs among the tensors that the model is called with."""
    kind = facts.loss.kind if facts.loss is not None else "unknown"
    named = [item for item in facts.inputs if item.path[-1:] in [(name,) for name in LABELS]]
    copied = {path for path, known in relations.items() if known.copy_of is not None}
    labels = next(
        (item for item in named if kind in ("training_step", "output") and item.path not in copied),
        None,
    )
    # A model that is told labels, and whose own loss is not used, is called without them.
    unused = named if kind not in ("training_step", "output") else []
    rest = [item for item in facts.inputs if item is not labels and item not in unused]
    rest = rest or list(facts.inputs)
    samples = _samples(rest, model, relations)
    others = [item for item in rest if item is not samples]
    if labels is None and not named and kind == "training_step" and others:
        labels = others.pop()  # the last one
    if kind == "output" and labels is None and not named and not told:
        notes.append("the model computes its loss without labels")
    made = [OtherInput.of(item, samples, relations.get(item.path)) for item in others]
    return samples, labels, tuple(made)


def _samples(
    inputs: Sequence[TensorFacts], model: nn.Module, relations: Mapping[Place, Relation]
) -> TensorFacts:
    """The input that an attack searches: the first that says something of its own.

    Of several ones it is the first of whole numbers where the model has an embedding.
    """
    own = [item for item in inputs if item.path not in relations] or list(inputs)
    own = [item for item in own if "mask" not in str(item.path[-1:])] or own
    if any(isinstance(part, nn.Embedding) for part in model.modules()):
        return next((item for item in own if item.dtype.startswith("int")), own[0])
    return own[0]


def _loss(
    app: FlowerApp, facts: TrainingFacts, inputs: Place, labels: Place | None
) -> RecordedLoss:
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
    require(
        min(sizes) > 0, "Expected samples in each step of the client, got a step on none of them."
    )
    total, size = sum(sizes), max(sizes)
    number, epochs = _epochs(sizes, examples)
    if epochs is None:
        notes.append(
            f"the {steps} steps on {total} samples are no whole passes over the {examples} "
            "examples that the client reports"
        )
        number = min(examples, total) or total
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
