"""What the documentation takes from elsewhere: tables of the code, the notebooks, their pictures.

All of it is written into ``docs/_generated`` and ``docs/experiments`` when the build begins, and
neither is committed.
"""

import base64
import importlib
import inspect
import io
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from docs import tables
from docs.public import MODULES, PACKAGES, homes, names_of

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "experiments"


def connect(app: Any) -> None:
    """Have Sphinx call :func:`write_all` before it looks for pages."""
    app.connect("config-inited", lambda app, _config: write_all(Path(app.srcdir)))


def write_all(docs: Path) -> None:
    """Write everything that is generated.

    Args:
        docs: the folder of the documentation's sources.
    """
    target = docs / "_generated"
    for kind in ("attacks", "defenses", "servers"):
        write(target / f"{kind}-overview.rst", tables.overview(kind))
        write(target / f"{kind}-details.rst", tables.details(kind))
    for kind in ("data", "models"):
        write(target / f"{kind}.rst", tables.summaries(kind))
    for section in tables.SECTIONS:
        write(target / f"settings-{section}.rst", tables.settings(section))
    for command in ("", *tables.COMMANDS):
        write(target / f"help-{command or 'fedleak'}.txt", tables.command_help(command))
    places = homes()
    for folder, modules in (("packages", PACKAGES), ("modules", MODULES)):
        for module in modules:
            page = package_page(module, places)
            write(docs / "reference" / folder / f"{module}.rst", page)
    copy_studies(docs / "experiments")
    write(target / "closed-form.md", closed_form())
    federations = STUDIES / "federations" / "results" / "summary.csv"
    write(target / "federations.rst", tables.federations(federations))
    for notebook in sorted(STUDIES.glob("*.ipynb")):
        picture = target / "thumbnails" / f"{notebook.stem}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(thumbnail(last_picture(notebook)))


def write(path: Path, text: str) -> None:
    """Write a file, unless it is there already: Sphinx reads again what has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def package_page(module: str, places: dict[str, str]) -> str:
    """The page of a package or module in the reference.

    Args:
        module: its dotted name.
        places: see :func:`docs.public.homes`.
    """
    names = [name for name in names_of(module) if f"{module}.{name}" in places]
    kinds = {name: _kind(module, name) for name in names}
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", "   :no-members:", ""]
    lines += [f".. currentmodule:: {module}", "", ".. autosummary::", "   :nosignatures:", ""]
    for name in names:
        place = places[f"{module}.{name}"]
        if kinds[name] != "data":
            local = place.removeprefix(f"{module}.")
            lines.append(f"   {local if local == name else f'~{local}'}")
    for name in names:
        if places[f"{module}.{name}"] != f"{module}.{name}":
            continue
        if kinds[name] == "data":
            # autodoc would show the docstring of the value's type.
            value = getattr(importlib.import_module(module), name)
            lines += ["", f".. py:data:: {name}", f"   :value: {value!r}"]
            continue
        lines += ["", f".. auto{kinds[name]}:: {name}"]
        if kinds[name] == "class":
            lines += ["   :members:", "   :show-inheritance:", "   :special-members: __call__"]
            lines += [f"   :exclude-members: {facts}" for facts in _facts(module, name)]
    return "\n".join(lines) + "\n"


def copy_studies(target: Path) -> None:
    """Copy notebooks, READMEs and pictures of the studies, whose links to each other then hold.

    Args:
        target: the folder to be made.
    """
    wanted = [*STUDIES.glob("*.ipynb"), *STUDIES.glob("*/README.md")]
    wanted += [*STUDIES.glob("*/results/*.md"), *STUDIES.glob("*/results/*.png")]
    shutil.rmtree(target, ignore_errors=True)
    for path in wanted:
        copy = target / path.relative_to(STUDIES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(with_links(path), encoding="utf-8")
            shutil.copystat(path, copy)
        else:
            shutil.copy2(path, copy)  # with its time, so that Sphinx knows what has changed


def closed_form() -> str:
    """The derivation beside the code of the closed form, with links that hold in the docs."""
    page = ROOT / "fedleak" / "attacks" / "closed_form" / "README.md"
    return with_links(page).partition("\n")[2]


def with_links(path: Path) -> str:
    """The text of a page elsewhere, whose links into the docs and the studies hold in the docs.

    Args:
        path: a Markdown file of the repository.
    """
    up = "../" * len(path.parent.relative_to(ROOT).parts)
    text = path.read_text(encoding="utf-8")
    return text.replace(f"({up}docs/", "(/").replace(f"({up}experiments/", "(/experiments/")


def last_picture(notebook: Path) -> bytes:
    """The last picture among the stored outputs of a notebook, as PNG.

    Args:
        notebook: its file.

    Raises:
        ValueError: if it holds none.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    kinds = [output.get("data", {}) for output in outputs]
    found = [data["image/png"] for data in kinds if "image/png" in data]
    if not found:
        raise ValueError(f"Expected a picture in the outputs of {notebook}, found none.")
    text = found[-1] if isinstance(found[-1], str) else "".join(found[-1])
    return base64.b64decode(text)


def thumbnail(picture: bytes) -> bytes:
    """The upper part of a picture, so that those of a table are of similar height.

    Args:
        picture: PNG.

    Returns:
        PNG, as wide, and at most half as high.
    """
    with Image.open(io.BytesIO(picture)) as image:
        shown = image.crop((0, 0, image.width, min(image.height, image.width // 2)))
    written = io.BytesIO()
    shown.save(written, format="PNG")
    return written.getvalue()


def _facts(module: str, name: str) -> list[str]:
    """The class attributes of a plugin that the tables of plugins show."""
    value = getattr(importlib.import_module(module), name)
    bases = [base for base in tables.BASES.values() if base in value.__mro__[1:]]
    facts = [fact for base in bases for fact in inspect.get_annotations(base)]
    return [", ".join(facts)] if facts else []


def _kind(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isfunction(value) else "data"
