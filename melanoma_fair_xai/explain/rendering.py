"""Maps drawn on their images: as a heat map, and as the original study's contours."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import torch
from matplotlib.figure import Figure

from melanoma_fair_xai.base.tables import figure_text

from .attributions import map_problems
from .summary import ERROR_TITLES

DISPLAY_SIZE = 256  # pixels a side, at least
CONTOUR_PERCENTILES = (50, 75, 90)  # of the positive attribution


def heat_map(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The positive part of a map (H, W) over its image (uint8 (H, W, 3)), at least DISPLAY_SIZE a side.

    Opacity grows with the value, and 1 is the map's own maximum. A map without anything positive, or one that is
    constant or not finite, leaves the image as it is.
    """
    pixels, values = _enlarged(pixels, values)
    share = np.clip(values, 0, None) / values.max() if not _problem(values) else np.zeros_like(values)
    colour = matplotlib.colormaps["turbo"](share)[..., :3] * 255
    opacity = 0.65 * np.sqrt(share)[..., None]
    return np.round(pixels * (1 - opacity) + colour * opacity).astype(np.uint8)


def contours(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lines around the pixels above each of CONTOUR_PERCENTILES, from white to red; sizes as in `heat_map`."""
    pixels, values = _enlarged(pixels, values)
    if _problem(values):
        return pixels
    drawn = pixels.copy()
    colours = [(255, 255, 255), (255, 210, 0), (230, 0, 0)]
    for percentile, colour in zip(CONTOUR_PERCENTILES, colours, strict=True):
        drawn[_border(values > np.percentile(values[values > 0], percentile))] = colour
    return drawn


def _border(region: np.ndarray) -> np.ndarray:
    """The pixels of a region (bool (H, W)) whose right or lower neighbour, or that of a neighbour, lies outside."""
    border = np.zeros_like(region)
    border[:, :-1] |= region[:, :-1] != region[:, 1:]
    border[:-1] |= region[:-1] != region[1:]
    border[:, 1:] |= border[:, :-1]  # two pixels wide, to be seen on a page
    border[1:] |= border[:-1]
    return border


def _problem(values: np.ndarray) -> str:
    return map_problems(torch.from_numpy(np.array(values))[None])[0]


def _enlarged(pixels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = values.shape
    factor = max(1, -(-DISPLAY_SIZE // min(height, width)))
    size = (factor * width, factor * height)
    image = PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC)
    field = PIL.Image.fromarray(values.astype(np.float32)).resize(size, PIL.Image.Resampling.BILINEAR)
    return np.asarray(image), np.asarray(field)


def overlay(pixels: np.ndarray, values: np.ndarray) -> PIL.Image.Image:
    """The image, its heat map and its contours side by side."""
    plain, _ = _enlarged(pixels, values)
    return PIL.Image.fromarray(np.concatenate([plain, heat_map(pixels, values), contours(pixels, values)], axis=1))


def choose_examples(errors: pd.Series, count: int, seed: int) -> dict[str, list[int]]:
    """Up to `count` rows of each error type that is there, drawn by the seed."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for name in ERROR_TITLES:
        rows = np.flatnonzero((errors == name).to_numpy())
        if len(rows):
            chosen[name] = sorted(rng.permutation(rows)[:count].tolist())
    return chosen


def plot_gallery(
    table: pd.DataFrame,
    image_and_map: Callable[[int], tuple[np.ndarray, np.ndarray]],
    count: int,
    seed: int,
    path: Path,
) -> None:
    """A page of up to `count` images of each error type: heat map and contours, with score and threshold.

    `image_and_map` gives those of a row of the table.
    """
    chosen = choose_examples(table["error"], count, seed)
    figure = Figure(figsize=(2.1 * count + 0.4, 4.75 * len(chosen)), layout="constrained")
    for part, (error, rows) in zip(figure.subfigures(len(chosen), squeeze=False)[:, 0], chosen.items(), strict=True):
        part.suptitle(
            f"{ERROR_TITLES[error]} ({(table['error'] == error).sum()} images)", fontsize=11, x=0.01, ha="left"
        )
        axes = part.subplots(2, count, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for column, row in enumerate(rows):
            record = table.iloc[row]
            title = (
                f"{figure_text(record['image_id'])}\nscore {record['score']:.2f}, threshold {record['threshold']:.2f}"
            )
            if record["map_problem"]:
                title += f"\nmap: {record['map_problem']}"
            axes[0, column].set_title(title, fontsize=7)
            shown = image_and_map(row)
            axes[0, column].imshow(heat_map(*shown))
            axes[1, column].imshow(contours(*shown))
    figure.savefig(path, dpi=110, metadata={"Software": None})
