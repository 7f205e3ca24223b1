"""The optional dependencies of fedleak, and the one sentence for one that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedleak.errors import BadInput

# Extra -> the modules that it installs and that are imported somewhere in fedleak. Without any
# extra, the attacks, the metrics and what they need are there. setup.cfg has the distributions.
EXTRAS = {
    "federation": (
        "flwr", "jsonargparse", "opacus", "psutil", "pytorch_lightning", "ray", "rich",
        "torchmetrics", "torchvision", "yaml",
    ),
    "report": ("jinja2", "markupsafe", "pandas", "tensorboard"),
}  # fmt: skip


class MissingExtra(ImportError, BadInput):
    """Something was asked for that needs an extra of fedleak which is not installed.

    It is an ImportError too, as code that tries an import expects.
    """


@contextmanager
def extras_explained() -> Iterator[None]:
    """Within the block, a module that is missing because of an extra is named with that extra.

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
