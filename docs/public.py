"""The public names of fedleak, and where the reference documents each of them."""

import importlib
import inspect
from typing import Any

# Packages whose `__all__` is public, in the order of the reference.
PACKAGES = (
    "fedleak",
    "fedleak.attacks",
    "fedleak.defenses",
    "fedleak.servers",
    "fedleak.models",
    "fedleak.data",
    "fedleak.federation",
    "fedleak.audit",
    "fedleak.privacy",
    "fedleak.metrics",
    "fedleak.sweep",
    "fedleak.reporting",
)
# Modules that plugins and scripts use: all that they define without an underscore is public.
MODULES = (
    "fedleak.attacks.labels",
    "fedleak.attacks.closed_form.layer_rules",
    "fedleak.attacks.closed_form.estimates",
    "fedleak.attacks.closed_form.least_squares",
    "fedleak.config",
    "fedleak.experiment",
    "fedleak.registry",
    "fedleak.runs.folder",
    "fedleak.updates.update",
    "fedleak.updates.knowledge",
    "fedleak.updates.truth",
    "fedleak.updates.files",
    "fedleak.errors",
)


def names_of(module_name: str) -> list[str]:
    """The public names of a package or module, without those of other projects.

    Args:
        module_name: one of ``PACKAGES`` or ``MODULES``.
    """
    module = importlib.import_module(module_name)
    if module_name in PACKAGES:
        return [name for name in module.__all__ if _is_ours(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module_name
        if inspect.isclass(value) or inspect.isfunction(value)
    ]


def homes() -> dict[str, str]:
    """Where each public name is documented: ``fedleak.IGA`` -> ``fedleak.attacks.IGA``.

    A name that several packages export is documented by the innermost of them, so that it has one
    entry in the reference.
    """
    found: dict[int, str] = {}
    kept: list[Any] = []  # an id stands for an object only as long as that lives
    names: dict[str, str] = {}
    deepest = sorted((*PACKAGES, *MODULES), key=lambda name: (name in MODULES, -name.count(".")))
    for module_name in deepest:
        for name in names_of(module_name):
            value = getattr(importlib.import_module(module_name), name)
            path = f"{module_name}.{name}"
            if inspect.isclass(value) or inspect.isfunction(value):
                kept.append(value)
                names[path] = found.setdefault(id(value), path)
            else:
                names[path] = path
    return names


def _is_ours(value: Any) -> bool:
    module = getattr(value, "__module__", None)
    if inspect.isclass(value) or inspect.isfunction(value):
        return str(module).partition(".")[0] == "fedleak"
    return not isinstance(value, str)  # a version needs no entry
