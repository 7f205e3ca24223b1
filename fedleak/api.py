"""The interface for notebooks: attack a gradient, score and show the result, read a run's rows."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.attacks.exact_batch import ExactBatch
from fedleak.attacks.explained import NOT_SETTLED
from fedleak.errors import BadInput, require
from fedleak.models.noise import noise_slots
from fedleak.registry import Plugin, build, class_path
from fedleak.schema import check_value
from fedleak.updates.entries import KnownDefense
from fedleak.updates.knowledge import Aggregation, Knowledge, ValueRange, batch_loss
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

Loss = Callable[[Tensor, Tensor], Tensor]
Gradient = Mapping[str, Any] | Sequence[Any]
Scale = float | Sequence[float]

TOLERANCE = 1e-3
"""How far rounding may take a pixel out of [0, 1]."""
HARDLY = (
    "; not supported by the update, so nothing follows from it: check num_samples, loss, labels, "
    "mean, std, the model's mode and learning_rate"
)
UNSETTLED = "; not settled by the update, see findings"
MAX_ENTRIES = 2**28
"""Of one sample, which an attack makes several copies of."""
EDGE, GAP = 128, 4
"""Minimum size in pixels of an image's longer side in a picture, and the gap between images."""


@dataclass(frozen=True, repr=False)
class Found(Reconstruction):
    """The result of :func:`attack`: a reconstruction, printed as one line.

    Args:
        method: name of the attack.
        mean: mean of each channel, to scale the inputs back to pixels.
        std: standard deviation of each channel.
    """

    method: str = ""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __repr__(self) -> str:
        number, shape = len(self.inputs), tuple(self.inputs.shape[1:])
        return (
            f"{number} sample{'s' * (number != 1)} of shape {shape}, labels "
            f"{self.labels.tolist()}, by {self.method}: {self._share}, {self.seconds:.2f} s"
            + (HARDLY if not self.supported else UNSETTLED if self._doubtful else "")
        )

    @property
    def _doubtful(self) -> bool:
        return any(finding.startswith(NOT_SETTLED) for finding in self.findings)

    @property
    def _share(self) -> str:
        if math.isnan(self.explained):
            return "not checked against the update"
        return f"explains {self.explained:.1%} of the update"

    @property
    def pixels(self) -> Tensor:
        """The inputs ``(num_samples, C, H, W)`` scaled back to pixels, clipped to [0, 1].

        Raises:
            BadInput: if the samples are not images.
        """
        return _pixels(self.inputs, self.mean, self.std)

    def show(self, images: Tensor | None = None, path: str | Path | None = None) -> "Image":
        """A picture of the reconstructions, below the originals if they are given.

        Args:
            images: the originals ``(num_samples, C, H, W)``, scaled as the inputs; each stands
                above the reconstruction that is assigned to it.
            path: a file to which the picture is also saved.

        Returns:
            The picture, which a notebook displays.

        Raises:
            BadInput: if the samples are not images with 1 or 3 channels, or the originals have
                another shape.
        """
        from fedleak.metrics.assignment import assign

        rows = [self.pixels]
        if images is not None:
            originals = _pixels(_batch(images, self.inputs), self.mean, self.std)
            matches = assign(originals.double().numpy(), self.pixels.double().numpy())
            rows = [originals, self.pixels[list(matches)]]
        picture = _picture(rows)
        if path is not None:
            try:
                picture.save(path)
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"Expected a file name with an extension such as .png in an existing folder, "
                    f"got {path!s:.100}: {error}."
                ) from error
        return picture


