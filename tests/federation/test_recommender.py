"""Every user is a client: seats, sampled clients, compact gradients, the server's Adam, scores."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from safetensors import safe_open
from torch import Tensor

from fedleak import experiment
from fedleak.build import make_data, make_model
from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.federation import records
from fedleak.federation.engine.server import make_strategy
from fedleak.federation.engine.shared_weights import SharedFolder, sent_with
from fedleak.models.noise import inject
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import Tensors, update_files
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.federation.fakes import sends_gradient, train_question, weights
from tests.federation.runs import (
    Recorder,
    in_process,
    nothing_left_running,
    tiny_config,
    tiny_data,
)

USERS = 100
DATA = Plugin("fedleak.data.planted.PlantedGroups", {"users": 140, "items": 60, "held_out": 20})
MODEL = {"hidden": 12, "code": 4, "dropout": 0.5}
ANALYTIC = Plugin("fedleak.attacks.analytic.Analytic", {})
CLIPPING = Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": 0.1})
RATE, EPSILON = 0.01, 1e-4


def config(output: Path, model: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    federation = {
        "clients": USERS, "clients_per_round": 7, "partition": "one_each", "rounds": 2,
        "strategy": "FedAdam", "strategy_options": {"eta": RATE, "tau": EPSILON, "beta_2": 0.99},
    }  # fmt: skip
    federation |= {n: changes.pop(n) for n in list(changes) if n in Federation.__annotations__}
    victims = Victims(rounds=changes.pop("rounds_attacked", None))
    return RunConfig(
        data=DATA, model=Plugin("fedleak.models.fedvae.FedVAE", MODEL | (model or {})),
        output=str(output), federation=Federation(**federation), victims=victims, **changes,
    )  # fmt: skip


def run(settings: RunConfig) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Summary, and the server's metrics by round."""
    observer = Recorder()
    with in_process():
        summary = experiment.run(settings, [observer])
    return summary, {r: metrics for _, r, metrics in observer.arguments("round_evaluated")}


def updates_of(settings: RunConfig) -> list[tuple[InterceptedUpdate, GroundTruth]]:
    folder = RunFolder(Path(settings.output))
    return [
        (InterceptedUpdate.load(path), GroundTruth.load(folder.truth() / path.name))
        for path in update_files(folder.updates())
    ]


def literal_gradient(settings: RunConfig, sent: Tensors, truth: GroundTruth) -> Tensors:
    """A user's gradient by autograd, with what the user drew."""
    model = make_model(settings, make_data(settings)).train()
    model.load_state_dict(sent)
    with inject(model, truth.noise):
        loss = model.batch_loss((truth.inputs, truth.labels))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


# ------------------------------------------------------------------------------ who takes part


def test_the_users_of_a_round_are_drawn_anew_and_the_same_again(tmp_path: Path) -> None:
    seen = []
    for name in ("first", "second"):
        settings = config(tmp_path / name)
        run(settings)
        seen.append([(update.round, update.client) for update, _ in updates_of(settings)])
    assert seen[0] == seen[1]
    first, second = ({c for r, c in seen[0] if r == round_} for round_ in (1, 2))
    assert (len(first), len(second)) == (7, 7)
    assert first != second
    assert max(first | second) > 30  # not the first ones


def test_every_client_is_the_user_of_its_number(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1)
    run(settings)
    data = make_data(settings)
    found = updates_of(settings)
    assert len(found) == 7
    for update, truth in found:
        assert torch.equal(truth.inputs[0], data.train_set[update.client][0])


def test_a_few_seats_do_as_a_node_for_each_client(tmp_path: Path) -> None:
    metrics = []
    for seats in (5, USERS):
        settings = config(tmp_path / str(seats))
        few = {"SEATS_PER_WORKER": seats, "available_cores": lambda: 1}
        with mock.patch.multiple("fedleak.federation.engine.virtual_clients", **few):
            metrics.append(run(settings)[1])
    assert metrics[0] == metrics[1]
    assert list(metrics[0]) == [0, 1, 2]


