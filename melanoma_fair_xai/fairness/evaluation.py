"""Metrics by group with intervals, contrasts with a reference group, and the worst group."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dataset_scripts.common import UNKNOWN
from melanoma_fair_xai.base.errors import UserError

from .estimates import Estimate, subtract
from .estimation import AT_THRESHOLD, CLOSED_FORM, METRICS, count_lesions, estimate_parts, is_estimable
from .groups import PRIMARY, as_groups, available_groups, group_columns, reference_group
from .intervals import holm
from .report import OVERALL, Contrast, FairnessReport, GroupMetric, WorstGroup
from .resampling import lesion_classes, lesion_groups, permuted_groups
from .sample import Sample, make_sample
from .weighted import WeightedMetrics, expected_calibration_error

FAMILY = ("roc_auc", "sensitivity")  # whose contrasts between primary groups Holm's procedure adjusts together


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
    bases = {name: reference_group(columns[name], sample.labels, reference, name) for name in columns}
    overall = pd.Series(pd.Categorical(np.full(len(sample), OVERALL)))
    by_group, contrasts, worst = [], [], []
    total_rows, _, _ = evaluate_column(sample, overall, OVERALL, None, n_resamples, seed, False)
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        rows, differences, gaps = evaluate_column(
            sample, columns[name], name, bases[name], n_resamples, seed, name == primary
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
        reference=bases,
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
    strata = lesion_groups(sample.lesions, codes) * 2 + lesion_classes(sample)
    estimates = estimate_parts(parts, strata, n_resamples, rng)
    rows = [row for group, part in parts.items() for row in _group_rows(part, name, group, estimates[group])]
    contrasts = [
        _contrast(name, group, reference, metric, estimates, tested)
        for group in names
        if reference is not None and group not in (reference, UNKNOWN)
        for metric in METRICS
        if metric != "ece" and any(row.metric == metric for row in rows)
    ]
    able = {
        metric: [group for group in names if group != UNKNOWN and metric in estimates[group]] for metric in CLOSED_FORM
    }
    values = {(row.group, row.metric): row.value for row in rows}
    worst = _worst_groups(sample, codes, names, able, values, name, n_resamples, rng) if reference is not None else []
    return rows, contrasts, worst


def _group_rows(part: Sample, column: str, group: str, estimates: Mapping[str, Estimate]) -> list[GroupMetric]:
    classes = count_lesions(part)
    counts = (len(part), len(np.unique(part.lesions)), int(part.labels.sum()), classes[0])
    rows = []
    for name in METRICS:
        if name in AT_THRESHOLD and part.thresholds is None:
            continue
        value = low = high = np.nan
        if name in estimates:
            value, (low, high) = estimates[name].value, estimates[name].interval()
        elif name == "ece" and is_estimable(name, *classes):
            value = expected_calibration_error(part)
        rows.append(
            GroupMetric(column, group, name, *counts, float(value), float(low), float(high), bool(np.isfinite(value)))
        )
    return rows


def _contrast(
    column: str,
    group: str,
    reference: str,
    metric: str,
    estimates: Mapping[str, Mapping[str, Estimate]],
    tested: bool,
) -> Contrast:
    if metric not in estimates[group] or metric not in estimates[reference]:
        return Contrast(column, group, reference, metric)
    difference = subtract(estimates[group][metric], estimates[reference][metric])
    low, high = difference.interval()
    p = difference.p_value() if tested and metric in FAMILY else np.nan
    return Contrast(column, group, reference, metric, difference.value, float(low), float(high), p, estimable=True)


def _adjusted(contrasts: list[Contrast]) -> list[Contrast]:
    adjusted = holm(np.array([contrast.p for contrast in contrasts]))
    return [replace(contrast, p_holm=float(p)) for contrast, p in zip(contrasts, adjusted, strict=True)]


def _worst_groups(
    sample: Sample,
    codes: np.ndarray,
    names: list[str],
    able: Mapping[str, list[str]],
    values: Mapping[tuple[str, str], float],
    column: str,
    n_resamples: int,
    rng: np.random.Generator,
) -> list[WorstGroup]:
    """The worst of the groups that are `able`, and the largest gap, of each metric, with the gap's p-value."""
    able = {metric: groups for metric, groups in able.items() if len(groups) > 1}
    places = {metric: [names.index(group) for group in groups] for metric, groups in able.items()}
    p_values = permutation_p_values(sample, codes, places, n_resamples, rng)
    result = []
    for metric, groups in able.items():
        worst, *_, best = sorted(groups, key=lambda group: values[group, metric])
        value, gap = values[worst, metric], values[best, metric] - values[worst, metric]
        result.append(WorstGroup(column, metric, worst, value, best, gap, p_values[metric], len(groups)))
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
