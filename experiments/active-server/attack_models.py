"""Models that a malicious server sends, and how many samples it reads with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from honest_models import OWN, QuickstartNet, initialise, mlp, whole_data
from torch import Tensor, nn
from torch.nn import functional

from fedleak import InterceptedUpdate, Knowledge, LocalTraining
from fedleak.servers import Crafted, Imprint, MaliciousServer, SolitonBiases, TrapWeights
from fedleak.servers.first_layer import FirstLayerServer

ENCODER = Path(__file__).parent / "results" / "encoder.safetensors"
CLIENT = 4000
"""Samples of a client of the quickstart."""
PLAIN = 32
"""Largest batch that is read from the global model as well."""


@dataclass(frozen=True)
class Attack:
    """A malicious model.

    Args:
        name: its name in tables.
        server: makes the server that crafts it.
        make: makes the global model.
        data: name of the clients' data.
        batch: number of samples in the attacked update.
        knows_guard: whether it was made to pass the guard.
        held_out: whether no limit was set on it.
        own: number of the client's own samples that the guard is given.
        change: what is done to the model afterwards, given the global one and a generator.
        reads: whether to measure what the server reads.
    """

    name: str
    server: Callable[[], MaliciousServer]
    make: Callable[[], nn.Module]
    data: str = "cifar10"
    batch: int = 64
    knows_guard: bool = False
    held_out: bool = False
    own: int = OWN
    change: Callable[[dict[str, Tensor], dict[str, Tensor], torch.Generator], None] | None = None
    reads: bool = True


class NoisyImprint(Imprint):
    """Bins on brightness whose rows carry noise, so that they are not parallel."""

    name = "noisy imprint"

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def rows(
        self,
        layer: nn.Linear,
        knowledge: Knowledge,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The rows of the imprint and orthogonal noise; thresholds at each row's own quantiles."""
        weight, _ = super().rows(layer, knowledge, public, generator)
        units, features = weight.shape
        noise = torch.randn(units, features, generator=generator)
        noise = noise - noise.mean(1, keepdim=True)
        noise *= self.noise * weight.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        weight = weight + noise
        found = (public @ weight.T).double()
        shares = torch.arange(1, units + 1, dtype=torch.float64) / (units + 1)
        thresholds = torch.stack(
            [torch.quantile(v, s) for v, s in zip(found.T, shares, strict=True)]
        )
        return weight, -thresholds.float()


