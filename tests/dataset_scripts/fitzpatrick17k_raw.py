"""A small raw folder of Fitzpatrick17k with drawn images."""

import hashlib
import io
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter

from dataset_scripts.fitzpatrick17k import (
    Fitzpatrick17k,
)

SKIN_TYPE = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI", "-1": "unknown"}
HEADER = "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url"
MELANOMA = ("melanoma", "malignant melanoma", "malignant")
NEVUS = ("halo nevus", "benign melanocyte", "benign")
CARCINOMA = ("basal cell carcinoma", "malignant epidermal", "malignant")
ACNE = ("acne", "inflammatory", "non-neoplastic")
ATLAS = "https://www.dermaamin.com/site/images/clinical-pic"


def photograph(seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).uniform(0, 255, (12, 16, 3)).astype(np.uint8)
    return PIL.Image.fromarray(pixels).resize((200, 150), PIL.Image.Resampling.BICUBIC)


def as_jpeg(image: PIL.Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Raw:
    """A raw folder: annotation rows, and image files named by their MD5."""

    def __init__(self, folder: Path):
        self.folder, self.rows, self.contents = folder, [], {}
        (folder / "images").mkdir(parents=True)

    def add(self, content: bytes, labels=NEVUS, scale="2", qc="", url=f"{ATLAS}/x/1.jpg", write=True) -> str:
        name = md5_of(content)
        self.contents[name] = content
        self.rows.append([name, scale, scale, *labels, qc, url])
        if write:
            (self.folder / "images" / f"{name}.jpg").write_bytes(content)
        return name

    def path(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.jpg"

    def annotate(self) -> "Raw":
        lines = [HEADER, *(",".join(row) for row in self.rows)]
        (self.folder / "fitzpatrick17k.csv").write_text("\n".join(lines) + "\n")
        return self


def prepare(raw: Raw, name: str = "all", **options) -> tuple[datasets.DatasetDict, Fitzpatrick17k]:
    builder = Fitzpatrick17k(name, data_dir=str(raw.folder), cache_dir=str(raw.folder.parent / "cache"), **options)
    builder.download_and_prepare()
    return builder.as_dataset(), builder


def column(prepared: datasets.DatasetDict, name: str) -> dict:
    """{image_id: value} over all splits."""
    return {
        image_id: value
        for split in prepared.values()
        for image_id, value in zip(split["image_id"], split[name], strict=True)
    }


def skipped(builder: Fitzpatrick17k) -> dict:
    table = pd.read_csv(os.path.join(builder.cache_dir, "skipped.csv"), keep_default_na=False)
    return dict(zip(table["image_id"], table["reason"], strict=True))
