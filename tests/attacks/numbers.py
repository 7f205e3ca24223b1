"""Clients whose samples are whole numbers for an embedding."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

WORDS = 50


class Bag(nn.Module):
    """A classifier of the mean over a text, to which the order of the words is nothing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16, **settings)
        self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        # It takes embeddings as well.
        found = self.embed(tokens) if tokens.dtype == torch.long else tokens
        return self.out(torch.tanh(self.hidden(found)).mean(1))


class Reader(nn.Module):
    """A classifier that reads in order: by a convolution, and a place for each of its outputs."""

    def __init__(self, length: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.read = nn.Conv1d(16, 12, kernel_size=3, padding=1)
        self.out = nn.Linear(12 * length, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        found = torch.tanh(self.read(self.embed(tokens).transpose(1, 2)))
        return self.out(found.flatten(1))


class LanguageModel(nn.Module):
    """The next word; the output layer has the embedding's weight, as GPT-2's."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.read = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, WORDS, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.read(self.embed(tokens))[0])


class Rating(nn.Module):
    """The rating of an item by a user, from a sample that has both numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.out(self.users(pairs[:, 0]) * self.items(pairs[:, 1]))


def class_loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def next_word_loss(model: nn.Module, batch: Any) -> Tensor:
    tokens = batch[0]
    return functional.cross_entropy(
        model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().clone()
    )


def seeded(kind: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**settings)


def gradient_of(
    model: nn.Module, numbers: Tensor, labels: Tensor, loss: Callable[..., Tensor] = class_loss
) -> InterceptedUpdate:
    found = torch.autograd.grad(loss(model, (numbers, labels)), list(model.parameters()))
    dense = [value.to_dense() for value in found]
    return InterceptedUpdate.of(model, gradient=dense, num_examples=len(numbers))


def weights_of(
    model: nn.Module,
    numbers: Tensor,
    labels: Tensor,
    make: Callable[..., torch.optim.Optimizer],
    *,
    steps: int,
    delta: bool = False,
) -> InterceptedUpdate:
    """An update of some steps of one of torch's optimisers."""
    trained = copy.deepcopy(model)
    optimizer = make(trained.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        class_loss(trained, (numbers, labels)).backward()
        optimizer.step()
    after = trained.state_dict()
    if delta:
        moves = {name: after[name] - value for name, value in model.state_dict().items()}
        return InterceptedUpdate.of(model, delta=moves, num_examples=len(numbers))
    return InterceptedUpdate.of(model, weights=after, num_examples=len(numbers))


def told(model: nn.Module, numbers: Tensor, labels: Tensor, **facts: Any) -> Knowledge:
    facts = {"loss": class_loss} | facts
    return Knowledge(model, tuple(numbers.shape[1:]), 4, labels=labels, **facts)
