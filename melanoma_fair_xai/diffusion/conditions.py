"""What a generator can be asked for: the one table of conditions.

A row here is all that a new condition takes, if the records have a column of its name: training, the sheet of samples,
the pipeline, generate.py's flags, reports and cards read it here, and `config.json` takes it along with the weights.
Nothing heavy is imported, so that flags can be made of it before anything else is loaded.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Condition:
    """A category, or, where it has a range, a measure.

    `values` says what the names of a category are, which the training images give, or the unit of a measure. That is a
    number from `low` to `high`, of which training images are counted in bands of `width`.
    """

    name: str
    values: str
    low: float | None = None
    high: float | None = None
    width: float | None = None

    @property
    def is_measure(self) -> bool:
        return self.low is not None

    def config(self) -> dict[str, Any]:
        """What a `LesionConditioner` needs of the row."""
        measure = {"unit": self.values, "low": self.low, "high": self.high, "width": self.width}
        return {"name": self.name} | (measure if self.is_measure else {})

    def help(self) -> str:
        return f"{self.values}, {self.low:g} to {self.high:g}" if self.is_measure else self.values


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("diagnosis", "names of the training data"),
        Condition("sex", "female, male"),
        Condition("localization", "body sites of the training data"),
        Condition("fitzpatrick", "I to VI"),
        Condition("age", "years", 0.0, 120.0, width=10.0),
        Condition("ita", "degrees", -180.0, 180.0, width=10.0),
    )
}
