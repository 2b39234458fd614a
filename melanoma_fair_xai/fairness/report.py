"""What an evaluation by group says: one table of its rows, and a report to read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
from tqdm.auto import tqdm

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import markdown_table, markdown_text, number, write_csv

from .family import ADJUSTED, PROCEDURES, Family, adjusted_p
from .metrics import METRICS, MINIMUM_LESIONS, Metric, titles
from .rows import NOT_ESTIMABLE, Contrast, GroupMetric, WorstGroup, level_text, p_text, with_interval
from .sample import Sample


@dataclass(frozen=True)
class Plan:
    """What is estimated, and how; see `evaluate`."""

    metrics: Mapping[str, Metric]
    n_resamples: int
    seed: int
    case_control: bool
    family: Family
    alpha: float

    def __post_init__(self):
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha: {self.alpha}; give one between 0 and 1, such as 0.05 for 95 % intervals")
        if self.n_resamples < 0 or self.n_resamples == 1:
            raise UserError(f"n_resamples: {self.n_resamples}; give 0 for no bootstrap, else two or more")
        if self.family not in ADJUSTED:
            raise UserError(f"family: {self.family}; give one of {', '.join(ADJUSTED)}")

    def has_interval(self, metric: str) -> bool:
        row = self.metrics[metric]
        return not row.point_estimate and (row.closed_form is not None or self.n_resamples > 0)


@dataclass(frozen=True, repr=False)
class FairnessReport:
    """Performance by group with intervals. `overall`, `by_group`, `contrasts` and `worst_group` are lists of rows."""

    overall: list[GroupMetric]
    by_group: list[GroupMetric]
    contrasts: list[Contrast]
    worst_group: list[WorstGroup]
    primary: str | None
    reference: dict[str, str | None]
    plan: Plan
    lesions_known: bool
    sample: Sample
    groups: pd.DataFrame

    def __repr__(self) -> str:
        row = self.overall[0]
        by = f", by {', '.join(self.groups)}" if len(self.groups.columns) else ""
        return f"FairnessReport({row.n:,} images, {row.lesions:,} lesions, {row.melanomas:,} melanomas{by})"

    def to_wide(self) -> pd.DataFrame:
        """One row per group column and group, the first of all images; (metric, value | low | high) as columns."""
        table = pd.DataFrame([asdict(row) for row in self.overall + self.by_group])
        places = ["group_column", "group", "n", "lesions", "melanomas", "melanoma_lesions"]
        wide = table.pivot(index=places, columns="metric", values=["value", "low", "high"]).swaplevel(axis=1)
        order = pd.MultiIndex.from_product([table["metric"].unique(), ["value", "low", "high"]])
        return wide.reindex(columns=order, index=pd.MultiIndex.from_frame(table[places].drop_duplicates()))

    def difference(self) -> pd.Series:
        """The gap between best and worst group by (group_column, metric), a description: it is never below zero."""
        return pd.Series(
            {(row.group_column, row.metric): row.gap for row in self.worst_group}, dtype=float, name="gap"
        )

    def to_pandas(self) -> pd.DataFrame:
        """All rows in one table; `kind` is metric, contrast or worst_group."""
        kinds = {"metric": self.overall + self.by_group, "contrast": self.contrasts, "worst_group": self.worst_group}
        rows = [{"kind": kind, **asdict(row)} for kind, rows in kinds.items() for row in rows]
        order = ["kind", "group_column", "group", "reference", "best_group", "metric", "n", "lesions", "melanomas"]
        order += ["melanoma_lesions", "value", "low", "high", "estimable", "gap", "p", "p_holm", "q", "groups"]
        return pd.DataFrame(rows).reindex(columns=order)

    def to_markdown(self, figures: Mapping[str, Sequence[str]] | None = None) -> str:
        """The report: methods in words, then tables for every group column, and links to its `figures`, if given."""
        parts = [self._methods(), _section("All images", self.overall, [], [], (), self.plan.family)]
        for column in self.groups:
            title = markdown_text(column) + (" (primary grouping)" if column == self.primary else "")
            rows = (_of(column, rows) for rows in (self.by_group, self.contrasts, self.worst_group))
            parts.append(_section(title, *rows, (figures or {}).get(column, ()), self.plan.family))
        return "\n\n".join(parts) + "\n"

    def write(
        self, folder: str | Path, title: str = "", name: str = "fairness.md", show_progress: bool = False
    ) -> None:
        """Write fairness.csv, the report as `name`, and figures/ with those of every group column, to a folder.

        Files of these names are replaced.
        """
        from .figures import draw_figures  # loads matplotlib, which nothing else here needs

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        figures = {
            column: draw_figures(
                folder / "figures", self.sample, groups, self.overall, _of(column, self.by_group),
                self.reference[column], title, self.plan.alpha,
            )
            for column, groups in tqdm(self.groups.items(), "figures", unit="column", disable=not show_progress)
        }  # fmt: skip
        write_csv(self.to_pandas(), folder / "fairness.csv")
        heading = f"# Performance by group{': ' + markdown_text(title) if title else ''}\n\n"
        with atomic_path(folder / name) as path:
            path.write_text(heading + self.to_markdown(figures), encoding="utf-8")

    def _methods(self) -> str:
        tested = [row for row in self.contrasts if not math.isnan(row.p)]
        stricter = [f"{m.title} {m.minimum}" for m in METRICS.values() if m.minimum > MINIMUM_LESIONS]
        lines = [
            f"Square brackets hold {level_text(self.plan.alpha)} intervals that count lesions, not images: "
            "Clopper-Pearson on the effective sample size for sensitivity and specificity (squared and added for "
            "balanced accuracy), score limits with clustered DeLong's design effect for ROC AUC, and a lesion "
            f"bootstrap {self._drawn()} ({self.plan.n_resamples:,} replicates, seed {self.plan.seed}) for the rest; "
            f"{titles(lambda m: m.point_estimate)} is a point estimate. Degrees of freedom are those of Kish's "
            "effective number of lesions. Intervals are marginal, not widened for the number of groups. Groups whose "
            "intervals overlap may still differ; the contrasts say whether they do. "
            f"{titles(lambda m: m.with_prevalence)} depend on the prevalence beside them, and ECE is biased upwards "
            "where images are few.",
            f"{titles(lambda m: m.at_threshold)} are conditional on the threshold as it stands: another validation "
            "set would have led to another, which their intervals do not include.",
            f'"{NOT_ESTIMABLE}" stands where under {MINIMUM_LESIONS} lesions carry a class that the metric needs, '
            f"for {' and '.join(stricter)}, or where so few of them have most of the images that their effective "
            "number is under half of that.",
        ]
        if tested:
            lines.append(
                f"{self._family(tested)} A contrast of sensitivity is the gap in equal opportunity; with that of "
                "specificity it is the gap in equalized odds."
            )
        if not self.lesions_known:
            lines.append("No lesion ids were given: every image counts as a lesion, and intervals may be too narrow.")
        return "\n\n".join(lines)

    def _family(self, tested: Sequence[Contrast]) -> str:
        """What is adjusted, and what is not."""
        metrics = titles(lambda m: m.tested)
        if self.plan.family == "primary":
            return (
                f"p-values are adjusted by Holm over {len(tested)} contrasts, of {metrics} between the groups of "
                f"{markdown_text(self.primary)}; all other contrasts are descriptions. Nothing else is adjusted: of "
                "the p-values of equal performance in several columns some fall below .05 by chance."
            )
        equal = sum(not math.isnan(row.p) for row in self.worst_group)
        return (
            f"All {len(tested) + equal} p-values of this report are adjusted together, by "
            f"{PROCEDURES[self.plan.family]}: {len(tested)} contrasts of {metrics} and {equal} tests of equal "
            "performance, in all columns. All other contrasts are descriptions."
        )

    def _drawn(self) -> str:
        return "within groups and classes" if self.plan.case_control else "with numbers of melanomas that are chance"


Row = TypeVar("Row", GroupMetric, Contrast, WorstGroup)


def _of(column: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.group_column == column]


def _section(
    title: str,
    rows: list[GroupMetric],
    contrasts: list[Contrast],
    worst: list[WorstGroup],
    figures: Sequence[str],
    family: Family,
) -> str:
    parts = [f"## {title}", _metric_tables(rows)]
    decisions = [METRICS[metric].title for metric in {row.metric: 0 for row in rows} if METRICS[metric].at_threshold]
    if decisions:
        parts.append(f"Conditional on the threshold: {', '.join(decisions)}.")
    if contrasts:
        parts.append(_contrast_table(contrasts, family))
    if worst:
        parts.append(_worst_table(worst, family))
    parts += [f"![{Path(name).stem.replace('_', ' ')}](figures/{name})" for name in figures]
    return "\n\n".join(parts)


def _halves(rows: Sequence[GroupMetric | Contrast]) -> list[list[str]]:
    """The metrics of the rows in two halves, so that a table of each fits a page."""
    present = [metric for metric in METRICS if any(row.metric == metric for row in rows)]
    half = (len(present) + 1) // 2
    return [part for part in (present[:half], present[half:]) if part]


def _metric_tables(rows: list[GroupMetric]) -> str:
    cells = {(row.group, row.metric): with_interval(row) for row in rows}
    groups = {row.group: row for row in rows}
    tables = []
    for metrics in _halves(rows):
        header = ["group", "images", "lesions", "melanomas (lesions)", "prevalence"]
        header += [METRICS[metric].title for metric in metrics]
        body = [
            [
                group,
                f"{row.n:,}",
                f"{row.lesions:,}",
                f"{row.melanomas:,} ({row.melanoma_lesions:,})",
                f"{100 * row.prevalence:.1f} %",
                *(cells[group, metric] for metric in metrics),
            ]
            for group, row in groups.items()
        ]
        tables.append(markdown_table(header, body))
    return "\n\n".join(tables)


def _contrast_table(contrasts: list[Contrast], family: Family) -> str:
    found = {(row.group, row.metric): row for row in contrasts}
    tables = []
    for metrics in _halves(contrasts):
        tested = {metric for metric in metrics for row in contrasts if row.metric == metric and not math.isnan(row.p)}
        header = ["group"]
        for metric in metrics:
            header += [METRICS[metric].title, "p", ADJUSTED[family]] if metric in tested else [METRICS[metric].title]
        body = []
        for group in dict.fromkeys(row.group for row in contrasts if row.estimable and row.metric in metrics):
            line = [group]
            for metric in metrics:
                row = found[group, metric]
                p_values = [p_text(row.p), p_text(adjusted_p(row, family))]
                line += [with_interval(row)] + (p_values if metric in tested else [])
            body.append(line)
        if body:
            tables.append(markdown_table(header, body))
    reference = markdown_text(contrasts[0].reference)
    return f"Differences from {reference}:\n\n" + ("\n\n".join(tables) or NOT_ESTIMABLE)


def _worst_table(worst: list[WorstGroup], family: Family) -> str:
    alone = family == "primary"
    header = ["metric", "worst group", "its value", "best group", "gap", "p (all equal)"]
    header += [] if alone else [ADJUSTED[family]]
    body = [
        [METRICS[row.metric].title, row.group, number(row.value), row.best_group, number(row.gap), p_text(row.p)]
        + ([] if alone else [p_text(adjusted_p(row, family))])
        for row in worst
    ]
    text = (
        "The gap between the best and the worst estimable group is a description. Beside it stands the p-value"
        f"{', not adjusted,' if alone else ''} of equal performance in all of them: Wald's test on the logit scale, "
        "with the covariances that common lesions give and Welch's degrees of freedom. There is none where a group's "
        "value is 0 or 1."
    )
    return f"{text}\n\n{markdown_table(header, body)}"
