"""The card of a classifier, made of its run folder: whom it works for, whom nobody knows, and how to use it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCardData
from scipy.special import expit, logit

from dataset_scripts.schema import SKIN_TYPES, UNKNOWN
from melanoma_fair_xai.base.tables import Markdown, markdown_code, markdown_table, markdown_text
from melanoma_fair_xai.classifier.arguments import ModelArguments, TaskArguments, TrainingArguments
from melanoma_fair_xai.classifier.calibration import choose_threshold
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.fairness import evaluate_predictions
from melanoma_fair_xai.fairness.groups import OVERALL, PRIMARY
from melanoma_fair_xai.fairness.metrics import METRICS
from melanoma_fair_xai.fairness.rows import GroupMetric, with_interval
from melanoma_fair_xai.hub import card, explanation
from melanoma_fair_xai.hub.record import record

TEMPLATE = "classifier.md"
PARTS = ("card_data.json", "metrics.json", "fairness.csv", "fairness.md")
INDEXED = ("roc_auc", "sensitivity", "specificity", "balanced_accuracy")  # the metrics that the metadata carry
HEADLINE = ("roc_auc", "sensitivity", "specificity")
HEADLINE_GROUPS = (PRIMARY, "ita_tertile", "sex", "age_band")
SCREENING = {"90 %": "sensitivity=0.9", "95 %": "sensitivity=0.95"}  # operating points beside the published one
CALIBRATION = ("brier", "calibration_intercept", "calibration_slope", "ece")


def record_classifier(
    folder: Path,
    title: str,
    predictions: Mapping[str, pd.DataFrame],
    records: Records,
    training: Mapping[str, Any],
    start: Mapping[str, Any],
    folds: int,
    arguments: tuple,
) -> None:
    """Write card_data.json, last of what a run writes but for the card.

    `predictions` are tables by split: `validation`, which thresholds are chosen on, and last the one that is reported.
    `training` as `training_facts` gives it, `start` as `starting_point`; `folds` is 0 but for a cross-validation;
    `arguments` are those of train_classifier.py.
    """
    split, tested = list(predictions.items())[-1]
    record(
        folder,
        "classifier",
        title,
        records,
        "train_classifier.py",
        arguments,
        split=split,
        training=training,
        start=start,
        folds=folds,
        before_calibration=before_calibration(folder, tested),
        operating_points=operating_points(predictions["validation"], tested),
    )


def before_calibration(folder: Path, predictions: pd.DataFrame) -> list[dict[str, Any]] | None:
    """How well the scores were calibrated before the logits were: every fold's calibration is undone. None where it
    cannot be, with several labels."""
    whole = (folder / "config.json").is_file()
    limits = np.finfo(float).eps, 1 - np.finfo(float).eps
    scores = logit(predictions["score"].clip(*limits))
    for fold in predictions["fold"].unique():
        config = card.read_json(folder, "config.json" if whole else f"fold-{fold}/config.json")
        if len(config["label_names"]) > 2:
            return None
        slope, intercept = (config["calibration"][name] for name in ("slope", "intercept"))
        scores = scores.where(predictions["fold"] != fold, (scores - intercept) / slope)
    report = evaluate_predictions(predictions.assign(score=expit(scores)), [])
    return [dataclasses.asdict(row) for row in report.overall if row.metric in CALIBRATION]


def operating_points(validation: pd.DataFrame, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """What `predictions` give at the thresholds that SCREENING chooses on `validation`, fold by fold.

    A dictionary for each: `wanted`, `thresholds` by fold, and the metric rows `sensitivity` and `specificity`.
    """
    points = []
    for wanted, rule in SCREENING.items():
        thresholds = {
            int(fold): choose_threshold(part["score"].to_numpy(), part["label"].to_numpy(), rule)
            for fold, part in validation.groupby("fold")
        }
        report = evaluate_predictions(predictions.assign(threshold=predictions["fold"].map(thresholds)), [])
        rows = {row.metric: dataclasses.asdict(row) for row in report.overall}
        found = {name: rows[name] for name in ("sensitivity", "specificity")}
        points.append({"wanted": wanted, "thresholds": thresholds, **found})
    return points


def write_classifier_card(folder: Path, output: Path | None = None) -> Path:
    """Write README.md of what the run left in `folder`; `output` as in `write_card`. UserError for a missing part."""
    facts = card.read_json(folder, "card_data.json")
    rows = metric_rows(folder)
    contrasts = read_contrasts(folder)
    config_name = card.config_name(folder)
    card.need(folder, "metrics.json")
    explained = explanation.read(folder)
    data = facts["data"]
    metadata = ModelCardData(
        model_name=facts["title"],
        **card.licence_metadata([data, *facts["start"]["data"]]),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*card.TAGS, "fairness", *(["phantom"] if data["phantoms"] else [])],
        datasets=card.hub_datasets(data),
        base_model=facts["start"]["base_model"],
        eval_results=eval_results(rows, data["id"], data["name"], facts["split"]),
    )
    text = card.render(
        folder,
        TEMPLATE,
        metadata,
        facts=facts,
        data=data,
        population=card.population_table(facts["population"]),
        settings=card.settings_text(facts["settings"], TaskArguments, ModelArguments, TrainingArguments),
        headline=headline_table(rows),
        limits=untested(rows, facts),
        tested=tested_contrasts(contrasts),
        pairs=sorted({row.group_column for row in rows if "*" in row.group_column}),
        report=written_report(folder),
        calibration=calibration_table(rows, facts["before_calibration"]),
        screening=screening_table(facts["operating_points"]),
        figures=[name for name in ("roc", "training") if (folder / "figures" / f"{name}.png").is_file()],
        explanation=explained,
        **operating_point(card.read_json(folder, config_name)),
    )
    return card.write_card(folder, text, [*PARTS, config_name, *(explanation.PARTS if explained else [])], output)


def metric_rows(folder: Path) -> list[GroupMetric]:
    """The rows of fairness.csv that are metrics of all images and of groups. UserError if those of all are missing."""
    table = card.read_table(folder, "fairness.csv")
    table = table[table["kind"] == "metric"]
    names = [field.name for field in dataclasses.fields(GroupMetric)]
    counts = ("n", "lesions", "melanomas", "melanoma_lesions")
    rows = []
    for values in table[names].to_dict("records"):
        values |= {name: int(values[name]) for name in counts} | {"estimable": str(values["estimable"]) == "True"}
        rows.append(GroupMetric(**values))
    if not any(row.group_column == OVERALL for row in rows):
        raise card.UserError(f"{folder / 'fairness.csv'}: has no rows of all images; finish the run again")
    return rows


def read_contrasts(folder: Path) -> pd.DataFrame:
    """The tested contrasts of fairness.csv, those with a p-value."""
    table = card.read_table(folder, "fairness.csv")
    return table[(table["kind"] == "contrast") & table["p_holm"].notna()]


def tested_contrasts(contrasts: pd.DataFrame) -> Markdown:
    """What the tests between groups amount to, in a sentence."""
    if contrasts.empty:
        return Markdown("No difference between groups was tested: too few lesions, or one group only.")
    found = contrasts[contrasts["p_holm"] < 0.05]
    names = [
        f"{METRICS[row.metric].title} of {markdown_text(row.group)} against {markdown_text(row.reference)}"
        for row in found.itertuples()
    ]
    column = markdown_code(contrasts["group_column"].iloc[0])
    line = f"Of {len(contrasts)} tested differences between the groups of {column}, {len(found)} "
    line += "has" if len(found) == 1 else "have"
    line += f" an adjusted p below 0.05{': ' + ', '.join(names) if names else ''}."
    return Markdown(
        line + ("" if names else " That is no proof of equality: the intervals say how large a gap may hide.")
    )


def written_report(folder: Path) -> Markdown:
    """fairness.md without its title, one level of headings down."""
    text = card.need(folder, "fairness.md").read_text(encoding="utf-8").partition("\n")[2]
    return Markdown(text.strip().replace("\n## ", "\n### "))


def eval_results(rows: Sequence[GroupMetric], data_id: str, data_name: str, split: str) -> list[EvalResult]:
    """The metadata's figures: one a stratum and metric, where it is estimable.

    The Hub merges results of one data set and split under the first one's name, so the stratum stands in the metric's.
    """
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=data_id,
            dataset_name=data_name,
            dataset_split=split,
            metric_type=row.metric,
            metric_name=f"{METRICS[row.metric].title}, {stratum(row)}",
            metric_value=row.value,
            metric_args={
                "stratum": stratum(row),
                "n": row.n,
                "lesions": row.lesions,
                "melanomas": row.melanomas,
                "interval_95": [row.low, row.high],
            },
        )
        for row in rows
        if row.metric in INDEXED and row.estimable
    ]


def stratum(row: GroupMetric) -> str:
    return "all images" if row.group_column == OVERALL else f"{row.group_column} {row.group}"


def headline_table(rows: Sequence[GroupMetric]) -> str:
    """All images and the known groups of HEADLINE_GROUPS: counts, and HEADLINE metrics with intervals, as Markdown."""
    found = {(row.group_column, row.group, row.metric): row for row in rows}
    shown = [
        (row.group_column, row.group)
        for column in (OVERALL, *HEADLINE_GROUPS)
        for row in rows
        if row.group_column == column and row.metric == HEADLINE[0]
    ]
    lines = []
    for column, group in shown:
        cells = [found[column, group, metric] for metric in HEADLINE]
        first = cells[0]
        counts = [f"{first.n:,}", f"{first.lesions:,}", f"{first.melanomas:,} ({first.melanoma_lesions:,})"]
        lines.append([stratum(first), *counts, *map(with_interval, cells)])
    header = ["group", "images", "lesions", "melanomas (lesions)", *(METRICS[metric].title for metric in HEADLINE)]
    return markdown_table(header, lines)


def calibration_table(rows: Sequence[GroupMetric], before: Sequence[Mapping[str, Any]] | None) -> str:
    """Calibration over all images, before and after (only after where `before` is None), as Markdown."""
    after = {row.metric: row for row in rows if row.group_column == OVERALL}
    first = {values["metric"]: GroupMetric(**nan_for_null(values)) for values in before or ()}
    header = ["all images", *(["before calibration"] if before else []), "as published", "perfect"]
    lines = []
    for metric in CALIBRATION:
        cells = [with_interval(table[metric]) for table in ([first, after] if before else [after])]
        lines.append([METRICS[metric].title, *cells, f"{METRICS[metric].ideal:g}"])
    return markdown_table(header, lines)


def screening_table(points: Sequence[Mapping[str, Any]]) -> str:
    """What `operating_points` found, as Markdown."""
    lines = [
        [
            point["wanted"],
            ", ".join(f"{threshold:.4f}" for threshold in point["thresholds"].values()),
            *(with_interval(GroupMetric(**nan_for_null(point[name]))) for name in ("sensitivity", "specificity")),
        ]
        for point in points
    ]
    return markdown_table(["sensitivity wanted", "threshold", "sensitivity", "specificity"], lines)


def nan_for_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: np.nan if value is None else value for name, value in values.items()}


def operating_point(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says of config.json."""
    names = config["label_names"]
    point, size = config["operating_point"], config["pretrained_cfg"]["input_size"]
    return {
        "threshold": f"{point['threshold']:.4f}",
        "rule": point["rule"],
        "positive": " or ".join(point["positive_labels"]),
        "positive_indices": [names.index(label) for label in point["positive_labels"]],
        "labels": f"{names[0]} against {names[1]}" if len(names) == 2 else f"one of {len(names)} labels",
        "label_names": names,
        "architecture": config["architecture"],
        "size": f"{size[1]} x {size[2]}",
        "fitted": config["calibration"],
    }


