"""Several models on the same lesions: paired differences, what happens to the gaps, and levelling down."""

import math
import zlib
from collections import ChainMap
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
from .estimates import Estimate, subtract
from .family import ADJUSTED, PROCEDURES, Family, adjust, adjusted_p
from .groups import PRIMARY, all_images, group_columns, reference_group
from .intervals import p_value
from .metrics import AT_FIXED, METRICS, effective_lesions, titles
from .predictions import Validation, sample_of
from .resampling import bootstrap_strata
from .rows import GapChange, ModelDifference, p_text, with_interval
from .sample import Sample
from .seeds import pool
from .thresholds import ChosenThresholds, ThresholdChooser

COMPARED = ChainMap(AT_FIXED, METRICS)  # those of all reports come first


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models against the first one, the baseline.

    `trainings` is the number of seeds of each model; `thresholds_carried`: differences of decisions carry the variance
    of the thresholds that were chosen on validation, else they are conditional on them.
    """

    baseline: str
    primary: str | None
    family: Family
    trainings: int
    thresholds_carried: bool
    differences: list[ModelDifference]
    gaps: list[GapChange]

    def __repr__(self) -> str:
        models = dict.fromkeys(row.model for row in self.differences)
        return f"Comparison({', '.join(models)} against {self.baseline}: {self.differences[0].n:,} images)"

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
        if self.family == "primary":
            places = f" and in each group of {markdown_text(self.primary)}" if self.primary else ""
        else:
            places = " and in each group of every column"
        decisions = titles(lambda m: m.at_threshold, COMPARED)
        fixed = titles(lambda m: m.tested and not m.at_threshold, COMPARED)
        if self.thresholds_carried:
            thresholds = (
                "include that another validation set would have led to another threshold: lesions of validation and "
                "test are drawn together, and thresholds chosen again in every replicate"
            )
        else:
            thresholds = (
                "are conditional on these thresholds, as what they were chosen on is not at hand: another validation "
                "set would have led to others, so that they have no p-value"
            )
        lines = [
            f"Paired differences from {markdown_text(self.baseline)} on the same lesions, with marginal 95 % "
            "intervals.",
            f"Those at each model's own threshold are {decisions}. Their intervals {thresholds}. What compares models "
            f"whatever their thresholds is {fixed}.",
            f"p-values are adjusted by {PROCEDURES[self.family]} over {tested} differences: "
            f"{titles(lambda m: m.tested and (self.thresholds_carried or not m.at_threshold), COMPARED)} of every "
            f"model, in all images{places}. Nothing else is tested, and intervals are not widened for their number.",
            "A gap is a group's value minus the reference group's. Levelling down stands where a gap in "
            f"{titles(lambda m: m.tested)} is narrower while the group that was ahead has lost and the one behind has "
            "not gained, by point estimates. It is bold where both the narrowing and the loss are clear (p < .05, "
            f"adjusted by Holm over {sum(not math.isnan(row.p) for row in self.gaps)} changes), else within chance.",
        ]
        if self.trainings > 1:
            lines[1:1] = [
                f"Each model was trained with {self.trainings} seeds. Values are means over its trainings, images "
                "count once, and intervals are for another training and other lesions: the differences between seeds "
                "are part of them, as readers are where several read the same cases (Obuchowski and Rockette, with "
                "Hillis's degrees of freedom)."
            ]
        methods = "\n\n".join(lines)
        models = dict.fromkeys(row.model for row in self.differences)
        return "\n\n".join([methods, *(self._section(model) for model in models)]) + "\n"

    def _title(self, metric: str) -> str:
        conditional = COMPARED[metric].at_threshold and not self.thresholds_carried
        return COMPARED[metric].title + (", given the thresholds" if conditional else "")

    def _section(self, model: str) -> str:
        header = ["grouping", "group", "images", "melanomas", "metric"]
        header += [self.baseline, model, "difference", ADJUSTED[self.family]]
        rows = [
            [row.group_column, row.group, f"{row.n:,}", f"{row.melanomas:,}", self._title(row.metric)]
            + [
                number(row.baseline_value),
                number(row.model_value),
                with_interval(row),
                p_text(adjusted_p(row, self.family)),
            ]
            for row in self.differences
            if row.model == model and row.estimable
        ]
        title = f"## {markdown_text(model)} against {markdown_text(self.baseline)}"
        parts = [title, markdown_table(header, rows)]
        gaps = [row for row in self.gaps if row.model == model]
        if gaps:
            header = ["grouping", "gap", "metric", self.baseline, model, "change", ""]
            rows = [
                [row.group_column, f"{row.group} − {row.reference}", self._title(row.metric)]
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
    validation: Mapping[str, Validation] | None = None,
    family: Family = "primary",
) -> Comparison:
    """Compare models with the first one, overall and by group.

    Args:
        tables: predictions tables of the same images, by model; each model has its own scores and thresholds. With a
            column `seed` a table holds the predictions of several trainings, and what is compared is their mean.
        group_by: as in `group_columns`; by default whatever the first table allows.
        reference, n_resamples, seed, case_control: as in `evaluate`.
        validation: by model, what its thresholds were chosen on, if it is known of all models: sensitivities and other
            metrics of decisions then carry the variance of that choice, and are tested. Without it they are
            conditional on the thresholds as they stand.
        family: `primary` tests differences in all images and in the groups of the primary grouping, and adjusts them
            by Holm; `holm` and `benjamini-hochberg` do so over the groups of all columns.

    Raises:
        UserError: fewer than two tables, other images, labels or seeds than the first one's, an image that stands
            twice, thresholds that the rule does not choose on the validation images, and as `evaluate`.
    """
    if len(tables) < 2:
        raise UserError("give two sets of predictions or more to compare")
    (baseline, first), *others = tables.items()
    aligned = {baseline: first, **{name: _align(first, table, baseline, name) for name, table in others}}
    known = validation if validation and set(validation) >= set(tables) else {}
    # All on the baseline's lesions, and those of validation after them, whose codes are the same for all.
    lesions = pd.Index(pd.unique(_lesions(first)))
    for one in known.values():
        lesions = lesions.append(pd.Index(pd.unique(_lesions(one.table))).difference(lesions, sort=False))
    codes = lesions.get_indexer(_lesions(first))
    samples = {name: sample_of(table.assign(lesion_id=codes)) for name, table in aligned.items()}
    trainings = _trainings(first)
    chosen = {
        (name, training): _chosen(aligned[name], rows, known[name], lesions, training, name)
        for name in known
        for training, rows in trainings.items()
    }
    models = _Models(
        samples, trainings, pd.factorize(first["image_id"])[0], chosen, len(lesions), n_resamples, seed, case_control
    )
    columns = group_columns(first, group_by)
    primary = PRIMARY if PRIMARY in columns else next(iter(columns), None)
    differences, gaps = _compare_column(models, all_images(len(first)), None, True)
    for name in tqdm(list(columns), desc="groups", unit="column", disable=not show_progress):
        base = reference_group(columns[name], samples[baseline].labels, reference, name)
        tested = name == primary or family != "primary"
        more, changes = _compare_column(models, columns[name], base, tested)
        differences += more
        gaps += changes
    gaps = [replace(row, loss_is_clear=row.p_holm < 0.05) for row in adjust(gaps, "holm")]
    return Comparison(baseline, primary, family, len(trainings), bool(known), adjust(differences, family), gaps)


def _lesions(table: pd.DataFrame) -> pd.Series:
    """Without a column lesion_id every image is a lesion of its own."""
    return table["lesion_id" if "lesion_id" in table else "image_id"]


@dataclass(frozen=True)
class _Models:
    """What every group column is compared on: samples by model, rows (n,) by training, codes (n,) of the images."""

    samples: Mapping[str, Sample]
    trainings: Mapping[int, np.ndarray]
    images: np.ndarray
    chosen: Mapping[tuple[str, int], ChosenThresholds]
    lesions: int
    n_resamples: int
    seed: int
    case_control: bool


def _trainings(table: pd.DataFrame) -> dict[int, np.ndarray]:
    """The rows of each training, by its seed. UserError for an image that a training scored twice."""
    seeds = table["seed"] if "seed" in table else pd.Series(0, index=table.index)
    for training, part in table.groupby(seeds.to_numpy()):
        if part["image_id"].duplicated().any():
            twice = part["image_id"][part["image_id"].duplicated()].iloc[0]
            raise UserError(
                f"image {twice} stands more than once in seed {training}; trainings with several seeds are told apart "
                "by a column seed"
            )
    return {training: (seeds == training).to_numpy() for training in sorted(seeds.unique())}


def _chosen(
    table: pd.DataFrame, rows: np.ndarray, validation: Validation, lesions: pd.Index, training: int, name: str
) -> ChosenThresholds:
    """How the thresholds of a training, `rows` of the table, were chosen, in the order of the sample's folds."""
    scored = validation.table
    scored = scored[scored["seed"] == training] if "seed" in scored else scored
    choosers, codes = [], []
    for fold in pd.unique(table["fold"]) if "fold" in table else [None]:
        part = scored if fold is None else scored[scored["fold"] == fold]
        scores, labels = part["score"].to_numpy(), part["label"].to_numpy().astype(bool)
        if labels.all() or not labels.any():
            raise UserError(f"{name}: validation images of fold {fold} are not of both classes")
        chooser = ThresholdChooser(scores, labels, validation.rule)
        used = table["threshold"][rows if fold is None else rows & (table["fold"] == fold).to_numpy()].iloc[0]
        if not chooser.agrees(used):
            again = chooser.choose(np.ones((len(part), 1)))[0]
            raise UserError(
                f"{name}: {validation.rule} gives the threshold {again:.4g} on its validation images, where its "
                f"predictions have {used:.4g}; compare without validation"
            )
        choosers.append(chooser)
        codes.append(lesions.get_indexer(_lesions(part)))
    return ChosenThresholds(choosers, codes)


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
    columns = [column for column in ("image_id", "fold", "seed") if column in table]
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
    models: _Models, column: pd.Series, reference: str | None, tested: bool
) -> tuple[list[ModelDifference], list[GapChange]]:
    name = str(column.name)
    baseline, *others = models.samples
    codes = column.cat.codes.to_numpy().astype(np.int64)
    parts = {
        (model, training, group): sample.select(rows & (codes == code))
        for code, group in enumerate(column.cat.categories)
        for model, sample in models.samples.items()
        for training, rows in models.trainings.items()
    }
    chosen = {key: models.chosen[key[:2]] for key in parts if key[:2] in models.chosen}
    first = models.samples[baseline]
    strata = bootstrap_strata(first, codes, models.case_control)
    # Lesions of validation that are not tested are drawn on their own.
    strata = np.concatenate([strata, np.full(models.lesions - len(strata), -1)])
    rng = np.random.default_rng([models.seed, zlib.crc32(name.encode())])
    estimates = estimate_parts(parts, strata, models.n_resamples, rng, COMPARED, chosen)
    differences = []
    for code, group in enumerate(column.cat.categories):
        part = first.select(codes == code)
        images = models.images[codes == code]
        melanomas = len(np.unique(images[part.labels]))
        counts = (len(np.unique(images)), len(np.unique(part.lesions)), melanomas)
        for model in others:
            for metric in COMPARED:
                pairs = [
                    (estimates[baseline, training, group].get(metric), estimates[model, training, group].get(metric))
                    for training in models.trainings
                ]
                conditional = COMPARED[metric].at_threshold and not chosen
                row = ModelDifference(name, group, metric, model, *counts, conditional=conditional)
                if all(None not in pair for pair in pairs):
                    row = _with_difference(row, pairs, _rarer(part, metric), tested and not conditional)
                differences.append(row)
    gaps = _gap_changes(models, estimates, column, reference) if reference else []
    return differences, gaps


