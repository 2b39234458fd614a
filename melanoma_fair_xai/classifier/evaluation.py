"""From a trained network to what is known of it: operating point, predictions, metrics, and the lines printed last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import write_json
from melanoma_fair_xai.classifier.calibration import calibrate, choose_threshold, fit_platt, fit_temperature
from melanoma_fair_xai.classifier.export import ClassifierInfo
from melanoma_fair_xai.classifier.predict import melanoma_scores, predict_logits, prediction_table
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.fairness import FairnessReport
from melanoma_fair_xai.fairness.metrics import METRICS, point_values
from melanoma_fair_xai.fairness.predictions import sample_of, save_predictions
from melanoma_fair_xai.fairness.rows import with_interval

SUMMARY = ("roc_auc", "sensitivity", "specificity", "balanced_accuracy", "brier")  # the metrics of metrics.json


def predict(accelerator: Accelerator, network: torch.nn.Module, task: Task, split: str, batch_size: int) -> np.ndarray:
    """Logits of a split in full precision, as who loads the model will see them."""
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    return predict_logits(accelerator, network, task.pixels, task.rows(split), task.preprocessing, batch_size, split)


def operating_point(task: Task, logits: np.ndarray, rule: str, training: dict) -> ClassifierInfo:
    """Calibration and threshold from the validation logits, and all else that config.json carries."""
    labels = task.labels[task.rows("validation")]
    if len(task.target.label_names) == 2:
        calibration = fit_platt(logits[:, 1] - logits[:, 0], labels)
    else:
        calibration = fit_temperature(logits, labels)
    scores = melanoma_scores(calibrate(logits, calibration), task.target.positive)
    return ClassifierInfo(
        label_names=task.target.label_names,
        positive_labels=[task.target.label_names[index] for index in task.target.positive],
        threshold=choose_threshold(scores, np.isin(labels, task.target.positive), rule),
        threshold_rule=rule,
        preprocessing=task.preprocessing,
        calibration=calibration,
        training=training,
    )


def score(
    accelerator: Accelerator, network: torch.nn.Module, info: ClassifierInfo, task: Task, split: str, batch_size: int
) -> pd.DataFrame:
    """The predictions table of a split, on every process. UserError if the split is empty."""
    rows = task.rows(split)
    if not len(rows):
        raise UserError(f"{task.records.name}: no images in split {split}; choose another with --eval_split")
    logits = predict(accelerator, network, task, split, batch_size)
    return prediction_table(
        task.records.table.iloc[rows].reset_index(drop=True), logits, task.labels[rows], info, task.fold
    )


def summary_values(predictions: pd.DataFrame) -> dict[str, float | int]:
    """Counts of a predictions table and SUMMARY of all its images; what its classes do not allow is NaN."""
    sample = sample_of(predictions)
    counts = {"n": len(sample), "lesions": len(np.unique(sample.lesions)), "melanomas": int(sample.labels.sum())}
    return counts | point_values(sample, SUMMARY)


def write_predictions(folder: Path, predictions: Mapping[str, pd.DataFrame]) -> None:
    """Write predictions/NAME.parquet and metrics.json."""
    for name, table in predictions.items():
        save_predictions(table, folder / "predictions" / f"{name}.parquet")
    thresholds = next(iter(predictions.values())).drop_duplicates("fold")[["fold", "threshold"]]
    values: dict[str, Any] = {"splits": {name: summary_values(table) for name, table in predictions.items()}}
    if len(thresholds) == 1:
        values["threshold"] = thresholds["threshold"].iloc[0]
    else:
        values["thresholds"] = dict(thresholds.sort_values("fold").to_numpy().tolist())
    write_json(folder / "metrics.json", values)


def results_table(
    report: FairnessReport, column: str | None, metrics: tuple[str, ...] = ("roc_auc", "sensitivity", "specificity")
) -> str:
    """Lines of text: counts and metrics, each with its interval, over all images and by the groups of `column`."""
    rows = {(row.group, row.metric): row for row in report.overall}
    rows |= {(row.group, row.metric): row for row in report.by_group if row.group_column == column}
    lines = [
        f"{'group':<16}{'images':>8}{'lesions':>9}{'melanomas':>11}"
        + "".join(f"{METRICS[metric].title:>24}" for metric in metrics)
    ]
    for group in dict.fromkeys(group for group, _ in rows):
        cells = [rows[group, metric] for metric in metrics]
        counts = f"{group:<16}{cells[0].n:>8,}{cells[0].lesions:>9,}{cells[0].melanomas:>11,}"
        lines.append(counts + "".join(f"{with_interval(cell):>24}" for cell in cells))
    return "\n".join(lines)
