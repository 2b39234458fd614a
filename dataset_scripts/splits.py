"""Lesion-grouped splits: joined duplicates, stratified folds, and the manifest that fixes which image is where."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import csv_text, plain_cells

from .schema import check_unique

N_FOLDS = 5
MANIFEST_NAME = "split_manifest.csv"


def join_lesions(lesion_ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Lesion ids after merging the pairs of ids that are known to be one lesion, pairs of pairs too.

    The first id in alphabetical order names the group.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(name) for name in lesion_ids]


def lesion_strata(lesion_ids: Sequence[str], *columns: Sequence[str]) -> np.ndarray:
    """The stratum of each row, one per lesion: its values in `columns`, or `mixed` where its images differ."""
    keys = pd.Series(["|".join(map(str, values)) for values in zip(*columns, strict=True)], dtype=str)
    grouped = keys.groupby(np.asarray(lesion_ids))
    return keys.where(grouped.transform("nunique") == 1, "mixed").to_numpy()


def assign_folds(
    lesion_ids: Sequence[str], strata: Sequence[str], n_folds: int = N_FOLDS, seed: int = 0
) -> np.ndarray:
    """The fold (0 to n_folds - 1) of each row, whole lesions together and each stratum spread evenly.

    Within a stratum, lesions are shuffled, put in order of their number of images and dealt out one by one, going on
    where the last stratum stopped. Rows may come in any order: the result depends on the sets and the seed alone.
    """
    lesions = pd.DataFrame({"lesion": np.asarray(lesion_ids, dtype=str), "stratum": np.asarray(strata, dtype=str)})
    if lesions.groupby("lesion")["stratum"].nunique().gt(1).any():
        raise ValueError("a lesion has more than one stratum: see lesion_strata")
    table = lesions.groupby(["stratum", "lesion"]).size().reset_index(name="images")  # sorted by stratum and lesion
    table["shuffle"] = np.random.default_rng(seed).permutation(len(table))
    table = table.sort_values(["stratum", "images", "shuffle"], ascending=[True, False, True])
    fold_of_lesion = dict(zip(table["lesion"], np.arange(len(table)) % n_folds, strict=True))
    return lesions["lesion"].map(fold_of_lesion).to_numpy(dtype=np.int64)


def fold_split(folds: np.ndarray, test_fold: int = 0, n_folds: int = N_FOLDS) -> np.ndarray:
    """`test` for the test fold, `validation` for the one after it, `train` for the rest."""
    folds = np.asarray(folds)
    return np.where(folds == test_fold, "test", np.where(folds == (test_fold + 1) % n_folds, "validation", "train"))


def parse_fold(text: str) -> int:
    """The number k of a fold named as `k/5`; UserError for anything else."""
    if text not in (f"{fold}/{N_FOLDS}" for fold in range(N_FOLDS)):
        raise UserError(
            f"--fold {text}: give 0/{N_FOLDS} to {N_FOLDS - 1}/{N_FOLDS}, where 0/{N_FOLDS} is the default"
        )
    return int(text.partition("/")[0])


def splits_of_fold(
    splits: Sequence[str], lesion_ids: Sequence[str], strata: Sequence[str], test_fold: int, seed: int = 0
) -> np.ndarray:
    """Splits in which another fold is the test split, of splits for fold 0, (n,) strings.

    As they stand, test is fold 0 and validation fold 1; what is in train is dealt to the folds 2 to N_FOLDS - 1, whole
    lesions together. Other splits stay what they are.
    """
    splits = np.asarray(splits, dtype=object)
    folds = np.select([splits == "test", splits == "validation"], [0, 1], -1)
    train = splits == "train"
    if train.any():
        folds[train] = 2 + assign_folds(np.asarray(lesion_ids)[train], np.asarray(strata)[train], N_FOLDS - 2, seed)
    return np.where(folds >= 0, fold_split(folds, test_fold), splits)


def check_disjoint(lesion_ids: Sequence[str], splits: Sequence[str], where: str) -> None:
    """Raise UserError if a lesion has images in more than one split: scores on such splits are not honest."""
    counts = pd.Series(np.asarray(splits)).groupby(np.asarray(lesion_ids)).nunique()
    crossing = counts.index[counts > 1]
    if len(crossing):
        raise UserError(
            f"{where}: lesion {crossing[0]} stands in more than one split ({len(crossing)} such); "
            "split by lesion, or every score on the test split is too good"
        )


def _in_order(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[["image_id", "lesion_id", "split"]].sort_values("image_id")


def manifest_hash(manifest: pd.DataFrame) -> str:
    """SHA-256 of a split manifest (columns image_id, lesion_id, split), whatever the order of its rows."""
    return hashlib.sha256(_in_order(manifest).to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def write_manifest(manifest: pd.DataFrame, path: str) -> str:
    """Write which image is in which split as CSV under a line with its hash, and return the hash.

    Raises UserError if an image stands twice or a lesion in more than one split.
    """
    check_unique(manifest["image_id"], "image", path)
    check_disjoint(manifest["lesion_id"], manifest["split"], path)
    digest = manifest_hash(manifest)
    with atomic_path(path) as partial:
        partial.write_bytes(f"# sha256 {digest}\n{csv_text(_in_order(manifest))}".encode())
    return digest


def read_manifest(path: str) -> pd.DataFrame:
    """A split manifest (columns image_id, lesion_id and split, strings).

    Raises UserError if it is missing or was altered, an image stands twice, or a lesion in more than one split.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such split manifest")
    with open(path, encoding="utf-8", newline="") as file:
        head, body = file.readline(), file.read()
    try:
        manifest = plain_cells(pd.read_csv(io.StringIO(body), dtype=str, keep_default_na=False))
    except (ValueError, pd.errors.ParserError):
        manifest = pd.DataFrame()
    if head.split()[:2] != ["#", "sha256"] or list(manifest.columns) != ["image_id", "lesion_id", "split"]:
        raise UserError(f"{path}: not a split manifest (a line '# sha256 ...', then image_id,lesion_id,split)")
    check_unique(manifest["image_id"], "image", path)
    check_disjoint(manifest["lesion_id"], manifest["split"], path)
    if head.split()[2:] != [manifest_hash(manifest)]:
        raise UserError(f"{path}: its rows do not match its sha256; it was altered after it was written")
    return manifest
