"""Performance by group with intervals that a statistician accepts, from arrays and group columns; no torch."""

from melanoma_fair_xai.base.lazy import lazy

_NAMES = {
    "Comparison": "comparison",
    "FairnessReport": "report",
    "Validation": "predictions",
    "compare": "comparison",
    "evaluate": "stratified",
    "evaluate_predictions": "stratified",
    "mean_by_group": "means",
    "read_predictions": "predictions",
    "read_validation": "predictions",
}
__all__ = list(_NAMES)
__getattr__ = lazy(__name__, _NAMES)
