"""The one record of every data set: its columns, the names of its categories, and what a cell of a table may say."""

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from melanoma_fair_xai.base.errors import UserError

if TYPE_CHECKING:
    import datasets

MELANOMA_NAMES = ["benign", "melanoma"]
SKIN_TYPES = ["I", "II", "III", "IV", "V", "VI", "unknown"]
SEXES = ["female", "male", "unknown"]
UNKNOWN = "unknown"

SKIPPED_NAME = "skipped.csv"  # of a prepared folder and of a run: what could not be used, and why
SKIPPED_COLUMNS = ["image_id", "file", "reason"]


def record_features(diagnoses: Sequence[str], extra: Mapping[str, Any] | None = None) -> "datasets.Features":
    """The columns of every data set.

    `diagnoses` are the names of the data set's own labels; `extra` are columns of this data set alone, at the end.
    """
    import datasets  # here, because the names above are needed where `datasets` is not

    return datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "lesion_id": datasets.Value("string"),
            "diagnosis": datasets.ClassLabel(names=list(diagnoses)),
            "melanoma": datasets.ClassLabel(names=MELANOMA_NAMES),
            "age": datasets.Value("float32"),
            "sex": datasets.ClassLabel(names=SEXES),
            "localization": datasets.Value("string"),
            "fitzpatrick": datasets.ClassLabel(names=SKIN_TYPES),
            "mask": datasets.Image(),
            "source": datasets.Value("string"),
            **(extra or {}),
        }
    )


def parse_age(text: str, where: str) -> float | None:
    """Age in years from a table's cell, None where it is empty; UserError names `where` if it is no age (0 to 120)."""
    if text.strip().lower() in ("", "nan", "na", "none", UNKNOWN):
        return None
    try:
        age = float(text)
    except ValueError:
        age = float("nan")
    if not 0 <= age <= 120:
        raise UserError(f"{where}: age {text!r} is not a number of years from 0 to 120; correct it or leave it empty")
    return age


def parse_sex(text: str, where: str) -> str:
    """`female`, `male` or `unknown` from a table's cell; UserError names `where` for anything else."""
    value = text.strip().lower()
    value = UNKNOWN if value in ("", "nan", "na", "none") else {"f": "female", "m": "male"}.get(value, value)
    if value not in SEXES:
        raise UserError(f"{where}: sex {text!r} is not one of {', '.join(SEXES)}")
    return value


def check_unique(ids: Sequence[str], what: str, where: str) -> None:
    """Raise UserError if an id stands twice."""
    repeated = [name for name, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        count = len(repeated)
        raise UserError(f"{where}: {what} {repeated[0]} stands more than once ({count} such); remove the copies")
