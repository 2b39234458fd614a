"""Lesions drawn with replacement, and lesions that change groups: weights of lesions, in blocks of bounded memory."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from .sample import Sample

BLOCK_BYTES = 48 * 2**20  # of float64 weights; what the metrics derive from them takes a few times as much


def lesion_classes(sample: Sample) -> np.ndarray:
    """Whether each lesion, by code, has a melanoma among its images; bool (lesions,)."""
    return np.bincount(sample.lesions, sample.labels) > 0


def lesion_groups(lesions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each lesion, by code, a number that lesions share if they lie in the same group, or across the same groups.

    `lesions` and `groups` are the codes (n,) of the images.
    """
    count, width = lesions.max() + 1, groups.max() + 1
    lowest, highest = np.full(count, width - 1), np.zeros(count, dtype=groups.dtype)
    np.minimum.at(lowest, lesions, groups)
    np.maximum.at(highest, lesions, groups)
    return lowest * width + highest


def bootstrap_weights(strata: np.ndarray, n_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks (lesions, b) of weights, `n_resamples` columns in all, of lesions drawn within their strata (lesions,).

    From a stratum of m lesions m - 1 are drawn and each weighs m / (m - 1), which makes the variance of a mean
    unbiased where the ordinary bootstrap's is too small by (m - 1) / m. Rao and Wu, JASA 83 (1988), section 2.
    """
    members = list(pd.Series(np.arange(len(strata))).groupby(strata).indices.values())
    for size in _block_sizes(len(strata), n_resamples):
        weights = np.empty((len(strata), size))
        for rows in members:
            m = len(rows)
            draws = max(m - 1, 1)
            drawn = rng.integers(0, m, (size, draws), dtype=np.int32) + np.arange(size)[:, None] * m
            counts = np.bincount(drawn.ravel(), minlength=size * m).reshape(size, m)
            weights[rows] = counts.T * (m / draws)
        yield weights


def permuted_groups(
    groups: np.ndarray, strata: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Blocks (lesions, b) of the codes in `groups` (lesions,), shuffled among the lesions of each stratum."""
    members = list(pd.Series(np.arange(len(strata))).groupby(strata).indices.values())
    for size in _block_sizes(len(strata), n_resamples):
        shuffled = np.empty((len(strata), size), dtype=np.int16)
        for rows in members:
            tiled = np.broadcast_to(groups[rows].astype(np.int16), (size, len(rows)))
            shuffled[rows] = rng.permuted(tiled, axis=1).T
        yield shuffled


def _block_sizes(lesions: int, n_resamples: int) -> Iterator[int]:
    largest = max(1, BLOCK_BYTES // (8 * lesions))
    for start in range(0, n_resamples, largest):
        yield min(largest, n_resamples - start)
