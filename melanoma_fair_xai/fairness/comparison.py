"""Several models on the same lesions: paired differences, what happens to the gaps, and levelling down."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import Markdown, markdown_table, markdown_text, number, write_csv

from .bootstrap import estimate_parts
from .estimates import Difference, Estimate, subtract
from .groups import PRIMARY, all_images, group_columns, reference_group
from .intervals import holm
from .metrics import METRICS, titles
from .predictions import sample_of
from .resampling import bootstrap_strata
from .rows import GapChange, ModelDifference, p_text, with_interval
from .sample import Sample


@dataclass(frozen=True)
class Comparison:
    """Models against the first one, the baseline."""

    baseline: str
    primary: str | None
    differences: list[ModelDifference]
    gaps: list[GapChange]

    @property
    def levelling_down(self) -> list[GapChange]:
        return [gap for gap in self.gaps if gap.levelling_down]

    def to_pandas(self) -> pd.DataFrame:
        """All rows in one table; `kind` is difference or gap."""
        kinds = {"difference": self.differences, "gap": self.gaps}
        return pd.DataFrame([{"kind": kind, **asdict(row)} for kind, rows in kinds.items() for row in rows])

    def to_markdown(self) -> str:
        """Methods in words, then a section for every model."""
        tested = sum(not math.isnan(row.p) for row in self.differences)
        primary = f" and in each group of {markdown_text(self.primary)}" if self.primary else ""
        methods = (
            f"Paired differences from {markdown_text(self.baseline)} on the same lesions, with marginal 95 % "
            "intervals: squared and added limits with the correlation that the common lesions give. p-values "
            f"are adjusted by Holm over {tested} differences: {titles(lambda m: m.tested)} of every model, in all "
            f"images{primary}.\n\n"
            "A gap is a group's value minus the reference group's. Levelling down stands where a gap in "
            f"{titles(lambda m: m.tested)} is narrower while the group that was ahead has lost and the one behind has "
            "not gained, by point estimates. It is bold where both the narrowing and the loss are clear (p < .05, "
            f"adjusted by Holm over {sum(not math.isnan(row.p) for row in self.gaps)} changes), else within chance."
        )
        models = dict.fromkeys(row.model for row in self.differences)
        return "\n\n".join([methods, *(self._section(model) for model in models)]) + "\n"

    def _section(self, model: str) -> str:
        header = ["grouping", "group", "images", "melanomas", "metric"]
        header += [self.baseline, model, "difference", "p (Holm)"]
        rows = [
            [row.group_column, row.group, f"{row.n:,}", f"{row.melanomas:,}", METRICS[row.metric].title]
            + [number(row.baseline_value), number(row.model_value), with_interval(row), p_text(row.p_holm)]
            for row in self.differences
            if row.model == model and row.estimable
        ]
        title = f"## {markdown_text(model)} against {markdown_text(self.baseline)}"
        parts = [title, markdown_table(header, rows)]
        gaps = [row for row in self.gaps if row.model == model]
        if gaps:
            header = ["grouping", "gap", "metric", self.baseline, model, "change", ""]
            rows = [
                [row.group_column, f"{row.group} − {row.reference}", METRICS[row.metric].title]
                + [number(row.baseline_gap), number(row.model_gap), with_interval(row), _flag(row)]
                for row in gaps
            ]
            parts.append(markdown_table(header, rows))
        return "\n\n".join(parts)

    def write(self, folder: str | Path) -> None:
        """Write comparison.csv and comparison.md to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.to_pandas(), folder / "comparison.csv")
        with atomic_path(folder / "comparison.md") as path:
            path.write_text("# Models compared\n\n" + self.to_markdown(), encoding="utf-8")


