"""Metrics by group with intervals, contrasts with a reference group, and the worst group."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dataset_scripts.common import UNKNOWN, UserError

from .estimates import Estimate, balanced_accuracy, roc_auc, sensitivity, specificity, subtract
from .groups import PRIMARY, as_groups, available_groups, group_columns, reference_group
from .intervals import holm
from .report import OVERALL, Contrast, FairnessReport, GroupMetric, WorstGroup
from .resampling import bootstrap_weights, lesion_classes, lesion_groups, permuted_groups
from .sample import Sample, make_sample
from .weighted import WeightedMetrics, expected_calibration_error

CLOSED_FORM = {
    "roc_auc": roc_auc,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "balanced_accuracy": balanced_accuracy,
}
METRICS = (*CLOSED_FORM, "ppv", "auprc", "brier", "calibration_intercept", "calibration_slope", "ece")
AT_THRESHOLD = ("sensitivity", "specificity", "balanced_accuracy", "ppv")
FAMILY = ("roc_auc", "sensitivity")  # whose contrasts between primary groups Holm's procedure adjusts together
MINIMUM_LESIONS = 10


def evaluate_predictions(table: pd.DataFrame, group_by: Sequence[str] | None = None, **options) -> FairnessReport:
    """`evaluate` of a predictions table; `group_by` as in `group_columns`, by default whatever the table allows."""
    groups = group_columns(table, available_groups(table) if group_by is None else group_by)
    return evaluate(
        table["label"],
        table["score"],
        groups,
        lesion_ids=table["lesion_id"],
        folds=table["fold"] if "fold" in table else None,
        thresholds=table["threshold"] if "threshold" in table else None,
        **options,
    )


def evaluate(
    labels: Sequence,
    scores: Sequence,
    groups: Mapping[str, Sequence] | pd.DataFrame | None = None,
    lesion_ids: Sequence | None = None,
    folds: Sequence | None = None,
    thresholds: Sequence | float | None = None,
    reference: Mapping[str, str] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    show_progress: bool = False,
) -> FairnessReport:
    """Evaluate scores by group, with intervals that respect lesions.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) in [0, 1]; an image is called melanoma where score >= threshold.
        groups: columns of group names (n,), missing values are the group `unknown`. The first, or fitzpatrick_group
            where it is there, is the primary grouping, whose contrasts are tested.
        lesion_ids: (n,); without them every image is a lesion of its own.
        folds: (n,); scores are ranked within a fold only.
        thresholds: one for all, or (n,); without them there are no rates.
        reference: the group of a column that the others are compared with; by default I-II of fitzpatrick_group, else
            the group with most melanomas.
        n_resamples: bootstrap replicates, and permutations.
        seed: fixes both.

    Raises:
        UserError: as `make_sample`; a column of another length; a reference that is not there.
    """
    sample = make_sample(labels, scores, lesion_ids, folds, thresholds)
    groups = {} if groups is None else dict(groups)
    for name, values in groups.items():
        if len(values) != len(sample):
            raise UserError(f"group column {name}: {len(values)} values for {len(sample)} labels")
    columns = pd.DataFrame({name: as_groups(values, name) for name, values in groups.items()})
    primary = PRIMARY if PRIMARY in columns else next(iter(columns), None)
    overall = pd.Series(pd.Categorical(np.full(len(sample), OVERALL)))
    by_group, contrasts, worst = [], [], []
    total_rows, _, _ = evaluate_column(sample, overall, OVERALL, None, n_resamples, seed, False)
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        base = reference_group(columns[name], sample.labels, reference, name)
        rows, differences, gaps = evaluate_column(
            sample, columns[name], name, base, n_resamples, seed, name == primary
        )
        by_group += rows
        contrasts += differences
        worst += gaps
    return FairnessReport(
        overall=total_rows,
        by_group=by_group,
        contrasts=_adjusted(contrasts),
        worst_group=worst,
        primary=primary,
        n_resamples=n_resamples,
        seed=seed,
        lesions_known=lesion_ids is not None,
        sample=sample,
        groups=columns,
    )


def evaluate_column(
    sample: Sample,
    column: pd.Series,
    name: str,
    reference: str | None,
    n_resamples: int,
    seed: int,
    tested: bool,
) -> tuple[list[GroupMetric], list[Contrast], list[WorstGroup]]:
    """The rows of one group column; `tested` contrasts have p-values."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever the other columns are
    codes, names = column.cat.codes.to_numpy().astype(np.int64), list(column.cat.categories)
    parts = {group: sample.select(codes == code) for code, group in enumerate(names)}
    metrics = {group: WeightedMetrics(part) for group, part in parts.items()}
    estimates = {group: closed_form(part) for group, part in parts.items()}
    replicates = _bootstrap(sample, codes, metrics, n_resamples, rng)
    rows = [
        row
        for group, part in parts.items()
        for row in _group_rows(part, name, group, metrics[group], estimates[group], replicates[group])
    ]
    found = {(row.group, row.metric): row for row in rows}
    contrasts = [
        _contrast(found[group, metric], found[reference, metric], estimates, replicates, tested and metric in FAMILY)
        for group in names
        if reference is not None and group not in (reference, UNKNOWN)
        for metric in METRICS
        if (group, metric) in found and metric != "ece"
    ]
    worst = _worst_groups(sample, codes, names, found, name, n_resamples, rng) if reference is not None else []
    return rows, contrasts, worst


def closed_form(sample: Sample) -> dict[str, Estimate]:
    """The estimates that know their limits."""
    names = [name for name in CLOSED_FORM if sample.decisions is not None or name not in AT_THRESHOLD]
    return {name: CLOSED_FORM[name](sample) for name in names}