@dataclass(frozen=True)
class Scores:
    """Mean scores of the samples of a batch, on pixels in [0, 1].

    Args:
        ssim: structural similarity, -1 to 1.
        psnr: peak signal-to-noise ratio in dB; infinite for equal images.
        mse: mean squared error.
        labels: label accuracy, 0 to 1. None, if the true labels were not given.
        samples: the scores of each sample, in the order of the batch.
    """

    ssim: float
    psnr: float
    mse: float
    labels: float | None
    samples: tuple[Any, ...] = dataclasses.field(repr=False, default=())

    def __str__(self) -> str:
        text = f"ssim {self.ssim:.4f}, psnr {self.psnr:.1f} dB, mse {self.mse:.2e}"
        return text if self.labels is None else f"{text}, labels {self.labels:.0%} right"


def attack(
    model: nn.Module,
    gradient: Gradient | None = None,
    *,
    input_shape: Sequence[int],
    method: str | type[Attack] | Attack | None = None,
    labels: Tensor | Sequence[Any] | None = None,
    num_samples: int = 1,
    num_classes: int | None = None,
    loss: Loss | None = None,
    mean: Scale = 0.0,
    std: Scale = 1.0,
    weights_after: Gradient | None = None,
    delta: Gradient | None = None,
    learning_rate: float | None = None,
    local_steps: int | None = None,
    local_training: LocalTraining | None = None,
    value_range: ValueRange | None = None,
    clients: int | Sequence[int] = 1,
    aggregation: Aggregation = "weighted_mean",
    defense: KnownDefense | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Found:
    """Gradient inversion: reconstruct the inputs from a gradient, or from locally trained weights.

    Args:
        model: the model with the weights at which the gradient was computed, in the same mode
            (train or eval); it is not changed.
        gradient: the gradient by parameter name, or in the order of ``model.parameters()`` as
            ``torch.autograd.grad`` gives it: tensors or numpy arrays, None for unused parameters,
            frozen ones may be left out.
        input_shape: shape of one sample, such as ``(3, 32, 32)``.
        method: an attack's name, class or instance. If None, ``exact_batch`` for several
            samples where it certifies each of them, else ``exact_nra`` where the model has noise
            slots, else ``rgap``; these two fall back to gradient matching.
        labels: the labels as the loss takes them, ``(num_samples, ...)``: classes, or numbers such
            as the targets of a regression. If None, they are recovered from the gradient, or
            searched together with the inputs.
        num_samples: number of samples; with ``labels``, or the samples of each of ``clients``,
            their number.
        num_classes: number of classes. If None, the number of outputs of the last linear layer.
        loss: the loss of outputs and labels, such as ``torch.nn.functional.mse_loss`` or
            ``nn.CrossEntropyLoss(weight=..., reduction="sum")``. If None, the model's own
            ``batch_loss(batch)`` or ``training_step(batch, batch_idx)`` if it has one, else cross
            entropy. A loss with further terms, such as a bottleneck's, must be one of those
            methods.
        mean: mean of each channel with which the inputs were normalised. Valid pixels are in
            [0, 1].
        std: standard deviation of each channel.
        weights_after: instead of a gradient, the weights after the client's local steps.
        delta: instead of a gradient, the change of the weights, new minus old.
        learning_rate: learning rate of the local steps.
        local_steps: number of local steps, all on the same samples. If None, 1, or as
            ``local_training`` says.
        local_training: the local training, if it is another than steps of plain SGD on all
            samples.
        value_range: see :class:`fedleak.updates.knowledge.Knowledge`.
        clients: number of clients whose updates came as one, as behind secure aggregation, or the
            number of samples of each; ``num_samples`` is that of all together.
        aggregation: whether these are the clients' ``weighted_mean`` (by their numbers of samples),
            their ``mean`` or their ``sum``.
        defense: the last defence that the client applied, with its settings, such as
            ``Pruning(ratio=0.5)``; if None, none is known.
        seed: seed of every random draw.
        device: where to compute, such as ``cuda``. If None, the model's device.

    Returns:
        The reconstruction.

    Raises:
        BadInput: if the arguments do not fit each other, or the attack cannot be made.
    """
    require(
        isinstance(model, nn.Module), f"Expected a module to attack, got {type(model).__name__}."
    )
    if not isinstance(local_training, LocalTraining | None):
        raise BadInput(
            "Expected `local_training` to be a LocalTraining, such as "
            f"LocalTraining(learning_rate=0.1), got {type(local_training).__name__}."
        )
    _check_loss(loss)
    if local_steps is not None:
        check_value("local_steps", local_steps, int)
    require(
        gradient is None or local_steps in (None, 1),
        f"Expected `weights_after` with {local_steps} local steps, got a gradient, that of one.",
    )
    check_value("num_samples", num_samples, int)
    shape = _checked_shape(input_shape)
    known = _checked_labels(labels)
    several = tuple(clients) if isinstance(clients, Sequence) else clients
    if known is not None and num_samples == 1:
        num_samples = len(known)
    if isinstance(several, tuple) and num_samples == 1:
        num_samples = sum(check_value("clients", each, int) for each in several)
    require(num_samples >= 1, f"Expected at least 1 sample, got {num_samples}.")
    given = {"a gradient": gradient, "`weights_after`": weights_after, "`delta`": delta}
    names = [name for name, value in given.items() if value is not None]
    require(
        len(names) == 1,
        f"Expected a gradient or `weights_after` or `delta`, got {' and '.join(names) or 'none'}.",
    )
    require(
        gradient is not None
        or learning_rate is not None
        or (local_training is not None and local_training.learning_rate is not None),
        "Expected `learning_rate` with `weights_after` or `delta`, to compute the gradient from "
        "the change of the weights.",
    )
    # A user may call it where gradients are turned off.
    with torch.inference_mode(False), torch.enable_grad():
        update = InterceptedUpdate.of(
            model,
            gradient=gradient,
            weights=weights_after,
            delta=delta,
            num_examples=num_samples,
        )
        knowledge = Knowledge(
            model=model,
            input_shape=shape,
            num_classes=num_classes,
            mean=_by_channel(mean),
            std=_by_channel(std),
            num_samples=num_samples,
            labels=known,
            protocol=update.protocol,
            local_training=local_training,
            learning_rate=learning_rate,
            local_steps=local_steps,
            loss=_batch_loss(model, loss),
            value_range=value_range,
            clients=several,
            aggregation=aggregation,
            defense=defense,
        )
        chosen = _method(method, model)
        where = device or str(next(model.parameters()).device)
        exact, whole = ExactBatch(), None
        if method is None:
            whole = _whole_batch(exact, update, knowledge, seed, where)
        if whole is None:
            (found,) = chosen([update], knowledge, seed=seed, device=where)
        else:
            chosen, found = exact, whole
        return Found(
            **{item.name: getattr(found, item.name) for item in dataclasses.fields(Reconstruction)},
            method=chosen.name,
            mean=knowledge.mean,
            std=knowledge.std,
        )


def score(
    found: Reconstruction,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    mean: Scale | None = None,
    std: Scale | None = None,
) -> Scores:
    """Score reconstructed images against the originals, on pixels in [0, 1].

    Each original is assigned one reconstruction, so that the order within a batch does not matter.

    Args:
        found: the reconstruction of an attack.
        images: the originals ``(num_samples, C, H, W)``, scaled as the reconstructed inputs.
        labels: the true labels ``(num_samples,)``. If None, label accuracy is not computed.
        mean: mean of each channel. If None, that of the attack.
        std: standard deviation of each channel. If None, that of the attack.

    Raises:
        BadInput: if number or shape of the originals differ from the reconstructions'.
    """
    from fedleak.metrics.images import score_images

    require(
        isinstance(found, Reconstruction),
        f"Expected what an attack found, got {type(found).__name__}.",
    )
    mean = getattr(found, "mean", 0.0) if mean is None else mean
    std = getattr(found, "std", 1.0) if std is None else std
    originals = _batch(images, found.inputs)
    require(
        originals.dim() == 4,
        f"Expected images of shape (C, H, W), got samples of {tuple(originals.shape[1:])}.",
    )
    channels = originals.shape[1]
    _check_scale(originals, _repeated(mean, channels), _repeated(std, channels))
    true = found.labels if labels is None else torch.as_tensor(labels).detach().cpu().flatten()
    scores = score_images(
        GroundTruth(originals, true), found,
        mean=_repeated(mean, channels), std=_repeated(std, channels),
    )  # fmt: skip
    right = None
    if labels is not None:
        require(
            len(true) == len(found.labels),
            f"Expected {len(found.labels)} labels, got {len(true)}.",
        )
        require(
            not (true.is_floating_point() or true.is_complex()),
            f"Expected labels as whole numbers, got {true.dtype}.",
        )
        hits = [int(true[s.sample]) == int(found.labels[s.match]) for s in scores]
        right = sum(hits) / len(hits)
    count = len(scores)
    return Scores(
        ssim=sum(s.ssim for s in scores) / count,
        psnr=sum(s.psnr for s in scores) / count,
        mse=sum(s.mse for s in scores) / count,
        labels=right,
        samples=tuple(scores),
    )


def read_results(folder: str | Path) -> "pandas.DataFrame":
    """The results of a run as a table: a row for each reconstructed sample.

    Args:
        folder: the run's folder.

    Raises:
        BadInput: if the folder has no results, they are damaged, or pandas is not installed.
    """
    from fedleak.runs.folder import RunFolder
    from fedleak.runs.results import read_rows

    try:
        import pandas
    except ImportError as error:
        raise BadInput(
            "Expected pandas to be installed for `read_results`: pip install 'fedleak[report]'."
        ) from error
    path = RunFolder(Path(folder)).results
    require(path.is_file(), f"Expected the results of a run at {path}, found none.")
    return pandas.DataFrame(read_rows(path))


def _checked_shape(input_shape: Any) -> tuple[int, ...]:
    require(
        not isinstance(input_shape, str | bytes),
        f"Expected `input_shape` to be sizes, such as (3, 32, 32), got {input_shape!r:.60}.",
    )
    sizes = input_shape if isinstance(input_shape, Sequence | torch.Size) else [input_shape]
    shape = tuple(check_value("input_shape", size, int) for size in sizes)
    size = math.prod(shape)
    require(
        bool(shape) and all(side >= 1 for side in shape) and size <= MAX_ENTRIES,
        f"Expected `input_shape` to be sizes of at least 1 with at most {MAX_ENTRIES:,} entries "
        f"together, such as (3, 32, 32), got {shape}.",
    )
    return shape


def _checked_labels(labels: Any) -> Tensor | None:
    if labels is None:
        return None
    try:
        known = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"Expected labels as numbers, got {labels!r:.60}.") from error
    known = known[None] if known.dim() == 0 else known
    require(len(known) >= 1, "Expected the label of at least one sample, got none.")
    return known


