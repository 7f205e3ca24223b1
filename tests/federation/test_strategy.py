"""The malicious strategy around Flower's own: no Ray, replies made by hand."""

import copy
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
    Result,
    Strategy,
)
from torch import nn

from fedleak.attacks import Attack, Problem, Progress, Reconstruction
from fedleak.attacks.base import Report
from fedleak.config import Victims
from fedleak.errors import BadInput
from fedleak.federation import MaliciousStrategy, records
from fedleak.federation.engine.checkpoint import Outcome, read_outcome, restore, write_checkpoint
from fedleak.federation.strategy import Stopped
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.local_training import LocalTraining
from fedleak.updates.update import InterceptedUpdate, gradient_to_weights
from tests.federation.fakes import (
    FakeGrid,
    fails,
    same_tensors,
    sends_gradient,
    sends_weights,
    weights,
)
from tests.servers.toy_servers import FirstLayer

NODES = [31, 7, 19]
CLIENTS = {7: 0, 19: 1, 31: 2}
SETTINGS: dict[str, Any] = {"min_available_nodes": 3, "fraction_evaluate": 0.0}

Make = Callable[[], Strategy]
STRATEGIES: dict[str, Make] = {
    "FedAvg": lambda: FedAvg(**SETTINGS),
    "FedAvgM": lambda: FedAvgM(**SETTINGS, server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": lambda: FedAdam(**SETTINGS, beta_1=0.9, beta_2=0.99),
    "FedMedian": lambda: FedMedian(**SETTINGS),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(**SETTINGS),
    "Krum": lambda: Krum(**SETTINGS, num_malicious_nodes=1),
    "DP client side": lambda: DifferentialPrivacyClientSideFixedClipping(
        FedAvg(**SETTINGS), noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=3
    ),
    "DP server side": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAdam(**SETTINGS), noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=3
    ),
    "DP adaptive": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvgM(**SETTINGS, server_learning_rate=0.5, server_momentum=0.9),
        noise_multiplier=0.1, num_sampled_clients=3,
    ),
}  # fmt: skip


