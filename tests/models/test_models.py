"""What every model owes to clients and attacks, and the sizes that the papers give."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedleak.errors import BadInput
from fedleak.models import (
    DMLP,
    SMLP,
    ImageClassifier,
    LeNet,
    LeNetR,
    Precode,
    VariationalBottleneck,
    inject,
    kl_penalty,
    noise_slots,
    record,
)
from fedleak.models.bottleneck import Bottleneck
from fedleak.updates.knowledge import Knowledge, batch_loss
from tests.cases import CLASSES, MODELS, ModelCase, case_victim
from tests.models.model_cases import OURS, batch_for
from tests.toys import OwnClassifier

every_model = pytest.mark.parametrize("case", MODELS, ids=str)
both = pytest.mark.parametrize("precode", [False, True], ids=["plain", "precode"])


@both
@every_model
def test_logits_and_loss(case: ModelCase, precode: bool) -> None:
    model = case.make(precode=precode)
    images, labels = batch_for(case)
    with record(model) as notes:
        assert model(images).shape == (5, CLASSES)
    if precode:
        kl_penalty(model)
    assert len(noise_slots(model)) == precode
    noise = {name: torch.randn_like(values[0]) for name, values in notes.items()}
    with inject(model, noise):
        logits = model(images)
        penalty = kl_penalty(model)
        loss = batch_loss(model, (images, labels))
    # Cross entropy by its definition, and the penalty that only a bottleneck adds.
    picked = logits.exp()[torch.arange(5), labels] / logits.exp().sum(dim=1)
    torch.testing.assert_close(loss, -picked.log().mean() + penalty)
    assert (penalty > 0) == precode


@both
@every_model
def test_made_the_same_every_time(case: ModelCase, precode: bool) -> None:
    one, two = (case.make(precode=precode).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@both
@every_model
def test_precode_adds_only_the_bottleneck(case: ModelCase, precode: bool) -> None:
    model = case.make(precode=precode)
    found = [m for m in model.modules() if isinstance(m, Bottleneck)]
    assert len(found) == precode
    if precode:
        size = 5
        plain = sum(value.numel() for value in case.make(precode=False).parameters())
        if isinstance(found[0], VariationalBottleneck):
            features = found[0].encoder.in_features
            more = features * 2 * size + 2 * size + size * features + features
        else:  # without biases
            weights = found[0].encoder.weight, found[0].decoder.weight
            channels, window = weights[0].shape[1], weights[0].shape[2:].numel()
            assert weights[1].shape[2:].numel() == window
            more = 3 * size * channels * window
        assert sum(value.numel() for value in model.parameters()) == plain + more


@both
@pytest.mark.parametrize("case", [case for case in OURS if not case.heavy], ids=str)
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_trains(case: ModelCase, precode: bool) -> None:
    """A Trainer brings the loss down on a batch that it sees again and again."""
    model = case.make(precode=precode, optimizer="adam", learning_rate=0.01)
    images, labels = batch_for(case)
    # Of many draws where the model draws noise.
    many = (images.repeat(100, 1, 1, 1), labels.repeat(100))
    torch.manual_seed(0)
    before = functional.cross_entropy(model(many[0]), many[1]).item()
    trainer = pl.Trainer(
        max_epochs=60, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=5))
    model.eval()
    after = functional.cross_entropy(model(many[0]), many[1]).item()
    assert after < 0.95 * before
    logged = {"train/loss", "train/accuracy"} | ({"train/kl"} if precode else set())
    assert logged <= set(trainer.callback_metrics)


# ------------------------------------------------------------------------------ the papers' sizes

# Worked out by hand from the layers; PRECODE with K = 256 on d features adds
# 512 d + 512 for the encoder and 256 d + d for the decoder.
COUNTS = [
    # 3072 x 1024 + 1024, 1024 x 1024 + 1024, 1024 x 10 + 10
    (SMLP, (3, 32, 32), 10, 3_146_752 + 1_049_600 + 10_250, 1024),
    (SMLP, (1, 64, 64), 6, 4_195_328 + 1_049_600 + 6_150, 1024),
    (DMLP, (3, 32, 32), 10, 3_146_752 + 3 * 1_049_600 + 10_250, 1024),
    # 3 x 12 x 25 + 12, twice 12 x 12 x 25 + 12, 768 x 10 + 10
    (LeNet, (3, 32, 32), 10, 912 + 2 * 3_612 + 7_690, 768),
    (LeNet, (1, 64, 64), 6, 312 + 2 * 3_612 + 18_438, 3072),
    (LeNetR, (3, 32, 32), 100, 912 + 2 * 3_612 + 76_900, 768),
]


@both
@pytest.mark.parametrize(("kind", "shape", "classes", "expected", "features"), COUNTS)
def test_number_of_parameters(
    kind: type[ImageClassifier],
    shape: tuple[int, int, int],
    classes: int,
    expected: int,
    features: int,
    precode: bool,
) -> None:
    with torch.device("meta"):
        model = kind(input_shape=shape, num_classes=classes, precode=Precode() if precode else None)
        images = torch.zeros(2, *shape)
    bottleneck = 512 * features + 512 + 256 * features + features
    found = sum(value.numel() for value in model.parameters())
    assert found == expected + (bottleneck if precode else 0)
    assert model.features(images).shape == (2, features)
    assert model.classifier.in_features == features


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (3, 33, 31)])
def test_any_shape_of_images(shape: tuple[int, int, int]) -> None:
    for kind in (SMLP, LeNet):
        with torch.device("meta"):
            model = kind(input_shape=shape, num_classes=3)
            assert model(torch.zeros(2, *shape)).shape == (2, 3)


# ------------------------------------------------------------------------------- a user's module


def test_the_loss_of_a_users_module_is_its_training_step() -> None:
    model = OwnClassifier(input_shape=(1, 4, 4), num_classes=3)
    images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 2])
    expected = functional.cross_entropy(model(images), labels)
    torch.testing.assert_close(batch_loss(model, (images, labels)), expected)


class Bare(nn.Module):
    """Has a loss of its own and no Lightning about it."""

    def batch_loss(self, batch: Any) -> Any:
        return batch


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "loss of Bare to be a scalar tensor, got NoneType"),
        (1.5, "loss of Bare to be a scalar tensor, got float"),
        (torch.ones(2), "loss of Bare to be a scalar tensor, got Tensor"),
        ({"loss": torch.ones(1)}, "loss of Bare to be a scalar tensor, got Tensor"),
    ],
)
def test_invalid_losses(result: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        batch_loss(Bare(), result)


def test_batch_loss_takes_precedence_over_training_step() -> None:
    class Both(Bare):
        def training_step(self, batch: Any, index: int) -> Any:
            pytest.fail("batch_loss is there")

    assert batch_loss(Both(), torch.tensor(2.0)) == 2
    assert batch_loss(Both(), {"loss": torch.tensor(3.0)}) == 3


def test_module_without_a_loss() -> None:
    with pytest.raises(BadInput, match=r"Linear to have `batch_loss.* got a module with neither"):
        batch_loss(nn.Linear(1, 1), None)


def test_a_module_that_optimises_by_hand_needs_a_batch_loss() -> None:
    """Its training step makes steps and returns no loss."""

    class ByHand(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError("a step was made")

    with pytest.raises(BadInput, match=r"ByHand to have `batch_loss.* as it optimises by hand"):
        batch_loss(ByHand(), None)
    with_loss = ByHand()
    with_loss.batch_loss = lambda batch: torch.ones(())
    assert batch_loss(with_loss, None) == 1


def test_knowledge_asks_the_model_by_default() -> None:
    victim = case_victim(OURS[0], precode=False)
    knowledge = Knowledge(victim.model, OURS[0].shape, CLASSES)
    batch = (victim.truth.inputs, victim.truth.labels)
    assert torch.equal(knowledge.loss(victim.model, batch), victim.model.batch_loss(batch))
