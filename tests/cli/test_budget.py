"""The command `fedleak budget`: its table, its sentences, its exit codes."""

import inspect
import math
import re

import pytest
from scipy.stats import norm

from fedleak.cli import main as cli
from fedleak.cli.arguments import make_parser
from fedleak.cli.error_messages import settings_of
from fedleak.privacy.mechanisms import MECHANISMS

IN_USE = (
    "--mechanism local_dp_mod --clipping-norm 1 --sensitivity 1e-4 --epsilon 10 --delta 1e-5 "
    "--rounds 20"
)


def budget(text: str) -> int:
    """The exit code of the command, in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["budget", *text.split()])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def rows(shown: str) -> list[list[str]]:
    """The cells of a table's rows."""
    lines = [line for line in shown.splitlines() if re.match(r"│ +\d", line)]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_the_setting_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget(IN_USE) == 0
    shown = capsys.readouterr().out
    assert rows(shown) == [
        ["1", "10, 1e-05", "8.523e+08, 1e-05", "client, replace", "local", "exact Gaussian"],
        ["20", "200, 0.0002", "1.704e+10, 1e-05", "client, replace", "local", "exact Gaussian"],
    ]
    assert "- The declared epsilon 10 does not hold" in shown


def test_dp_sgd(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget("--mechanism dp_sgd --noise-multiplier 2 --delta 1e-6") == 0
    ((*_, accountant),) = found = rows(capsys.readouterr().out)
    assert accountant == "exact Gaussian"
    assert (found[0][0], found[0][1], found[0][2].split(", ")[1]) == ("1", "none", "1e-06")
    # Balle and Wang's delta of a Gaussian mechanism of noise multiplier 2.
    epsilon = float(found[0][2].split(", ")[0])
    delta = norm.cdf(1 / 4 - 2 * epsilon) - math.exp(epsilon) * norm.cdf(-1 / 4 - 2 * epsilon)
    assert delta == pytest.approx(1e-6, rel=0.01)


def test_noise_without_clipping(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget("--mechanism noise --sigma 0.1") == 0
    shown = capsys.readouterr().out
    assert rows(shown)[0][2] == "inf, 1e-05"
    assert "No epsilon holds: nothing bounds the contribution" in shown


def test_noise_that_vanishes_beside_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = "--clipping-norm 1e300 --sensitivity 1e-300 --epsilon 1 --delta 1e-5"
    assert budget(f"--mechanism local_dp_mod {tiny}") == 0
    shown = capsys.readouterr().out
    assert rows(shown)[0][2] == "inf, 1e-05"
    assert "The declared epsilon 1 does not hold: the noise of one round is worth inf" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--mechanism local_dp", ["mechanism `local_dp`", "Did you mean `local_dp_mod`?"]),
        ("--mechanism dp_sgd", ["`--noise-multiplier` for dp_sgd, got nothing"]),
        ("--mechanism dp_sgd --noise-multipler 1", ["Did you mean `noise-multiplier`?"]),
        (
            "--mechanism dp_sgd --noise-multiplier 1 --sigma 2",
            ["setting of dp_sgd `sigma`", "sampling-rate"],
        ),
        ("--mechanism noise --sigma -1", ["`sigma` of noise to be at least 0, got -1.0"]),
        ("--mechanism noise --sigma 1 --rounds 0", ["`--rounds` of at least 1, got 0"]),
        ("--mechanism noise --sigma 1 --rounds 2000000000000000", ["at most 10^15, got 2e+15"]),
        (
            "--mechanism local_dp_mod --clipping-norm 1 --sensitivity 1e-4 --epsilon 1e308 "
            "--delta 1e-5",
            ["`epsilon` and `delta` whose noise can be computed", "got 1e+308 and 1e-05"],
        ),
        ("--mechanism noise --sigma x", ["`sigma` to be a number"]),
        ("--mechanism noise --sigma 1 --delta 2", ["`delta` of a ledger", "got 2.0"]),
        ("--rounds 2", ["Expected a value for `mechanism`, got nothing"]),
    ],
)
def test_bad_input(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert budget(text) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said


def test_every_setting_of_a_mechanism_is_an_option() -> None:
    options = set(settings_of(make_parser("budget"), ["budget"]))
    needed = {
        name.replace("_", "-")
        for function in MECHANISMS.values()
        for name in inspect.signature(function).parameters
    }
    assert options == needed | {"help", "mechanism", "rounds", "delta"}