class HigherDegrees(SolitonBiases):
    """Soliton biases without the units that fire for a sample or two."""

    def rows(
        self,
        layer: nn.Linear,
        knowledge: Knowledge,
        public: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The biases of the most selective half of the units are those of the others."""
        weight, bias = super().rows(layer, knowledge, public, generator)
        order = bias.argsort()
        half = len(order) // 2
        bias[order[:half]] = bias[order[half : 2 * half]]
        return weight, bias


def few_units(share: float) -> Callable[..., None]:
    """Only a share of the first layer's units are changed; the others are the global model's."""

    def change(sent: dict[str, Tensor], old: dict[str, Tensor], draw: torch.Generator) -> None:
        weight, bias = list(sent)[:2]
        units = len(sent[bias])
        honest = torch.randperm(units, generator=draw)[int(share * units) :]
        for name in (weight, bias):
            sent[name][honest] = old[name][honest]

    return change


def smaller_biases(limit: float) -> Callable[..., None]:
    """Biases of the first layer whose offset, by the public samples, is below a limit."""

    def change(sent: dict[str, Tensor], old: dict[str, Tensor], draw: torch.Generator) -> None:
        weight, bias = list(sent)[:2]
        public = whole_data("cifar10")[0][-1000:].flatten(1)
        size = (public @ sent[weight].T).square().mean().sqrt()
        largest = limit * size / public.square().sum(1).mean().sqrt()
        sent[bias] *= min(1.0, float(largest / sent[bias].abs().max()))

    return change


def constant_input(data: str) -> Callable[..., None]:
    """The biases are made the weights of the input that differs least among public samples."""

    def change(sent: dict[str, Tensor], old: dict[str, Tensor], draw: torch.Generator) -> None:
        weight, bias = list(sent)[:2]
        public = whole_data(data)[0][-1000:].flatten(1)
        at = int((public.std(0) / public.mean(0).abs()).argmin())
        sent[weight][:, at] = sent[bias] / public[:, at].mean()
        sent[bias].zero_()

    return change


def jitter(relative: float) -> Callable[..., None]:
    """Noise on every weight, relative to the size of its tensor's largest one."""

    def change(sent: dict[str, Tensor], old: dict[str, Tensor], draw: torch.Generator) -> None:
        for name, value in sent.items():
            if value.dim() > 1:
                noise = torch.randn(value.shape, generator=draw)
                sent[name] = value + relative * value.abs().max() * noise

    return change


def perceptron() -> nn.Module:
    """The perceptron 3072-1000-10."""
    return mlp(3072, 10, 1000)


def narrow() -> nn.Module:
    """The perceptron 3072-128-64-10."""
    return mlp(3072, 10, 128, 64)


def medical_perceptron() -> nn.Module:
    """A perceptron with two hidden layers for 32x32 grey images of six classes."""
    return mlp(1024, 6, 500, 100)


def bins(**settings: object) -> Callable[[], MaliciousServer]:
    """The server ``bins`` with other settings."""

    def make() -> MaliciousServer:
        from fedleak.servers.bins import Bins

        return Bins(steps=0, **settings)

    return make


def quickstart(name: str, server: Callable[[], MaliciousServer], **more: object) -> Attack:
    """An attack on the network of Flower's quickstart."""
    return Attack(name, server, QuickstartNet, batch=CLIENT, reads=False, **more)


def known(name: str, server: Callable[[], MaliciousServer], **more: object) -> Attack:
    """An attack on the perceptron that is made to pass the guard."""
    return Attack(name, server, perceptron, knows_guard=True, **more)


def small(net: str, make: Callable[[], nn.Module]) -> tuple[Attack, ...]:
    """Attacks on small batches of a perceptron, and bins on brightness."""
    servers = (("soliton", SolitonBiases), ("trap weights", TrapWeights))
    of_batches = (
        Attack(f"{name}, {net}, B = {batch}", server, make, batch=batch)
        for name, server in servers for batch in (8, 16, 32, 64)
    )  # fmt: skip
    return *of_batches, Attack(f"bins on brightness, {net}, B = 16", Imprint, make, batch=16)


ATTACKS = (
    Attack("trap weights, 1 sample a unit", lambda: TrapWeights(fires=1.0), perceptron),
    Attack("trap weights, 4 samples a unit", TrapWeights, perceptron),
    Attack("trap weights, B = 256", TrapWeights, perceptron, batch=256),
    Attack("soliton, paper's constants", lambda: SolitonBiases(c=0.03, factor=1.0), perceptron),
    Attack("soliton", SolitonBiases, perceptron),
    Attack("soliton, B = 256", SolitonBiases, perceptron, batch=256),
    Attack("bins on brightness", Imprint, perceptron),
    Attack("bins on brightness, noise 0.01", lambda: NoisyImprint(0.01), perceptron),
    quickstart("bins, client's rate", bins()),
    quickstart("bins, server's rate", bins(rate="server")),
    quickstart("bins, Adam", bins()),
    quickstart("bins, weight decay", bins()),
    quickstart("bins, one class", bins(rate="server", only_class=3)),
    quickstart("bins, noise 1e-3", bins(rate="server"), change=jitter(1e-3)),
    Attack("medical: trap weights", TrapWeights, medical_perceptron, "medical", held_out=True),
    Attack("medical: soliton", SolitonBiases, medical_perceptron, "medical", held_out=True),
    Attack("medical: bins on brightness", Imprint, medical_perceptron, "medical", held_out=True),
    *small("3072-128-64-10", narrow),
    *small("3072-1000-10", perceptron),
    Attack("trap weights, scaling told", lambda: TrapWeights(scaling=0.96), perceptron),
    Attack("soliton, deviation told", lambda: SolitonBiases(deviation=0.5), perceptron),
    Attack("bins on brightness, deviation told", lambda: Imprint(deviation=0.24), perceptron),
    quickstart("bins, AdamW", bins()),
    quickstart("bins, for 500 samples", bins(samples=500)),
    quickstart("bins, 30 % above", bins(above=0.3)),
    quickstart("bins, encoder", bins(encoder=str(ENCODER))),
    quickstart("bins, encoder, server's rate", bins(encoder=str(ENCODER), rate="server")),
    Attack("medical: soliton, B = 16", SolitonBiases, medical_perceptron, "medical", 16),
    Attack("medical: trap weights, B = 16", TrapWeights, medical_perceptron, "medical", 16),
    # An attacker who knows the guard.
    known("bins on brightness, noise 0.1", lambda: NoisyImprint(0.1)),
    known("bins on brightness, noise 1", lambda: NoisyImprint(1.0)),
    known("soliton, B = 32", SolitonBiases, batch=32),
    known("soliton, B = 16", SolitonBiases, batch=16),
    known("soliton, no selective units", HigherDegrees),
    known("soliton, 5 % of units", SolitonBiases, change=few_units(0.05)),
    known("soliton, 2 % of units", SolitonBiases, change=few_units(0.02)),
    known("bins on brightness, 4 % of units", Imprint, change=few_units(0.04)),
    known("soliton, smaller biases", SolitonBiases, change=smaller_biases(8.0)),
    known("soliton, smaller biases, B = 16", SolitonBiases, batch=16, change=smaller_biases(8.0)),
    known(
        "trap weights, smaller biases, B = 16", TrapWeights, batch=16, change=smaller_biases(8.0)
    ),
    known("soliton, biases in a constant input", SolitonBiases, change=constant_input("cifar10")),
    Attack(
        "medical: soliton, biases in a constant input", SolitonBiases, medical_perceptron,
        "medical", knows_guard=True, change=constant_input("medical"),
    ),
    known("trap weights, 1 of 4,000", lambda: TrapWeights(fires=1.0), batch=4000, reads=False),
    known(
        "trap weights, 1 of 4,000; 4,000 own", lambda: TrapWeights(fires=1.0), batch=4000,
        own=4000, reads=False,
    ),
)  # fmt: skip
SEEDS = (0, 1, 2)


def facts_of(attack: Attack, model: nn.Module, shape: tuple[int, ...], classes: int) -> Knowledge:
    """What the server knows of the client."""
    training = LocalTraining(learning_rate=0.1, momentum=0.9, batch_size=32, epochs=1)
    if "Adam" in attack.name:
        training = LocalTraining(optimizer="adam", learning_rate=1e-3, batch_size=32, epochs=1)
    if "AdamW" in attack.name:
        training = replace(training, optimizer="adamw", weight_decay=1e-2)
    if "decay" in attack.name:
        training = replace(training, weight_decay=5e-4)
    weights = isinstance(model, QuickstartNet)
    return Knowledge(
        model, shape, classes, (0.5,) * shape[0], (0.5,) * shape[0], num_samples=attack.batch,
        protocol="fedavg" if weights else "fedsgd", loss=cross_entropy,
        local_training=training if weights else None,
    )  # fmt: skip


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The client's loss."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def malicious(attack: Attack, seed: int) -> tuple[nn.Module, Tensor, float, float]:
    """A malicious model, a client's own samples, and the share of a batch that is read.

    The last number is the share that is read in the same way without any change of the global
    model; it is NaN for batches above ``PLAIN``.

    The batch is made of other samples than the own ones that the guard is given, and the public
    samples are others again. A sample is read where its SSIM is above 0.9 by the distance of the
    nearest input read, relative to the sample's own deviation, below 0.1.
    """
    torch.manual_seed(seed)
    model = attack.make()
    initialise(model, "default")
    inputs, targets = whole_data(attack.data)
    own, public = inputs[: attack.own], inputs[-1000:]
    classes = int(targets.max()) + 1
    facts = facts_of(attack, model, tuple(inputs.shape[1:]), classes)
    draw = torch.Generator().manual_seed(100 + seed)
    server = attack.server()
    crafted = server.craft(facts, public=public, generator=draw)
    sent = {name: value.clone() for name, value in crafted.weights.items()}
    if attack.change is not None:
        attack.change(sent, dict(model.state_dict()), draw)
    global_model, model = model, attack.make()
    model.load_state_dict(sent)
    share = plain = float("nan")
    if attack.reads and isinstance(server, FirstLayerServer):
        chosen = attack.own + torch.randperm(len(inputs) - attack.own - 1000, generator=draw)
        batch = inputs[chosen[: attack.batch]], targets[chosen[: attack.batch]]
        facts = replace(facts, model=global_model)
        share = read_from(server, facts, model, batch)
        if attack.batch <= PLAIN:
            # Of models as they are, samples are looked for in the rows, not in their differences.
            plain = read_from(SolitonBiases(), facts, global_model, batch)
    return model, own, share, plain


def read_from(
    server: FirstLayerServer, facts: Knowledge, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> float:
    """The share of a batch that a server reads from a model's gradient."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(cross_entropy(model, batch), parameters)
    received = dict(zip(names, found, strict=True))
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    update = InterceptedUpdate(1, 0, "fedsgd", len(batch[1]), "mlp", sent, received)
    reading = server.read(
        facts, ((Crafted(sent), update),), public=None, generator=torch.Generator().manual_seed(0)
    )
    return read_share(reading.inputs, batch[0])


def read_share(found: Tensor, inputs: Tensor) -> float:
    """The share of samples to which one that was found differs by less than 10 %, relative."""
    if not len(found):
        return 0.0
    distance = torch.cdist(inputs.flatten(1), found.flatten(1)).min(1).values
    size = (inputs - inputs.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1)
    return float((distance < 0.1 * size).float().mean())
