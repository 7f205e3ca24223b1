"""What public bug reports and questions wanted to do, in small, each with the right value.

The updates are made by torch's own optimisers, or by Lightning's own fit; the first line of each
test names the report. Other tests hold the same kinds in general.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from skimage import data as pictures
from skimage.transform import resize
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from fedleak import (
    DLG,
    IGA,
    RGAP,
    Analytic,
    Attack,
    BadInput,
    InterceptedUpdate,
    Knowledge,
    LocalTraining,
    Reconstruction,
    Rows,
    Tokens,
    check,
)  # fmt: skip
from fedleak.attacks.explained import SUPPORTED_FROM
from fedleak.federation import MaliciousStrategy
from fedleak.metrics import ssim
from tests.federation.fakes import FakeGrid

Loss = Callable[[nn.Module, Any], Tensor]

slow = pytest.mark.slow
Make = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def photo(size: int = 16) -> Tensor:
    """One image ``(1, 3, size, size)``."""
    image = resize(pictures.astronaut()[0:200, 120:320], (size, size))
    return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]


def conv_net(outputs: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(12 * 64, outputs),
    )  # fmt: skip


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained(
    net: nn.Module, batches: Iterable[Any], make: Make, loss: Loss = cross_entropy
) -> nn.Module:
    """A copy that torch's own optimiser trained, a step for each batch."""
    own = copy.deepcopy(net)
    optimizer = make([p for p in own.parameters() if p.requires_grad])
    for batch in batches:
        optimizer.zero_grad()
        loss(own, batch).backward()
        optimizer.step()
    return own


def gradient(net: nn.Module, batch: Any, loss: Loss = cross_entropy) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss(net, batch), list(net.parameters()), allow_unused=True))


def mse(found: Reconstruction, inputs: Tensor) -> float:
    """Of each sample the nearest reconstruction; mean over samples."""
    apart = (found.inputs[:, None] - inputs[None]).square().flatten(2).mean(2)
    return float(apart.amin(0).mean())


def attempt(
    attack: Attack, update: InterceptedUpdate, known: Knowledge
) -> tuple[Reconstruction | None, str]:
    """The reconstruction, or None and the sentence with which the attack refuses."""
    try:
        (found,) = attack([update], known)
    except BadInput as error:
        return None, str(error)
    return found, ""


def supported(found: Reconstruction) -> bool:
    return not found.explained < SUPPORTED_FROM


# ------------------------------------------------------------------------ 01: rows of a table


