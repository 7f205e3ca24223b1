"""Packages whose public names are imported when they are first used."""

from collections.abc import Callable
from typing import Any

import lazy_loader

from fedleak.extras import extras_explained


def catalogue(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Module attributes that make a package lazy (PEP 562), from the stub of its ``__init__.py``.

    The stub, ``__init__.pyi``, imports every public name of the package from the module that
    defines it. Type checkers read the stub; at run time a module is imported when one of its names
    is first accessed, so that importing the package costs nothing.

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``.

    Returns:
        Its ``__getattr__``, ``__dir__`` and ``__all__``. ``__getattr__`` raises
        :class:`fedleak.extras.MissingExtra` for a name that needs an extra that is not installed.
    """
    found, names, public = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:
        with extras_explained():
            return found(name)

    return __getattr__, names, public
