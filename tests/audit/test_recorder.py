"""What is noted of a training: by clients' own loops, of which no line knows the recorder."""

import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset

from fedleak.audit.facts import TrainingFacts
from fedleak.audit.recorder import TrainingRecorder
from fedleak.models.lightning import quiet_trainer
from tests.federation.fakes import same_tensors

Train = Callable[[], nn.Module]


def images(number: int = 10) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(
        torch.randn(number, 1, 6, 6, generator=generator),
        torch.randint(3, (number,), generator=generator),
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Any,
    *,
    epochs: int = 2,
    batch_size: int = 4,
    clip: float | None = None,
) -> nn.Module:
    """The loop that most apps have, with an evaluation after it."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.train()
    for _ in range(epochs):
        for x, y in DataLoader(images(), batch_size=batch_size, shuffle=True):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, y in DataLoader(images(), batch_size=5):
            loss(model(x), y).item()
    return model


def plain() -> nn.Module:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return loop(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1))


def recorded(train: Train) -> tuple[nn.Module, TrainingFacts, TrainingRecorder]:
    recorder = TrainingRecorder()
    with recorder.recording():
        model = train()
    facts = recorder.facts(4, dict(model.state_dict()))
    assert not facts.weights_changed
    assert facts.faults == ()
    return model, facts, recorder


def hooks() -> list[Any]:
    """Everything that the recorder registers or replaces, for all of torch."""
    strategy = sys.modules["pytorch_lightning.strategies"].Strategy
    return [
        *(dict(getattr(torch_module, name)) for name in vars(torch_module) if name.startswith(
            "_global_forward") and isinstance(getattr(torch_module, name), dict)),
        dict(torch_optimizer._global_optimizer_pre_hooks),
        dict(torch_optimizer._global_optimizer_post_hooks),
        nn.Module.state_dict, nn.Module.load_state_dict, strategy.training_step,
        torch._C._len_torch_function_stack(),
    ]  # fmt: skip


def clipped() -> nn.Module:
    model = Net()
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, clip=0.1)


def adam_groups() -> nn.Module:
    model = Net()
    groups = [
        {"params": model.conv.parameters(), "lr": 0.01},
        {"params": [*model.norm.parameters(), *model.out.parameters()], "weight_decay": 0.5},
    ]
    model.conv.bias.requires_grad_(False)
    return loop(model, torch.optim.AdamW(groups, lr=0.001), lambda out, y: F.cross_entropy(out, y))


def binary() -> nn.Module:
    """A table, BCE on a squeezed output, a loss that is scaled, accumulation over two batches."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.9))
    x, y = torch.randn(8, 5), torch.rand(8).round()
    for at in (0, 4):
        for part in (slice(at, at + 2), slice(at + 2, at + 4)):
            loss = F.binary_cross_entropy_with_logits(
                model(x[part]).squeeze(1), y[part], pos_weight=torch.tensor([3.0])
            )
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def autoencoder() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 36))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    for x, _ in DataLoader(images(), batch_size=5):
        x = x.view(len(x), -1)
        F.mse_loss(model(x), x, reduction="none").sum().backward()
        optimizer.step()
    return model


class Tagger(nn.Module):
    """Tokens to a class per position; the loss wants the classes in the second place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, *, tokens: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"logits": self.out(self.embed(tokens)) * scale}


def tagger() -> nn.Module:
    model = Tagger()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    tokens, tags = torch.randint(7, (6, 5)), torch.randint(3, (6, 5))
    for at in (0, 3):
        logits = model(tokens=tokens[at : at + 3])["logits"]
        logits = torch.log_softmax(logits.float(), dim=-1).transpose(1, 2)
        F.nll_loss(logits, tags[at : at + 3]).backward()
        optimizer.step()
    return model


class WithLoss(nn.Module):
    """A model as Hugging Face's: inputs by name, and the loss is one of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(9, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        logits = self.out(self.embed(input_ids))
        return types.MappingProxyType({"loss": F.cross_entropy(logits, labels), "logits": logits})


