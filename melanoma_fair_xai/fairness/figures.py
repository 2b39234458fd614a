"""Figures of a fairness report: metrics with intervals, ROC and reliability curves, gaps against the threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.files import atomic_path, file_stem
from melanoma_fair_xai.base.tables import figure_text

from .estimates import rate, subtract
from .metrics import METRICS
from .rows import GroupMetric, level_text
from .sample import Sample

# Okabe and Ito's colours, which the colour-blind can tell apart, and line styles for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
WIDTH = 8.0  # inches, 800 pixels wide at the resolution of a card
DPI = 150
MAX_RELIABILITY_BINS = 8
MAX_GAPS = 3  # more bands than that hide each other
THRESHOLDS = 60
MAX_OPERATING_POINTS = 10


def draw_figures(
    folder: Path,
    sample: Sample,
    column: pd.Series,
    overall: Sequence[GroupMetric],
    rows: Sequence[GroupMetric],
    reference: str | None,
    title: str,
    alpha: float = 0.05,
) -> list[str]:
    """Write the figures of a group column, whose metrics `rows` are, to a folder; returns their file names."""
    name = str(column.name)
    figures = {"forest": plot_forest(overall, rows, name, title, alpha)}
    shown = curve_groups(rows, reference)
    if shown:
        figures["curves"] = plot_curves(sample, column, shown, title, alpha)
    if len(shown) > 1 and sample.thresholds is not None:
        figures["gap"] = plot_gap(sample, column, shown, title, alpha)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"fairness_{file_stem(name)}_{kind}.png" for kind in figures]
    for file, figure in zip(names, figures.values(), strict=True):
        with atomic_path(folder / file) as path:
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return names


def curve_groups(rows: Sequence[GroupMetric], reference: str | None) -> dict[str, GroupMetric]:
    """The groups that curves show, the reference first: known, with a ROC AUC, at most six, most melanomas first."""
    able = [row for row in rows if row.metric == "roc_auc" and row.estimable and row.group != UNKNOWN]
    chosen = sorted(able, key=lambda row: (row.group != reference, -row.melanomas))[: len(COLOURS)]
    first, others = chosen[:1], [row for row in able if row in chosen[1:]]
    return {row.group: row for row in [*first, *others]}


def label_of(row: GroupMetric) -> str:
    """A group with its counts."""
    return f"{figure_text(row.group)} (n {row.n:,}, {row.melanomas:,} mel.)"


def plot_forest(
    overall: Sequence[GroupMetric], rows: Sequence[GroupMetric], column: str, title: str, alpha: float = 0.05
) -> Figure:
    """Each metric's value and interval in each group, beside that of all images (grey)."""
    groups = list(dict.fromkeys(row.group for row in rows))
    found = {(row.group, row.metric): row for row in rows}
    whole = {row.metric: row for row in overall}
    metrics = [name for name, metric in METRICS.items() if name in whole and not metric.point_estimate]
    columns = 3
    lines = math.ceil(len(metrics) / columns)
    height = lines * (0.65 + 0.24 * len(groups)) + 0.9
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    places = np.arange(len(groups))[::-1]
    for axis, metric in zip(axes.flat, metrics, strict=False):
        _shade_overall(axis, whole[metric])
        if not METRICS[metric].bounded:  # else the ideal is the end of the axis
            axis.axvline(METRICS[metric].ideal, color="0.4", linewidth=0.8, linestyle=":")
        for place, group in zip(places, groups, strict=True):
            _draw_interval(axis, found[group, metric], place)
        axis.set_title(METRICS[metric].title, fontsize=10)
        axis.set_yticks(places, [label_of(found[group, metric]) for group in groups], fontsize=8.5)
        axis.set_ylim(-0.6, len(groups) - 0.4)
        axis.tick_params(axis="x", labelsize=8.5)
        axis.margins(x=0.08)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    text = f"value and {level_text(alpha)} interval; grey: all images; ×: not estimable"
    _set_title(figure, f"by {figure_text(column)}: {text}", title)
    return figure


def _shade_overall(axis: Axes, row: GroupMetric) -> None:
    if row.estimable:
        axis.axvline(row.value, color="0.6", linewidth=1)
        if not math.isnan(row.low):
            axis.axvspan(row.low, row.high, color="0.92", linewidth=0)


def _draw_interval(axis: Axes, row: GroupMetric, place: float) -> None:
    if not row.estimable:
        axis.plot([0.5], [place], "x", color="0.5", markersize=5, transform=axis.get_yaxis_transform())
        return
    if not math.isnan(row.low):
        axis.plot([row.low, row.high], [place, place], color=COLOURS[0], linewidth=1.6, solid_capstyle="butt")
    axis.plot([row.value], [place], "o", color=COLOURS[0], markersize=4.5)


def plot_curves(
    sample: Sample, column: pd.Series, shown: Mapping[str, GroupMetric], title: str, alpha: float = 0.05
) -> Figure:
    """ROC curves with their operating points, and reliability: the share of melanomas against the mean score."""
    figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.75", linewidth=1)
    right.plot([0, 1], [0, 1], color="0.75", linewidth=1)
    top = 0.0
    for (group, row), colour, style in zip(shown.items(), COLOURS, STYLES, strict=False):
        part = sample.select((column == group).to_numpy())
        false, true = roc_curve(part)
        left.plot(false, true, color=colour, linestyle=style, linewidth=1.6, label=label_of(row))
        if part.thresholds is not None:
            point = part.decisions[~part.labels].mean(), part.decisions[part.labels].mean()
            left.plot(*point, "o", color=colour, markersize=7, markeredgecolor="white")
        score, share, low, high = reliability(part, alpha)
        right.errorbar(
            score, share, [share - low, high - share], color=colour, linestyle=style, marker="o", markersize=4,
            linewidth=1.2, elinewidth=0.8,
        )  # fmt: skip
        top = max(top, score.max(), high.max())
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC; dot: the threshold", aspect="equal")
    limit = min(1.0, 1.05 * top)
    right.set(xlabel="mean score", ylabel=f"share of melanomas, {level_text(alpha)} interval", title="reliability")
    right.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _set_title(figure, f"by {figure_text(column.name)}", title)
    return figure


