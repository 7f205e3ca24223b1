"""The check that every public name has a docstring and an entry in the reference."""

import importlib
import inspect
import pkgutil
from collections.abc import Container
from typing import Any

from docs.public import homes


def connect(app: Any) -> None:
    """Have Sphinx warn of each public name that is not documented, and of links to no name."""
    app.connect("env-check-consistency", _check)
    app.connect("missing-reference", _internal)


def undocumented(places: dict[str, str], entries: Container[str]) -> list[str]:
    """What is missing, a line for each name.

    Args:
        places: public name -> name under which it is documented; see :func:`docs.public.homes`.
        entries: names that have an entry in the reference.
    """
    missing = []
    for home in dict.fromkeys(places.values()):
        if home not in entries:
            missing.append(f"{home} has no entry in the reference")
        value = _value(home)
        if inspect.isclass(value) or inspect.isfunction(value):
            if not value.__doc__:
                missing.append(f"{home} has no docstring")
            if inspect.isclass(value):
                missing += [f"{home}.{name} has no docstring" for name in _silent(value)]
    return missing


def _silent(owner: type[Any]) -> list[str]:
    """The public methods and properties that a class defines without a docstring."""
    return [
        name
        for name, member in vars(owner).items()
        if not name.startswith("_")
        if isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
        if not inspect.getdoc(getattr(owner, name))
    ]


def _value(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


def _check(app: Any, env: Any) -> None:
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    for line in undocumented(homes(), env.get_domain("py").objects):
        logger.warning("undocumented public name: %s", line)


def _internal(app: Any, env: Any, node: Any, content: Any) -> Any:
    """A docstring's link to a name that exists and is not public is shown as code, without link.

    A link to a name that does not exist stays a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.")
    where = [node.get("py:module"), _module_of(node.get("py:module"), node.get("py:class"))]
    places = [name for name in where if name] + _modules()
    return content if any(_exists(place, target) for place in ("", *places)) else None


def _module_of(module_name: str | None, class_name: str | None) -> str | None:
    """The module that defines the class within which a link stands."""
    if not module_name or not class_name:
        return None
    owner = importlib.import_module(module_name)
    for part in class_name.split("."):
        owner = getattr(owner, part, None)
    return getattr(owner, "__module__", None)


def _modules() -> list[str]:
    package = importlib.import_module("fedleak")
    return [module.name for module in pkgutil.walk_packages(package.__path__, "fedleak.")]


def _exists(module_name: str, target: str) -> bool:
    """Whether a dotted name can be resolved, from a module or from the root."""
    parts = f"{module_name}.{target}".strip(".").split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, part, None)
        return count > 0 and parts[0] == "fedleak"
    return False
