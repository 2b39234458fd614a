"""Images of more than 8 bits: read as every loader of a published model reads them, or set aside, never black."""

import io
import struct
import zlib

import datasets
import numpy as np
import PIL.Image
import pytest
from transformers.image_utils import load_image

from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.images import Preprocessing, open_rgb

RAMP = np.linspace(0, 255, 64).reshape(8, 8)
HALF = Preprocessing((3, 8, 8), "bicubic", (0.5,) * 3, (0.5,) * 3, crop_pct=1.0, crop_mode="squash")


def saved(values: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def png_of_16_bits(grey: np.ndarray) -> bytes:
    """An RGB PNG with 16 bits a channel, which Pillow reads but cannot write."""
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in grey)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 2, 0, 0, 0)}
    chunks |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


READ = {
    "16-bit PNG, 8 bits in it": saved(RAMP.astype(np.uint16), "PNG"),
    "16-bit TIFF, 8 bits in it": saved(RAMP.astype(np.uint16), "TIFF"),
    "int32 TIFF, 8 bits in it": saved(RAMP.astype(np.int32), "TIFF"),
    "float TIFF, 0 to 255": saved(RAMP.astype(np.float32), "TIFF"),
    "16-bit RGB PNG": png_of_16_bits(RAMP * 257),
}
SET_ASIDE = {
    "16-bit PNG": saved((RAMP * 257).astype(np.uint16), "PNG"),
    "16-bit PNG, 12 bits in it": saved((RAMP * 16).astype(np.uint16), "PNG"),
    "int32 TIFF": saved((RAMP * 1000).astype(np.int32), "TIFF"),
    "int32 TIFF, below zero": saved((RAMP - 128).astype(np.int32), "TIFF"),
    "float TIFF, 0 to 1": saved((RAMP / 255).astype(np.float32), "TIFF"),
    "float TIFF, no number in it": saved(np.where(RAMP == 0, np.nan, RAMP).astype(np.float32), "TIFF"),
    "16-bit RGB PNG, 12 bits in it": png_of_16_bits(RAMP * 16),
    "16-bit RGB PNG, 8 bits in it": png_of_16_bits(RAMP),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_what_is_read_is_right_and_as_a_pipeline_reads_it(content, tmp_path):
    (tmp_path / "image").write_bytes(content)
    pixels = np.asarray(open_rgb(content))
    assert np.abs(pixels - RAMP[..., None]).max() <= 1
    np.testing.assert_array_equal(pixels, np.asarray(load_image(str(tmp_path / "image"))))


def test_what_would_turn_black_or_white_is_set_aside_with_a_reason():
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"image": {"bytes": content, "path": None}} for content in [*READ.values(), *SET_ASIDE.values()]]
    cache = decode_once(datasets.Dataset.from_list(rows, features=features), HALF, show_progress=False)
    assert sorted(cache.problems) == list(range(len(READ), len(rows)))
    assert "more than 8 bits a channel, values from 0 to 4080: save it with 8 bits" in cache.problems[len(READ) + 1]
