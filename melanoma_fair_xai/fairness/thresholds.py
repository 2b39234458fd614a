"""Thresholds chosen on validation, under many weightings of its lesions, and what decisions at them are worth.

Who compares sensitivities at thresholds that were chosen on validation compares two choices, too: in every replicate
of a joint bootstrap the lesions of validation are drawn, the threshold is chosen again, and the drawn lesions of test
are decided at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .sample import Sample
from .threshold_rules import parse_threshold_rule
from .weighted import WeightedMetrics


class ThresholdChooser:
    """A rule on scores (n,) in [0, 1] and labels (n,) bool of which both are there.

    An image is called positive where score >= threshold. Thresholds stand midway between neighbouring scores, so that
    rounding a score does not change its side.
    - youden: highest sensitivity + specificity - 1 (Youden, Cancer 3:32, 1950), the more sensitive threshold on ties.
    - sensitivity=v: the highest threshold with a sensitivity of at least v.
    - specificity=v: the lowest threshold with a specificity of at least v.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray, rule: str):
        self.name, self.value = parse_threshold_rule(rule)
        self.order = np.argsort(scores, kind="stable")
        self.labels, self.scores = labels[self.order], scores[self.order]
        distinct, first = np.unique(self.scores, return_index=True)
        self.thresholds, self.below = _midpoints(distinct), np.append(first, len(scores))

    def choose(self, weights: np.ndarray) -> np.ndarray:
        """The thresholds (replicates,) under weights (n, replicates) of the images; NaN where a class has none."""
        weights = weights[self.order]
        positives, negatives = (
            np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights * rows[:, None], axis=0)])
            for rows in (self.labels, ~self.labels)
        )
        detected, rejected = (positives[-1] - positives)[self.below], negatives[self.below]
        with np.errstate(invalid="ignore"):
            if self.name == "sensitivity":
                place = (detected / positives[-1] >= self.value).sum(axis=0) - 1
            elif self.name == "specificity":
                place = (rejected / negatives[-1] >= self.value).argmax(axis=0)
            else:
                # Whole numbers, so that ties are ties; argmax takes the first, which is the lowest threshold.
                place = (detected * negatives[-1] + rejected * positives[-1]).argmax(axis=0)
        return np.where((positives[-1] > 0) & (negatives[-1] > 0), self.thresholds[place], np.nan)

    def agrees(self, threshold: float) -> bool:
        """Whether the rule may have given `threshold` on these scores before they were rounded.

        Rounding changes the order of near scores, and with it the place of a threshold: what the rule looks at may
        differ by an image of each class, or a hundredth of them.
        """
        sizes = np.array([self.labels.sum(), (~self.labels).sum()])
        own, other = (
            np.array([(self.scores >= t)[self.labels].sum(), (self.scores < t)[~self.labels].sum()]) / sizes
            for t in (self.choose(np.ones((len(self.scores), 1)))[0], threshold)
        )
        close = np.maximum(1 / sizes, 0.01) + 1e-9
        if self.name == "youden":
            return bool(other.sum() >= own.sum() - close.sum())
        return bool((np.abs(other - own) <= close).all())


def _midpoints(scores: np.ndarray) -> np.ndarray:
    """Thresholds that separate sorted, distinct scores: below all, between neighbours, and above all."""
    top = np.nextafter(1.0, 2.0)
    edges = np.concatenate([[min(0.0, scores[0])], scores, [max(top, np.nextafter(scores[-1], np.inf))]])
    middle = (edges[:-1] + edges[1:]) / 2
    return np.where(middle > edges[:-1], middle, edges[1:])


@dataclass
class ChosenThresholds:
    """How the thresholds of a sample were chosen: a chooser and the codes (n,) of its lesions, by code of the fold."""

    choosers: Sequence[ThresholdChooser]
    lesions: Sequence[np.ndarray]
    _last: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False)

    def drawn_in(self, units: np.ndarray) -> "ChosenThresholds":
        """The same with the units (lesions,) of `drawing_units` for lesions."""
        return replace(self, lesions=[units[codes] for codes in self.lesions])

    def choose(self, weights: np.ndarray) -> np.ndarray:
        """Thresholds (folds, replicates) under weights (lesions, replicates), which all groups of a model ask for."""
        if self._last is None or self._last[0] is not weights:
            parts = zip(self.choosers, self.lesions, strict=True)
            self._last = weights, np.stack([chooser.choose(weights[codes]) for chooser, codes in parts])
        return self._last[1]


class WeightedMetricsAtChosen(WeightedMetrics):
    """`WeightedMetrics` whose decisions are those at the thresholds that are chosen in each replicate that is drawn.

    Those of decisions are of the weights that `drawn` gave last.
    """

    def __init__(self, sample: Sample, chosen: ChosenThresholds):
        super().__init__(sample)
        self.chosen, folds = chosen, sample.keys // sample.fold_width
        self.parts = []  # of each fold and class: the sorted scores, and the places of their lesions
        for fold in np.unique(folds):
            for label in (True, False):
                rows = np.flatnonzero((folds == fold) & (sample.labels == label))
                rows = rows[np.argsort(sample.scores[rows], kind="stable")]
                self.parts.append((fold, label, sample.scores[rows], self.place[rows]))

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        thresholds, own = self.chosen.choose(weights), super().drawn(weights)
        replicates = np.arange(own.shape[1])
        self.counts = {True: np.zeros((2, len(replicates))), False: np.zeros((2, len(replicates)))}
        for fold, label, scores, place in self.parts:
            below = np.concatenate([np.zeros((1, len(replicates))), np.cumsum(own[place], axis=0)])
            passed = below[np.searchsorted(scores, thresholds[fold]), replicates]
            self.counts[label] += [passed, below[-1] - passed]
        missing = np.isnan(thresholds[[fold for fold, *_ in self.parts]]).any(axis=0)
        for counts in self.counts.values():
            counts[:, missing] = np.nan
        return own

    def sensitivity(self, weights: np.ndarray) -> np.ndarray:
        return _share(self.counts[True][1], self.counts[True][0])

    def specificity(self, weights: np.ndarray) -> np.ndarray:
        return _share(self.counts[False][0], self.counts[False][1])

    def ppv(self, weights: np.ndarray) -> np.ndarray:
        return _share(self.counts[True][1], self.counts[False][1])

    def npv(self, weights: np.ndarray) -> np.ndarray:
        return _share(self.counts[False][0], self.counts[True][0])


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return part / (part + rest)
