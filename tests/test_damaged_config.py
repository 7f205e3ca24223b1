"""A configuration that is damaged, or written by somebody else, is refused in one sentence."""

import copy
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.registry import Plugin
from tests.damage import limit_memory

VALUES: list[Any] = [
    None, [], {}, "", "text", -1, 0, 10**400, 1e308, float("nan"), float("inf"), True, [[]],
    [1, 2], {"a": 1}, {1: 2}, {None: None}, "../../x", "1", ["a", {"b": []}], "x" * 100_000,
]  # fmt: skip


def whole() -> dict[str, Any]:
    config = RunConfig(
        data=Plugin("fedleak.data.npz.Npz", {"path": "x.npz", "mean": [0.5], "std": [0.25]}),
        model=Plugin("fedleak.models.mlp.SMLP", {"precode": {"bottleneck_size": 8}}),
        attacks=(Plugin("fedleak.attacks.iga.IGA", {"iterations": 100}),),
        defenses=(Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),),
        baseline=True,
    )
    return config.to_dict() | {"versions": {"fedleak": "0.1.0"}}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands, and all those in it."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def load(path: Path) -> RunConfig | None:
    """What a report needs of a configuration; none if it is refused in a sentence."""
    try:
        config = RunConfig.load(path)
        texts = [config.model_name, config.data_name, config.defense_name, config.hash]
        variants = config.variants
    except BadInput as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1200
        assert text.startswith(("Expected", "Unknown"))
        return None
    assert all(isinstance(text, str) for text in texts)
    assert "" in variants
    return config


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(2**31)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(whole()))
    assert load(path).to_dict() == {n: v for n, v in whole().items() if n != "versions"}


# Values that each of these places would be wrong to take.
PLACES = [
    path for path in places(whole()) if path[0] != "versions" and "init_args" not in path[:-1]
]


@pytest.mark.parametrize("place", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type(tmp_path: Path, place: tuple[Any, ...]) -> None:
    path, refused = tmp_path / "config.yaml", 0
    for value in VALUES:
        changed = copy.deepcopy(whole())
        owner = changed
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value
        path.write_text(yaml.safe_dump(changed).replace(str(10**400), "1" * 6000))
        refused += load(path) is None
    assert refused > 5


@pytest.mark.parametrize("place", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_value_that_is_gone_or_a_key_that_is_none(tmp_path: Path, place: tuple[Any, ...]) -> None:
    path = tmp_path / "config.yaml"
    for key in (None, 1, 2.5, True, "unheard_of", "x" * 10_000):
        changed = copy.deepcopy(whole())
        owner = changed
        for part in place[:-1]:
            owner = owner[part]
        value = owner.pop(place[-1])
        path.write_text(yaml.safe_dump(changed))
        load(path)
        if isinstance(owner, dict) and "init_args" not in place:
            owner[key] = value
            path.write_text(yaml.safe_dump(changed))
            assert load(path) is None


SELF = "seed: 0\ndata: &a\n  class_path: fedleak.data.npz.Npz\n  init_args: {again: *a}\n"
NESTED = "data: " + "[" * 20_000 + "]" * 20_000 + "\n"
BLOCKS = "\n".join(" " * depth + "a:" for depth in range(3_000)) + "\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 8)
)


@pytest.mark.parametrize(
    "text",
    [
        SELF, "&a [*a]\n", "&a {a: *a}\n", NESTED, BLOCKS, LAUGHS, MERGES,
        LAUGHS + "data: {class_path: fedleak.data.npz.Npz, init_args: {path: *a11}}\n",
        "", "\n", "null\n", "3\n", "[]\n", "text\n", "? [1, 2]\n: 3\n", "? {a: 1}\n: 3\n",
        "data: !!python/object/apply:os.system [true]\n", "data: !!python/name:os.system\n",
        "a: b: c\n", "\ta: 1\n", "a: *nothing\n", "---\na: 1\n---\nb: 2\n", "%YAML 9.9\n---\n",
        "seed: 2001-01-01\n", "seed: !!binary x\n", "seed: 1:30:90\n", "seed: 0x" + "f" * 9000,
        "seed: " + "9" * 9000 + "\n", "data: {1: 2, null: 3}\n", "seed: .inf\n", "<<: 1\n",
    ],
)  # fmt: skip
def test_yaml_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load(path) is None


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"\0", b"seed: \x07", b"\xef\xbb\xbf\xff", b"\x80"]
)
def test_what_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert load(path) is None


def test_more_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    assert load(path) is None


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_lost_or_changed(tmp_path: Path, seed: int) -> None:
    path, random = tmp_path / "config.yaml", np.random.default_rng(seed)
    content = yaml.safe_dump(whole(), sort_keys=False).encode()
    for _ in range(10):
        changed = bytearray(content)
        for _ in range(int(random.integers(1, 6))):
            changed[int(random.integers(len(changed)))] = int(random.integers(256))
        end = int(random.integers(len(content))) if random.random() < 0.3 else len(content)
        path.write_bytes(changed[:end])
        load(path)
