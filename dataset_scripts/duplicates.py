"""Near-identical images by a perceptual hash: rescaled, recompressed, slightly cropped, mirrored or turned copies.

The hash of an image is the signs of its 16 x 16 lowest cosine frequencies, after Zauner's pHash (2010) but with 256
bits in place of 64: lesions look alike, and shorter hashes merge different ones. Mirroring an image flips the signs of
its odd frequencies, so the eight poses of a copy cost no second look at the pixels.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import PIL.Image

from melanoma_fair_xai.base.errors import UserError

from .raw_files import read_table

FREQUENCIES = 16
THUMBNAIL = 32
# Crops are looked for by hashing each image also without this share at its left, top, right and bottom, in all
# combinations.
MARGIN = 0.03
# Of 256 bits. Among the 10,015 images of HAM10000 the only two pairs of different lesion ids within 28 bits show one
# lesion each, the first false pair comes at 29; 99 % of copies cropped by up to 4 % at each side are within 28.
MAX_DISTANCE = 28
# Grey levels (standard deviation of the thumbnail) below which the signs are those of noise: nothing is like it.
MIN_CONTRAST = 2.0

_k = np.arange(THUMBNAIL)
_COSINES = np.cos(np.pi * (2 * _k + 1) * _k[:FREQUENCIES, None] / (2 * THUMBNAIL)).astype(np.float32)


def perceptual_hash(image: PIL.Image.Image) -> np.ndarray | None:
    """The packed hashes of an image and of its 15 crops, uint8 of shape (16, 32); None if it is all of one shade."""
    grey = image.convert("L").resize((8 * THUMBNAIL, 8 * THUMBNAIL), PIL.Image.Resampling.BOX)
    views = [grey.resize((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BOX, box=box) for box in _crops(8 * THUMBNAIL)]
    pixels = np.stack([np.asarray(view, dtype=np.float32) for view in views])
    if pixels[0].std() < MIN_CONTRAST:
        return None
    spectrum = _COSINES @ pixels @ _COSINES.T
    return np.packbits((spectrum > 0).reshape(len(views), -1), axis=1)


def near_duplicates(
    hashes: Sequence[np.ndarray | None], max_distance: int = MAX_DISTANCE, block: int = 1024
) -> list[tuple[int, int]]:
    """Index pairs (i < j) of images of which one, in some pose or crop, is within `max_distance` bits of the other.

    Distances are taken by matrix products of signs, `block` images against all at a time: 10,015 images need 15 s on
    two cores.
    """
    index = np.flatnonzero([view is not None for view in hashes])
    if len(index) < 2:
        return []
    views = np.stack([hashes[i] for i in index])
    whole = _signs(views[:, 0])
    enough = FREQUENCIES**2 - 2 * max_distance  # the product of two sign vectors is this where so many bits differ
    pairs = set()
    for other in itertools.chain(_poses(whole), (_signs(views[:, crop]) for crop in range(1, views.shape[1]))):
        for start in range(0, len(whole), block):
            rows, columns = np.nonzero(whole[start : start + block] @ other.T >= enough)
            rows = rows + start
            found = np.sort(index[np.stack([rows, columns], axis=1)[rows != columns]], axis=1)
            pairs.update(map(tuple, found.tolist()))
    return sorted(pairs)


def read_duplicates(path: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of image ids from a CSV table with two columns of them, or with one and a column `cluster`.

    A `.jpg` after an id is ignored, and so are other columns. Raises UserError for a table of another form and for ids
    that are not among the `known`.
    """
    known = set(known)
    table = read_table(path)
    cells = {name: table[name].str.removesuffix(".jpg") for name in table.columns if name not in ("cluster", "line")}
    columns = [name for name, ids in cells.items() if ids.isin(known).any()]
    by_cluster = len(columns) == 1 and "cluster" in table.columns
    if not by_cluster and len(columns) != 2 or any(name.removesuffix(".jpg") in known for name in cells):
        raise UserError(f"{path}: needs a header, and two columns of image ids, or one and a column named cluster")
    for name in columns:
        for line, image_id in zip(table["line"], cells[name], strict=True):
            if image_id not in known:
                raise UserError(
                    f"{path}, line {line}: {name} {image_id!r} is not the id of an image; correct the list"
                )
    if not by_cluster:
        return list(zip(*(cells[name] for name in columns), strict=True))
    members = cells[columns[0]].groupby(table["cluster"])
    return [pair for _, ids in members for pair in itertools.pairwise(ids)]


def duplicate_clusters(records: pd.DataFrame) -> pd.DataFrame:
    """Lesions of more than one image, largest first: lesion_id, images, diagnoses, fitzpatrick, image_ids."""
    repeated = records[records["lesion_id"].duplicated(keep=False)]
    clusters = repeated.groupby("lesion_id", as_index=False).agg(
        images=("image_id", "size"),
        diagnoses=("diagnosis", _distinct),
        fitzpatrick=("fitzpatrick", _distinct),
        image_ids=("image_id", " ".join),
    )
    return clusters.sort_values(["images", "lesion_id"], ascending=[False, True], ignore_index=True)


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def clusters_report(clusters: pd.DataFrame, largest: int = 5) -> str:
    """How many duplicates there are, and the largest clusters."""
    lines = [f"{len(clusters):,} duplicate clusters, {int(clusters['images'].sum()):,} images in them"]
    for row in clusters.head(largest).itertuples():
        lines.append(f"  {row.images} images: {row.diagnoses} (skin type {row.fitzpatrick}), lesion {row.lesion_id}")
    return "\n".join(lines)


def _crops(size: int) -> Iterator[tuple[float, float, float, float]]:
    margin = MARGIN * size
    for left, top, right, bottom in itertools.product((0, 1), repeat=4):
        yield left * margin, top * margin, size - right * margin, size - bottom * margin


def _signs(packed: np.ndarray) -> np.ndarray:
    return 2 * np.unpackbits(packed, axis=1).astype(np.float32) - 1


def _poses(signs: np.ndarray) -> Iterator[np.ndarray]:
    """Sign vectors of the same images mirrored and turned: transposed spectra, and odd frequencies negated."""
    spectrum = signs.reshape(-1, FREQUENCIES, FREQUENCIES)
    odd = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
    for turned in (spectrum, spectrum.transpose(0, 2, 1)):
        for horizontal, vertical in itertools.product((np.ones_like(odd), odd), repeat=2):
            yield (turned * horizontal * vertical[:, None]).reshape(signs.shape)
