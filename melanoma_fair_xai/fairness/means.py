"""Means of any measure of an image, by group, with intervals that respect lesions."""

import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import UserError

from .groups import OVERALL, all_images, group_columns
from .metrics import MINIMUM_LESIONS
from .resampling import bootstrap_weights


def mean_by_group(
    table: pd.DataFrame,
    measures: Sequence[str],
    group_by: Sequence[str],
    lesion_column: str = "lesion_id",
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of each measure over the images of each group, with its 95 % lesion-bootstrap percentile interval.

    Images without a value (NaN) of a measure are left out of it. `group_by` as in `group_columns`.

    Returns:
        One row per group column (the first is `all`), group and measure: group_column, group, measure, n (images with
        a value), lesions, mean, low, high, estimable (at least 10 lesions; the three are NaN where it is not).

    Raises:
        UserError: a column that is not there, or a measure that is not numbers.
    """
    for name in (*measures, lesion_column):
        if name not in table:
            raise UserError(f"no column {name}; the table has {', '.join(map(str, table.columns))}")
    groups = group_columns(table, group_by)
    groups.insert(0, OVERALL, all_images(len(table)))
    lesions = pd.factorize(table[lesion_column])[0]
    if (lesions < 0).any():
        raise UserError(f"{lesion_column}: no value in row {np.flatnonzero(lesions < 0)[0]}")
    rows = []
    for measure in measures:
        try:
            values = table[measure].to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{measure}: not a column of numbers") from None
        for column in groups:
            for group in groups[column].cat.categories:
                keep = (groups[column] == group).to_numpy() & np.isfinite(values)
                rng = np.random.default_rng([seed, zlib.crc32(f"{column}={group}".encode())])
                count, mean, low, high = _lesion_mean(values[keep], lesions[keep], n_resamples, rng)
                rows.append(
                    (column, group, measure, int(keep.sum()), count, mean, low, high, count >= MINIMUM_LESIONS)
                )
    names = ["group_column", "group", "measure", "n", "lesions", "mean", "low", "high", "estimable"]
    return pd.DataFrame(rows, columns=names)


def _lesion_mean(
    values: np.ndarray, lesions: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> tuple[int, float, float, float]:
    """The number of lesions, and the mean and its limits; NaN below the minimum."""
    place = np.unique(lesions, return_inverse=True)[1]
    sums = np.stack([np.bincount(place, values), np.bincount(place)])
    count = sums.shape[1]
    if count < MINIMUM_LESIONS:
        return count, np.nan, np.nan, np.nan
    blocks = [sums @ weights for weights in bootstrap_weights(np.zeros(count, dtype=int), n_resamples, rng)]
    totals, images = np.concatenate(blocks, axis=1)
    low, high = np.quantile(totals / images, [0.025, 0.975])
    return count, float(values.mean()), float(low), float(high)
