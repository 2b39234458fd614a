"""Performance by group with intervals that a statistician accepts, from arrays and group columns; no torch."""

from .comparison import Comparison, compare
from .evaluation import evaluate, evaluate_predictions
from .groups import read_predictions
from .means import mean_by_group
from .report import FairnessReport

__all__ = [
    "Comparison",
    "FairnessReport",
    "compare",
    "evaluate",
    "evaluate_predictions",
    "mean_by_group",
    "read_predictions",
]