def with_loss(change: Callable[[Tensor], Tensor] = lambda loss: loss) -> nn.Module:
    model = WithLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    batch = {
        "input_ids": torch.randint(9, (4, 6)), "attention_mask": torch.ones(4, 6),
        "labels": torch.tensor([0, 1, 1, 0]),
    }  # fmt: skip
    change(model(**batch)["loss"]).backward()
    optimizer.step()
    return model


class LitNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(36, 3), nn.Linear(3, 36)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def lightning() -> nn.Module:
    model = LitNet()
    model.load_state_dict(model.state_dict(), strict=True)
    loader = DataLoader(images(), batch_size=4)
    quiet_trainer(model, max_epochs=1).fit(model, loader, loader)
    return model


CASES: dict[str, tuple[Train, dict[str, Any]]] = {
    "plain": (plain, {
        "loss.kind": "function", "loss.function": "cross_entropy", "loss.output": (),
        "loss.arguments": {
            "weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.1,
        },
        "loss.changes": (), "loss.target": ("int64", ()), "loss.target_input": None,
        "optimizer.path": "torch.optim.sgd:SGD", "optimizer.carried_over": False,
        "optimizer.rates": (), "batch_sizes": (4, 4, 2, 4, 4, 2), "backward_passes": 6,
        "model.path": "tests.audit.test_recorder:Net", "model.called": "itself",
        "model.training": True, "model.frozen": (), "gradients_changed": False, "notes": (),
        "inputs.0.path": (0,), "inputs.0.shape": (4, 1, 6, 6), "inputs.0.dtype": "float32",
    }),
    "groups": (adam_groups, {
        "optimizer.path": "torch.optim.adamw:AdamW", "model.frozen": ("conv.bias",),
        "optimizer.groups.0.names": ["conv.weight", "conv.bias"], "optimizer.groups.0.lr": 0.01,
        "optimizer.groups.1.names": ["norm.weight", "norm.bias", "out.weight", "out.bias"],
        "optimizer.groups.1.lr": 0.001, "optimizer.groups.1.weight_decay": 0.5,
        "gradients_changed": False,
    }),
    "binary": (binary, {
        "loss.function": "binary_cross_entropy_with_logits", "loss.scale": 0.5,
        "loss.arguments": {
            "weight": None, "reduction": "mean",
            "pos_weight": {"tensor": [3.0], "dtype": "float32"},
        },
        "loss.changes": ({"reshape": [-1]},), "loss.target": ("float32", ()),
        "batch_sizes": (4, 4), "backward_passes": 4, "optimizer.groups.0.betas": [0.8, 0.9],
        "gradients_changed": False, "model.called": "itself",
    }),
    "autoencoder": (autoencoder, {
        "loss.function": "mse_loss", "loss.reduction": "sum", "loss.target_input": (0,),
        "loss.arguments": {"reduction": "none", "weight": None}, "batch_sizes": (5, 5),
        "inputs.0.shape": (5, 36),
    }),
    "tagger": (tagger, {
        "loss.function": "nll_loss", "loss.output": ("logits",), "loss.target": ("int64", (5,)),
        "loss.changes": (
            {"apply": "log_softmax", "dim": -1}, {"permute": [0, 2, 1]},
        ),
        "inputs.0.path": ("tokens",), "inputs.0.dtype": "int64",
    }),
    "with_loss": (with_loss, {
        "loss.kind": "output", "loss.output": ("loss",), "inputs.0.path": ("input_ids",),
        "inputs.1.path": ("attention_mask",), "inputs.2.path": ("labels",), "batch_sizes": (4,),
    }),
    "with_scaled_loss": (lambda: with_loss(lambda loss: loss / 4), {
        "loss.kind": "output", "loss.output": ("loss",), "loss.scale": 0.25,
    }),
    "lightning": (lightning, {
        "loss.kind": "training_step", "model.lightning": True, "model.called": "itself",
        "inputs.0.path": (0,), "inputs.0.shape": (4, 1, 6, 6), "inputs.1.path": (1,),
        "batch_sizes": (4, 4, 2), "optimizer.path": "torch.optim.adam:Adam", "notes": (),
        "gradients_changed": False,
    }),
    "clipped": (
        clipped,
        {"gradients_changed": True, "loss.kind": "function"},
    ),
}  # fmt: skip