class Toy(nn.Module):
    """A model with the parameters and buffers of ``fakes.weights``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, affine=False)

    def batch_loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = self.norm(self.layer(batch[0].flatten(1)))
        return nn.functional.cross_entropy(logits, batch[1])


class Peek(Attack):
    """Notes what it is given and reconstructs zeros."""

    name: ClassVar[str] = "peek"
    paper: ClassVar[str] = "none"
    needs: ClassVar[str] = "an update"

    def __init__(self) -> None:
        self.seen: list[Problem] = []

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        self.seen.append(problem)
        report(Progress(1, 1, 0.5))
        labels = torch.zeros(problem.knowledge.num_samples, dtype=torch.long)
        return Reconstruction(torch.zeros(problem.batch_shape), labels)


class Broken(Peek):
    """An attack that raises an unexpected error."""

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        raise ZeroDivisionError("a mistake in the plugin")


def toy_weights(seed: int) -> Tensors:
    buffers = {
        "norm.running_var": torch.full((4,), float(seed + 1)),
        "norm.num_batches_tracked": torch.tensor(seed),
    }
    return weights(seed) | buffers


def knowledge(**changes: Any) -> Knowledge:
    settings = {"input_shape": (3, 1, 1), "num_classes": 4, "learning_rate": 0.5} | changes
    return Knowledge(Toy(), **settings)


def replies_of(round_: int, questions: Iterable[Message]) -> list[Message]:
    """The same replies for the same round: weights, examples and metrics that differ by client."""
    found = []
    for question in questions:
        client = CLIENTS[question.metadata.dst_node_id]
        sent = records.to_tensors(next(iter(question.content.array_records.values())))
        drift = weights(100 * round_ + client, scale=0.1)
        moved = {name: sent[name] + drift[name] for name in sent}
        found.append(sends_weights(question, moved, examples=client + 2, loss=0.5 + client))
    return found


def train(
    strategy: Strategy, sent: Tensors, rounds: Iterable[int] = (1,)
) -> tuple[Tensors, list[list[Message]]]:
    """Rounds of training with the random state of the beginning of each round fixed."""
    grid = FakeGrid(NODES, lambda question: None)
    arrays = records.to_record(sent)
    asked = []
    for round_ in rounds:
        random.seed(round_)
        np.random.seed(round_)  # noqa: NPY002 - Flower draws its noise from it
        questions = list(strategy.configure_train(round_, arrays, ConfigRecord(), grid))
        asked.append(questions)
        in_order = sorted(questions, key=lambda question: question.metadata.dst_node_id)
        found, _ = strategy.aggregate_train(round_, replies_of(round_, in_order))
        assert found is not None
        arrays = found
    return records.to_tensors(arrays), asked


# ------------------------------------------------------------------- nothing changes in training


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_training_is_bit_identical_to_the_inner_strategy(make: Make, tmp_path: Path) -> None:
    alone, asked_alone = train(make(), weights(0), rounds=(1, 2, 3))
    malicious = MaliciousStrategy(make(), folder=tmp_path)
    observed, asked = train(malicious, weights(0), rounds=(1, 2, 3))
    assert same_tensors(observed, alone)
    assert not same_tensors(observed, weights(0))
    for messages, expected in zip(asked, asked_alone, strict=True):
        assert [m.metadata.dst_node_id for m in messages] == [
            m.metadata.dst_node_id for m in expected
        ]
        assert [m.metadata.message_type for m in messages] == ["train"] * 3
        for message, twin in zip(messages, expected, strict=True):
            assert message.content == twin.content
    assert len(list(tmp_path.glob("r*-c*.safetensors"))) == 9


def test_a_strategy_that_consumes_the_replies_sees_all_of_them(tmp_path: Path) -> None:
    def make() -> Strategy:
        return QFedAvg(client_learning_rate=0.1, train_loss_key="loss", **SETTINGS)

    observed, _ = train(MaliciousStrategy(make(), folder=tmp_path), weights(0))
    assert same_tensors(observed, train(make(), weights(0))[0])
    assert len(list(tmp_path.glob("r*-c*.safetensors"))) == 3


def test_evaluation_and_summary_are_those_of_the_inner_strategy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = FedAvg(fraction_evaluate=1.0, min_available_nodes=3)
    malicious = MaliciousStrategy(inner)
    arrays, grid = records.to_record(weights(0)), FakeGrid(NODES, lambda question: None)
    random.seed(5)
    expected = list(inner.configure_evaluate(1, arrays, ConfigRecord(), grid))
    random.seed(5)
    messages = list(malicious.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert [m.metadata.dst_node_id for m in messages] == [m.metadata.dst_node_id for m in expected]
    replies = [sends_weights(m, {}, examples=2, accuracy=0.25) for m in messages]
    assert malicious.aggregate_evaluate(1, replies) == inner.aggregate_evaluate(1, replies)
    called = []
    monkeypatch.setattr(inner, "summary", lambda: called.append(True))
    malicious.summary()
    assert called == [True]


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_gradients_arrive_at_the_inner_strategy_as_weights(make: Make) -> None:
    def sgd_step(question: Message, gradient: Tensors) -> Tensors:
        return gradient_to_weights(weights(0), gradient, learning_rate=0.5)

    def aggregated(strategy: Strategy, gradients: bool) -> Tensors:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        grid = FakeGrid(NODES, lambda question: None)
        questions = list(
            strategy.configure_train(1, records.to_record(weights(0)), ConfigRecord(), grid)
        )
        replies = []
        for question in sorted(questions, key=lambda q: q.metadata.dst_node_id):
            client = CLIENTS[question.metadata.dst_node_id]
            gradient = weights(client + 1)
            buffers = {"norm.running_mean": gradient.pop("norm.running_mean")}
            if gradients:
                reply = sends_gradient(question, gradient, buffers, client + 2, loss=0.5)
            else:
                moved = sgd_step(question, gradient) | buffers
                reply = sends_weights(question, moved, examples=client + 2, loss=0.5)
            replies.append(reply)
        arrays, metrics = strategy.aggregate_train(1, replies)
        assert arrays is not None
        assert metrics is not None
        return records.to_tensors(arrays)

    malicious = MaliciousStrategy(make(), learning_rate=0.5)
    found, expected = aggregated(malicious, gradients=True), aggregated(make(), gradients=False)
    assert found.keys() == expected.keys()
    if isinstance(make(), FedAvgM | FedAdam):
        # Their optimisers move the weights; of a statistic the mean is wanted.
        total = sum(client + 2 for client in CLIENTS.values())
        expected["norm.running_mean"] = sum(
            (client + 2) / total * weights(client + 1)["norm.running_mean"]
            for client in CLIENTS.values()
        )
    for name, value in expected.items():
        # Not to the last bit: the step is made in float64.
        torch.testing.assert_close(found[name], value.to(found[name]), rtol=1e-4, atol=1e-6)
        assert found[name].dtype == weights(0)[name].dtype


def test_learning_rate_is_taken_from_knowledge_or_required() -> None:
    def aggregate(strategy: MaliciousStrategy) -> Tensors:
        grid = FakeGrid(NODES, lambda question: None)
        questions = list(
            strategy.configure_train(1, records.to_record(weights(0)), ConfigRecord(), grid)
        )
        replies = [sends_gradient(question, weights(1)) for question in questions]
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        return records.to_tensors(arrays)

    found = aggregate(MaliciousStrategy(FedAvg(**SETTINGS), knowledge=knowledge()))
    expected = gradient_to_weights(weights(0), weights(1), learning_rate=0.5)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-7)
    with pytest.raises(BadInput, match="Expected `learning_rate` where clients send gradients"):
        aggregate(MaliciousStrategy(FedAvg(**SETTINGS)))


class Loop(FedAvg):
    """A user's strategy with a loop of its own, which sets an attribute and calls Flower's."""

    def start(self, *args: Any, **kwargs: Any) -> Result:
        self.started = self.__class__.__name__
        return super().start(*args, **kwargs)


def answering_grid(**odd: Callable[[Message], Message | None]) -> FakeGrid:
    """A grid whose clients train; ``client1=...`` answers for client 1."""

    def answer(question: Message) -> Message | None:
        client = CLIENTS[question.metadata.dst_node_id]
        if f"client{client}" in odd:
            return odd[f"client{client}"](question)
        return replies_of(question.content["config"]["server-round"], [question])[0]

    return FakeGrid(NODES, answer)


@pytest.mark.parametrize("kind", [FedAvg, FedAdam, Loop])
def test_start_follows_the_inner_start(kind: type[FedAvg]) -> None:
    def run(wrap: Callable[[Strategy], Strategy]) -> tuple[Result, FedAvg, list[int]]:
        random.seed(3)
        evaluated: list[int] = []

        def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
            evaluated.append(round_)
            return MetricRecord({"seen": round_})

        inner = kind(**SETTINGS)
        result = wrap(inner).start(
            answering_grid(), records.to_record(weights(0)), num_rounds=3, evaluate_fn=evaluate
        )
        return result, inner, evaluated

    alone, _, evaluated_alone = run(lambda inner: inner)
    result, inner, evaluated = run(lambda inner: MaliciousStrategy(inner, clients=CLIENTS))
    assert same_tensors(records.to_tensors(result.arrays), records.to_tensors(alone.arrays))
    assert evaluated == evaluated_alone == [0, 1, 2, 3]
    assert result.evaluate_metrics_serverapp == alone.evaluate_metrics_serverapp
    assert result.train_metrics_clientapp == alone.train_metrics_clientapp
    if kind is Loop:
        assert inner.started == "Loop"
    # Afterwards the inner strategy is as it was.
    assert "aggregate_train" not in vars(inner)


def test_attributes_delegate_to_the_inner_strategy() -> None:
    malicious = MaliciousStrategy(FedAdam(**SETTINGS, eta=0.25))
    assert malicious.eta == 0.25
    assert malicious.min_available_nodes == 3
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = malicious.no_such_thing
    assert copy.copy(malicious).eta == 0.25


# ----------------------------------------------------------------------------- what is intercepted


def one_round(strategy: MaliciousStrategy, **odd: Callable[[Message], Message | None]) -> Grid:
    grid = answering_grid(**odd)
    strategy.start(grid, records.to_record(toy_weights(0)), num_rounds=1)
    return grid


def toy_replies(seed: int = 0) -> dict[str, Callable[[Message], Message]]:
    return {
        f"client{client}": lambda q, c=client: sends_weights(q, toy_weights(seed + c + 1), c + 2)
        for client in range(3)
    }


@pytest.mark.parametrize(
    ("victims", "expected"),
    [
        (Victims(), {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}),
        (Victims(clients=[1]), {(1, 1), (2, 1), (3, 1)}),
        (Victims(rounds=[2]), {(2, 0), (2, 1), (2, 2)}),
        (Victims(clients=[0, 2], rounds=[1, 3]), {(1, 0), (1, 2), (3, 0), (3, 2)}),
    ],
    ids=["all", "a client", "a round", "both"],
)
def test_victims_by_client_and_round(
    victims: Victims, expected: set[tuple[int, int]], tmp_path: Path
) -> None:
    told: list[InterceptedUpdate] = []
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), victims=victims, clients=CLIENTS, folder=tmp_path, model="toy",
        on_intercept=told.append,
    )  # fmt: skip
    strategy.start(answering_grid(), records.to_record(weights(0)), num_rounds=3)
    assert {(update.round, update.client) for update in told} == expected
    files = sorted(tmp_path.glob("r*-c*.safetensors"))
    assert [path.stem for path in files] == sorted(f"r{r:04d}-c{c:04d}" for r, c in expected)
    assert strategy.intercepted == [tmp_path / f"{update.key}.safetensors" for update in told]
    # The files hold what was seen, and what was sent is the global model of that round.
    for path, update in zip(strategy.intercepted, told, strict=True):
        read = InterceptedUpdate.load(path)
        assert (read.protocol, read.num_examples, read.model) == (
            "fedavg", update.client + 2, "toy",
        )  # fmt: skip
        assert same_tensors(read.received, update.received)
        assert same_tensors(read.sent, update.sent)
    first = [update for update in told if update.round == 1]
    assert all(same_tensors(update.sent, weights(0)) for update in first)


def test_updates_are_kept_in_memory_without_a_folder() -> None:
    strategy = MaliciousStrategy(FedAvg(**SETTINGS), clients=CLIENTS)
    one_round(strategy, **toy_replies())
    kept = {update.key: update for update in strategy.intercepted}
    assert sorted(kept) == ["r0001-c0000", "r0001-c0001", "r0001-c0002"]
    assert same_tensors(kept["r0001-c0002"].received, toy_weights(3))


def test_nodes_without_a_known_client_are_numbered_as_they_appear() -> None:
    strategy = MaliciousStrategy(FedAvg(**SETTINGS))
    one_round(strategy, **toy_replies())
    assert sorted(update.client for update in strategy.intercepted) == [0, 1, 2]


def test_gradients_and_buffers_are_intercepted_as_they_came() -> None:
    gradient = {n: v for n, v in weights(5).items() if n.startswith("layer")}
    buffers = {n: v for n, v in toy_weights(6).items() if n.startswith("norm")}
    strategy = MaliciousStrategy(FedAvg(**SETTINGS), learning_rate=0.5, clients=CLIENTS)
    one_round(
        strategy,
        **{f"client{c}": lambda q: sends_gradient(q, gradient, buffers, 4) for c in range(3)},
    )
    update = strategy.intercepted[0]
    assert update.protocol == "fedsgd"
    assert update.num_examples == 4
    assert same_tensors(update.received, gradient | buffers)
    update.check(Toy())


def test_a_first_round_shifts_the_numbers() -> None:
    rounds: list[int] = []
    strategy = MaliciousStrategy(FedAvg(**SETTINGS), first_round=3, clients=CLIENTS)

    def answer(question: Message) -> Message:
        rounds.append(int(question.content["config"]["server-round"]))
        return sends_weights(question, weights(1), 1)

    strategy.start(FakeGrid(NODES, answer), records.to_record(weights(0)), num_rounds=2)
    assert sorted(set(rounds)) == [3, 4]
    assert {update.round for update in strategy.intercepted} == {3, 4}


def test_a_seeded_sample_depends_on_the_round_alone() -> None:
    def sampled(first_round: int, rounds: int) -> list[list[int]]:
        asked: dict[int, list[int]] = {}

        def answer(question: Message) -> Message:
            round_ = int(question.content["config"]["server-round"])
            asked.setdefault(round_, []).append(question.metadata.dst_node_id)
            return sends_weights(question, weights(1), 1)

        inner = FedAvg(fraction_train=0.3, fraction_evaluate=0.0, min_train_nodes=3)
        strategy = MaliciousStrategy(inner, seed=1, seeded_sampling=True, first_round=first_round)
        grid = FakeGrid(list(range(10)), answer)
        strategy.start(grid, records.to_record(weights(0)), num_rounds=rounds)
        return [asked[round_] for round_ in sorted(asked)]

    whole = sampled(1, 4)
    assert sampled(3, 2) == whole[2:]
    assert len({tuple(nodes) for nodes in whole}) > 1


# ------------------------------------------------------------------------------ clients that fail


def test_error_and_missing_replies_are_counted_and_reported() -> None:
    reported: list[tuple[int, int, str]] = []
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), clients=CLIENTS, on_failure=lambda *args: reported.append(args)
    )
    one_round(
        strategy,
        client0=lambda question: fails(question, "out of memory"),
        client1=lambda question: None,
        client2=lambda question: sends_weights(question, weights(2), 1),
    )
    assert strategy.failures == 2
    assert sorted(reported) == [
        (1, 0, "out of memory"),
        (1, 1, "it did not answer in time"),
    ]
    assert [update.client for update in strategy.intercepted] == [2]


def test_a_round_without_any_reply_leaves_the_weights_alone() -> None:
    strategy = MaliciousStrategy(FedAvg(**SETTINGS), clients=CLIENTS, on_failure=lambda *_: None)
    seen = []
    strategy.start(
        answering_grid(**{f"client{c}": lambda question: None for c in range(3)}),
        records.to_record(weights(0)),
        num_rounds=2,
        evaluate_fn=lambda round_, arrays: seen.append(records.to_tensors(arrays)),
    )
    assert strategy.failures == 6
    assert all(same_tensors(state, weights(0)) for state in seen)
    assert strategy.intercepted == []


# -------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("on_disk", [True, False], ids=["folder", "memory"])
def test_attacks_run_in_the_round_or_afterwards(when: str, on_disk: bool, tmp_path: Path) -> None:
    attack, done, events = Peek(), [], []
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[attack], knowledge=knowledge(), clients=CLIENTS,
        victims=Victims(when=when), folder=tmp_path if on_disk else None,
        on_attacked=lambda *args: done.append(args), on_progress=lambda a, p: events.append(p),
    )  # fmt: skip
    seen_in_evaluation = []
    strategy.start(
        answering_grid(**toy_replies()),
        records.to_record(toy_weights(0)),
        num_rounds=1,
        evaluate_fn=lambda round_, arrays: seen_in_evaluation.append(len(done)),
    )
    assert seen_in_evaluation == [0, 3 if when == "during" else 0]
    order = [update.client for _, update, _ in done]
    assert sorted(order) == [0, 1, 2]
    assert [(name, key) for name, key, _ in strategy.reconstructions] == [
        ("peek", f"r0001-c000{client}") for client in order
    ]
    assert events == [Progress(1, 1, 0.5)] * 3
    # The number of samples is what the client says.
    seen = {problem.name: problem for problem in attack.seen}
    for client in range(3):
        problem = seen[f"r0001-c000{client}"]
        assert problem.knowledge.num_samples == client + 2
        moved = toy_weights(0)["layer.bias"] - toy_weights(client + 1)["layer.bias"]
        assert torch.allclose(problem.gradient["layer.bias"], moved / 0.5)


def test_attacks_without_knowledge_are_refused() -> None:
    with pytest.raises(BadInput, match="Expected `knowledge` where `attacks` are given, got none"):
        MaliciousStrategy(FedAvg(), attacks=[Peek()])


def test_knowledge_may_depend_on_the_update() -> None:
    attack = Peek()
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[attack], clients=CLIENTS,
        knowledge=lambda update: knowledge(num_samples=update.client + 5),
    )  # fmt: skip
    one_round(strategy, **toy_replies())
    assert sorted(problem.knowledge.num_samples for problem in attack.seen) == [5, 6, 7]


def test_what_was_told_of_the_samples_holds_and_a_contradiction_is_said() -> None:
    attack = Peek()
    facts = knowledge(protocol="fedavg", num_samples=4, batch_size=2, local_steps=6)
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[attack], clients=CLIENTS, knowledge=facts
    )
    one_round(strategy, **toy_replies())
    assert {problem.knowledge.num_samples for problem in attack.seen} == {4}
    assert {problem.knowledge.local_steps for problem in attack.seen} == {6}
    for problem in attack.seen:
        client = int(problem.name[-1])
        moved = toy_weights(0)["layer.bias"] - toy_weights(client + 1)["layer.bias"]
        assert torch.allclose(problem.gradient["layer.bias"], moved / (0.5 * 6))
        told = f"4 samples were told, the client reports {client + 2}"
        assert (told in problem.notes) == (client != 2)


def test_steps_follow_the_clients_samples_where_epochs_were_told() -> None:
    attack = Peek()
    epochs = LocalTraining(learning_rate=0.5, batch_size=2, epochs=3)
    facts = knowledge(protocol="fedavg", learning_rate=None, local_training=epochs)
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[attack], clients=CLIENTS, knowledge=facts
    )
    one_round(strategy, **toy_replies())
    # Clients of 2, 3 and 4 samples.
    seen = {p.knowledge.num_samples: p for p in attack.seen}
    assert {number: p.knowledge.steps for number, p in seen.items()} == {2: 3, 3: 6, 4: 6}
    for number, problem in seen.items():
        moved = toy_weights(0)["layer.bias"] - toy_weights(number - 1)["layer.bias"]
        assert torch.allclose(
            problem.gradient["layer.bias"], moved / (0.5 * problem.knowledge.steps)
        )
        assert f"number of samples taken from the update: {number}" in problem.notes


@pytest.mark.parametrize("when", ["during", "after"])
def test_a_faulty_attack_does_not_stop_the_training(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = Peek()
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[Broken(), other], knowledge=knowledge(), clients=CLIENTS,
        victims=Victims(when=when),
    )  # fmt: skip
    one_round(strategy, **toy_replies())
    assert len(other.seen) == 3
    assert "a mistake in the plugin" in caplog.text


def test_a_run_is_stopped_in_the_middle_of_an_attack() -> None:
    def stop(attack: Attack, progress: Progress) -> None:
        raise Stopped

    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[Peek()], knowledge=knowledge(), clients=CLIENTS,
        victims=Victims(when="during"), on_progress=stop,
    )  # fmt: skip
    with pytest.raises(Stopped):
        one_round(strategy, **toy_replies())


def test_only_attacks_that_are_wanted_are_made() -> None:
    attack = Peek()
    strategy = MaliciousStrategy(
        FedAvg(**SETTINGS), attacks=[attack], knowledge=knowledge(), clients=CLIENTS,
        victims=Victims(when="during"), wanted=lambda attack, update: update.client == 1,
    )  # fmt: skip
    one_round(strategy, **toy_replies())
    assert [problem.name for problem in attack.seen] == ["r0001-c0001"]


# ------------------------------------------------------------------- replies of apps of one's own


def attacked(
    strategy: Strategy,
    sent: ArrayRecord,
    answer: Callable[[Message], RecordDict],
    rounds: int = 1,
    **settings: Any,
) -> tuple[list[Problem], MaliciousStrategy]:
    """What an attack is given of the replies of an app."""
    attack = Peek()
    settings = {"knowledge": knowledge(protocol="fedavg")} | settings
    malicious = MaliciousStrategy(strategy, attacks=[attack], clients=CLIENTS, **settings)
    grid = FakeGrid(NODES, lambda question: Message(answer(question), reply_to=question))
    malicious.start(grid, sent, num_rounds=rounds)
    return attack.seen, malicious


def new_weights(question: Message) -> Tensors:
    client = CLIENTS[question.metadata.dst_node_id]
    return toy_weights(10 * question.content["config"]["server-round"] + client + 1)


def moved(sent: Tensors, client: int, name: str, round_: int = 1) -> torch.Tensor:
    return (sent[name] - toy_weights(10 * round_ + client + 1)[name]) / 0.5


def test_keys_and_several_records_are_those_of_the_inner_strategy() -> None:
    class Scaffold(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            self.variates = [reply.content["variates"] for reply in replies]
            return None, None

    def answer(question: Message) -> RecordDict:
        new = new_weights(question)
        variates = {name: torch.full_like(value, 9.0) for name, value in new.items()}
        return RecordDict({
            "variates": ArrayRecord(variates),
            "weights": ArrayRecord(new),
            "report": MetricRecord({"samples": 2, "num-examples": 7}),
        })  # fmt: skip

    inner = Scaffold(**SETTINGS, weighted_by_key="samples", arrayrecord_key="weights")
    seen, strategy = attacked(inner, ArrayRecord(toy_weights(0)), answer)
    assert len(inner.variates) == 3
    assert (strategy.failures, len(seen)) == (0, 3)
    for problem in seen:
        expected = moved(toy_weights(0), int(problem.name[-1]), "layer.weight")
        assert torch.allclose(problem.gradient["layer.weight"], expected, atol=1e-6)
        assert problem.knowledge.num_samples == 2


@pytest.mark.parametrize("listed", ["sent", "received", "both"])
def test_arrays_without_names_are_in_the_order_of_the_state_dict(
    listed: str, tmp_path: Path
) -> None:
    def pack(tensors: Tensors, part: str) -> ArrayRecord:
        in_order = {name: tensors[name] for name in Toy().state_dict()}
        arrays = [value.numpy() for value in in_order.values()]
        return ArrayRecord(arrays) if listed in (part, "both") else ArrayRecord(in_order)

    seen, strategy = attacked(
        FedAvg(**SETTINGS), pack(toy_weights(0), "sent"),
        lambda question: RecordDict({
            "arrays": pack(new_weights(question), "received"),
            "metrics": MetricRecord({"num-examples": 2}),
        }),
        folder=tmp_path,
    )  # fmt: skip
    assert strategy.failures == 0
    assert len(seen) == 3
    for problem in seen:
        expected = moved(toy_weights(0), int(problem.name[-1]), "layer.weight")
        assert torch.allclose(problem.gradient["layer.weight"], expected, atol=1e-6)
        counts = problem.buffers["norm.num_batches_tracked"]
        assert int(counts) == 11 + int(problem.name[-1])


def test_changes_are_attacked_as_what_they_are() -> None:
    def answer(question: Message) -> RecordDict:
        new, sent = new_weights(question), toy_weights(0)
        delta = {n: new[n] - sent[n] for n in new if n.startswith("layer")}
        return RecordDict({
            "arrays": ArrayRecord(delta), "metrics": MetricRecord({"num-examples": 2})
        })  # fmt: skip

    for settings in ({"knowledge": knowledge(protocol="delta")}, {"protocol": "delta"}):
        seen, strategy = attacked(
            FedAvg(**SETTINGS), ArrayRecord(toy_weights(0)), answer, **settings
        )
        assert {update.protocol for update in strategy.intercepted} == {"delta"}
        for problem in seen:
            expected = moved(toy_weights(0), int(problem.name[-1]), "layer.weight")
            assert torch.allclose(problem.gradient["layer.weight"], expected, atol=1e-6)
    with pytest.raises(
        BadInput, match=r"Unknown protocol `difference`: expected one of delta, fedavg, fedsgd"
    ):
        MaliciousStrategy(FedAvg(), protocol="difference")


def test_a_part_of_the_weights_is_attacked_and_the_rest_is_said_to_be_presumed() -> None:
    sent = toy_weights(0)
    part = {"layer.weight": sent["layer.weight"], "layer.bias": sent["layer.bias"]}

    def answer(question: Message) -> RecordDict:
        new = new_weights(question)
        return RecordDict({
            "arrays": ArrayRecord({name: new[name] for name in part}),
            "metrics": MetricRecord({"num-examples": 2}),
        })  # fmt: skip

    seen, strategy = attacked(FedAvg(**SETTINGS), ArrayRecord(part), answer)
    for problem in seen:
        expected = moved(sent, int(problem.name[-1]), "layer.bias")
        assert torch.allclose(problem.gradient["layer.bias"], expected, atol=1e-6)
    for _, _, found in strategy.reconstructions:
        assert found.findings[0] == (
            "3 of the model's 5 arrays were not sent and are those of the model that was told"
        )
    # Statistics that a client keeps to itself, as with FedBN.
    seen, strategy = attacked(FedAvg(**SETTINGS), ArrayRecord(sent), answer)
    assert len(seen) == 3
    assert all(problem.buffers == {} for problem in seen)
    for _, _, found in strategy.reconstructions:
        assert found.findings[0] == (
            "3 buffers such as norm.running_mean did not come back and are taken to be as they "
            "were sent"
        )


def test_a_layer_that_is_never_sent_starts_from_what_its_client_returned_last() -> None:
    def answer(question: Message) -> RecordDict:
        return RecordDict({
            "arrays": ArrayRecord(new_weights(question)),
            "metrics": MetricRecord({"num-examples": 2}),
        })  # fmt: skip

    class Personal(FedAvg):
        """Aggregates and sends all but the bias, which stays with the clients."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            del arrays["layer.bias"]
            return arrays, metrics

    body = {name: value for name, value in toy_weights(0).items() if name != "layer.bias"}
    seen, _ = attacked(Personal(**SETTINGS), ArrayRecord(body), answer, rounds=2)
    for problem in seen:
        client = int(problem.name[-1])
        if problem.name.startswith("r0001"):
            assert "layer.bias" in problem.left_out
        else:
            expected = moved(toy_weights(11 + client), client, "layer.bias", round_=2)
            assert torch.allclose(problem.gradient["layer.bias"], expected, atol=1e-6)
    assert len(seen) == 6
    # Who knows better says so.
    told = {"layer.bias": torch.full((4,), 3.0)}
    seen, _ = attacked(
        Personal(**SETTINGS), ArrayRecord(body), answer,
        starts=lambda round_, client: told if client == 1 else {},
    )  # fmt: skip
    for problem in seen:
        if problem.name.endswith("1"):
            expected = moved(toy_weights(0) | told, 1, "layer.bias")
            assert torch.allclose(problem.gradient["layer.bias"], expected, atol=1e-6)
        else:
            assert "layer.bias" in problem.left_out


