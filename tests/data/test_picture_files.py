import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
def test_files_that_are_not_images(tmp_path: Path, content: bytes | None) -> None:
    """Pillow would pass PostScript to an interpreter."""
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    text = r"Expected an image at .*picture.png, got a file that cannot be read as one"
    with pytest.raises(BadInput, match=text), open_image(path):
        pass


def test_a_truncated_image(tmp_path: Path) -> None:
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
def test_images_with_too_many_pixels(tmp_path: Path, side: int, sentence: str) -> None:
    """The files have some kilobytes; Pillow itself warns about the second and refuses the third."""
    path = tmp_path / "picture.png"
    Image.new("1", (side, side)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match=f"Expected {sentence}"), open_image(path):
            pass
