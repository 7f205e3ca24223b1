"""Flower apps that tests write into a folder, and what runs them without Ray."""

import textwrap
from pathlib import Path

PYPROJECT = """
[project]
name = "{name}"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "{name}.server_app:app"
clientapp = "{name}.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
{config}
{more}
"""


def write_app(folder: Path, name: str, *, config: str = "", more: str = "", **modules: str) -> Path:
    """Write an app of the package ``name``; each module is its text."""
    package = folder / name
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(name=name, config=config, more=more), encoding="utf-8"
    )
    (package / "__init__.py").write_text("")
    for module, text in modules.items():
        (package / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder
