"""What a user's input can cause, and a run that breaks down."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100
"""Characters of a name that a message repeats; a file may hold any text."""


class BadInput(ValueError):
    """Input that fedleak cannot use; its text is one sentence that says what to do.

    The command line prints the sentence and exits with code 2; nothing has been written by then.
    """


class RunFailed(RuntimeError):
    """A run that broke down through no fault of its configuration; it can be resumed."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> BadInput:
    """The error for a name that is not among the choices, with the nearest match.

    Args:
        kind: what the name stands for, such as ``attack`` or ``setting of iga``.
        name: what the user gave.
        choices: the valid names.

    Returns:
        An error to be raised by the caller.
    """
    valid = sorted(choices)
    name = " ".join(name.split())
    name = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return BadInput(
        f"Unknown {kind} `{name}`: expected one of {', '.join(valid) or '(none)'}.{hint}"
    )


def require(condition: bool, message: str) -> None:
    """Raise :class:`BadInput` with the message unless the condition holds.

    Raises:
        BadInput: if the condition is false.
    """
    if not condition:
        raise BadInput(message)
