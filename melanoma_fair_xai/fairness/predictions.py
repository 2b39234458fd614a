"""Predictions tables, as runs write them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME

from .sample import Sample, make_sample

REQUIRED = ("lesion_id", "label", "score", "threshold")


def read_predictions(*paths: str | os.PathLike) -> pd.DataFrame:
    """One table of the predictions in Parquet files, or in run folders (their predictions/test.parquet).

    Raises UserError for a file that is missing, is not Parquet, has no rows or lacks a column, and for an image that
    stands twice.
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
    """The columns of a predictions table, as `make_sample` and `evaluate` name them; fold and threshold may lack."""
    optional = {"folds": "fold", "thresholds": "threshold"}
    return {"labels": table["label"], "scores": table["score"], "lesion_ids": table["lesion_id"]} | {
        name: table[column] for name, column in optional.items() if column in table
    }


def sample_of(table: pd.DataFrame) -> Sample:
    """The sample that a predictions table describes; UserError as `make_sample`."""
    return make_sample(**sample_columns(table))
