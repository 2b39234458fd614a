"""What a generator can be asked for: the one table of conditions.

A row here is all that a new condition takes, if the records have a column of its name: training, the sheet of samples,
the pipeline, generate.py's flags, reports and cards read it here, and `config.json` takes it along with the weights.
Nothing heavy is imported, so that flags can be made of it before anything else is loaded.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dataset_scripts.schema import CELL_PARSERS, SEXES, SKIN_TYPES, UNKNOWN, is_missing, parse_number


@dataclasses.dataclass(frozen=True)
class Condition:
    """A measure, where it has a unit: a number from `low` to `high`, counted in bands of `width`. Else a category.

    The names of a category are `names` in this order, or those that training images have, in the alphabet's.
    """

    name: str
    names: Sequence[str] = ()
    unit: str | None = None
    low: float | None = None
    high: float | None = None
    width: float | None = None

    @property
    def is_measure(self) -> bool:
        return self.unit is not None

    def parse(self, cell: Any, where: str) -> str | float | None:
        """A table's cell as a value, None where it says nothing; UserError names `where` for what can be none."""
        if is_missing(cell):
            return None
        if self.name in CELL_PARSERS:
            value = CELL_PARSERS[self.name](cell, where)
            return None if value == UNKNOWN else value
        return parse_number(cell, where, self.name) if self.is_measure else cell

    def config(self) -> dict[str, Any]:
        """What a `LesionConditioner` needs of the row."""
        measure = {"unit": self.unit, "low": self.low, "high": self.high, "width": self.width}
        return {"name": self.name} | (measure if self.is_measure else {})

    def help(self) -> str:
        """What can be asked for, in a line."""
        if self.is_measure:
            return f"{self.unit}, {self.low:g} to {self.high:g}"
        return ", ".join(self.names) or "as the training data name it"


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("diagnosis"),
        Condition("sex", SEXES),
        Condition("localization"),
        Condition("fitzpatrick", SKIN_TYPES),
        Condition("age", unit="years", low=0.0, high=120.0, width=10.0),
        Condition("ita", unit="degrees", low=-180.0, high=180.0, width=10.0),
    )
}
