"""Convolutions of the quickstart's network that keep most of an image, learned on public images.

    python experiments/active-server/encoder.py --output experiments/active-server/results

It trains the two convolutions with a decoder that is thrown away, on CIFAR-10's test images and
CIFAR-100's, and writes ``encoder.safetensors``; encoder.csv has the loss on the way and on images
held out.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from quickstart import Net, public_images

HELD_OUT = 250
BATCH = 64
RATE = 2e-3


class Decoder(nn.Module):
    """Images ``(N, 3, 32, 32)`` from 400 features: a linear layer and three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(400, 3072)
        self.mix = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2), nn.GELU(),
            nn.Conv2d(24, 24, 3, padding=1), nn.GELU(), nn.Conv2d(24, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Images, normalised."""
        images = self.linear(features).view(-1, 3, 32, 32)
        return images + self.mix(images)


def encoded(net: Net, images: Tensor) -> Tensor:
    """The features of images, ``(N, 400)``."""
    maps = net.pool(functional.relu(net.conv1(images)))
    return net.pool(functional.relu(net.conv2(maps))).flatten(1)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Mean structural similarity of images in [-1, 1], with a window of 7 x 7."""

    def mean(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 7, stride=1)

    one, other = (one + 1) / 2, (other + 1) / 2
    first, second = mean(one), mean(other)
    variance = mean(one * one) - first**2 + mean(other * other) - second**2
    covariance = mean(one * other) - first * second
    above = (2 * first * second + 0.01**2) * (2 * covariance + 0.03**2)
    return (above / ((first**2 + second**2 + 0.01**2) * (variance + 0.03**2))).mean()


def start(public: Tensor) -> tuple[Net, Decoder]:
    """Untrained networks; the decoder's linear layer begins with ridge regression."""
    torch.manual_seed(0)
    net, decoder = Net(), Decoder()
    with torch.no_grad():
        net.conv1.weight.mul_(1.5)
        net.conv2.weight.mul_(2.0)
        known = encoded(net, public)
        center, mean = known.mean(0), public.flatten(1).mean(0)
        square = (known - center).T @ (known - center)
        square.diagonal().add_(1e-2 * square.diagonal().mean())
        weights = torch.linalg.solve(square, (known - center).T @ (public.flatten(1) - mean))
        decoder.linear.weight.copy_(weights.T)
        decoder.linear.bias.copy_(mean - center @ weights)
        decoder.mix[-1].weight.zero_()
        decoder.mix[-1].bias.zero_()
    return net, decoder


def main(arguments: list[str] | None = None) -> None:
    """Train for a number of seconds, and write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--steps", type=int, default=1600, help="number of steps")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with cifar10.npz as --data or in FEDLEAK_DATA, got none.")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    public = public_images(Path(given.data))
    public = public[torch.randperm(len(public), generator=draw)]
    held, public = public[:HELD_OUT], public[HELD_OUT:]
    net, decoder = start(public)
    parameters = [*net.conv1.parameters(), *net.conv2.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=given.steps)
    began = time.perf_counter()
    with (given.output / "encoder.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "held_out_ssim", "held_out_error", "seconds"))
        for step in range(1, given.steps + 1):
            images = public[torch.randint(len(public), (BATCH,), generator=draw)]
            mirrored = torch.rand(BATCH, generator=draw) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            found = decoder(encoded(net, images))
            loss = functional.mse_loss(found, images) + 0.1 * (1 - ssim(found, images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == given.steps:
                with torch.no_grad():
                    found = decoder(encoded(net, held)).clamp(-1, 1)
                row = (
                    step, f"{float(ssim(found, held)):.4f}",
                    f"{float(functional.mse_loss(found, held)):.4f}",
                    f"{time.perf_counter() - began:.0f}",
                )  # fmt: skip
                writer.writerow(row)
                file.flush()
                print(*row, flush=True)
    names = ("conv1", "conv2")
    weights = {n: v.contiguous() for n, v in net.state_dict().items() if n.startswith(names)}
    save_file(weights, given.output / "encoder.safetensors")


if __name__ == "__main__":
    main()
