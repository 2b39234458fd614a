"""Intervals and tests for rates, areas and differences, all vectorised over the level `alpha`."""

from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, owens_t

# A function from a two-sided error level to the lower and upper limits.
Bounds = Callable[[np.ndarray | float], tuple[np.ndarray, np.ndarray]]


def clopper_pearson(rate: float, n: float, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Exact limits of a rate on `n` independent decisions; `n` and rate * n need not be whole numbers.

    Clopper and Pearson, Biometrika 26 (1934).
    """
    hits, alpha = rate * n, np.asarray(alpha, dtype=float)
    # The beta quantiles are undefined where no (or every) decision is a hit: the limit is then 0 (or 1).
    low = betaincinv(hits, n - hits + 1, alpha / 2) if hits > 0 else np.zeros_like(alpha)
    high = betaincinv(hits + 1, n - hits, 1 - alpha / 2) if hits < n else np.ones_like(alpha)
    return low, high


def wilson(rate: float, n: float, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Score limits of a rate on `n` independent decisions. Wilson, JASA 22 (1927)."""
    z2 = ndtri(np.asarray(alpha, dtype=float) / 2) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # A rate of 0 (or 1) has this limit exactly, which rounding would miss.
    return (centre - half) * (rate > 0), np.where(rate < 1, centre + half, 1.0)


PROBITS = np.linspace(-7, 7, 4001)  # of the areas among which limits are looked up


def binormal_variance(probit: np.ndarray | float, pairs: float, others: float) -> np.ndarray:
    """The variance of an area under the ROC curve, given as its probit, of scores that are normal and equally wide.

    `pairs` counts pairs of a positive and a negative, and `others` how many further images share one of a pair's two
    places: m + n - 2 for m positives and n negatives. Hanley and McNeil, Radiology 143 (1982), eq. 2; that two
    positives exceed one negative, or one positive two negatives, has the probability of Owen, Annals of Mathematical
    Statistics 27 (1956).
    """
    single = ndtr(probit) * ndtr(-np.asarray(probit))
    return (single + others * (single - 2 * owens_t(probit, 1 / np.sqrt(3)))) / pairs


def score_limits(area: float, pairs: float, others: float, design_effect: float = 1.0) -> Bounds:
    """Limits of an area as a function of the quantile q: the t with |area - t| = q sqrt(design_effect variance(t)).

    The variance is that at the limit, not that at the estimate, as in Wilson's limits of a rate: at areas near 1 it
    depends on the area, and at 1 the estimated one is 0.
    """
    deviation = (ndtr(PROBITS) - area) / np.sqrt(design_effect * binormal_variance(PROBITS, pairs, others))

    def limits(quantile: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        low, high = (ndtr(np.interp(q, deviation, PROBITS)) for q in (-np.asarray(quantile), quantile))
        return low * (area > 0), np.where(area < 1, high, 1.0)

    return limits


def square_and_add(
    first: tuple[float, tuple], second: tuple[float, tuple], correlation: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Limits of first - second from the estimates and limits of both (MOVER).

    Zou and Donner, Statistics in Medicine 27 (2008), eq. 8, with Wilson's limits Newcombe's (1998) methods 10 for
    independent and paired rates.
    """
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x**2 + y**2 - 2 * correlation * x * y, 0))

    return a - b - distance(a - a_low, b_high - b), a - b + distance(a_high - a, b - b_low)


def p_value(difference: Bounds) -> float:
    """The level at which the interval of a difference just reaches zero, so that test and interval agree."""
    low, high = 0.0, 1.0  # on the scale of -log10(alpha) / 16
    for _ in range(24):
        middle = (low + high) / 2
        lower, upper = difference(10 ** (-16 * middle))
        if lower > 0 or upper < 0:
            low = middle
        else:
            high = middle
    return float(10 ** (-16 * low))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values; NaN is no member of the family. Holm, Scandinavian Journal of Statistics 6 (1979)."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """The least false discovery rate at which each is found; NaN is no member of the family.

    Benjamini and Hochberg, JRSS B 57 (1995), as adjusted p-values.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()][::-1]
    steps = p[order] * len(order) / np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps), 1) if len(order) else steps
    return adjusted
