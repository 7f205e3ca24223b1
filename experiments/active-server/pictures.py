"""The pictures that a server reads from a client of Flower's quickstart, beside guesses.

    python experiments/active-server/encoder.py --output experiments/active-server/results
    python experiments/active-server/pictures.py --output experiments/active-server/results

Four clients, two whose rate the server sets and two at their own rate; the convolutions are those
of ``encoder.safetensors``, or with ``--own`` the untrained ones of the app. pictures.csv has a row
for each certified image, pictures.png the first images of each client with their originals above,
and client.png those of one client at its own rate.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedleak import GroundTruth, Reconstruction, score_images
from fedleak.servers.bins import Bins
from fedleak.servers.conv_network import encoder_features, find_network, with_weights

sys.path.insert(0, str(Path(__file__).parent))
from measure import READ, SHAPE, Setting, append_row, asked, knowledge, nearest, untrained
from quickstart import IMAGES, MEAN, STD, Training, client_images, public_images

CLIENTS = {0: "server", 1: "server", 2: "client", 3: "client"}
COLUMNS = (
    "encoder", "rate", "client", "image", "ssim", "psnr", "linear", "mean_picture",
    "nearest_public", "mean_colour",
)  # fmt: skip
SHOWN = 14
ONE = 2
"""The client that is shown alone."""


def scores(truth: Tensor, found: Tensor) -> list[Any]:
    """SSIM and PSNR of each image, in pixels."""
    label = torch.zeros(1, dtype=torch.long)
    return [
        score_images(
            GroundTruth(one[None], label), Reconstruction(other[None], label), mean=MEAN, std=STD
        )[0]
        for one, other in zip(truth, found, strict=True)
    ]


def read(
    client: int, encoder: Path | None, folder: Path, public: Tensor
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """The rows of a client's certified images, the originals and what was read.

    Args:
        client: number of the client.
        encoder: file of the encoder. If None, the app's convolutions stay.
        folder: the data.
        public: public images.
    """
    rate, data = CLIENTS[client], client_images(folder, client)
    path = None if encoder is None else str(encoder)
    setting = Setting(
        Bins(rate=rate, encoder=path), training=Training(1e-12 if rate == "server" else 0.1)
    )
    facts = knowledge(untrained(client), setting, IMAGES)
    rounds = asked(setting, facts, data, public, client)
    draw = torch.Generator().manual_seed(0)
    reading = setting.server.read(facts, rounds, public=public, generator=draw)
    plain = Bins(rate=rate, encoder=path, steps=0).read(
        facts, rounds, public=public, generator=draw
    )
    model = with_weights(facts.model, rounds[0][0].weights)
    features = encoder_features(model, find_network(facts.model, SHAPE), data[0])
    features[:, reading.features.eq(0).all(dim=0)] = 0
    error, image = nearest(reading.features, features.double())
    sure = reading.certified & (error < READ)
    truth, found = data[0][image[sure]], reading.inputs[sure]
    near = torch.cdist(truth.flatten(1), public.flatten(1)).argmin(dim=1)
    guesses = {
        "linear": plain.inputs[sure], "mean_picture": public.mean(dim=0).expand_as(truth),
        "nearest_public": public[near],
        "mean_colour": truth.mean(dim=(2, 3), keepdim=True).expand_as(truth),
    }  # fmt: skip
    own, others = scores(truth, found), {n: scores(truth, one) for n, one in guesses.items()}
    rows = [
        {
            "encoder": "trained" if encoder else "untrained", "rate": rate, "client": client,
            "image": int(number), "ssim": f"{one.ssim:.4f}", "psnr": f"{one.psnr:.2f}",
        }
        | {name: f"{each[at].ssim:.4f}" for name, each in others.items()}
        for at, (number, one) in enumerate(zip(image[sure], own, strict=True))
    ]  # fmt: skip
    return rows, truth, found


def picture(pairs: list[tuple[Tensor, Tensor]], path: Path) -> None:
    """Write a picture: of each client a row of originals above a row of what was read."""
    lines = []
    for truth, found in pairs:
        for images in (truth[:SHOWN], found[:SHOWN]):
            empty = torch.ones(SHOWN - len(images), *SHAPE)
            lines.append(torch.cat([*images, *empty], dim=2))
    pixels = ((torch.cat(lines, dim=1) + 1) / 2).clamp(0, 1).mul(255).round().byte()
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> None:
    """Read, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, default=os.environ.get("FEDLEAK_DATA"))
    parser.add_argument("--own", action="store_true", help="leave the app's convolutions")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("Expected a folder with cifar10.npz as --data or in FEDLEAK_DATA, got none.")
    encoder = None if given.own else given.output / "encoder.safetensors"
    if encoder is not None and not encoder.is_file():
        parser.error(f"Expected {encoder}: run encoder.py first, or give --own.")
    torch.set_num_threads(1)
    folder, pairs = Path(given.data), []
    public = public_images(folder)
    name = "pictures-own" if given.own else "pictures"
    table = given.output / f"{name}.csv"
    table.unlink(missing_ok=True)
    for client in CLIENTS:
        rows, truth, found = read(client, encoder, folder, public)
        pairs.append((truth, found))
        for row in rows:
            append_row(table, COLUMNS, row)
    picture(pairs, given.output / f"{name}.png")
    if encoder is not None:
        picture([pairs[list(CLIENTS).index(ONE)]], given.output / "client.png")


if __name__ == "__main__":
    main()
