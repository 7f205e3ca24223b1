"""Sphinx's configuration. Build with ``python -m sphinx -W --keep-going -b html docs docs/_build``.

Nothing is fetched while it builds, and no notebook is executed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs import coverage, generate, prose  # noqa: E402
from fedleak import __version__  # noqa: E402

project = "fedleak"
author = "The fedleak authors"
copyright = f"{author}, Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated"]

# ------------------------------------------------------------------------------------- Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The notebooks are committed with their outputs, and a test runs them.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # their outputs hold tables

# ------------------------------------------------------------------------------------- docstrings
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
autosummary_generate = False  # generate.py writes one page for each package
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# ------------------------------------------------------------------------------------- links
nitpicky = True
# Names of other packages: their documentation would have to be fetched to link to it.
nitpick_ignore_regex = [
    (r"py:.*", rf"({package})(\..*)?")
    for package in (
        "abc", "argparse", "collections", "concurrent", "contextlib", "contextvars", "dataclasses",
        "enum", "functools", "importlib", "pathlib", "re", "threading", "types", "typing",
        "numpy", "np", "npt", "pandas", "PIL", "rich", "scipy", "skimage",
        "torch", "torchmetrics", "torchvision", "pytorch_lightning", "pl", "flwr", "ray",
    )
]  # fmt: skip

# ------------------------------------------------------------------------------------- HTML
html_theme = "furo"
html_title = f"fedleak {release}"
html_static_path = ["_static"]
html_css_files = ["fedleak.css"]
html_show_sphinx = False
html_show_sourcelink = html_copy_source = False


def setup(app: object) -> None:
    """Connect what is generated of the code, and the check that every public name is documented."""
    generate.connect(app)
    prose.connect(app)
    coverage.connect(app)
