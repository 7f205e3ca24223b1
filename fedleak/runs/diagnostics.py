"""``findings.jsonl``: what attacks say of how they went, a line for each update."""

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedleak.errors import BadInput, require
from fedleak.runs.text_files import is_count, parse_json, read_text
from fedleak.updates.files import short

Attacked = tuple[str, str, int, int]
"""Model, attack, round and client."""


@dataclass(frozen=True)
class Findings:
    """What an attack found on its way to one reconstruction.

    Args:
        model: the model's name.
        attack: the attack's name.
        round: number of the round, from 1.
        client: number of the client, from 0.
        findings: a sentence each, in their order.
    """

    model: str
    attack: str
    round: int
    client: int
    findings: tuple[str, ...]

    @property
    def attacked(self) -> Attacked:
        """Which attack on which update it was."""
        return self.model, self.attack, self.round, self.client


def append_findings(path: Path, found: Findings) -> None:
    """Append a line.

    Args:
        path: findings.jsonl, which need not exist.
        found: what to append; nothing, if there are no findings.
    """
    if found.findings:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")


def read_findings(path: Path) -> list[Findings]:
    """All whole lines, in their order; a run that is killed may leave half a line.

    Args:
        path: findings.jsonl, which need not exist.

    Raises:
        BadInput: if the file is no text, or a line that has an end holds no findings.
    """
    if not path.is_file():
        return []
    *lines, _ = read_text(path).split("\n")
    return [_parsed(line, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def repair_findings(path: Path, done: Container[Attacked]) -> None:
    """Drop what a killed run has left behind: half a line, and findings without their rows.

    Args:
        path: findings.jsonl, which need not exist.
        done: the attacks whose rows are there.
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
        if found.attacked in done:
            append_findings(part, found)
    part.replace(path)


def _parsed(line: str, where: str) -> Findings:
    found = parse_json(line, where)
    require(
        isinstance(found, dict)
        and all(isinstance(found.get(name), str) for name in ("model", "attack"))
        and is_count(found.get("round"), 1)
        and is_count(found.get("client"))
        and _is_texts(found.get("findings")),
        f"Expected model, attack, round, client and findings in {where}, got {short(found)}.",
    )
    return Findings(
        found["model"], found["attack"], found["round"], found["client"], tuple(found["findings"])
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
