"""The metrics: one row each, which estimation, tables, figures, comparisons and cards read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import estimates
from .estimates import Estimate, kish
from .sample import Sample
from .weighted import WeightedMetrics

MINIMUM_LESIONS = 10


@dataclass(frozen=True)
class Metric:
    """What there is to know of a metric.

    Attributes:
        title: its name in tables and figures.
        value: its values (replicates,) under weights (lesions, replicates) of the lesions; NaN where there is none.
        better: which values are better, None where neither are.
        closed_form: the estimate with its interval; without one the interval is that of a lesion bootstrap of `value`.
        point_estimate: it has no interval, nor contrasts.
        at_threshold: it is of decisions.
        with_prevalence: it depends on the prevalence, so that groups are not ranked by it.
        bounded: it lies in [0, 1], and its bootstrap's interval is made on the logit scale.
        counted: the images (bool) whose lesions the value is a share of, such as those that are called melanoma: there
            must be `minimum` of them, and a bootstrapped value of exactly 0 or 1, which does not vary from draw to
            draw, is judged by them.
        classes: the labels of which `minimum` lesions are needed.
        minimum: the number of lesions below which it is not estimable; Kish's effective number may be half of that.
        tested: its contrasts between primary groups belong to the family that Holm's procedure adjusts.
        ideal: of a measure of calibration, the value when scores are right.
    """

    title: str
    value: Callable[[WeightedMetrics, np.ndarray], np.ndarray]
    better: Literal["higher", "lower"] | None
    closed_form: Callable[[Sample], Estimate] | None = None
    point_estimate: bool = False
    at_threshold: bool = False
    with_prevalence: bool = False
    bounded: bool = True
    counted: Callable[[Sample], np.ndarray] = lambda sample: sample.labels
    classes: tuple[int, ...] = (0, 1)
    minimum: int = MINIMUM_LESIONS
    tested: bool = False
    ideal: float | None = None


# With 10 lesions the intervals of AUPRC and of the calibration slope are too wide: benchmarks/fairness.md.
METRICS = {
    "roc_auc": Metric("ROC AUC", lambda m, w: m.ranking.roc_auc(w), "higher", estimates.roc_auc, tested=True),
    "sensitivity": Metric(
        "sensitivity", lambda m, w: m.sensitivity(w), "higher", estimates.sensitivity, at_threshold=True, classes=(1,),
        tested=True,
    ),
    "specificity": Metric(
        "specificity", lambda m, w: m.specificity(w), "higher", estimates.specificity, at_threshold=True,
        counted=lambda sample: ~sample.labels, classes=(0,),
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy", lambda m, w: m.balanced_accuracy(w), "higher", estimates.balanced_accuracy,
        at_threshold=True,
    ),
    "ppv": Metric(
        "PPV", lambda m, w: m.ppv(w), "higher", at_threshold=True, with_prevalence=True,
        counted=lambda sample: sample.decisions,
    ),
    "npv": Metric(
        "NPV", lambda m, w: m.npv(w), "higher", at_threshold=True, with_prevalence=True,
        counted=lambda sample: ~sample.decisions,
    ),
    "auprc": Metric("AUPRC", lambda m, w: m.ranking.auprc(w), "higher", with_prevalence=True, minimum=20),
    "brier": Metric("Brier score", lambda m, w: m.brier(w), "lower", with_prevalence=True, ideal=0),
    "calibration_intercept": Metric(
        "calibration intercept", lambda m, w: m.recalibration.intercept(w), None, bounded=False, ideal=0
    ),
    "calibration_slope": Metric(
        "calibration slope", lambda m, w: m.recalibration.slope(w), None, bounded=False, minimum=20, ideal=1
    ),
    "ece": Metric("ECE", lambda m, w: m.ece(w), "lower", point_estimate=True, ideal=0),
}  # fmt: skip

FIXED = 0.9  # the specificity, or sensitivity, at which models with thresholds of their own are compared
# Of comparisons only. A quantile of 10 lesions is one lesion.
AT_FIXED = {
    "sensitivity_at_specificity": Metric(
        f"sensitivity at specificity {FIXED:g}", lambda m, w: m.ranking.sensitivity_at(FIXED, w), "higher",
        minimum=20, tested=True,
    ),
    "specificity_at_sensitivity": Metric(
        f"specificity at sensitivity {FIXED:g}", lambda m, w: m.ranking.specificity_at(FIXED, w), "higher",
        counted=lambda sample: ~sample.labels, minimum=20, tested=True,
    ),
}  # fmt: skip


def titles(which: Callable[[Metric], bool], metrics: Mapping[str, Metric] = METRICS) -> str:
    """The titles of the metrics that are `which`, in a sentence: `ROC AUC, PPV and ECE`."""
    *first, last = [metric.title for metric in metrics.values() if which(metric)]
    return f"{', '.join(first)} and {last}" if first else last


def count_lesions(sample: Sample) -> tuple[int, int]:
    """How many lesions carry a benign image, and how many a melanoma."""
    return len(np.unique(sample.lesions[~sample.labels])), len(np.unique(sample.lesions[sample.labels]))


def effective_lesions(sample: Sample) -> tuple[float, float]:
    """The same lesions by Kish's effective number, which is less where a few lesions have most of the images."""
    benign, melanoma = (kish(np.bincount(sample.lesions[rows])) for rows in (~sample.labels, sample.labels))
    return benign, melanoma


def applicable(sample: Sample, metrics: Mapping[str, Metric] = METRICS) -> list[str]:
    """All metrics, or without thresholds those that need none."""
    return [name for name, metric in metrics.items() if sample.thresholds is not None or not metric.at_threshold]


def estimable(sample: Sample, metrics: Mapping[str, Metric] = METRICS) -> list[str]:
    """The applicable metrics for which enough lesions carry each class, and each call, that they need."""
    lesions = np.minimum(count_lesions(sample), 2 * np.array(effective_lesions(sample)))

    def enough(metric: Metric) -> bool:
        carried = lesions[list(metric.classes)].min()
        if metric.at_threshold and not metric.closed_form:
            carried = min(carried, len(np.unique(sample.lesions[metric.counted(sample)])))
        return carried >= metric.minimum

    return [name for name in applicable(sample, metrics) if enough(metrics[name])]


def point_values(sample: Sample, names: Iterable[str]) -> dict[str, float]:
    """Metrics of all images of a sample, however few: NaN only where they are undefined."""
    weighted = WeightedMetrics(sample)
    ones = np.ones((len(weighted.lesions), 1))
    return {name: float(METRICS[name].value(weighted, ones)[0]) for name in names}