def _bootstrap(
    sample: Sample, codes: np.ndarray, metrics: dict[str, WeightedMetrics], n_resamples: int, rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """Replicates (n_resamples,) of each bootstrapped metric of each group, from the same draws of lesions."""
    strata = lesion_groups(sample.lesions, codes) * 2 + lesion_classes(sample)
    blocks: dict[str, list[dict[str, np.ndarray]]] = {group: [] for group in metrics}
    for weights in bootstrap_weights(strata, n_resamples, rng):
        for group, metric in metrics.items():
            blocks[group].append(metric.bootstrapped(weights[metric.lesions]))
    return {
        group: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for group, parts in blocks.items()
    }


def _group_rows(
    part: Sample,
    column: str,
    group: str,
    metrics: WeightedMetrics,
    estimates: dict[str, Estimate],
    replicates: dict[str, np.ndarray],
) -> list[GroupMetric]:
    melanoma_lesions = len(np.unique(part.lesions[part.labels]))
    counts = (len(part), len(metrics.lesions), int(part.labels.sum()), melanoma_lesions)
    whole = {name: float(value[0]) for name, value in metrics.bootstrapped(np.ones((len(metrics.lesions), 1))).items()}
    rows = []
    for name in METRICS:
        estimable = enough_lesions(part, name)
        if name in estimates:
            value, (low, high) = estimates[name].value, estimates[name].interval() if estimable else (np.nan, np.nan)
        elif name == "ece":
            value, low, high = expected_calibration_error(part), np.nan, np.nan
        elif name in whole:
            value, (low, high) = whole[name], percentiles(replicates[name])
        else:
            continue
        row = GroupMetric(column, group, name, *counts, float(value), float(low), float(high), True)
        if not estimable or not np.isfinite(value):
            row = replace(row, value=np.nan, low=np.nan, high=np.nan, estimable=False)
        rows.append(row)
    return rows


def enough_lesions(sample: Sample, metric: str) -> bool:
    """Whether each class that the metric needs is carried by 10 lesions."""
    classes = {"sensitivity": [True], "specificity": [False]}.get(metric, [True, False])
    return all(len(np.unique(sample.lesions[sample.labels == label])) >= MINIMUM_LESIONS for label in classes)


def percentiles(replicates: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval; NaN where over a twentieth of the replicates has no value."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < 0.95 * len(replicates) or not len(finite):
        return np.nan, np.nan
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def _contrast(
    row: GroupMetric,
    base: GroupMetric,
    estimates: dict[str, dict[str, Estimate]],
    replicates: dict[str, dict[str, np.ndarray]],
    tested: bool,
) -> Contrast:
    contrast = Contrast(row.group_column, row.group, base.group, row.metric, row.value - base.value)
    if not (row.estimable and base.estimable):
        return contrast
    if row.metric not in estimates[row.group]:
        low, high = percentiles(replicates[row.group][row.metric] - replicates[base.group][row.metric])
        return replace(contrast, low=low, high=high, estimable=True)
    difference = subtract(estimates[row.group][row.metric], estimates[base.group][row.metric])
    low, high = difference.interval()
    p = difference.p_value() if tested else np.nan
    return replace(contrast, low=float(low), high=float(high), p=p, estimable=True)


def _adjusted(contrasts: list[Contrast]) -> list[Contrast]:
    adjusted = holm(np.array([contrast.p for contrast in contrasts]))
    return [replace(contrast, p_holm=float(p)) for contrast, p in zip(contrasts, adjusted, strict=True)]


def _worst_groups(
    sample: Sample,
    codes: np.ndarray,
    names: list[str],
    rows: dict[tuple[str, str], GroupMetric],
    column: str,
    n_resamples: int,
    rng: np.random.Generator,
) -> list[WorstGroup]:
    """The worst group and the largest gap of each metric, with the p-value of the gap among permuted lesions."""
    metrics = [name for name in CLOSED_FORM if (names[0], name) in rows]
    able = {name: [group for group in names if group != UNKNOWN and rows[group, name].estimable] for name in metrics}
    able = {name: groups for name, groups in able.items() if len(groups) > 1}
    p_values = permutation_p_values(
        sample, codes, {m: [names.index(g) for g in gs] for m, gs in able.items()}, n_resamples, rng
    )
    result = []
    for name, groups in able.items():
        ranked = sorted(groups, key=lambda group: rows[group, name].value)
        worst, best = rows[ranked[0], name], rows[ranked[-1], name]
        gap = best.value - worst.value
        result.append(WorstGroup(column, name, worst.group, worst.value, best.group, gap, p_values[name], len(groups)))
    return result


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
    place = np.searchsorted(weighted.lesions, part.lesions)
    first = np.unique(place, return_index=True)[1]
    group = codes[np.isin(codes, taking_part)][first]
    melanoma = np.bincount(place, part.labels) > 0
    strata = part.keys[first] // part.fold_width * 2 + melanoma

    def gaps(groups: np.ndarray) -> dict[str, np.ndarray]:
        values = {}
        for code in taking_part:
            weights = (groups == code).astype(float)
            values[code] = weighted.rates(weights) | {"roc_auc": weighted.ranking.roc_auc(weights)}
        spread = {name: np.stack([values[code][name] for code in able]) for name, able in metrics.items()}
        return {name: value.max(axis=0) - value.min(axis=0) for name, value in spread.items()}

    observed = {name: gap[0] - 1e-9 for name, gap in gaps(group[:, None]).items()}
    reached = dict.fromkeys(metrics, 1)
    for shuffled in permuted_groups(group, strata, n_resamples, rng):
        for name, gap in gaps(shuffled).items():
            reached[name] += int((gap >= observed[name]).sum())
    return {name: count / (1 + n_resamples) for name, count in reached.items()}
