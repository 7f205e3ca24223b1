"""An audit's folder: the path of each of its files."""

import shutil
from pathlib import Path

from fedleak.audit.config import AuditConfig
from fedleak.audit.summary import AuditSummary
from fedleak.errors import BadInput, require

# What the app's own run leaves.
APP_FOLDERS = ("updates", "facts", "truth", "nodes")
REPLIES = "replies.jsonl"


class AuditFolder:
    """The files of one audit.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.results = path / "results.csv"
        self.privacy = path / "privacy.csv"
        self.facts = path / "facts"
        self.figures = path / "figures"
        self.samples = self.figures / "victims"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"

    def open(self, config: AuditConfig, *, resume: bool, overwrite: bool) -> None:
        """Prepare the folder for an audit with these settings.

        Args:
            config: the settings, which are written to config.yaml.
            resume: whether to continue an existing audit.
            overwrite: whether to delete an existing audit.

        Raises:
            BadInput: if the folder has an audit and neither is allowed, if it has something else,
                or if ``resume`` is set and its audit has other settings.
        """
        require(
            not (resume and overwrite), "Expected one of `--resume` and `--overwrite`, got both."
        )
        try:
            self._open(config, resume=resume, overwrite=overwrite)
        except OSError as error:
            raise BadInput(
                f"Expected a folder that can be written at {self.path}, got: {error.strerror}: "
                "choose another `--output`."
            ) from error

    def _open(self, config: AuditConfig, *, resume: bool, overwrite: bool) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            require(
                self.config.is_file(),
                f"Expected the folder of an audit or nothing at {self.path}, found something else: "
                "choose another `--output`.",
            )
            found = AuditConfig.load(self.config)
            require(
                resume or overwrite,
                f"Expected no audit at {self.path}, found one: continue it with `--resume`, "
                "replace it with `--overwrite`, or choose another `--output`.",
            )
            if resume:
                config.check_same(found, self.config, answered=self._answered())
            else:
                shutil.rmtree(self.path)
        self.samples.mkdir(parents=True, exist_ok=True)
        config.save(self.config)

    def _answered(self) -> bool:
        """Whether anything was attacked, or may have been."""
        if not self.summary.is_file():
            return False
        try:
            summary = AuditSummary.load(self.summary)
        except BadInput:
            return True
        return summary.canary is not None or bool(summary.answers)

    def remove_app_run(self) -> bool:
        """Remove what an incomplete run of the app has left; returns whether there was any."""
        found = [path for name in APP_FOLDERS if (path := self.path / name).exists()]
        for path in found:
            shutil.rmtree(path)
        (self.path / REPLIES).unlink(missing_ok=True)
        return bool(found)

    def sample(self, key: str, number: int, what: str, suffix: str = ".png") -> Path:
        """Path of a picture or a table of one sample.

        Args:
            key: the update's key, or ``canary``.
            number: the sample's position in the client's data.
            what: ``true``, ``guess`` or ``found``; empty of a table, which has all of them.
            suffix: the file's extension.
        """
        return self.samples / f"{'-'.join(filter(None, (key, str(number), what)))}{suffix}"
