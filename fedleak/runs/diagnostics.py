"""``diagnostics.jsonl``: what each attack reports about its reconstructions, a line per update."""

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedleak.errors import BadInput, require
from fedleak.runs.text_files import is_count, parse_json, read_text
from fedleak.updates.files import short

AttackKey = tuple[str, str, int, int]
"""Model, attack, round and client: which attack on which update."""


@dataclass(frozen=True)
class Diagnostics:
    """What an attack reports about one reconstruction.

    Args:
        model: the model's name.
        attack: the attack's name.
        round: number of the round, from 1.
        client: number of the client, from 0.
        findings: one sentence each, see :attr:`fedleak.attacks.base.Reconstruction.findings`.
    """

    model: str
    attack: str
    round: int
    client: int
    findings: tuple[str, ...]

    @property
    def key(self) -> AttackKey:
        """Which attack on which update this is."""
        return self.model, self.attack, self.round, self.client


def append_diagnostics(path: Path, found: Diagnostics) -> None:
    """Append one line.

    Args:
        path: diagnostics.jsonl, which need not exist.
        found: what to append; without findings, nothing is written.
    """
    if found.findings:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")


def read_diagnostics(path: Path) -> list[Diagnostics]:
    """All complete lines, in their order; a killed run may leave an incomplete last line.

    Args:
        path: diagnostics.jsonl, which need not exist. Older runs call it findings.jsonl.

    Raises:
        BadInput: if the file is not text, or a complete line is not an entry.
    """
    path = path if path.is_file() else path.with_name("findings.jsonl")
    if not path.is_file():
        return []
    *lines, _ = read_text(path).split("\n")
    return [_parsed(line, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def repair_diagnostics(path: Path, done: Container[AttackKey]) -> None:
    """Drop what a killed run left incomplete: half a line, and entries without rows of results.

    Args:
        path: diagnostics.jsonl, which need not exist.
        done: the attacks whose rows of results.csv are complete.
    """
    if not path.exists():
        return
    part = path.with_suffix(".part")
    part.write_text("", encoding="utf-8")
    for line in path.read_bytes().split(b"\n"):
        try:
            found = _parsed(line.decode("utf-8", errors="replace"), str(path))
        except BadInput:
            continue
        if found.key in done:
            append_diagnostics(part, found)
    part.replace(path)


def _parsed(line: str, where: str) -> Diagnostics:
    found = parse_json(line, where)
    require(
        isinstance(found, dict)
        and all(isinstance(found.get(name), str) for name in ("model", "attack"))
        and is_count(found.get("round"), 1)
        and is_count(found.get("client"))
        and _is_texts(found.get("findings")),
        f"Expected model, attack, round, client and findings in {where}, got {short(found)}.",
    )
    return Diagnostics(
        found["model"], found["attack"], found["round"], found["client"], tuple(found["findings"])
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
