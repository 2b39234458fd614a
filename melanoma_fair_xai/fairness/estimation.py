"""Every metric of every group as an estimate, bootstrapped ones from the same draws of lesions."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy.special import logit

from .estimates import Bootstrapped, Estimate, balanced_accuracy, rate, roc_auc, sensitivity, specificity
from .resampling import bootstrap_weights
from .sample import Sample
from .weighted import WeightedMetrics

CLOSED_FORM = {
    "roc_auc": roc_auc,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "balanced_accuracy": balanced_accuracy,
}
TITLES = {
    "roc_auc": "ROC AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "ppv": "PPV",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
    "ece": "ECE",
}
METRICS = tuple(TITLES)
AT_THRESHOLD = ("sensitivity", "specificity", "balanced_accuracy", "ppv")
UNBOUNDED = ("calibration_intercept", "calibration_slope")
MINIMUM_LESIONS = 10
MINIMUM_OF_METRIC = {"auprc": 20, "calibration_slope": 20}  # with 10 their intervals are too wide: fairness.md

Key = TypeVar("Key", bound=Hashable)


def count_lesions(sample: Sample) -> tuple[int, int]:
    """How many lesions carry a melanoma, and how many a benign image."""
    return len(np.unique(sample.lesions[sample.labels])), len(np.unique(sample.lesions[~sample.labels]))


def minimum_lesions(metric: str) -> int:
    """The number of lesions of a class below which a metric is not estimable."""
    return MINIMUM_OF_METRIC.get(metric, MINIMUM_LESIONS)


def is_estimable(metric: str, melanoma_lesions: int, benign_lesions: int) -> bool:
    """Whether enough lesions carry each class that the metric needs: one for sensitivity or specificity, else both."""
    needed = {"sensitivity": melanoma_lesions, "specificity": benign_lesions}
    return needed.get(metric, min(melanoma_lesions, benign_lesions)) >= minimum_lesions(metric)


def estimate_parts(
    parts: Mapping[Key, Sample], strata: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> dict[Key, dict[str, Estimate]]:
    """The estimates of each part that its lesions allow, in the order of `METRICS` (without ECE).

    `strata` are those of all lesions, by code, within which the bootstrap draws: parts that share lesions, and models
    on the same lesions, see the same draws, so that differences of bootstrapped metrics are right, too.
    """
    counts = {key: count_lesions(part) for key, part in parts.items()}
    weighted = {key: WeightedMetrics(part) for key, part in parts.items() if is_estimable("brier", *counts[key])}
    blocks: dict[Key, list[dict[str, np.ndarray]]] = {key: [] for key in weighted}
    if weighted:
        for weights in bootstrap_weights(strata, n_resamples, rng):
            for key, metrics in weighted.items():
                blocks[key].append(metrics.bootstrapped(weights[metrics.lesions]))
    estimates: dict[Key, dict[str, Estimate]] = {}
    for key, part in parts.items():
        estimates[key] = {
            name: function(part)
            for name, function in CLOSED_FORM.items()
            if is_estimable(name, *counts[key]) and (part.thresholds is not None or name not in AT_THRESHOLD)
        }
        if key in weighted:
            values = weighted[key].bootstrapped(np.ones((len(weighted[key].lesions), 1)))
            replicates = {name: np.concatenate([block[name] for block in blocks[key]]) for name in values}
            for name, value in values.items():
                if not is_estimable(name, *counts[key]):
                    continue
                estimate = bootstrapped(part, name, float(value[0]), replicates[name], min(counts[key]) - 1)
                if estimate is not None:
                    estimates[key][name] = estimate
    return estimates


def bootstrapped(part: Sample, name: str, value: float, replicates: np.ndarray, degrees: int) -> Estimate | None:
    """An estimate from its replicates (n_resamples,); None if the value, or over a twentieth of them, is missing.

    A PPV of 0 or 1 does not vary in the bootstrap, so it is taken as a rate on the lesions that are called positive.
    """
    finite = np.isfinite(replicates)
    if not np.isfinite(value) or finite.mean() < 0.95:
        return None
    if name == "ppv" and value in (0, 1):
        return rate(part, part.decisions, part.labels)
    replicates = np.where(finite, replicates, replicates[finite].mean())
    if name in UNBOUNDED:
        error = replicates.std()
    elif value in (0, 1):
        error = np.nan
    else:  # replicates of exactly 0 or 1 have no logit
        error = logit(np.clip(replicates, value / 1000, 1 - (1 - value) / 1000)).std()
    influence = (replicates - replicates.mean()) / np.sqrt(len(replicates))
    draws = np.arange(-len(replicates), 0)  # no lesion has a negative code
    return Bootstrapped(value, draws, influence, float(error), degrees, name not in UNBOUNDED)