@pytest.mark.parametrize("labels_known", [pytest.param(True, marks=slow), False])
@pytest.mark.parametrize(
    ("attack", "below"),
    [(Analytic(), 1e-5), (RGAP(nra_iterations=40), 1e-5), (IGA(iterations=1500), 1e-2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_tabular_regression(attack: Attack, below: float, labels_known: bool) -> None:
    """mit-han-lab/dlg#10: 14 standardised columns, MSE on one float target."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 1))
    x, y = torch.randn(1, 14), torch.randn(1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1])

    update = InterceptedUpdate.of(net, gradient=gradient(net, (x, y), loss))
    known = Knowledge(net, (14,), 1, labels=y if labels_known else None, loss=loss)
    (found,) = attack([update], known)
    assert float((found.inputs - x).norm() / x.norm()) < below
    assert float((found.labels - y).abs()) < 0.02
    assert supported(found)


# ------------------------------------------------------------------------------- 03: deltas

DELTA = {"learning_rate": 0.01, "local_steps": 3, "batch_size": 1}


def three_steps() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    net, x, y = conv_net(), photo(), torch.tensor([3])
    new = state(trained(net, [(x, y)] * 3, lambda p: optim.SGD(p, 0.01)))
    return net, new, {name: new[name] - value for name, value in state(net).items()}, x, y


@pytest.mark.parametrize("labels_known", [pytest.param(True, marks=slow), False])
def test_a_delta_is_worth_as_much_as_weights(labels_known: bool) -> None:
    """FedML#156, plato#369, NVFlare's DIFF: clients send new minus old weights."""
    net, new, delta, x, y = three_steps()
    found = {}
    for kind, received in (("weights", new), ("delta", delta)):
        update = InterceptedUpdate.of(net, **{kind: received})
        known = Knowledge(
            net, (3, 16, 16), 10, labels=y if labels_known else None, protocol=update.protocol,
            loss=cross_entropy, **DELTA,
        )  # fmt: skip
        (found[kind],) = IGA(iterations=300)([update], known)
    assert found["delta"].labels.tolist() == [3]
    assert mse(found["delta"], x) < 1e-2
    assert mse(found["delta"], x) < 1.5 * mse(found["weights"], x) + 1e-4
    assert supported(found["delta"])


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("weights", "delta"), ("delta", "weights"), ("gradient", "weights"),
        ("weights", "gradient"),
    ],
)  # fmt: skip
def test_one_kind_of_update_told_as_another(told: str, given: str) -> None:
    """The same reports: what came is not what was told."""
    net, new, delta, x, y = three_steps()
    grads = dict(zip(delta, gradient(net, (x, y)), strict=True))
    update = InterceptedUpdate.of(
        net, **{told: {"weights": new, "delta": delta, "gradient": grads}[given]}
    )
    known = Knowledge(
        net, (3, 16, 16), 10, protocol=update.protocol, loss=cross_entropy, num_samples=1,
        **({} if told == "gradient" else DELTA),
    )  # fmt: skip
    assert check(net, update, known)


@pytest.mark.parametrize("labels_known", [True, False])
def test_a_delta_told_as_a_gradient(labels_known: bool) -> None:
    """The same reports: with the sign of a descent, which no gradient of the loss has."""
    net, _, delta, _, y = three_steps()
    update = InterceptedUpdate.of(net, gradient=delta)
    labels = y if labels_known else None
    known = Knowledge(net, (3, 16, 16), 10, labels=labels, num_samples=1, loss=cross_entropy)
    (found,) = IGA(iterations=50)([update], known)
    assert check(net, update, known) or found.findings
    assert not supported(found) or check(net, update, known)


def test_an_unknown_protocol_is_refused_with_the_list() -> None:
    """The same reports: what clients send had another name."""
    with pytest.raises(BadInput, match=r"delta, fedavg, fedsgd"):
        Knowledge(conv_net(), (3, 16, 16), 10, protocol="difference")  # type: ignore[arg-type]
    net = conv_net()
    update = InterceptedUpdate(1, 0, "difference", 1, "net", state(net), state(net))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"protocol"):
        IGA(iterations=1)([update], Knowledge(net, (3, 16, 16), 10, loss=cross_entropy))


# ---------------------------------------------------------------- 06, 07: replies of Flower apps


def flower_app(
    model: nn.Module, pack: Callable[[nn.Module, int], RecordDict]
) -> Callable[[Message], Message]:
    """A client of the Message API: two samples of its own, one step of SGD."""

    def client(message: Message) -> Message:
        node = message.metadata.dst_node_id
        own = copy.deepcopy(model)
        arrays = message.content["arrays"].to_numpy_ndarrays()
        own.load_state_dict(
            {name: torch.from_numpy(v) for name, v in zip(own.state_dict(), arrays, strict=True)}
        )
        after = trained(own, [samples(node)], lambda p: optim.SGD(p, 0.1))
        return Message(pack(after, node), reply_to=message)

    return client


