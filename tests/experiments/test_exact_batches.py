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
