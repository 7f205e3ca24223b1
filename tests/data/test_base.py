"""The loaders that every data set has."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from fedleak.errors import BadInput
from tests.data.toy_images import Toy, image_set


def test_loaders() -> None:
    data = Toy(train=image_set(50), batch_size=8)
    batches = list(data.test_dataloader())
    assert [len(y) for _, y in batches] == [5]
    assert torch.equal(batches[0][0], data.test_set.batch(range(5))[0])
    torch.manual_seed(3)
    first = [y.tolist() for _, y in data.train_dataloader()]
    torch.manual_seed(3)
    again = [y.tolist() for _, y in data.train_dataloader()]
    assert [len(y) for y in first] == [8] * 6 + [2]
    assert first == again
    in_order = [label for batch in first for label in batch]
    assert in_order != data.train_set.labels.tolist()
    assert sorted(in_order) == sorted(data.train_set.labels.tolist())


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_checked(batch_size: int) -> None:
    with pytest.raises(BadInput, match=f"`batch_size` to be at least 1, got {batch_size}"):
        Toy(batch_size=batch_size)


def test_lightning_trains_on_it() -> None:
    seen: dict[str, list[int]] = {"train": [], "val": []}

    class Line(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(60, 3)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            seen["train"] += batch[1].tolist()
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            seen["val"] += batch[1].tolist()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = Toy()
    trainer.fit(Line(), datamodule=data)
    assert sorted(seen["train"]) == sorted(data.train_set.labels.tolist())
    assert seen["val"] == data.test_set.labels.tolist()
