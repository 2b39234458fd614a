"""Copies of training images among generated ones: nearest neighbours, judged by how near held-out real images come."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from melanoma_fair_xai.diffusion.sample_metrics import neighbour_distances

THUMBNAIL = 16  # pixels a side: recompression and noise vanish in it, other lesions do not
NEIGHBOURS = 50
FALSE_ALARMS = 0.005  # of held-out real images, split evenly between both spaces


def thumbnails(images: torch.Tensor) -> np.ndarray:
    """uint8 images (N, 3, H, W) as float32 rows (N, 3 * 16 * 16) in [0, 1], antialiased, mean colour removed.

    A copy under other light is a copy.
    """
    small = F.interpolate(images.float() / 255, size=THUMBNAIL, mode="bilinear", antialias=True, align_corners=False)
    return (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1).numpy()


def symmetries(rows: np.ndarray) -> list[np.ndarray]:
    """Thumbnails in the eight flips and quarter turns that leave a square a square."""
    images = rows.reshape(-1, 3, THUMBNAIL, THUMBNAIL)
    turned = [np.rot90(images, turns, axes=(2, 3)) for turns in range(4)]
    return [np.ascontiguousarray(view).reshape(len(rows), -1) for t in turned for view in (t, t[..., ::-1])]


@dataclass(frozen=True)
class Neighbours:
    """Of each query: the index of the nearest training image, and its distance over the mean of the nearest fifty's.

    The ratio tells a copy from a plain image, to which many others are near: for a copy it is near 0, else near 1.
    """

    index: np.ndarray
    ratio: np.ndarray


def nearest_pixels(queries: np.ndarray, training: np.ndarray, description: str = "comparing pixels") -> Neighbours:
    """Neighbours of thumbnails (n, d) among training thumbnails (m, d), whichever way they are turned or flipped."""
    count = min(NEIGHBOURS, len(training))
    best = None
    for view in tqdm(symmetries(queries), desc=description, unit="symmetry", leave=False):
        found = neighbour_distances(view, training, count)
        if best is None:
            best = found
        else:
            distances, indices = (np.concatenate(pair, axis=1) for pair in zip(best, found, strict=True))
            order = np.argsort(distances, axis=1, kind="stable")[:, :count]
            best = tuple(np.take_along_axis(values, order, axis=1) for values in (distances, indices))
    return _ratios(*best)


def nearest_features(queries: np.ndarray, training: np.ndarray) -> Neighbours:
    """Neighbours of features (n, d) among training features (m, d)."""
    return _ratios(*neighbour_distances(queries, training, min(NEIGHBOURS, len(training))))


def _ratios(distances: np.ndarray, indices: np.ndarray) -> Neighbours:
    mean = distances.mean(axis=1)
    return Neighbours(indices[:, 0], np.divide(distances[:, 0], mean, out=np.zeros_like(mean), where=mean > 0))


def copy_threshold(held_out: Neighbours, false_alarms: float = FALSE_ALARMS / 2) -> float:
    """The ratio below which this share of held-out real images lies; none of them is a copy of a training image."""
    return float(np.quantile(held_out.ratio, false_alarms))


@dataclass(frozen=True)
class CopyFinder:
    """Tells by pixels alone whether an image copies one of a data set's training split."""

    training: np.ndarray
    threshold: float

    @classmethod
    def of(cls, pixels: np.ndarray, in_training: np.ndarray) -> "CopyFinder":
        """From uint8 pixels (N, H, W, 3) of a data set, and which of them (bool, N) are training images."""
        rows = np.concatenate([_thumbnails_of(pixels[i : i + 512]) for i in range(0, len(pixels), 512)])
        held_out = nearest_pixels(rows[~in_training], rows[in_training], "comparing held-out images")
        return cls(rows[in_training], copy_threshold(held_out, FALSE_ALARMS))

    def are_copies(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """bool (n,) of RGB images of one size."""
        rows = _thumbnails_of(np.stack([np.asarray(image) for image in images]))
        return nearest_pixels(rows, self.training).ratio < self.threshold


def _thumbnails_of(pixels: np.ndarray) -> np.ndarray:
    return thumbnails(torch.from_numpy(pixels).permute(0, 3, 1, 2))