def samples(node: int, number: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(node)
    return torch.rand(number, 1, 8, 8, generator=generator), torch.arange(number)


def as_list(model: nn.Module) -> ArrayRecord:
    return ArrayRecord([value.numpy() for value in state(model).values()])


@pytest.mark.parametrize("names", [True, False])
def test_arrays_with_and_without_names_of_a_model_with_batch_norm(names: bool) -> None:
    """flwrlabs/flower#4344 and #611: lists of arrays, in the order of the state_dict."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )

    def pack(after: nn.Module, node: int) -> RecordDict:
        arrays = ArrayRecord(state(after)) if names else as_list(after)
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 2})})

    known = Knowledge(
        net, (1, 8, 8), 5, num_samples=2, protocol="fedavg", learning_rate=0.1, loss=cross_entropy
    )
    strategy = MaliciousStrategy(
        FedAvg(fraction_evaluate=0.0), attacks=[IGA(iterations=5)], knowledge=known
    )
    start = ArrayRecord(state(net)) if names else as_list(net)
    strategy.start(FakeGrid([1, 2], flower_app(net, pack)), start, num_rounds=1)
    assert strategy.failures == 0
    assert len(strategy.intercepted) == len(strategy.reconstructions) == 2
    for _, _, found in strategy.reconstructions:
        assert sorted(found.labels.tolist()) == [0, 1]


@pytest.mark.parametrize(("key", "reported"), [("num_samples", 4), ("n", 1), ("num-examples", 500)])
def test_another_key_or_a_number_that_is_not_that_of_the_samples(key: str, reported: int) -> None:
    """Flower's weighted_by_key and flower PR#617: a constant in place of the number of examples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Sigmoid(), nn.Linear(48, 5))

    def pack(after: nn.Module, node: int) -> RecordDict:
        content = {"arrays": ArrayRecord(state(after)), "metrics": MetricRecord({key: reported})}
        return RecordDict(content)

    def client(message: Message) -> Message:
        own = copy.deepcopy(net)
        own.load_state_dict(message.content["arrays"].to_torch_state_dict())
        batch = samples(message.metadata.dst_node_id, 4)
        after = trained(own, [batch], lambda p: optim.SGD(p, 0.1))
        return Message(pack(after, 0), reply_to=message)

    known = Knowledge(
        net, (1, 8, 8), 5, num_samples=4, protocol="fedavg", learning_rate=0.1, local_steps=1,
        batch_size=4, loss=cross_entropy,
    )  # fmt: skip
    strategy = MaliciousStrategy(
        FedAvg(fraction_evaluate=0.0, weighted_by_key=key), attacks=[IGA(iterations=5)],
        knowledge=known,
    )  # fmt: skip
    strategy.start(FakeGrid([1, 2], client), ArrayRecord(state(net)), num_rounds=1)
    assert len(strategy.reconstructions) == 2
    for _, _, found in strategy.reconstructions:
        assert found.inputs.shape == (4, 1, 8, 8)
        assert sorted(found.labels.tolist()) == [0, 1, 2, 3]
        said = [text for text in found.findings if str(reported) in text]
        assert bool(said) == (reported != 4)


# ------------------------------------------------------------- 08: Flower's quickstart, Lightning


class Autoencoder(pl.LightningModule):
    """Of 28x28 digits; the labels are not used."""

    def __init__(self, adam: bool):
        super().__init__()
        self.down = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 3))
        self.up = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 784))
        self.adam = adam

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        flat = batch[0].flatten(1)
        loss = F.mse_loss(self.up(self.down(flat)), flat)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> optim.Optimizer:
        kind = optim.Adam if self.adam else optim.SGD
        return kind(self.parameters(), 1e-3)