def _rarer(part: Sample, metric: str) -> float:
    """How many lesions the metric's rarer class has, by Kish's effective number."""
    return min(effective_lesions(part)[label] for label in COMPARED[metric].classes)


def _with_difference(
    row: ModelDifference, pairs: Sequence[tuple[Estimate, Estimate]], lesions: float, tested: bool
) -> ModelDifference:
    """The row of the pairs, baseline and model, that the trainings give."""
    difference = pool([subtract(model, baseline) for baseline, model in pairs], lesions)
    low, high = difference.interval()
    if COMPARED[row.metric].bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    return replace(
        row,
        baseline_value=float(np.mean([baseline.value for baseline, _ in pairs])),
        model_value=float(np.mean([model.value for _, model in pairs])),
        value=difference.value,
        low=float(low),
        high=float(high),
        p=p_value(difference.bounds) if tested and COMPARED[row.metric].tested else math.nan,
        estimable=True,
    )


def _gap_changes(
    models: _Models,
    estimates: Mapping[tuple[str, int, str], Mapping[str, Estimate]],
    column: pd.Series,
    reference: str,
) -> list[GapChange]:
    baseline, *others = models.samples
    changes = []
    known = [group for group in column.cat.categories if group not in (reference, UNKNOWN)]
    directed = [metric for metric, row in COMPARED.items() if row.better]
    for model, group, metric in product(others, known, directed):
        places = product((baseline, model), models.trainings, (group, reference))
        if not all(metric in estimates[key] for key in places):
            continue
        part = models.samples[baseline].select((column == group).to_numpy())
        gained, reference_gained = (
            [subtract(*(estimates[name, t, place][metric] for name in (model, baseline))) for t in models.trainings]
            for place in (group, reference)
        )
        gaps = [
            estimates[baseline, t, group][metric].value - estimates[baseline, t, reference][metric].value
            for t in models.trainings
        ]
        before, lesions = float(np.mean(gaps)), _rarer(part, metric)
        change = pool([subtract(*pair) for pair in zip(gained, reference_gained, strict=True)], lesions)
        low, high = map(float, change.interval())
        gap = (before, before + change.value, change.value, low, high)
        row = GapChange(str(column.name), group, reference, metric, model, *gap)
        if COMPARED[metric].tested and metric not in AT_FIXED:
            ahead = _loser(COMPARED[metric].better, before, pool(gained, lesions), pool(reference_gained, lesions))
            p = max(p_value(change.bounds), p_value(ahead.bounds)) if ahead else 1.0
            row = replace(row, levelling_down=ahead is not None, p=p)
        changes.append(row)
    return changes


def _loser(better: str, before: float, gained: Estimate, reference_gained: Estimate) -> Estimate | None:
    """What the group that was ahead has gained, if a gap, `before`, has narrowed by its loss alone; else None.

    `gained` is what the model adds to the baseline's value in the group, `reference_gained` that in the reference.
    """
    sign = 1 if better == "higher" else -1
    ahead, behind = (gained, reference_gained) if sign * before > 0 else (reference_gained, gained)
    # Where both have lost as much, rounding must not make it narrower.
    narrower = abs(before) - abs(before + gained.value - reference_gained.value) > 1e-12
    # Where the one behind has not gained, the gap cannot have narrowed unless the one ahead has lost.
    return ahead if narrower and sign * behind.value <= 0 else None
