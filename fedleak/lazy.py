"""Packages whose public names are imported when they are first used."""

from collections.abc import Callable
from typing import Any

import lazy_loader

from fedleak.extras import extras_explained


def catalogue(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What makes a package lazy (PEP 562), from the stub beside its ``__init__.py``.

    The stub, ``__init__.pyi``, imports every public name of the package from the module that
    defines it. Type checkers read it as it is; at run time a name's module is imported when
    somebody asks for the name, so that a package costs nothing but what is used of it.

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``.

    Returns:
        Its ``__getattr__``, ``__dir__`` and ``__all__``. The first raises :class:`MissingExtra` for
        a name that needs an extra which is not installed.
    """
    found, names, public = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:
        with extras_explained():
            return found(name)

    return __getattr__, names, public
