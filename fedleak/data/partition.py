"""Partition of the training samples over the clients."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fedleak.errors import BadInput, unknown_name

Kind = Literal["iid", "dirichlet", "shards", "one_each"]
Indices = npt.NDArray[np.int64]

# Maximum number of draws of the Dirichlet partition until no client is empty.
_MAX_DRAWS = 100


def partition(
    labels: npt.ArrayLike,
    clients: int,
    *,
    kind: Kind = "iid",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    seed: int = 0,
) -> list[Indices]:
    """Partition samples over clients: each client gets at least one, each sample has one client.

    Args:
        labels: the class of each sample, (N,).
        clients: the number of clients, from 1 to N.
        kind: ``iid`` deals shuffled samples evenly; ``dirichlet`` draws for every class the share
            of each client from Dirichlet(alpha) (Hsu et al., arXiv 1909.06335); ``shards`` sorts
            by class, cuts equal shards and deals them (McMahan et al., arXiv 1602.05629);
            ``one_each`` gives client i only sample i; samples beyond the number of clients are
            left out.
        alpha: concentration of ``dirichlet``, above 0; the smaller, the fewer classes a client has.
        shards_per_client: number of shards of each client in ``shards``, at least 1.
        seed: seed of the draw, at least 0; the same seed gives the same partition.

    Returns:
        For each client the sorted indices of its samples, int64.

    Raises:
        BadInput: if an argument is out of its range, or if a client would be left empty.
    """
    classes = np.asarray(labels)
    _validate(classes, clients, kind, alpha, shards_per_client, seed)
    rng = np.random.default_rng(seed)
    if kind == "one_each":
        parts = np.split(np.arange(clients), clients)
    elif kind == "iid":
        parts = np.array_split(rng.permutation(len(classes)), clients)
    elif kind == "dirichlet":
        parts = _dirichlet(classes, clients, alpha, rng)
    else:
        parts = _shards(classes, clients, shards_per_client, rng)
    return [np.sort(part).astype(np.int64) for part in parts]


def _validate(
    labels: npt.NDArray[np.generic],
    clients: int,
    kind: str,
    alpha: float,
    shards_per_client: int,
    seed: int,
) -> None:
    if kind not in get_args(Kind):
        raise unknown_name("kind of partition", kind, get_args(Kind))
    if labels.ndim != 1:
        raise BadInput(f"Expected `labels` to have the shape (N,), got the shape {labels.shape}.")
    if labels.dtype.kind == "f" and kind in ("dirichlet", "shards"):
        raise BadInput(
            f"Expected classes for the partition {kind}, got a target of numbers: choose iid."
        )
    if clients < 1:
        raise BadInput(f"Expected `clients` to be 1 or more, got {clients}.")
    if clients > len(labels):
        raise BadInput(
            f"Expected `clients` to be at most the number of samples, {len(labels)}, "
            f"got {clients}; lower `clients`."
        )
    if seed < 0:
        raise BadInput(f"Expected `seed` to be 0 or more, got {seed}.")
    if kind == "dirichlet" and not 0 < alpha < np.inf:
        raise BadInput(f"Expected `alpha` to be finite and above 0, got {alpha}.")
    if kind == "shards":
        if shards_per_client < 1:
            raise BadInput(
                f"Expected `shards_per_client` to be 1 or more, got {shards_per_client}."
            )
        shards = clients * shards_per_client
        if shards > len(labels):
            raise BadInput(
                "Expected `clients` times `shards_per_client` to be at most the number of "
                f"samples, {len(labels)}, got {clients} x {shards_per_client} = {shards}; "
                "lower one of them."
            )


def _dirichlet(
    labels: npt.NDArray[np.generic], clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        shares: list[list[Indices]] = [[] for _ in range(clients)]
        for samples in members:
            ends = np.cumsum(rng.dirichlet(np.full(clients, alpha))) * len(samples)
            cuts = ends[:-1].round().astype(np.int64)
            pieces = np.split(rng.permutation(samples), cuts)
            for share, piece in zip(shares, pieces, strict=True):
                share.append(piece)
        parts = [np.concatenate(share) for share in shares]
        if all(len(part) for part in parts):
            return parts
    raise BadInput(
        f"Expected every client to get a sample, but `alpha` = {alpha} left one of {clients} "
        f"clients without any of the {len(labels)} samples in each of {_MAX_DRAWS} draws; "
        "raise `alpha` or lower `clients`."
    )


def _shards(
    labels: npt.NDArray[np.generic],
    clients: int,
    shards_per_client: int,
    rng: np.random.Generator,
) -> list[Indices]:
    # Shuffled before the stable sort, so that the order within a class is random.
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_class, clients * shards_per_client)
    dealt = rng.permutation(len(shards)).reshape(clients, shards_per_client)
    return [np.concatenate([shards[i] for i in row]) for row in dealt]