@pytest.mark.parametrize("number", [1, pytest.param(8, marks=slow)])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    "attack", [Analytic(), RGAP(nra_iterations=40), IGA(iterations=300)], ids=lambda a: a.name
)
def test_the_quickstart_with_lightning(attack: Attack, adam: bool, number: int) -> None:
    """flower examples/quickstart-pytorch-lightning: an autoencoder, MSE, Adam, Lightning's fit."""
    torch.manual_seed(0)
    net = Autoencoder(adam)
    image = resize(pictures.camera()[100:212, 170:282], (28, 28))
    x = torch.tensor(image, dtype=torch.float32)[None, None]
    batch = torch.cat([x, torch.rand(number - 1, 1, 28, 28)])
    data = torch.utils.data.TensorDataset(batch, torch.zeros(number, dtype=torch.long))
    own = copy.deepcopy(net)
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(own, torch.utils.data.DataLoader(data, batch_size=32))  # fmt: skip
    update = InterceptedUpdate.of(net, weights=state(own), num_examples=number)
    known = Knowledge(
        net, (1, 28, 28), num_samples=number, protocol="fedavg",
        labels=torch.zeros(number, dtype=torch.long),
        local_training=LocalTraining(
            optimizer="adam" if adam else "sgd", learning_rate=1e-3, batch_size=32
        ),
    )  # fmt: skip
    found, _ = attempt(attack, update, known)
    if found is None:
        assert number > 1
        return
    error = min(float((row - x[0]).square().mean()) for row in found.inputs)
    assert error < 1e-3 or not supported(found) or found.findings
    if number == 1 and not adam:
        assert error < 1e-3


# ------------------------------------------------------------------- 09: Adam, one logit with BCE


def one_logit(model: nn.Module, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1].to(batch[0]))


@slow
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_one_step_of_adam_on_an_image(kind: str) -> None:
    """tensorflow/federated#3072, distributed-learning-contributivity#345."""
    net, x, y = conv_net(2), photo(), torch.tensor([1])
    make = {"adam": optim.Adam, "adamw": optim.AdamW}[kind]
    own = trained(net, [(x, y)], lambda p: make(p, 1e-3))
    update = InterceptedUpdate.of(net, weights=state(own))
    known = Knowledge(
        net, (3, 16, 16), 2, protocol="fedavg", loss=cross_entropy, num_samples=1,
        local_training=LocalTraining(
            optimizer=kind, learning_rate=1e-3, weight_decay=0.01 if kind == "adamw" else 0.0
        ),
    )  # fmt: skip
    (found,) = IGA(iterations=800)([update], known)
    assert found.labels.tolist() == [1]
    assert float(ssim(found.inputs, x)) > 0.6


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("target", [0, 1])
def test_the_label_of_one_logit(target: int, kind: str) -> None:
    """The same: a binary task with one logit; the label is the gradient's sign."""
    net, x, y = conv_net(1), photo(), torch.tensor([target])
    make: Make = {"adam": lambda p: optim.Adam(p, 1e-3), "sgd": lambda p: optim.SGD(p, 0.1)}[kind]
    own = trained(net, [(x, y)], make, one_logit)
    update = InterceptedUpdate.of(net, weights=state(own))
    facts = LocalTraining(optimizer=kind, learning_rate=1e-3 if kind == "adam" else 0.1)
    for classes in (None, 1, 2):
        known = Knowledge(
            net, (3, 16, 16), classes, protocol="fedavg", num_samples=1, loss=one_logit,
            local_training=facts,
        )  # fmt: skip
        (found,) = IGA(iterations=5)([update], known)
        assert found.labels.flatten().tolist() == [target]


# ------------------------------------------------------------------ 10: momentum and weight decay


