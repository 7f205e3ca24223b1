"""The errors of fedleak: unusable input, failed runs, exceeded limits."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100
"""Most characters of a name that a message repeats, since a file may contain any text."""


class BadInput(ValueError):
    """Input that fedleak cannot use; its message is one sentence that says what to do.

    The command line prints the message and exits with code 2; nothing has been written.
    """


class ModelFailed(BadInput):
    """A user's model, or the loss that it computes, raises an error."""


class RunFailed(RuntimeError):
    """A run failed for another reason than its configuration; it can be resumed."""


class AboveLimit(RuntimeError):
    """An audit found more than its limits allow; the command line exits with code 3."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> BadInput:
    """Make the error for a name that is not among the choices; it suggests the nearest match.

    Args:
        kind: what is named, such as ``attack`` or ``setting of iga``.
        name: the unknown name.
        choices: the valid names.

    Returns:
        The error, for the caller to raise.
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


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
