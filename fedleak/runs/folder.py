"""A run's folder: where each of its files is."""

import shutil
from pathlib import Path
from typing import Any

from fedleak.config import RunConfig
from fedleak.errors import require
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
        self.figures = path / "figures"
        self.tensorboard = path / "tensorboard"
        self.reconstructions = self.figures / "victims"

    def updates(self, variant: str = "") -> Path:
        """Folder of the updates; ``variant`` is empty or ``baseline``."""
        return self.path / "updates" / variant

    def truth(self, variant: str = "") -> Path:
        """Folder of the ground truth, for the scorer alone."""
        return self.path / "truth" / variant

    def checkpoint(self, variant: str = "") -> Path:
        """Where a federation that has not ended keeps its state; gone once it has."""
        return self.updates(variant) / "unfinished.safetensors"

    def open(self, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a run of this configuration.

        Args:
            config: the configuration, which is written to config.yaml.
            resume: whether to go on with what is there.
            overwrite: whether to delete what is there.

        Raises:
            BadInput: if something is there and neither is allowed, if it is no run's folder, or
                if it is one of another configuration.
        """
        require(
            not (resume and overwrite),
            "Expected one of `--resume` and `--overwrite`, got both.",
        )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            require(
                self.config.is_file(),
                f"Expected the folder of a run or nothing at {self.path}, found something else: "
                "choose another `--output`.",
            )
            require(
                resume or overwrite,
                f"Expected no run at {self.path}, found one: go on with it by `--resume`, replace "
                "it by `--overwrite`, or choose another `--output`.",
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
            self.truth(variant).mkdir(parents=True, exist_ok=True)
        self.reconstructions.mkdir(parents=True, exist_ok=True)
        self.tensorboard.mkdir(parents=True, exist_ok=True)
        config.save(self.config)

    def reconstruction(self, row: Row, suffix: str = ".png") -> Path:
        """Path of what one reconstructed sample looks like: a picture, or a table of items.

        Raises:
            BadInput: if the model's or the attack's name cannot be a part of a file's name.
        """
        # A sweep's rows are text.
        key = update_key(int(row["round"]), int(row["client"]))
        model, attack = (check_name(f"the {name}", str(row[name])) for name in ("model", "attack"))
        name = f"{model}-{attack}-{key}-{int(row['sample'])}{suffix}"
        return self.reconstructions / name

    def read_truth(self, variant: str, round_: int, client: int) -> GroundTruth | None:
        """The truth behind an update; none where it is not known, as in a deployment."""
        path = self.truth(variant) / f"{update_key(round_, client)}.safetensors"
        return GroundTruth.load(path) if path.exists() else None
