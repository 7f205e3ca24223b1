"""The correction of shares of labels, on a map whose error is known, and on trained clients."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.audit.shadow_clients import (
    LabelShares,
    Shadow,
    total_variation_distance,
    train_shadows,
)
from fedleak.audit.share_correction import correct_shares
from fedleak.updates.local_training import LocalTraining
from tests.audit.test_shadow_clients import BATCH, CLASSES, SAMPLES, loss, network, public

TRUTH = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]], dtype=torch.float64)


def bent(changes: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """A map that is wrong by as much for clients as for shadows with the same shares."""
    shares = torch.stack([change["shares"] for change in changes]) ** 1.3
    return shares / shares.sum(1, keepdim=True)


def known(shares: Tensor, number: int) -> list[Shadow]:
    """Two shadow clients of each client, whose changes are their shares."""
    turns = [*range(len(shares))] * 2
    return [Shadow({"shares": shares[c]}, shares[c], at) for at, c in enumerate(turns)]


def test_an_error_that_shadow_clients_have_too_goes() -> None:
    found = bent([{"shares": row} for row in TRUTH])
    before = total_variation_distance(found, TRUTH)
    last = before
    for passes in (1, 2, 3):
        shares, done = correct_shares(found, bent, known, passes)
        after = total_variation_distance(shares, TRUTH)
        assert done == passes
        assert torch.allclose(shares.sum(1), torch.ones(3, dtype=torch.float64))
        assert bool((after <= last).all())
        last = after
    assert bool((last[:2] < 0.2 * before[:2]).all())
    assert float(last[2]) == 0.0


def test_each_clients_error_is_that_of_its_own_shadow_clients() -> None:
    def one_has_none(shares: Tensor, number: int) -> list[Shadow]:
        return [shadow for shadow in known(shares, number) if shadow.number % 3]

    found = bent([{"shares": row} for row in TRUTH])
    shares, _ = correct_shares(found, bent, one_has_none, 1)
    both, _ = correct_shares(found, bent, known, 1)
    assert torch.equal(shares[0], found[0])
    assert torch.equal(shares[1:], both[1:])


def test_where_there_is_no_time_the_shares_stay() -> None:
    found = bent([{"shares": row} for row in TRUTH])
    once, _ = correct_shares(found, bent, known, 1)
    assert correct_shares(found, bent, lambda _, __: None)[1] == 0
    shares, done = correct_shares(found, bent, lambda s, n: None if n else known(s, n))
    assert (done, torch.equal(shares, once)) == (1, True)


def test_clients_with_samples_of_their_own() -> None:
    model = network()
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    # So far in one epoch that the last layer's change is no linear function of the shares.
    training = LocalTraining(batch_size=BATCH, epochs=1, learning_rate=0.3, momentum=0.9)
    inputs, labels = public()
    own: dict[str, Any] = {"samples": SAMPLES, "classes": CLASSES, "layer": "2"}
    half = len(labels) // 2
    given = model, sent, loss, training
    shadows = list(train_shadows(*given, inputs[:half], labels[:half], number=60, **own))
    clients = list(
        train_shadows(*given, inputs[half:], labels[half:], number=12, seed=9, **own)
    )  # of other samples
    learned = LabelShares.fit(shadows, "2")

    def train(shares: Tensor, number: int) -> list[Shadow]:
        return list(
            train_shadows(
                *given, inputs[:half], labels[:half], number=36, shares=shares, seed=20 + number,
                **own,
            )
        )  # fmt: skip

    found = learned([client.change for client in clients])
    truth = torch.stack([client.shares for client in clients])
    shares, _ = correct_shares(found, learned, train)
    before, after = (float(total_variation_distance(s, truth).mean()) for s in (found, shares))
    assert after < 0.9 * before


def test_shares_that_are_given_are_those_of_the_shadow_clients_in_turn() -> None:
    model = network()
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    wanted = torch.eye(CLASSES, dtype=torch.float64)[:2]
    shadows = list(
        train_shadows(
            model, sent, loss, LocalTraining(learning_rate=0.1), *public(), samples=[5, 7],
            classes=CLASSES, number=4, shares=wanted,
        )
    )  # fmt: skip
    assert [shadow.number for shadow in shadows] == [0, 1, 2, 3]
    for shadow in shadows:
        assert shadow.shares.tolist() == pytest.approx(wanted[shadow.number % 2].tolist())
