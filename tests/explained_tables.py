"""What explain.py leaves of images, with planted truth: by how much the method is better than which control."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from melanoma_fair_xai.explain.batches import column_name
from melanoma_fair_xai.explain.controls import CONTROLS
from melanoma_fair_xai.explain.measures import COMPARED
from melanoma_fair_xai.explain.summary import error_types

LOWER = {"deletion_blur", "deletion_mean", "road_most", "average_drop", "infidelity"}  # is better, of COMPARED


def explained_table(over: float | Mapping[str, float] = 0.0, lesions: int = 40, **columns: object) -> pd.DataFrame:
    """A row for each of so many lesions. On every measure the method is better than a control by `over`, give or take.

    `over` may be a number for each control, others 0; `columns` replace those of the table or stand beside them, a
    number with a scatter of .01.
    """
    rng = np.random.default_rng(0)
    table = {
        "image_id": [f"image{row}" for row in range(lesions)],
        "lesion_id": [f"lesion{row}" for row in range(lesions)],
        "source": "phantom",
        "label": np.arange(lesions) % 2,
        "score": np.linspace(0.1, 0.9, lesions),
        "threshold": 0.5,
        "map_problem": "",
        "max_sensitivity": 0.1,
    }
    for name in COMPARED:
        table[name] = 0.5 + rng.normal(0, 0.01, lesions)
        for control in CONTROLS:
            better_by = over.get(control, 0.0) if isinstance(over, Mapping) else over
            sign = -1 if name in LOWER else 1
            table[column_name(name, control)] = table[name] - sign * (better_by + scatter(rng, lesions))
    for name, value in columns.items():
        table[name] = value + scatter(rng, lesions) if isinstance(value, float) else value
    table["decided"] = np.asarray(table["score"]) >= 0.5
    table["error"] = error_types(pd.Series(table["label"]), pd.Series(table["decided"]))
    return pd.DataFrame(table)


def scatter(rng: np.random.Generator, count: int) -> np.ndarray:
    """Differences around exactly zero."""
    values = rng.normal(0, 0.01, count)
    return values - values.mean()
