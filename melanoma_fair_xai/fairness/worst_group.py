"""The worst group of each metric, and whether its gap to the best is more than chance makes of one and the same."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dataset_scripts.schema import UNKNOWN

from .estimates import Estimate
from .metrics import METRICS
from .resampling import permuted_groups
from .rows import WorstGroup
from .sample import Sample
from .weighted import WeightedMetrics


def worst_groups(
    sample: Sample,
    column: pd.Series,
    estimates: Mapping[str, Mapping[str, Estimate]],
    n_resamples: int,
    rng: np.random.Generator,
) -> list[WorstGroup]:
    """Of each metric that groups are ranked by, over the known groups that have an `estimate`, two of them or more."""
    codes, names = column.cat.codes.to_numpy(), list(column.cat.categories)
    able = {
        metric: [group for group in names if group != UNKNOWN and metric in estimates[group]]
        for metric, row in METRICS.items()
        if row.better and not row.with_prevalence
    }
    able = {metric: groups for metric, groups in able.items() if len(groups) > 1}
    places = {metric: [names.index(group) for group in groups] for metric, groups in able.items()}
    p_values = permutation_p_values(sample, codes, places, n_resamples, rng)
    rows = []
    for metric, groups in able.items():
        values = {group: estimates[group][metric].value for group in groups}
        worst, *_, best = sorted(groups, key=values.get, reverse=METRICS[metric].better == "lower")
        gap = abs(values[best] - values[worst])
        rows.append(
            WorstGroup(str(column.name), metric, worst, values[worst], best, gap, p_values[metric], len(groups))
        )
    return rows


def permutation_p_values(
    sample: Sample,
    codes: np.ndarray,
    metrics: Mapping[str, Sequence[int]],
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """For each metric the p-value of max - min over its groups (codes), lesions of a class and fold exchangeable.

    A lesion across groups counts to that of its first image.
    """
    taking_part = sorted({code for groups in metrics.values() for code in groups})
    if not taking_part:
        return {}
    part = sample.select(np.isin(codes, taking_part))
    weighted = WeightedMetrics(part)
    first = np.unique(weighted.place, return_index=True)[1]
    group = codes[np.isin(codes, taking_part)][first]
    strata = part.keys[first] // part.fold_width * 2 + (weighted.melanomas > 0)

    def gaps(groups: np.ndarray) -> dict[str, np.ndarray]:
        weights = {code: (groups == code).astype(float) for code in taking_part}
        spread = {
            name: np.stack([METRICS[name].value(weighted, weights[code]) for code in able])
            for name, able in metrics.items()
        }
        return {name: values.max(axis=0) - values.min(axis=0) for name, values in spread.items()}

    observed = {name: gap[0] - 1e-9 for name, gap in gaps(group[:, None]).items()}
    reached = dict.fromkeys(metrics, 1)
    for shuffled in permuted_groups(group, strata, n_resamples, rng):
        for name, gap in gaps(shuffled).items():
            reached[name] += int((gap >= observed[name]).sum())
    return {name: count / (1 + n_resamples) for name, count in reached.items()}
