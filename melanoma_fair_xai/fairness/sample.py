"""The images that are evaluated, checked once, as arrays that every estimator reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dataset_scripts.schema import is_missing
from melanoma_fair_xai.base.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Row i is one image.

    Attributes:
        labels: bool (n,), True for melanoma.
        scores: float64 (n,); higher means melanoma.
        lesions: int64 (n,), codes of the lesions.
        keys: int64 (n,), ordered by fold, then score: only keys of one fold are compared.
        fold_width: keys // fold_width is the fold, and keys % fold_width the rank of the score, from 1.
        thresholds: float64 (n,), or None.
    """

    labels: np.ndarray
    scores: np.ndarray
    lesions: np.ndarray
    keys: np.ndarray
    fold_width: int
    thresholds: np.ndarray | None

    @property
    def decisions(self) -> np.ndarray | None:
        """bool (n,), score >= threshold; None without thresholds."""
        return None if self.thresholds is None else self.scores >= self.thresholds

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> "Sample":
        """Some of the rows (indices or bool); codes and keys stay comparable."""
        thresholds = None if self.thresholds is None else self.thresholds[rows]
        parts = {name: getattr(self, name)[rows] for name in ("labels", "scores", "lesions", "keys")}
        return replace(self, **parts, thresholds=thresholds)


def make_sample(
    labels: Sequence,
    scores: Sequence,
    lesion_ids: Sequence | None = None,
    folds: Sequence | None = None,
    thresholds: Sequence | float | None = None,
) -> Sample:
    """Check and code the columns of a predictions table; without lesion ids every image is a lesion of its own.

    Raises UserError for no rows, unequal lengths, labels that are not 0 or 1, scores that are not in
    [0, 1], thresholds that are not finite, missing lesion ids, and Series whose indices differ.
    """
    given = {"label": labels, "score": scores, "lesion_id": lesion_ids, "fold": folds, "threshold": thresholds}
    check_index(given)
    labels, scores = np.asarray(labels), _numbers(scores, "score")
    n = len(labels)
    if n == 0:
        raise UserError("no rows: there is nothing to evaluate")
    for row, label in enumerate(labels.tolist()):
        if not (isinstance(label, int | float | np.number | np.bool_) and label in (0, 1)):
            raise UserError(f"label {label!r} in row {row}: labels are 0 (benign) and 1 (melanoma)")
    columns = {"score": scores}
    if lesion_ids is not None:
        columns["lesion_id"] = lesion_ids = np.asarray(lesion_ids)
    if folds is not None:
        columns["fold"] = folds = np.asarray(folds)
    if thresholds is not None:
        columns["threshold"] = thresholds = _numbers(
            np.broadcast_to(thresholds, n) if np.ndim(thresholds) == 0 else thresholds, "threshold"
        )
    for name, column in columns.items():
        if column.shape != (n,):
            raise UserError(f"{name}: {column.shape} values for {n} labels; give one for every image")
    outside = np.flatnonzero((scores < 0) | (scores > 1))
    if len(outside):
        raise UserError(f"score: {scores[outside[0]]} in row {outside[0]}; scores are probabilities, from 0 to 1")
    lesions = np.arange(n) if lesion_ids is None else _codes(lesion_ids, "lesion_id")
    fold_codes = np.zeros(n, dtype=np.int64) if folds is None else _codes(folds, "fold")
    ranks = np.unique(scores, return_inverse=True)[1] + 1
    width = int(ranks.max()) + 1
    return Sample(labels.astype(bool), scores, lesions, fold_codes * width + ranks, width, thresholds)


def check_index(columns: Mapping[str, Any]) -> None:
    """UserError for a pandas column whose index is not that of the first: rows are taken by position."""
    found = {name: values for name, values in columns.items() if isinstance(values, pd.Series)}
    for name, values in found.items():
        first = next(iter(found))
        if not values.index.equals(found[first].index):
            raise UserError(
                f"{name}: its index is not that of {first}; align them (reindex), or give .to_numpy() if their order "
                "is the same"
            )


def _numbers(values: Sequence, name: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}: not a column of numbers") from None
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise UserError(
            f"{name}: {numbers[wrong[0]]} in row {wrong[0]} ({len(wrong)} such of {len(numbers)}); "
            "correct or remove these rows"
        )
    return numbers


def _codes(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind in "OU":
        values = pd.Series(values, dtype=object).mask([is_missing(value) for value in values])
    codes = pd.factorize(values)[0]
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise UserError(f"{name}: no value in row {missing[0]} ({len(missing)} such); give one for every image")
    return codes.astype(np.int64)
