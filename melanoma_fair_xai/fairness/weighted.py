"""Metrics of a group under many weightings of its lesions at once.

A lesion bootstrap and a permutation of lesions both give every lesion a weight in every replicate. What a metric needs
of the images is summed over them once, sparsely, so that a replicate costs one product of a small matrix with weights.
"""

import numpy as np
from scipy import sparse
from scipy.special import expit, logit

from .sample import Sample

LOGIT_CELLS = 128  # distinct logits that recalibration tells apart, each the mean of its cell
SCORE_LIMIT = 1e-6  # scores are kept this far from 0 and 1 where their logit is taken
NEWTON_STEPS = 8
LONGEST_STEP = 2.0  # on the logit scale; Newton's method overshoots where the scores are far off
SETTLED = 1e-4  # the last step of a fit that has converged
ECE_BINS = 15


class WeightedMetrics:
    """The metrics of a sample; `weights` (lesions, replicates) follow `lesions`, the sorted codes of its lesions."""

    def __init__(self, sample: Sample):
        self.lesions, place = np.unique(sample.lesions, return_inverse=True)
        self.sums = _sums(sample, place, len(self.lesions))
        self.ranking = _Ranking(sample, place, len(self.lesions))
        self.calibration = _Recalibration(sample, place, len(self.lesions))

    def rates(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Brier score, and with decisions sensitivity, specificity, balanced accuracy and PPV; each (replicates,)."""
        images, melanomas, squares, *decided = self.sums @ weights
        with np.errstate(invalid="ignore", divide="ignore"):
            values = {"brier": squares / images}
            if decided:
                called, found = decided
                values["sensitivity"] = found / melanomas
                values["specificity"] = 1 - (called - found) / (images - melanomas)
                values["balanced_accuracy"] = (values["sensitivity"] + values["specificity"]) / 2
                values["ppv"] = found / called
        return values

    def bootstrapped(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that has no interval in closed form."""
        rates = self.rates(weights)
        intercept, slope = self.calibration(weights)
        values = {"ppv": rates["ppv"]} if "ppv" in rates else {}
        return values | {
            "auprc": self.ranking.auprc(weights),
            "brier": rates["brier"],
            "calibration_intercept": intercept,
            "calibration_slope": slope,
        }


def _sums(sample: Sample, place: np.ndarray, count: int) -> np.ndarray:
    """Per lesion: images, melanomas, squared errors; with decisions positive calls and right ones; (k, lesions)."""
    columns = [np.ones(len(sample)), sample.labels, (sample.scores - sample.labels) ** 2]
    decisions = sample.decisions
    if decisions is not None:
        columns += [decisions, decisions & sample.labels]
    return np.stack([np.bincount(place, column, minlength=count) for column in columns])


class _Ranking:
    """ROC AUC and AUPRC from the weight of the positives at each of their scores and of the negatives between them."""

    def __init__(self, sample: Sample, place: np.ndarray, count: int):
        keys, width = sample.keys, sample.fold_width
        # An edge at the start of every fold holds what lies below its first positive.
        self.edges = np.unique(np.concatenate([keys[sample.labels], keys // width * width]))
        self.start = np.searchsorted(self.edges, self.edges // width * width)
        self.end = np.searchsorted(self.edges, (self.edges // width + 1) * width)
        edge = np.searchsorted(self.edges, keys, "right") - 1
        tied = self.edges[edge] == keys

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
        """(replicates,); NaN without a pair."""
        positive, tied, _, negatives = self._counts(weights)
        start, end = negatives[self.start], negatives[self.end]
        wins = (positive * (negatives[:-1] - start + tied / 2)).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return wins / (positive * (end - start)).sum(axis=0)

    def auprc(self, weights: np.ndarray) -> np.ndarray:
        """Average precision (replicates,): the mean over melanomas of the precision, in their fold, at their score."""
        positive, _, positives, negatives = self._counts(weights)
        right = positives[self.end] - positives[:-1]
        wrong = negatives[self.end] - negatives[:-1]
        with np.errstate(invalid="ignore"):
            precision = np.where(positive > 0, right / (right + wrong), 0.0)
            return (positive * precision).sum(axis=0) / positives[-1]


def _running(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])


class _Recalibration:
    """Logistic recalibration: label ~ intercept + slope * logit(score).

    The slope is of that fit, and the intercept of the fit with slope 1 (calibration in the large); 0 and 1 are ideal.
    Van Calster et al., "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17 (2019).
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
        self.start = [np.zeros(1), np.zeros(2)]
        self.start = [self._fit(ones, scaled, 60)[:, 0] for scaled in (False, True)]

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts and slopes, each (replicates,); NaN where a fit does not settle, as on classes that separate."""
        return self._fit(weights, False, NEWTON_STEPS)[0], self._fit(weights, True, NEWTON_STEPS)[1] / self.scale

    def _fit(self, weights: np.ndarray, scaled: bool, steps: int) -> np.ndarray:
        """Newton's method on all replicates, from the fit to the whole sample; (1 or 2, replicates)."""
        images, melanomas = self.images @ weights, self.melanomas @ weights
        x = (self.x - self.centre) / self.scale if scaled else self.x
        powers = np.stack([np.ones(len(x)), x[:, 0], x[:, 0] ** 2])
        parameters = np.repeat(self.start[scaled][:, None], weights.shape[1], axis=1)
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


def expected_calibration_error(sample: Sample) -> float:
    """The mean distance of score and share of melanomas over 15 bins of equal width. Guo et al. (ICML 2017), eq. 3."""
    cell = np.clip((sample.scores * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    gaps = np.bincount(cell, sample.scores - sample.labels)
    return float(np.abs(gaps).sum() / len(sample))
