"""The filters of the study, their clients, and what an attacker is told of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedleak import (
    SVT,
    Censor,
    Defense,
    GradientDropout,
    InterceptedUpdate,
    NoisyGradients,
    Outgoing,
    Percentile,
    Precode,
    Pruning,
    Quantization,
    TopK,
)
from fedleak.defenses import protect
from fedleak.models import SMLP, LeNet, ResNet18
from fedleak.models.noise import record
from fedleak.privacy import Mechanism, local_dp_mod, spent_by

MEAN, STD = (0.49146724, 0.48226175, 0.44677013), (0.24703224, 0.24348514, 0.26158786)
RATE = 0.1
"""Learning rate of a client's step: what it sends is minus this times the gradient, filtered."""
EPOCHS = 5
DP = {"clipping_norm": 1.0, "sensitivity": 1e-4, "epsilon": 10.0, "delta": 1e-5}
"""Settings of Flower's mod as they are in use (https://github.com/londonaicentre/FLIP)."""
MODELS: dict[str, Callable[..., nn.Module]] = {"smlp": SMLP, "lenet": LeNet, "resnet18": ResNet18}


@dataclass(frozen=True)
class Filter:
    """A filter as a client applies it and as an attacker knows it.

    Args:
        defense: the defence; None if there is none, or Flower's mod is applied.
        told: what an attacker is told. If None, there is nothing to tell.
        mechanism: its mechanism of differential privacy, if it is one.
    """

    defense: Defense | None = None
    told: Defense | None = None
    mechanism: Mechanism | None = None

    def sent(self, change: dict[str, Tensor], outgoing: Outgoing, seed: int) -> dict[str, Tensor]:
        """What a client sends.

        Args:
            change: its change of weights.
            outgoing: the update that the defence is given: the change, or of ``censor`` the
                gradient.
            seed: of every draw.
        """
        if self.mechanism is not None:
            return by_flower(change, outgoing.model, seed)
        if self.defense is None:
            return change
        found, _ = protect([self.defense], outgoing, seed=seed, memory={})
        if self.defense.needs_batch:
            return {name: -RATE * value for name, value in found.items()}
        return found


def told_of(defense: Defense) -> Filter:
    """A filter whose attacker is told the defence itself."""
    return Filter(defense, defense)


MECHANISM = local_dp_mod(**DP)
FILTERS = {
    "none": Filter(),
    "percentile": told_of(Percentile()),
    "svt": told_of(SVT()),
    "quantization 8": told_of(Quantization(bits=8)),
    "quantization 4": told_of(Quantization(bits=4)),
    "top_k": told_of(TopK(share=0.1)),
    "gradient_dropout": told_of(GradientDropout(probability=0.5)),
    "censor": told_of(Censor()),
    "local_dp_mod": Filter(None, NoisyGradients(sigma=MECHANISM.standard_deviation), MECHANISM),
    "pruning 0.1": told_of(Pruning(ratio=0.1)),
    "pruning 0.5": told_of(Pruning(ratio=0.5)),
}


@dataclass
class _Content:
    """What the mod uses of a message, which cannot be made outside a federation."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def by_flower(change: dict[str, Tensor], model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A change of weights after Flower's own mod, which is given and returns weights.

    Args:
        change: by parameter name, added to the model's weights.
        model: has the weights that the server sent.
        seed: of numpy's random state, from which the mod draws; it is restored.
    """
    sent = {n: v.detach().double().numpy() for n, v in model.named_parameters()}
    new = {name: value + change[name].double().numpy() for name, value in sent.items()}
    question, reply = (
        _Content(RecordDict({"arrays": ArrayRecord({n: Array(v) for n, v in values.items()})}))
        for values in (sent, new)
    )
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        mod = LocalDpMod(*(DP[n] for n in ("clipping_norm", "sensitivity", "epsilon", "delta")))
        answer = mod(question, None, lambda *_: reply)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    (record_,) = answer.content.array_records.values()
    found = dict(zip(record_, record_.to_numpy_ndarrays(), strict=True))
    return {n: torch.from_numpy(found[n] - v).to(change[n]) for n, v in sent.items()}


def epsilon_of(chosen: Filter, rounds: int) -> float | None:
    """The effective epsilon of a client over some rounds; None if nothing bounds it."""
    if chosen.mechanism is None:
        return None
    return spent_by(chosen.mechanism, rounds, DP["delta"]).epsilon


def make_model(kind: str, precode: bool, seed: int) -> nn.Module:
    """An untrained model of the study; the seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {"input_shape": (3, 32, 32), "num_classes": 10}
        if precode:
            settings["precode"] = Precode(bottleneck_size=256, beta=1e-3)
        return MODELS[kind](**settings)


def normalised(images: np.ndarray[Any, Any]) -> Tensor:
    """Images ``(n, 32, 32, 3)`` of 8 bits as a model takes them, ``(n, 3, 32, 32)``."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return (pixels - torch.tensor(MEAN).reshape(shape)) / torch.tensor(STD).reshape(shape)


def trained(model: nn.Module, data: Path, seed: int, cache: Path) -> nn.Module:
    """The model after some epochs of Adam on the training images; kept in a file.

    Args:
        model: the model, which is changed.
        data: the folder of ``cifar10.npz``.
        seed: of the batches and of a bottleneck's noise.
        cache: the file of the trained weights.
    """
    if cache.exists():
        model.load_state_dict(load_file(cache))
        return model
    with np.load(data / "cifar10.npz", allow_pickle=False) as file:
        images, labels = normalised(file["train_images"]), torch.from_numpy(file["train_labels"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                model.batch_loss((images[batch], labels[batch].long())).backward()
                optimizer.step()
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), cache)
    return model


def victim(
    model: nn.Module, batch: tuple[Tensor, Tensor], chosen: Filter, seed: int
) -> InterceptedUpdate:
    """The update of one client: one step of SGD, filtered.

    Args:
        model: has the weights that the server sent, in train mode.
        batch: the client's batch.
        chosen: its filter.
        seed: of a bottleneck's noise and of the filter.
    """
    names, weights = zip(*model.named_parameters(), strict=True)
    with torch.random.fork_rng(devices=[]), record(model) as drawn:
        torch.manual_seed(seed)
        gradient = torch.autograd.grad(model.batch_loss(batch), weights)
    own = dict(zip(names, gradient, strict=True))
    change = {name: -RATE * value for name, value in own.items()}
    noise = {slot: torch.cat(values).detach() for slot, values in drawn.items() if values}
    needs_batch = chosen.defense is not None and chosen.defense.needs_batch
    outgoing = Outgoing(own if needs_batch else change, model, batch, noise)
    return InterceptedUpdate.of(model, delta=chosen.sent(change, outgoing, seed))
