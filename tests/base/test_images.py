"""Whole images are told from what is none."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from melanoma_fair_xai.base.images import image_content_problem


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, reason",
    [
        (jpeg(), None),
        (b"", "zero bytes"),
        (jpeg()[:-200], "damaged image"),
        (b"\n<!DOCTYPE html><title>404</title>", "web page"),
        (b"%PDF-1.4 a report", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR", "image"),
    ],
)
def test_image_content_problem(content, reason):
    found = image_content_problem(content)
    assert found is None if reason is None else reason in found
