"""Read a class's attributes from its source, without importing its module.

Importing a model's class imports Lightning, which takes seconds. Its docstring, the names of its
settings and its class attributes, such as an attack's paper, can be read from the source.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClassSource:
    """The parts of a class that can be read from its source.

    Args:
        facts: class attributes with literal values, its own and those inherited within its
            package; ``__doc__`` is its own docstring.
        arguments: names of its constructor's arguments. None, if the source does not determine
            them or the constructor takes any.
        annotated: names that its own body annotates, in order.
        fields: the fields that its constructor takes, own and inherited, if it or a base class is a
            dataclass.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] | None = None
    annotated: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def read_class(path: str) -> ClassSource:
    """Read the class at a dotted path from its source.

    Args:
        path: such as ``fedleak.models.mlp.SMLP``; the packages that contain the module are
            imported, the module is not.

    Returns:
        What was found; empty, if the module's source has no such class. For anything else, the
        class has to be imported.
    """
    module, _, name = path.rpartition(".")
    tree = _tree(module) if module else None
    if tree is None:
        return ClassSource()
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if found is None:
        return ClassSource()
    inherited = [read_class(base) for base in _bases(module, tree, found)]
    facts: dict[str, Any] = {}
    for base in reversed(inherited):
        facts |= base.facts
    facts.pop("__doc__", None)
    if doc := ast.get_docstring(found):
        facts["__doc__"] = doc
    for name, value in _assigned(found):
        facts.pop(name, None)
        try:
            facts[name] = _literal(value)
        except ValueError:  # not a literal: only importing the class gives its value
            continue
    annotated = tuple(
        node.target.id
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    )
    fields = tuple(dict.fromkeys(name for base in inherited for name in base.fields))
    if _is_dataclass(found):
        own = _own_fields(found)
        kept = [name for name in fields if own.get(name, True)]
        fields = tuple(dict.fromkeys([*kept, *(name for name in own if own[name])]))
    return ClassSource(facts, _arguments(found, inherited, fields), annotated, fields)


def _literal(value: ast.expr) -> Any:
    """The value of a literal, or of a frozen set of literals.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "frozenset" and value.args:
        return frozenset(ast.literal_eval(value.args[0]))
    return ast.literal_eval(value)


@cache
def _tree(module: str) -> ast.Module | None:
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, ValueError, SyntaxError, OSError):
        return None


def _bases(module: str, tree: ast.Module, found: ast.ClassDef) -> list[str]:
    """Dotted paths of the base classes in the same package."""
    package = module.partition(".")[0]
    known = {n.name: module for n in tree.body if isinstance(n, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            known |= {alias.name: node.module for alias in node.names if not alias.asname}
    names = [base.id for base in found.bases if isinstance(base, ast.Name)]
    return [f"{known[n]}.{n}" for n in names if known.get(n, "").partition(".")[0] == package]


def _assigned(found: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of the assignments in a class's body."""
    for node in found.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def _is_dataclass(found: ast.ClassDef) -> bool:
    """Whether a class has the decorator ``dataclass`` and no other."""
    names = [ast.unparse(node).partition("(")[0] for node in found.decorator_list]
    return names in (["dataclass"], ["dataclasses.dataclass"])


def _own_fields(found: ast.ClassDef) -> dict[str, bool]:
    """The fields in the body of a dataclass -> whether the constructor takes them."""
    return {
        node.target.id: "init=False" not in ast.unparse(node.value or node.target)
        for node in found.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not ast.unparse(node.annotation).startswith(("ClassVar", "typing.ClassVar"))
    }


def _arguments(
    found: ast.ClassDef, inherited: list[ClassSource], fields: tuple[str, ...]
) -> list[str] | None:
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args
            if given.vararg or given.kwarg:
                return None
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            return [argument.arg for argument in named[1:]]
    if _is_dataclass(found):
        # A base class of another package may be a dataclass, too.
        return list(fields) if len(inherited) == len(found.bases) else None
    # Another decorator may generate a constructor.
    if found.decorator_list or len(inherited) != 1 or len(found.bases) != 1:
        return None
    return inherited[0].arguments
