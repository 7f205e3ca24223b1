"""Files of what a malicious server sent and of what it read: safetensors with a header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedleak.errors import BadInput, require
from fedleak.servers.base import Crafted, Reading
from fedleak.updates.files import check_name, read_tensors, short, write_tensors

SENT_FORMAT = "fedleak-sent-1"
READING_FORMAT = "fedleak-reading-1"
WEIGHTS, MEMORY = "weights/", "memory/"
PARTS = ("inputs", "labels", "certified", "features")
LARGEST_JSON = 2**20
"""Longest text of JSON in a header, in characters."""


def save_crafted(crafted: Crafted, path: Path, server: str) -> None:
    """Write what a server sent to a client, and what it keeps for the reading.

    Args:
        crafted: the weights, the configuration and the server's memory.
        path: the file; its folder exists.
        server: the name of the malicious server.
    """
    tensors = {f"{WEIGHTS}{name}": value for name, value in crafted.weights.items()}
    tensors |= {f"{MEMORY}{name}": value for name, value in crafted.memory.items()}
    header = {"format": SENT_FORMAT, "server": server, "config": json.dumps(dict(crafted.config))}
    write_tensors(tensors, path, header)


def load_crafted(path: Path) -> Crafted:
    """Read a file that :func:`save_crafted` wrote.

    Args:
        path: the file.

    Raises:
        BadInput: if the file is missing, damaged or of another format.
    """
    tensors, header = read_tensors(path, SENT_FORMAT)
    config = _json(header, "config", path)
    plain = isinstance(config, dict) and all(
        isinstance(value, bool | int | float | str) for value in config.values()
    )
    require(
        plain, f"Expected numbers and texts by name in `config` of {path}, got {short(config)}."
    )
    parts: dict[str, dict[str, Any]] = {WEIGHTS: {}, MEMORY: {}}
    for name, value in tensors.items():
        prefix = f"{name.partition('/')[0]}/"
        require(
            prefix in parts and name != prefix,
            f"Expected weights and memory in {path}, got {short(name)}.",
        )
        parts[prefix][name.removeprefix(prefix)] = value
    return Crafted(parts[WEIGHTS], config, parts[MEMORY])


def save_reading(
    reading: Reading, path: Path, server: str, facts: Mapping[str, Any] | None = None
) -> None:
    """Write what a server read of a client.

    Args:
        reading: the samples.
        path: the file; its folder exists.
        server: the name of the malicious server.
        facts: what else is known of it, as plain values, such as its scores.
    """
    check_name("the malicious server", server)
    tensors = {name: getattr(reading, name) for name in PARTS}
    header = {
        "format": READING_FORMAT,
        "server": server,
        "findings": json.dumps(list(reading.findings)),
        "facts": json.dumps(dict(facts or {})),
    }
    write_tensors(tensors, path, header)


def load_reading(path: Path) -> Reading:
    """Read a file that :func:`save_reading` wrote.

    Args:
        path: the file.

    Raises:
        BadInput: if the file is missing, damaged or of another format, or its tensors are not of
            the same number of samples.
    """
    tensors, header = read_tensors(path, READING_FORMAT)
    require(
        tensors.keys() == set(PARTS)
        and all(value.dim() >= 1 for value in tensors.values())
        and len({len(value) for value in tensors.values()}) == 1,
        f"Expected {', '.join(PARTS)} of as many samples each in {path}, got "
        f"{short({name: tuple(value.shape) for name, value in tensors.items()})}.",
    )
    findings = _json(header, "findings", path)
    require(
        isinstance(findings, list) and all(isinstance(text, str) for text in findings),
        f"Expected sentences in `findings` of {path}, got {short(findings)}.",
    )
    return Reading(**tensors, findings=tuple(findings))


def reading_facts(path: Path) -> dict[str, Any]:
    """What :func:`save_reading` was told besides the samples.

    Args:
        path: the file.

    Raises:
        BadInput: if the file is missing, damaged or of another format.
    """
    _, header = read_tensors(path, READING_FORMAT)
    facts = _json(header, "facts", path)
    require(isinstance(facts, dict), f"Expected `facts` by name in {path}, got {short(facts)}.")
    return dict(facts) | {"server": header.get("server", "")}


def _json(header: Mapping[str, str], name: str, path: Path) -> Any:
    text = header.get(name, "")
    try:
        if len(text) > LARGEST_JSON:
            raise ValueError
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"Expected JSON as `{name}` in {path}, got {short(text)}.") from None
