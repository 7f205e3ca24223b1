"""The optional dependencies of fedleak, and the error for one that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedleak.errors import BadInput

# Extra -> the modules that it installs and that fedleak imports. Attacks and metrics need no extra.
# setup.cfg lists the distributions.
EXTRAS = {
    "federation": (
        "dp_accounting", "flwr", "jsonargparse", "opacus", "psutil", "pytorch_lightning", "ray",
        "rich", "torchmetrics", "torchvision", "yaml",
    ),
    "report": ("jinja2", "markupsafe", "pandas", "tensorboard"),
}  # fmt: skip


class MissingExtra(ImportError, BadInput):
    """A feature needs an extra of fedleak that is not installed.

    It is also an ImportError, as code that tries an import expects.
    """


@contextmanager
def extras_explained() -> Iterator[None]:
    """Within the block, the error for a missing module names the extra that installs it.

    Raises:
        MissingExtra: in place of ModuleNotFoundError, if an extra would install the module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if module in modules:
                raise MissingExtra(
                    f"Expected the extra `{extra}` of fedleak, but `{module}` is not installed: "
                    f"pip install 'fedleak[{extra}]'.",
                    name=module,
                ) from error
        raise
