"""Flower apps that tests write into a folder, and what runs them without Ray."""

import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedleak.audit.app import FlowerApp, read_app
from fedleak.audit.label_shares import FEWEST_SHADOWS
from fedleak.audit.ladder import Victim, find_victims
from fedleak.audit.simulation import Observed, run_app
from fedleak.federation.engine.ray_engine import Resources
from fedleak.federation.engine.server import ServerControl
from tests.federation.fakes import FakeGrid, fails

PYPROJECT = """
[project]
name = "{name}"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "{name}.server_app:app"
clientapp = "{name}.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
{config}
{more}
"""


def write_app(folder: Path, name: str, *, config: str = "", more: str = "", **modules: str) -> Path:
    """Write an app of the package ``name``; each module is its text."""
    package = folder / name
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(name=name, config=config, more=more), encoding="utf-8"
    )
    (package / "__init__.py").write_text("")
    for module, text in modules.items():
        (package / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def in_process(
    resources: Resources, server: ServerApp, client: ClientApp, control: ServerControl
) -> None:
    """Replaces the engine on Ray: the clients are called one by one, in a thread of their own."""
    contexts = {
        (7919 * (number + 1)) % 104729: Context(
            1, 0, {"partition-id": number, "num-partitions": resources.supernodes}, RecordDict(), {}
        )
        for number in range(resources.supernodes)
    }
    with ThreadPoolExecutor(1) as worker:

        def answer(question: Message) -> Message:
            try:
                called = worker.submit(client, question, contexts[question.metadata.dst_node_id])
                return called.result()
            except Exception as error:
                return fails(question, str(error))

        server(FakeGrid(sorted(contexts), answer), Context(1, 0, {}, RecordDict(), {}))


# ------------------------------------------------------------------------------------ the apps

SERVER = """
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from {name}.task import make

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    start = ArrayRecord(make().state_dict())
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    found = strategy.start(
        grid=grid, initial_arrays=start, num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({{"lr": context.run_config["lr"]}}),
    )
    save = context.run_config.get("save", "")
    if save:
        import torch
        torch.save(found.arrays.to_torch_state_dict(), save)
"""
CLIENT = """
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from {name}.task import data, make, train

app = ClientApp()

@app.train()
def fit(msg: Message, context: Context) -> Message:
    number = context.node_config["partition-id"]
    torch.manual_seed(number)
    model = make()
    start = msg.content["arrays"].to_torch_state_dict()
    model.load_state_dict(start)
    examples = data(number)
    loss = train(model, examples, msg.content["config"]["lr"])
    return Message(
        RecordDict({{
            "arrays": ArrayRecord({{k: {sends} for k, v in model.state_dict().items()}}),
            "metrics": MetricRecord({{"train_loss": loss, "num-examples": len(examples)}}),
        }}),
        reply_to=msg,
    )
"""
IMAGES = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4 * 6 * 6, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x):
        x = self.norm(self.pool(torch.relu(self.conv(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))

def make():
    torch.manual_seed(0)
    return Net()

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.randn(6, 3, 16, 16), torch.randint(10, (6,)))

def train(model, examples, lr):
    criterion = torch.nn.CrossEntropyLoss().to("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    total = 0.0
    for x, y in DataLoader(examples, batch_size=4, shuffle=True):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total
"""
TABLE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Income(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return self.layers(x)

def make():
    torch.manual_seed(0)
    return Income(5)

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.randn(9, 7), torch.rand(9).round())

def train(model, examples, lr):
    criterion = nn.BCELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(2):
        for x, y in DataLoader(examples, batch_size=3, shuffle=True):
            optimizer.zero_grad()
            loss = criterion(model(x).squeeze(), y)
            loss.backward()
            optimizer.step()
    return loss.item()
"""
TEXT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, tokens):
        return self.out(self.embed(tokens).mean(1))

def make():
    torch.manual_seed(0)
    return Classifier()

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.randint(30, (5, 8)), torch.randint(4, (5,)))

def train(model, examples, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    for tokens, y in DataLoader(examples, batch_size=2):
        loss = nn.functional.cross_entropy(model(tokens), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
"""
LIGHTNING = """
import logging
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

class AutoEncoder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 64))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        loss = nn.functional.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

def make():
    torch.manual_seed(0)
    return AutoEncoder()

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.rand(5, 1, 8, 8), torch.randint(10, (5,)))

