"""The card of a classifier: the run folder's README.md, whether or not it is ever pushed."""

import importlib.metadata
import json
import platform
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData

from dataset_scripts import fitzpatrick17k, ham10000
from dataset_scripts.common import SKIN_TYPES, UNKNOWN
from dataset_scripts.phantom import Phantom
from melanoma_fair_xai.data.loading import Records, is_synthetic
from melanoma_fair_xai.engine.files import atomic_path
from melanoma_fair_xai.engine.run_folder import ARGUMENTS_NAME
from melanoma_fair_xai.fairness import FairnessReport
from melanoma_fair_xai.fairness.report import OVERALL, TITLES, GroupMetric, markdown_table

INDEXED = ("roc_auc", "sensitivity", "specificity", "balanced_accuracy")  # the metrics that the metadata carry
PACKAGES = ("torch", "timm", "transformers", "accelerate", "datasets")
DATA_FACTS = {  # name: (what it is called, licence, citation)
    "ham10000": (ham10000.HAM10000.pretty_name, ham10000.LICENSE, ham10000.CITATION),
    "fitzpatrick17k": (fitzpatrick17k.Fitzpatrick17k.pretty_name, fitzpatrick17k.LICENSE, fitzpatrick17k.CITATION),
    "phantom": (Phantom.pretty_name, "apache-2.0", ""),
}


def write_classifier_card(
    folder: Path, title: str, split: str, report: FairnessReport, records: Records, command: str
) -> None:
    """Write README.md to a run folder that has its training_args.json, fairness.md, and config.json or the folds.

    `report`, which was written to the folder, is of `split`; `command` says how the run was started.
    """
    settings = json.loads((folder / ARGUMENTS_NAME).read_text(encoding="utf-8"))
    name, licence, citation = data_facts(records)
    metadata = ModelCardData(
        model_name=title,
        license=licence or "other",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["medical", "dermatology", "melanoma", "fairness", *(["phantom"] if records.are_phantoms else [])],
        eval_results=eval_results(report, Path(records.name).name, name, split),
    )
    card = ModelCard.from_template(
        metadata,
        template_str=resources.files("model_cards").joinpath("classifier.md").read_text(encoding="utf-8"),
        title=title,
        phantoms=records.are_phantoms,
        folder=folder.name,
        data_name=name,
        data_licence=licence or "unknown",
        citation=citation,
        target=settings["target"],
        counts=split_counts(records.table, settings["fold"]),
        synthetic=f"{is_synthetic(records.table).sum():,}" if is_synthetic(records.table).any() else None,
        split=split,
        report=written_report(folder),
        figures=[name for name in ("roc", "training") if (folder / "figures" / f"{name}.png").is_file()],
        limits=untested(report),
        command=command,
        seed=settings["seed"],
        versions=versions(),
        commit=commit(),
        **operating_point(folder),
    )
    with atomic_path(folder / "README.md") as path:
        path.write_text(str(card).rstrip() + "\n", encoding="utf-8")


def written_report(folder: Path) -> str:
    """fairness.md without its title, one level of headings down."""
    text = (folder / "fairness.md").read_text(encoding="utf-8").partition("\n")[2]
    return text.strip().replace("\n## ", "\n### ")


def data_facts(records: Records) -> tuple[str, str | None, str]:
    """What a data set is called, its licence (None if unknown) and citation, from its builder or a folder's card."""
    if records.name in DATA_FACTS:
        return DATA_FACTS[records.name]
    name, readme = Path(records.name).name, Path(records.name, "README.md")
    if not readme.is_file():
        return name, None, ""
    data = DatasetCard.load(readme, ignore_metadata_errors=True).data
    return data.get("pretty_name") or name, data.get("license"), ""


def eval_results(report: FairnessReport, data_id: str, data_name: str, split: str) -> list[EvalResult]:
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
            metric_name=f"{TITLES[row.metric]}, {stratum(row)}",
            metric_value=row.value,
            metric_args={
                "stratum": stratum(row),
                "n": row.n,
                "lesions": row.lesions,
                "melanomas": row.melanomas,
                "interval_95": [row.low, row.high],
            },
        )
        for row in report.overall + report.by_group
        if row.metric in INDEXED and row.estimable
    ]


def stratum(row: GroupMetric) -> str:
    return "all images" if row.group_column == OVERALL else f"{row.group_column} {row.group}"


def operating_point(folder: Path) -> dict[str, Any]:
    """What the template says of config.json; a threshold of None where the models are those of the folds."""
    if not (folder / "config.json").is_file():
        first = json.loads((folder / "fold-0" / "config.json").read_text(encoding="utf-8"))
        return {
            "threshold": None,
            "labels": labels_text(first["label_names"]),
            "folds": len(list(folder.glob("fold-*"))),
        }
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    point = config["operating_point"]
    return {
        "threshold": f"{point['threshold']:.4f}",
        "rule": point["rule"],
        "positive": " or ".join(point["positive_labels"]),
        "positive_indices": [config["label_names"].index(label) for label in point["positive_labels"]],
        "labels": labels_text(config["label_names"]),
    }


def labels_text(names: list[str]) -> str:
    return f"{names[0]} against {names[1]}" if len(names) == 2 else f"one of {len(names)} labels"


def split_counts(table: pd.DataFrame, fold: str) -> str:
    """Images, lesions and melanomas of each split as Markdown."""
    rows = [
        [name, f"{len(part):,}", f"{part['lesion_id'].nunique():,}", f"{part['melanoma'].sum():,}"]
        for name, part in table.groupby("split", sort=False)
    ]
    return markdown_table([f"split (fold {fold})", "images", "lesions", "melanomas"], rows)


def untested(report: FairnessReport) -> list[str]:
    """For whom the report has no AUC: groups that were too small, and skin types where none are recorded."""
    known = {column: set(values) - {UNKNOWN} for column, values in report.groups.items()}
    lines = []
    if not known.get("fitzpatrick"):
        lines.append("No skin types are recorded in these data: how the model does on dark skin is not known.")
    small: dict[str, list[str]] = {}
    for row in report.by_group:
        if row.metric == "roc_auc" and not row.estimable and row.group != UNKNOWN:
            small.setdefault(row.group_column, []).append(
                f"{row.group} ({row.n:,} images, {row.melanomas:,} melanomas)"
            )
    lines += [f"`{column}`, too few lesions to tell: {'; '.join(groups)}." for column, groups in small.items()]
    absent = [name for name in SKIN_TYPES[:-1] if known.get("fitzpatrick") and name not in known["fitzpatrick"]]
    if absent:
        lines.append(f"Skin types that the split does not hold: {', '.join(absent)}.")
    lines.append("Other cameras, clinics and populations than those of the data above, whatever the group.")
    return lines


def versions() -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


def commit() -> str | None:
    """The commit of the code, with a word if files differ from it; None outside a clone."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes that are not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
