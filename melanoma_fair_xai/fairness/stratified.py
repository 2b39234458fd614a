"""Metrics by group with intervals, contrasts with a reference group, and the worst group."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import UserError

from .bootstrap import estimate_parts
from .estimates import Estimate, subtract
from .groups import PRIMARY, all_images, as_groups, group_columns, reference_group
from .intervals import holm
from .metrics import METRICS, applicable, count_lesions, estimable, point_values
from .predictions import sample_columns
from .report import FairnessReport
from .resampling import bootstrap_strata
from .rows import Contrast, GroupMetric, WorstGroup
from .sample import Sample, make_sample
from .worst_group import worst_groups


def evaluate_predictions(table: pd.DataFrame, group_by: Sequence[str] | None = None, **options) -> FairnessReport:
    """`evaluate` of a predictions table; `group_by` as in `group_columns`, by default whatever the table allows."""
    return evaluate(**sample_columns(table), groups=group_columns(table, group_by), **options)


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
    case_control: bool = False,
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
        n_resamples: bootstrap replicates.
        seed: fixes them.
        case_control: the design fixed how many lesions of each group are melanomas, so that the bootstrap keeps it.

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
    overall, _, _ = evaluate_column(sample, all_images(len(sample)), None, False, n_resamples, seed, case_control)
    by_group, contrasts, worst = [], [], []
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        rows, differences, gaps = evaluate_column(
            sample, columns[name], bases[name], name == primary, n_resamples, seed, case_control
        )
        by_group += rows
        contrasts += differences
        worst += gaps
    return FairnessReport(
        overall=overall,
        by_group=by_group,
        contrasts=_adjusted(contrasts),
        worst_group=worst,
        primary=primary,
        reference=bases,
        n_resamples=n_resamples,
        seed=seed,
        case_control=case_control,
        lesions_known=lesion_ids is not None,
        sample=sample,
        groups=columns,
    )


def evaluate_column(
    sample: Sample,
    column: pd.Series,
    reference: str | None,
    tested: bool,
    n_resamples: int,
    seed: int,
    case_control: bool,
) -> tuple[list[GroupMetric], list[Contrast], list[WorstGroup]]:
    """The rows of one group column; `tested` contrasts have p-values."""
    name = str(column.name)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever the other columns are
    codes, groups = column.cat.codes.to_numpy().astype(np.int64), list(column.cat.categories)
    parts = {group: sample.select(codes == code) for code, group in enumerate(groups)}
    strata = bootstrap_strata(sample, codes, case_control)
    estimates = estimate_parts(parts, strata, n_resamples, rng)
    rows = [row for group, part in parts.items() for row in _group_rows(part, name, group, estimates[group])]
    if reference is None:
        return rows, [], []
    contrasts = [
        _contrast(name, group, reference, metric, estimates, tested)
        for group in groups
        if group not in (reference, UNKNOWN)
        for metric in applicable(sample)
        if not METRICS[metric].point_estimate
    ]
    return rows, contrasts, worst_groups(column, estimates)


def _group_rows(part: Sample, column: str, group: str, estimates: Mapping[str, Estimate]) -> list[GroupMetric]:
    counts = (len(part), len(np.unique(part.lesions)), int(part.labels.sum()), count_lesions(part)[1])
    found = {name: (estimate.value, *estimate.interval()) for name, estimate in estimates.items()}
    points = point_values(part, [name for name in estimable(part) if METRICS[name].point_estimate])
    found |= {name: (value, np.nan, np.nan) for name, value in points.items()}
    return [
        GroupMetric(column, group, name, *counts, *map(float, found.get(name, [np.nan] * 3)), name in found)
        for name in applicable(part)
    ]


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
    p = difference.p_value() if tested and METRICS[metric].tested else np.nan
    return Contrast(column, group, reference, metric, difference.value, float(low), float(high), p, estimable=True)


def _adjusted(contrasts: list[Contrast]) -> list[Contrast]:
    adjusted = holm(np.array([contrast.p for contrast in contrasts]))
    return [replace(contrast, p_holm=float(p)) for contrast, p in zip(contrasts, adjusted, strict=True)]