def train(model, examples, lr):
    trainer = pl.Trainer(max_epochs=1, enable_progress_bar=False, logger=False,
                         enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
    trainer.fit(model, DataLoader(examples, batch_size=2))
    return float(trainer.callback_metrics["train_loss"])
"""
HUGGING_FACE = """
import torch
from torch import nn
from torch.utils.data import DataLoader

class ModelOutput(dict):
    def __getattr__(self, name):
        return self[name]

class ForClassification(nn.Module):
    def __init__(self, size=20):
        super().__init__()
        self.embeddings = nn.Embedding(size, 5)
        self.classifier = nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        states = self.embeddings(input_ids)
        if attention_mask is not None:
            states = states * attention_mask[..., None]
        logits = self.classifier(states.mean(1))
        return ModelOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

def make():
    torch.manual_seed(0)
    return ForClassification()

def data(number):
    torch.manual_seed(100 + number)
    mask = torch.ones(6)
    return [
        {"input_ids": torch.randint(20, (6,)), "attention_mask": mask, "labels": number % 3}
        for _ in range(4)
    ]

def train(model, examples, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for batch in DataLoader(examples, batch_size=2):
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return outputs.loss.item()
"""
# As a tokenizer's batches: texts of several lengths, padded to the longest of their batch, with a
# mask and types of tokens; positions and types have embeddings of their own.
PADDED = """
import torch
from torch import nn
from torch.utils.data import DataLoader

class ModelOutput(dict):
    def __getattr__(self, name):
        return self[name]

class ForClassification(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 6, padding_idx=0)
        self.positions = nn.Embedding(12, 6)
        self.types = nn.Embedding(2, 6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, input_ids, attention_mask, token_type_ids, labels=None):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.words(input_ids) + self.positions(places) + self.types(token_type_ids)
        weights = attention_mask.to(states.dtype)[..., None]
        logits = self.classifier(torch.tanh((states * weights).sum(1) / weights.sum(1)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ModelOutput(loss=loss, logits=logits)

def make():
    torch.manual_seed(0)
    return ForClassification()

def data(number):
    torch.manual_seed(100 + number)
    return [
        {"input_ids": torch.randint(1, 40, (int(torch.randint(3, 8, ())),)),
          "labels": torch.randint(2, ())}
        for _ in range(6)
    ]

def collate(examples):
    pad = nn.utils.rnn.pad_sequence
    ids = pad([example["input_ids"] for example in examples], batch_first=True)
    mask = pad([torch.ones_like(example["input_ids"]) for example in examples], batch_first=True)
    return {
        "input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask,
        "labels": torch.stack([example["labels"] for example in examples]),
    }

def train(model, examples, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for batch in DataLoader(examples, batch_size=3, collate_fn=collate):
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return outputs.loss.item()
"""
# Numbers and categories, of which an attack searches neither without the other.
TWO_INPUTS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.kinds = nn.Embedding(9, 3)
        self.out = nn.Linear(5 + 2 * 3, 2)

    def forward(self, numbers, kinds):
        return self.out(torch.cat([numbers, self.kinds(kinds).flatten(1)], 1))

def make():
    torch.manual_seed(0)
    return Mixed()

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.randn(6, 5), torch.randint(9, (6, 2)), torch.randint(2, (6,)))

def train(model, examples, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for numbers, kinds, y in DataLoader(examples, batch_size=3):
        loss = nn.functional.cross_entropy(model(numbers, kinds), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
"""
# DP-SGD by Opacus: the model is wrapped, batches are drawn at random, gradients are changed.
OPACUS = (
    TABLE[: TABLE.index("def train")]
    + """
def train(model, examples, lr):
    import warnings
    from opacus import PrivacyEngine
    warnings.simplefilter("ignore")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = DataLoader(examples, batch_size=3)
    model.train()
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = nn.BCELoss()
    for x, y in loader:
        if not len(x):
            continue
        optimizer.zero_grad()
        loss = criterion(private(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
    return 0.0
"""
)
# Users and items, a number of each a sample.
PAIRS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(8, 3), nn.Embedding(30, 3)

    def forward(self, users, items):
        return (self.users(users) * self.items(items)).sum(1)

def make():
    torch.manual_seed(0)
    return Factors()

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.full((6,), number), torch.randint(30, (6,)), torch.rand(6).round())

def train(model, examples, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for users, items, y in DataLoader(examples, batch_size=3):
        loss = nn.functional.binary_cross_entropy_with_logits(model(users, items), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
"""
OLD_SERVER = """
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

def server_fn(context):
    # Without weights to begin with: Flower asks a client for them.
    return ServerAppComponents(
        strategy=FedAvg(fraction_evaluate=0.0, min_available_clients=1, min_fit_clients=1),
        config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]),
    )

app = ServerApp(server_fn=server_fn)
"""
OLD_CLIENT = """
import torch
from collections import OrderedDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from {name}.task import data, make, train

class Client(NumPyClient):
    def __init__(self, number, lr):
        self.net, self.number, self.lr = make(), number, lr

    def get_parameters(self, config):
        return [value.cpu().numpy() for _, value in self.net.state_dict().items()]

    def fit(self, parameters, config):
        pairs = zip(self.net.state_dict().keys(), parameters)
        self.net.load_state_dict(OrderedDict((k, torch.tensor(v)) for k, v in pairs), strict=True)
        torch.manual_seed(self.number)
        examples = data(self.number)
        train(self.net, examples, self.lr)
        return self.get_parameters(config), len(examples), {{}}

def client_fn(context):
    return Client(context.node_config["partition-id"], context.run_config["lr"]).to_client()

app = ClientApp(client_fn=client_fn)
"""
TASKS = {
    "images": IMAGES, "table": TABLE, "text": TEXT, "lightning": LIGHTNING,
    "hugging_face": HUGGING_FACE, "old": IMAGES,
}  # fmt: skip


def write_kind(
    folder: Path, kind: str, *, more: str = "", task: str | None = None, sends: str = "v",
    client_app: str = "app = ClientApp()",
) -> FlowerApp:  # fmt: skip
    """Write an app of a kind and read it; its learning rate is 0.05, its settings are ``more``.

    ``sends`` is what the client sends of a tensor ``v`` that began as ``start[k]``, and
    ``client_app`` makes the client's app.
    """
    name = f"app_{kind}_{abs(hash(str(folder))) % 10**8}"
    server, client = (OLD_SERVER, OLD_CLIENT) if kind == "old" else (SERVER, CLIENT)
    write_app(
        folder, name, config='lr = 0.05\nsave = ""', more=more.format(name=name),
        server_app=server.format(name=name) if kind != "old" else server,
        client_app=client.format(name=name, sends=sends).replace("app = ClientApp()", client_app),
        task=task or TASKS[kind],
    )  # fmt: skip
    return read_app(folder)


@contextmanager
def imports_undone() -> Iterator[None]:
    """Within the block, apps may be imported; afterwards they are not importable any more."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("app_"):
                del sys.modules[name]


# Seconds for an audit's attacks, of a machine that is busy with something else.
BUDGET = 900


@contextmanager
def short_audits() -> Iterator[None]:
    """Within the block, audits have as few shadow clients as may be, and hardly search in sums.

    Nothing else uses the time that is left where attacks in closed form read the inputs, so that
    ``BUDGET`` can be long enough for any machine.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedleak.audit.label_shares.MOST_SHADOWS", FEWEST_SHADOWS)
        patched.setattr("fedleak.audit.run.SUM_SHARE", 0.3 / BUDGET)
        yield


# One sample, one step of plain SGD on a perceptron: what an analytic attack reads exactly.
ONE_STEP = """
import torch
from torch import nn
from torch.nn import functional as F

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.Sigmoid(), nn.Linear(24, 4))

def data(number):
    torch.manual_seed(100 + number)
    return torch.utils.data.TensorDataset(torch.rand(1, 3, 6, 6), torch.randint(4, (1,)))

def train(model, examples, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = examples.tensors
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()
"""


# The same without a step: the client sends the gradient, and the server makes the step.
GRADIENT = ONE_STEP.replace("    optimizer.step()\n", "")
SENDS_GRADIENT = "dict(model.named_parameters())[k].grad"


def observe(folder: Path, kind: str, **settings: Any) -> tuple[FlowerApp, Observed, list[Victim]]:
    """An app after one round with four clients, without Ray, and its victims."""
    app = write_kind(folder / "app", kind, **settings)
    observed = run_app(app, folder / "out", clients=4, rounds=1, engine=in_process)
    victims, reasons = find_victims(app, observed)
    assert not reasons
    return app, observed, victims
