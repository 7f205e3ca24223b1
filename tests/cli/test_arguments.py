"""The parser of the command line."""

import pytest

from fedleak.cli.arguments import COMMANDS, EXAMPLES, make_parser, parse
from fedleak.errors import BadInput


def test_every_command_has_an_example_and_a_parser() -> None:
    assert set(EXAMPLES) == {"", *COMMANDS}
    for command in COMMANDS:
        assert f"usage: fedleak {command}" in _help(command)


def _help(command: str) -> str:
    parser = make_parser(command, plugins=False)
    return parser._subcommands_action.choices[command].format_help()


def test_a_run_is_parsed() -> None:
    settings = parse(
        ["run", "--data", "photos", "--model", "smlp", "--model.width", "7", "--seed", "3",
         "--federation.clients", "2"]
    ).run  # fmt: skip
    assert settings.seed == 3
    assert settings.data.class_path == "fedleak.data.photos.Photos"
    assert settings.model.init_args.width == 7
    assert settings.federation.clients == 2


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([])
    assert ended.value.code == 2
    assert "fedleak COMMAND ..." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run --sede 3", r"Unknown setting `sede`: .* Did you mean `seed`\?"),
        ("run --federation.cliens 3", r"Unknown setting of federation `cliens`"),
        ("run --model smlp --model.widht 3", r"Unknown setting of smlp `widht`.*`width`\?"),
        ("report --ovre x", "Unknown setting `ovre`"),
        ("list atacks", r"`atacks`.*attacks"),
    ],
)
def test_misspelt_arguments(arguments: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        parse(arguments.split())