@pytest.mark.parametrize(
    ("steps", "before", "settings"),
    [
        pytest.param(1, 0, {}, marks=slow), pytest.param(1, 0, {"momentum": 0.9}, marks=slow),
        pytest.param(3, 0, {"momentum": 0.9}, marks=slow),
        (1, 0, {"weight_decay": 1e-2}), (1, 40, {"weight_decay": 5e-4}),
        (1, 40, {"weight_decay": 1e-2}),
    ],
)  # fmt: skip
def test_momentum_and_weight_decay(steps: int, before: int, settings: dict[str, float]) -> None:
    """FedML#106; also of a model that knows the class, where decay outweighs the gradient."""
    net, x, y = conv_net(), photo(), torch.tensor([1])
    taught = [(x.roll(2, 3) * 0.9, y)] * before
    net.load_state_dict(state(trained(net, taught, lambda p: optim.SGD(p, 0.005))))
    own = trained(net, [(x, y)] * steps, lambda p: optim.SGD(p, 0.05, **settings))
    update = InterceptedUpdate.of(net, weights=state(own))
    known = Knowledge(
        net, (3, 16, 16), 10, protocol="fedavg", loss=cross_entropy, num_samples=1,
        local_training=LocalTraining(learning_rate=0.05, steps=steps, batch_size=1, **settings),
    )  # fmt: skip
    (found,) = IGA(iterations=600 if before else 300)([update], known)
    assert found.labels.tolist() == [1]
    assert mse(found, x) < 1e-3
    assert supported(found)


# -------------------------------------------------------------------------------- 12: attention


class Fused(nn.Module):
    """Patches, their places and one layer of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        h = self.patch(images).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(h).view(h.shape[0], 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(h.mean(1))


class Encoder(nn.Module):
    """Patches and torch's TransformerEncoder."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.body(self.patch(images).flatten(2).transpose(1, 2)).mean(1))


def vision_transformer() -> nn.Module:
    net = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(net.heads.head.weight, std=0.05)
    return net


@pytest.mark.parametrize(
    ("make", "train", "attack"),
    [
        (Fused, True, IGA(iterations=40)),
        (Fused, True, DLG(iterations=2)),
        pytest.param(Fused, True, RGAP(nra_iterations=40), marks=slow),
        (Encoder, True, IGA(iterations=40)),
        (lambda: Encoder(0.1), False, IGA(iterations=10)),
        (lambda: Encoder(0.1), True, IGA(iterations=10)),
        (vision_transformer, True, IGA(iterations=10)),
        (vision_transformer, False, IGA(iterations=10)),
    ],
)
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=slow)])
def test_attention_runs(
    make: Callable[[], nn.Module], train: bool, attack: Attack, number: int
) -> None:
    """pytorch#116350 and #181177, plato#377: no second derivative of fused attention."""
    torch.manual_seed(0)
    net = make().train(train)
    x, y = torch.cat([photo(), photo().flip(3)])[:number], torch.tensor([3, 5])[:number]
    update = InterceptedUpdate.of(net, gradient=gradient(net, (x, y)), num_examples=number)
    known = Knowledge(
        net, (3, 16, 16), 10, num_samples=number, labels=y, training=train, loss=cross_entropy
    )
    (found,) = attack([update], known)
    assert found.inputs.shape == x.shape
    assert bool(found.inputs.isfinite().all())


# ------------------------------------------------------------------------------ 16: torchmetrics


class Measured(pl.LightningModule):
    """A metric inside ``training_step``, as Lightning's guide has it."""

    metrics: ClassVar[dict[str, Callable[[], Any]]] = {
        "accuracy": lambda: torchmetrics.Accuracy(task="multiclass", num_classes=4),
        "mean": torchmetrics.MeanMetric,
        "auroc": lambda: torchmetrics.AUROC(task="multiclass", num_classes=4),
    }

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 4))
        self.metric, self.name, self.best = self.metrics[metric](), metric, 1e9

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        if self.name == "mean":
            self.metric(loss)
        else:
            self.metric(logits, batch[1])
            self.log("metric", self.metric, on_step=True, on_epoch=True)
        self.best = min(self.best, loss.item())
        return loss


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=slow)])
@pytest.mark.parametrize("metric", sorted(Measured.metrics))
def test_a_metric_in_the_training_step(metric: str, number: int) -> None:
    """torchmetrics#1993, functorch#1025: it runs, and leaves the metric's state as it was."""
    torch.manual_seed(0)
    net = Measured(metric)
    x, y = torch.rand(number, 1, 8, 8), torch.tensor([0, 2, 3])[:number]

    def own(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net.net(batch[0]), batch[1])

    updates = [
        InterceptedUpdate.of(
            net, gradient=gradient(net, (x[k : k + 1], y[k : k + 1]), own), client=k
        )
        for k in range(number)
    ]
    before = copy.deepcopy(net.metric.state_dict() | net.metric.metric_state)
    known = [Knowledge(net, (1, 8, 8), 4, labels=y[k : k + 1]) for k in range(number)]
    found = IGA(iterations=300)(updates, known)
    for k, result in enumerate(found):
        assert mse(result, x[k : k + 1]) < 1e-2
    after = net.metric.state_dict() | net.metric.metric_state
    assert str(after) == str(before)
    assert net.best == 1e9


