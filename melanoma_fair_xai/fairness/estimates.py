"""Sensitivity, specificity, balanced accuracy and ROC AUC of a sample, with what each lesion contributes to them.

An estimate carries the influence of every lesion, finite-sample factors included: the sum of squares is its variance,
and sums of products over common lesions are the covariances of two estimates, of two groups that share lesions or of
two models on the same lesions.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, logit, ndtri, stdtrit

from .intervals import clopper_pearson, p_value, perfect_area, square_and_add, wilson
from .sample import Sample


@dataclass(frozen=True)
class Estimate:
    """A value in [0, 1], and the influence (m,) of the lesions whose codes (m,) are `lesions`, sorted."""

    value: float
    lesions: np.ndarray
    influence: np.ndarray

    @property
    def variance(self) -> float:
        return float(self.influence @ self.influence)

    def interval(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """The limits that are reported."""
        return self.bounds(alpha)

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """The limits that differences are built from; NaN unless a subclass knows them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rate(Estimate):
    """A share of decisions; `effective_n` is the number of independent ones that would be as precise."""

    effective_n: float

    def interval(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        return clopper_pearson(self.value, self.effective_n, alpha)

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        # Korn and Graubard's degrees of freedom: the design effect was estimated, too.
        half = np.asarray(alpha, dtype=float) / 2
        shrinkage = (ndtri(half) / stdtrit(max(len(self.lesions) - 1, 1), half)) ** 2
        return wilson(self.value, self.effective_n * shrinkage, alpha)


@dataclass(frozen=True)
class Area(Estimate):
    """An area under the ROC curve; `positives` and `negatives` count lesions."""

    positives: int
    negatives: int

    @property
    def degrees(self) -> int:
        """Of the rarer class: Satterthwaite's are more, and cover less where 10 lesions carry it."""
        return max(min(self.positives, self.negatives) - 1, 1)

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        if self.value in (0, 1):
            low, high = perfect_area(self.positives, self.negatives, alpha)
            return (low, high) if self.value == 1 else (1 - high, 1 - low)
        spread = np.sqrt(self.variance) / (self.value * (1 - self.value))
        half = stdtrit(self.degrees, 1 - np.asarray(alpha, dtype=float) / 2) * spread
        return expit(logit(self.value) - half), expit(logit(self.value) + half)


@dataclass(frozen=True)
class BalancedAccuracy(Estimate):
    """The mean of sensitivity and specificity, whose limits are squared and added."""

    sensitivity: Rate
    specificity: Rate

    def interval(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        return self._mean(self.sensitivity.interval(alpha), self.specificity.interval(alpha))

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        return self._mean(self.sensitivity.bounds(alpha), self.specificity.bounds(alpha))

    def _mean(self, sensitivity: tuple, specificity: tuple) -> tuple[np.ndarray, np.ndarray]:
        # a + b is a - (-b), so the limits of -b change places.
        low, high = specificity
        first, second = (self.sensitivity.value, sensitivity), (-self.specificity.value, (-high, -low))
        low, high = square_and_add(first, second, -correlation(self.sensitivity, self.specificity))
        return low / 2, high / 2


@dataclass(frozen=True)
class Bootstrapped(Estimate):
    """A metric whose lesions are, in name, the bootstrap's draws; each draw's influence is its deviation.

    The limits are Student's around the value, with the standard error of the replicates on the logit scale where the
    metric is `bounded`: percentiles of a few lesions are too narrow, and biased for AUPRC.
    """

    error: float
    degrees: int
    bounded: bool

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        half = stdtrit(self.degrees, 1 - np.asarray(alpha, dtype=float) / 2) * self.error
        if not self.bounded:
            return self.value - half, self.value + half
        return expit(logit(self.value) - half), expit(logit(self.value) + half)


@dataclass(frozen=True)
class Difference(Estimate):
    """first - second, of any two estimates, which may share lesions and be differences themselves."""

    first: Estimate
    second: Estimate

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        limits = self.first.bounds(alpha), self.second.bounds(alpha)
        first, second = (self.first.value, limits[0]), (self.second.value, limits[1])
        return square_and_add(first, second, self.shared)

    @cached_property
    def shared(self) -> float:
        """The correlation of the two, through common lesions."""
        return correlation(self.first, self.second)

    def p_value(self) -> float:
        """The level at which the interval just reaches zero."""
        return p_value(self.bounds)


def subtract(first: Estimate, second: Estimate) -> Difference:
    """The difference of two estimates."""
    lesions, influence = _combine(first, second, -1.0)
    return Difference(first.value - second.value, lesions, influence, first, second)


def _combine(first: Estimate, second: Estimate, sign: float) -> tuple[np.ndarray, np.ndarray]:
    """The lesions of both, and the sum of their influences, the second's times `sign`."""
    if np.array_equal(first.lesions, second.lesions):
        return first.lesions, first.influence + sign * second.influence
    lesions, place = np.unique(np.concatenate([first.lesions, second.lesions]), return_inverse=True)
    return lesions, np.bincount(place, np.concatenate([first.influence, sign * second.influence]))


def covariance(first: Estimate, second: Estimate) -> float:
    """The covariance of two estimates through the lesions that both of them rest on."""
    if np.array_equal(first.lesions, second.lesions):
        return float(first.influence @ second.influence)
    _, a, b = np.intersect1d(first.lesions, second.lesions, assume_unique=True, return_indices=True)
    return float(first.influence[a] @ second.influence[b])


def correlation(first: Estimate, second: Estimate) -> float:
    """The correlation of two estimates; 0 where one of them does not vary."""
    scale = np.sqrt(first.variance * second.variance)
    return float(np.clip(covariance(first, second) / scale, -1, 1)) if scale > 0 else 0.0


def sensitivity(sample: Sample) -> Rate:
    """The share of melanomas that are called so."""
    return rate(sample, sample.labels, sample.decisions)


def specificity(sample: Sample) -> Rate:
    """The share of benign images that are not called melanoma."""
    return rate(sample, ~sample.labels, ~sample.decisions)


def balanced_accuracy(sample: Sample) -> BalancedAccuracy:
    """The mean of sensitivity and specificity."""
    first, second = sensitivity(sample), specificity(sample)
    lesions, influence = _combine(first, second, 1.0)
    return BalancedAccuracy((first.value + second.value) / 2, lesions, influence / 2, first, second)


def rate(sample: Sample, among: np.ndarray, hits: np.ndarray) -> Rate:
    """The share of `hits` (bool) among the rows `among` (bool), clustered by lesion.

    The effective sample size is the number of images over the design effect, which is the variance over that of
    independent images and here at least 1; a rate of 0 or 1 has no variance to learn from and counts lesions.
    Korn and Graubard, Survey Methodology 24 (1998).
    """
    lesions, place = np.unique(sample.lesions[among], return_inverse=True)
    count, images = len(lesions), len(place)
    if images == 0:
        return Rate(np.nan, lesions, np.zeros(0), np.nan)
    sizes = np.bincount(place, minlength=count)
    hit = np.bincount(place, hits[among], minlength=count)
    value = float(hit.sum() / images)
    influence = (hit - value * sizes) / images * np.sqrt(count / max(count - 1, 1))
    variance = influence @ influence
    if value in (0, 1):
        effective = float(count)
    else:
        independent = value * (1 - value) / max(images - 1, 1)
        effective = images / max(variance / independent, 1.0)
    return Rate(value, lesions, influence, max(effective, 1.0))


def roc_auc(sample: Sample) -> Area:
    """The share of pairs of a melanoma and a benign image of one fold that are in the right order, ties half.

    Each lesion's influence sums the placement values of its images, so images of one lesion may depend on each other
    in any way. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997), eq. 4 to 8;
    DeLong et al., Biometrics 44 (1988).
    """
    above, below = sample.keys[sample.labels], sample.keys[~sample.labels]
    lesions, place = np.unique(sample.lesions, return_inverse=True)
    positive_wins, pairs_of_positive = _wins(above, below, sample.fold_width)
    negative_losses, pairs_of_negative = _wins(below, above, sample.fold_width)
    pairs = pairs_of_positive.sum()
    if pairs == 0:
        return Area(np.nan, lesions, np.zeros(len(lesions)), 0, 0)
    value = float(positive_wins.sum() / pairs)
    influence = np.zeros(len(lesions))
    counts = []
    for rows, residuals in (
        (sample.labels, positive_wins - value * pairs_of_positive),
        (~sample.labels, pairs_of_negative - negative_losses - value * pairs_of_negative),
    ):
        sums = np.bincount(place[rows], residuals, minlength=len(lesions)) / pairs
        clusters = len(np.unique(place[rows]))
        sums *= np.sqrt(clusters / max(clusters - 1, 1))
        influence += sums
        counts.append(clusters)
    return Area(value, lesions, influence, *counts)


def _wins(keys: np.ndarray, others: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """How many `others` of its fold each key beats, ties counting half, and how many there are; both (n,)."""
    others = np.sort(others)
    start = keys // width * width
    before = np.searchsorted(others, start)
    beaten = (np.searchsorted(others, keys, "left") + np.searchsorted(others, keys, "right")) / 2 - before
    return beaten, np.searchsorted(others, start + width) - before