def untested(rows: Sequence[GroupMetric], facts: Mapping[str, Any]) -> list[Markdown]:
    """For whom there is no AUC: groups that were too small, and skin types where none are recorded."""
    types = {
        row["group"]
        for row in facts["population"]
        if row["column"] == "fitzpatrick" and row["splits"].get(facts["split"], {"images": 0})["images"]
    }
    lines = []
    if not types - {UNKNOWN}:
        lines.append("No skin types are recorded in these data: how the model does on dark skin is not known.")
    absent = [name for name in SKIN_TYPES[:-1] if types - {UNKNOWN} and name not in types]
    if absent:
        lines.append(f"Skin types that the split does not hold: {', '.join(absent)}.")
    small: dict[str, list[str]] = {}
    for row in rows:
        if row.metric == "roc_auc" and not row.estimable and row.group != UNKNOWN:
            counts = f"({row.n:,} images, {row.melanomas:,} melanomas)"
            if row.group_column == OVERALL:
                lines.insert(0, f"Anybody, in effect: there are too few lesions to tell {counts}.")
            else:
                small.setdefault(row.group_column, []).append(f"{markdown_text(row.group)} {counts}")
    lines += [
        f"{markdown_code(column)}, too few lesions to tell: {'; '.join(groups)}." for column, groups in small.items()
    ]
    lines.append("Other cameras, clinics and populations than those of the data below, whatever the group.")
    return [Markdown(line) for line in lines]
