"""A run's configuration and rows of results.csv, made by hand."""

from pathlib import Path

from fedleak.config import RunConfig
from fedleak.registry import Plugin
from fedleak.runs.folder import Row


def config(tmp_path: Path, **settings) -> RunConfig:
    return RunConfig(
        **{
            "data": Plugin("fedleak.data.photos.Photos"),
            "model": Plugin("fedleak.models.mlp.SMLP", {"precode": {"bottleneck_size": 4}}),
            "output": str(tmp_path / "run"),
        }
        | settings
    )


def row(client: int = 0, sample: int = 0, **values) -> Row:
    return {
        "round": 1, "client": client, "sample": sample, "attack": "iga", "defense": "none",
        "model": "smlp", "dataset": "photos", "batch_size": 2, "mse": 0.5, "psnr": 3.0,
        "ssim": 0.25, "success": 0, "noise_mse": 1.5, "cost": 0.125, "iterations": 7,
        "seconds": 2.0,
    } | values  # fmt: skip
