"""Where a model's embeddings get their numbers from: found by a probe with whole numbers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.models.module_inputs import module_input
from fedleak.updates.knowledge import Knowledge

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class EmbeddingUse:
    """How one embedding is used in a forward pass of a batch.

    Args:
        name: the module's path.
        weight: name of its weight among the model's parameters.
        reads: of each call, the positions in the flattened batch that it reads, in the shape of
            what it was called with. None if what it was called with is not the batch or a part of
            it.
        counts: of each call, how many numbers it reads.
        shape: shape of what it returned in its last call.
        elsewhere: whether rows that were not read get a gradient too, as where an output layer has
            the same weight.
    """

    name: str
    weight: str
    reads: tuple[Tensor | None, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    elsewhere: bool

    @property
    def takes_samples(self) -> bool:
        """Whether it reads the numbers of the samples, or a part of them."""
        return any(positions is not None for positions in self.reads)


def embedding_uses(
    knowledge: Knowledge,
    *,
    samples: int | None = None,
    kinds: Sequence[torch.dtype] = (torch.int64, torch.float32),
) -> tuple[list[EmbeddingUse], torch.dtype | None]:
    """The embeddings of a model that a batch goes through, in order of use.

    Args:
        knowledge: gives model, loss, and number and shape of the samples.
        samples: number of samples of the probe. If None, that of the knowledge.
        kinds: types of the samples to try, in this order.

    Returns:
        The uses, and the first type of samples that the model takes; None if it fails on all.
    """
    if not any(isinstance(module, EMBEDDINGS) for module in knowledge.model.modules()):
        return [], None
    for kind in kinds:
        try:
            with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
                return _probe(knowledge, samples or max(1, knowledge.num_samples), kind), kind
        except Exception:  # a user's own model may raise anything; an attack itself tells it
            continue
    return [], None


def takes_numbers(knowledge: Knowledge) -> str | None:
    """Name of the first embedding that reads the samples, if these are whole numbers.

    They are if the model takes whole numbers, an embedding reads them, and, where it takes real
    numbers as well, embeddings read all of them.

    Args:
        knowledge: gives model, loss, and number and shape of the samples.

    Returns:
        The name. None if the samples are no tokens, items or users.
    """
    uses, kind = embedding_uses(knowledge, kinds=[torch.int64])
    reading = [use for use in uses if use.takes_samples]
    if kind is None or not reading:
        return None
    read = torch.cat([at.flatten() for use in reading for at in use.reads if at is not None])
    size = max(1, knowledge.num_samples) * torch.Size(knowledge.input_shape).numel()
    if len(read.unique()) < size:
        # A column of real numbers may be among them, or a word that is only to be predicted.
        _, real = embedding_uses(knowledge, kinds=[torch.float32])
        if real is not None:
            return None
    return reading[0].name


def no_numbers(attack: str, knowledge: Knowledge) -> str | None:
    """Why an attack that searches inputs as real numbers cannot be used. If None, it can.

    Args:
        attack: its name.
        knowledge: what the server knows.
    """
    embedding = takes_numbers(knowledge)
    if embedding is None:
        return None
    return (
        f"{attack} reconstructs real numbers, and the samples of {type(knowledge.model).__name__} "
        f"are whole numbers that `{embedding}` takes: choose `rows` (which numbers occur) or "
        "`tokens` (their sequence)"
    )


def _probe(knowledge: Knowledge, samples: int, kind: torch.dtype) -> list[EmbeddingUse]:
    # In eval mode, in which nothing is drawn and no statistics are updated.
    model = copy.deepcopy(knowledge.model).cpu().float().eval()
    batch = torch.zeros(samples, *knowledge.input_shape, dtype=kind)
    labels = knowledge.dummy_labels(samples)
    parameters = {name: value.requires_grad_() for name, value in model.named_parameters()}
    names = {id(value): name for name, value in parameters.items()}
    reads: dict[str, list[Tensor | None]] = {}
    counts: dict[str, list[int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    touched: dict[str, set[int]] = {}
    handles = []

    def watch(name: str, weight: str) -> Callable[..., None]:
        def note(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            numbers = module_input(args, kwargs)
            reads.setdefault(name, []).append(_positions(numbers, batch))
            counts.setdefault(name, []).append(numbers.numel())
            touched.setdefault(weight, set()).update(numbers.flatten().tolist())
            shapes[name] = tuple(output.shape)

        return note

    for name, module in model.named_modules():
        if isinstance(module, EMBEDDINGS):
            weight = names[id(module.weight)]
            module.sparse = False
            handles.append(module.register_forward_hook(watch(name, weight), with_kwargs=True))
    try:
        loss = knowledge.loss(model, (batch, labels.cpu()))
        weights = {name: parameters[name] for name in touched}
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    elsewhere = set()
    for weight, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            rows = gradient.ne(0).any(dim=1).nonzero().flatten().tolist()
            if not set(rows) <= touched[weight]:
                elsewhere.add(weight)
    found_names = {name: names[id(model.get_submodule(name).weight)] for name in reads}
    return [
        EmbeddingUse(
            name, weight, tuple(reads[name]), tuple(counts[name]), shapes[name], weight in elsewhere
        )
        for name, weight in found_names.items()
    ]


def _positions(numbers: Any, batch: Tensor) -> Tensor | None:
    """Positions in the flattened batch of what is a view of it; None if it is no view."""
    if not isinstance(numbers, Tensor) or numbers.is_floating_point():
        return None
    if numbers.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr():
        return None
    if numbers.dtype != batch.dtype:
        return None
    all_of_them = torch.arange(batch.numel())
    return all_of_them.as_strided(numbers.shape, numbers.stride(), numbers.storage_offset())
