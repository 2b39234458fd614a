"""The worst group of each metric, and whether the groups differ by more than chance."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import fdtrc, logit

from dataset_scripts.schema import UNKNOWN

from .estimates import Estimate, correlations
from .metrics import METRICS
from .rows import WorstGroup


def worst_groups(column: pd.Series, estimates: Mapping[str, Mapping[str, Estimate]]) -> list[WorstGroup]:
    """Of each metric that groups are ranked by, over the known groups that have an `estimate`, two of them or more."""
    rows = []
    for metric, row in METRICS.items():
        if not row.better or row.with_prevalence:
            continue
        known = [group for group in column.cat.categories if group != UNKNOWN]
        found = {group: estimates[group][metric] for group in known if metric in estimates[group]}
        if len(found) < 2:
            continue
        worst, *_, best = sorted(found, key=lambda group: found[group].value, reverse=row.better == "lower")
        gap = abs(found[best].value - found[worst].value)
        p = homogeneity(list(found.values()))
        rows.append(WorstGroup(str(column.name), metric, worst, found[worst].value, best, gap, p, len(found)))
    return rows


def homogeneity(estimates: Sequence[Estimate]) -> float:
    """The p-value of equal values in (0, 1) of all groups; NaN where a value is 0 or 1, or differences do not vary.

    Wald's test on the logit scale, Cochran's Q (Biometrics 10, 1954) where no lesion is in two groups, with the
    covariances that lesions in several give; the statistic is referred to F as in Welch, Biometrika 38 (1951).
    """
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([estimate.standard_error for estimate in estimates])
    if ((values <= 0) | (values >= 1) | (errors == 0)).any():
        return np.nan
    errors = errors / (values * (1 - values))
    covariance = correlations(estimates) * np.outer(errors, errors)
    from_first = logit(values[1:]) - logit(values[0])
    spread = covariance[1:, 1:] - covariance[1:, :1] - covariance[:1, 1:] + covariance[0, 0]
    if np.linalg.eigvalsh(spread)[0] < 1e-9 * covariance.max():
        return np.nan
    wald = from_first @ np.linalg.solve(spread, from_first)
    weights, count = errors**-2 / (errors**-2).sum(), len(values)
    imbalance = ((1 - weights) ** 2 / [estimate.degrees for estimate in estimates]).sum() / (count**2 - 1)
    return float(fdtrc(count - 1, 1 / (3 * imbalance), wald / (count - 1) / (1 + 2 * (count - 2) * imbalance)))
