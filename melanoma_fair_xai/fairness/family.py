"""The family of tests over which a report's p-values are adjusted, and by which procedure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from .intervals import benjamini_hochberg, holm
from .rows import Contrast, GapChange, ModelDifference, WorstGroup

Row = TypeVar("Row", Contrast, GapChange, ModelDifference, WorstGroup)
# Of the primary grouping alone, or of all columns that were asked for.
Family = Literal["primary", "holm", "benjamini-hochberg"]
PROCEDURES = {"primary": "Holm", "holm": "Holm", "benjamini-hochberg": "Benjamini and Hochberg's false discovery rate"}
ADJUSTED = {"primary": "p (Holm)", "holm": "p (Holm)", "benjamini-hochberg": "q (FDR)"}  # in the heads of tables


def adjust(rows: Sequence[Row], family: Family) -> list[Row]:
    """The rows with `p_holm`, or `q` where the false discovery rate is controlled, over all that have a p-value."""
    p = np.array([row.p for row in rows])
    name, adjusted = ("q", benjamini_hochberg(p)) if family == "benjamini-hochberg" else ("p_holm", holm(p))
    return [replace(row, **{name: float(value)}) for row, value in zip(rows, adjusted, strict=True)]


def adjusted_p(row: Row, family: Family) -> float:
    """What a table shows beside `p`."""
    return row.q if family == "benjamini-hochberg" else row.p_holm
