"""A Grid that passes every call on."""

import copy
import inspect
from typing import Any

import pytest
from flwr.serverapp import Grid

from fedleak.federation.engine.forwarding_grid import ForwardingGrid


class Heard:
    """Answers every call with its name and its arguments."""

    run = "the run"
    own = "more than a Grid has"

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: (name, args, kwargs)


class Inner(Heard):
    """A grid that notes what it is told."""

    def set_run(self, run: Any) -> None:
        self.told = run


def test_every_call_reaches_the_other_grid() -> None:
    inner = Inner()
    grid = ForwardingGrid(inner)  # type: ignore[arg-type]
    assert grid.push_messages(["a"]) == ("push_messages", (["a"],), {})
    assert grid.pull_messages(["b"]) == ("pull_messages", (["b"],), {})
    assert grid.get_node_ids() == ("get_node_ids", (), {})
    assert grid.create_message(1, ttl=2) == ("create_message", (1,), {"ttl": 2})
    sent = grid.send_and_receive(["c"], timeout=3.0)
    assert sent == ("send_and_receive", (["c"],), {"timeout": 3.0})
    grid.set_run("mine")
    assert inner.told == "mine"
    assert (grid.run, grid.own) == ("the run", "more than a Grid has")


def test_no_method_of_flowers_grid_is_left_out() -> None:
    own = {name for name in vars(Grid) if not name.startswith("_")}
    methods = {
        n for n, part in inspect.getmembers(Grid) if getattr(part, "__isabstractmethod__", 0)
    }
    assert methods <= set(vars(ForwardingGrid))
    assert own & {"push_messages", "send_and_receive"} <= set(vars(ForwardingGrid))


def test_a_grid_that_is_not_made_yet_has_no_other_one() -> None:
    grid = ForwardingGrid.__new__(ForwardingGrid)
    with pytest.raises(AttributeError, match="_grid"):
        _ = grid.nodes  # type: ignore[attr-defined]
    assert isinstance(copy.copy(grid), ForwardingGrid)
