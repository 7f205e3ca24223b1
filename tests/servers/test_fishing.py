"""One sample of a class behind the gradient: counted, read, and handed to other attacks."""

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.analytic import Analytic
from fedleak.errors import BadInput
from fedleak.servers.base import Crafted
from fedleak.servers.fishing import Fishing, find_layers
from fedleak.updates.update import InterceptedUpdate
from tests.servers.perceptrons import (
    SHAPE,
    cross_entropy,
    generator,
    knowledge_of,
    perceptron,
    pictures,
    update_of,
)  # fmt: skip
from tests.servers.small_client import SHAPE as PICTURES
from tests.servers.small_client import images, net

CONVOLUTIONAL = {"input_shape": PICTURES, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def pooled() -> nn.Sequential:
    """Convolutions and a single linear layer, as a residual network ends."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4)
    )


def caught(model: nn.Module, crafted: Crafted, inputs: Tensor, labels: Tensor, name: str) -> Tensor:
    """Numbers of the samples of class 0 for which the gate's unit fires."""
    model.load_state_dict(crafted.weights)
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    model(inputs)
    handle.remove()
    return ((seen[0][:, 0] > 0) & (labels == 0)).nonzero().flatten()


def test_the_layers_of_models() -> None:
    found = find_layers(perceptron(), SHAPE)
    assert (found.last, found.gate, found.first, found.before) == ("3", "1", "1", ())
    found = find_layers(net(), PICTURES)
    assert (found.last, found.gate, found.first) == ("fc3", "fc2", "fc1")
    assert found.before == ("conv1", "conv2")
    found = find_layers(pooled(), PICTURES)
    assert (found.last, found.gate, found.first, found.before) == ("4", None, "4", ("0",))


def test_a_sample_is_read_exactly_where_one_comes_through_and_none_otherwise() -> None:
    server, public, counts = Fishing(), pictures(800, 9), []
    for seed in range(12):
        inputs, labels = pictures(24, 10 + seed), torch.arange(24) % 3
        model = perceptron()
        facts = knowledge_of(model, 24)
        crafted = server.craft(facts, public=public, generator=generator(seed))
        update = update_of(crafted, model, inputs, labels)
        own = caught(model, crafted, inputs, labels, "1")
        reading = server.read(facts, ((crafted, update),), public=None, generator=generator())
        counts.append(len(own))
        assert len(reading.inputs) == (len(own) == 1)
        if len(own) == 1:
            assert reading.certified.tolist() == [True]
            assert reading.labels.tolist() == [0]
            assert float((reading.inputs - inputs[own]).abs().max()) < 1e-4
        else:
            assert "samples of class 0 came through" in reading.findings[0] or not len(own)
    assert counts.count(1) >= 2
    assert set(counts) - {1}


def test_features_are_exact_and_the_input_is_fitted_to_them() -> None:
    server, public = Fishing(class_share=0.25, steps=10), images(600, 99)
    inputs, labels = images(4, 1), torch.arange(4)
    model = net()
    facts = knowledge_of(model, 4, **CONVOLUTIONAL)
    crafted = server.craft(facts, public=public, generator=generator())
    update = update_of(crafted, model, inputs, labels)
    reading = server.read(facts, ((crafted, update),), public=public, generator=generator())
    assert reading.certified.tolist() == [True]
    model.load_state_dict(crafted.weights)
    true = server.features_of(model, inputs)
    assert float((reading.features - true[:1]).abs().max()) < 1e-4
    error = (reading.inputs - inputs[:1]).square().mean()
    # The mean of public images, without the update.
    assert float(error) < 0.8 * float((public.mean(0) - inputs[0]).square().mean())


def test_the_class_gate_alone_counts_the_class() -> None:
    server, model = Fishing(target_class=2, steps=5), pooled()
    facts = knowledge_of(model, 6, **CONVOLUTIONAL)
    crafted = server.craft(facts, public=None, generator=generator())
    for classes, number in (
        ([0, 1, 2, 3, 0, 1], 1),
        ([0, 2, 2, 3, 0, 2], 3),
        ([0, 1, 1, 3, 0, 1], 0),
    ):
        update = update_of(crafted, model, images(6, 4), torch.tensor(classes))
        reading = server.read(
            facts, ((crafted, update),), public=images(100, 5), generator=generator()
        )
        assert len(reading.inputs) == (number == 1)
        assert bool(reading.certified.all())


@pytest.mark.parametrize("make", [perceptron, net, pooled])
def test_the_gradient_that_is_left_is_that_of_the_sample(make) -> None:
    """Of all layers, as autograd computes it for the sample alone."""
    model = make()
    if make is perceptron:
        inputs, public, facts = pictures(3, 2), pictures(500, 9), knowledge_of(model, 3)
    else:
        inputs, public = images(3, 2), images(500, 9)
        facts = knowledge_of(model, 3, **CONVOLUTIONAL)
    server = Fishing(target_class=1, class_share=1 / 3)
    crafted = server.craft(facts, public=public, generator=generator())
    update = update_of(crafted, model, inputs, torch.arange(3))
    found = server.single_gradient(facts, crafted, update)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = cross_entropy(model, (inputs[1:2], torch.tensor([1])))
    for name, own in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(found[name].float(), own, rtol=1e-4, atol=1e-6)
    if make is perceptron:
        single = InterceptedUpdate(1, 0, "fedsgd", 1, "mlp", crafted.weights, found)
        told = knowledge_of(model, 1, labels=torch.tensor([1]))
        (result,) = Analytic()([single], told, seed=0, device="cpu")
        assert float((result.inputs - inputs[1:2]).abs().max()) < 1e-3


def test_two_samples_of_the_class_are_refused_as_one() -> None:
    model = perceptron()
    facts, server = knowledge_of(model, 2), Fishing(class_share=0.5)
    crafted = server.craft(facts, public=pictures(100, 1), generator=generator())
    update = update_of(crafted, model, pictures(2, 3), torch.tensor([0, 0]))
    with pytest.raises(BadInput, match="Expected one sample of class 0 behind the gradient, got 2"):
        server.single_gradient(facts, crafted, update)


def test_one_step_of_weights_is_read_too() -> None:
    model, inputs = perceptron(), pictures(3, 2)
    facts = knowledge_of(model, 3, protocol="fedavg", learning_rate=0.1)
    server = Fishing(class_share=1 / 3)
    crafted = server.craft(facts, public=pictures(500, 9), generator=generator())
    update = update_of(crafted, model, inputs, torch.arange(3), rate=0.1)
    reading = server.read(facts, ((crafted, update),), public=None, generator=generator())
    assert reading.certified.tolist() == [True]
    assert float((reading.inputs - inputs[:1]).abs().max()) < 1e-3


def test_refusals() -> None:
    facts = knowledge_of(perceptron(), 8)
    for settings, text in (
        ({"target_class": -1}, "Expected `target_class` of fishing at least 0, got -1"),
        ({"class_share": 0.0}, "Expected `class_share` of fishing above 0, to 1, got 0"),
    ):
        with pytest.raises(BadInput, match=text):
            Fishing(**settings)
    with pytest.raises(BadInput, match="Expected public samples for the threshold of fishing"):
        Fishing().craft(facts, public=None, generator=generator())
    with pytest.raises(BadInput, match="Expected `target_class` of fishing from 0 to 2, got 3"):
        Fishing(target_class=3).craft(facts, public=pictures(50), generator=generator())
    several = knowledge_of(perceptron(), 8, protocol="fedavg", learning_rate=0.1, local_steps=3)
    with pytest.raises(BadInput, match=r"fishing can read, but it .* theirs is of 3 steps"):
        Fishing().craft(several, public=pictures(50), generator=generator())
    with pytest.raises(BadInput, match="to end with a linear layer"):
        find_layers(nn.Sequential(nn.Conv2d(1, 1, 3)), SHAPE)
