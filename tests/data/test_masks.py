import io
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageOps
import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import Records, load_records
from melanoma_fair_xai.data.masks import decode_masks, lesion_masks, read_lesion_mask

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


def photograph(size: tuple[int, int] = (80, 60), orientation: int | None = None) -> bytes:
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 150, 130)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def read(mask: bytes, image: bytes | None = None) -> np.ndarray:
    return np.asarray(read_lesion_mask(mask, image or photograph()))


def encoded(values: np.ndarray, format: str = "PNG", mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(values)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


LESION = np.zeros((60, 80), dtype=bool)
LESION[10:30, 50:70] = True  # off the centre, or a wrong turn would go unseen


def coloured(*colour: int) -> np.ndarray:
    return LESION[..., None] * np.array(colour, dtype=np.uint8)


def palette(*colours: int) -> bytes:
    image = PIL.Image.fromarray(LESION.astype(np.uint8), "P")
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "mask",
    [
        *(encoded(LESION.astype(np.uint8) * value) for value in (1, 9, 255)),
        *(encoded(LESION.astype(np.uint16) * value) for value in (1, 255, 65535)),
        *(encoded(LESION.astype(np.float32) * value, "TIFF") for value in (0.5, 1, 255)),
        encoded(LESION),
        encoded(coloured(0, 255, 0)),
        encoded(coloured(0, 0, 1)),
        encoded(coloured(0, 200, 0), "BMP"),
        palette(0, 0, 0, 0, 255, 0),
        palette(0, 0, 0, 0, 0, 90),
        encoded(np.dstack([coloured(255, 255, 255), np.full(LESION.shape, 255, np.uint8)])),
        encoded(np.dstack([np.full((60, 80, 3), 255, np.uint8), LESION * np.uint8(255)])),
        encoded(coloured(255, 255, 255), "WEBP", lossless=True),
    ],
)
def test_a_lesion_is_found_in_whatever_channel_or_mode_a_mask_has_it(mask):
    assert np.array_equal(read(mask), LESION)


def test_grey_edges_are_cut_at_half_and_noise_is_no_lesion():
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 25) ** 2 + (columns - 50) ** 2 < 15**2
    white = disc * np.uint8(255)
    small = PIL.Image.fromarray(white).resize((20, 15), PIL.Image.Resampling.BILINEAR)
    soft = np.asarray(small.resize((80, 60), PIL.Image.Resampling.BILINEAR))
    for mask in (encoded(white, "JPEG", quality=30), encoded(soft), encoded(white, "WEBP", quality=30)):
        assert abs(read(mask).sum() / disc.sum() - 1) < 0.05 < abs((decoded_grey(mask) > 0).sum() / disc.sum() - 1)
    noise = np.random.default_rng(0).integers(0, 9, (60, 80), dtype=np.uint8)
    with pytest.raises(ValueError, match="it is empty"):
        read(encoded(noise, "JPEG"))


def decoded_grey(content: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("L"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_raw_pixels_is_turned_with_its_image(orientation):
    image = photograph(orientation=orientation)
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded_as(image))))) > 0
    assert np.array_equal(read(encoded(LESION * np.uint8(255)), image), upright)
    # With a tag of its own a mask is turned by that.
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(encoded(LESION * np.uint8(255), exif=exif), image), upright)


def encoded_as(image: bytes) -> bytes:
    """The lesion as a PNG with the EXIF tag of an image."""
    return encoded(LESION * np.uint8(255), exif=PIL.Image.open(io.BytesIO(image)).getexif())


def test_a_mask_of_the_upright_pixels_stays_as_it_is():
    upright = np.rot90(LESION).copy()
    assert np.array_equal(read(encoded(upright), photograph(orientation=6)), upright)


def test_sizes_are_compared():
    half = LESION[::2, ::2].copy()
    assert np.array_equal(read(encoded(half)), half.repeat(2, 0).repeat(2, 1))
    for wrong in (LESION.T, LESION[:, :60], LESION[:50], LESION[:32, :32]):
        with pytest.raises(ValueError, match=r"its size \(\d+, \d+\) is not the image's \(80, 60\)"):
            read(encoded(wrong.copy()))


def test_masks_that_cannot_be_used_are_told_apart_by_row_and_lose_nothing_else():
    masks = [encoded(LESION), None, b"no image", encoded(~LESION & LESION), encoded(LESION.T.copy())]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"image": {"bytes": photograph(), "path": None}}] * len(masks)
    images = datasets.Dataset.from_list(rows, features=features)
    records = Records("own", images, pd.DataFrame(), pd.DataFrame(), as_masks(masks))
    found, problems = lesion_masks(records, range(len(masks)), PREPROCESSING)
    assert found.any((1, 2)).tolist() == [True, False, False, False, False] and sorted(problems) == [2, 3, 4]
    assert abs(found[0].mean() - LESION.mean()) < 0.02
    found, problems = lesion_masks(replace(records, masks=None), range(2), PREPROCESSING)
    assert not found.any() and not problems
