"""Plain values against annotations: what fits, and what a sentence says of what does not."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from fedleak.errors import BadInput
from fedleak.schema import check_keys, check_value, check_values, parameters_of, shown


@dataclass
class Inner:
    size: int | None = None
    rate: float = 0.5


class Owner:
    def __init__(
        self, *, inner: Inner | None = None, name: str = "a", sizes: list[int] = ()
    ) -> None:
        """Never called."""


class Open:
    def __init__(self, known: int = 1, **others: Any) -> None:
        """Never called."""


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-8", float, 1e-8),
        (None, int | None, None),
        ("b", Literal["a", "b"], "b"),
        ([1, 2], list[int], [1, 2]),
        ([0.5, 1], tuple[float, ...], (0.5, 1.0)),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"size": 4}, Inner | None, {"size": 4}),
        (Inner(), Inner | None, Inner()),
        (object, Any, object),
    ],
)
def test_what_fits(value: Any, annotation: Any, expected: Any) -> None:
    found = check_value("x", value, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "text"),
    [
        ("3", int, "Expected `x` to be a whole number, got `3`"),
        (3.0, int, "Expected `x` to be a whole number, got `3.0`"),
        (True, int, "to be a whole number, got `true`"),
        (2**64, int, "to be a whole number"),
        (True, float, "to be a number, got `true`"),
        (float("nan"), float, "to be a number, got `nan`"),
        (10**400, float, "to be a number, got a whole number of 1329 bits"),
        ("1e-8", int, "to be a whole number, got `1e-8`"),
        (1, bool, "to be true or false, got `1`"),
        (1, str, "to be text, got `1`"),
        (None, str, "to be text, got nothing"),
        ("c", Literal["abc", "def"], "Unknown value of `x` `c`: expected one of abc, def"),
        ("b", int | None, "to be a whole number or null, got `b`"),
        ([1, "b"], list[int], r"to be a list of whole numbers \(such as \[0, 2\]\), got"),
        ("ab", list[str], "to be a list"),
        ({1: 2}, dict[str, Any], "to be a mapping"),
        ([1], dict[str, Any], "to be a mapping"),
        ({"siz": 4}, Inner, r"Unknown setting of x `siz`: .* Did you mean `size`\?"),
        (
            {"size": "big"},
            Inner | None,
            "Expected `x.size` to be a whole number or null, got `big`",
        ),
    ],
)
def test_what_does_not(value: Any, annotation: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        check_value("x", value, annotation)


def test_settings_of_a_class() -> None:
    found = check_values("owner", {"inner": {"rate": 1}, "name": "b"}, Owner)
    assert found == {"inner": {"rate": 1.0}, "name": "b"}
    assert parameters_of(Owner)["inner"].nested is Inner
    assert parameters_of(Owner)["name"].nested is None
    with pytest.raises(BadInput, match=r"Expected `model.inner.rate` to be a number, got `x`"):
        check_values("owner", {"inner": {"rate": "x"}}, Owner, prefix="model")
    with pytest.raises(BadInput, match="Unknown setting of owner `nam`: expected one of inner, si"):
        check_values("owner", {"nam": 1}, Owner, hidden=("name",))
    assert check_values("owner", {"name": "set"}, Owner, hidden=("name",)) == {"name": "set"}
    assert check_values("open", {"anything": 3}, Open) == {"anything": 3}
    with pytest.raises(BadInput, match=r"Expected `open.known` to be a whole number"):
        check_values("open", {"known": "x"}, Open)


def test_keys() -> None:
    check_keys("", {"a": 1}, ["a"])
    with pytest.raises(BadInput, match="Unknown setting `3`: expected one of a"):
        check_keys("", {3: 1}, ["a"])
    with pytest.raises(BadInput, match="settings as `name: value` in `model`, got `7`"):
        check_keys("model", 7, ["a"])


def test_a_message_stays_short() -> None:
    assert len(shown("x" * 10_000)) < 70
    assert shown(["a\n", None]) == "`['a\\n', None]`"
