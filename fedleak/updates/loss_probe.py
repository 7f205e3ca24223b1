"""How labels act on the gradient of a model's last linear layer, found by calling its loss.

The loss is called with dummy inputs, and the layer's output is replaced by chosen numbers. So its
gradient with respect to the output is known as a function of output and labels, whatever the model
and the loss compute behind the layer.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedleak.updates.knowledge import Knowledge

Loss = Callable[[nn.Module, Any], Tensor]
LabelKind = Literal["classes", "binary", "numbers", "none", "other"]

# Relative agreement of two gradients that should be equal.
AGREE = 1e-4
# Labels probed in one forward pass.
AT_ONCE = 64
# More classes are not probed one by one.
MOST_CLASSES = 4096
# Newton steps to the label of a gradient.
NEWTON_STEPS = 30
# Outputs that stand for infinity.
FAR = (10.0, 50.0)
# What torch says where a loss would broadcast its labels.
BROADCASTS = "target size"


@dataclass(frozen=True)
class CrossEntropyForm:
    """A loss whose gradient in the logits ``z`` of a sample of class k is that of a cross entropy.

    The gradient of sample i is ``(slope[y_i] softmax(z_i) - target[y_i]) / sum_j divisor[y_j]``.
    Of the mean cross entropy, slope and divisor are 1 and the targets one-hot.

    Args:
        slope: ``(K,)``.
        target: ``(K, K)``, a row for each class.
        divisor: ``(K,)``.
    """

    slope: Tensor
    target: Tensor
    divisor: Tensor

    @property
    def is_even(self) -> bool:
        """Whether all classes count alike, up to one factor and a label smoothing."""
        size = float(self.target.diagonal().abs().max())
        return (
            _alike(self.slope)
            and _alike(self.divisor)
            and _alike(self.target.diagonal())
            and _alike(self._other_targets, size)
        )

    @property
    def is_smoothed(self) -> bool:
        """Whether a sample has targets in classes other than its own."""
        if self._other_targets.numel() == 0:
            return False
        size = float(self.target.diagonal().abs().max())
        return bool((self._other_targets.abs() > AGREE * size).any())

    @property
    def _other_targets(self) -> Tensor:
        return self.target[~torch.eye(len(self.target), dtype=torch.bool)]

    @property
    def step(self) -> float:
        """How much the label of the only sample lowers its class's entry, with even classes."""
        other = float(self._other_targets.mean()) if len(self.target) > 1 else 0.0
        step = (float(self.target.diagonal().mean()) - other) / float(self.divisor.mean())
        return 1.0 if abs(step - 1) < AGREE else step

    @property
    def limit(self) -> float:
        """Highest possible sum of the positive entries of a batch's gradient.

        A sample's is at most its slope, and the batch's is a mean weighted by the divisors.
        """
        return float((self.slope.abs() / self.divisor.abs()).max())


