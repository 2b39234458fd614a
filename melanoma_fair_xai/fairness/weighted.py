"""Metrics of a group under many weightings of its lesions at once.

A lesion bootstrap gives every lesion a weight in every replicate. What a metric needs of the images is summed over
them once, sparsely, so that a replicate costs one product of a small matrix with weights.
"""

from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import expit, logit

from .sample import Sample

LOGIT_CELLS = 128  # distinct logits that recalibration tells apart, each the mean of its cell
SCORE_LIMIT = 1e-6  # scores are kept this far from 0 and 1 where their logit is taken
NEWTON_STEPS = 8
LONGEST_STEP = 2.0  # on the logit scale; Newton's method overshoots where the scores are far off
SETTLED = 1e-4  # the last step of a fit that has converged
CURVE_CELLS = 2000
ECE_BINS = 15
ROUNDING = 1e-9  # what is reached but for rounding is reached


class WeightedMetrics:
    """The metrics of a sample, methods here and of its parts from `weights` (lesions, replicates) to (replicates,).

    The weights follow `lesions`, the sorted codes of the sample's lesions. A value is NaN where it is undefined, as
    sensitivity is without melanomas.
    """

    def __init__(self, sample: Sample):
        self.sample = sample
        self.lesions, self.place = np.unique(sample.lesions, return_inverse=True)
        self.images, self.melanomas = self._sums(np.ones(len(sample))), self._sums(sample.labels)
        self.squares = self._sums((sample.scores - sample.labels) ** 2)
        if sample.decisions is not None:
            self.called, self.found = self._sums(sample.decisions), self._sums(sample.decisions & sample.labels)
            self.passed = self.images - self.melanomas - self.called + self.found

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """Of weights (all lesions, replicates) those of the sample's lesions."""
        return weights[self.lesions]

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.place, values, minlength=len(self.lesions))

    @cached_property
    def ranking(self) -> "Ranking":
        """ROC AUC and AUPRC."""
        return Ranking(self.sample, self.place, len(self.lesions))

    @cached_property
    def recalibration(self) -> "Recalibration":
        """Calibration intercept and slope."""
        return Recalibration(self.sample, self.place, len(self.lesions))

    def sensitivity(self, weights: np.ndarray) -> np.ndarray:
        """The share of melanomas that are called so."""
        return _ratio(self.found, self.melanomas, weights)

    def specificity(self, weights: np.ndarray) -> np.ndarray:
        """The share of benign images that are not called melanoma."""
        return _ratio(self.passed, self.images - self.melanomas, weights)

    def balanced_accuracy(self, weights: np.ndarray) -> np.ndarray:
        """The mean of sensitivity and specificity."""
        return (self.sensitivity(weights) + self.specificity(weights)) / 2

    def ppv(self, weights: np.ndarray) -> np.ndarray:
        """The share of melanomas among the images that are called so."""
        return _ratio(self.found, self.called, weights)

    def npv(self, weights: np.ndarray) -> np.ndarray:
        """The share of benign images among those that are not called melanoma."""
        return _ratio(self.passed, self.images - self.called, weights)

    def brier(self, weights: np.ndarray) -> np.ndarray:
        """The mean squared error of the score."""
        return _ratio(self.squares, self.images, weights)

    def ece(self, weights: np.ndarray) -> np.ndarray:
        """Expected calibration error: the mean distance of score and share of melanomas over 15 bins of equal width.

        Guo et al. (ICML 2017), eq. 3.
        """
        cell = np.clip((self.sample.scores * ECE_BINS).astype(int), 0, ECE_BINS - 1)
        shape = (ECE_BINS, len(self.lesions))
        gaps = sparse.csr_matrix((self.sample.scores - self.sample.labels, (cell, self.place)), shape)
        return np.abs(gaps @ weights).sum(axis=0) / (self.images @ weights)