# ------------------------------------------------------------------------------------- 21: text


class Language(nn.Module):
    """The next token; the embeddings of input and output are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, 16), nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(tokens))[0])


class Bag(nn.Module):
    """A classifier of the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = (
            nn.Embedding(50, 16),
            nn.Linear(16, 32),
            nn.Linear(32, 4),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.embed(tokens))).mean(1))


TOKENS = torch.tensor([[7, 3, 44, 3, 12]])


def test_tokens_of_a_classifier() -> None:
    """FILM#3: the set of tokens from the embedding's gradient, exactly; the sequence by search."""
    torch.manual_seed(0)
    net, y = Bag(), torch.tensor([2])
    update = InterceptedUpdate.of(net, gradient=gradient(net, (TOKENS, y)))
    known = Knowledge(net, (5,), 4, labels=y, loss=cross_entropy)
    (found,) = Rows()([update], known)
    assert found.rows["embed"].tolist() == [3, 7, 12, 44]
    (searched,) = Tokens(iterations=60)([update], known)
    # A mean over the sequence does not tell the order.
    assert sorted(searched.inputs.flatten().tolist()) == sorted(TOKENS.flatten().tolist())


@slow
def test_tokens_of_a_language_model() -> None:
    """FILM#3: tied embeddings, the loss is that of the next token, there are no labels."""
    torch.manual_seed(0)
    net = Language()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    update = InterceptedUpdate.of(net, gradient=gradient(net, (TOKENS, None), loss))
    known = Knowledge(net, (5,), 50, labels=torch.zeros(1, dtype=torch.long), loss=loss)
    for attack in (Rows(), Tokens(iterations=60), IGA(iterations=2)):
        found, refusal = attempt(attack, update, known)
        if found is None:
            assert refusal.endswith(".")
            assert "\n" not in refusal
        else:
            right = set(found.inputs.flatten().tolist()) == set(TOKENS.flatten().tolist())
            assert right or found.findings


# ------------------------------------------------------------------------------------- 22: LoRA


class Adapted(nn.Module):
    """A frozen linear layer with an adapter of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.b.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.b(self.a(x))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("adapters", marks=slow), pytest.param("all", marks=slow), "forgotten",
        "label unknown",
    ],
)  # fmt: skip
def test_adapters(form: str) -> None:
    """adapter-hub/adapters#756: only the adapters move; what did not is left out, and said."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), Adapted(nn.Linear(64, 64)), nn.GELU(), Adapted(nn.Linear(64, 64)), nn.GELU(),
        Adapted(nn.Linear(64, 10)),
    )  # fmt: skip
    x, y = torch.rand(1, 1, 8, 8), torch.tensor([4])
    new = state(trained(net, [(x, y)], lambda p: optim.SGD(p, 0.1)))
    if form == "adapters":
        new = {name: value for name, value in new.items() if ".base." not in name}
    if form == "forgotten":
        net.requires_grad_(True)
    update = InterceptedUpdate.of(net, weights=new)
    known = Knowledge(
        net, (1, 8, 8), 10, protocol="fedavg", learning_rate=0.1, loss=cross_entropy,
        labels=None if form == "label unknown" else y,
    )  # fmt: skip
    if form == "label unknown":
        # No layer that was sent has a bias, whose gradient would tell the label.
        with pytest.raises(BadInput, match=r"Expected a linear layer with bias"):
            IGA(iterations=1)([update], known)
        return
    (found,) = IGA(iterations=800)([update], known)
    assert mse(found, x) < 1e-2
    assert supported(found)
    if form == "forgotten":
        assert any("did not move" in text or "frozen" in text for text in found.findings)


