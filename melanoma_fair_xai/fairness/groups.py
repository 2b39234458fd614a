"""The groups that performance is reported by, derived from the columns of a table in one place."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from dataset_scripts.schema import SKIN_TYPES, UNKNOWN, cell_name, parse_cells
from melanoma_fair_xai.base.errors import UserError

OVERALL = "all"  # the column, and its one group, of all images
PRIMARY = "fitzpatrick_group"
REFERENCES = {PRIMARY: "I-II"}  # elsewhere the known group with most melanomas
SKIN_GROUPS = {"I": "I-II", "II": "I-II", "III": "III-IV", "IV": "III-IV", "V": "V-VI", "VI": "V-VI"}
AGE_BANDS = ["under 40", "40-59", "60 and over"]
# Not darkest and lightest: over 90 degrees, where a third of HAM10000 lies, the angle says bluish, not light.
ITA_TERTILES = ["1 (lowest)", "2", "3 (highest)"]
MAX_GROUPS = 60
COMMON = ("fitzpatrick", "sex", "age_band", "localization", "source", "ita_tertile")


def group_columns(table: pd.DataFrame, group_by: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns named in `group_by`, derived where need be, as ordered categories with `unknown` last.

    `fitzpatrick` gives the primary grouping fitzpatrick_group (I-II, III-IV, V-VI) and the descriptive types;
    `fitzpatrick_group`, `age_band` and `ita_tertile` come from fitzpatrick, age and ita; "a*b" is a pair of columns.
    The default is whatever common columns the table allows, those without a known value left out.
    Raises UserError for a column that is not there and one with too many values to be groups.
    """
    names = COMMON if group_by is None else group_by
    names = dict.fromkeys(one for name in names for one in ((PRIMARY, name) if name == "fitzpatrick" else (name,)))
    if group_by is None:
        names = [name for name in names if name in table or name in DERIVED and DERIVED[name][0] in table]
    columns = {name: group_column(table, name) for name in names}
    if group_by is None:
        columns = {name: column for name, column in columns.items() if (column != UNKNOWN).any()}
    return pd.DataFrame(columns)


def group_column(table: pd.DataFrame, name: str) -> pd.Series:
    """One column of `group_columns`."""
    if name in table:
        return as_groups(table[name], name)
    if "*" in name:
        return _crossed([group_column(table, part.strip()) for part in name.split("*")])
    source, derive = DERIVED.get(name, (name, None))
    if source not in table:
        needs = "no such column" if derive is None else f"needs a column {source}"
        raise UserError(f"--group_by {name}: {needs}; the table has {', '.join(map(str, table.columns))}")
    return derive(table[source])


def as_groups(values: Sequence, name: str) -> pd.Series:
    """Any column as ordered categories of names, `unknown` for missing and last.

    Ordered categories keep their order, skin types have theirs, and others are sorted, numbers by their value.
    """
    values = pd.Series(values).reset_index(drop=True)
    if name in ("fitzpatrick", "sex"):
        values = pd.Series(parse_cells(name, values, f"column {name}"), dtype=object)
    codes, cells = pd.factorize(values.astype(object), use_na_sentinel=False)
    names = pd.Series(np.array([*map(cell_name, cells)], dtype=object)[codes])
    known = set(names) - {UNKNOWN}
    if len(known) > MAX_GROUPS:
        raise UserError(f"--group_by {name}: {len(known):,} different values; groups are at most {MAX_GROUPS}")
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered:
        return _ordered(names, [*map(cell_name, values.cat.categories)])
    if known <= set(SKIN_TYPES):
        return _ordered(names, SKIN_TYPES)
    for key in (
        float,
        dict(zip(map(cell_name, cells), cells, strict=True)).get,
    ):  # numbers that may be texts, then whatever can be sorted, such as intervals
        try:
            return _ordered(names, sorted(known, key=key))
        except (TypeError, ValueError):
            continue
    return _ordered(names, sorted(known))


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


def all_images(count: int) -> pd.Series:
    """The column of one group that everybody belongs to."""
    return pd.Series(pd.Categorical([OVERALL] * count), name=OVERALL)


def _skin_groups(types: pd.Series) -> pd.Series:
    types = pd.Series(parse_cells("fitzpatrick", types, "column fitzpatrick"), dtype=object)
    return _ordered(types.map(SKIN_GROUPS), list(dict.fromkeys(SKIN_GROUPS.values())))


def _age_bands(ages: pd.Series) -> pd.Series:
    ages = pd.Series(parse_cells("age", ages, "column age"), dtype=float)
    return _ordered(pd.cut(ages, [-np.inf, 40, 60, np.inf], right=False, labels=AGE_BANDS), AGE_BANDS)


def _ita_tertiles(angles: pd.Series) -> pd.Series:
    angles = pd.Series(parse_cells("ita", angles, "column ita"), dtype=float)
    if angles.nunique() < len(ITA_TERTILES):
        return _ordered(angles * np.nan, ITA_TERTILES)
    thirds = [-np.inf, *angles.quantile([1 / 3, 2 / 3]), np.inf]
    return _ordered(pd.cut(angles, thirds, labels=ITA_TERTILES), ITA_TERTILES)


# What is made here, and of which column.
DERIVED: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    PRIMARY: ("fitzpatrick", _skin_groups),
    "age_band": ("age", _age_bands),
    "ita_tertile": ("ita", _ita_tertiles),
}


def reference_group(
    column: pd.Series, labels: np.ndarray, reference: Mapping[str, str] | None, name: str
) -> str | None:
    """The group that the others are compared with; None if no group is known. UserError for one that is not there."""
    known = [group for group in column.cat.categories if group != UNKNOWN]
    asked = cell_name(reference[name]) if name in (reference or {}) else None
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