def _method(method: str | type[Attack] | Attack | None, model: nn.Module) -> Attack:
    if method is None:
        method = "exact_nra" if noise_slots(model) else "rgap"
    if isinstance(method, str):
        made: Attack = build("attacks", Plugin(class_path("attacks", method)))
        return made
    given = method if isinstance(method, type) else type(method)
    require(
        issubclass(given, Attack),
        f"Expected `method` to be the name, class or instance of an attack, got {method!r:.60}.",
    )
    return method() if isinstance(method, type) else method


def _whole_batch(
    exact: ExactBatch, update: InterceptedUpdate, knowledge: Knowledge, seed: int, device: str
) -> Reconstruction | None:
    """The samples of a batch if the exact method certifies all, and the update supports them."""
    if knowledge.num_samples == 1 or exact.refuses(knowledge) is not None:
        return None
    try:
        (found,) = exact([update], knowledge, seed=seed, device=device)
    except BadInput:
        return None
    bounds = found.error_bounds
    whole = bounds is not None and bool(bounds.isfinite().all())
    return found if whole and found.supported else None


def _batch_loss(model: nn.Module, loss: Loss | None) -> Callable[[nn.Module, Any], Tensor]:
    own = any(hasattr(model, name) for name in ("batch_loss", "training_step"))
    if loss is None and own:
        return batch_loss
    criterion = functional.cross_entropy if loss is None else loss

    def of_batch(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(module(batch[0]), batch[1])

    return of_batch


def _check_loss(loss: Any) -> None:
    if loss is None:
        return
    made = "" if not isinstance(loss, type) else f": give an instance, {loss.__name__}()"
    require(
        callable(loss) and not made,
        "Expected `loss` to be a function of outputs and labels, such as "
        f"torch.nn.functional.mse_loss, got {loss!r:.60}{made}.",
    )


def _by_channel(scale: Scale) -> tuple[float, ...]:
    values = [scale] if isinstance(scale, int | float) else scale
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"Expected a number, or one for each channel, as mean or std, got {scale!r:.60}."
        ) from error


