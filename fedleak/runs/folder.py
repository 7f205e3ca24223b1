"""A run's folder: the path of each of its files."""

import shutil
from pathlib import Path
from typing import Any

from fedleak.config import RunConfig
from fedleak.errors import BadInput, require
from fedleak.updates.files import check_name, update_key
from fedleak.updates.truth import GroundTruth

Row = dict[str, Any]


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.results = path / "results.csv"
        self.diagnostics = path / "diagnostics.jsonl"
        self.summary = path / "summary.json"
        self.privacy = path / "privacy.csv"
        self.figures = path / "figures"
        self.tensorboard = path / "tensorboard"
        self.reconstructions = self.figures / "victims"

    def updates(self, variant: str = "") -> Path:
        """Folder of the updates; ``variant`` is empty or ``baseline``."""
        return self.path / "updates" / variant

    def truth(self, variant: str = "") -> Path:
        """Folder of the ground truth, which only the scorer reads."""
        return self.path / "truth" / variant

    def sent(self, variant: str = "") -> Path:
        """Folder of what a malicious server sent to its victims."""
        return self.path / "sent" / variant

    def readings(self, variant: str = "") -> Path:
        """Folder of what a malicious server has read."""
        return self.path / "readings" / variant

    def checkpoint(self, variant: str = "") -> Path:
        """The state of an unfinished federation; deleted when the federation ends."""
        return self.updates(variant) / "unfinished.safetensors"

    def open(self, config: RunConfig, *, resume: bool, overwrite: bool, truth: bool = True) -> None:
        """Prepare the folder for a run of this configuration.

        Args:
            config: the configuration, which is written to config.yaml.
            resume: whether to continue an existing run.
            overwrite: whether to delete an existing run.
            truth: whether the run stores the clients' truth, for which it then has a folder.

        Raises:
            BadInput: if the folder exists and neither is allowed, if it is not a run's folder, or
                if ``resume`` is set and it holds a run of another configuration.
        """
        require(
            not (resume and overwrite),
            "Expected one of `--resume` and `--overwrite`, got both.",
        )
        try:
            self._open(config, resume=resume, overwrite=overwrite, truth=truth)
        except OSError as error:
            raise BadInput(
                f"Expected a folder that can be written at {self.path}, got: {error.strerror}: "
                "choose another `--output`."
            ) from error

    def _open(self, config: RunConfig, *, resume: bool, overwrite: bool, truth: bool) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            require(
                self.config.is_file(),
                f"Expected the folder of a run or nothing at {self.path}, found something else: "
                "choose another `--output`.",
            )
            require(
                resume or overwrite,
                f"Expected no run at {self.path}, found one: continue it with `--resume`, replace "
                "it with `--overwrite`, or choose another `--output`.",
            )
            if resume:
                found = RunConfig.load(self.config).hash
                require(
                    found == config.hash,
                    f"Expected the configuration of {self.config} to resume it, got another one: "
                    f"repeat its settings (`--config {self.config}`) or `--overwrite`.",
                )
            else:
                shutil.rmtree(self.path)
        for variant in config.variants:
            self.updates(variant).mkdir(parents=True, exist_ok=True)
            if truth:
                self.truth(variant).mkdir(parents=True, exist_ok=True)
        self.reconstructions.mkdir(parents=True, exist_ok=True)
        self.tensorboard.mkdir(parents=True, exist_ok=True)
        config.save(self.config)

    def reconstruction(self, row: Row, suffix: str = ".png") -> Path:
        """Path of one reconstructed sample: a picture, or a table of items.

        Args:
            row: the sample's row of results.csv.
            suffix: extension of the file, see :attr:`fedleak.runs.scoring.Scoring.suffix`.

        Raises:
            BadInput: if the model's or the attack's name is not valid in a file name.
        """
        # A sweep's rows are text.
        key = update_key(int(row["round"]), int(row["client"]))
        model, attack = (check_name(f"the {name}", str(row[name])) for name in ("model", "attack"))
        name = f"{model}-{attack}-{key}-{int(row['sample'])}{suffix}"
        return self.reconstructions / name

    def read_truth(self, variant: str, round_: int, client: int) -> GroundTruth | None:
        """The ground truth of an update; None if it is not stored, as in a deployment.

        Raises:
            BadInput: if the file is damaged.
        """
        path = self.truth(variant) / f"{update_key(round_, client)}.safetensors"
        return GroundTruth.load(path) if path.exists() else None
