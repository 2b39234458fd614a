"""The report's figures."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from melanoma_fair_xai.base.tables import figure_text

from .controls import CASCADE, CONTROLS
from .fidelity import PERCENTILES
from .measures import MEASURES

METHOD_COLOUR = "#000000"


def plot_fidelity(curves: dict[tuple[str, str], np.ndarray], method: str, path: Path) -> None:
    """The study's figure: mean curves of both kinds with the controls, and per image a box plot and a histogram."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, (kind, title) in zip(
        axes[0], [("blacken", "pixels blackened"), ("randomise", "pixels randomised")], strict=True
    ):
        usable = np.isfinite(curves["", kind]).all(axis=1)  # the same images for every curve
        lines = [(name, control.title, control.colour, 1.2) for name, control in CONTROLS.items()]
        for name, label, colour, width in (*lines, ("", method, METHOD_COLOUR, 2.5)):
            curve = curves[name, kind][usable]
            if np.isfinite(curve).any():
                axis.plot(PERCENTILES, np.nanmean(curve, axis=0), label=label, color=colour, linewidth=width)
        axis.set(xlabel="pixels above this percentile are changed", ylabel="mean |change of score|", title=title)
        axis.set_ylim(bottom=0)
    if axes[0, 0].lines:  # none where no map of any image could be used
        axes[0, 0].legend(frameon=False)
    curve = curves["", "blacken"]
    curve = curve[np.isfinite(curve).all(axis=1)]
    axes[1, 0].boxplot(curve, tick_labels=[str(p) for p in PERCENTILES], flierprops={"markersize": 2})
    axes[1, 0].set(xlabel="percentile", ylabel="|change of score|", title=f"{method}, blackened, by image")
    axes[1, 0].tick_params("x", labelsize=7)
    axes[1, 1].hist(curve.mean(axis=1), bins=30, range=(0, max(0.1, curve.mean(axis=1).max(initial=0))), color="0.4")
    axes[1, 1].set(xlabel="fidelity (mean over percentiles)", ylabel="images", title=f"{method}, blackened")
    _save(figure, path)


def plot_against_controls(comparison: pd.DataFrame, path: Path) -> None:
    """For each measure, the paired advantage of the method over each control with its interval, in its own unit."""
    rows = comparison[comparison["over_centre"].notna()]
    columns = 4
    figure = Figure(figsize=(12, 1.75 * -(-len(rows) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(rows) // columns), columns, squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for place, (axis, (_, row)) in enumerate(zip(axes.flat, rows.iterrows(), strict=False)):
        for height, (name, control) in enumerate(reversed(CONTROLS.items())):
            values = [row[f"over_{name}{end}"] for end in ("", "_low", "_high")]
            _interval(axis, height, *values, control.colour)
        titles = [control.title if place % columns == 0 else "" for control in reversed(CONTROLS.values())]
        axis.set_yticks(range(len(titles)), titles, fontsize=8)
        axis.set_ylim(-0.6, len(titles) - 0.4)
        axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        axis.set_title(MEASURES[row["measure"]].title, fontsize=9)
        axis.tick_params("x", labelsize=7)
    figure.suptitle("advantage over each control (right of zero: better than the control)", fontsize=11)
    _save(figure, path)


def plot_cascade(groups: pd.DataFrame, path: Path) -> None:
    """Similarity of the map to those of nets with more and more shuffled layers."""
    overall = groups[groups["group_column"] == "all"].set_index("measure")
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axis = figure.subplots()
    at = [100 * share for share in CASCADE]
    for name, title, colour in (("spearman", "Spearman", "#0072B2"), ("ssim", "SSIM", "#D55E00")):
        rows = overall.reindex([f"{name}_shuffled_{share:g}" for share in CASCADE])
        rows = rows[["mean", "low", "high"]].astype(float)
        axis.plot(at, rows["mean"], "o-", color=colour, label=title)
        axis.fill_between(at, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(xlabel="% of layers shuffled, from the last on (0: the last alone)", ylabel="similarity to the map")
    axis.set_title("weights shuffled: a map that stays does not show the net", fontsize=10)
    axis.legend(frameon=False)
    _save(figure, path)


def plot_groups(groups: pd.DataFrame, titles: dict[str, str], path: Path) -> None:
    """Means with intervals of the measures that have a title, one panel each, by every group that can be estimated."""
    groups = groups[groups["measure"].isin(titles) & groups["estimable"]]
    labels = groups[["group_column", "group"]].drop_duplicates()
    places = {(column, group): -i for i, (column, group) in enumerate(labels.itertuples(index=False))}
    figure = Figure(figsize=(2.3 * len(titles) + 2, 0.22 * len(places) + 1), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for number, (axis, measure) in enumerate(zip(axes, titles, strict=True)):
        for row in groups[groups["measure"] == measure].itertuples():
            overall = row.group_column == "all"
            colour = METHOD_COLOUR if overall else "#0072B2"
            _interval(axis, places[row.group_column, row.group], row.mean, row.low, row.high, colour)
            if overall:
                axis.axvline(row.mean, color="0.8", linewidth=0.8, zorder=0)
        names = [figure_text(f"{column}: {group}" if column != "all" else "all") for column, group in places]
        axis.set_yticks(list(places.values()), names if number == 0 else [""] * len(names), fontsize=8)
        axis.set_ylim(-len(places) + 0.4, 0.6)
        axis.set_title(titles[measure], fontsize=9)
        axis.tick_params("x", labelsize=7)
    _save(figure, path)


def _interval(axis: Axes, height: float, mean: float, low: float, high: float, colour: str) -> None:
    if np.isfinite(low):
        axis.plot([low, high], [height, height], color=colour, linewidth=2)
    axis.plot([mean], [height], "o", color=colour, markersize=4)


def _save(figure: Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
