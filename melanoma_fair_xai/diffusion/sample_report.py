"""What generated images score beside real ones, which of them are copies of training images, and the report of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from dataset_scripts.schema import UNKNOWN
from dataset_scripts.skin_colour import rgb_to_lab
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import markdown_table, markdown_text, number
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.images import Preprocessing, normalise
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.diffusion.copies import (
    FALSE_ALARMS,
    Neighbours,
    copy_threshold,
    nearest_features,
    nearest_pixels,
    thumbnails,
)
from melanoma_fair_xai.diffusion.sample_metrics import frechet_distance, kernel_distance, manifold_metrics
from melanoma_fair_xai.fairness.intervals import clopper_pearson

CATEGORIES = [name for name, condition in CONDITIONS.items() if not condition.is_measure]
FEW = 20  # images of a condition, below which nothing but their number is reported
BATCH = 64
PAIRS = 20  # in the sheet of nearest pairs
DIRECTIONS = {
    "frechet_distance": "lower is better",
    "kid": "lower is better",
    "precision": "higher is better",
    "recall": "higher is better",
    "density": "higher is better",
    "coverage": "higher is better",
}
LAB = ("L*", "a*", "b*")


@dataclass(frozen=True)
class Described:
    """Images of one origin: their table, features (n, d), thumbnails (n, 768), Lab mean and spread (n, 6), pixels."""

    table: pd.DataFrame
    features: np.ndarray
    thumbnails: np.ndarray
    lab: np.ndarray
    pixels: np.ndarray

    def select(self, keep: np.ndarray) -> "Described":
        rows = np.flatnonzero(keep) if keep.dtype == bool else keep
        parts = (self.features[rows], self.thumbnails[rows], self.lab[rows], self.pixels[rows])
        return Described(self.table.iloc[rows].reset_index(drop=True), *parts)


def describe(
    accelerator: Accelerator, records: Records, network: torch.nn.Module, preprocessing: Preprocessing
) -> Described:
    """Features before the last layer of a timm model, and what else is compared, of all images that can be decoded."""
    cache = decode_once(records.images, preprocessing)
    usable = np.setdiff1d(np.arange(len(records.table)), list(cache.problems))
    network = network.eval().to(accelerator.device)
    parts: list[tuple] = []
    for rows in tqdm(np.split(usable, range(BATCH, len(usable), BATCH)), desc="features", unit="batch"):
        images = torch.from_numpy(cache.pixels[rows]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            inputs = normalise(images.to(accelerator.device), preprocessing)
            features = network.forward_head(network.forward_features(inputs), pre_logits=True)
        lab = rgb_to_lab(images.permute(0, 2, 3, 1).numpy()[:, ::2, ::2] / 255)
        lab = np.concatenate([lab.mean(axis=(1, 2)), lab.std(axis=(1, 2))], axis=1)
        parts.append((features.flatten(1).float().cpu().numpy(), thumbnails(images), lab))
    table = records.table.iloc[usable].reset_index(drop=True)
    return Described(table, *(np.concatenate(part) for part in zip(*parts, strict=True)), cache.pixels[usable])


def compare(generated: Described, reference: Described, floor: Described, seed: int = 0) -> pd.DataFrame:
    """One row per scope and metric: value and spread of the generated images, and of the floor at equal numbers.

    Scopes are all images and each condition that both have; columns scope, n_generated, n_real, n_reference, metric,
    value, spread, floor, floor_spread. Too few images give NaN.
    """
    rows = list(_compare("all", generated, reference, floor, seed))
    for column in CATEGORIES:
        for name in sorted(set(generated.table[column]) - {UNKNOWN}):
            parts = [part.select((part.table[column] == name).to_numpy()) for part in (generated, reference, floor)]
            rows += _compare(f"{column} {name}", *parts, seed)
    return pd.DataFrame(rows)


def _compare(
    scope: str, generated: Described, reference: Described, floor: Described, seed: int
) -> Iterator[dict[str, float | str | int]]:
    # All figures depend on the number of images: the floor is one only at the same number.
    count = min(len(generated.table), len(floor.table))
    rng = np.random.default_rng(seed)
    same = [part.select(np.sort(rng.permutation(len(part.table))[:count])) for part in (generated, floor)]
    counts = {"n_generated": len(generated.table), "n_compared": count, "n_reference": len(reference.table)}
    if min(count, len(reference.table)) < FEW:
        yield {"scope": scope, **counts, "metric": "too few images"}
        return
    values = [_distances(part, reference, seed) for part in same]
    for metric in values[0]:
        (value, spread), (least, least_spread) = (result[metric] for result in values)
        row = {"metric": metric, "value": value, "spread": spread, "floor": least, "floor_spread": least_spread}
        yield {"scope": scope, **counts, **row}


def _distances(part: Described, reference: Described, seed: int) -> dict[str, tuple[float, float]]:
    nan = float("nan")
    results = {
        "frechet_distance": (frechet_distance(part.features, reference.features), nan),
        "kid": kernel_distance(part.features, reference.features, seed=seed),
    }
    results |= {name: (value, nan) for name, value in manifold_metrics(reference.features, part.features).items()}
    for channel, name in enumerate(LAB):
        # Spread: of the images' means, between images; then of the pixels, within an image.
        results[f"mean {name}"] = (part.lab[:, channel].mean(), part.lab[:, channel].std())
        results[f"deviation of {name} within an image"] = (
            part.lab[:, 3 + channel].mean(),
            part.lab[:, 3 + channel].std(),
        )
    return results


def find_copies(generated: Described, training: Described, held_out: Described) -> pd.DataFrame:
    """One row per generated image: nearest training image by pixels and features, both ratios, and `copy`.

    A likely copy has a ratio (see `Neighbours`) below those of all but 0.25 % of held-out images.
    """
    tables, flags = [], []
    for space, nearest in (("pixel", nearest_pixels), ("feature", nearest_features)):
        source = "thumbnails" if space == "pixel" else "features"
        queries, points, others = (getattr(part, source) for part in (generated, training, held_out))
        found: Neighbours = nearest(queries, points)
        threshold = copy_threshold(nearest(others, points))
        names = training.table["image_id"].to_numpy()[found.index]
        tables.append(pd.DataFrame({f"{space}_nearest": names, f"{space}_ratio": found.ratio}))
        flags.append(found.ratio < threshold)
    copies = np.logical_or(*flags)
    return pd.concat([generated.table[["image_id", *CATEGORIES]], *tables], axis=1).assign(copy=copies)


def copy_shares(copies: pd.DataFrame) -> pd.DataFrame:
    """Likely copies, overall and by condition: scope, n, copies, share and its Clopper-Pearson limits low and high."""
    rows = []
    scopes = [("all", copies)]
    scopes += [
        (f"{column} {name}", part) for column in CATEGORIES for name, part in copies.groupby(column) if name != UNKNOWN
    ]
    for scope, part in scopes:
        low, high = clopper_pearson(part["copy"].mean(), len(part))
        rows.append([scope, len(part), int(part["copy"].sum()), part["copy"].mean(), float(low), float(high)])
    return pd.DataFrame(rows, columns=["scope", "n", "copies", "share", "low", "high"])


def plot_nearest_pairs(copies: pd.DataFrame, generated: Described, training: Described, path: Path) -> None:
    """The generated images that come nearest to a training image, each above it. It shows real images: keep it."""
    nearest = copies.sort_values("pixel_ratio", kind="stable").head(PAIRS)
    position = pd.Series(range(len(training.table)), index=training.table["image_id"])
    columns = min(10, len(nearest))
    lines = -(-len(nearest) // columns)
    figure = Figure(figsize=(1.1 * columns, 2.5 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for place, (row, copy) in enumerate(nearest.iterrows()):
        line, column = divmod(place, columns)
        axes[2 * line, column].imshow(generated.pixels[row])
        axes[2 * line, column].set_title(f"{copy['pixel_ratio']:.2f}{' copy' if copy['copy'] else ''}", fontsize=8)
        axes[2 * line + 1, column].imshow(training.pixels[position[copy["pixel_nearest"]]])
    figure.suptitle(
        "generated (above) and nearest training image (below); distance over that of the 50 nearest", fontsize=9
    )
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150, format="png", metadata={"Software": None})


def to_markdown(metrics: pd.DataFrame, shares: pd.DataFrame, title: str) -> str:
    """The report: every figure beside its floor, then the copies."""

    def cell(value: float, spread: float) -> str:
        return number(value, 4) + ("" if np.isnan(spread) else f" ± {number(spread, 4)}")

    table = [
        [
            row["scope"],
            f"{row['n_generated']:,} ({row['n_compared']:,} compared) / {row['n_reference']:,}",
            f"{row['metric']}{', ' + DIRECTIONS[row['metric']] if row['metric'] in DIRECTIONS else ''}",
            "too few images"
            if row["metric"] == "frechet_distance" and np.isnan(row["value"])
            else cell(row["value"], row["spread"]),
            cell(row["floor"], row["floor_spread"]),
        ]
        for _, row in metrics.iterrows()
    ]
    copies = [
        [
            row["scope"],
            f"{row['n']:,}",
            f"{row['copies']:,}",
            f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
        ]
        for _, row in shares.iterrows()
    ]
    return "\n\n".join(
        [
            f"# Quality of generated images: {markdown_text(title)}",
            "The floor is what held-out real images score against the same real images, at the same number. ± is the "
            "standard deviation over subsets for KID, and between images for Lab.",
            markdown_table(["images", "generated / reference", "metric", "generated", "floor (real)"], table),
            "## Likely copies of training images",
            f"Nearer to one training image, relative to the next fifty, than all but {100 * FALSE_ALARMS:g} % of "
            "held-out real images are: so many are expected among images that copy nothing. Clopper-Pearson "
            "intervals (95 %).",
            markdown_table(["images", "n", "likely copies", "share"], copies),
        ]
    ) + "\n"  # fmt: skip