def fact(facts: Any, name: str) -> Any:
    for part in name.split("."):
        if isinstance(facts, tuple):
            facts = facts[int(part)]
        else:
            facts = facts[part] if isinstance(facts, dict) else getattr(facts, part)
    return facts


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_noted_and_not_changed(name: str) -> None:
    train, expected = CASES[name]
    before = hooks()
    torch.manual_seed(1)
    alone, state = train(), torch.get_rng_state()
    torch.manual_seed(1)
    model, facts, recorder = recorded(train)
    assert same_tensors(dict(alone.state_dict()), dict(model.state_dict()))
    assert torch.equal(state, torch.get_rng_state())
    assert hooks() == before
    assert {key: fact(facts, key) for key in expected} == expected
    assert facts.partition == 4
    assert facts.model is not None
    assert [entry[:2] for entry in facts.model.state] == [
        (key, tuple(value.shape)) for key, value in model.state_dict().items()
    ]
    assert facts.sends == "weights"
    assert facts.batches_kept == len(recorder.batches) == facts.backward_passes


def test_the_truth_is_what_the_loader_gave_and_only_that() -> None:
    torch.manual_seed(5)
    _, facts, recorder = recorded(plain)
    data = images()
    epoch = torch.cat([batch.inputs[(0,)] for batch in recorder.batches[:3]])
    labels = torch.cat([batch.targets for batch in recorder.batches[:3]])  # type: ignore[misc]
    assert epoch.shape == data.tensors[0].shape
    for x, y in data:
        (found,) = [at for at in range(10) if torch.equal(epoch[at], x)]
        assert int(labels[found]) == int(y)
    # No sample is in the facts.
    numbers = {round(float(value), 3) for value in data.tensors[0].flatten()}
    assert not numbers & {round(float(n), 3) for n in _numbers(facts)}


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool | str) or value is None:
        return []
    if isinstance(value, int | float):
        return [float(value)]
    items = value.values() if isinstance(value, dict) else value
    items = vars(value).values() if hasattr(value, "__dataclass_fields__") else items
    return [number for item in items for number in _numbers(item)]


