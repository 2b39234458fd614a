"""Tables in Markdown, and the numbers in them."""

import math
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers are strings already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with as many digits after the point, or one that counts where that would show none; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    # A limit just below zero must not read as zero.
    tiny = value != 0 and abs(value) < 0.5 * 10**-digits
    return (f"{value:.0e}" if tiny else f"{value:.{digits}f}").replace("-", "−")