def roc_curve(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, both from 0 to 1, of a curve whose area is the ROC AUC.

    Scores are compared within folds only: the curves of folds are averaged at every false positive rate, weighted by
    their pairs of a melanoma and a benign image.
    """
    folds, curves, pairs = sample.keys // sample.fold_width, [], []
    for fold in np.unique(folds):
        part = sample.select(folds == fold)
        if 0 < part.labels.sum() < len(part):
            curves.append(_curve(part))
            pairs.append(part.labels.sum() * (~part.labels).sum())
    if len(curves) == 1:
        return curves[0]
    # Steps have two heights, before and after, at one false positive rate.
    false = np.repeat(np.unique(np.concatenate([false for false, _ in curves])), 2)
    true = np.average([_heights(*curve, false[::2]) for curve in curves], axis=0, weights=pairs)
    return np.append(0, false), np.append(0, true)


def _curve(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Rates at every score, by decreasing score."""
    order = np.argsort(-sample.scores, kind="stable")
    labels, scores = sample.labels[order], sample.scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true, false = np.cumsum(labels)[last], np.cumsum(~labels)[last]
    return np.append(0, false / false[-1]), np.append(0, true / true[-1])


def _heights(false: np.ndarray, true: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The lowest and the highest true positive rate of a curve at each of some false positive rates, (2k,)."""
    first, last = np.searchsorted(false, at, "left"), np.searchsorted(false, at, "right") - 1
    between = np.interp(at, false, true)
    known = false[np.minimum(first, len(false) - 1)] == at
    return np.stack([np.where(known, true[first], between), np.where(known, true[last], between)], axis=1).ravel()


def reliability(sample: Sample, alpha: float = 0.05) -> tuple[np.ndarray, ...]:
    """Mean score, share of melanomas, and its limits, in bins of equally many melanomas, ten or more if there are."""
    bins = int(np.clip(sample.labels.sum() // 10, 2, MAX_RELIABILITY_BINS))
    edges = np.unique(np.quantile(sample.scores[sample.labels], np.linspace(0, 1, bins + 1)[1:-1]))
    cell = np.searchsorted(edges, sample.scores, side="right")
    rows = []
    for k in np.unique(cell):
        inside = cell == k
        share = rate(sample, inside, sample.labels)
        rows.append((sample.scores[inside].mean(), share.value, *share.interval(alpha)))
    return tuple(np.array(rows, dtype=float).T)


def plot_gap(
    sample: Sample, column: pd.Series, shown: Mapping[str, GroupMetric], title: str, alpha: float = 0.05
) -> Figure:
    """Sensitivity and specificity of each group minus the first one's, with intervals, against the threshold."""
    reference, *others = shown
    others = sorted(sorted(others, key=lambda group: -shown[group].melanomas)[:MAX_GAPS], key=list(shown).index)
    thresholds = np.unique(np.quantile(sample.scores, np.linspace(0.02, 0.995, THRESHOLDS)))
    operating_points = np.unique(sample.thresholds)[:MAX_OPERATING_POINTS]
    parts = {group: sample.select((column == group).to_numpy()) for group in (reference, *others)}
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for axis, kind in zip(axes, ("sensitivity", "specificity"), strict=True):
        axis.axhline(0, color="0.6", linewidth=1)
        estimate = METRICS[kind].closed_form
        rates = {group: [estimate(_at(part, t)) for t in thresholds] for group, part in parts.items()}
        for group, colour, style in zip(others, COLOURS[1:], STYLES[1:], strict=False):
            gaps = [subtract(one, base) for one, base in zip(rates[group], rates[reference], strict=True)]
            low, high = np.array([gap.interval(alpha) for gap in gaps], dtype=float).T
            axis.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
            values = [gap.value for gap in gaps]
            axis.plot(thresholds, values, color=colour, linestyle=style, linewidth=1.6, label=label_of(shown[group]))
        axis.set(xlabel="threshold", ylabel=f"{kind} minus that of {figure_text(reference)}", title=kind)
        axis.spines[["top", "right"]].set_visible(False)
        for threshold in operating_points:
            axis.axvline(threshold, color="0.3", linewidth=0.9, linestyle=":")
        if thresholds[0] > 0 and thresholds[-1] < 1:
            axis.set_xscale("logit")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter("")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    gap = f"gap to {label_of(shown[reference])} by {figure_text(column.name)}"
    text = f"{gap}; bands: pointwise {level_text(alpha)}; dotted: the threshold"
    _set_title(figure, text, title)
    return figure


def _at(part: Sample, threshold: float) -> Sample:
    """The sample with one threshold for all images."""
    return replace(part, thresholds=np.full(len(part), threshold))


def _set_title(figure: Figure, text: str, title: str) -> None:
    figure.suptitle(f"{figure_text(title)}\n{text}" if title else text, fontsize=10)
