"""What a classifier is asked: melanoma against the rest, against nevi, or the diagnosis itself."""

import dataclasses

import numpy as np

from dataset_scripts.schema import MELANOMA_NAMES
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import Records

HISTOLOGY = "histo"


@dataclasses.dataclass(frozen=True)
class Target:
    """`label_names` in the order of the head's outputs; `positive` are the indices that mean melanoma."""

    name: str
    label_names: list[str]
    positive: list[int]


def is_nevus(diagnosis: str) -> bool:
    """Whether a data set's own label is a nevus (HAM10000 `nv`; Fitzpatrick17k's and others' names with the word)."""
    name = diagnosis.lower()
    return name == "nv" or "nevus" in name or "naevus" in name


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
    melanoma = table["melanoma"].to_numpy(dtype=np.int64)
    if target == "melanoma_vs_nevus":
        keep &= (melanoma == 1) | table["diagnosis"].map(is_nevus).to_numpy(dtype=bool)
        names, labels = ["nevus", MELANOMA_NAMES[1]], melanoma
    elif target == "melanoma_vs_rest":
        names, labels = list(MELANOMA_NAMES), melanoma
    elif target == "diagnosis":
        names = label_names or sorted(set(table["diagnosis"]))
        unknown = sorted(set(table["diagnosis"]) - set(names))
        if unknown:
            raise UserError(f"--target diagnosis: {records.name} has {unknown[0]}, which the model does not know")
        labels = table["diagnosis"].map({name: index for index, name in enumerate(names)}).to_numpy(dtype=np.int64)
    else:
        raise ValueError(f"{target}: no such target")
    if target == "diagnosis":
        positive = sorted(set(labels[melanoma == 1].tolist()))
    else:
        positive = [1]
    if not keep.any():
        raise UserError(f"--target {target}: no record of {records.name} takes part in it")
    return records.select(keep), Target(target, names, positive), labels[keep]
