"""Predictions tables, as runs write them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path, file_digest
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME

from .sample import Sample, make_sample

SUMS_NAME = "SHA256SUMS"
REQUIRED = ("label", "score", "threshold")


def save_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write a predictions table as Parquet, and into SHA256SUMS beside it what `read_predictions` compares it with."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as partial:
        table.to_parquet(partial, index=False)
    sums = _read_sums(path.parent) | {path.name: file_digest(path)}
    with atomic_path(path.parent / SUMS_NAME) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")


def _read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by file name, as `sha256sum` writes and checks them."""
    path = folder / SUMS_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read_predictions(*paths: str | os.PathLike) -> pd.DataFrame:
    """One table of the predictions in Parquet files, or in run folders (their predictions/test.parquet).

    Raises UserError for a file that is missing, is not what `save_predictions` wrote, is not Parquet, has no rows or
    lacks a column, and for an image that stands twice.
    """
    table = pd.concat([_read(Path(path)) for path in paths], ignore_index=True)
    keys = [name for name in ("image_id", "fold") if name in table]
    if "image_id" in table and table.duplicated(keys).any():
        twice = table["image_id"][table.duplicated(keys)]
        raise UserError(
            f"{paths[-1]}: image {twice.iloc[0]} stands more than once ({len(twice)} such); "
            "give the predictions of each image once"
        )
    return table


def _read(path: Path) -> pd.DataFrame:
    if path.is_dir():
        path = path / "predictions" / "test.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a predictions table, or the folder of a run that wrote one")
    if _read_sums(path.parent).get(path.name) not in (None, file_digest(path)):
        raise UserError(
            f"{path}: not the predictions that were written, by their SHA-256 in {SUMS_NAME} beside them; copy them "
            "again,\nor, if it was you who changed them, take their line out of that file"
        )
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet table ({str(error).splitlines()[0]})") from None
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; its columns are {', '.join(table.columns)}")
    if table.empty:
        raise UserError(f"{path}: the table has no rows")
    return table


@dataclass(frozen=True)
class Validation:
    """What a model's thresholds were chosen on: a predictions table, and the rule (see `ThresholdChooser`).

    Rows are told apart by fold, and by seed where there are several trainings, as those of the predictions are.
    """

    table: pd.DataFrame
    rule: str


def read_validation(run: str | os.PathLike) -> Validation | None:
    """Of a run that train_classifier.py left; None where the folder does not say it."""
    path = Path(run, "predictions", "validation.parquet")
    if not path.is_file() or not Path(run, ARGUMENTS_NAME).is_file():
        return None
    rule = json.loads(Path(run, ARGUMENTS_NAME).read_text(encoding="utf-8")).get("threshold_rule")
    return Validation(_read(path), rule) if rule else None


def sample_columns(table: pd.DataFrame) -> dict[str, Any]:
    """The columns of a predictions table by the names of `make_sample`; lesion_id, fold and threshold may lack."""
    optional = {"lesion_ids": "lesion_id", "folds": "fold", "thresholds": "threshold"}
    return {"labels": table["label"], "scores": table["score"]} | {
        name: table[column] for name, column in optional.items() if column in table
    }


def sample_of(table: pd.DataFrame) -> Sample:
    """The sample that a predictions table describes; UserError as `make_sample`."""
    return make_sample(**sample_columns(table))
