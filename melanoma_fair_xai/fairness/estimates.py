"""Sensitivity, specificity, balanced accuracy and ROC AUC of a sample, with what each lesion contributes to them.

An estimate carries the influence of every lesion, finite-sample factors included: the sum of squares is its variance,
and sums of products over common lesions are the covariances of two estimates, of two groups that share lesions or of
two models on the same lesions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import expit, logit, ndtri, stdtrit

from .intervals import Bounds, binormal_variance, clopper_pearson, p_value, score_limits, square_and_add, wilson
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

    @property
    def standard_error(self) -> float:
        """What tests take; subclasses do not let it fall below that of as many independent images."""
        return float(np.sqrt(self.variance))

    def interval(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """The limits that are reported."""
        return self.bounds(alpha)

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """The limits that differences are built from; NaN unless a subclass knows them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rate(Estimate):
    """A share of decisions on `images`; `effective_n` independent ones would be as precise.

    `clusters` is Kish's effective number of lesions.
    """

    images: int
    effective_n: float
    clusters: float

    @property
    def degrees(self) -> float:
        return max(self.clusters - 1, 1)

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.value * (1 - self.value) / self.effective_n))

    def interval(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        return self._limits(clopper_pearson, stdtrit(max(self.images - 1, 1), np.asarray(alpha) / 2), alpha)

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        return self._limits(wilson, ndtri(np.asarray(alpha) / 2), alpha)

    def _limits(
        self, method: Callable, quantile: np.ndarray, alpha: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of `method`, with Korn and Graubard's degrees of freedom: the design effect was estimated, too.

        One or two images that were missed say little of the design effect, so that no limit is nearer to 0 or 1 than
        where no image is missed, or none found, and every lesion counts once.
        """
        if self.value in (0, 1):
            return method(self.value, self.clusters, alpha)
        lowest, highest = method(1.0, self.clusters, alpha)[0], method(0.0, self.clusters, alpha)[1]
        shrinkage = (quantile / stdtrit(self.degrees, np.asarray(alpha) / 2)) ** 2
        low, high = method(self.value, self.effective_n * shrinkage, alpha)
        return np.minimum(low, lowest), np.maximum(high, highest)


@dataclass(frozen=True)
class Area(Estimate):
    """An area under the ROC curve. `pairs` and `others` as in `binormal_variance`.

    `positives` and `negatives` are Kish's effective numbers of lesions.
    """

    pairs: float
    others: float
    positives: float
    negatives: float

    @property
    def degrees(self) -> float:
        """Of the rarer class: Satterthwaite's are more, and cover less where 10 lesions carry it."""
        return max(min(self.positives, self.negatives) - 1, 1)

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(max(self.variance, binormal_variance(ndtri(self.value), self.pairs, self.others))))

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        quantile = stdtrit(self.degrees, 1 - np.asarray(alpha, dtype=float) / 2)
        (low, high), (perfect, _), (_, reversed_) = (limits(quantile) for limits in self._limits)
        return np.minimum(low, perfect), np.maximum(high, reversed_)

    @cached_property
    def _limits(self) -> list[Bounds]:
        """Of the area, of 1 and of 0: these two count every lesion once, as there is no variance to learn from."""
        lesions = self.positives * self.negatives, self.positives + self.negatives - 2
        perfect = [score_limits(area, *lesions) for area in (1.0, 0.0)]
        if self.value in (0, 1):
            return [perfect[self.value == 0], *perfect]
        independent = binormal_variance(ndtri(self.value), self.pairs, self.others)
        return [score_limits(self.value, self.pairs, self.others, max(self.variance / independent, 1.0)), *perfect]


@dataclass(frozen=True)
class BalancedAccuracy(Estimate):
    """The mean of sensitivity and specificity, whose limits are squared and added."""

    sensitivity: Rate
    specificity: Rate

    @property
    def degrees(self) -> float:
        return min(self.sensitivity.degrees, self.specificity.degrees)

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
    degrees: float
    bounded: bool

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        half = stdtrit(self.degrees, 1 - np.asarray(alpha, dtype=float) / 2) * self.error
        if not self.bounded:
            return self.value - half, self.value + half
        return expit(logit(self.value) - half), expit(logit(self.value) + half)


@dataclass(frozen=True)
class Difference(Estimate):
    """first - second, of any two estimates, which may share lesions and be differences themselves.

    The limits of both are squared and added, but for two areas on the same lesions, two models, say. These are so
    correlated that the difference has Student's t of its own: DeLong et al., Biometrics 44 (1988).
    """

    first: Estimate
    second: Estimate

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        if self._paired_areas:
            degrees = min(self.first.degrees, self.second.degrees)
            half = stdtrit(degrees, 1 - np.asarray(alpha, dtype=float) / 2) * np.sqrt(self.variance)
            return np.maximum(self.value - half, -1), np.minimum(self.value + half, 1)
        limits = self.first.bounds(alpha), self.second.bounds(alpha)
        first, second = (self.first.value, limits[0]), (self.second.value, limits[1])
        return square_and_add(first, second, self.shared)

    @property
    def _paired_areas(self) -> bool:
        areas = isinstance(self.first, Area) and isinstance(self.second, Area)
        inside = areas and 0 < self.first.value < 1 and 0 < self.second.value < 1
        return inside and np.array_equal(self.first.lesions, self.second.lesions)

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


def correlations(estimates: Sequence[Estimate]) -> np.ndarray:
    """`correlation` of each of k estimates with each, of one that does not vary with itself 1; (k, k)."""
    starts = np.cumsum([0, *(len(estimate.lesions) for estimate in estimates)])
    influence, lesions = (np.concatenate([getattr(e, name) for e in estimates]) for name in ("influence", "lesions"))
    influences = sparse.csr_matrix((influence, np.unique(lesions, return_inverse=True)[1], starts))
    covariances = (influences @ influences.T).toarray()
    scale = np.sqrt(np.outer(covariances.diagonal(), covariances.diagonal()))
    result = np.divide(covariances, scale, out=np.zeros_like(scale), where=scale > 0)
    np.fill_diagonal(result, 1)
    return result


def kish(sizes: np.ndarray) -> float:
    """The number of clusters of one size that tell as much as clusters of these `sizes`; 0 for none.

    (sum of sizes)^2 / sum of squares, as if the images of a cluster were all alike. Kish, Survey Sampling (1965),
    section 11.7.
    """
    squares = np.square(sizes, dtype=float).sum()
    return float(np.sum(sizes) ** 2 / squares) if squares else 0.0


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
    independent images and here at least 1; a rate of 0 or 1 has no variance to learn from and counts lesions, by
    Kish's effective number. Korn and Graubard, Survey Methodology 24 (1998).
    """
    lesions, place = np.unique(sample.lesions[among], return_inverse=True)
    count, images = len(lesions), len(place)
    if images == 0:
        return Rate(np.nan, lesions, np.zeros(0), 0, np.nan, 0.0)
    sizes = np.bincount(place, minlength=count)
    clusters = kish(sizes)
    hit = np.bincount(place, hits[among], minlength=count)
    value = float(hit.sum() / images)
    influence = (hit - value * sizes) / images * np.sqrt(count / max(count - 1, 1))
    variance = influence @ influence
    if value in (0, 1):
        effective = clusters
    else:
        independent = value * (1 - value) / max(images - 1, 1)
        effective = images / max(variance / independent, 1.0)
    return Rate(value, lesions, influence, images, max(effective, 1.0), clusters)


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
        return Area(np.nan, lesions, np.zeros(len(lesions)), *[np.nan] * 4)
    value = float(positive_wins.sum() / pairs)
    influence = np.zeros(len(lesions))
    effective = []
    for rows, residuals in (
        (sample.labels, positive_wins - value * pairs_of_positive),
        (~sample.labels, pairs_of_negative - negative_losses - value * pairs_of_negative),
    ):
        sums = np.bincount(place[rows], residuals, minlength=len(lesions)) / pairs
        sizes = np.bincount(place[rows])
        clusters = np.count_nonzero(sizes)
        influence += sums * np.sqrt(clusters / max(clusters - 1, 1))
        effective.append(kish(sizes))
    others = (np.square(pairs_of_positive).sum() + np.square(pairs_of_negative).sum()) / pairs - 2
    return Area(value, lesions, influence, float(pairs), float(others), *effective)


def _wins(keys: np.ndarray, others: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """How many `others` of its fold each key beats, ties counting half, and how many there are; both (n,)."""
    others = np.sort(others)
    start = keys // width * width
    before = np.searchsorted(others, start)
    beaten = (np.searchsorted(others, keys, "left") + np.searchsorted(others, keys, "right")) / 2 - before
    return beaten, np.searchsorted(others, start + width) - before