@pytest.mark.slow
def test_ray_does_as_one_process(tmp_path: Path) -> None:
    alone = run(config(tmp_path / "alone"))[1]
    observer = Recorder()
    with nothing_left_running():
        experiment.run(config(tmp_path / "ray"), [observer])
    found = {r: metrics for _, r, metrics in observer.arguments("round_evaluated")}
    assert found == alone


# ------------------------------------------------------------------------- what the server sees


def test_the_server_sees_the_whole_gradient_of_a_few_numbers(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1)
    run(settings)
    for update, truth in updates_of(settings):
        expected = literal_gradient(settings, update.sent, truth)
        assert set(update.received) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(update.received[name], value, rtol=1e-5, atol=1e-7)
    path = update_files(RunFolder(Path(settings.output)).updates())[0]
    with safe_open(path, framework="pt") as file:
        sent = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert sent < 0.2 * sum(value.numel() for value in expected.values())


@pytest.mark.parametrize("learning_rate", [1.0, 0.01])
def test_the_servers_adam_is_that_of_the_sum_over_all_users(
    tmp_path: Path, learning_rate: float
) -> None:
    """FedAdam as it is: Kingma and Ba's Adam, its bias correction being one step ahead.

    The paper's server adds the gradients of a round's K users and divides by the number N of all
    users. Adam does not notice the factor N / K but by its epsilon, which is scaled here; nor that
    FedAdam is given steps of the clients' learning rate, but for that.
    """
    rounds = 4
    settings = config(tmp_path / "run", {"learning_rate": learning_rate}, rounds=rounds)
    run(settings)
    groups: dict[int, list[Tensors]] = {}
    sent: dict[int, Tensors] = {}
    for update, truth in updates_of(settings):
        gradient = literal_gradient(settings, update.sent, truth)
        groups.setdefault(update.round, []).append({n: g.double() for n, g in gradient.items()})
        sent[update.round] = update.sent
    epsilon = EPSILON / learning_rate * len(groups[1]) / USERS
    theta = {name: value.double() for name, value in sent[1].items()}
    m = {name: torch.zeros_like(value) for name, value in theta.items()}
    v = {name: torch.zeros_like(value) for name, value in theta.items()}
    for step in range(1, rounds):
        scale = RATE * math.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        for name in theta:
            total: Tensor = sum(gradient[name] for gradient in groups[step]) / USERS  # type: ignore[assignment]
            m[name] = 0.9 * m[name] + 0.1 * total
            v[name] = 0.99 * v[name] + 0.01 * total**2
            theta[name] = theta[name] - scale * m[name] / (v[name].sqrt() + epsilon)
            # Each round's gradients are those of float32 weights: the error does not add up.
            torch.testing.assert_close(
                sent[step + 1][name].double(), theta[name], rtol=1e-4, atol=2e-5
            )


