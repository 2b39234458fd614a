"""What can be asked for of Fitzpatrick17k: which of the annotated rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ANNOTATIONS_NAME = "fitzpatrick17k.csv"

# By name: what it is, and which rows of the annotations it takes.
CONFIGURATIONS: dict[str, "tuple[str, Callable[[pd.DataFrame], pd.Series]]"] = {
    "original": (
        "labels that contain melanoma or nevus (975 annotated rows): the subset of the first study",
        lambda rows: rows["diagnosis"].str.contains("melanoma|nevus"),
    ),
    "neoplastic": (
        "benign and malignant growths (4,497 annotated rows), without inflammatory and inherited conditions",
        lambda rows: rows["three_partition_label"] != "non-neoplastic",
    ),
    "all": ("all 16,577 annotated rows", lambda rows: rows["diagnosis"] != ""),
}
DEFAULT_CONFIGURATION = "original"
