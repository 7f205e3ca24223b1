"""The input of a module's call, from the arguments of a hook registered ``with_kwargs=True``."""

from collections.abc import Mapping
from typing import Any


def module_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, given by position or, as in ``layer(input=x)``, by keyword.

    Args:
        args: the positional arguments of the call.
        kwargs: the keyword arguments of the call, in their order.

    Returns:
        The argument; None if the call has no argument.
    """
    return args[0] if args else next(iter(kwargs.values()), None)
