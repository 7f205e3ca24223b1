"""A sweep's folder, made by hand."""

from pathlib import Path

import yaml

from fedleak.runs.results import append_rows
from fedleak.sweep import SweepFolder, expand, load_study
from fedleak.sweep.study import study_hash

GRID = {
    "model": [
        {"name": "SMLP", "set": {"model": "smlp"}},
        {"name": "SMLP+P", "set": {"model": "smlp", "model.precode.beta": 0.1}},
        {"name": "LeNet", "set": {"model": "lenet"}},
    ],
    "seed": [0, 1],
}


def make(tmp_path: Path, grid=GRID, rows=None, **base):
    """A sweep's folder; ``rows(cell, number)`` gives the results of each cell."""
    file, output = tmp_path / "study.yaml", tmp_path / "out"
    common = {"data": "photos", "model": "smlp", "attacks": ["iga", "nra"]}
    common |= {"federation": {"clients": 2}}
    text = yaml.safe_dump({"base": common | base, "grid": grid}, sort_keys=False)
    file.write_text(text)
    study = load_study(file)
    cells, folder = expand(study), SweepFolder(output)
    hash_ = study_hash(cells)
    entries = []
    with folder.open(study, cells, hash_, resume=False, overwrite=False):
        for number, cell in enumerate(cells):
            found = (rows or default_rows)(cell, number)
            entries.append({
                "name": cell.name, "axes": cell.axes, "seconds": 1.0,
                "status": "complete" if found else "failed",
                "error": None if found else "Expected better weather, got rain.",
            })  # fmt: skip
            if found:
                run = folder.run(cell.name)
                run.open(cell.config, resume=False, overwrite=False)
                append_rows(run.results, found)
        folder.write_results(cells)
    folder.write_summary({"status": "failed", "study_hash": hash_, "cells": entries})
    return output


def row(cell, client: int, ssim: float, **more) -> dict:
    return {
        "round": 1, "client": client, "sample": 0, "attack": "iga", "defense": "none",
        "model": cell.config.model_name, "dataset": cell.config.data_name, "batch_size": 1,
        "mse": ssim / 2, "psnr": 10 * ssim, "ssim": ssim, "success": int(ssim >= 0.6),
        "noise_mse": float("nan"), "cost": 0.1, "iterations": 7, "seconds": 2.0,
    } | more  # fmt: skip


def default_rows(cell, number: int) -> list[dict]:
    rows = [row(cell, client, 0.1 + 0.2 * client + 0.3 * cell.config.seed) for client in (0, 1)]
    if "precode" in cell.config.model_name:
        rows += [row(cell, 0, 0.9, attack="nra", noise_mse=0.25)]
    return rows