# --------------------------------------------------------- 24: a notebook's gradients, and files


class Net(nn.Module):
    """Two layers, and one that the loss does not use."""

    def __init__(self, spare: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 4)
        self.spare = nn.Linear(3, 3) if spare else None

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x.flatten(1))))


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda net: [p.grad for p in net.parameters()],
    "tuple": lambda net: tuple(p.grad for p in net.parameters()),
    "dict": lambda net: {name: p.grad for name, p in net.named_parameters()},
    "numpy": lambda net: {
        name: None if p.grad is None else p.grad.numpy() for name, p in net.named_parameters()
    },
    "without None": lambda net: {
        name: p.grad for name, p in net.named_parameters() if p.grad is not None
    },
}


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_notebooks_gradients(form: str, spare: bool) -> None:
    """PFLlib#161, dlg#10: p.grad of every parameter, None where one is unused; labels as a list."""
    torch.manual_seed(0)
    net, x, y = Net(spare), torch.rand(1, 1, 8, 8), torch.tensor([2])
    cross_entropy(net, (x, y)).backward()
    update = InterceptedUpdate.of(net, gradient=FORMS[form](net))
    known = Knowledge(net, (1, 8, 8), 4, labels=[2], loss=cross_entropy)  # type: ignore[arg-type]
    (found,) = RGAP(nra_iterations=40)([update], known)
    assert mse(found, x) < 1e-4
    assert supported(found)


def test_a_state_dict_that_the_training_has_changed_since() -> None:
    """The same: what was sent shares memory with the model, so that nothing seems to have moved."""
    torch.manual_seed(0)
    net, x, y = Net(), torch.rand(1, 1, 8, 8), torch.tensor([2])
    sent = net.state_dict()
    cross_entropy(net, (x, y)).backward()
    optim.SGD(net.parameters(), 0.1).step()
    update = InterceptedUpdate(1, 0, "fedavg", 1, "net", sent, state(net))
    known = Knowledge(
        net, (1, 8, 8), 4, labels=y, loss=cross_entropy, protocol="fedavg", learning_rate=0.1
    )
    with pytest.raises(BadInput, match=r"what came back is what was sent"):
        IGA(iterations=1)([update], known)


def test_shapes_and_losses_that_a_notebook_forgets() -> None:
    """The same: the axis of the batch in input_shape; no loss for a plain module."""
    torch.manual_seed(0)
    net, x, y = Net(), torch.rand(1, 1, 8, 8), torch.tensor([2])
    update = InterceptedUpdate.of(net, gradient=gradient(net, (x, y)))
    with pytest.raises(BadInput, match=r"loss"):
        IGA(iterations=1)([update], Knowledge(net, (1, 8, 8), 4, labels=y))
    known = Knowledge(net, (1, 1, 8, 8), 4, labels=y, loss=cross_entropy)
    (found,) = IGA(iterations=1)([update], known)
    assert found.inputs.shape == (1, 1, 1, 8, 8)


# -------------------------------------------------- 26: batch norm kept in eval mode by a hook


