"""Packs a folder of images, or an archive of one, into an .npz file for the data set `npz`.

    python experiments/accuracy/pack.py cifar10_jpeg.tar.gz cifar10_jpeg.npz
    python experiments/accuracy/pack.py cifar10_jpeg.tar.gz cifar10_jpeg_10000.npz --train 10000

The layout is torchvision's ImageFolder, ``[NAME/]{train,test}/CLASS/FILE``. All images must have
one size and one mode. A run then reads one array instead of tens of thousands of files.
"""

import argparse
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SPLITS = ("train", "test")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

Array = npt.NDArray[np.generic]


def files(source: Path) -> Iterator[tuple[str, bytes]]:
    """The path below the source, and the content, of every image file.

    Args:
        source: a folder, or a tar archive in any compression; nothing is unpacked onto the disk.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix.lower() in ENDINGS:
                yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and Path(member.name).suffix.lower() in ENDINGS:
                yield member.name, content.read()


def pack(source: Path, *, train: int | None = None, seed: int = 0) -> dict[str, Array]:
    """The arrays of an image folder.

    Args:
        source: a folder or a tar archive.
        train: number of training images to keep, the same number of each class, drawn at random. If
            None, all.
        seed: seed of that draw.

    Returns:
        ``train_images`` (N, H, W, C) or (N, H, W) in grey, ``train_labels`` (N,), ``test_images``
        and ``test_labels`` likewise, in uint8 and int64, ordered by class and file name;
        ``class_names``, in alphabetical order as ImageFolder numbers them.

    Raises:
        ValueError: if the source is of another layout, or a class has too few training images.
    """
    found: dict[str, dict[str, dict[str, Array]]] = {split: {} for split in SPLITS}
    for name, content in files(source):
        match = re.fullmatch(r"(?:.+/)?(train|test)/([^/]+)/([^/]+)", name)
        if match is None:
            raise ValueError(f"Expected images at train/CLASS/FILE or test/CLASS/FILE, got {name}.")
        with Image.open(io.BytesIO(content)) as image:
            found[match[1]].setdefault(match[2], {})[match[3]] = np.asarray(image)
    names = sorted(found["train"])
    if not names or not set(found["test"]) <= set(names):
        raise ValueError(
            f"Expected training images of every class in {source}, got the classes {names} for "
            f"training and {sorted(found['test'])} for testing."
        )
    share = None if train is None else _share(train, {n: len(found["train"][n]) for n in names})
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for split in SPLITS:
        images: list[Array] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            members = [image for _, image in sorted(found[split].get(name, {}).items())]
            if split == "train" and share is not None:
                kept = generator.permutation(len(members))[:share]
                members = [members[index] for index in np.sort(kept)]
            images += members
            labels += [label] * len(members)
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.int64)
    return arrays | {"class_names": np.array(names)}


def _share(train: int, sizes: dict[str, int]) -> int:
    """The number of training images of each class."""
    share, rest = divmod(train, len(sizes))
    scarce = [name for name, size in sizes.items() if size < share]
    if rest or share < 1 or scarce:
        raise ValueError(
            f"Expected a multiple of {len(sizes)} classes of up to {min(sizes.values())} training "
            f"images each, got {train}."
        )
    return share


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: the arguments. If None, those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="a folder or a tar archive")
    parser.add_argument("target", type=Path, help="the .npz file to be written")
    parser.add_argument("--train", type=int, help="training images to keep, all classes together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of --train")
    chosen = parser.parse_args(argv)
    try:
        arrays = pack(chosen.source, train=chosen.train, seed=chosen.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    np.savez_compressed(chosen.target, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {array.shape}")


if __name__ == "__main__":
    main()
