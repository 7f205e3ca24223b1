"""A listener that keeps the clients' updates on disk, and what each reply says besides."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from fedleak.audit.app import AuditSettings
from fedleak.audit.trainings import LEFT_OUT, NOT_KEPT
from fedleak.federation import records
from fedleak.federation.reply_checks import Keys, check_arrays, decoded
from fedleak.updates.compression import CompactTensors
from fedleak.updates.files import Tensors, check_name, remove_round
from fedleak.updates.update import InterceptedUpdate

NUMBER = re.compile(r"[1-9]\d{0,8}", re.ASCII)
# Metrics in which apps report the number of examples; Flower's strategies use the first, its API
# from before the Message API the second.
EXAMPLES_KEYS = (
    records.EXAMPLES, "num_examples", "num-samples", "num_samples", "num-training-samples",
)  # fmt: skip
# The records of weights of apps from before the Message API.
LEGACY = {"fitins.parameters": "fitres.parameters"}


class UpdateListener:
    """Writes each reply of a training as an :class:`InterceptedUpdate`, and a line on every reply.

    The round is the message's ``group_id`` if that is a number, else the ``server-round`` in its
    config, else counted: a round begins when the server asks a client again, or asks any after the
    first reply. It is also counted where a client is asked a second time in a round that is told. A
    reply with weights counts as ``fedavg``, whatever the strategy does with it.

    The file of replies has a JSON object per line: ``round``, ``client``, ``node``, ``kind`` (the
    message type), ``seconds`` between question and reply, ``examples``, ``metrics``, ``update``
    (whether it was kept), ``failed`` (whether it is an error) and ``reason`` (why it was not kept,
    or the client's error).

    Args:
        folder: where to write the updates; it is made if it does not exist.
        replies: the file of the lines about the replies.
        model: the model's name in the updates' headers.
        settings: whose updates to keep.
        client_of: gives the number of the client at a node, or None where it is not known; that
            client's updates are not kept. If None, nodes are numbered in order of appearance.
        on_update: called with the question and the file of each update that was kept.

    Raises:
        BadInput: if ``model`` is no valid name.
    """

    def __init__(
        self,
        folder: Path,
        replies: Path,
        *,
        model: str = "model",
        settings: AuditSettings = AuditSettings(),  # noqa: B008 - it is frozen
        client_of: Callable[[int], int | None] | None = None,
        on_update: Callable[[Message, Path], None] | None = None,
    ) -> None:
        check_name("the model", model)
        folder.mkdir(parents=True, exist_ok=True)
        replies.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.replies = replies
        self.model = model
        self.settings = settings
        self._client_of = client_of
        self._on_update = on_update
        self._numbers: dict[int, int] = {}
        self._rounds: dict[int, int] = {}
        self._round = 0
        self._asked: set[tuple[int, int]] = set()
        self._answered = False
        self._begun: set[int] = set()
        # The weights that were sent first in a round, which are mostly those of all its clients.
        self._shared: tuple[int, ArrayRecord, Tensors] | None = None

    @property
    def unanswered(self) -> dict[int, int]:
        """By round, the number of messages that ask for a training and have no reply yet."""
        return dict(Counter(self._rounds.values()))

    def asked(self, question: Message) -> None:
        """See :class:`fedleak.audit.listening_grid.Listener`."""
        if _kind(question) != MessageType.TRAIN:
            return
        node, told = question.metadata.dst_node_id, _told_round(question)
        if told is not None and (told, node) not in self._asked:
            self._round = told
        elif self._answered or (self._round, node) in self._asked or not self._round:
            self._round = 1 + max((round_ for round_, _ in self._asked), default=0)
        self._answered = False
        self._asked.add((self._round, node))
        self._rounds[id(question)] = self._round

    def replied(self, question: Message, reply: Message) -> None:
        """See :class:`fedleak.audit.listening_grid.Listener`."""
        node = reply.metadata.src_node_id
        client = self._number(node)
        training = _kind(question) == MessageType.TRAIN
        round_ = self._rounds.pop(id(question), 0) or _told_round(question) or self._round
        row: dict[str, Any] = {
            "round": round_, "client": client, "node": node,
            "kind": question.metadata.message_type,
            "seconds": reply.metadata.created_at - question.metadata.created_at,
            "examples": None, "metrics": {}, "update": False, "failed": reply.has_error(),
            "reason": None,
        }  # fmt: skip
        self._answered = self._answered or training
        try:
            if reply.has_error():
                row["reason"] = reply.error.reason or f"error {reply.error.code}"
            else:
                row["examples"] = _examples(reply.content)
                row["metrics"] = _metrics(reply.content)
                if training:
                    row["reason"] = self._keep(round_, client, question, reply, row["examples"])
                    row["update"] = row["reason"] is None
        except Exception as error:
            row["reason"] = f"{NOT_KEPT}{error}"
            raise
        finally:
            with self.replies.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _keep(
        self,
        round_: int,
        client: int | None,
        question: Message,
        reply: Message,
        examples: int | None,
    ) -> str | None:
        """Write an update; returns why not, or None."""
        if client is None:
            return "the number of its client is not known"
        if not self.settings.keeps(round_, client):
            return LEFT_OUT
        key, record = _sent_record(question.content)
        if record is None:
            return "the server sent no arrays with the message"
        sent, own, fault = self._sent(round_, record)
        if fault is not None:
            return fault.replace("its array", "the server's array")
        keys = Keys(arrays=LEGACY.get(key, key))
        fault, tensors = check_arrays(reply.content, keys, sent)
        if fault is not None:
            return fault
        received = records.received_arrays(reply.content, tensors)
        update = InterceptedUpdate(
            round=round_,
            client=client,
            protocol="fedsgd" if isinstance(received, CompactTensors) else "fedavg",
            num_examples=examples or 0,
            model=self.model,
            sent=sent,
            received=received,
        )
        if round_ not in self._begun:  # files of another run
            remove_round(self.folder, round_)
            self._begun.add(round_)
        path = update.save(self.folder, compare=False, own=own)
        if self._on_update is not None:
            self._on_update(question, path)
        return None

    def _sent(self, round_: int, record: ArrayRecord) -> tuple[Tensors, bool, str | None]:
        """The weights in a record, whether they are other than the round's, and what is wrong."""
        if self._shared is not None:
            known, same_record, weights = self._shared
            if known == round_ and same_record is record:
                return weights, False, None
        sent, fault = decoded(record)
        if fault is not None:
            return {}, False, fault
        if self._shared is None or self._shared[0] != round_:
            self._shared = round_, record, sent
        shared = self._shared[2]
        same = sent.keys() == shared.keys() and all(
            sent[name].dtype == shared[name].dtype and torch.equal(sent[name], shared[name])
            for name in sent
        )
        return sent, not same, None

    def _number(self, node: int) -> int | None:
        if self._client_of is not None:
            return self._client_of(node)
        return self._numbers.setdefault(node, len(self._numbers))


def _kind(message: Message) -> str:
    """The category of a message: train, evaluate or query."""
    return message.metadata.message_type.partition(".")[0]


def _told_round(question: Message) -> int | None:
    """The number of the round that a message tells; None if it tells none."""
    if NUMBER.fullmatch(question.metadata.group_id):
        return int(question.metadata.group_id)
    for config in question.content.config_records.values():
        number = config.get(records.ROUND)
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number < 10**9:
            return number
    return None


def _sent_record(content: RecordDict) -> tuple[str, ArrayRecord | None]:
    """The record of weights in a message to a client, and its key."""
    arrays = content.array_records
    for key in (records.ARRAYS, *LEGACY, *arrays):
        if key in arrays and len(arrays[key]):
            return key, arrays[key]
    return "", None


def _examples(content: RecordDict) -> int | None:
    """The number of examples that a reply reports; None if it reports none."""
    for key in EXAMPLES_KEYS:
        for metrics in content.metric_records.values():
            number = metrics.get(key)
            if isinstance(number, int | float) and math.isfinite(number) and 0 < number < 10**9:
                return int(number)
    return None


def _metrics(content: RecordDict) -> dict[str, Any]:
    """The metrics of a reply by name; those of apps from before the Message API are a config."""
    found: dict[str, Any] = {}
    for metrics in content.metric_records.values():
        found |= {name: value for name, value in metrics.items() if name not in EXAMPLES_KEYS}
    for key, config in content.config_records.items():
        if key.endswith(".metrics"):
            found |= {n: v for n, v in config.items() if isinstance(v, int | float | str | bool)}
    return found
