"""Statistics of a received model against literal, slow versions and hand-made networks."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fedleak.defenses import received_model
from fedleak.errors import BadInput


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


def slow_parallel(weights: Tensor) -> float:
    kept = [row.double() for row in weights if bool(row.any())]
    found = 0
    for i, row in enumerate(kept):
        found += any(
            abs(float(row @ other) / float(row.norm() * other.norm())) > 0.9999
            for j, other in enumerate(kept)
            if j != i
        )
    return found / len(kept)


def slow_exposed(gradients: Tensor) -> float:
    """Peeling by sets; two units are combined if one scale makes them equal where both fire."""
    samples, units = gradients.shape
    largest = gradients.abs().amax(0)
    sets = []
    for unit in range(units):
        sets.append(
            {i for i in range(samples) if abs(gradients[i, unit]) > 1e-4 * largest[unit] > 0}
        )
    order = sorted((u for u in range(units) if sets[u]), key=lambda u: len(sets[u]))
    rows = list(sets)
    for one, other in itertools.combinations(range(len(order)), 2):
        if other - one > received_model.NEIGHBOURS:
            continue
        a, b = order[one], order[other]
        both = sorted(sets[a] & sets[b])
        if both:
            x, y = gradients[both, a].double(), gradients[both, b].double()
            if float((x - x @ y / (y @ y) * y).abs().max()) <= 1e-3 * float(x.abs().max()):
                rows.append(sets[a] ^ sets[b])
    read: set[int] = set()
    while new := {next(iter(row - read)) for row in rows if len(row - read) == 1}:
        read |= new
    return len(read) / samples


@pytest.mark.parametrize("seed", range(3))
def test_parallel_rows_are_those_of_a_double_loop(seed: int) -> None:
    weights = normal(300, 40, seed=seed)
    weights[7] = 0
    weights[20:30] = weights[5] * torch.linspace(-2, 3, 10)[:, None]
    weights[40] = weights[41] + 1e-4 * normal(40, seed=9)
    weights[50] = weights[51] + 0.1 * normal(40, seed=9)
    assert slow_parallel(weights) == 13 / 299
    assert received_model.parallel_rows(weights) == pytest.approx(13 / 299)


def test_parallel_rows_of_tiny_and_huge_weights_are_found() -> None:
    weights = normal(30, 40)
    weights[:15] = weights[0]
    weights *= 10 ** torch.linspace(-30, 30, 30)[:, None]
    assert received_model.parallel_rows(weights) == 0.5


def test_many_rows_are_compared_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received_model, "QUERIES", 100)
    weights = normal(1000, 40)
    weights[:500] = weights[0]
    assert received_model.parallel_rows(weights) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("shape", [(7, 40), (300, 31), (0, 50), (9, 0)])
def test_few_rows_or_entries_are_not_compared(shape: tuple[int, int]) -> None:
    assert received_model.parallel_rows(torch.ones(shape)) == 0


def test_rows_of_transposed_convolutions_are_output_channels() -> None:
    layer = nn.ConvTranspose2d(6, 8, 3, groups=2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[3:, 1] = 1  # the second output channel of the second group
    found = received_model.rows(layer)
    assert found.shape == (8, 3 * 9)
    assert found.any(1).nonzero().flatten().tolist() == [5]


def test_bias_ratio_by_hand() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1, 1, 1], [3, 3, -3, 3]]))
        layer.bias.copy_(torch.tensor([1.0, -20.0]))
    assert received_model.bias_ratio(layer) == pytest.approx(20 / (math.sqrt(5) * 2))
    assert received_model.bias_ratio(nn.Linear(4, 2, bias=False)) == 0


def test_unit_gradients_are_zero_exactly_where_the_update_has_none_of_the_sample() -> None:
    model, inputs = net(), normal(20, 12)
    gradients = received_model.unit_gradients(model, (inputs, torch.zeros(20)))
    assert {name: value.shape for name, value in gradients.items()} == {
        "0": (20, 16), "2": (20, 5), "4": (20, 3)
    }  # fmt: skip
    for i, name in itertools.product(range(20), ("0", "2")):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs[i : i + 1]), torch.tensor([1])).backward()
        touched = model.get_parameter(f"{name}.bias").grad != 0
        assert torch.equal(gradients[name][i] != 0, touched)


def test_unit_gradients_are_the_same_in_chunks_and_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(),
        nn.Linear(288, 10), nn.ReLU(inplace=True), nn.Linear(10, 3),
    )  # fmt: skip
    model.requires_grad_(False)
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = normal(10, 1, 8, 8)
    whole = received_model.unit_gradients(model, images)
    monkeypatch.setattr(received_model, "CHUNK", 3)
    parts = received_model.unit_gradients(model, images)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [True] * 3 + [False] + [True] * 4
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_mappings_and_sequences_are_taken() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.dense = nn.Embedding(9, 6), nn.Linear(6, 11)
            self.lstm, self.out = nn.LSTM(11, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, ids: Tensor, scale: float) -> dict[str, Tensor]:
            hidden = torch.relu(self.dense(self.embedding(ids)))
            return {"logits": self.out(self.lstm(hidden)[0][:, -1]) * scale}

    ids = torch.randint(9, (5, 7), generator=generator())
    gradients = received_model.unit_gradients(Text(), {"ids": ids, "scale": 2.0})
    assert {name: value.shape for name, value in gradients.items()} == {
        "dense": (5, 11), "out": (5, 2)
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_exposed_share_is_that_of_peeling_by_sets(seed: int) -> None:
    # Sparse units, proportional ones whose sets are nested, and units that nothing touches.
    chosen = torch.rand(30, 24, generator=generator(seed)) < 0.09
    gradients = normal(30, 24, seed=seed) * chosen
    steps = torch.arange(30)[:, None] < torch.tensor([22, 23, 25, 27])
    nested = normal(30, 1, seed=seed + 10).expand(30, 4) * steps * torch.tensor([1.0, -2, 0.5, 3])
    gradients = torch.cat([gradients, nested, torch.zeros(30, 2)], 1)
    expected = slow_exposed(gradients)
    assert 0 < expected < 1
    assert received_model.exposed_share(gradients) == pytest.approx(expected)
    assert received_model.exposed_share(gradients * 1e-30) == pytest.approx(expected)


def test_bins_expose_the_samples_that_are_alone_between_two_thresholds() -> None:
    values = torch.tensor([0.1, 0.15, 0.3, 0.5, 0.55, 0.7, 0.95])
    thresholds = torch.linspace(0.05, 0.9, 9)
    fires = values[:, None] > thresholds
    gradients = normal(7, 1) * fires
    # 0.3, 0.7 and 0.95 are alone in a bin; 0.1 and 0.15, 0.5 and 0.55 share one.
    assert received_model.exposed_share(gradients) == pytest.approx(3 / 7)


def test_layers_of_few_inputs_say_little_of_a_sample() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3), nn.ReLU(), nn.Linear(3, 5)
    )
    assert received_model.telling_layers(model, torch.zeros(2, 1, 8, 8)) == {"0", "2"}
    assert received_model.telling_layers(model, torch.zeros(2, 1, 20, 20)) == {"2"}


def test_a_fresh_copy_has_the_same_modules_and_new_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.PReLU())
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(7)
    model[1].running_mean.fill_(7)
    state = torch.random.get_rng_state()
    twin = received_model.fresh_copy(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(bool((value == 7).all()) for value in model.parameters())
    assert not any(bool((value == 7).any()) for value in twin.state_dict().values())
    assert torch.equal(received_model.fresh_copy(model)[0].weight, twin[0].weight)


def test_smaller_batches_are_averaged() -> None:
    # One unit for each pair of samples: a pair is exposed where a batch has one of it alone.
    gradients = torch.eye(20).repeat_interleave(2, 0) * (1 + torch.rand(40, 1))
    order = torch.randperm(40, generator=generator())
    expected = []
    for chosen in order.split(10):
        pairs = (chosen // 2).tolist()
        expected.append(sum(pairs.count(pair) == 1 for pair in pairs) / 10)
    found = received_model.exposed_share(gradients, 10)
    assert found == pytest.approx(sum(expected) / 4)
    assert 0 < found < 1
    assert received_model.exposed_share(gradients, 40) == 0


def test_dense_gradients_expose_nothing() -> None:
    assert received_model.exposed_share(normal(40, 30)) == 0
    assert received_model.exposed_share(torch.zeros(40, 30)) == 0
    assert received_model.exposed_share(normal(1, 30)) == 0


def test_rare_share_counts_units_that_fire_seldom_but_not_never() -> None:
    gradients = torch.ones(100, 4)
    gradients[1:, 0] = 0
    gradients[:, 1] = 0
    gradients[2:, 2] = 0
    assert received_model.rare_share(gradients) == 0.25


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("images", "Expected `batch` to be inputs .* got str"),
        (torch.zeros(0, 12), "Expected at least one sample in `batch`, got none"),
        (
            {"a": torch.zeros(2), "b": torch.zeros(3)},
            r"one number of samples in `batch`, got \[2, 3\]",
        ),
        (torch.zeros(2, 7), "Expected a batch that Sequential can compute, got the error"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batch: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        received_model.unit_gradients(net(), batch)


def test_a_model_without_a_row_for_each_sample_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mean()

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs).argmax(1)

    with pytest.raises(BadInput, match=r"a row for each of 4 samples, got Tensor of shape \(\)"):
        received_model.unit_gradients(Mean(), torch.zeros(4, 3))
    without = r"got Tensor of shape \(4, 3\), which depends on no linear or convolutional layer"
    with pytest.raises(BadInput, match=without):
        received_model.unit_gradients(nn.Sequential(nn.ReLU()), torch.zeros(4, 3))
    with pytest.raises(BadInput, match=r"got Tensor of shape \(4,\) and type torch.int64"):
        received_model.unit_gradients(Classes(), torch.zeros(4, 3))


@pytest.mark.parametrize("kind", ["linear", "convolution", "transposed"])
def test_offsets_against_the_definition(kind: str) -> None:
    torch.manual_seed(0)
    layer = {
        "linear": nn.Linear(6, 4), "convolution": nn.Conv1d(2, 4, 3),
        "transposed": nn.ConvTranspose1d(2, 4, 3),
    }[kind]  # fmt: skip
    inputs = normal(130, 6) if kind == "linear" else normal(130, 2, 9)
    model = nn.Sequential(layer, nn.ReLU())
    with torch.no_grad():
        layer.bias[1] = -3.0
        outputs = layer(inputs)
        made = outputs - layer.bias.reshape(-1, *[1] * (outputs.dim() - 2))
    norm = math.sqrt(6 * float(inputs.square().mean()))
    expected = 3.0 * norm / math.sqrt(float(made.square().mean()))
    assert received_model.offsets(model, inputs)["0"] == pytest.approx(expected, rel=1e-5)


def test_offsets_of_random_weights_are_those_of_a_uniform_law() -> None:
    """The largest of many biases is the root of 3 times their deviation, at any width and scale."""
    torch.manual_seed(0)
    for width, scale in ((30, 1.0), (1000, 1e-3), (1000, 50.0)):
        model = nn.Sequential(nn.Linear(width, 400), nn.ReLU(), nn.Linear(400, 400), nn.Tanh())
        found = received_model.offsets(model, scale * normal(100, width))
        assert found["0"] == pytest.approx(math.sqrt(3), rel=0.1)
        assert found["2"] == pytest.approx(math.sqrt(3), rel=0.15)


def test_offsets_leave_out_what_has_none_and_leave_no_trace() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    with torch.no_grad():
        model[2].weight.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert received_model.offsets(model, normal(10, 6)) == {}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
