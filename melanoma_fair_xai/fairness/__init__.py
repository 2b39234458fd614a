"""Performance by group with intervals that a statistician accepts, from arrays and group columns; no torch."""

from .comparison import Comparison, compare
from .means import mean_by_group
from .predictions import read_predictions
from .report import FairnessReport
from .stratified import evaluate, evaluate_predictions

__all__ = [
    "Comparison",
    "FairnessReport",
    "compare",
    "evaluate",
    "evaluate_predictions",
    "mean_by_group",
    "read_predictions",
]
