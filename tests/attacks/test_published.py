"""The published settings on real images: what the papers found must come out again.

Minutes each on one core. Eight victims of an untrained SMLP, attacked with labels known; the
figures are SSIM on images scaled back to [0, 1].
"""

from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from torch import Tensor

from fedleak.attacks import IGA, NRA, Attack
from fedleak.data import Photos
from fedleak.metrics import score_images
from fedleak.models import SMLP, Precode
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate
from tests.cases import client_gradient

pytestmark = pytest.mark.slow

VICTIMS = 8
# CIFAR-10's, by which victims_cifar10.npz has been normalised.
MEAN = (0.49146724, 0.48226175, 0.44677013)
STD = (0.24703224, 0.24348514, 0.26158786)

Images = tuple[Tensor, Tensor, tuple[float, ...], tuple[float, ...]]


@pytest.fixture(params=["photos", "victims_cifar10"])
def images(request: pytest.FixtureRequest) -> Images:
    """Normalised images, their labels, mean and deviation."""
    if request.param == "photos":
        data = Photos()
        chosen = range(30, len(data.train_set), len(data.train_set) // VICTIMS)
        return *data.train_set.batch(list(chosen)), data.mean, data.std
    folder: Path = request.getfixturevalue("data_folder")
    with np.load(folder / "victims_cifar10.npz") as arrays:
        inputs, labels = (torch.from_numpy(arrays[name][:VICTIMS]) for name in ("images", "labels"))
    return inputs.float(), labels.long(), MEAN, STD


@pytest.mark.parametrize(
    ("kind", "precode", "lowest", "highest"),
    [(IGA, False, 0.95, 1.0), (IGA, True, -1.0, 0.1), (NRA, True, 0.95, 1.0)],
    ids=["iga-on-plain", "iga-on-precode", "nra-on-precode"],
)
def test_perceptron(
    images: Images, kind: type[Attack], precode: bool, lowest: float, highest: float
) -> None:
    inputs, labels, mean_, std = images
    assert len(inputs) == VICTIMS
    torch.manual_seed(0)
    model = SMLP(input_shape=(3, 32, 32), num_classes=10, precode=Precode() if precode else None)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    updates, facts, truths = [], [], []
    for client in range(VICTIMS):
        image, label = inputs[client : client + 1], labels[client : client + 1]
        gradient, noise = client_gradient(model, image, label, seed=client)
        updates.append(InterceptedUpdate(1, client, "fedsgd", 1, "smlp", sent, gradient))
        facts.append(Knowledge(model, (3, 32, 32), 10, mean=mean_, std=std, labels=label))
        truths.append(GroundTruth(image, label, noise))
    results = kind()(updates, facts)
    scores = [
        score_images(truth, result, mean=mean_, std=std)[0]
        for truth, result in zip(truths, results, strict=True)
    ]
    found = mean(item.ssim for item in scores)
    print(f"{kind.name} on {'precode' if precode else 'plain'}: SSIM {found:.4f}, "
          f"{sum(result.seconds for result in results):.0f} s")  # fmt: skip
    assert lowest <= found <= highest
