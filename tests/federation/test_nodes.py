"""What a node says of itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from fedleak.errors import BadInput
from fedleak.federation import node_number, records, tell_number
from tests.federation.fakes import context_of


def context(node: dict[str, Any]) -> Context:
    return Context(1, 5, node, RecordDict(), {})


def test_the_number_is_that_of_the_node() -> None:
    assert node_number(context_of(3)) == 3
    question = Message(RecordDict(), 5, MessageType.QUERY)
    reply = tell_number(question, 3)
    assert dict(reply.content[records.METRICS]) == {records.CLIENT: 3}


@pytest.mark.parametrize("node", [{}, {"partition-id": "0"}, {"partition-id": -1}])
def test_a_node_without_a_number_is_refused(node: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"Expected `partition-id` in a node's configuration"):
        node_number(context(node))


def test_the_number_needs_no_torch() -> None:
    """A node of a deployment starts a process for every message."""
    code = "import sys; from fedleak.federation import node_number, tell_number; "
    code += "print([name for name in ('torch', 'pytorch_lightning', 'ray') if name in sys.modules])"
    root = str(Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.stdout.strip() == "[]", found.stderr
