"""A variational autoencoder for recommendation that a federation of single users can train.

Polato: Federated Variational Autoencoder for Collaborative Filtering, IJCNN 2021; the model is
Mult-VAE of Liang et al., WWW 2018, https://arxiv.org/abs/1802.05814.
"""

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import require
from fedleak.models.noise import DropoutNoise, NormalNoise
from fedleak.models.ranking import mask_given_items, ndcg, recall

Batch = tuple[Tensor, Tensor]
RANKING_METRICS = (("ndcg@100", ndcg, 100), ("recall@20", recall, 20), ("recall@50", recall, 50))


class FedVAE(pl.LightningModule):
    """Interaction vector -> random code -> multinomial distribution over all items.

    The input is scaled to unit length, passes a dropout, and is encoded by a hidden layer with tanh
    into the mean and the log-variance of the code; the decoder mirrors the encoder. The loss of a
    user with vector x is ``-sum_i x_i log softmax(logits)_i + beta * KL`` in nats (Liang, eq. 5
    and 7), averaged over a batch. In eval mode the code is its mean, and nothing is drawn.

    Args:
        input_shape: the number of items as ``(items,)``, taken from the data set.
        hidden: number of units of the hidden layers, at least 1.
        code: number of units of the code, at least 1.
        dropout: probability of dropping an input in train mode, at least 0 and below 1; with 0
            there is no noise slot for it.
        beta: weight of the Kullback-Leibler term, at least 0.
        anneal_steps: number of optimiser steps (with fedsgd, of rounds) over which beta rises
            linearly from 0. If 0, beta is constant.
        optimizer: the optimiser of centralised training.
        learning_rate: its learning rate, positive.

    Raises:
        BadInput: if a value is out of its range, or the data's samples are not vectors.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int],
        hidden: int = 600,
        code: int = 200,
        dropout: float = 0.5,
        beta: float = 0.2,
        anneal_steps: int = 0,
        optimizer: Literal["sgd", "adam"] = "adam",
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        for name, count, least in (
            ("hidden", hidden, 1), ("code", code, 1), ("anneal_steps", anneal_steps, 0),
        ):  # fmt: skip
            require(
                count >= least,
                f"Expected `model.{name}` to be at least {least}, got {count}.",
            )
        require(beta >= 0, f"Expected `model.beta` to be at least 0, got {beta}.")
        require(
            learning_rate > 0,
            f"Expected `model.learning_rate` to be positive, got {learning_rate}.",
        )
        self.beta = beta
        self.anneal_steps = anneal_steps
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.steps: Tensor
        if anneal_steps:
            self.register_buffer("steps", torch.tensor(0))
        require(
            len(input_shape) == 1,
            "Expected the interaction vectors of a recommender's `data`, such as lastfm, got "
            f"samples of shape {tuple(input_shape)}.",
        )
        self.input_shape = tuple(input_shape)
        (items,) = input_shape
        self.dropout = DropoutNoise(dropout) if dropout else None
        self.noise = NormalNoise()
        self.encoder = nn.Sequential(
            nn.Linear(items, hidden), nn.Tanh(), nn.Linear(hidden, 2 * code)
        )
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.Tanh(), nn.Linear(hidden, items))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.trunc_normal_(module.bias, std=0.001)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, items)`` of interaction vectors ``(batch, items)``."""
        return self._reconstructed(inputs)[0]

    def _reconstructed(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        entering = functional.normalize(inputs)
        if self.training and self.dropout is not None:
            entering = entering * self.dropout(entering)
        mean, log_variance = self.encoder(entering).chunk(2, dim=-1)
        code = mean
        if self.training:
            code = mean + self.noise(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1)
        return self.decoder(code), divergence

    def batch_loss(self, batch: Batch) -> Tensor:
        """The scalar loss of a batch of vectors ``(batch, items)`` and labels, which are unused."""
        return self._loss(batch[0], self.current_beta())

    def _loss(self, inputs: Tensor, beta: float | Tensor) -> Tensor:
        logits, divergence = self._reconstructed(inputs)
        likelihood = (functional.log_softmax(logits, dim=-1) * inputs).sum(dim=-1)
        return (beta * divergence - likelihood).mean()

    def current_beta(self) -> float | Tensor:
        """Beta after the steps so far; with annealing, their number is a buffer sent to clients."""
        if not self.anneal_steps:
            return self.beta
        return self.beta * (self.steps / self.anneal_steps).clamp(max=1.0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Counts the steps of the annealing, which the next round continues."""
        if self.anneal_steps:
            self.steps += 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One training step: the loss, with loss and, if it is annealed, beta logged."""
        loss = self.batch_loss(batch)
        values = {"train/loss": loss}
        if self.anneal_steps:
            values["train/beta"] = torch.as_tensor(self.current_beta())
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the ranking metrics of a batch of held-out users: given and hidden items."""
        self._log_ranking(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the ranking metrics of a batch of held-out users: given and hidden items."""
        self._log_ranking(batch, "test")

    def _log_ranking(self, batch: Batch, stage: str) -> None:
        ranked = (batch[1] > 0).any(dim=1)  # the metrics are undefined without hidden items
        given, hidden = batch[0][ranked], batch[1][ranked]
        if len(given):
            scores = mask_given_items(self(given), given)
            values = {
                f"{stage}/{name}": metric(scores, hidden, k).mean()
                for name, metric, k in RANKING_METRICS
            }
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(given))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of centralised training, without weight decay."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
