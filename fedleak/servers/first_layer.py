"""Malicious servers that choose the first layer of a perceptron and read inputs from its rows."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.models.module_inputs import module_input
from fedleak.models.noise import Noise
from fedleak.servers.base import Change, Crafted, MaliciousServer, Reading, not_one_step
from fedleak.servers.peeling import FINEST, Peeled, peel
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate

Combination = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FirstLayer:
    """The first layer of a perceptron.

    Args:
        name: its name in the model.
        module: the layer itself.
        following: name of the linear layer after it.
    """

    name: str
    module: nn.Linear
    following: str


def find_first_layer(model: nn.Module, input_shape: tuple[int, ...]) -> FirstLayer:
    """Find the linear layer that is given the inputs themselves.

    Args:
        model: the clients' model, left as it is.
        input_shape: shape of one sample.

    Raises:
        BadInput: if there is none, it has no bias, or no ReLU and linear layer follow it.
    """
    twin = private_copy(model).float().requires_grad_(True)
    calls: list[tuple[str, Tensor, Tensor]] = []

    def listen(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            calls.append((name, module_input(args, kwargs), output))

        return hook

    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(listen(name), with_kwargs=True)
    probe = torch.randn(16, *input_shape, generator=torch.Generator().manual_seed(0))
    outputs = twin(probe)
    found = calls[0] if calls else None
    if found is None or not torch.equal(found[1].reshape(len(probe), -1), probe.flatten(1)):
        raise BadInput(_expected(model, "no linear layer that is given the inputs themselves"))
    name, _, out = found
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    require(module.bias is not None, _expected(model, f"`{name}` without biases"))
    (through,) = torch.autograd.grad(outputs.sum(), out)
    fires = out > 0
    # Of weights that were made to measure, no unit may fire for the probe.
    relu = bool((through[out < 0] == 0).all())
    relu &= not bool(fires.any()) or bool((through[fires] != 0).any())
    require(
        relu and len(calls) > 1,
        _expected(model, f"`{name}` without a ReLU and a linear layer after it"),
    )
    return FirstLayer(name, module, calls[1][0])


def _expected(model: nn.Module, got: str) -> str:
    return (
        "Expected a model whose first layer is linear, with biases and a ReLU after it, got "
        f"{type(model).__name__} with {got}."
    )


class FirstLayerServer(MaliciousServer):
    """Chooses the weights of a perceptron's first layer, and reads the inputs from its gradient.

    A plugin writes :meth:`rows`, and :meth:`following` if it changes the next layer as well. The
    inputs are read by :func:`fedleak.servers.peeling.peel`.
    """

    threat_model: ClassVar[str] = "malicious server that chooses parameters"
    changes: ClassVar[frozenset[Change]] = frozenset({"parameters"})
    differences: ClassVar[bool] = False
    """Whether samples are looked for in the differences of neighbouring rows."""

    @abstractmethod
    def rows(
        self,
        layer: nn.Linear,
        knowledge: Knowledge,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The weights ``(units, features)`` and biases ``(units,)`` of the first layer.

        Args:
            layer: the first layer of the global model.
            knowledge: as for :meth:`craft`.
            public: public inputs, flattened, ``(samples, features)``. If None, there are none.
            generator: random generator of every draw.
        """

    def find_layer(self, model: nn.Module, input_shape: tuple[int, ...]) -> FirstLayer:
        """The layer from whose rows inputs are read.

        Args:
            model: the clients' model.
            input_shape: shape of one sample.

        Raises:
            BadInput: if the model has none.
        """
        return find_first_layer(model, input_shape)

    def following(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """The weights of the layer after the first one; those of the global model by default.

        Args:
            weight: its weights in the global model, ``(units, units of the first layer)``.
            generator: random generator of every draw.
        """
        return weight

    def craft(
        self,
        knowledge: Knowledge,
        *,
        public: Tensor | None,
        generator: torch.Generator,
        earlier: tuple[tuple[Crafted, InterceptedUpdate], ...] = (),
    ) -> Crafted:
        """See :meth:`MaliciousServer.craft`."""
        self.check_model(knowledge)
        first = self.find_layer(knowledge.model, knowledge.input_shape)
        flat = None if public is None else public.detach().float().cpu().flatten(1)
        weight, bias = self.rows(first.module, knowledge, flat, generator)
        state = {n: v.detach().clone() for n, v in knowledge.model.state_dict().items()}
        following = state[f"{first.following}.weight"]
        chosen = {
            f"{first.name}.weight": weight,
            f"{first.name}.bias": bias,
            f"{first.following}.weight": self.following(following.cpu(), generator),
        }
        state |= {name: value.to(state[name]) for name, value in chosen.items()}
        return Crafted(weights=state)

    def read(
        self,
        knowledge: Knowledge,
        rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
        *,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> Reading:
        """See :meth:`MaliciousServer.read`."""
        crafted, update = rounds[-1]
        self.check_training(knowledge)
        model = private_copy(knowledge.model).cpu()
        model.load_state_dict(crafted.weights)
        update.check(model)
        first = self.find_layer(model, knowledge.input_shape)
        gradient = update.gradient(model, knowledge)
        names = (f"{first.name}.weight", f"{first.name}.bias")
        missing = [name for name in names if name not in gradient]
        require(not missing, f"Expected the gradient of `{first.name}`, got none of {missing}.")
        weight, bias = (gradient[name].detach().cpu() for name in names)
        combine = _neighbours if self.differences else _rows
        samples = knowledge.num_samples or update.num_examples
        found = peel(
            combine(weight.double()),
            combine(bias.double()),
            _Signals(model.double(), first.name, knowledge, samples, combine),
            samples=samples,
            limits=_limits(knowledge),
            error=_error(bias, crafted.weights[names[1]], knowledge, update),
        )
        return _reading(found, knowledge, self.differences)

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`MaliciousServer.refuses_model`."""
        if (reason := dependent_module(model)) is not None:
            return reason
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                if not isinstance(module, nn.Linear):
                    return f"the first layer `{name}` of {type(model).__name__} is not linear"
                return None
        return f"{type(model).__name__} has no parameters"

    def refuses_training(self, knowledge: Knowledge) -> str | None:
        """See :meth:`MaliciousServer.refuses_training`."""
        return not_one_step(knowledge)


def dependent_module(model: nn.Module) -> str | None:
    """Why a model's output for a sample depends on chance or on other samples. If None, it doesn't.

    Args:
        model: the clients' model.
    """
    kinds = (Noise, nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            return f"`{name}` of {type(model).__name__} makes samples depend on chance or others"
    return None


def deviation_of(projections: Tensor | None, told: float | None, name: str) -> float:
    """The standard deviation of projections of the clients' inputs.

    Args:
        projections: those of public inputs. If None, there are none.
        told: the deviation if it is known. If None, it is that of the public inputs.
        name: the server's name, for the message.

    Raises:
        BadInput: if neither is given.
    """
    if told is not None:
        return told
    if projections is None:
        raise BadInput(f"Expected public inputs or `deviation` for {name}, got neither.")
    return float(projections.double().std())


def _rows(values: Tensor) -> Tensor:
    return values


def _neighbours(values: Tensor) -> Tensor:
    """Each row minus the next one, along the first dimension; the last one is itself."""
    return values - torch.cat([values[1:], torch.zeros_like(values[:1])])


class _Signals:
    """A sample's part of the bias gradient of the first layer's rows, of each label."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        knowledge: Knowledge,
        samples: int,
        combine: Combination,
    ) -> None:
        self._model, self._knowledge = model, knowledge
        self._samples, self._combine = samples, combine
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        self._weight, self._bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        # The first layer is computed once for all labels.
        self._output = torch.zeros(0)
        layer.forward = lambda _: self._output  # type: ignore[method-assign,assignment]

    def __call__(self, inputs: Tensor) -> Tensor:
        self._output = (inputs @ self._weight.T + self._bias).requires_grad_()
        shaped = inputs.reshape(len(inputs), *self._knowledge.input_shape)
        with torch.no_grad():
            classes = self._knowledge.num_classes or self._model(shaped).shape[1]
        parts = []
        for label in range(classes):
            labels = torch.full((len(inputs),), label)
            loss = self._knowledge.loss(self._model, (shaped, labels)) * len(inputs)
            (part,) = torch.autograd.grad(loss, self._output)
            parts.append(self._combine(part.T).T / self._samples)
        return torch.stack(parts, 1)


def _limits(knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    """The lowest and highest normalised value of each input, flattened."""
    shape = knowledge.input_shape
    images = len(shape) == 3
    low, high = knowledge.value_range or ((0.0, 1.0) if images else (-math.inf, math.inf))
    places = (-1,) + (1,) * (len(shape) - 1)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).reshape(places)
        for values in (knowledge.mean, knowledge.std)
    )
    bounds = [((torch.as_tensor(v).double() - mean) / std).expand(shape) for v in (low, high)]
    return bounds[0].flatten(), bounds[1].flatten()


def _error(bias: Tensor, sent: Tensor, knowledge: Knowledge, update: InterceptedUpdate) -> Tensor:
    """The rounding error of the bias gradient of each row."""
    rounding = torch.finfo(bias.dtype).eps
    error = rounding * bias.double().abs()
    if update.protocol != "fedsgd":
        rate = knowledge.local.learning_rate or 1.0
        error = error + rounding * sent.detach().cpu().double().abs() / rate
    # A difference of two rows has the errors of both.
    return error + torch.cat([error[1:], error[:1]])


def _reading(found: Peeled, knowledge: Knowledge, differences: bool) -> Reading:
    # Differences of neighbours share no sample, so that none is confirmed by another.
    certified = found.errors <= FINEST if differences else found.certified
    number = len(found.labels)
    return Reading(
        inputs=found.inputs.float().reshape(number, *knowledge.input_shape),
        labels=found.labels,
        certified=certified,
        features=torch.zeros(number, 0),
        findings=(
            f"{number} of {knowledge.num_samples} samples were read from rows of the gradient, "
            f"{int(certified.sum())} of them certified.",
        ),
    )