def _ratio(above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted sum of one count of the lesions (lesions,) over that of another; NaN for 0 / 0."""
    above, below = np.stack([above, below]) @ weights
    with np.errstate(invalid="ignore"):
        return above / below


class Ranking:
    """ROC AUC and AUPRC from the weight of the positives at each of their scores and of the negatives between them."""

    def __init__(self, sample: Sample, place: np.ndarray, count: int, most: int | None = None):
        self.sample, self.place, self.count = sample, place, count
        keys, width = sample.keys, sample.fold_width
        # An edge at the start of every fold holds what lies below its first positive.
        positives, starts = np.unique(keys[sample.labels]), np.unique(keys // width * width)
        every = max(1, -(-len(positives) // most)) if most else 1
        self.edges = np.unique(np.concatenate([positives[::every], starts]))
        self.start = np.searchsorted(self.edges, self.edges // width * width)
        self.end = np.searchsorted(self.edges, (self.edges // width + 1) * width)
        edge = np.searchsorted(self.edges, keys, "right") - 1
        # What lies between two edges is taken as tied where not every positive score has one.
        tied = self.edges[edge] == keys if every == 1 else np.ones(len(keys), dtype=bool)

        def matrix(rows: np.ndarray) -> sparse.csr_matrix:
            ones = np.ones(rows.sum())
            return sparse.csr_matrix((ones, (edge[rows], place[rows])), (len(self.edges), count))

        self.positive, self.tied = matrix(sample.labels), matrix(~sample.labels & tied)
        self.between = matrix(~sample.labels & ~tied)

    def _counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """At each edge: positives, tied negatives, and the sums of both kinds up to and without it."""
        positive, tied = self.positive @ weights, self.tied @ weights
        return positive, tied, _running(positive), _running(tied + self.between @ weights)

    def roc_auc(self, weights: np.ndarray) -> np.ndarray:
        """The share of pairs of a melanoma and a benign image of one fold that are in the right order, ties half."""
        positive, tied, _, negatives = self._counts(weights)
        start, end = negatives[self.start], negatives[self.end]
        wins = (positive * (negatives[:-1] - start + tied / 2)).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return wins / (positive * (end - start)).sum(axis=0)

    def auprc(self, weights: np.ndarray) -> np.ndarray:
        """Average precision: the mean over melanomas of the precision, in their fold, at their score.

        Of very many scores, replicates take those between two of CURVE_CELLS as one, shifted by as much as that is off
        for the whole sample.
        """
        if self.coarse is None:
            return self._average_precision(weights)
        return self.coarse._average_precision(weights) + self._shift

    @cached_property
    def coarse(self) -> "Ranking | None":
        if len(self.edges) <= 2 * CURVE_CELLS:
            return None
        return Ranking(self.sample, self.place, self.count, CURVE_CELLS)

    @cached_property
    def _shift(self) -> float:
        ones = np.ones((self.count, 1))
        return float((self._average_precision(ones) - self.coarse._average_precision(ones))[0])

    def _average_precision(self, weights: np.ndarray) -> np.ndarray:
        positive, _, positives, negatives = self._counts(weights)
        right = positives[self.end] - positives[:-1]
        wrong = negatives[self.end] - negatives[:-1]
        with np.errstate(invalid="ignore"):
            precision = np.where(positive > 0, right / (right + wrong), 0.0)
            return (positive * precision).sum(axis=0) / positives[-1]

    def sensitivity_at(self, specificity: float, weights: np.ndarray) -> np.ndarray:
        """The share of melanomas called so at each fold's lowest threshold with a specificity of at least this.

        A fold without benign images has none, and counts for nothing; likewise below.
        """
        positive, _, _, negatives = self._counts(weights)
        start, end = negatives[self.start], negatives[self.end]
        with np.errstate(invalid="ignore"):
            called = (negatives[:-1] - start) / (end - start) >= specificity - ROUNDING
            return (positive * called).sum(axis=0) / (positive * (end > start)).sum(axis=0)

    def specificity_at(self, sensitivity: float, weights: np.ndarray) -> np.ndarray:
        """The share of benign images passed at each fold's highest threshold with a sensitivity of at least this."""
        _, _, positives, negatives = self._counts(weights)
        passed, benign = np.zeros((2, weights.shape[1]))
        for start, end in np.unique(np.stack([self.start, self.end], axis=1), axis=0):
            melanomas = positives[end] - positives[start]
            with np.errstate(invalid="ignore"):
                found = (positives[end] - positives[start:end]) / melanomas
            place = np.maximum((found >= sensitivity - ROUNDING).sum(axis=0) - 1, 0)
            below = np.take_along_axis(negatives[start:end] - negatives[start], place[None], axis=0)[0]
            passed += below * (melanomas > 0)
            benign += (negatives[end] - negatives[start]) * (melanomas > 0)
        with np.errstate(invalid="ignore"):
            return passed / benign


def _running(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])


