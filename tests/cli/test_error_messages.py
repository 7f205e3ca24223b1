"""Error messages of jsonargparse, translated into one sentence each."""

import re

import pytest

from fedleak.cli.arguments import make_parser
from fedleak.cli.error_messages import settings_of, translate_error, unknown_option

PARSER = make_parser("run", plugins=False)
ARGUMENTS = ["run", "--seed", "1"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("unrecognized arguments: --sede 3", r"Unknown setting `sede`: .* Did you mean `seed`\?"),
        (
            "unrecognized arguments: --federation.cliens 3",
            r"Unknown setting of federation `cliens`: .* Did you mean `clients`\?",
        ),
        ("unrecognized arguments: photos", "Expected options, such as `--seed 1`, got `photos`"),
        ("argument --seed: expected one argument", "Expected a value after `--seed`, got nothing"),
        (
            "argument --resume: ignored explicit argument 'yes'",
            "Expected no value after `--resume`, got `yes`",
        ),
        (
            "argument KIND: invalid choice: 'atacks' (choose from attacks, data)",
            r"Unknown value `atacks`: .* Did you mean `attacks`\?",
        ),
        (
            "argument subcommand: invalid choice: 'rnu' (choose from run, list)",
            r"Unknown command `rnu`: .* Did you mean `run`\?",
        ),
        (
            "Parser key \"seed\": Expected a <class 'int'>. Got value: x",
            "Expected `seed` to be a whole number, got `x`",
        ),
        (
            'Parser key "federation": Parser key "clients": Expected a <class \'int\'>. '
            "Got value: two",
            "Expected `federation.clients` to be a whole number, got `two`",
        ),
        ("the following arguments are required: data", "`--data` with one of .*photos"),
        ("something else.", "something else: see `fedleak --help`"),
    ],
)
def test_messages(message: str, sentence: str) -> None:
    assert re.search(sentence, str(translate_error(PARSER, ARGUMENTS, message)))


def test_a_value_that_looks_like_an_option_is_named() -> None:
    message = "argument --budget: expected one argument"
    for arguments, got in (
        (["audit", "--budget", "-5s"], "that does not start with a dash, got `-5s`."),
        (["audit", "--budget", "--seed", "1"], "after `--budget`, got nothing."),
        (["audit", "--budget"], "after `--budget`, got nothing."),
    ):
        assert str(translate_error(PARSER, arguments, message)).endswith(got)


def test_the_options_of_the_command_in_the_arguments() -> None:
    found = settings_of(PARSER, ARGUMENTS)
    assert {"seed", "federation.clients", "data"} <= set(found)
    assert not any(name.endswith((".help", "+")) for name in found)
    assert "seed" not in settings_of(PARSER, [])


def test_an_option_of_a_group_is_compared_with_its_siblings() -> None:
    error = unknown_option(PARSER, ARGUMENTS, "federation.roundz")
    assert "setting of federation `roundz`" in str(error)
    assert "Did you mean `rounds`?" in str(error)
    assert "`output`" not in str(error)
