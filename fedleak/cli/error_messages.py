"""Translate jsonargparse's error messages: one sentence, with what was expected and what came."""

import re
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from fedleak.cli.plugin_names import arguments_of
from fedleak.errors import BadInput, unknown_name
from fedleak.registry import SETTINGS, load_class, names, short_name

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[int]": "a list of whole numbers (such as [0, 2])",
    "list[float]": "a list of numbers (such as [0.5, 0.2])",
    "list": "a list (such as [a, b])",
    "dict": "a mapping (such as {name: value})",
    "NoneType": "null",
}


def translate_error(parser: ArgumentParser, argv: list[str], message: str) -> BadInput:
    """Translate an error message of jsonargparse.

    Args:
        parser: the parser of the command.
        argv: the arguments that it parsed.
        message: jsonargparse's message.

    Returns:
        The error, for the caller to raise.
    """
    text = " ".join(message.split())
    # From the outer to the inner setting.
    keys = re.findall(r'Parser key "([^"]+)"', text)
    name = ".".join(dict.fromkeys(keys))
    if found := re.search(r"(?:[Oo]ption '|unrecognized arguments: -+)([\w.+-]+)", text):
        return _unknown_setting(parser, argv, text, keys, found[1].rstrip("+"))
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return BadInput(f"Expected options, such as `--seed 1`, got `{found[1]}`.")
    if found := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.+?)\)", text):
        kind = "value" if "subcommand" not in text else "command"
        if option := re.search(r"argument (--[\w.]+)", text):
            kind = f"value of `{option[1]}`"
        return unknown_name(kind, found[1], re.findall(r"[\w.]+", found[2]))
    if found := re.search(r"argument (--[\w.+]+): expected", text):
        after = argv[argv.index(found[1]) + 1 :] if found[1] in argv else []
        if after and re.match(r"-[^-]", after[0]):
            return BadInput(
                f"Expected a value after `{found[1]}` that does not start with a dash, got "
                f"`{after[0]}`."
            )
        return BadInput(f"Expected a value after `{found[1]}`, got nothing.")
    if found := re.search(r"argument (--[\w.+]+): ignored explicit argument '(.+)'", text):
        return BadInput(f"Expected no value after `{found[1]}`, got `{found[2]}`.")
    if found := re.search(r"the following arguments are required: ([\w., ]+?)(?: -|$)", text):
        return _missing(keys, found[1])
    if found := re.search(r"Expected an? (\S.*?)\.? Got value: (.+?)(?: -|$)", text):
        return _wrong_type(name, [found[1]], found[2])
    if found := re.search(r".*Subtypes: \[(.+?)\] Errors:.*?Given value: (.+?)(?: -|$)", text):
        return _wrong_type(name, re.split(r", (?![^\[]*\])", found[1]), found[2])
    if found := re.search(r"Unable to load config ['\"](.+?)['\"]", text):
        return BadInput(f"Expected settings of `{name}` or a YAML file, got `{found[1]}`.")
    return BadInput(f"{text.rstrip('.')}: see `fedleak --help`.")


def _unknown_setting(
    parser: ArgumentParser, argv: list[str], text: str, keys: list[str], option: str
) -> BadInput:
    classes = re.findall(r"given class_path '([\w.]+)'", text)
    if classes:  # a plugin's own setting
        nested = len(classes) > 1
        title = keys[-1] if nested else short_name(SETTINGS.get(keys[0], ""), classes[0])
        return unknown_name(f"setting of {title}", option, arguments_of(load_class(classes[-1])))
    return unknown_option(parser, argv, option)


def unknown_option(parser: ArgumentParser, argv: list[str], option: str) -> BadInput:
    """Make the error for an option that the command in the arguments does not have.

    Args:
        parser: the parser of the command.
        argv: the arguments.
        option: the option without its dashes.

    Returns:
        The error, for the caller to raise.
    """
    known = settings_of(parser, argv)
    group, _, rest = option.rpartition(".")
    siblings = [n.removeprefix(f"{group}.") for n in known if n.startswith(f"{group}.")]
    if group and siblings:
        return unknown_name(f"setting of {group}", rest, siblings)
    near = [name for name in known if "." not in name]
    return unknown_name("setting", option, near)


def settings_of(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """The dotted names of all options of the command in the arguments."""
    commands: Mapping[str, Any] = parser._subcommands_action.choices  # type: ignore[union-attr]
    chosen = next((commands[name] for name in argv if name in commands), parser)
    options = [option for action in chosen._actions for option in action.option_strings]
    return [
        option.removeprefix("--")
        for option in options
        if option.startswith("--") and not option.endswith(("+", ".help", "print_config"))
    ]


def _missing(keys: list[str], required: str) -> BadInput:
    first = required.split(",")[0].strip().rpartition(".")[2]
    if keys:
        option = ".".join([*keys, first])
        return BadInput(f"Expected a value for `{option}`, got nothing: give `--{option}`.")
    if first in SETTINGS:
        kind = SETTINGS[first]
        return BadInput(
            f"Expected `--{first}` with one of {', '.join(names(kind))}, got nothing: see "
            f"`fedleak list {kind}`."
        )
    return BadInput(f"Expected a value for `{first}`, got nothing: see `fedleak --help`.")


def _wrong_type(name: str, types: list[str], value: str) -> BadInput:
    found = re.search(r"NestedArg\(key='[\w.]+', val='(.*?)'\)", value)
    value = found[1] if found else value
    if choices := re.search(r"Literal\[(.+)\]", types[0]):
        return unknown_name(f"value of `{name}`", value, re.findall(r"'([^']+)'", choices[1]))
    kinds = [re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind) for kind in types]
    words = " or ".join(WORDS.get(kind, "settings as `name: value`") for kind in kinds)
    return BadInput(f"Expected `{name}` to be {words}, got `{value}`.")
