"""Attention, metrics and modes: models as people have them are attacked, and left as they were."""

import copy
import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from fedleak.attacks import IGA
from fedleak.attacks.matching import engine
from fedleak.attacks.private_model import metrics_of, quieten_metrics, twice_differentiable
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate
from tests.cases import pictures

# A few iterations find what takes hundreds of Adam's.
LBFGS: dict[str, Any] = {"optimizer": "lbfgs", "learning_rate": 1.0, "signed": False}


def loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def update_of(model: nn.Module, batch: Any, compute: Any = loss, client: int = 0) -> Any:
    """The gradient by torch's own backward pass on a copy in the model's modes."""
    own = copy.deepcopy(model)
    compute(own, batch).backward()
    received = {name: value.grad for name, value in own.named_parameters()}
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    return InterceptedUpdate(1, client, "fedsgd", len(batch[1]), "net", sent, received)


# -------------------------------------------------------------------------------- attention


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).view(h.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        h = h + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(h.mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        return self.out(self.mix(h, h, h, need_weights=False)[0].mean(1))


def vit() -> nn.Module:
    net = VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(net.heads.head.weight, std=0.05)  # torchvision's zeros hide what is before
    return net


# In eval mode, torch's own modules have a fast path.
@pytest.mark.parametrize(
    ("make", "train"),
    [(Fused, True), (Encoder, True), (Encoder, False), (Multihead, False), (vit, False)],
)
def test_attention_is_matched(make: Any, train: bool) -> None:
    torch.manual_seed(0)
    model = make().train(train)
    batch = pictures(2, (3, 8, 8)).float(), torch.tensor([3, 5])
    fast = torch.backends.mha.get_fastpath_enabled()
    updates = [update_of(model, [part[k : k + 1] for part in batch], client=k) for k in (0, 1)]
    known = [Knowledge(model, (3, 8, 8), 10, labels=batch[1][k : k + 1], loss=loss) for k in (0, 1)]
    together = IGA(iterations=15, compile="off", learning_rate=0.1)(updates, known)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    for found in together:
        assert all(text.startswith(("not supported", "not settled")) for text in found.findings)
        assert found.cost < 0.5 * found.costs[0][1]


def test_attention_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TRACE_FROM", 1)
    torch.manual_seed(0)
    model, batch = Fused(), (pictures(1, (3, 8, 8)).float(), torch.tensor([3]))
    update = update_of(model, batch)
    known = Knowledge(model, (3, 8, 8), 10, labels=batch[1], loss=loss)
    settings = {"iterations": 120, "learning_rate": 0.08, "total_variation": 0.0}
    (traced,) = IGA(**settings)([update], known)
    assert traced.cost < 0.05 * traced.costs[0][1]
    assert traced.explained > 0.5


# ---------------------------------------------------------------------------------- metrics


class Base(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4))
        self.net = nn.Sequential(*layers)
        self.best = 1e9

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = functional.cross_entropy(logits, batch[1])
        return self.extra(logits, batch[1], loss)

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        return loss


class Accuracy(Base):
    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.Accuracy(task="multiclass", num_classes=4)

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        self.metric(logits, labels)
        self.log("accuracy", self.metric, on_step=True, on_epoch=True)
        return loss


class Mean(Base):
    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.MeanMetric()

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        self.metric(loss)
        return loss


class Collection(Base):
    def __init__(self) -> None:
        super().__init__()
        kinds = (torchmetrics.Accuracy, torchmetrics.F1Score)
        self.metric = torchmetrics.MetricCollection(
            [kind(task="multiclass", num_classes=4) for kind in kinds]
        )

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        self.log_dict(self.metric(logits, labels))
        return loss


class Unregistered(Base):
    """Metrics in a dictionary that torch does not see, updated and not called."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"auroc": torchmetrics.AUROC(task="multiclass", num_classes=4)}
        self.metric = self.metrics["auroc"]

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        self.metrics["auroc"].update(logits, labels)
        return loss


class Best(Base):
    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        self.best = min(self.best, loss.item())
        return loss


class Trained(Base):
    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        if self.trainer.global_step % 10 == 0:
            self.log("rate", self.optimizers().param_groups[0]["lr"])
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "traced"),
    [
        *((kind, False) for kind in (Accuracy, Mean, Collection, Unregistered, Best, Trained)),
        (Accuracy, True),
    ],
)
def test_what_a_training_step_leaves_hinders_no_attack(
    kind: type[Base], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TRACE_FROM", 1 if traced else math.inf)
    torch.manual_seed(0)
    model, shape = kind(), (1, 4, 4)
    inputs, labels = torch.rand(3, *shape), torch.tensor([0, 2, 3])

    def plain(own: Any, batch: Any) -> Tensor:
        return functional.cross_entropy(own.net(batch[0]), batch[1])

    batches = [(inputs[k : k + 1], labels[k : k + 1]) for k in range(3)]
    updates = [update_of(model, batch, plain, k) for k, batch in enumerate(batches)]
    known = [Knowledge(model, shape, 4, labels=batch[1]) for batch in batches]
    metric = getattr(model, "metric", None)
    attack = IGA(**LBFGS, iterations=6, total_variation=0.0)
    alone = attack(updates[:1], known[:1])
    for found, truth in zip([*alone, *attack(updates, known)], inputs[[0, 0, 1, 2]], strict=True):
        assert (found.inputs[0] - truth).square().mean() < 1e-2
        assert found.explained > 0.9
    assert model.best == 1e9
    if isinstance(metric, torchmetrics.Metric):
        assert metric._update_count == 0
        assert type(metric).__module__.startswith("torchmetrics")
    assert model._trainer is None


class Similarity(Base):
    """A metric that is the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.MeanSquaredError()

    def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
        return loss + self.metric(logits, functional.one_hot(labels, 4).float())


@pytest.mark.parametrize(("kind", "expected"), [(Similarity, 1), (Accuracy, 0), (Mean, 0)])
def test_a_metric_that_the_loss_depends_on_stays(kind: type[Base], expected: int) -> None:
    model = private_copy(kind())
    facts = Knowledge(model, (1, 4, 4), 4, num_samples=2)
    batch = torch.rand(2, 1, 4, 4), torch.tensor([1, 2])
    before = batch_loss(private_copy(model), batch)
    assert len(metrics_of(model)) == 1
    quieten_metrics(model, facts)
    assert len(metrics_of(model)) == expected
    again = copy.deepcopy(model)
    assert torch.equal(batch_loss(again, batch), before)


def test_a_loss_that_is_a_metric_is_matched() -> None:
    torch.manual_seed(0)
    model, batch = Similarity(), (torch.rand(1, 1, 4, 4), torch.tensor([2]))
    update = update_of(model, batch, batch_loss)
    attack = IGA(iterations=100, learning_rate=0.05, total_variation=0.0)
    (found,) = attack([update], Knowledge(model, (1, 4, 4), 4, labels=batch[1]))
    assert found.explained > 0.9


# ------------------------------------------------------------------------------------ modes


class Mixed(nn.Module):
    def __init__(self, override: bool) -> None:
        super().__init__()
        self.back = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Sigmoid())
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 10)
        self.override = override
        self.back[1].running_mean.normal_(std=0.3)
        self.back[1].running_var.uniform_(0.2, 0.6)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.override:
            self.back.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.back(x)).flatten(1))