def test_what_fails_in_the_client_or_in_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hooks()

    def fails() -> nn.Module:
        model = Net()
        model.load_state_dict(model.state_dict())
        with pytest.raises(RuntimeError, match="Kernel size"):
            model(torch.zeros(1, 1, 2, 2))  # the client catches this one
        plain()
        raise ZeroDivisionError

    recorder = TrainingRecorder()
    with pytest.raises(ZeroDivisionError), recorder.recording():
        fails()
    assert hooks() == before
    assert recorder.facts(0, {}).batch_sizes == (4, 4, 2, 4, 4, 2)

    def broken(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    torch.manual_seed(2)
    alone = plain()
    for name in ("loss_called", "before_backward", "_note_step", "_enter_call", "_leave_call"):
        monkeypatch.setattr(TrainingRecorder, name, broken)
    recorder, model = TrainingRecorder(), Net()
    torch.manual_seed(2)
    with recorder.recording():
        model = plain()
    assert same_tensors(dict(alone.state_dict()), dict(model.state_dict()))
    assert hooks() == before
    assert "broken: ValueError: a mistake of ours" in recorder.facts(0, {}).faults


class Penalised(nn.Module):
    """A loss of its own, which calls one of torch's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = [model]

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + 0.1 * self.model[0].out.weight.square().sum()


def penalised() -> nn.Module:
    model = Net()
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.1), Penalised(model))


def normalised() -> nn.Module:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return loop(model, optimizer, lambda out, y: F.cross_entropy(out / out.norm(), y))


def two_optimizers() -> nn.Module:
    model = Net()
    pair = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.conv, model.out)]
    F.cross_entropy(model(images()[:4][0]), images()[:4][1]).backward()
    for optimizer in pair:
        optimizer.step()
    return model


def scheduled() -> nn.Module:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for x, y in DataLoader(images(), batch_size=5):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model


def by_numpy() -> nn.Module:
    model = Net()
    for value in model.parameters():
        value.data = torch.from_numpy(np.zeros(value.shape, np.float32))
    return model


def by_hand() -> nn.Module:
    model = Net()
    loss = F.cross_entropy(model(images()[:4][0]), images()[:4][1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            value -= 0.1 * gradient
    return model


def in_parallel() -> nn.Module:
    model = Net()
    wrapped = nn.Module()
    wrapped.module = model
    wrapped.forward = lambda x: model(x)  # type: ignore[method-assign]
    loop(wrapped, torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, epochs=1)
    model.state_dict()
    return model


def mixed() -> nn.Module:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model.norm.eval()
    F.cross_entropy(model(images()[:4][0]), images()[:4][1]).backward()
    optimizer.step()
    return model


@pytest.mark.parametrize(
    ("train", "expected", "note"),
    [
        (penalised, {"loss.kind": "unknown", "loss.reason": "the scalar that is differentiated is "
         "neither the result of a loss function of torch nor an output of the model, such as a sum "
         "of several terms"}, None),
        (normalised, {"loss.kind": "unknown",
         "loss.reason": "the input of cross_entropy is not the model's output as it is"}, None),
        (two_optimizers, {"optimizer.others": ("torch.optim.sgd:SGD",), "batch_sizes": (4,)}, None),
        (scheduled, {"optimizer.rates": (0.5, 0.25), "optimizer.groups.0.lr": 0.5}, None),
        (by_numpy, {"model": None, "optimizer": None}, "trains without torch"),
        (by_hand, {"optimizer": None, "model.called": "never"},
         "the app changes the weights itself"),
        (in_parallel, {"model.called": "wrapped", "model.path": "tests.audit.test_recorder:Net"},
         None),
        (mixed, {"model.training": None, "model.in_eval_mode": ("norm",)}, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_cannot_be_known_is_said(
    train: Train, expected: dict[str, Any], note: str | None
) -> None:
    _, facts, _ = recorded(train)
    assert {key: fact(facts, key) for key in expected} == expected
    assert (note is None) == (facts.notes == ())
    assert any((note or "") in text for text in facts.notes) or note is None


def test_training_that_goes_on_with_an_optimiser_says_so() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for carried in (False, True):
        _, facts, _ = recorded(lambda: loop(model, optimizer, F.cross_entropy, epochs=1))
        assert facts.optimizer is not None
        assert facts.optimizer.carried_over == carried


@pytest.mark.parametrize("listed", [False, True])
def test_what_is_returned_is_compared_with_the_model(listed: bool) -> None:
    model = Net()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    recorder = TrainingRecorder()
    with recorder.recording():
        loop(model, torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)
    end = model.state_dict()

    def said(values: dict[str, Tensor]) -> str | None:
        if listed:
            values = {str(at): value for at, value in enumerate(values.values())}
        return recorder.facts(0, values, start).sends

    assert said(dict(end)) == "weights"
    assert said({name: value - start[name] for name, value in end.items()}) == "delta"
    assert said({name: value + 1 for name, value in end.items()}) == "other"
    assert said({"strange": torch.ones(2)}) is None
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    assert said(parameters) == "weights"


@pytest.mark.parametrize("where", ["nowhere", "before", "between", "after"])
def test_weights_that_change_outside_the_steps_are_told(where: str) -> None:
    """Also by `.data`, which leaves no trace in a tensor's version."""
    model = Net()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = TrainingRecorder()
    with recorder.recording():
        model.load_state_dict(start)
        for step in range(3):
            if (where, step) in (("before", 0), ("between", 1)):
                model.conv.weight.data.mul_(1.1)
            x, y = images()[:4]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if where == "after":
            model.out.bias.data.add_(0.1)
    facts = recorder.facts(0, dict(model.state_dict()), start)
    assert facts.faults == ()
    assert facts.weights_changed == (where != "nowhere")
    listed = {str(at): value for at, value in enumerate(start.values())}
    facts = recorder.facts(0, dict(model.state_dict()), listed)
    assert facts.weights_changed == (where != "nowhere")


class Encoder(nn.Module):
    """A transformer, for which torch has faster kernels in evaluation that differ in rounding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.embed, self.layers = nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        states: Tensor = self.layers(self.embed(tokens), src_key_padding_mask=padding)
        return states.mean(1)


def test_an_evaluation_within_the_training_is_the_same_to_the_last_bit() -> None:
    def evaluated() -> list[Tensor]:
        torch.manual_seed(0)
        model, tokens = Encoder(), torch.randint(20, (3, 7))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        found = []
        for _ in range(2):
            model.train()
            F.cross_entropy(model(tokens), torch.tensor([0, 5, 9])).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                found.append(model(tokens, torch.zeros(3, 7, dtype=torch.bool)))
            with torch.inference_mode(), torch.device("cpu"):  # a mode of the client's own
                found.append(model(tokens).clone())
        return found

    alone, recorder = evaluated(), TrainingRecorder()
    with recorder.recording():
        again = evaluated()
    assert recorder.faults == []
    for left, right in zip(alone, again, strict=True):
        assert torch.equal(left, right)
    assert recorder.facts(0, {}).steps == 2


def test_a_step_that_fails_hides_nothing_of_what_follows() -> None:
    class Fails(torch.optim.SGD):
        """Its first step is an error, which the client catches."""

        failed = False

        def step(self, closure: Any = None) -> Any:
            if not self.failed:
                self.failed = True
                raise RuntimeError("out of memory")
            return super().step(closure)

    def train() -> nn.Module:
        model = Net()
        optimizer = Fails(model.parameters(), lr=0.1)
        for x, y in DataLoader(images(), batch_size=5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            with suppress(RuntimeError):
                optimizer.step()
        return model

    torch.optim.SGD(Net().parameters(), lr=0.1)  # from now on, torch calls hooks for it as well
    recorder = TrainingRecorder()
    with recorder.recording():
        model = train()
    facts = recorder.facts(0, dict(model.state_dict()))
    assert facts.faults == ()
    assert facts.backward_passes == 2
    assert facts.loss is not None
    assert facts.loss.function == "cross_entropy"
    assert facts.batch_sizes == (10,)  # both passes come before the only step


def test_the_truth_is_bounded_and_an_app_without_steps_keeps_no_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedleak.audit.recorder.MOST_BATCHES", 4)
    _, facts, recorder = recorded(plain)
    assert (facts.batches_kept, facts.steps) == (4, 6)
    assert facts.notes == ("the truth holds the first 4 batches alone",)
    size = sum(value.nbytes for value in (*recorder.batches[0].inputs.values(),))
    monkeypatch.setattr("fedleak.audit.recorder.MOST_BYTES", 2 * size + 100)
    _, facts, _ = recorded(plain)
    # The third batch of an epoch is small enough, but would leave a gap.
    assert facts.batches_kept == 2

    model = Net()
    recorder = TrainingRecorder()
    with recorder.recording():
        for x, y in DataLoader(images(), batch_size=2):
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for value in model.parameters():
                    value -= 0.1 * value.grad  # type: ignore[operator]
    found = recorder.facts(0, dict(model.state_dict()))
    assert (found.steps, found.backward_passes, found.optimizer) == (0, 5, None)
    assert found.notes[-1] == (
        "no step of a torch optimiser was seen: the app changes the weights itself"
    )


def test_lightning_may_be_imported_when_a_client_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an app that imports its task within the function that trains."""
    before, name = hooks(), "pytorch_lightning.strategies"
    module = sys.modules[name]
    recorder = TrainingRecorder()
    monkeypatch.delitem(sys.modules, name)
    with recorder.recording():
        sys.modules[name] = module
        model = lightning()
    facts = recorder.facts(4, dict(model.state_dict()))
    assert facts.loss.kind == "training_step"
    assert facts.faults == ()
    assert hooks() == before