def _repeated(scale: Scale, channels: int) -> tuple[float, ...]:
    values = _by_channel(scale)
    return values * channels if len(values) == 1 else values


def _pixels(inputs: Tensor, mean: Scale, std: Scale) -> Tensor:
    if inputs.dim() != 4:
        raise BadInput(
            f"Expected samples of shape (C, H, W) as images, got {tuple(inputs.shape[1:])}."
        )
    channels = inputs.shape[1]
    scale = torch.tensor(_repeated(std, channels)).reshape(-1, 1, 1)
    return (inputs * scale + torch.tensor(_repeated(mean, channels)).reshape(-1, 1, 1)).clamp(0, 1)


def _check_scale(originals: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse originals that are no pixels once they are scaled back: clipped, they score well."""
    channels = originals.shape[1]
    require(
        len(mean) == len(std) == channels and all(0 < value < math.inf for value in std),
        f"Expected a mean and a positive standard deviation for each of {channels} channels, got "
        f"{mean} and {std}.",
    )
    shape = (-1, 1, 1)
    pixels = originals * torch.tensor(std).reshape(shape) + torch.tensor(mean).reshape(shape)
    low, high = float(pixels.min()), float(pixels.max())
    require(
        low >= -TOLERANCE and high <= 1 + TOLERANCE,
        f"Expected originals that lie in [0, 1] once scaled back with mean {mean} and std {std}, "
        f"got {low:.3g} to {high:.3g}: give the mean and std that they were normalised with, to "
        "the attack as well.",
    )


def _picture(rows: Sequence[Tensor]) -> "Image":
    """Rows of images ``(N, C, H, W)`` in [0, 1] as one picture, enlarged without smoothing."""
    from PIL import Image

    channels, height, width = rows[0].shape[1:]
    require(channels in (1, 3), f"Expected images of 1 or 3 channels, got {channels}.")
    factor = max(1, EDGE // max(height, width))
    high, wide = height * factor + GAP, width * factor + GAP
    sheet = torch.ones(3, GAP + high * len(rows), GAP + wide * len(rows[0]))
    for row, images in enumerate(rows):
        for column, image in enumerate(images.expand(-1, 3, -1, -1)):
            blocks = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            top, left = GAP + row * high, GAP + column * wide
            sheet[:, top : top + height * factor, left : left + width * factor] = blocks
    return Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def _batch(images: Tensor, like: Tensor) -> Tensor:
    """The originals as a batch, checked to have the shape of the reconstructions."""
    originals = torch.as_tensor(images).detach().cpu().to(like.dtype)
    if originals.shape == like.shape[1:]:
        originals = originals[None]
    require(
        originals.shape == like.shape,
        f"Expected originals of shape {tuple(like.shape)}, got {tuple(originals.shape)}.",
    )
    return originals
