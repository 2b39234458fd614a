"""Which files are images, and whether they are whole."""

import io

import PIL.Image

from .errors import read_problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def image_content_problem(content: bytes) -> str | None:
    """Why bytes are not a whole image, or None. Every pixel is decoded: a header alone does not show a truncation."""
    if not content:
        return "zero bytes"
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved under an image's name"
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            image.load()
    except PIL.UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # a damaged file makes decoders raise anything: OSError, SyntaxError, struct.error ...
        return f"damaged image ({read_problem(error)})"
    return None