def compare(
    tables: Mapping[str, pd.DataFrame],
    group_by: Sequence[str] | None = None,
    reference: Mapping[str, str] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    case_control: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Compare models with the first one, overall and by group.

    Args:
        tables: predictions tables of the same images, by model; each model has its own scores and thresholds. A table
            may hold an image once in every fold (runs of several seeds, say).
        group_by: as in `group_columns`; by default whatever the first table allows.
        reference, n_resamples, seed, case_control: as in `evaluate`.

    Raises:
        UserError: fewer than two tables, other images or labels than the first one's, and as `evaluate`.
    """
    if len(tables) < 2:
        raise UserError("give two sets of predictions or more to compare")
    (baseline, first), *others = tables.items()
    aligned = {baseline: first, **{name: _align(first, table, baseline, name) for name, table in others}}
    # All on the baseline's lesions, whose codes are then the same.
    lesions = first["lesion_id"].to_numpy()
    samples = {name: sample_of(table.assign(lesion_id=lesions)) for name, table in aligned.items()}
    columns = group_columns(first, group_by)
    primary = PRIMARY if PRIMARY in columns else next(iter(columns), None)
    differences, gaps = _compare_column(samples, all_images(len(first)), None, True, n_resamples, seed, case_control)
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        base = reference_group(columns[name], samples[baseline].labels, reference, name)
        more, changes = _compare_column(samples, columns[name], base, name == primary, n_resamples, seed, case_control)
        differences += more
        gaps += changes
    adjusted = holm(np.array([row.p for row in differences]))
    differences = [replace(row, p_holm=float(p)) for row, p in zip(differences, adjusted, strict=True)]
    adjusted = holm(np.array([row.p for row in gaps]))
    gaps = [replace(row, p_holm=float(p), loss_is_clear=bool(p < 0.05)) for row, p in zip(gaps, adjusted, strict=True)]
    return Comparison(baseline, primary, differences, gaps)


def _align(first: pd.DataFrame, table: pd.DataFrame, baseline: str, name: str) -> pd.DataFrame:
    """The rows of `table` in the order of `first`."""
    keys = [_image_keys(first, baseline), _image_keys(table, name)]
    missing = keys[0].difference(keys[1]), keys[1].difference(keys[0])
    if len(missing[0]) or len(missing[1]):
        raise UserError(
            f"{name} and {baseline} are not about the same images: {len(missing[0])} are only in {baseline}, "
            f"{len(missing[1])} only in {name}\nscore both on the same split"
        )
    table = table.iloc[keys[1].get_indexer(keys[0])]
    if (table["label"].to_numpy() != first["label"].to_numpy()).any():
        raise UserError(
            f"{name} and {baseline} have different labels for the same images; compare one target at a time"
        )
    return table


def _image_keys(table: pd.DataFrame, name: str) -> pd.Index:
    columns = [column for column in ("image_id", "fold") if column in table]
    if "image_id" not in columns:
        raise UserError(f"{name}: no column image_id, by which models are paired")
    keys = pd.MultiIndex.from_frame(table[columns])
    if keys.has_duplicates:
        raise UserError(f"{name}: image {keys[keys.duplicated()][0][0]} stands more than once")
    return keys


def _flag(row: GapChange) -> str:
    if not row.levelling_down:
        return ""
    return Markdown("**levelling down**") if row.loss_is_clear else "levelling down, within chance"


def _compare_column(
    samples: Mapping[str, Sample],
    column: pd.Series,
    reference: str | None,
    tested: bool,
    n_resamples: int,
    seed: int,
    case_control: bool,
) -> tuple[list[ModelDifference], list[GapChange]]:
    name = str(column.name)
    baseline, *others = samples
    codes = column.cat.codes.to_numpy().astype(np.int64)
    parts = {
        (model, group): sample.select(codes == code)
        for code, group in enumerate(column.cat.categories)
        for model, sample in samples.items()
    }
    strata = bootstrap_strata(samples[baseline], codes, case_control)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    estimates = estimate_parts(parts, strata, n_resamples, rng)
    differences = []
    for group in column.cat.categories:
        part = parts[baseline, group]
        counts = (len(part), len(np.unique(part.lesions)), int(part.labels.sum()))
        for model in others:
            for metric in METRICS:
                pair = estimates[baseline, group].get(metric), estimates[model, group].get(metric)
                row = ModelDifference(name, group, metric, model, *counts)
                if None not in pair:
                    row = _with_difference(row, *pair, tested)
                differences.append(row)
    gaps = _gap_changes(estimates, list(samples), column, name, reference) if reference else []
    return differences, gaps


def _with_difference(row: ModelDifference, baseline: Estimate, model: Estimate, tested: bool) -> ModelDifference:
    difference = subtract(model, baseline)
    low, high = difference.interval()
    return replace(
        row,
        baseline_value=baseline.value,
        model_value=model.value,
        value=difference.value,
        low=float(low),
        high=float(high),
        p=difference.p_value() if tested and METRICS[row.metric].tested else math.nan,
        estimable=True,
    )


def _gap_changes(
    estimates: Mapping[tuple[str, str], Mapping[str, Estimate]],
    models: list[str],
    column: pd.Series,
    name: str,
    reference: str,
) -> list[GapChange]:
    baseline, *others = models
    changes = []
    for model in others:
        for group in column.cat.categories:
            if group in (reference, UNKNOWN):
                continue
            for metric in [metric for metric, row in METRICS.items() if row.better]:
                if not all(metric in estimates[key] for key in product((baseline, model), (group, reference))):
                    continue
                base, base_of_reference = (estimates[baseline, key][metric] for key in (group, reference))
                gained = subtract(estimates[model, group][metric], base)
                reference_gained = subtract(estimates[model, reference][metric], base_of_reference)
                before = base.value - base_of_reference.value
                change = subtract(gained, reference_gained)
                low, high = map(float, change.interval())
                gap = (before, before + change.value, change.value, low, high)
                row = GapChange(name, group, reference, metric, model, *gap)
                if METRICS[metric].tested:
                    ahead = _loser(METRICS[metric].better, before, gained, reference_gained)
                    p = max(change.p_value(), ahead.p_value()) if ahead else 1.0
                    row = replace(row, levelling_down=ahead is not None, p=p)
                changes.append(row)
    return changes


def _loser(better: str, before: float, gained: Difference, reference_gained: Difference) -> Difference | None:
    """What the group that was ahead has gained, if a gap, `before`, has narrowed by its loss alone; else None.

    `gained` is what the model adds to the baseline's value in the group, `reference_gained` that in the reference.
    """
    sign = 1 if better == "higher" else -1
    ahead, behind = (gained, reference_gained) if sign * before > 0 else (reference_gained, gained)
    # Where both have lost as much, rounding must not make it narrower.
    narrower = abs(before) - abs(before + gained.value - reference_gained.value) > 1e-12
    # Where the one behind has not gained, the gap cannot have narrowed unless the one ahead has lost.
    return ahead if narrower and sign * behind.value <= 0 else None
