"""Which files are images, how they are opened, and whether they are whole."""

import io
import os
from collections.abc import Mapping
from typing import Any

import PIL.Image

from .errors import read_problem
from .files import read_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Pillow looks at the content alone, and starts Ghostscript where that is PostScript, whatever the file is called.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def open_image(content: bytes) -> PIL.Image.Image:
    """The image in a file's bytes, not decoded yet. PIL.UnidentifiedImageError for what is none of IMAGE_FORMATS."""
    return PIL.Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)


def image_bytes(cell: Mapping[str, Any]) -> bytes:
    """The file behind a cell of a `datasets` column of images that is not decoded. OSError if it cannot be read.

    `datasets` itself would open it with whatever Pillow has.
    """
    return cell["bytes"] if cell["bytes"] is not None else read_file(cell["path"])  # a path, of images in a folder


def is_image(path: os.PathLike) -> bool:
    """Whether a file begins as an image does, whatever its name."""
    try:
        open_image(read_file(path)).close()
    except Exception:  # whatever a decoder raises on what it takes for its own
        return False
    return True


def image_content_problem(content: bytes) -> str | None:
    """Why bytes are not a whole image, or None. Every pixel is decoded: a header alone does not show a truncation."""
    if not content:
        return "zero bytes"
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved under an image's name"
    try:
        with open_image(content) as image:
            image.load()
    except PIL.UnidentifiedImageError:
        return f"not an image ({', '.join(IMAGE_FORMATS)})"
    except Exception as error:  # a damaged file makes decoders raise anything: OSError, SyntaxError, struct.error ...
        return f"damaged image ({read_problem(error)})"
    return None
