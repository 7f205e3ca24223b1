import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedleak.data.image_folder import ImageFolder
from fedleak.data.picture_files import open_image
from fedleak.errors import BadInput

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats_of_data_sets(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (4, 3), (9, 9, 9)).save(tmp_path / "picture", kind)
    with open_image(tmp_path / "picture") as picture:
        assert picture.size == (4, 3)
        assert np.ptp(np.asarray(picture)) <= 1


@pytest.mark.parametrize("content", [b"", b"text", POSTSCRIPT, None])
def test_what_is_no_picture(tmp_path: Path, content: bytes | None) -> None:
    """PostScript would be given to a program that runs it."""
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    text = r"Expected an image at .*picture.png, got a file that cannot be read as one"
    with pytest.raises(BadInput, match=text), open_image(path):
        pass


def test_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    text = r"image at .*picture.png, got a file .*truncated"
    with pytest.raises(BadInput, match=text), open_image(path) as picture:
        np.asarray(picture)


@pytest.mark.parametrize(
    ("side", "sentence"),
    [(8_193, "at most 67,108,864 pixels in .*, got 8193 x 8193"), (10_000, "at most 67"),
     (14_000, "an image at .*decompression bomb")],
)  # fmt: skip
def test_pictures_beyond_memory(tmp_path: Path, side: int, sentence: str) -> None:
    """Some kilobytes each; Pillow itself warns of the second one and refuses the third."""
    path = tmp_path / "picture.png"
    Image.new("1", (side, side)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match=f"Expected {sentence}"), open_image(path):
            pass


def test_more_images_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = np.full((4, 4), number + 100 * (label == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    monkeypatch.setattr("fedleak.data.image_folder.LARGEST", 20 * 4 * 4)
    ImageFolder(root=str(tmp_path), grey=True, test_fraction=0.3).setup()
    monkeypatch.setattr("fedleak.data.image_folder.LARGEST", 9 * 4 * 4)
    with pytest.raises(BadInput, match=r"images of at most 144 bytes together in .* of 4 x 4"):
        ImageFolder(root=str(tmp_path), grey=True, test_fraction=0.3).setup()
    with pytest.raises(BadInput, match="`size` to be from 1 to 8192, got 100000"):
        ImageFolder(root=str(tmp_path), size=100_000)