class LossProbe:
    """The loss of a model as a function of its last linear layer's output and of the labels.

    Args:
        model: the model with the sent weights, in the client's modes; it is not changed.
        knowledge: gives the loss, the samples' number and shape, the labels as far as they are
            known, and the number of classes; if that is None, the last linear layer counts.

    Attributes:
        layer: path of the layer; None if there is no linear layer that is called once, with a
            vector for each sample.
        outputs: number of its outputs; 0 if there is none.
        kind: ``classes`` (whole numbers that select an output), ``binary`` (0 or 1, as in a binary
            cross entropy of logits), ``numbers`` (any other targets), ``none`` (the loss does not
            depend on labels), or ``other`` (it does not take labels of a shape that is tried).
        shape: shape of one sample's label.
        whole: whether the loss takes whole numbers.
        size: number of dummy samples.
        model: a copy of the model that is called, in float64 if it computes in that.
        in_float64: whether it does, with the loss.
    """

    layer: str | None = None
    outputs: int = 0
    kind: LabelKind = "other"
    shape: tuple[int, ...] = ()
    whole: bool = True

    def __init__(self, model: nn.Module, knowledge: Knowledge) -> None:
        self._facts = knowledge
        samples = max(1, *knowledge.client_samples)
        # The samples of one step of a client, which a mean is taken over.
        self._step = (
            min(samples, knowledge.batch_size or samples) if knowledge.steps > 1 else samples
        )
        self.size = max(2, self._step)
        # A forward pass in train mode updates statistics.
        self.model = copy.deepcopy(model).requires_grad_(False)
        sizes = dict.fromkeys((self.size, self._step))
        # Samples may be whole numbers, as for an embedding.
        for self._tokens, self.size in product((False, True), sizes):
            self._find()
            if self.kind != "other":
                break
        else:
            self._tokens = False
        own, found = self.model, (self.kind, self.shape, self.whole, self.layer)
        floats = [v for v in (*own.parameters(), *own.buffers()) if v.is_floating_point()]
        if self.kind != "other" and all(value.dtype == torch.float64 for value in floats):
            self.in_float64 = True  # what was found would be found again
            return
        self.model = copy.deepcopy(own).double()
        self._find()
        self.in_float64 = found == (self.kind, self.shape, self.whole, self.layer)
        if not self.in_float64:
            # A loss with weights of its own, or a model, may compute in its own type alone.
            self.model = own
            self._find()

    def labels(self, number: int) -> Tensor:
        """Dummy labels that the loss takes.

        Args:
            number: number of samples.
        """
        kind = torch.long if self.whole else self._dtype
        return torch.zeros(number, *self.shape, dtype=kind, device=self._device)

    def gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of the loss with respect to the layer's output.

        Args:
            outputs: the layer's output ``(batch, outputs)``.
            labels: the labels ``(batch, ...)``.

        Returns:
            ``(batch, outputs)``.
        """
        return self._gradient(outputs.to(self._like), labels)[1].detach()

    def solve(self, output: Tensor, gradient: Tensor) -> Tensor | None:
        """The label of one sample, given the layer's output and its gradient, by Newton's method.

        Args:
            output: ``(outputs,)``.
            gradient: ``(outputs,)``.

        Returns:
            The label ``(1, ...)``, one of many if the gradient is that of many; None if none has
            that gradient.
        """
        output, wanted = output.to(self._like)[None], gradient.to(self._like).flatten()
        starts = [0.5 if self.kind == "binary" else 0.0]
        if self.kind == "numbers":
            # Of an absolute error, the gradient tells on which side of the output a label is.
            far = FAR[0] * (1 + float(output.abs().max()))
            starts += [far, -far]
        found = (self._solved(output, wanted, start) for start in starts)
        return next((label for label in found if label is not None), None)

    def _solved(self, output: Tensor, wanted: Tensor, start: float) -> Tensor | None:
        label = torch.full((1, *self.shape), start).to(self._like)
        missed = torch.inf
        for _ in range(NEWTON_STEPS):
            label.requires_grad_()
            found = self._gradient(output, label, graph=True)[1].flatten()
            missed = float((found.detach() - wanted).norm() / wanted.norm().clamp_min(1e-300))
            if missed < AGREE**2 or not found.requires_grad:
                break
            rows = [
                torch.autograd.grad(entry, label, retain_graph=True)[0].flatten() for entry in found
            ]
            move = torch.linalg.lstsq(
                torch.stack(rows).cpu(), (wanted - found).detach().cpu()[:, None], driver="gelsd"
            ).solution
            if not bool(move.isfinite().all()):
                break
            label = label.detach() + move.reshape(label.shape).to(label)
        return label.detach() if missed < AGREE else None

    @cached_property
    def cross_entropy(self) -> CrossEntropyForm | None:
        """The loss's form where it is that of a cross entropy; None if it is not."""
        if self.kind != "classes" or not 2 <= self.outputs <= MOST_CLASSES:
            return None
        try:
            return self._fit_cross_entropy()
        except Exception:  # a loss of a user's own may raise anything on unusual labels
            return None

    @cached_property
    def binary_limit(self) -> float | None:
        """Largest possible entry of the gradient, of a binary cross entropy; else None.

        That of a sample is between those at the outputs minus and plus infinity. A sigmoid of its
        own in the model is rounded to 0 or 1 far out, where it has no gradient any more.
        """
        if self.kind != "binary":
            return None
        ends = []
        for far in FAR:
            outputs = torch.full((self.size, self.outputs), far).to(self._like)
            for sign, value in ((1, 0.0), (-1, 1.0)):
                labels = torch.full_like(self._numbers(0.0), value)
                ends.append(self.gradient(sign * outputs, labels).abs().sum(0).max())
        return float(max(ends)) / self.size * self.per_step

    @property
    def per_step(self) -> float:
        """What a step's gradient is times the mean over its samples of those of dummy samples."""
        return float(self._step if self.is_sum else self.size)

    @cached_property
    def is_sum(self) -> bool:
        """Whether a sample's gradient does not depend on the number of samples."""

        def of(size: int) -> Tensor:
            zeros = torch.zeros(size, self.outputs).to(self._like)
            return self.gradient(zeros, self.labels(size))[0]

        try:
            return bool(torch.allclose(of(self.size), of(2 * self.size), rtol=AGREE))
        except Exception:  # a model may take one size only
            return False

    @cached_property
    def other_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Other shapes of a sample's targets that the loss takes, if targets are numbers."""
        if self.kind != "numbers":
            return ()
        own, found = self.shape, []
        for shape in dict.fromkeys([(), (self.outputs,), (1,)]):
            self.shape = shape
            if shape != own and self._acts(shape) and self._acts_alone():
                found.append(shape)
        self.shape = own
        return tuple(found)

    @cached_property
    def bias_is_alone(self) -> bool:
        """Whether the bias's gradient is the sum of the output's, as without a penalty on it."""
        assert self.layer is not None
        bias = self.model.get_submodule(self.layer).bias
        if not isinstance(bias, Tensor):
            return False
        bias.requires_grad_()
        try:
            seen: list[Tensor] = []
            loss = self._loss(self.labels(self.size), watch=seen, graph=True)
            whole, output = torch.autograd.grad(loss, [bias, seen[0]])
            rows = output.reshape(-1, self.outputs).sum(0)
            return bool((whole - rows).norm() <= AGREE * (whole.norm() + rows.norm()))
        except RuntimeError:
            return False
        finally:
            bias.requires_grad_(False)

    def weight_gradient(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of the loss of some samples with respect to the layer's weight.

        Args:
            inputs: ``(batch, ...)``.
            labels: ``(batch, ...)``.

        Returns:
            ``(outputs, features)``.
        """
        assert self.layer is not None
        weight = self.model.get_submodule(self.layer).weight
        assert isinstance(weight, Tensor)
        inputs = inputs.to(self._like if inputs.is_floating_point() else self._device)
        labels = labels.to(self._like if labels.is_floating_point() else self._device)
        weight.requires_grad_()
        try:
            loss = self._loss(labels, inputs=inputs, graph=True)
            return torch.autograd.grad(loss, weight)[0]
        finally:
            weight.requires_grad_(False)

    def dummies(self, least: int) -> Tensor:
        """Dummy samples: normal random numbers, or random whole numbers for an embedding.

        Args:
            least: their least number; there are at least as many as a step has.
        """
        shape = (max(least, self.size), *self._facts.input_shape)
        generator = torch.Generator().manual_seed(0)
        if not self._tokens:
            return torch.randn(shape, generator=generator)
        embeddings = (nn.Embedding, nn.EmbeddingBag)
        sizes = [m.num_embeddings for m in self.model.modules() if isinstance(m, embeddings)]
        return torch.randint(min(sizes, default=1), shape, generator=generator)

    def output_of(self, inputs: Tensor) -> Tensor:
        """The layer's outputs for some inputs.

        Args:
            inputs: ``(batch, ...)``.

        Returns:
            ``(batch, outputs)``.
        """
        seen: list[Tensor] = []
        inputs = inputs.to(self._like if inputs.is_floating_point() else self._device)
        self._loss(self.labels(len(inputs)), inputs=inputs, watch=seen)
        return seen[0].reshape(-1, self.outputs)

    # ------------------------------------------------------------------------------ finding out

    @property
    def _like(self) -> Tensor:
        return next(self.model.parameters())

    @property
    def _dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def _device(self) -> torch.device:
        return self._like.device

    def _find(self) -> None:
        self.kind, self.shape, self.whole, self.layer, self.outputs = "other", (), True, None, 0
        told = self._facts.labels
        told = self._facts.label_example if told is None else told
        integral = told is not None and not told.is_floating_point()
        n = self.size
        if told is not None and (integral and told.dim() != 1):
            self.shape, self.whole = tuple(told.shape[1:]), True
            return
        whole = torch.zeros(n, dtype=torch.long, device=self._device)
        takes_whole = (told is None or integral) and self._takes(whole)
        shapes: list[tuple[int, ...]] = [()]
        if told is not None:
            shapes = [tuple(told.shape[1:])] if not integral else [()]
        wide = [*((k,) for k in self._widths()), (1,)] if told is None else []
        shapes += wide if not takes_whole else []
        free: tuple[int, ...] | None = None
        for shape in shapes:
            self.shape = shape
            acts = self._acts(shape)
            if acts:
                self._choose_layer(self._numbers(0.3))
                if not self._acts_alone():
                    shapes += wide if takes_whole else []
                    takes_whole = False
                    continue
                self.kind, self.whole = "numbers", False
                if cast("str | None", self.layer) is not None and self._is_binary():
                    self.kind, self.whole = "binary", takes_whole
                return
            free = shape if acts is False and free is None else free
        if takes_whole:
            self.shape, self.whole = (), True
            self._choose_layer(whole)
            self.kind = "classes" if self._classes_act(whole) else "none"
        elif free is not None:
            self.kind, self.shape, self.whole = "none", free, False
            self._choose_layer(self.labels(n))

    def _takes(self, labels: Tensor) -> bool:
        try:
            loss = self._loss(labels, graph=True)
            # Some losses take whole numbers forward, and not backward.
            if loss.requires_grad:
                loss.backward()
            return loss.dim() == 0
        except Exception:  # a loss of a user's own may raise anything
            return False

    def _acts(self, shape: tuple[int, ...]) -> bool | None:
        """Whether the loss depends on numbers of this shape, each sample's; None: not taken."""
        labels = torch.full((self.size, *shape), 0.3).to(self._like).requires_grad_()
        try:
            loss = self._loss(labels, graph=True)
            if loss.dim() != 0:
                return None
            if not loss.requires_grad:
                return False
            (found,) = _gradients(loss, labels)
        except Exception:  # a loss of a user's own may raise anything
            return None
        return found is not None and bool(found.any())

    def _acts_alone(self) -> bool:
        """Whether a label acts on its own sample only; otherwise the loss has broadcast it."""
        if self.layer is None or self.size == 1:
            return True
        labels = self._numbers(0.3).requires_grad_()
        outputs = torch.linspace(-1, 1, self.size * self.outputs).to(self._like)
        _, found = self._gradient(outputs.reshape(self.size, -1), labels, graph=True)
        if not found.requires_grad:
            return True
        (moved,) = _gradients(found[0].sum(), labels)
        return moved is None or not bool(moved[1:].any())

    def _widths(self) -> list[int]:
        """Numbers of outputs of the linear layers, the last first."""
        found = [m.out_features for m in self.model.modules() if isinstance(m, nn.Linear)]
        return list(dict.fromkeys(reversed(found)))

    def _classes_act(self, zeros: Tensor) -> bool:
        classes = self._facts.num_classes or self.outputs or max(self._widths(), default=2)
        # Logits of 0 are alike for all classes.
        aside = torch.linspace(-1, 1, self.size * self.outputs).to(self._like)
        aside = aside.reshape(self.size, -1)
        for outputs in (None, aside) if self.layer is not None else (None,):
            first = self._loss(zeros, outputs=outputs)
            for other in dict.fromkeys((1, classes - 1)):
                try:
                    found = self._loss(zeros + other, outputs=outputs)
                except Exception:  # no such class
                    return True
                if not torch.allclose(found, first, rtol=0, atol=0, equal_nan=True):
                    return True
        return False

    def _choose_layer(self, labels: Tensor) -> None:
        """The last linear layer, of the told number of outputs if there is such a one."""
        shapes: dict[str, list[torch.Size]] = {}
        handles = [
            module.register_forward_hook(
                lambda _m, _a, output, name=name: shapes.setdefault(name, []).append(output.shape)
            )
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            self._loss(labels)
        finally:
            for handle in handles:
                handle.remove()
        fits = {
            name: found[0][-1]
            for name, found in shapes.items()
            if len(found) == 1 and found[0].numel() == self.size * found[0][-1]
        }
        wanted = {n: k for n, k in fits.items() if k == self._facts.num_classes}
        for name, number in (wanted or fits).items():
            self.layer, self.outputs = name, number

    def _is_binary(self) -> bool:
        try:
            middle = torch.zeros(self.size, self.outputs).to(self._like)
            aside = torch.linspace(-1.5, 1.0, middle.numel()).reshape(middle.shape).to(self._like)
            for value, share in ((0.0, aside.sigmoid()), (1.0, (-aside).sigmoid())):
                labels = self._numbers(value)
                even, found = self.gradient(middle, labels), self.gradient(aside, labels)
                wanted = 2 * share * even
                sign = bool((even * (1 if value == 0 else -1) > 0).all())
                if not sign or not bool((found - wanted).norm() <= AGREE * wanted.norm()):
                    return False
        except Exception:  # a loss of a user's own may raise anything
            return False
        return True

    def _numbers(self, value: float) -> Tensor:
        return torch.full((self.size, *self.shape), value).to(self._like)

    # ----------------------------------------------------------------------------- cross entropy

    def _fit_cross_entropy(self) -> CrossEntropyForm | None:
        classes = self.outputs
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(3, classes, generator=generator, dtype=torch.float64)
        logits[0] = 0
        rows: list[Tensor] = []
        first: Tensor | None = None
        for at in range(0, classes, AT_ONCE):
            # Each part with a sample of class 0, to which the others are compared.
            part = [0, *range(at, min(at + AT_ONCE, classes))]
            found = torch.stack([self._rows(point, part) for point in logits], dim=1)
            first = found[0, 0] if first is None else first
            factor = (found[0, 0] @ first) / (first @ first)
            rows += list(found[1:] / factor)
        values = torch.stack(rows)  # (classes, 3 points, classes)
        points = logits.softmax(dim=-1)
        moved = points[1] - points[0]
        slope = ((values[:, 1] - values[:, 0]) @ moved) / (moved @ moved)
        target = slope[:, None] * points[0] - values[:, 0]
        wanted = slope[:, None] * points[2] - target
        agrees = (values[:, 2] - wanted).norm(dim=1) <= AGREE * values.norm(dim=(1, 2))
        if not bool(agrees.all()) or not bool((slope != 0).all()):
            return None
        divisor = self._divisors(values[:, 0])
        if divisor is None:
            return None
        # In units in which the slopes' mean is 1, and positive.
        unit = slope.mean()
        return CrossEntropyForm(slope / unit, target / unit, divisor / unit)

    def _rows(self, logits: Tensor, labels: Sequence[int]) -> Tensor:
        outputs = logits.to(self._like).expand(len(labels), -1)
        chosen = torch.tensor(labels, device=self._device)
        return self.gradient(outputs, chosen).double().cpu()

    def _divisors(self, at_zero: Tensor) -> Tensor | None:
        """What each class adds to the number that the sum over the samples is divided by."""
        zero, classes, size = torch.zeros(self.outputs), self.outputs, self._step

        def divisor(labels: Sequence[int]) -> float:
            wanted = torch.stack([at_zero[label] for label in labels])
            found = self._rows(zero, labels)
            return float(wanted.square().sum() / (found * wanted).sum())

        mixed = [(7 * i + classes - 1) % classes for i in range(size)]
        plain = divisor([0] * size)
        if abs(divisor(mixed) / plain - 1) < AGREE:
            return torch.full((classes,), plain / size, dtype=torch.float64)
        own = divisor([0, 0]) / 2
        found = torch.tensor(
            [divisor([0, label]) - own for label in range(classes)], dtype=torch.float64
        )
        for labels in (mixed, [0] * size):
            if abs(float(found[labels].sum()) / divisor(labels) - 1) > 10 * AGREE:
                return None
        return found

    # -------------------------------------------------------------------------------- evaluation

    def _gradient(
        self, outputs: Tensor, labels: Tensor, *, graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().clone().requires_grad_()
        loss = self._loss(labels, outputs=leaf, graph=True)
        if not loss.requires_grad:
            return loss, torch.zeros_like(leaf)
        (found,) = _gradients(loss, leaf, graph=graph)
        return loss, torch.zeros_like(leaf) if found is None else found

    def _loss(
        self,
        labels: Tensor,
        *,
        inputs: Tensor | None = None,
        outputs: Tensor | None = None,
        watch: list[Tensor] | None = None,
        graph: bool = False,
    ) -> Tensor:
        if inputs is None:
            shape = (len(labels), *self._facts.input_shape)
            kind = torch.long if self._tokens else self._dtype
            inputs = torch.zeros(shape, dtype=kind, device=self._device)

        def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if watch is not None:
                watch.append(output)
            return None if outputs is None else outputs.reshape(output.shape)

        handles = []
        if self.layer is not None and (outputs is not None or watch is not None):
            module = self.model.get_submodule(self.layer)
            handles.append(module.register_forward_hook(replace))
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with (
                torch.random.fork_rng(devices=devices),
                warnings.catch_warnings(record=True) as said,
                torch.set_grad_enabled(graph),
            ):
                warnings.simplefilter("always")
                _seed(self._device)
                loss = self._facts.loss(self.model, (inputs, labels))
        finally:
            for handle in handles:
                handle.remove()
        if any(BROADCASTS in str(item.message) for item in said):
            raise ValueError("the loss broadcasts its labels")
        return loss


def _seed(device: torch.device) -> None:
    if device.type == "cpu":
        # torch.manual_seed also seeds devices that are not there, and formats its stack for each
        # kind of them, which takes half a millisecond or more.
        torch.default_generator.manual_seed(0)
    else:
        torch.manual_seed(0)


def _gradients(output: Tensor, inputs: Tensor, *, graph: bool = False) -> tuple[Tensor | None, ...]:
    """Gradient of a scalar; None where it does not depend on the input."""
    found = torch.autograd.grad(output, inputs, create_graph=graph, allow_unused=True)
    return cast("tuple[Tensor | None, ...]", found)


def in_own_precision(loss: Loss, kind: torch.dtype) -> Loss:
    """A loss whose model's outputs are cast to one type, as for class weights of that type.

    Args:
        loss: the loss of a batch, given model and batch.
        kind: the type.
    """

    def cast(value: Any) -> Any:
        return value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        handle = model.register_forward_hook(lambda _module, _args, output: tree_map(cast, output))
        try:
            return loss(model, (batch[0], *map(cast, batch[1:])))
        finally:
            handle.remove()

    return of_batch


def _alike(values: Tensor, size: float | None = None) -> bool:
    """Whether numbers are equal, up to a share of ``size`` or of the largest."""
    if values.numel() == 0:
        return True
    spread = float(values.max() - values.min())
    return spread <= AGREE * (float(values.abs().max()) if size is None else size)
