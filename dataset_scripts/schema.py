"""The one record of every data set: its columns, the names of its categories, and what a cell of a table may say."""

import collections
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from melanoma_fair_xai.base.errors import UserError

if TYPE_CHECKING:
    import datasets

MELANOMA_NAMES = ["benign", "melanoma"]
SKIN_TYPES = ["I", "II", "III", "IV", "V", "VI", "unknown"]
SEXES = ["female", "male", "unknown"]
UNKNOWN = "unknown"

# What tables write where they say nothing, in lower case.
MISSING = {"", "nan", "na", "n/a", "<na>", "nat", "none", "null", "none_selected", "none_identified", UNKNOWN}
SKIN_TYPE_COLUMNS = ("fitzpatrick", "fitzpatrick_scale", "fitzpatrick_skin_type", "fitspatrick", "fst")
MELANOMA_WORDS = {"mel", "melanoma", "melanomas"}
NEVUS_WORDS = {"nv", "nev", "nevus", "nevi", "naevus", "naevi", "mole", "moles"}

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


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing: None, NaN, blanks, or a word for unknown."""
    return str(value).strip().lower() in MISSING


def cell_name(value: Any) -> str:
    """A cell as a name: `unknown` where it says nothing; 1 for 1.0, which tables make of 1 where cells are empty."""
    if is_missing(value):
        return UNKNOWN
    is_whole = not isinstance(value, int) and getattr(value, "is_integer", bool)()
    return str(int(value) if is_whole else value)


def parse_age(value: Any, where: str) -> float | None:
    """Age in years (0 to 120) from a cell, None where it says nothing; "80+", ">80", "80 years" and "080Y" are 80.

    UserError names `where` for anything else.
    """
    if is_missing(value):
        return None
    age = _number(re.sub(r"^(>=?|≥)|(\+|\s*y(ea)?(rs?)?)*\s*$", "", str(value).strip().lower()))
    if not 0 <= age <= 120:
        raise UserError(
            f"{where}: age {str(value)!r} is not a number of years from 0 to 120; correct it or leave it empty"
        )
    return age


def parse_number(value: Any, where: str, name: str) -> float | None:
    """A number from a cell, None where it says nothing; UserError names `where` and `name` for anything else."""
    number = None if is_missing(value) else _number(value)
    if number != number:
        raise UserError(f"{where}: {name} {value!r} is not a number")
    return number


def parse_ita(value: Any, where: str) -> float | None:
    """An angle in degrees from a cell, None where it says nothing; UserError names `where` for anything else."""
    angle = parse_number(value, where, "ita")
    if angle is not None and not -180 <= angle <= 180:
        raise UserError(f"{where}: ita {value!r} is not an angle from -180 to 180 degrees")
    return angle


def parse_skin_type(value: Any, where: str) -> str:
    """One of SKIN_TYPES from a cell: 1 to 6 in any form of a number, I to VI in any case, "type IV" or "FST4".

    `unknown` for -1 and where it says nothing; UserError names `where` for anything else.
    """
    if is_missing(value):
        return UNKNOWN
    text = re.sub(r"^((fitzpatrick|skin|photo|type|fst)(\s+|[_-])?)*", "", str(value).strip().lower()).upper()
    if text in SKIN_TYPES:
        return text
    if (number := _number(text)) not in (-1, 1, 2, 3, 4, 5, 6):
        raise UserError(
            f"{where}: skin type {str(value)!r} is none of I to VI or 1 to 6; correct it or leave it empty"
        )
    return UNKNOWN if number == -1 else SKIN_TYPES[int(number) - 1]


def sex_name(value: Any) -> str:
    """`female`, `male` or `unknown` however a cell writes it, and any other name as it stands."""
    text = UNKNOWN if is_missing(value) else str(value).strip()
    name = {"f": "female", "m": "male"}.get(text.lower(), text.lower())
    return name if name in SEXES else text


def parse_sex(value: Any, where: str) -> str:
    """One of SEXES from a cell; UserError names `where` for anything else."""
    sex = sex_name(value)
    if sex not in SEXES:
        raise UserError(f"{where}: sex {value!r} is not one of {', '.join(SEXES)}")
    return sex


def parse_melanoma(value: Any, where: str) -> int | None:
    """1 for melanoma and 0 for benign from a cell of 0 and 1, true and false, or MELANOMA_NAMES.

    None where it says nothing; UserError names `where` for anything else.
    """
    if is_missing(value):
        return None
    names = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, **{n: i for i, n in enumerate(MELANOMA_NAMES)}}
    text = str(value).strip().lower()
    if text not in names:
        raise UserError(
            f"{where}: melanoma {value!r} is neither 0 nor 1; "
            "correct it, or name it by --label_column_name melanoma and --positive_labels"
        )
    return names[text]


# How a cell is read, of the columns that any table calls by the record's name.
CELL_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "age": parse_age,
    "fitzpatrick": parse_skin_type,
    "ita": parse_ita,
    "sex": lambda value, _: sex_name(value),  # a user's own data may have others
}


def parse_cells(column: str, values: Iterable, where: str) -> list:
    """The cells of one of CELL_PARSERS' columns; UserError names `where` and the row, from 0."""
    return [CELL_PARSERS[column](value, f"{where}, row {row}") for row, value in enumerate(values)]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def spelling(label: str) -> str:
    """A label without what two ways to write it may differ in: case, blanks, hyphens and underscores."""
    return re.sub(r"[\W_]+", "", label.casefold())


def is_melanoma(diagnosis: str) -> bool:
    """Whether a label's words name a melanoma, whatever a data set calls it; "non-melanoma" does not."""
    words = re.findall(r"[^\W_]+", diagnosis.lower())
    named = any(word in MELANOMA_WORDS or re.search("(?<!non)melanom", word) for word in words)
    return (named or "lentigo maligna" in " ".join(words)) and not {"no", "non", "not"} & set(words)


def is_nevus(diagnosis: str) -> bool:
    """Whether a label's words name a nevus, whatever a data set calls it (`nv`, `NEV`, melanocytic-nevi, ...)."""
    words = re.findall(r"[^\W_]+", diagnosis.lower())
    return any(word in NEVUS_WORDS or word.endswith(("nevus", "naevus", "nevi", "naevi")) for word in words)


def check_unique(ids: Sequence[str], what: str, where: str) -> None:
    """Raise UserError if an id stands twice."""
    repeated = [name for name, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        count = len(repeated)
        raise UserError(f"{where}: {what} {repeated[0]} stands more than once ({count} such); remove the copies")
