"""``findings.jsonl``: what attacks say of how they went, a line for each update."""

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [found for found in map(_parsed, lines) if found is not None]


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
    for found in read_findings(path):
        if found.attacked in done:
            append_findings(part, found)
    part.replace(path)


def _parsed(line: str) -> Findings | None:
    try:
        found = json.loads(line)
        values = (str(found["model"]), str(found["attack"]))
        numbers = (int(found["round"]), int(found["client"]))
        return Findings(*values, *numbers, tuple(str(text) for text in found["findings"]))
    except (ValueError, KeyError, TypeError):
        return None
