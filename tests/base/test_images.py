"""Whole images are told from what is none."""

import io
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from melanoma_fair_xai.base import images
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


@pytest.mark.parametrize("format", ["EPS", "GIF", "PPM", "PDF", "ICNS"])
def test_what_pillow_reads_otherwise_is_no_image(format, monkeypatch):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, format)
    # For PostScript that would be Ghostscript.
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert image_content_problem(stream.getvalue()).startswith("not an image")


def test_images_are_opened_in_one_place():
    repository = Path(images.__file__).parents[2]
    sources = [*repository.glob("*.py"), *repository.glob("melanoma_fair_xai/**/*.py")]
    sources += repository.glob("dataset_scripts/**/*.py")
    opened = [
        path.name for path in sources if re.search(r"\bImage\.open\(|\bimread\(|Image\(\)\.decode", path.read_text())
    ]
    assert opened == [Path(images.__file__).name]
