"""The score of a guess without any update: the data set's mean colour, for every training image.

python experiments/main-job/guess.py experiments/main-job/cifar10.yaml
"""

import statistics
import sys
from pathlib import Path

import torch

from fedleak import GroundTruth, Reconstruction, RunConfig
from fedleak.build import make_data
from fedleak.metrics.images import score_images


def main(config: Path) -> dict[str, tuple[float, float, int]]:
    """Print mean and standard deviation of each score.

    Args:
        config: a run's configuration, of which the data set alone counts.

    Returns:
        Score -> mean, standard deviation and number of images.
    """
    data = make_data(RunConfig.load(config))
    count = len(data.train_set)
    images, labels = data.train_set.batch(range(count))
    # Normalised with the data set's mean, the mean colour is 0.
    guess = torch.zeros_like(images[:1])
    scores = [
        score_images(
            GroundTruth(images[i : i + 1], labels[i : i + 1]),
            Reconstruction(guess, labels[i : i + 1]),
            mean=data.mean,
            std=data.std,
        )[0]
        for i in range(count)
    ]
    found = {}
    for name in ("ssim", "psnr", "mse"):
        values = [getattr(one, name) for one in scores]
        found[name] = statistics.fmean(values), statistics.stdev(values), count
        print(f"{name} {found[name][0]:.4f} ± {found[name][1]:.4f} (n = {count})")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
