"""Masks of lesions and artefacts, brought to the model's pixels as the images are."""

from collections.abc import Sequence
from dataclasses import replace

import datasets
import numpy as np

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import read_file
from melanoma_fair_xai.data.images import Preprocessing, open_rgb, pixel_transform


def decode_masks(
    masks: datasets.Dataset, column: str, rows: Sequence[int], preprocessing: Preprocessing
) -> np.ndarray:
    """The masks of some rows, uint8 (len(rows), H, W), all zero where a row has none.

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
            content = item["bytes"] if item["bytes"] is not None else read_file(item["path"])
            decoded[place] = transform(open_rgb(content))[0].numpy()
        except Exception as error:  # whatever a decoder raises on a damaged file
            raise UserError(f"{column} of row {rows[place]} ({item['path']}): cannot be read ({error})") from None
    return decoded