def test_the_servers_learning_rate_falls(tmp_path: Path) -> None:
    distances = []
    for decay in (1.0, 0.1):
        settings = config(
            tmp_path / str(decay), rounds=3, strategy="FedAvgM", learning_rate_decay=decay,
            strategy_options={"server_learning_rate": 1.0},
        )  # fmt: skip
        run(settings)
        sent = {update.round: update.sent for update, _ in updates_of(settings)}
        moved = [
            float((sent[r + 1]["decoder.2.weight"] - sent[r]["decoder.2.weight"]).norm())
            for r in (1, 2)
        ]
        distances.append(moved)
    assert distances[0][0] == pytest.approx(distances[1][0])
    assert distances[1][1] == pytest.approx(0.1 * distances[0][1], rel=0.2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy": "FedAvg", "strategy_options": {}, "learning_rate_decay": 0.9},
         "a strategy with eta or server_learning_rate where `federation.learning_rate_decay`"),
        ({"strategy_options": {"fraction_train": 0.5}},
         "and none of fraction_train, min_train_nodes among its options"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        make_strategy(config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients_per_round": 0}, "from 1 to 100, the number of clients, got 0"),
        ({"clients_per_round": 101}, "from 1 to 100, the number of clients, got 101"),
        ({"learning_rate_decay": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"evaluate_every": 0}, "`federation.evaluate_every` to be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        config(tmp_path, **changes)


# ------------------------------------------------------------------------------- what is sent


def test_a_rounds_weights_lie_in_one_file_while_they_are_wanted(tmp_path: Path) -> None:
    content = RecordDict({
        records.ARRAYS: records.to_record(weights(3)),
        records.CONFIG: ConfigRecord({records.ROUND: 4}),
    })  # fmt: skip
    messages = [Message(content, node, MessageType.TRAIN) for node in (1, 2, 3)]
    with SharedFolder(tmp_path / "shared").sending(messages) as ready:
        assert len(list((tmp_path / "shared").iterdir())) == 1
        for message in ready:
            assert not message.content.array_records
            assert message.content.config_records[records.CONFIG][records.ROUND] == 4
            for name, value in sent_with(message).items():
                assert torch.equal(value, weights(3)[name])
    assert not list((tmp_path / "shared").iterdir())
    assert records.ARRAYS in content  # the strategy's own is left alone


def test_merged_replies_weigh_as_much_as_they_did(tmp_path: Path) -> None:
    sent = weights(0)
    replies = []
    for node, examples in ((1, 2), (2, 6)):
        gradient = weights(node)
        buffers = {"norm.running_mean": gradient.pop("norm.running_mean")}
        question = train_question(node, sent)
        question.metadata.__dict__["_message_id"] = str(node)
        replies.append(sends_gradient(question, gradient, buffers, examples, loss=float(node)))
    merged = records.merge(replies, gradients_of(replies), sent, 0.5)
    metrics: MetricRecord = merged.content.metric_records[records.METRICS]
    assert metrics[records.EXAMPLES] == 8
    assert metrics["loss"] == pytest.approx(0.25 * 1 + 0.75 * 2)
    arrays: ArrayRecord = merged.content.array_records[records.ARRAYS]
    assert list(arrays) == list(sent)
    for name, value in records.to_tensors(arrays).items():
        mean = 0.25 * weights(1)[name] + 0.75 * weights(2)[name]
        expected = mean if "running" in name else sent[name] - 0.5 * mean
        torch.testing.assert_close(value, expected.double(), rtol=1e-6, atol=1e-6)


def gradients_of(replies: list[Message]) -> list[CompactTensors]:
    return [records.to_compact(r.content.array_records[records.GRADIENT]) for r in replies]


def test_steps_are_made_when_they_are_asked_for() -> None:
    sent, gradient = weights(0), weights(1)
    buffers = {"norm.running_mean": gradient.pop("norm.running_mean")}
    question = train_question(1, sent)
    question.metadata.__dict__["_message_id"] = "1"
    reply = sends_gradient(question, gradient, buffers)
    records.as_weights(reply, *gradients_of([reply]), sent, 0.5)
    arrays = reply.content.array_records[records.ARRAYS]
    kinds = [type(value) is records.SteppedWeights for value in arrays.values()]
    assert kinds == [True, True, False]
    for name, value in gradient.items():
        expected = sent[name].double() - 0.5 * value.double()
        assert torch.equal(torch.from_numpy(arrays[name].numpy()), expected)
        assert len(arrays[name].data) > expected.numel() * 8


def test_replies_that_differ_are_not_merged() -> None:
    replies = []
    for node in (1, 2):
        question = train_question(node, weights(0))
        question.metadata.__dict__["_message_id"] = str(node)
        replies.append(sends_gradient(question, weights(node), loss=1.0))
    assert records.are_alike(replies, gradients_of(replies))
    del replies[1].content.array_records[records.GRADIENT]["layer.bias"]
    assert not records.are_alike(replies, gradients_of(replies))


def test_counts_are_rounded_and_not_cut() -> None:
    sent = {"count": torch.tensor(7), "w": torch.zeros(2)}
    mean = records.to_record({"count": torch.tensor(7.9999999), "w": torch.ones(2).double()})
    found = records.to_tensors(records.as_sent(mean, sent))
    assert (int(found["count"]), found["count"].dtype) == (8, torch.int64)
    assert found["w"].dtype == torch.float32


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_tied_weights_move_together(tmp_path: Path, protocol: str) -> None:
    settings = tiny_config(
        tiny_data(tmp_path), tmp_path / "run", rounds=2, protocol=protocol, model_args={},
        path="tests.federation.user_models.Tied", defenses=(CLIPPING,),
    )  # fmt: skip
    with in_process():
        experiment.run(settings)
    first, second = (
        next(update.sent for update, _ in updates_of(settings) if update.round == round_)
        for round_ in (1, 2)
    )
    names = ("layers.in/1.weight", "layers.in/2.weight")
    for sent in (first, second):
        assert torch.equal(sent[names[0]], sent[names[1]])
    assert not torch.equal(first[names[0]], second[names[0]])


def test_a_rising_beta_is_the_same_for_client_and_attacker(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", {"anneal_steps": 4, "beta": 5.0}, rounds=3)
    run(settings)
    seen = set()
    for update, truth in updates_of(settings):
        seen.add(int(update.sent["steps"]))
        expected = literal_gradient(settings, update.sent, truth)
        for name, value in expected.items():
            torch.testing.assert_close(update.received[name], value, rtol=1e-4, atol=1e-6)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("name", ["lenet.LeNet", "mlp.SMLP"])
def test_an_image_model_for_a_recommender(tmp_path: Path, name: str) -> None:
    settings = replace(config(tmp_path / "run"), model=Plugin(f"fedleak.models.{name}"))
    with pytest.raises(BadInput, match=r"for interactions of shape \(60,\) \(planted_groups\)"):
        experiment.run(settings)
    assert not (tmp_path / "run").exists()


def test_names_that_are_missing_are_found_missing_at_once(tmp_path: Path) -> None:
    listens = tmp_path / "listens.dat"
    rows = [f"{user}\t{item}\t1" for user in range(9) for item in range(6)]
    listens.write_text("\n".join(["userID\tartistID\tweight", *rows]))
    data = {"path": str(listens), "artists": str(tmp_path / "none.dat"), "held_out": 2}
    settings = replace(
        config(tmp_path / "run", clients=5, clients_per_round=2),
        data=Plugin("fedleak.data.lastfm.LastFM", data),
    )
    with pytest.raises(BadInput, match=r"Expected a file at .*none\.dat"):
        experiment.run(settings)
    assert not (tmp_path / "run").exists()


def test_who_was_not_drawn_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    observer = Recorder()
    settings = config(tmp_path / "run", rounds=1, attacks=(ANALYTIC,))
    settings = replace(settings, victims=Victims(clients=[drawn_by_nobody(settings)]))
    with in_process():
        experiment.run(settings, [observer])
    ((_, _, reason),) = observer.arguments("attack_skipped")
    assert "no client of `victims` took part" in reason


def drawn_by_nobody(settings: RunConfig) -> int:
    other = replace(settings, output=f"{settings.output}-first")
    run(other)
    drawn = {update.client for update, _ in updates_of(other)}
    return next(client for client in range(USERS) if client not in drawn)


# --------------------------------------------------------------------------- what comes of it


def test_scores_and_lists_of_items(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", rounds=1, attacks=(ANALYTIC,))
    summary, _ = run(settings)
    folder = RunFolder(Path(settings.output))
    rows = read_rows(folder.results)
    assert len(rows) == 7
    (entry,) = summary["attacks"]
    assert set(summary) == {"status", "config_hash", "data", "attacks", "federation"}
    assert (entry["precision"], entry["recall"], entry["f1"], entry["asr"]) == (1, 1, 1, 1)
    assert entry["ssim"] is None
    data = make_data(settings)
    for row in rows:
        assert (row["f1"], row["success"], row["ssim"], row["mse"]) == (1, 1, None, 0)
        with folder.reconstruction(row, ".csv").open(newline="") as file:
            items = list(csv.DictReader(file))
        has = data.train_set[row["client"]][0].nonzero().flatten().tolist()
        assert [int(item["item"]) for item in items] == has
        assert {(item["found"], item["true"]) for item in items} == {("1", "1")}
