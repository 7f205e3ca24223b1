"""Rows of results.csv, made by hand."""

import math

from fedleak.runs.results import COLUMNS

NAN = math.nan


def a_row(**changes):
    """A row of results.csv: by default, IGA reconstructs client 0's image, without a defence."""
    values = {
        "round": 1, "client": 0, "sample": 0, "attack": "iga", "defense": "none", "model": "smlp",
        "dataset": "victims", "batch_size": 1, "mse": 1e-5, "psnr": 50.0, "ssim": 0.99,
        "success": 1, "noise_mse": NAN, "cost": 1e-4, "iterations": 100, "seconds": 2.0,
    }  # fmt: skip
    assert tuple(values) == COLUMNS
    return values | changes


def some(successes, n, **changes):
    """Rows of n clients, of which the first ones were reconstructed."""
    return [
        a_row(client=c, success=int(c < successes), ssim=0.99 if c < successes else 0.01, **changes)
        for c in range(n)
    ]


PRECODE = {"model": "smlp+precode"}
