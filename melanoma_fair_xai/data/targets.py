"""What a classifier is asked: melanoma against the rest, against nevi, or the diagnosis itself."""

import collections
import dataclasses

import numpy as np
import pandas as pd

from dataset_scripts.schema import MELANOMA_NAMES, UNKNOWN, is_nevus, spelling
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import Records, say

HISTOLOGY = "histo"


@dataclasses.dataclass(frozen=True)
class Target:
    """`label_names` in the order of the head's outputs; `positive` are the indices that mean melanoma."""

    name: str
    label_names: list[str]
    positive: list[int]


def apply_target(
    records: Records, target: str, confirmed_by_histology: bool = False, label_names: list[str] | None = None
) -> tuple[Records, Target, np.ndarray]:
    """The records that take part, the target, and their labels (int64, one per row).

    `label_names` gives the order of an existing model's outputs for `diagnosis`. Raises UserError if the data set
    cannot answer the question.
    """
    table = records.table
    keep = np.ones(len(table), dtype=bool)
    if confirmed_by_histology:
        if "dx_type" not in table:
            raise UserError(f"--confirmed_by_histology: {records.name} has no column dx_type")
        keep &= (table["dx_type"] == HISTOLOGY).to_numpy()
    confirmed = keep.copy()
    melanoma = table["melanoma"].to_numpy(dtype=np.int64)
    if target == "melanoma_vs_nevus":
        keep &= (melanoma == 1) | table["diagnosis"].map(is_nevus).to_numpy(dtype=bool)
        _say_left_out(table["diagnosis"][confirmed & ~keep], confirmed.sum(), target)
        names, labels = ["nevus", MELANOMA_NAMES[1]], melanoma
    elif target == "melanoma_vs_rest":
        names, labels = list(MELANOMA_NAMES), melanoma
    elif target == "diagnosis":
        names = label_names or sorted(set(table["diagnosis"]) - {UNKNOWN})
        keep &= ((table["diagnosis"] != UNKNOWN) | (UNKNOWN in names)).to_numpy()
        _say_left_out(table["diagnosis"][confirmed & ~keep], confirmed.sum(), target)
        unknown = sorted(set(table["diagnosis"][keep]) - set(names))
        if unknown:
            raise UserError(f"--target diagnosis: {records.name} has {unknown[0]}, which the model does not know")
        written = collections.Counter(map(spelling, names))
        if alike := [repr(name) for name in names if written[spelling(name)] > 1]:
            alike = ", ".join(alike)
            say(f"warning: --target diagnosis: {alike} differ in spelling alone and are classes of their own")
        index = {name: index for index, name in enumerate(names)}
        labels = table["diagnosis"].map(index).fillna(-1).to_numpy(dtype=np.int64)
    else:
        raise ValueError(f"{target}: no such target")
    if target == "diagnosis":
        positive = sorted(set(labels[keep & (melanoma == 1)].tolist()))
    else:
        positive = [1]
    if not keep.any():
        raise UserError(f"--target {target}: no record of {records.name} takes part in it")
    return records.select(keep), Target(target, names, positive), labels[keep]


def _say_left_out(diagnoses: pd.Series, total: int, target: str) -> None:
    counts = diagnoses.value_counts()
    if len(counts):
        names = ", ".join(f"{name} {count:,}" for name, count in counts.head(20).items())
        more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
        say(f"--target {target} leaves out {counts.sum():,} of {total:,} images: {names}{more}")
