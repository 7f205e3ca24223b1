"""Opening image files from untrusted sources, with a limit on formats and size.

Only formats that fedleak writes or that data sets consist of are accepted: some of Pillow's other
formats start programs.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fedleak.errors import BadInput, require

MAX_PIXELS = 2**26
"""The maximum number of pixels of an image: 8,192 x 8,192, 200 MB in colour."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@contextmanager
def open_image(path: Path, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """Open an image and check its size before its pixels are decoded.

    Args:
        path: the file.
        formats: Pillow's names of the accepted formats.

    Yields:
        The image; an exception raised in the block, as by decoding, becomes BadInput.

    Raises:
        BadInput: if the file is missing, damaged, of another format, or has more than
            :data:`MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes that are refused below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path, formats=list(formats))
        with file:
            require(
                file.width * file.height <= MAX_PIXELS,
                f"Expected at most {MAX_PIXELS:,} pixels in {path}, got {file.width} x "
                f"{file.height}.",
            )
            yield file
    except BadInput:
        raise
    except Exception as error:  # Pillow raises many classes for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"Expected an image at {path}, got a file that cannot be read as one ({reason:.200})."
        ) from error
