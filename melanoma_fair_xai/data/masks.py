"""Masks of lesions and artefacts, brought to the model's pixels as the images are."""

from collections.abc import Sequence
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base

from melanoma_fair_xai.base.errors import UserError, read_problem
from melanoma_fair_xai.base.images import image_bytes, open_image
from melanoma_fair_xai.data.images import Preprocessing, open_rgb, pixel_transform
from melanoma_fair_xai.data.loading import Records

LOSSY = ("JPEG", "MPO", "WEBP")


def lesion_masks(
    records: Records, rows: Sequence[int], preprocessing: Preprocessing
) -> tuple[np.ndarray, dict[int, str]]:
    """The lesion masks of some rows, bool (len(rows), H, W), and why a mask that is there cannot be used, by row.

    Turned, resized and cropped as the images are, to the nearest pixel; all False where a row has no usable mask.
    """
    height, width = preprocessing.input_size[1:]
    found, problems = np.zeros((len(rows), height, width), dtype=bool), {}
    if records.masks is None or "mask" not in records.masks.column_names:
        return found, problems
    transform = pixel_transform(replace(preprocessing, interpolation="nearest"))
    for place, row in enumerate(rows):
        if (item := records.masks[row]["mask"]) is None:
            continue
        try:
            mask = read_lesion_mask(image_bytes(item), image_bytes(records.images[row]["image"]))
        except Exception as error:  # whatever a decoder raises on a damaged file
            problems[row] = read_problem(error)
        else:
            found[place] = transform(mask.convert("RGB"))[0].numpy() > 0
    return found, problems


def read_lesion_mask(mask: bytes, image: bytes) -> PIL.Image.Image:
    """A mask file as an upright image of mode 1 and of its photograph's size.

    The lesion is what is not black, in any channel or mode, or what is nearer to white where there is white: grey
    edges come from a lossy format or from resizing. A mask without an EXIF tag is turned as the photograph's says,
    unless its shape is the upright one's. Raises ValueError for an empty mask and for another shape, else what
    decoders raise.
    """
    with open_image(mask) as picture:
        picture.load()
    with open_image(image) as photograph:
        raw, turn = photograph.size, photograph.getexif().get(Base.Orientation, 1)
    upright = raw[::-1] if turn in (5, 6, 7, 8) else raw
    lesion = PIL.Image.fromarray(_foreground(picture))
    own_turn = picture.getexif().get(Base.Orientation, 1)
    if own_turn == 1 and _same_shape(picture.size, raw):
        own_turn = turn
    lesion.getexif()[Base.Orientation] = own_turn
    lesion = PIL.ImageOps.exif_transpose(lesion)
    if not _same_shape(lesion.size, upright):
        raise ValueError(f"its size {picture.size} is not the image's {raw}")
    if not lesion.getbbox():
        raise ValueError("it is empty")
    return lesion.resize(upright, PIL.Image.Resampling.NEAREST)


def _foreground(picture: PIL.Image.Image) -> np.ndarray:
    """Which pixels (bool (h, w)) of a mask are the lesion's."""
    if picture.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    else:  # what is transparent is black
        picture_on_black = PIL.Image.new("RGBA", picture.size, "black")
        picture_on_black.alpha_composite(picture.convert("RGBA"))
        values = np.asarray(picture_on_black)[..., :3].max(axis=-1)
    if values.max() > 127:
        return values > values.max() / 2
    return values > (127 if picture.format in LOSSY else 0)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other enlarged or reduced, but for the rounding of its sides."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= (max(other) if size != other else 0)


def decode_masks(
    masks: datasets.Dataset, column: str, rows: Sequence[int], preprocessing: Preprocessing
) -> np.ndarray:
    """Masks whose values are bits, of some rows, uint8 (len(rows), H, W), all zero where a row has none.

    Resized and cropped as the images are, but to the nearest pixel, so that values stay what they are. Raises
    UserError for a mask that cannot be read.
    """
    transform = pixel_transform(replace(preprocessing, interpolation="nearest"))
    height, width = preprocessing.input_size[1:]
    decoded = np.zeros((len(rows), height, width), dtype=np.uint8)
    for place, item in enumerate(masks.select(rows)[column]):
        if item is None:
            continue
        try:
            decoded[place] = transform(open_rgb(image_bytes(item)))[0].numpy()
        except Exception as error:  # whatever a decoder raises on a damaged file
            raise UserError(f"{column} of row {rows[place]} ({item['path']}): cannot be read ({error})") from None
    return decoded
