"""The rows of fairness reports and of comparisons, and how their values are written."""

import math
from dataclasses import dataclass

from melanoma_fair_xai.base.tables import number

NOT_ESTIMABLE = "not estimable"


@dataclass(frozen=True)
class GroupMetric:
    """One metric in one group; value, low and high are NaN where it is not estimable."""

    group_column: str
    group: str
    metric: str
    n: int
    lesions: int
    melanomas: int
    melanoma_lesions: int
    value: float
    low: float
    high: float
    estimable: bool

    @property
    def prevalence(self) -> float:
        return self.melanomas / self.n


@dataclass(frozen=True)
class Contrast:
    """group minus reference. `p` is NaN outside the tested family, and `p_holm`, or `q`, is adjusted over it."""

    group_column: str
    group: str
    reference: str
    metric: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    estimable: bool = False
    q: float = math.nan


@dataclass(frozen=True)
class WorstGroup:
    """The worst estimable group, how far the best is from it, and the p-value of equal values in all `groups`.

    `p_holm`, or `q`, is adjusted where the family is that of all columns, else NaN.
    """

    group_column: str
    metric: str
    group: str
    value: float
    best_group: str
    gap: float
    p: float
    groups: int
    p_holm: float = math.nan
    q: float = math.nan


@dataclass(frozen=True)
class ModelDifference:
    """A model minus the baseline in one group; `p` and `p_holm` are NaN outside the tested family.

    `conditional`: on the thresholds as they stand, which another validation set would have put elsewhere. With several
    trainings the values are means over them, and images, lesions and melanomas are counted once.
    """

    group_column: str
    group: str
    metric: str
    model: str
    n: int
    lesions: int
    melanomas: int
    baseline_value: float = math.nan
    model_value: float = math.nan
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    estimable: bool = False
    conditional: bool = False
    q: float = math.nan


@dataclass(frozen=True)
class GapChange:
    """A group's gap to the reference under the baseline and under a model; `value` is the change of the signed gap.

    `levelling_down`: the gap is narrower, the group that was ahead has lost, and the one behind has not gained. `p` is
    the larger of those of the narrowing and of the loss, 1 without levelling down and NaN outside the tested metrics;
    `loss_is_clear`: both are clear, `p_holm` being below .05.
    """

    group_column: str
    group: str
    reference: str
    metric: str
    model: str
    baseline_gap: float
    model_gap: float
    value: float
    low: float
    high: float
    levelling_down: bool = False
    loss_is_clear: bool = False
    p: float = math.nan
    p_holm: float = math.nan
    estimable: bool = True


def with_interval(row: GroupMetric | Contrast | ModelDifference | GapChange) -> str:
    """`value [low, high]`, `value` of a point estimate, or that it is not estimable."""
    if not row.estimable:
        return NOT_ESTIMABLE
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    return number(row.value) + interval


def level_text(alpha: float) -> str:
    """Of intervals, such as `95 %`."""
    return f"{100 * (1 - alpha):g} %"


def p_text(p: float) -> str:
    """A p-value, or a dash for NaN."""
    return "< 0.001" if p < 0.001 else number(p)
