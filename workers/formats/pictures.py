"""Encoded pictures -> arrays, with a cap before anything is decoded.

A picture of a few kilobytes may declare a hundred thousand pixels a side. Its header is read first,
and size and number of pixels judged; all pictures of a dataset have one size, so the whole dataset's
bytes are known before the first is decoded. PNG and JPEG only; 8 bits per channel; grey stays one
channel if all pictures are grey, and else all become RGB (transparency is dropped).
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from service.contract.errors import InputRejected
from workers.formats.arrays import Array

MAX_PIXELS = 2**25
MAX_ENCODED_BYTES = 256 * 2**20
UNQUESTIONED_BYTES = 4 * 2**20  # of encoded pictures in one file, however small it is
MAX_EXPANSION = 16  # beyond that many encoded bytes for each byte of the file: pictures are compressed already
MAX_READS = 2_000  # for a header; a decoder may read once more for each BYTES_PER_READ
BYTES_PER_READ = 1024
MAX_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels
JPEG_START, START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
FORMATS = ("PNG", "JPEG")
GREY_MODES = {"1", "L", "LA"}
COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class Header:
    """What a picture's header says."""

    name: str
    width: int  # pixels
    height: int
    is_grey: bool


class Bounded:
    """A file that is read in a bounded number of steps.

    Pictures are chains of chunks, walked one by one in Python: millions of empty ones fit into a picture that is
    small on the disk.
    """

    def __init__(self, file: BinaryIO, name: str, max_reads: int) -> None:
        self.file, self.name, self.left = file, name, max_reads

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises `InputRejected` when it was called too often."""
        self.left -= 1
        if self.left < 0:
            raise InputRejected(
                f"{self.name} consists of too many small pieces. Save it anew as an ordinary PNG or JPEG.",
                code="image_refused",
            )
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self.file.tell()


def check_encoded_total(file_name: str, encoded_bytes: int, file_bytes: int) -> None:
    """Refuse pictures that have many times the bytes of the file in which they came."""
    if encoded_bytes > max(UNQUESTIONED_BYTES, MAX_EXPANSION * file_bytes):
        raise InputRejected(
            f"The pictures in {file_name} have {encoded_bytes} bytes or more, and the file has {file_bytes}; at most "
            f"{MAX_EXPANSION} are taken for each. Leave repeated pictures out.",
            code="too_large",
        )


@contextmanager
def opened(file: BinaryIO, name: str, max_reads: int = MAX_READS) -> Iterator[Image.Image]:
    """A picture whose header was read and judged; errors of the decoder become `InputRejected`.

    Codes: "image_too_large", "image_refused".
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata; its warning of bombs is our own check
            with Image.open(cast("BinaryIO", Bounded(file, name, max_reads)), formats=FORMATS) as picture:
                check_header(picture, name)
                yield picture
    except Image.DecompressionBombError as error:
        raise too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise InputRejected(f"{name} is not a PNG or JPEG picture; convert it to one.", code="image_refused") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise InputRejected(
            f"{name} cannot be decoded ({str(error)[:200]}); it is damaged or cut short. Upload it whole.",
            code="image_refused",
        ) from error


def too_large(name: str, fault: str) -> InputRejected:
    """The error for a picture with too many pixels."""
    return InputRejected(
        f"{name} is too large: {fault}; at most {MAX_PIXELS} pixels are taken. Scale the pictures down.",
        code="image_too_large",
    )


def check_header(picture: Image.Image, name: str) -> None:
    """Refuse pictures with too many pixels or of more than 8 bits."""
    if picture.width * picture.height > MAX_PIXELS:
        raise too_large(name, f"{picture.width} x {picture.height} pixels")
    if picture.mode not in GREY_MODES | COLOUR_MODES:
        raise InputRejected(
            f"{name} has pixels of mode {picture.mode}; expected 8 bits per channel, grey or colour. "
            "Convert it, or upload the numbers as data.npz.",
            code="image_refused",
        )


def read_picture_header(file: BinaryIO, name: str) -> Header:
    """Size and colour of a picture, without decoding it."""
    with opened(file, name) as picture:
        return Header(name, picture.width, picture.height, picture.mode in GREY_MODES)


def common_shape(headers: Iterable[Header]) -> tuple[int, int, int]:
    """Channels, height and width of pictures that must all have one size.

    Raises `InputRejected` with code "image_sizes_differ", naming the first two that differ.
    """
    first, all_grey = None, True
    for header in headers:
        first = first or header
        all_grey = all_grey and header.is_grey
        if (header.width, header.height) != (first.width, first.height):
            raise InputRejected(
                f"{first.name} has {first.width} x {first.height} pixels and {header.name} has "
                f"{header.width} x {header.height}; all pictures must have one size. Crop or scale them first.",
                code="image_sizes_differ",
            )
    if first is None:
        raise InputRejected("There is not one picture in the file; expected PNG or JPEG files.", code="empty_split")
    return (1 if all_grey else 3), first.height, first.width


def decode(encoded: bytes, name: str, shape: tuple[int, int, int]) -> Array:
    """One picture as uint8 of the given (channels, height, width)."""
    if encoded.startswith(JPEG_START) and encoded.count(START_OF_SCAN) > MAX_SCANS:
        raise InputRejected(
            f"{name} has over {MAX_SCANS} scans. Save it anew as an ordinary JPEG.", code="image_refused"
        )
    with opened(io.BytesIO(encoded), name, MAX_READS + len(encoded) // BYTES_PER_READ) as picture:
        pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"), np.uint8)
    planes = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
    if planes.shape != shape:
        raise InputRejected(f"{name} changed its size while it was read.", code="image_refused")
    return planes
