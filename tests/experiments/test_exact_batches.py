"""The study of exact batches: one small victim, and its tables."""

import torch

from tests.experiments.studies import EXPERIMENTS, script


def test_a_victim_and_the_means() -> None:
    study = script(EXPERIMENTS / "exact-batches" / "measure.py")
    generator = torch.Generator().manual_seed(0)
    data = study.Images(
        torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(10, (40,), generator=generator),
        (0.5,) * 3, (0.25,) * 3, 10,
    )  # fmt: skip
    setting = study.Setting("small", (3,), published=True, kind=torch.float64)
    row = study.measure(setting, 3, 0, data)
    assert float(row["recovered"]) == 1
    assert (row["certified"], row["false"]) == (3, 0)
    worse = row | {"recovered": "0.5", "certified": 2, "seed": 1}
    (mean,) = study.summarise([row, worse])
    assert (mean["n"], mean["recovered"], mean["least"]) == (2, "0.750", "0.500")
    assert mean["certified"] == "0.833"


def test_samples_whose_signals_are_known() -> None:
    """Of 8, with none missing, 4 and all but one."""
    study = script(EXPERIMENTS / "exact-batches" / "missing_signals.py")
    generator = torch.Generator().manual_seed(0)
    data = study.Images(
        torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(10, (40,), generator=generator),
        (0.5,) * 3, (0.25,) * 3, 10,
    )  # fmt: skip
    rows = study.measure(study.Setting("small", (8,)), 8, 0, data, (0.0, 0.5, 1.0), 2)
    assert [(row["missing"], row["tried"], row["determined"]) for row in rows] == [
        (0, 2, 2), (4, 2, 2), (7, 1, 1),
    ]  # fmt: skip
    assert all(400 < row["inactive"] < 520 and float(row["worst_error"]) < 0.01 for row in rows)
