"""The fairness core of melanoma_fair_xai as an `evaluate` module."""

import dataclasses

import datasets
import evaluate

import melanoma_fair_xai.fairness as fairness
from dataset_scripts.schema import UNKNOWN, cell_name
from melanoma_fair_xai.fairness.metrics import METRICS

DESCRIPTION = """
Performance of a binary classifier by group, with 95 % intervals that count lesions (or patients) rather than images,
signed contrasts with a reference group, and the worst group. See the metric card in README.md.
"""

INPUTS = """
Args:
    predictions: probabilities of the positive class, from 0 to 1.
    references: 0 or 1.
    groups: names of groups, or numbers; "unknown", as None is, is shown, but compared with nothing.
    lesion_ids: texts or numbers; images of one lesion depend on each other and count as one.
    threshold: an image is called positive where its prediction is at least this; default 0.5.
    reference: the group that others are compared with; default: the one with most positives.
    n_resamples: bootstrap replicates; default 2000.
    seed: fixes both; default 0.

Returns:
    every metric of all images as a number, with `<metric>_low` and `<metric>_high`; `by_group`, `contrasts` and
    `worst_group` as lists of dicts (NaN where a group has too few lesions, with its counts).

Examples:
    >>> metric = evaluate.load("./metrics/stratified_fairness")
    >>> metric.add_batch(predictions=[0.9, 0.2], references=[1, 0], groups=["I-II", "V-VI"], lesion_ids=["a", "b"])
    >>> results = metric.compute(threshold=0.4)
"""

CITATION = (
    """@misc{melanoma_fair_xai, title={melanoma-fair-xai: fair and explainable melanoma diagnosis}, year={2026}}"""
)


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class StratifiedFairness(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Value("int64"),
                    "groups": datasets.Value("string"),
                    "lesion_ids": datasets.Value("string"),
                }
            ),
        )

    def add_batch(self, *, groups=None, lesion_ids=None, **columns) -> None:
        """Add a batch; the columns may also be given to `compute`."""
        if groups is not None:
            groups = [cell_name(value) for value in groups]
        if lesion_ids is not None:
            names = (cell_name(value) for value in lesion_ids)
            lesion_ids = ["" if name == UNKNOWN else name for name in names]  # which _compute refuses, with the row
        super().add_batch(groups=groups, lesion_ids=lesion_ids, **columns)

    def add(self, *, groups=None, lesion_ids=None, **cells) -> None:
        """Add one image."""
        columns = {f"{name}s": [value] for name, value in cells.items()}
        self.add_batch(groups=[groups], lesion_ids=[lesion_ids], **columns)

    def _compute(
        self,
        predictions: list[float],
        references: list[int],
        groups: list[str],
        lesion_ids: list[str],
        threshold: float = 0.5,
        reference: str | None = None,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> dict:
        report = fairness.evaluate(
            references,
            predictions,
            {"group": groups},
            lesion_ids=lesion_ids,
            thresholds=threshold,
            reference={"group": reference} if reference else None,
            n_resamples=n_resamples,
            seed=seed,
        )
        with_interval = [row for row in report.overall if not METRICS[row.metric].point_estimate]
        return {
            **{row.metric: row.value for row in report.overall},
            **{f"{row.metric}_low": row.low for row in with_interval},
            **{f"{row.metric}_high": row.high for row in with_interval},
            "by_group": [dataclasses.asdict(row) for row in report.by_group],
            "contrasts": [dataclasses.asdict(row) for row in report.contrasts],
            "worst_group": [dataclasses.asdict(row) for row in report.worst_group],
        }
