import io
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.data.masks import decode_masks

PREPROCESSING = Preprocessing((3, 32, 32), "bicubic", (0.5,) * 3, (0.25,) * 3, crop_pct=1.0, crop_mode="squash")


def as_masks(contents: list[bytes | None]) -> datasets.Dataset:
    rows = [{"mask": None if content is None else {"bytes": content, "path": "m.png"}} for content in contents]
    return datasets.Dataset.from_list(rows, features=datasets.Features({"mask": datasets.Image(decode=False)}))


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(values)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def test_masks_go_where_the_pixels_go_and_keep_their_values():
    values = np.zeros((60, 80), dtype=np.uint8)
    values[:30, 40:] = 9
    bits = np.where(values > 0, 255, 0).astype(np.uint8)
    found = decode_masks(as_masks([png(values), None, png(bits, "1")]), "mask", [0, 1, 2], PREPROCESSING)
    expected = np.zeros((32, 32), dtype=np.uint8)
    expected[:16, 16:] = 9
    assert np.array_equal(found[0], expected)
    assert not found[1].any()
    assert np.array_equal(found[2], np.where(expected > 0, 255, 0))


def test_a_centre_crop_crops_the_mask_too():
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:8] = 255  # cut off by a crop of three quarters
    config = replace(PREPROCESSING, crop_pct=0.75, crop_mode="center")
    assert not decode_masks(as_masks([png(values)]), "mask", [0], config).any()


def test_a_damaged_mask_is_named():
    with pytest.raises(UserError, match=r"mask of row 1 \(m.png\): cannot be read"):
        decode_masks(as_masks([None, b"no image"]), "mask", [0, 1], PREPROCESSING)


def test_records_carry_their_masks_through_selections(phantoms):
    records = load_records(str(phantoms))
    keep = (records.table["split"] == "test").to_numpy()
    chosen = records.select(keep)
    assert set(chosen.masks.column_names) == {"mask", "artefact_mask"} and len(chosen.masks) == keep.sum()
    masks = decode_masks(chosen.masks, "mask", range(keep.sum()), PREPROCESSING)
    source = datasets.load_dataset(str(phantoms), split="test")
    by_id = {row["image_id"]: np.asarray(row["mask"]) for row in source}
    for name, mask in zip(chosen.table["image_id"], masks, strict=True):
        assert np.array_equal(mask, by_id[name])