class HalfFrozen(nn.Module):
    """A body whose batch norm stays in eval mode, and one that trains."""

    def __init__(self, override: bool) -> None:
        super().__init__()
        self.back = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2, 2), nn.BatchNorm2d(12), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2),
            nn.BatchNorm2d(12), nn.Sigmoid(),
        )  # fmt: skip
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12 * 64, 10)
        self.override = override
        for layer in self.back:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.3)
                layer.running_var.uniform_(0.2, 0.6)

    def train(self, mode: bool = True) -> "HalfFrozen":
        super().train(mode)
        if self.override:
            self.back.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.back(x)).flatten(1))


@pytest.mark.parametrize(
    ("override", "told"),
    [pytest.param(True, None, marks=slow), pytest.param(True, True, marks=slow), (False, None)],
)
def test_batch_norm_in_two_modes(override: bool, told: bool | None) -> None:
    """pytorch-lightning#18930 and #2551: the frozen backbone of a transfer."""
    torch.manual_seed(0)
    net = HalfFrozen(override).train()
    net.back.eval()
    x, y = photo(), torch.tensor([3])
    update = InterceptedUpdate.of(net, gradient=gradient(copy.deepcopy(net), (x, y)))
    known = Knowledge(net, (3, 16, 16), 10, labels=y, training=told, loss=cross_entropy)
    (found,) = IGA(iterations=400)([update], known)
    assert mse(found, x) < 1e-2
    assert supported(found)


# -------------------------------------------------------- 27: rate, steps or batch told wrong


def eight(size: int, epochs: int, rate: float) -> tuple[nn.Module, InterceptedUpdate]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 256), nn.Sigmoid(), nn.Linear(256, 10))
    big = pictures.astronaut()
    x = torch.stack([
        torch.tensor(resize(big[a : a + 150, b : b + 150], (8, 8))).float().permute(2, 0, 1)
        for a in (0, 110, 220, 330) for b in (50, 250)
    ])  # fmt: skip
    y = torch.tensor([3, 3, 1, 7, 7, 7, 0, 9])
    parts = [(x[at : at + size], y[at : at + size]) for at in range(0, 8, size)] * epochs
    own = trained(net, parts, lambda p: optim.SGD(p, rate))
    return net, InterceptedUpdate.of(net, weights=state(own), num_examples=8)


@pytest.mark.parametrize(
    ("size", "epochs", "rate", "told", "right"),
    [
        (8, 1, 0.01, {"learning_rate": 0.01}, True),
        (8, 1, 0.01, {"learning_rate": 0.1}, False),
        (8, 1, 0.1, {"learning_rate": 0.01}, False),
        (2, 1, 0.05, {"learning_rate": 0.05, "steps": 4, "batch_size": 2}, True),
        (2, 1, 0.05, {"learning_rate": 0.05}, False),
        (8, 3, 0.05, {"learning_rate": 0.05}, False),
    ],
)
def test_a_fact_told_wrong_is_said(
    size: int, epochs: int, rate: float, told: dict[str, float], right: bool
) -> None:
    """PFLlib#161, dlg#9: the attacker's rate, steps or batch are not the client's."""
    net, update = eight(size, epochs, rate)
    known = Knowledge(
        net, (3, 8, 8), 10, num_samples=8, protocol="fedavg", loss=cross_entropy,
        local_training=LocalTraining(**told),
    )  # fmt: skip
    (found,) = IGA(iterations=50)([update], known)
    if right:
        assert not check(net, update, known)
        # Of several steps the mean gradient tells less of the labels; the share explained says so.
        assert sorted(found.labels.tolist()) == [0, 1, 3, 3, 7, 7, 7, 9] or not supported(found)
    else:
        assert check(net, update, known) or found.findings
        assert not supported(found) or check(net, update, known)


def test_weights_without_a_rate_are_refused() -> None:
    """The same: a rate has no default where weights came."""
    net, update = eight(8, 1, 0.01)
    known = Knowledge(net, (3, 8, 8), 10, num_samples=8, protocol="fedavg", loss=cross_entropy)
    with pytest.raises(BadInput, match=r"learning.rate"):
        IGA(iterations=1)([update], known)
