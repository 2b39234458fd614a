"""Tables in Markdown and CSV, and the names and numbers in them: whatever somebody's names are, they stay names."""

import csv
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from .files import atomic_path

# What GitHub's and the Hub's Markdown would not show as it is. An asterisk or underscore that cannot open an emphasis,
# a bracket that no link follows and a "<" that begins no tag stay: they do no harm.
_MARKUP = re.compile(
    r"""
    [\\|`~$]
    | ^ (?: > | [#+-] (?=[#\s]) )         # a heading, a quotation, a list
    | \* (?=\S) | (?<![^\W_]) _ (?=\S)    # emphasis
    | (?<=!) \[ | \] (?=[(\[:])           # an image, a link
    | (?<=:) / (?=/) | (?<=www) \.        # an address that becomes a link of itself
    | < (?=[A-Za-z/!?]) | & (?=\#?\w+;)   # HTML
    """,
    re.VERBOSE,
)
# Line breaks and other control characters, and those that turn the direction of the text that follows.
_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")

# What a spreadsheet takes for a formula, and what stands before a cell that had a mark of ours from the beginning.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20].", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

MAX_LABEL = 80  # letters of a line on a figure


class Markdown(str):
    """Text that is Markdown already."""


def markdown_text(text: str) -> Markdown:
    """Text as Markdown that shows the very same letters, on one line; what is Markdown already is left as it is."""
    return text if isinstance(text, Markdown) else Markdown(_MARKUP.sub(r"\\\g<0>", _CONTROL.sub(" ", text)))


def markdown_code(text: str) -> Markdown:
    """Text as code within a line of Markdown."""
    text = _CONTROL.sub(" ", text)
    if "`" not in text:
        return Markdown(f"`{text}`")
    ticks = _fence(text, 1)
    return Markdown(f"{ticks} {text} {ticks}")


def markdown_block(text: str, language: str) -> Markdown:
    """Lines of code as a block of Markdown."""
    fence = _fence(text, 3)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def _fence(text: str, least: int) -> str:
    """More backticks than stand together in the text, and `least` or more."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """A table in Markdown; numbers are strings already, and other cells are taken as by `markdown_text`."""
    lines = [[*map(markdown_text, line)] for line in (header, [Markdown("---")] * len(header), *rows)]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def figure_text(text: str) -> str:
    """Text as matplotlib draws it letter by letter: it takes dollars for formulas, and hides labels with `_` first."""
    short = re.sub(rf"(.{{{MAX_LABEL - 1}}}).{{2,}}", r"\1…", text)
    return re.sub("^_", " _", short.replace("$", r"\$"))


def write_csv(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table, without its index, as CSV, whole or not at all.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which `plain_cells` takes away
    again. Source: OWASP, "CSV Injection".
    """
    with atomic_path(path) as partial:
        partial.write_text(csv_text(table), encoding="utf-8", newline="")


def csv_text(table: pd.DataFrame) -> str:
    """What `write_csv` writes."""
    table = _in_texts(table, lambda text: "'" + text if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text)
    text = table.to_csv(index=False, lineterminator="\n")
    # The writer leaves a lone carriage return unquoted, which readers take for the end of the row.
    return text if "\r" not in text else table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table that `write_csv` was given, of what was read from its file."""
    return _in_texts(table, lambda text: text[1:] if text[:1] == "'" and _FORMULA.match(text) else text)


def _in_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with `change` made to every text in it, names of columns too."""

    def cell(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    return table.rename(columns=cell).apply(lambda column: column.map(cell) if column.dtype.kind in "OU" else column)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with as many digits after the point, or one that counts where that would show none; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    # A limit just below zero must not read as zero.
    tiny = value != 0 and abs(value) < 0.5 * 10**-digits
    return (f"{value:.0e}" if tiny else f"{value:.{digits}f}").replace("-", "−")