def test_clients_may_be_sent_different_weights(tmp_path: Path) -> None:
    class Own(FedAvg):
        def configure_train(self, *args: Any) -> list[Message]:
            messages = list(super().configure_train(*args))
            for message in messages:
                client = CLIENTS[message.metadata.dst_node_id]
                content = RecordDict({**message.content})
                content["arrays"] = ArrayRecord(toy_weights(100 + client))
                message.content = content
            return messages

    def answer(question: Message) -> RecordDict:
        return RecordDict({
            "arrays": ArrayRecord(new_weights(question)),
            "metrics": MetricRecord({"num-examples": 2}),
        })  # fmt: skip

    seen, strategy = attacked(Own(**SETTINGS), ArrayRecord(toy_weights(0)), answer, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []  # a file of sent weights is for all clients of a round
    assert len(seen) == len(strategy.intercepted) == 3
    for problem in seen:
        client = int(problem.name[-1])
        expected = moved(toy_weights(100 + client), client, "layer.weight")
        assert torch.allclose(problem.gradient["layer.weight"], expected, atol=1e-6)


def test_a_strategy_from_before_the_message_api_is_refused() -> None:
    from flwr.server.strategy import FedAvg as Old

    class Mine(Old):
        pass

    for old in (Old(), Mine()):
        with pytest.raises(
            BadInput, match=r"from before Flower's Message API: move the app to flwr"
        ):
            MaliciousStrategy(old)
    with pytest.raises(BadInput, match=r"Expected a strategy of flwr.serverapp.strategy, got str"):
        MaliciousStrategy("FedAvg")


# ------------------------------------------------------------------------------ state of a strategy


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_restored_from_a_checkpoint_continues_identically(
    make: Make, tmp_path: Path
) -> None:
    whole, _ = train(make(), weights(0), rounds=(1, 2, 3, 4))
    first = make()
    halfway, _ = train(first, weights(0), rounds=(1, 2))
    path = tmp_path / "unfinished.safetensors"
    outcome = Outcome(2, 1, {0: {"accuracy": 0.1}, 1: {"accuracy": 0.2}, 2: {"accuracy": 0.3}})
    write_checkpoint(path, halfway, first, outcome)

    assert read_outcome(path) == outcome
    assert read_outcome(path).accuracy == 0.3
    second = make()
    restored = restore(path, second)
    assert same_tensors(restored, halfway)
    in_order = {name: restored[name] for name in weights(0)}
    again, _ = train(second, in_order, rounds=(3, 4))
    assert same_tensors(again, whole)


# ---------------------------------------------------------------------------- a malicious server


def active(
    rounds: list[int] | None = None, clients: list[int] | None = None, **settings: Any
) -> Any:
    return MaliciousStrategy(
        FedAvg(**SETTINGS), clients=CLIENTS, victims=Victims(clients=clients, rounds=rounds),
        server=FirstLayer(factor=0.0), knowledge=knowledge(), **settings,
    )  # fmt: skip


def content_of(question: Message) -> tuple[Tensors, dict[str, Any]]:
    arrays = records.to_tensors(question.content.array_records[records.ARRAYS])
    return arrays, dict(question.content.config_records[records.CONFIG])


def test_victims_alone_are_sent_what_the_server_makes() -> None:
    strategy = active(clients=[1])
    sent = records.to_record(toy_weights(3))
    grid = FakeGrid(NODES, lambda question: None)
    questions = strategy.configure_train(1, sent, ConfigRecord(), grid)
    strategy.aggregate_train(1, [sends_weights(q, toy_weights(4), 1) for q in questions])
    for question in questions:
        arrays, config = content_of(question)
        assert config == {records.ROUND: 1}
        factor = 0.0 if CLIENTS[question.metadata.dst_node_id] == 1 else 1.0
        assert torch.equal(arrays["layer.weight"], factor * toy_weights(3)["layer.weight"])
        assert torch.equal(arrays["norm.num_batches_tracked"], torch.tensor(3))
    (kept,) = strategy.intercepted
    assert torch.equal(kept.sent["layer.weight"], torch.zeros(4, 3))


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_rounds_without_a_victim_are_those_of_the_inner_strategy(make: Make) -> None:
    own, _ = train(make(), weights(5), rounds=(1, 2))
    strategy = MaliciousStrategy(
        make(), clients=CLIENTS, victims=Victims(rounds=[9]), server=FirstLayer(),
        knowledge=knowledge(),
    )  # fmt: skip
    found, _ = train(strategy, weights(5), rounds=(1, 2))
    assert same_tensors(own, found)
    assert strategy.intercepted == []


def test_the_server_reads_at_the_end(tmp_path: Path) -> None:
    """In an app of one's own; what was sent is kept beside the updates."""
    for folder in (None, tmp_path):
        strategy = active(rounds=[1], folder=folder)

        def answer(question: Message) -> Message:
            sent = records.to_tensors(question.content.array_records[records.ARRAYS])
            moved = {n: v + (n.startswith("layer")) for n, v in sent.items()}
            return sends_weights(question, moved, examples=1)

        grid = FakeGrid(NODES, answer)
        strategy.start(grid, records.to_record(toy_weights(1)), num_rounds=1)
        assert [key for key, _ in strategy.readings] == [f"r0001-c000{c}" for c in range(3)]
        for _, reading in strategy.readings:
            assert reading.inputs.flatten().tolist() == [1.0, 1.0, 1.0]
    assert (tmp_path / "sent" / "r0001-c0002.safetensors").is_file()


def test_a_server_needs_knowledge() -> None:
    with pytest.raises(BadInput, match="Expected `knowledge` where a malicious `server` is given"):
        MaliciousStrategy(FedAvg(**SETTINGS), server=FirstLayer())
