"""Small perceptrons, their clients' gradients, and a slow version of reading them."""

import torch
from torch import Tensor, nn

from fedleak.servers.base import Crafted, MaliciousServer, Reading
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

SHAPE = (1, 3, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(units: int = 16, *, features: int = 12, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(units)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, units), nn.ReLU(), nn.Linear(units, classes)
    )


def pictures(number: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Uniform pixels, normalised with mean 0.5 and deviation 0.5."""
    return torch.rand(number, *shape, generator=generator(seed)) * 2 - 1


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def knowledge_of(model: nn.Module, samples: int, **more: object) -> Knowledge:
    facts: dict[str, object] = {
        "input_shape": SHAPE, "mean": (0.5,), "std": (0.5,), "num_samples": samples,
        "loss": cross_entropy,
    }  # fmt: skip
    return Knowledge(model, **(facts | more))


def update_of(
    crafted: Crafted, model: nn.Module, inputs: Tensor, labels: Tensor, rate: float = 0.0
) -> InterceptedUpdate:
    """A client's gradient at the sent weights, or its weights after a step of a rate."""
    model.load_state_dict(crafted.weights)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(cross_entropy(model, (inputs, labels)), parameters)
    received = dict(zip(names, gradients, strict=True))
    if rate:
        received = {name: crafted.weights[name] - rate * value for name, value in received.items()}
    protocol = "fedavg" if rate else "fedsgd"
    return InterceptedUpdate(1, 0, protocol, len(inputs), "mlp", crafted.weights, received)


def attacked(
    server: MaliciousServer,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    public: Tensor | None,
    rate: float = 0.0,
    **more: object,
) -> tuple[Crafted, Reading]:
    """What a server sends to a client, and what it reads from the answer."""
    knowledge = knowledge_of(model, len(inputs), **more)
    crafted = server.craft(knowledge, public=public, generator=generator())
    update = update_of(crafted, model, inputs, labels, rate)
    return crafted, server.read(
        knowledge, ((crafted, update),), public=public, generator=generator()
    )


def true_samples(reading: Reading, inputs: Tensor, tolerance: float = 0.01) -> Tensor:
    """The number of the sample that each found input is, -1 if it is none."""
    distance = torch.cdist(reading.inputs.flatten(1), inputs.flatten(1))
    if not len(distance):
        return torch.zeros(0, dtype=torch.long)
    size, nearest = distance.min(1)
    return torch.where(size < tolerance * inputs.flatten(1).norm(dim=1).mean(), nearest, -1)


def slow_peeling(model: nn.Module, gradient: dict[str, Tensor], samples: int) -> list[Tensor]:
    """Row by row, with the whole gradient of each candidate by autograd, in float64."""
    model = model.double()
    left = {name: value.double().clone() for name, value in gradient.items()}
    found: list[Tensor] = []
    again = True
    while again and len(found) < samples:
        again = False
        for row in range(len(left["1.bias"])):
            if abs(left["1.bias"][row]) < 1e-7:
                continue
            candidate = left["1.weight"][row] / left["1.bias"][row]
            if bool((candidate.abs() > 1.04).any()):
                continue
            for label in range(model[3].out_features):
                loss = cross_entropy(model, (candidate[None], torch.tensor([label]))) / samples
                names, parameters = zip(*model.named_parameters(), strict=True)
                parts = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
                if abs(parts["1.bias"][row] / left["1.bias"][row] - 1) < 1e-4:
                    for name, part in parts.items():
                        left[name] -= part
                    found.append(candidate)
                    again = True
                    break
    return found