class Recalibration:
    """Logistic recalibration: label ~ intercept + slope * logit(score).

    The slope is of that fit, and the intercept of the fit with slope 1 (calibration in the large); 0 and 1 are ideal.
    Both are NaN where the fit does not settle, as on classes that separate. Replicates take the means of cells for the
    logits in them, shifted by as much as that is off for the whole sample, whose own fit is exact. Van Calster et al.,
    "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17 (2019).
    """

    def __init__(self, sample: Sample, place: np.ndarray, count: int):
        x = logit(np.clip(sample.scores, SCORE_LIMIT, 1 - SCORE_LIMIT))
        values, cell = np.unique(x, return_inverse=True)
        if len(values) > LOGIT_CELLS:
            cell = np.minimum((x - values[0]) / (values[-1] - values[0]) * LOGIT_CELLS, LOGIT_CELLS - 1).astype(int)
            _, cell = np.unique(cell, return_inverse=True)
        self.x = (np.bincount(cell, x) / np.bincount(cell))[:, None]  # the mean logit of each cell
        self.centre, self.scale = x.mean(), x.std() or 1.0
        shape = (len(self.x), count)
        self.images = sparse.csr_matrix((np.ones(len(x)), (cell, place)), shape)
        labels = sample.labels
        self.melanomas = sparse.csr_matrix((np.ones(labels.sum()), (cell[labels], place[labels])), shape)
        ones = np.ones((count, 1))
        self.start, self.shift = [np.zeros(1), np.zeros(2)], [np.zeros((1, 1)), np.zeros((2, 1))]
        whole = x[:, None], np.ones((len(x), 1)), labels[:, None].astype(float)
        for scaled in (False, True):
            exact, binned = self._newton(*whole, scaled, 60), self._fit(ones, scaled, 60)
            self.start[scaled], self.shift[scaled] = binned[:, 0], exact - binned

    def intercept(self, weights: np.ndarray) -> np.ndarray:
        return self._fit(weights, False, NEWTON_STEPS)[0]

    def slope(self, weights: np.ndarray) -> np.ndarray:
        return self._fit(weights, True, NEWTON_STEPS)[1] / self.scale

    def _fit(self, weights: np.ndarray, scaled: bool, steps: int) -> np.ndarray:
        """Of the cells, on all replicates; (1 or 2, replicates)."""
        fit = self._newton(self.x, self.images @ weights, self.melanomas @ weights, scaled, steps)
        return fit + self.shift[scaled]

    def _newton(
        self, x: np.ndarray, images: np.ndarray, melanomas: np.ndarray, scaled: bool, steps: int
    ) -> np.ndarray:
        """Newton's method from the fit to the whole sample: logits (k, 1), counts (k, replicates)."""
        x = (x - self.centre) / self.scale if scaled else x
        powers = np.stack([np.ones(len(x)), x[:, 0], x[:, 0] ** 2])
        parameters = np.repeat(self.start[scaled][:, None], images.shape[1], axis=1)
        with np.errstate(all="ignore"):
            for _ in range(steps):
                p = expit(parameters[0] + parameters[1] * x) if scaled else expit(parameters[0] + x)
                expected = images * p
                g0, g1 = powers[:2] @ (melanomas - expected)
                h00, h01, h11 = powers @ (expected * (1 - p))
                if scaled:
                    step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / (h00 * h11 - h01**2)
                else:
                    step = g0[None] / h00
                parameters += np.clip(step, -LONGEST_STEP, LONGEST_STEP)
                if not (np.abs(step) > SETTLED).any():
                    break
            return np.where(np.abs(step).max(axis=0) < SETTLED, parameters, np.nan)
