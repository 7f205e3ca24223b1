"""Shares of labels in a client's data, from the change of its weights: shadow clients.

The server trains clients of its own, with data whose shares of labels it knows, as the client is
known to train, and learns the map from the change of the last layer to the shares. Nothing has to
be presumed of the optimiser or of the number of steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import require
from fedleak.runtime.seeds import derive_seed
from fedleak.updates.files import Tensors
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.naming import joined
from fedleak.updates.optimizer_steps import State, optimizer_step
from fedleak.updates.private_model import private_copy

# Main directions of the last layer's change, beside its bias and the means of its rows: all of its
# entries fit a few hundred shadows by chance.
DIRECTIONS = 15
# Strengths of the regularisation that are tried, for standardised features.
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS = 5
SOFTMAX_ITERATIONS = 60

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Shadow:
    """A client that the server made up.

    Args:
        change: change of its weights by name, new minus old.
        shares: shares of its labels ``(classes,)``, which add up to 1.
        number: its number.
    """

    change: Tensors
    shares: Tensor
    number: int = 0


def train_shadows(
    model: nn.Module,
    sent: Mapping[str, Tensor],
    loss: Loss,
    training: LocalTraining,
    inputs: Tensor,
    labels: Tensor,
    *,
    samples: int | Sequence[int],
    classes: int,
    number: int = 160,
    first: int = 0,
    layer: str | None = None,
    concentration: float = 0.5,
    shares: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Shadow]:
    """Train shadow clients one after another; each one's random numbers are its own.

    Args:
        model: the clients' model, in the modes in which they train it; it is left as it is.
        sent: the weights that the clients start from, by name.
        loss: the loss of a batch, given model and batch.
        training: the clients' local training.
        inputs: public samples as the clients' models take them, ``(N, ...)``.
        labels: their classes ``(N,)``.
        samples: number of samples of a client, at least 1, or those of several clients, which the
            shadow clients have in turn.
        classes: number of classes.
        number: number of shadow clients.
        first: number of the first one: 10 from 0 and 10 from 10 are the same as 20 from 0.
        layer: path of the layer whose change is kept. If None, that of all is.
        concentration: of the Dirichlet distribution of the shares, above 0.
        shares: expected shares of the labels ``(S, classes)``, which the shadow clients have in
            turn. If None, they are drawn from the Dirichlet distribution.
        seed: seed of the shares, the samples and their order.

    Yields:
        The shadow clients; those whose weights are not finite are left out.

    Raises:
        BadInput: if an argument is out of its range, a class has no public sample, or the rate or
            the optimiser is not known.
    """
    sizes = [samples] if isinstance(samples, int) else list(samples)
    require(min(sizes, default=0) >= 1, f"Expected `samples` to be at least 1, got {samples}.")
    require(concentration > 0, f"Expected `concentration` above 0, got {concentration}.")
    pools = [(labels == c).nonzero().flatten() for c in range(classes)]
    empty = [c for c, pool in enumerate(pools) if not len(pool)]
    require(not empty, f"Expected public samples of each class, got none of class {empty[:1]}.")
    training.rate  # noqa: B018 - raises if it is not known
    copy = private_copy(model)
    buffers = {name: value.clone() for name, value in copy.named_buffers()}
    for position in range(first, first + number):
        own = derive_seed(seed, position)
        generator, counting = torch.Generator().manual_seed(own), np.random.default_rng(own)
        size = sizes[position % len(sizes)]
        expected = (
            counting.dirichlet(np.full(classes, concentration)) if shares is None
            else _expected(shares[position % len(shares)])
        )  # fmt: skip
        counts = counting.multinomial(size, expected)
        chosen = torch.cat([
            pool[_positions(len(pool), int(count), generator)]
            for pool, count in zip(pools, counts, strict=True)
        ])  # fmt: skip
        _restore(copy, sent, buffers)
        _train(copy, loss, training, inputs[chosen], labels[chosen], generator)
        new = dict(copy.named_parameters())
        change = {name: new[name].detach() - sent[name] for name in new if name in sent}
        if all(bool(value.isfinite().all()) for value in change.values()):
            if layer is not None:
                change = {name: change[name] for name in weights_of(layer) if name in change}
            yield Shadow(change, torch.from_numpy(counts / size), position)


def weights_of(layer: str) -> tuple[str, str]:
    """Names of the weight and the bias of a layer.

    Args:
        layer: its path.
    """
    return joined(layer, "weight"), joined(layer, "bias")


def _expected(shares: Tensor) -> np.ndarray:
    """Shares that add up to 1 in float64."""
    own = shares.double().clamp_min(0)
    found: np.ndarray = (own / own.sum()).numpy()
    return found


def _positions(size: int, count: int, by: torch.Generator) -> Tensor:
    """Positions in a pool, each once as far as it has enough."""
    whole, rest = divmod(count, size)
    parts = [torch.randperm(size, generator=by) for _ in range(whole + 1)]
    return torch.cat([*parts[:whole], parts[whole][:rest]])


def _restore(model: nn.Module, sent: Mapping[str, Tensor], buffers: Tensors) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in sent:
                parameter.copy_(sent[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(sent.get(name, buffers[name]))


def _train(
    model: nn.Module, loss: Loss, training: LocalTraining, inputs: Tensor, labels: Tensor,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Train a model in place as a client does: epochs in a new order each."""
    size = training.batch_size or len(labels)
    batches = math.ceil(len(labels) / size)
    steps = training.steps or (training.epochs or 1) * batches
    parameters = {n: value for n, value in model.named_parameters() if value.requires_grad}
    state: State = {}
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(labels), generator=generator)
        at = step % batches * size
        chosen = order[at : at + size]
        found = torch.autograd.grad(
            loss(model, (inputs[chosen], labels[chosen])), list(parameters.values()),
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        gradients = dict(zip(parameters, found, strict=True))
        with torch.no_grad():
            weights = {name: value.detach() for name, value in parameters.items()}
            changes, state = optimizer_step(training, weights, gradients, state, step)
            for name, value in parameters.items():
                value.add_(changes[name])


def sum_shadows(
    shadows: Sequence[Shadow], layer: str, weights: Sequence[float], *, seed: int = 0
) -> list[Shadow]:
    """Shadow federations: what a server sees of several shadow clients behind secure aggregation.

    There are as many as shadow clients. Each consists of clients that are drawn, with replacement,
    from those of one fold of :meth:`LabelShares.fit`: a federation that is left out of a fit has no
    client in common with the others.

    Args:
        shadows: the shadow clients.
        layer: the path of the linear layer whose change is kept.
        weights: share of each client in the mean that the server sees; they add up to 1.
        seed: seed of the draws.

    Returns:
        For each federation the mean of its clients' changes, and of their shares of labels.
    """
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor(weights, dtype=torch.float64)
    found = []
    for number in range(len(shadows)):
        fold = shadows[number % FOLDS :: FOLDS]
        drawn = torch.randint(len(fold), (len(share),), generator=generator).tolist()
        clients = [fold[at] for at in drawn]
        change = {
            name: torch.tensordot(
                share, torch.stack([one.change[name].double() for one in clients]), dims=1
            )
            for name in weights_of(layer)
            if name in clients[0].change
        }
        shares = share @ torch.stack([one.shares.double() for one in clients])
        found.append(Shadow(change, shares))
    return found


@dataclass(frozen=True, eq=False)
class LabelShares:
    """The map from the change of a client's weights to the shares of its labels.

    Made by :meth:`fit`.

    Args:
        layer: the path of the linear layer whose outputs are the classes.
        error: mean total variation distance on shadows that were left out of the fit, 0 to 1.
        spread: its standard deviation over those shadows.
        regressor: which of ``ridge``, ``softmax`` and ``mean`` of both was chosen.
    """

    layer: str
    error: float
    spread: float
    regressor: str
    _features: "_Features" = field(repr=False)
    _maps: "_Maps" = field(repr=False)

    @classmethod
    def fit(cls, shadows: Sequence[Shadow], layer: str) -> Self:
        """Fit the map to shadow clients.

        Args:
            shadows: at least 10.
            layer: the path of the linear layer whose outputs are the classes.

        Raises:
            BadInput: if the shadows are too few, or have no such layer.
        """
        require(len(shadows) >= 10, f"Expected at least 10 shadow clients, got {len(shadows)}.")
        weight = joined(layer, "weight")
        require(
            weight in shadows[0].change,
            f"Expected a layer whose weight is among those that clients change, got `{layer}`.",
        )
        targets = torch.stack([shadow.shares for shadow in shadows])
        changes = [shadow.change for shadow in shadows]
        distances: dict[tuple[str, float, float], list[Tensor]] = {}
        for fold in range(FOLDS):
            inside = [i for i in range(len(shadows)) if i % FOLDS != fold]
            outside = [i for i in range(len(shadows)) if i % FOLDS == fold]
            features = _Features.fit([changes[i] for i in inside], layer)
            seen, unseen = (features([changes[i] for i in part]) for part in (inside, outside))
            for key, shares in _candidates(seen, targets[inside], unseen):
                distances.setdefault(key, []).append(_distance(shares, targets[outside]))
        errors = {key: torch.cat(found) for key, found in distances.items()}
        best = min(errors, key=lambda key: float(errors[key].mean()))
        features = _Features.fit(changes, layer)
        maps = _Maps.fit(features(changes), targets, *best)
        found = errors[best]
        return cls(layer, float(found.mean()), float(found.std()), best[0], features, maps)

    def __call__(self, changes: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Shares of the labels of clients.

        Args:
            changes: change of each client's weights by name, new minus old.

        Returns:
            Shares ``(clients, classes)`` in float64; each row adds up to 1.
        """
        return self._maps(self._features(changes))


def total_variation_distance(shares: Tensor, truth: Tensor) -> Tensor:
    """Half of the sum of absolute differences, 0 to 1, of each row.

    Args:
        shares: ``(clients, classes)``.
        truth: of the same shape, or of a shape that is broadcast to it.
    """
    return _distance(shares, truth)


def _distance(shares: Tensor, truth: Tensor) -> Tensor:
    return (shares - truth).abs().sum(-1) / 2


@dataclass(frozen=True, eq=False)
class _Features:
    """Standardised numbers that tell the labels: bias, means of rows, main directions."""

    layer: str
    center: Tensor
    directions: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, changes: Sequence[Mapping[str, Tensor]], layer: str) -> Self:
        rest = torch.stack([_rest(change, layer) for change in changes])
        center = rest.mean(0)
        most = min(DIRECTIONS, len(changes) - 1, rest.shape[1])
        directions = torch.linalg.svd(rest - center, full_matrices=False).Vh[:most]
        raw = cls(layer, center, directions, torch.zeros(()), torch.ones(()))(changes)
        scale = raw.std(0)
        return cls(layer, center, directions, raw.mean(0), scale.where(scale > 0, 1.0))

    def __call__(self, changes: Sequence[Mapping[str, Tensor]]) -> Tensor:
        rows = []
        for change in changes:
            weight = change[joined(self.layer, "weight")].double()
            bias = change.get(joined(self.layer, "bias"))
            means = weight.flatten(1).mean(1)
            main = self.directions @ (_rest(change, self.layer) - self.center)
            rows.append(torch.cat([means, main, *([] if bias is None else [bias.double()])]))
        return (torch.stack(rows) - self.mean) / self.scale


def _rest(change: Mapping[str, Tensor], layer: str) -> Tensor:
    """The weight's change without the means of its rows, ``(entries,)``."""
    weight = change[joined(layer, "weight")].double().flatten(1)
    return (weight - weight.mean(1, keepdim=True)).flatten()


@dataclass(frozen=True, eq=False)
class _Maps:
    """Ridge regression, softmax regression, or the mean of both."""

    kind: str
    ridge: Tensor
    softmax: Tensor

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, kind: str, ridge: float, softmax: float) -> Self:
        return cls(kind, _ridge(x, y, ridge), _softmax_regression(x, y, softmax))

    def __call__(self, x: Tensor) -> Tensor:
        return _shares(self.kind, _with_ones(x) @ self.ridge, _with_ones(x) @ self.softmax)


def _candidates(
    seen: Tensor, targets: Tensor, unseen: Tensor
) -> Iterator[tuple[tuple[str, float, float], Tensor]]:
    """Shares of unseen shadows by each kind of map and strength of regularisation."""
    linear = {p: _with_ones(unseen) @ _ridge(seen, targets, p) for p in PENALTIES}
    logits = {p: _with_ones(unseen) @ _softmax_regression(seen, targets, p) for p in PENALTIES}
    for p in PENALTIES:
        yield ("ridge", p, p), _shares("ridge", linear[p], logits[p])
        yield ("softmax", p, p), _shares("softmax", linear[p], logits[p])
        for other in PENALTIES:
            yield ("mean", p, other), _shares("mean", linear[p], logits[other])


def _shares(kind: str, linear: Tensor, logits: Tensor) -> Tensor:
    direct = linear.clamp_min(0)
    direct = direct / direct.sum(-1, keepdim=True).clamp_min(1e-12)
    soft = logits.softmax(-1)
    return {"ridge": direct, "softmax": soft, "mean": (direct + soft) / 2}[kind]


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Coefficients ``(features + 1, classes)``; the constant term is not penalised."""
    full = _with_ones(x)
    damping = penalty * torch.eye(full.shape[1], dtype=x.dtype)
    damping[-1, -1] = 0
    found: Tensor = torch.linalg.solve(full.T @ full + damping, full.T @ y)
    return found


def _softmax_regression(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Coefficients ``(features + 1, classes)`` of the least cross entropy to soft targets."""
    full = _with_ones(x)
    found = torch.zeros(full.shape[1], y.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [found], max_iter=SOFTMAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        unpenalised = functional.cross_entropy(full @ found, y, reduction="sum")
        objective: Tensor = unpenalised + penalty / 2 * found[:-1].square().sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call, unused-ignore]
    return found.detach()