@pytest.mark.parametrize(("override", "training"), [(True, True), (True, None), (False, None)])
def test_modes_module_by_module(override: bool, training: bool | None) -> None:
    torch.manual_seed(0)
    model = Mixed(override).train()
    model.back.eval()
    batch = pictures(1, (3, 8, 8)).float(), torch.tensor([3])
    known = Knowledge(model, (3, 8, 8), 10, labels=batch[1], training=training, loss=loss)
    (found,) = IGA(**LBFGS, iterations=14)([update_of(model, batch)], known)
    assert (found.inputs - batch[0]).square().mean() < 1e-2
    assert found.explained > 0.95
    assert found.findings == ()
    assert not model.back.training
    assert model.norm.training


@pytest.mark.parametrize("training", [True, False])
def test_one_mode_told_of_a_model_in_several(training: bool) -> None:
    torch.manual_seed(0)
    model = Mixed(False).train()
    model.back.eval()
    batch = pictures(1, (3, 8, 8)).float(), torch.tensor([3])
    known = Knowledge(model, (3, 8, 8), 10, labels=batch[1], training=training, loss=loss)
    (found,) = IGA(iterations=2)([update_of(model, batch)], known)
    assert "while `back` of the model is not in the mode of the whole" in found.findings[0]


# ------------------------------------------------------------------------------------ errors


def test_whatever_a_model_raises_is_a_sentence() -> None:
    class Broken(Base):
        def extra(self, logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
            raise KeyError("class_weights")

    model = Broken()
    batch = torch.rand(1, 1, 4, 4), torch.tensor([2])
    update = update_of(model, batch, lambda own, _: own.net(batch[0]).sum())
    with pytest.raises(BadInput, match=r"Broken fails on them: 'class_weights'"):
        IGA(iterations=1)([update], Knowledge(model, (1, 4, 4), 4, labels=batch[1]))


@pytest.mark.parametrize(("inside", "where"), [(False, "the model itself"), (True, "`0`")])
def test_a_module_of_torchscript_is_refused_in_a_sentence(inside: bool, where: str) -> None:
    traced = torch.jit.trace(nn.Linear(6, 3), torch.zeros(1, 6))
    model = nn.Sequential(traced) if inside else traced
    sent = dict(model.state_dict())
    received = {name: torch.ones_like(value) for name, value in sent.items()}
    update = InterceptedUpdate(1, 0, "fedsgd", 1, "net", sent, received)
    with pytest.raises(BadInput, match=f"got {where} compiled by TorchScript: give the one"):
        IGA(iterations=1)([update], Knowledge(model, (6,), 3, num_samples=1))


def test_a_function_that_the_model_compiles_is_run_by_python() -> None:
    def refusing(*_args: Any) -> Any:
        raise AssertionError("it was compiled")

    with twice_differentiable([nn.Linear(1, 1)]):
        double = torch.compile(lambda x: 2 * x, backend=refusing)
        assert double(torch.ones(1)) == 2
