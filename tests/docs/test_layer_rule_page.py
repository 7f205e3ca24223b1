"""The code of docs/how-to/add-a-layer-rule.md, block after block, and what it claims to need."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fedleak.attacks.closed_form.layer_rules import LAYER_RULES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-layer-rule.md"


def test_every_block_runs_and_the_rule_inverts_the_layer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert nn.Softplus not in LAYER_RULES, "the page's example has to be a type without a rule"
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    finally:
        LAYER_RULES.pop(nn.Softplus, None)
    steps = [line for line in capsys.readouterr().out.splitlines() if "(Softplus): rank" in line]
    assert len(steps) == 2
    invert, call, output = (names[name] for name in ("invert_layers", "call", "output"))
    _, _, reason = invert([call], output, {}, iterations=1, seed=0)
    assert reason == "act is a Softplus, which has no layer rule"
    assert f"`{reason}`" in PAGE.read_text(encoding="utf-8")
