"""Pictures from files, which may come from somebody else: no more of them than memory has room for.

Only formats that fedleak writes or data sets consist of are tried: Pillow knows others, of which
some start programs.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fedleak.errors import BadInput, require

PIXELS = 2**26
"""Pixels of one picture, at most: 8,192 x 8,192, 200 MB in colour."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@contextmanager
def opened(path: Path, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """A picture whose size is known and whose pixels have not been read yet.

    Args:
        path: the file.
        formats: Pillow's names of the formats that it may have.

    Yields:
        The picture; what decoding it raises in the block becomes BadInput.

    Raises:
        BadInput: if the file is missing, damaged, of another format, or has more than
            :data:`PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path, formats=list(formats))
        with file:
            require(
                file.width * file.height <= PIXELS,
                f"Expected at most {PIXELS:,} pixels in {path}, got {file.width} x {file.height}.",
            )
            yield file
    except BadInput:
        raise
    except Exception as error:  # Pillow has a dozen classes for damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"Expected an image at {path}, got a file that cannot be read as one ({reason:.200})."
        ) from error
