"""Metrics by group with intervals, contrasts with a reference group, and the worst group."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import UserError

from .bootstrap import estimate_parts
from .estimates import Estimate, subtract
from .family import Family, adjust
from .groups import PRIMARY, all_images, as_groups, group_columns, reference_group
from .metrics import METRICS, Metric, applicable, count_lesions, estimable, point_values
from .predictions import sample_columns
from .report import FairnessReport, Plan
from .resampling import bootstrap_strata
from .rows import Contrast, GroupMetric, WorstGroup
from .sample import Sample, check_index, make_sample
from .worst_group import worst_groups


def evaluate_predictions(table: pd.DataFrame, group_by: Sequence[str] | None = None, **options) -> FairnessReport:
    """`evaluate` of a predictions table; `group_by` as in `group_columns`, by default whatever the table allows.

    Without a column lesion_id every image is a lesion of its own. UserError, too, for a table with several trainings
    of one model, a column `seed`: `compare` counts their images once.
    """
    if "seed" in table and table["seed"].nunique() > 1:
        raise UserError("the table has several trainings (column seed), whose images would count more than once")
    table = table.reset_index(drop=True)
    return evaluate(**sample_columns(table), groups=group_columns(table, group_by), **options)


def evaluate(
    labels: Sequence,
    scores: Sequence,
    groups: Mapping[str, Sequence] | pd.DataFrame | Sequence | None = None,
    lesion_ids: Sequence | None = None,
    folds: Sequence | None = None,
    thresholds: Sequence | float | None = None,
    reference: Mapping[str, str] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    case_control: bool = False,
    show_progress: bool = False,
    family: Family = "primary",
    alpha: float = 0.05,
    metrics: Sequence[str] | None = None,
) -> FairnessReport:
    """Evaluate scores by group, with intervals that respect lesions.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) in [0, 1]; an image is called melanoma where score >= threshold.
        groups: columns of group names (n,), missing values are the group `unknown`. The first, or fitzpatrick_group
            where it is there, is the primary grouping, whose contrasts are tested. A single one may be given as it is;
            it is called by the Series' name, else `group`.
        lesion_ids: (n,); without them every image is a lesion of its own.
        folds: (n,); scores are ranked within a fold only.
        thresholds: one for all, or (n,); without them there are no rates.
        reference: the group of a column that the others are compared with; by default I-II of fitzpatrick_group, else
            the group with most melanomas.
        n_resamples: bootstrap replicates; 0 leaves the metrics that need them without intervals and contrasts.
        seed: fixes them.
        case_control: the design fixed how many lesions of each group are melanomas, so that the bootstrap keeps it.
        family: `primary` tests and adjusts by Holm the contrasts of the primary grouping; `holm` and
            `benjamini-hochberg` test those of all columns, and adjust all p-values of the report together.
        alpha: intervals are those of 1 - alpha.
        metrics: names of METRICS; by default all.

    Raises:
        UserError: as `make_sample`; a column of another length, or a Series with another index than the labels have;
            a reference, family or metric that is not there; an `alpha` outside 0 and 1, or one replicate.
    """
    sample = make_sample(labels, scores, lesion_ids, folds, thresholds)
    columns = _columns(groups, labels, len(sample))
    plan = Plan(_rows_of(metrics), n_resamples, seed, case_control, family, alpha)
    primary = PRIMARY if PRIMARY in columns else next(iter(columns), None)
    bases = {name: reference_group(columns[name], sample.labels, reference, name) for name in columns}
    overall, _, _ = evaluate_column(sample, all_images(len(sample)), None, False, plan)
    by_group, contrasts, worst = [], [], []
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        tested = name == primary or family != "primary"
        rows, differences, gaps = evaluate_column(sample, columns[name], bases[name], tested, plan)
        by_group += rows
        contrasts += differences
        worst += gaps
    if family == "primary":
        contrasts = adjust(contrasts, family)
    else:
        adjusted = adjust([*contrasts, *worst], family)
        contrasts, worst = adjusted[: len(contrasts)], adjusted[len(contrasts) :]
    return FairnessReport(
        overall=overall,
        by_group=by_group,
        contrasts=contrasts,
        worst_group=worst,
        primary=primary,
        reference=bases,
        plan=plan,
        lesions_known=lesion_ids is not None,
        sample=sample,
        groups=columns,
    )


def _columns(groups: Mapping | pd.DataFrame | Sequence | None, labels: Sequence, count: int) -> pd.DataFrame:
    """The group columns (n,), one or several, as ordered categories."""
    if groups is None:
        groups = {}
    elif not isinstance(groups, Mapping | pd.DataFrame):
        groups = {getattr(groups, "name", None) or "group": groups}
    groups = dict(groups)
    for name, values in groups.items():
        if len(values) != count:
            raise UserError(f"group column {name}: {len(values)} values for {count} labels")
    check_index({"label": labels, **{f"group column {name}": values for name, values in groups.items()}})
    return pd.DataFrame({name: as_groups(values, name) for name, values in groups.items()})


def _rows_of(names: Sequence[str] | None) -> Mapping[str, Metric]:
    """The rows of METRICS with these names, in its order."""
    if names is None:
        return METRICS
    wrong = [name for name in names if name not in METRICS]
    if wrong or isinstance(names, str):
        wrong = names if isinstance(names, str) else wrong[0]
        raise UserError(f"metrics: {wrong!r}; give a list of some of {', '.join(METRICS)}")
    return {name: row for name, row in METRICS.items() if name in names}


def evaluate_column(
    sample: Sample, column: pd.Series, reference: str | None, tested: bool, plan: Plan
) -> tuple[list[GroupMetric], list[Contrast], list[WorstGroup]]:
    """The rows of one group column; `tested` contrasts have p-values."""
    name = str(column.name)
    rng = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])  # whatever the other columns are
    codes, groups = column.cat.codes.to_numpy().astype(np.int64), list(column.cat.categories)
    parts = {group: sample.select(codes == code) for code, group in enumerate(groups)}
    strata = bootstrap_strata(sample, codes, plan.case_control)
    estimates = estimate_parts(parts, strata, plan.n_resamples, rng, plan.metrics)
    rows = [row for group, part in parts.items() for row in _group_rows(part, name, group, estimates[group], plan)]
    if reference is None:
        return rows, [], []
    contrasts = [
        _contrast(name, group, reference, metric, estimates, tested, plan.alpha)
        for group in groups
        if group not in (reference, UNKNOWN)
        for metric in applicable(sample, plan.metrics)
        if not METRICS[metric].point_estimate
    ]
    return rows, contrasts, worst_groups(column, estimates)


def _group_rows(
    part: Sample, column: str, group: str, estimates: Mapping[str, Estimate], plan: Plan
) -> list[GroupMetric]:
    counts = (len(part), len(np.unique(part.lesions)), int(part.labels.sum()), count_lesions(part)[1])
    found = {name: (estimate.value, *estimate.interval(plan.alpha)) for name, estimate in estimates.items()}
    points = point_values(part, [name for name in estimable(part, plan.metrics) if not plan.has_interval(name)])
    found |= {name: (value, np.nan, np.nan) for name, value in points.items() if np.isfinite(value)}
    return [
        GroupMetric(column, group, name, *counts, *map(float, found.get(name, [np.nan] * 3)), name in found)
        for name in applicable(part, plan.metrics)
    ]


def _contrast(
    column: str,
    group: str,
    reference: str,
    metric: str,
    estimates: Mapping[str, Mapping[str, Estimate]],
    tested: bool,
    alpha: float,
) -> Contrast:
    if metric not in estimates[group] or metric not in estimates[reference]:
        return Contrast(column, group, reference, metric)
    difference = subtract(estimates[group][metric], estimates[reference][metric])
    low, high = difference.interval(alpha)
    p = difference.p_value() if tested and METRICS[metric].tested else np.nan
    return Contrast(column, group, reference, metric, difference.value, float(low), float(high), p, estimable=True)
