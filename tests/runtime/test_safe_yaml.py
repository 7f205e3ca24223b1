"""Untrusted YAML gives plain values or one error message."""

from pathlib import Path

import pytest

from fedleak.errors import BadInput
from fedleak.runtime.safe_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [*a]", "refers to itself"),
        ("&a {b: {c: *a}}", "refers to itself"),
        ("[" * 5000, f"at most {MAX_DEPTH} levels"),
        ("".join(" " * n + "- a:\n" for n in range(200)), "at most 40 levels|mistake"),
        (BOMB, "at most 100,000 values"),
        ("- x\n" * 100_001, "at most 100,000 values"),
        ("a: 2020-13-45", "plain values in here, got: month"),
        ("a: " + "9" * 5000, "plain values in here, got"),
        ("!!python/object/apply:os.system [true]", "got a mistake in line 1: could not determine"),
        ("? [a, b]\n: {c: d}", "mistake in line 1"),
        ("seed: 1" + ":1" * 6000, "texts of at most 10,000 characters in here"),
        ("a: *nothing", "mistake in line 1: found undefined alias"),
        ("a: \x00", "mistake"),
        ("data: [", "got a mistake in line 1"),
    ],
)
def test_invalid_yaml_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_yaml(text, "here")


def test_aliases_are_expanded() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: &y 3\ne: [*y]\n", "here") == {
        "a": {"b": 1}, "c": {"b": 1}, "d": 3, "e": [3],
    }  # fmt: skip


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(BadInput, match=r"a YAML file at `.*config.yaml`, found none"):
        read_yaml(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(BadInput, match="a readable YAML file"):
        read_yaml(path)
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(BadInput, match="at most 1,048,576 bytes"):
        read_yaml(path)
    path.write_text("seed: 3")
    assert read_yaml(path) == {"seed": 3}
