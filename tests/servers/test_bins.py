"""The server that divides a feature into bins, against a client that plain torch trains."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedleak.errors import BadInput
from fedleak.servers.bin_thresholds import Division
from fedleak.servers.bins import Bins, first_of_each, steadiest_feature, useful_features
from fedleak.servers.certificate import turned
from fedleak.updates.update import InterceptedUpdate
from tests.servers.small_client import SHAPE, asked, data, images, knowledge, net, sgd, train

PUBLIC = images(600, 99)


def features_of_bins(rounds, inputs: Tensor) -> list[list[Tensor]]:
    """The features of the samples in each bin, counted one sample after the other."""
    weights, memory = rounds[0][0].weights, rounds[0][0].memory
    model = net()
    model.load_state_dict(weights)
    limits = memory["thresholds"].tolist()
    feature, reference = int(memory["feature"]), int(memory["reference"])
    found: list[list[Tensor]] = [[] for _ in limits[1:]]
    with torch.no_grad():
        for one in inputs:
            own = model.features(one[None])[0].double()
            value = float(own[feature] / (1 if reference < 0 else own[reference]))
            for number, (low, high) in enumerate(itertools.pairwise(limits)):
                if low < value <= high:
                    found[number].append(own)
    return found


def matches(reading, features: list[Tensor], columns: list[int]) -> Tensor:
    """By how much the nearest of some features differs in direction, of each that was read."""
    own = torch.stack(features)
    own[:, columns] = 0
    read = reading.features.double().clone()
    read[:, columns] = 0
    return torch.stack([turned(row.expand_as(own), own).min() for row in read])


def samples_of(reading, rounds, inputs: Tensor) -> Tensor:
    """Number of the sample whose features are nearest in direction to each that was read."""
    model = net()
    model.load_state_dict(rounds[0][0].weights)
    with torch.no_grad():
        own = nn.functional.normalize(model.features(inputs), dim=1)
    return (nn.functional.normalize(reading.features, dim=1) @ own.T).argmax(dim=1)


SETTINGS = {
    "server": (Bins(rate="server", steps=0), sgd(1e-12), {}),
    "client": (Bins(steps=0), sgd(0.1), {}),
    "decay": (Bins(steps=0), sgd(0.1, weight_decay=5e-4), {"weight_decay": 5e-4}),
    "adam": (
        Bins(steps=0), lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        {"optimizer": "adam", "learning_rate": 1e-3, "momentum": 0.0},
    ),
    "adamw": (
        Bins(steps=0),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2),
        {"optimizer": "adamw", "learning_rate": 1e-3, "momentum": 0.0, "weight_decay": 1e-2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_single_samples_are_read_and_certified(setting: str) -> None:
    server, optimizer, told = SETTINGS[setting]
    facts = knowledge(net(), **told)
    singles = right = mixtures = 0
    for client in range(2):
        inputs, labels = data(client + 1)
        rounds = asked(server, facts, (inputs, labels), optimizer, seed=client)
        found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
        bins = features_of_bins(rounds, inputs)
        alone = [one[0] for one in bins if len(one) == 1]
        columns = Division.from_memory(rounds[0][0].memory).columns
        sure = found.certified
        # Other samples than those alone count too if they alone send a signal back.
        everyone = [own for one in bins for own in one]
        close = matches(found, everyone, columns)
        singles += len(alone)
        right += int((close[sure] < 1e-6).sum())
        mixtures += int((close[sure] >= 1e-6).sum())
        assert found.inputs.shape == (len(sure), *SHAPE)
    assert singles > 7
    assert right > 0.6 * singles
    assert mixtures == 0


def test_what_is_read_is_what_was_alone() -> None:
    server, facts, inputs = Bins(rate="server", steps=0), knowledge(net()), data()
    rounds = asked(server, facts, inputs, sgd(1e-12))
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    alone = [one[0] for one in features_of_bins(rounds, inputs[0]) if len(one) == 1]
    columns = Division.from_memory(rounds[0][0].memory).columns
    assert int(found.certified.sum()) == len(alone)
    assert float(matches(found, alone, columns).max()) < 1e-8
    sent = net()
    sent.load_state_dict(rounds[1][0].weights)
    own = server.features_of(sent, inputs[0]).double()
    read = found.features.double()
    nearest = torch.stack([turned(row.expand_as(own), own).min() for row in read])
    assert float(nearest.max()) < 1e-8
    assert f"{len(alone)} are certified" in found.findings[0]


def test_labels_are_those_of_the_samples() -> None:
    server, facts = Bins(rate="server", steps=0), knowledge(net(), momentum=0.0)
    inputs, labels = data()
    rounds = asked(server, facts, (inputs, labels), lambda p: torch.optim.SGD(p, lr=1e-12))
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    nearest = samples_of(found, rounds, inputs)
    known = found.labels >= 0
    assert int(known.sum()) >= 3
    assert torch.equal(found.labels[known], labels[nearest][known])


def test_two_samples_of_one_label_are_not_certified_where_all_steps_count_alike() -> None:
    """By plain SGD their direction stays; the sum is too long for one."""
    server = Bins(rate="server", steps=0)
    facts = knowledge(net(), momentum=0.0)
    inputs, _ = data(3)
    labels = torch.zeros(len(inputs), dtype=torch.long)
    rounds = asked(server, facts, (inputs, labels), lambda p: torch.optim.SGD(p, lr=1e-12))
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    bins = features_of_bins(rounds, inputs)
    assert sum(len(one) > 1 for one in bins) >= 2
    alone = [one[0] for one in bins if len(one) == 1]
    columns = Division.from_memory(rounds[0][0].memory).columns
    close = matches(found, alone, columns)
    assert bool((close[found.certified] < 1e-8).all())
    assert int(found.certified.sum()) == len(alone)
    assert int((~found.certified).sum()) >= 2


def test_one_class_alone_is_read() -> None:
    server = Bins(rate="server", steps=0, only_class=2)
    facts, (inputs, labels) = knowledge(net(), samples=240), data(4, samples=240)
    rounds = asked(server, facts, (inputs, labels), sgd(1e-12))
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    alone = [one[0] for one in features_of_bins(rounds, inputs[labels == 2]) if len(one) == 1]
    columns = Division.from_memory(rounds[0][0].memory).columns
    assert len(alone) >= 4
    assert int((matches(found, alone, columns)[found.certified] < 1e-8).sum()) >= 0.7 * len(alone)
    assert set(found.labels.tolist()) == {2}


def test_the_mean_of_several_clients_is_read_as_one() -> None:
    server = Bins(rate="server", steps=0)
    facts = knowledge(net(), samples=128)
    clients, rounds = [data(5), data(6)], []
    draw = torch.Generator().manual_seed(0)
    for number in range(2):
        earlier = tuple(rounds)
        sent = server.craft(facts, public=PUBLIC, generator=draw, earlier=earlier)
        each = [
            train(facts.model, sent.weights, one, sgd(1e-12), 10 * number + at)
            for at, one in enumerate(clients)
        ]
        mean = {name: sum(part[name] for part in each) / 2 for name in each[0]}
        update = InterceptedUpdate(number + 1, 0, "fedavg", 128, "net", sent.weights, mean)
        rounds.append((sent, update))
    found = server.read(facts, tuple(rounds), public=PUBLIC, generator=torch.Generator())
    inputs = torch.cat([one[0] for one in clients])
    alone = [one[0] for one in features_of_bins(rounds, inputs) if len(one) == 1]
    columns = Division.from_memory(rounds[0][0].memory).columns
    assert len(alone) >= 4
    assert int(found.certified.sum()) >= 0.8 * len(alone)
    assert float(matches(found, alone, columns)[found.certified].max()) < 1e-8


def test_every_pair_of_rounds_divides_another_feature_with_the_same_encoder() -> None:
    server, facts = Bins(rate="server", steps=0, rounds=4), knowledge(net())
    rounds = asked(server, facts, data(), sgd(1e-12), rounds=4)
    features = [int(sent.memory["feature"]) for sent, _ in rounds]
    assert features[0] == features[1] != features[2] == features[3]
    for name in ("conv1.weight", "conv2.weight"):
        assert all(
            torch.equal(sent.weights[name], facts.model.get_parameter(name)) for sent, _ in rounds
        )
    both = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    one = server.read(facts, rounds[:2], public=PUBLIC, generator=torch.Generator())
    assert int(both.certified.sum()) > int(one.certified.sum())
    assert len(first_of_each(both.features.double(), both.certified)) == len(both.features)


def test_one_round_alone_certifies_nothing_and_says_so() -> None:
    server, facts = Bins(rate="server", steps=0), knowledge(net())
    rounds = asked(server, facts, data(), sgd(1e-12), rounds=1)
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    assert len(found.features) > 3
    assert not found.certified.any()
    assert "not asked again" in found.findings[1]


def test_only_the_tiny_rate_is_sent_and_the_model_is_left_alone() -> None:
    model, draw = net(), torch.Generator()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = Bins().craft(knowledge(model), public=PUBLIC, generator=draw)
    servers = Bins(rate="server", rate_name="learning-rate").craft(
        knowledge(model), public=PUBLIC, generator=draw
    )
    assert own.config == {}
    assert servers.config == {"learning-rate": 1e-12}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert own.weights[name].shape == value.shape
        assert own.weights[name].dtype == value.dtype
        if "conv" in name:
            assert torch.equal(own.weights[name], value)


def test_an_encoder_comes_from_a_file(tmp_path: Path) -> None:
    other = net(seed=5)
    weights = {n: v.detach() for n, v in other.state_dict().items() if n.startswith("conv")}
    save_file(weights, tmp_path / "encoder.safetensors")
    sent = Bins(encoder=str(tmp_path / "encoder.safetensors")).craft(
        knowledge(net()), public=PUBLIC, generator=torch.Generator()
    )
    for name, value in weights.items():
        assert torch.equal(sent.weights[name], value)
    del weights["conv2.bias"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(BadInput, match=r"Expected the encoder's weights .*conv2\.bias"):
        Bins(encoder=str(tmp_path / "part.safetensors")).craft(
            knowledge(net()), public=PUBLIC, generator=torch.Generator()
        )


def test_pictures_are_nearer_than_the_mean_picture() -> None:
    server, facts, (inputs, labels) = Bins(rate="server", steps=60), knowledge(net()), data()
    rounds = asked(server, facts, (inputs, labels), sgd(1e-12))
    found = server.read(facts, rounds, public=PUBLIC, generator=torch.Generator())
    truth = inputs[samples_of(found, rounds, inputs)]
    error = (found.inputs - truth).flatten(1).norm(dim=1)
    guess = (truth - PUBLIC.mean(dim=0)).flatten(1).norm(dim=1)
    assert float(error.mean()) < 0.9 * float(guess.mean())
    assert float(found.inputs.abs().max()) <= 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": "mine"}, "rate of bins"),
        ({"learning_rate": 0.1}, "`learning_rate` of bins above 0, to 1e-9, got 0.1"),
        ({"rounds": 0}, "`rounds` of bins at least 1"),
        ({"above": 1.0}, "`above` of bins from 0 to below 1"),
        ({"tolerance": 0.0}, "`tolerance` of bins above 0"),
        ({"only_class": 1}, "`rate` server with `only_class`"),
        ({"class_share": 2.0}, "`class_share` of bins above 0, to 1"),
    ],
)
def test_hyperparameters_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Bins(**settings)


def test_what_cannot_be_attacked_is_refused() -> None:
    draw = torch.Generator()

    def craft(server: Bins, facts, public: Tensor | None = PUBLIC) -> None:
        server.craft(facts, public=public, generator=draw)

    with pytest.raises(BadInput, match=r"public samples of the shape \(3, 8, 8\).* got none"):
        craft(Bins(), knowledge(net()), None)
    with pytest.raises(BadInput, match=r"at least 30 public samples .* got 20"):
        craft(Bins(), knowledge(net()), PUBLIC[:20])
    with pytest.raises(BadInput, match="trains by sgd, adam or adamw, got rmsprop"):
        craft(Bins(), knowledge(net(), optimizer="rmsprop"))
    with pytest.raises(BadInput, match="Expected adam without weight decay"):
        craft(Bins(), knowledge(net(), optimizer="adam", momentum=0.0, weight_decay=1e-4))
    with pytest.raises(BadInput, match="number of the clients' samples"):
        craft(Bins(), knowledge(net(), samples=0))
    with pytest.raises(BadInput, match=r"Expected more than 20 samples .* for 19 bins"):
        craft(Bins(), knowledge(net(), samples=12))
    with pytest.raises(BadInput, match="`only_class` from 0 to 3, got 7"):
        craft(Bins(rate="server", only_class=7), knowledge(net(), samples=900))
    assert "three linear layers" in str(Bins().refuses_model(nn.Linear(3, 2)))
    assert Bins().refuses_model(net()) is None


def test_an_update_of_another_model_is_refused() -> None:
    server, facts = Bins(rate="server", steps=0), knowledge(net())
    ((sent, update),) = asked(server, facts, data(), sgd(1e-12), rounds=1)
    lacking = {n: v for n, v in update.received.items() if n != "fc1.weight"}
    update = InterceptedUpdate(1, 0, "fedavg", 64, "net", sent.weights, lacking)
    with pytest.raises(BadInput, match=r"Expected `fc1\.weight` in update r0001-c0000"):
        server.read(facts, ((sent, update),), public=PUBLIC, generator=torch.Generator())
    with pytest.raises(BadInput, match="at least one round"):
        server.read(facts, (), public=PUBLIC, generator=torch.Generator())


def test_features_are_chosen() -> None:
    features = torch.tensor([[0.0, 1.0, 2.0, 9.9], [0.0, 2.0, 2.1, 10.0], [1.0, 9.0, 2.2, 10.1]])
    features = features.repeat(20, 1)
    assert useful_features(features) == [1, 2, 3]
    assert steadiest_feature(features) == 3
