"""Every metric of every group as an estimate, bootstrapped ones from the same draws of lesions."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import numpy as np
from scipy.special import logit

from .estimates import Bootstrapped, Estimate, rate
from .metrics import METRICS, Metric, effective_lesions, estimable
from .resampling import bootstrap_weights, drawing_units
from .sample import Sample
from .thresholds import ChosenThresholds, WeightedMetricsAtChosen
from .weighted import WeightedMetrics

Key = TypeVar("Key", bound=Hashable)


def estimate_parts(
    parts: Mapping[Key, Sample],
    strata: np.ndarray,
    n_resamples: int,
    rng: np.random.Generator,
    metrics: Mapping[str, Metric] = METRICS,
    chosen: Mapping[Key, ChosenThresholds] | None = None,
) -> dict[Key, dict[str, Estimate]]:
    """The estimates of each part that its lesions allow, all with an interval, in the order of `metrics`.

    Without replicates there is none of a metric without a closed form.

    Metrics of decisions are conditional on the thresholds, but for parts whose thresholds `chosen` chooses again.

    `strata` are those of all lesions, by code, within which the bootstrap draws: parts that share lesions, and models
    on the same lesions, see the same draws, so that differences of bootstrapped metrics are right, too.
    """
    chosen = chosen or {}
    names = {
        key: [n for n in estimable(part, metrics) if not metrics[n].point_estimate] for key, part in parts.items()
    }
    drawn = {
        key: [n for n in names[key] if not metrics[n].closed_form or metrics[n].at_threshold and key in chosen]
        for key in parts
    }
    units, strata = drawing_units(strata, rng)
    rules = {id(known): known.drawn_in(units) for known in chosen.values()}
    weighted = {}
    for key in [key for key in parts if drawn[key]]:
        part = replace(parts[key], lesions=units[parts[key].lesions])
        known = rules[id(chosen[key])] if key in chosen else None
        weighted[key] = WeightedMetricsAtChosen(part, known) if known else WeightedMetrics(part)
    blocks: dict[Key, dict[str, list[np.ndarray]]] = {key: {name: [] for name in drawn[key]} for key in parts}
    if weighted:
        whole = np.ones((len(strata), 1))  # the first weighting: the value itself
        for weights in chain([whole], bootstrap_weights(strata, n_resamples, rng)):
            for key, of_part in weighted.items():
                own = of_part.drawn(weights)
                for name, values in blocks[key].items():
                    values.append(metrics[name].value(of_part, own))
    estimates: dict[Key, dict[str, Estimate]] = {}
    for key, part in parts.items():
        estimates[key] = {}
        for name in names[key]:
            metric = metrics[name]
            if name not in drawn[key]:
                estimate = metric.closed_form(part)
            else:
                estimate = _bootstrapped(part, metric, blocks[key][name]) if n_resamples else None
            if estimate is not None and np.isfinite([estimate.value, *estimate.interval()]).all():
                estimates[key][name] = estimate
    return estimates


def _bootstrapped(part: Sample, metric: Metric, blocks: list[np.ndarray]) -> Estimate | None:
    """An estimate from its value and replicates; None if the value, or over a twentieth of them, is missing."""
    value, *replicates = np.concatenate(blocks)
    value, replicates = float(value), np.array(replicates)
    finite = np.isfinite(replicates)
    if not np.isfinite(value) or finite.mean() < 0.95:
        return None
    if metric.bounded and value in (0, 1):
        return rate(part, metric.counted(part), np.full(len(part), value == 1))
    replicates = np.where(finite, replicates, replicates[finite].mean())
    # Replicates of exactly 0 or 1 have no logit.
    scale = logit(np.clip(replicates, value / 1000, 1 - (1 - value) / 1000)) if metric.bounded else replicates
    influence = (replicates - replicates.mean()) / np.sqrt(len(replicates))
    draws = np.arange(-len(replicates), 0)  # no lesion has a negative code
    degrees = max(min(effective_lesions(part)[label] for label in metric.classes) - 1, 1)
    return Bootstrapped(value, draws, influence, float(scale.std()), degrees, metric.bounded)
