"""Predictions tables, and the group columns that are derived from them, in one place."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_scripts.common import SKIN_TYPES, UNKNOWN
from melanoma_fair_xai.base.errors import UserError

PRIMARY = "fitzpatrick_group"
DERIVED = (PRIMARY, "age_band", "ita_tertile")  # made here of fitzpatrick, age and ita
REFERENCES = {PRIMARY: "I-II"}  # elsewhere the known group with most melanomas
SKIN_GROUPS = {"I": "I-II", "II": "I-II", "III": "III-IV", "IV": "III-IV", "V": "V-VI", "VI": "V-VI"}
AGE_BANDS = ["under 40", "40-59", "60 and over"]
# Not darkest and lightest: over 90 degrees, where a third of HAM10000 lies, the angle says bluish, not light.
ITA_TERTILES = ["1 (lowest)", "2", "3 (highest)"]
MAX_GROUPS = 60
REQUIRED = ("lesion_id", "label", "score", "threshold")
COMMON = ("fitzpatrick", "sex", "age_band", "localization", "source", "ita_tertile")


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


def available_groups(table: pd.DataFrame) -> list[str]:
    """The common group columns that the table allows, those without a known value left out."""
    needs = {"age_band": "age", "ita_tertile": "ita"}
    return [name for name in COMMON if needs.get(name, name) in table and (group_column(table, name) != UNKNOWN).any()]


def group_columns(table: pd.DataFrame, group_by: Sequence[str]) -> pd.DataFrame:
    """The columns named in `group_by`, derived where need be, as ordered categories with `unknown` last.

    `fitzpatrick` gives the primary grouping fitzpatrick_group (I-II, III-IV, V-VI) and the descriptive types;
    `fitzpatrick_group`, `age_band` and `ita_tertile` come from fitzpatrick, age and ita; "a*b" is a pair of columns.
    Raises UserError for a column that is not there and one with too many values to be groups.
    """
    names: list[str] = []
    for name in group_by:
        names += [PRIMARY, name] if name == "fitzpatrick" else [name]
    return pd.DataFrame({name: group_column(table, name) for name in dict.fromkeys(names)})


def group_column(table: pd.DataFrame, name: str) -> pd.Series:
    """One column of `group_columns`."""
    if "*" in name and name not in table:
        parts = [group_column(table, part.strip()) for part in name.split("*")]
        return _crossed(parts)
    if name in table:
        return as_groups(table[name], name)
    if name == PRIMARY:
        return _ordered(
            _source(table, "fitzpatrick", name).map(SKIN_GROUPS), list(dict.fromkeys(SKIN_GROUPS.values()))
        )
    if name == "age_band":
        ages = pd.to_numeric(_source(table, "age", name), errors="coerce")
        return _ordered(pd.cut(ages, [-np.inf, 40, 60, np.inf], right=False, labels=AGE_BANDS), AGE_BANDS)
    if name == "ita_tertile":
        ita = pd.to_numeric(_source(table, "ita", name), errors="coerce")
        if ita.nunique() < len(ITA_TERTILES):
            return _ordered(ita * np.nan, ITA_TERTILES)
        thirds = [-np.inf, *ita.quantile([1 / 3, 2 / 3]), np.inf]
        return _ordered(pd.cut(ita, thirds, labels=ITA_TERTILES), ITA_TERTILES)
    raise UserError(f"--group_by {name}: no such column; the table has {', '.join(map(str, table.columns))}")


def as_groups(values: Sequence, name: str) -> pd.Series:
    """Any column as ordered categories: skin types in their order, others sorted, `unknown` for missing and last."""
    values = pd.Series(values).reset_index(drop=True)
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered:
        return _ordered(values, list(values.cat.categories))
    texts = values.astype(object).where(values.notna(), UNKNOWN).astype(str).replace({"": UNKNOWN, "nan": UNKNOWN})
    known = set(texts) - {UNKNOWN}
    if len(known) > MAX_GROUPS:
        raise UserError(f"--group_by {name}: {len(known):,} different values; groups are at most {MAX_GROUPS}")
    return _ordered(texts, SKIN_TYPES[:-1] if known and known <= set(SKIN_TYPES) else sorted(known))


def _ordered(values: pd.Series, order: list[str]) -> pd.Series:
    values = values.astype(object).where(values.notna(), UNKNOWN).reset_index(drop=True)
    present = set(values)
    order = [name for name in order if name in present and name != UNKNOWN]
    return pd.Series(pd.Categorical(values, [*order, *([UNKNOWN] if UNKNOWN in present else [])], ordered=True))


def _crossed(parts: list[pd.Series]) -> pd.Series:
    names = parts[0].astype(str)
    unknown = parts[0] == UNKNOWN
    order = [name for name in parts[0].cat.categories if name != UNKNOWN]
    for part in parts[1:]:
        names = names + ", " + part.astype(str)
        unknown |= part == UNKNOWN
        order = [f"{first}, {second}" for first in order for second in part.cat.categories if second != UNKNOWN]
    return _ordered(names.where(~unknown, UNKNOWN), order)


def _source(table: pd.DataFrame, column: str, name: str) -> pd.Series:
    if column not in table:
        raise UserError(
            f"--group_by {name}: needs a column {column}; the table has {', '.join(map(str, table.columns))}"
        )
    return table[column]


def reference_group(
    column: pd.Series, labels: np.ndarray, reference: Mapping[str, str] | None, name: str
) -> str | None:
    """The group that the others are compared with; None if no group is known. UserError for one that is not there."""
    known = [group for group in column.cat.categories if group != UNKNOWN]
    asked = (reference or {}).get(name)
    if asked is not None and asked not in known:
        raise UserError(
            f"--reference {name}={asked}: no such group; {name} has {', '.join(known) or 'no known group'}"
        )
    if asked or not known:
        return asked
    if REFERENCES.get(name) in known:
        return REFERENCES[name]
    melanomas = column[np.asarray(labels, dtype=bool)].value_counts()
    return max(known, key=lambda group: melanomas.get(group, 0))
