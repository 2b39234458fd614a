"""Means of any measure of an image, by group, with intervals that respect lesions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from melanoma_fair_xai.base.errors import UserError

from .estimates import kish
from .groups import OVERALL, all_images, group_columns
from .metrics import MINIMUM_LESIONS


def mean_by_group(
    table: pd.DataFrame,
    measures: Sequence[str],
    group_by: Sequence[str],
    lesion_column: str | None = "lesion_id",
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Mean of each measure over the images of each group, with its 1 - `alpha` interval, which counts lesions.

    Images without a value (NaN) of a measure are left out of it. `group_by` as in `group_columns`; without a
    `lesion_column` (None) every image is a lesion of its own. The interval is Student's around the mean, with the
    variance of a ratio of sums over lesions, linearised: Cochran, Sampling Techniques (1977), eq. 6.13. Its degrees of
    freedom are Kish's effective number of lesions less one. Percentiles of a bootstrap of 10 lesions are too narrow.

    Returns:
        One row per group column (the first is `all`), group and measure: group_column, group, measure, n (images with
        a value), lesions, mean, low, high, estimable (at least 10 lesions; the three are NaN where it is not).

    Raises:
        UserError: a column that is not there, or a measure that is not numbers.
    """
    for name in (*measures, lesion_column):
        if name is not None and name not in table:
            raise UserError(f"no column {name}; the table has {', '.join(map(str, table.columns))}")
    groups = group_columns(table, group_by)
    groups.insert(0, OVERALL, all_images(len(table)))
    lesions = np.arange(len(table)) if lesion_column is None else pd.factorize(table[lesion_column])[0]
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
                count, mean, low, high = _lesion_mean(values[keep], lesions[keep], alpha)
                rows.append(
                    (column, group, measure, int(keep.sum()), count, mean, low, high, count >= MINIMUM_LESIONS)
                )
    names = ["group_column", "group", "measure", "n", "lesions", "mean", "low", "high", "estimable"]
    return pd.DataFrame(rows, columns=names)


def _lesion_mean(values: np.ndarray, lesions: np.ndarray, alpha: float) -> tuple[int, float, float, float]:
    """The number of lesions, and the mean and its limits; NaN below the minimum."""
    place = np.unique(lesions, return_inverse=True)[1]
    sizes, sums = np.bincount(place), np.bincount(place, values)
    count = len(sizes)
    if count < MINIMUM_LESIONS:
        return count, np.nan, np.nan, np.nan
    mean = values.mean()
    variance = count / (count - 1) * np.square(sums - mean * sizes).sum() / len(values) ** 2
    half = stdtrit(max(kish(sizes) - 1, 1), 1 - alpha / 2) * np.sqrt(variance)
    return count, float(mean), float(mean - half), float(mean + half)
