"""Lesions drawn with replacement: their weights, in blocks of bounded memory."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from .sample import Sample

MAX_UNITS, MIN_UNITS = 10_000, 1_000  # in all, and of each stratum that has as many lesions
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


def bootstrap_strata(sample: Sample, groups: np.ndarray, case_control: bool) -> np.ndarray:
    """The stratum of each lesion, by code: one for all, as it is chance how many lesions a group and a class have.

    The design of a case-control sample has fixed both; `groups` are the codes (n,) of the images.
    """
    classes = lesion_classes(sample)
    return lesion_groups(sample.lesions, groups) * 2 + classes if case_control else np.zeros(len(classes), dtype=int)


def drawing_units(strata: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """With which others each lesion is drawn: the code (lesions,) of its unit, and the strata (units,).

    A unit is a lesion, and of more than MAX_UNITS of them a random group of lesions of a stratum, for speed: such
    groups have the variance of their lesions, whose root 10,000 of them tell to .7 per cent. Wolter, Introduction to
    Variance Estimation (2007), section 2.2.
    """
    if len(strata) <= MAX_UNITS:
        return np.arange(len(strata)), strata
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    _, start, counts = np.unique(strata[order], return_index=True, return_counts=True)
    sizes = -(-counts // np.maximum(MIN_UNITS, MAX_UNITS * counts // len(strata)))
    first = (np.arange(len(strata)) - np.repeat(start, counts)) % np.repeat(sizes, counts) == 0
    units = np.empty(len(strata), dtype=np.int64)
    units[order] = np.cumsum(first) - 1
    return units, strata[order][first]


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


def _block_sizes(lesions: int, n_resamples: int) -> Iterator[int]:
    largest = max(1, BLOCK_BYTES // (8 * lesions))
    for start in range(0, n_resamples, largest):
        yield min(largest, n_resamples - start)
