"""Both sides of a comparison are measured alike."""

import pytest

from benchmarks.measure import in_turns, ratios


def test_sides_take_turns_after_a_call_that_is_not_timed():
    calls = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match=r"Expected a warm-up of \['a'\], got \['b'\]"):
        in_turns({"a": int}, 1, {"b": int})


def test_a_ratio_is_of_the_pair_that_was_measured_together():
    # Work of the fast side is twice as much; the machine was half as fast during the second pair.
    assert ratios([8.0, 16.0], [1.0, 2.0], 2) == [16.0, 16.0]
