"""A server that makes one sample of a class the only one behind the encoder's gradient."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.errors import BadInput, require
from fedleak.servers.base import Change, Crafted, MaliciousServer, Reading, not_one_step
from fedleak.servers.bin_weights import REFUSED
from fedleak.servers.conv_network import (
    ConvNetwork,
    LayerCall,
    encoder_features,
    layer_calls,
    with_weights,
)
from fedleak.servers.features_to_images import Likely, fitted_inputs, linear_inputs
from fedleak.servers.first_layer import dependent_module
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

PROBES = 4
"""Number of samples on which a model is called to find its layers."""
SURE = 1e-3
"""By how much the number of samples behind a certified reading may differ from 1."""
ALONE = 0.3
"""By how much it may differ at the most where a sample is read."""
LOUDEST = 10.0
"""Largest logit of the class, before its bias, on public samples."""


@dataclass(frozen=True)
class Layers:
    """The layers of a model that matter here.

    Args:
        last: name of the last layer, which is linear and gives the logits.
        gate: name of the linear layer before it, with ReLU between. If None, there is none.
        first: name of the first linear layer.
        before: names of the layers with parameters before that one.
    """

    last: str
    gate: str | None
    first: str
    before: tuple[str, ...]


@dataclass(kw_only=True, eq=False, repr=False)
class Fishing(MaliciousServer):
    """Lets one sample of a class have the encoder's gradient for itself, and reads it there.

    The last layer gives all classes but one the logit 0, and that class a bias by which it is found
    impossible: a sample of another class then sends nothing back to the layers before, and one of
    the class its whole signal (Wen et al. 2022, section 4, class fishing). Where several samples of
    the class are expected, one of them is let through by a projection of its features: if a linear
    layer with ReLU comes before the last one, a unit of it fires above a threshold that one of them
    exceeds on average (feature fishing; the paper sets the threshold in the last layer, which needs
    a batch of one class). Its other units are off.

    The gradient of that unit's bias is the number of samples that were let through, so that it is
    known whether it is one. Then all layers before have the gradient of a single sample, whose
    input of the first linear layer is the quotient of a row's gradient and its bias's. Without
    layers before that one, it is the sample itself; otherwise an input is fitted to it. The whole
    gradient of the sample, for any other attack, is :meth:`single_gradient`.

    Args:
        target_class: the class.
        class_share: expected share of that class among the samples. If None, that of equal classes.
        steps: number of steps in which an input is fitted to the features. If 0, it is a linear
            function of them.
        likeliness: weight in this fit of the deviation from the public samples' mean, in units of
            their covariance, beside the mean squared error of the features.
        smoothness: weight of the total variation.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "fishing"
    paper: ClassVar[str] = "Wen et al., ICML 2022, https://arxiv.org/abs/2202.00580"
    threat_model: ClassVar[str] = "malicious server that chooses parameters"
    changes: ClassVar[frozenset[Change]] = frozenset({"parameters"})
    needs: ClassVar[str] = (
        "a linear last layer with bias, cross entropy, the update of one step; public samples for "
        "a gate among several samples of the class"
    )

    target_class: int = 0
    class_share: float | None = None
    steps: int = 200
    likeliness: float = 0.1
    smoothness: float = 0.2

    def __post_init__(self) -> None:
        share = self.class_share
        for name, fits, span in (
            ("target_class", self.target_class >= 0, "at least 0"),
            ("class_share", share is None or 0 < share <= 1, "above 0, to 1"),
            ("steps", self.steps >= 0, "at least 0"),
            ("likeliness", self.likeliness >= 0, "at least 0"),
            ("smoothness", self.smoothness >= 0, "at least 0"),
        ):
            value = getattr(self, name)
            require(fits, f"Expected `{name}` of {self.name} {span}, got {value!r:.60}.")

    def refuses_model(self, model: nn.Module) -> str | None:
        """See :meth:`MaliciousServer.refuses_model`."""
        if (reason := dependent_module(model)) is not None:
            return reason
        if not any(type(module) is nn.Linear for module in model.modules()):
            return f"{type(model).__name__} has no linear layer"
        return None

    def refuses_training(self, knowledge: Knowledge) -> str | None:
        """See :meth:`MaliciousServer.refuses_training`."""
        return not_one_step(knowledge)

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
        layers = find_layers(knowledge.model, knowledge.input_shape)
        weights = {
            name: value.detach().cpu().clone()
            for name, value in knowledge.model.state_dict().items()
        }
        last, bias = weights[f"{layers.last}.weight"], weights[f"{layers.last}.bias"]
        classes = len(bias)
        require(
            self.target_class < classes,
            f"Expected `target_class` of {self.name} from 0 to {classes - 1}, got "
            f"{self.target_class}.",
        )
        row = last[self.target_class].clone()
        last.zero_()
        bias.zero_()
        bias[self.target_class] = REFUSED
        if layers.gate is None:
            last[self.target_class] = self._row(knowledge, layers, row, public)
        else:
            self._set_gate(knowledge, layers, weights, public, generator)
            last[self.target_class, 0] = 1.0
        return Crafted(weights)

    def read(
        self,
        knowledge: Knowledge,
        rounds: tuple[tuple[Crafted, InterceptedUpdate], ...],
        *,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> Reading:
        """See :meth:`MaliciousServer.read`."""
        require(bool(rounds), "Expected a round to read, got none.")
        crafted, update = rounds[-1]
        self.check_training(knowledge)
        model = with_weights(knowledge.model, dict(crafted.weights)).cpu()
        layers = find_layers(model, knowledge.input_shape)
        gradient = self._gradient(knowledge, crafted, update)
        count = self._count(gradient, crafted.weights, layers)
        width = crafted.weights[f"{layers.first}.weight"].shape[1]
        if not abs(count - 1) < ALONE:
            told = f"about {count:.2g} samples" if count >= ALONE else "no sample"
            return Reading(
                torch.zeros(0, *knowledge.input_shape), torch.zeros(0, dtype=torch.long),
                torch.zeros(0, dtype=torch.bool), torch.zeros(0, width),
                (f"{told} of class {self.target_class} came through, so that none is read",),
            )  # fmt: skip
        rows, signals = gradient[f"{layers.first}.weight"], gradient[f"{layers.first}.bias"]
        best = int(signals.abs().argmax())
        features = (rows[best] / signals[best])[None]
        sure = abs(count - 1) < SURE
        return Reading(
            inputs=self._inputs(knowledge, model, layers, features, public),
            labels=torch.tensor([self.target_class]),
            certified=torch.tensor([sure]),
            features=features.float(),
            findings=(
                f"{count:.4g} samples of class {self.target_class} came through, of which "
                f"{'it is certain' if sure else 'it is not certain'} that it is one",
            ),
        )

    def single_gradient(
        self, knowledge: Knowledge, crafted: Crafted, update: InterceptedUpdate
    ) -> Tensors:
        """The gradient of the one sample that came through, of all parameters.

        Of the last layer it is known too: the row of the class has nothing of other samples, and
        those of the other classes follow from it, as their logits are equal.

        Args:
            knowledge: what is known of the update.
            crafted: what was sent.
            update: what came back.

        Returns:
            Gradient by parameter name, float64, of a loss of this sample with the label
            ``target_class``.

        Raises:
            BadInput: if not exactly one sample came through.
        """
        layers = find_layers(knowledge.model, knowledge.input_shape)
        gradient = self._gradient(knowledge, crafted, update)
        count = self._count(gradient, crafted.weights, layers)
        require(
            abs(count - 1) < SURE,
            f"Expected one sample of class {self.target_class} behind the gradient, got "
            f"{count:.3g}.",
        )
        weight = f"{layers.last}.weight"
        row = gradient[weight][self.target_class].clone()
        others = 1.0 / (len(gradient[weight]) - 1)
        gradient[weight] = -others * row.expand_as(gradient[weight]).clone()
        gradient[weight][self.target_class] = row
        bias = torch.full_like(gradient[f"{layers.last}.bias"], others)
        bias[self.target_class] = -1.0
        gradient[f"{layers.last}.bias"] = bias
        return gradient

    def features_of(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`MaliciousServer.features_of`: what enters the first linear layer."""
        layers = find_layers(model, tuple(inputs.shape[1:]))
        own = with_weights(model, model.state_dict())
        return encoder_features(own, _network(own, layers), inputs).flatten(1)

    def _expected(self, knowledge: Knowledge, classes: int) -> float:
        """Number of samples of the class that are expected behind the update."""
        return knowledge.num_samples * (self.class_share or 1 / classes)

    def _row(
        self, knowledge: Knowledge, layers: Layers, row: Tensor, public: Tensor | None
    ) -> Tensor:
        """The row of the class: the global model's, of a size that leaves the class impossible."""
        require(bool(row.any()), f"Expected weights of class {self.target_class}, got only zeros.")
        if public is None:
            return row
        found = encoder_features(
            with_weights(knowledge.model, knowledge.model.state_dict()),
            _network(knowledge.model, replace(layers, first=layers.last)), public,
        )  # fmt: skip
        return row * min(1.0, LOUDEST / float((found @ row).abs().max().clamp(min=1e-30)))

    def _set_gate(
        self,
        knowledge: Knowledge,
        layers: Layers,
        weights: Tensors,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        """One unit that fires for one of the expected samples of the class; the others are off."""
        assert layers.gate is not None
        matrix, bias = weights[f"{layers.gate}.weight"], weights[f"{layers.gate}.bias"]
        expected = self._expected(knowledge, len(weights[f"{layers.last}.bias"]))
        if public is None:
            raise BadInput(f"Expected public samples for the threshold of {self.name}, got none.")
        model = with_weights(knowledge.model, knowledge.model.state_dict())
        inputs = encoder_features(
            model, _network(model, replace(layers, first=layers.gate)), public
        )
        direction = torch.randn(matrix.shape[1], generator=generator).to(matrix)
        values = (inputs.to(matrix) @ direction).double()
        direction = direction / values.std().clamp(min=1e-30)
        values = values / values.std().clamp(min=1e-30)
        matrix.zero_()
        bias.fill_(-1.0)
        matrix[0] = direction
        # A class of which one sample or less is expected passes as a whole.
        share = min(1.0, 1 / expected)
        low = values.min() - values.std()
        bias[0] = -float(low if share == 1 else torch.quantile(values, 1 - share))

    def _gradient(
        self, knowledge: Knowledge, crafted: Crafted, update: InterceptedUpdate
    ) -> Tensors:
        """The sum of the samples' gradients, float64."""
        model = with_weights(knowledge.model, dict(crafted.weights)).requires_grad_(True)
        came = replace(update.for_model(model), sent=crafted.weights)
        came.check(model)
        samples = knowledge.num_samples or update.num_examples
        found = came.gradient(model, knowledge)
        missing = [name for name, _ in model.named_parameters() if name not in found]
        require(not missing, f"Expected the gradient of all layers, got none of {missing[:3]}.")
        return {name: value.detach().cpu().double() * samples for name, value in found.items()}

    def _count(self, gradient: Tensors, sent: Tensors, layers: Layers) -> float:
        """Number of samples of the class that came through."""
        if layers.gate is None:
            return -float(gradient[f"{layers.last}.bias"][self.target_class])
        weight = float(sent[f"{layers.last}.weight"][self.target_class, 0])
        return -float(gradient[f"{layers.gate}.bias"][0]) / weight

    def _inputs(
        self,
        knowledge: Knowledge,
        model: nn.Module,
        layers: Layers,
        features: Tensor,
        public: Tensor | None,
    ) -> Tensor:
        """The input with these features."""
        if not layers.before:
            return features.float().reshape(-1, *knowledge.input_shape)
        if public is None:
            raise BadInput(
                f"Expected public samples for {self.name}, to which an input of the features is "
                "fitted, got none."
            )
        network = _network(model, layers)
        known = encoder_features(model, network, public)
        return fitted_inputs(
            model, network, features, linear_inputs(features, known, public),
            bounds=knowledge.bounds, spread=known.std(dim=0), likely=Likely.of(public),
            likeliness=self.likeliness, smoothness=self.smoothness, steps=self.steps,
        )  # fmt: skip


def find_layers(model: nn.Module, input_shape: tuple[int, ...]) -> Layers:
    """The layers of a model that ends with a linear one, maybe after another with ReLU between.

    Args:
        model: the model, left as it is.
        input_shape: shape of one sample.

    Raises:
        BadInput: if it does not end with a linear layer with bias, or the first linear layer has
            none or takes no vectors.
    """
    twin = with_weights(model, model.state_dict())
    probes = torch.rand(PROBES, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        calls, output = layer_calls(twin, probes.to(next(twin.parameters())))
    names = [call.name for call in calls]
    linear = [call for call in calls if type(call.module) is nn.Linear]
    fits = (
        bool(linear)
        and linear[-1] is calls[-1]
        and all(_is_plain(call) for call in (linear[0], linear[-1]))
        and len(set(names)) == len(names)
        and torch.equal(output, calls[-1].output)
    )
    require(
        fits,
        f"Expected {type(model).__name__} to call every layer once and to end with a linear layer, "
        "the first and the last linear layer with bias and of vectors, got calls of "
        f"{', '.join(names)[:200]}.",
    )
    last, first = linear[-1].name, linear[0].name
    gate = None
    if len(calls) > 1 and _is_plain(calls[-2]):
        fires = calls[-2].output.relu()
        gate = calls[-2].name if torch.equal(calls[-1].input, fires) else None
    return Layers(last, gate, first, tuple(names[: names.index(first)]))


def _is_plain(call: LayerCall) -> bool:
    kind = type(call.module) is nn.Linear and call.module.bias is not None
    return kind and call.input.dim() == 2


def _network(model: nn.Module, layers: Layers) -> ConvNetwork:
    """The model as an encoder before its first linear layer."""
    first: nn.Linear = model.get_submodule(layers.first)  # type: ignore[assignment]
    return ConvNetwork(
        encoder=layers.before, linear=(layers.first, layers.gate or layers.last, layers.last),
        features=first.in_features, units=first.out_features, hidden=0, classes=0,
    )  # fmt: skip
