import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness import evaluate, mean_by_group
from melanoma_fair_xai.fairness.sample import make_sample

REPOSITORY = Path(__file__).resolve().parents[2]


def original_study() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """13 melanomas and 100 benign images of type IV, and scores that give the published figures of both models."""
    benign = np.linspace(0.01, 0.99, 100)
    above = {"ResNet-18": [0] * 9 + [1, 2, 3, 4], "ResNet-50": [0] * 8 + [1, 2, 4, 7, 53]}  # benign images above each
    scores = {name: np.concatenate([0.995 - 0.98 / 99 * np.array(places), benign]) for name, places in above.items()}
    return np.repeat([1, 0], [13, 100]), scores


def test_the_original_studys_two_models_cannot_be_told_apart():
    labels, models = original_study()
    rows = {}
    for name, scores in models.items():
        report = evaluate(labels, scores, thresholds=0.896, n_resamples=200)  # 10 benign images are above it
        rows[name] = {row.metric: row for row in report.overall}
    published = {"ResNet-18": (0.9923, 1.0, 0.95), "ResNet-50": (0.9485, 0.9231, 0.9115)}
    for name, values in published.items():
        for metric, value in zip(("roc_auc", "sensitivity", "balanced_accuracy"), values, strict=True):
            row = rows[name][metric]
            assert row.value == pytest.approx(value, abs=6e-5)
            assert (row.n, row.melanomas, row.melanoma_lesions) == (113, 13, 13)
    for metric in ("roc_auc", "sensitivity", "balanced_accuracy"):
        first, second = rows["ResNet-18"][metric], rows["ResNet-50"][metric]
        assert second.low < first.low < second.high, metric  # the intervals overlap
    for name, hits in (("ResNet-18", 13), ("ResNet-50", 12)):
        exact = stats.binomtest(hits, 13).proportion_ci(method="exact")
        row = rows[name]["sensitivity"]
        assert (row.low, row.high) == pytest.approx((exact.low, exact.high))


def test_groups_are_evaluated_as_if_they_stood_alone():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 0, 1], 100)
    scores, group = rng.random(300), np.repeat(["a", "b", "c"], 100)
    report = evaluate(labels, scores, {"site": group}, thresholds=0.5, n_resamples=200)
    alone = evaluate(labels[:100], scores[:100], thresholds=0.5, n_resamples=200)
    for row, single in zip([r for r in report.by_group if r.group == "a"], alone.overall, strict=True):
        assert row.metric == single.metric and row.value == pytest.approx(single.value)
        if row.metric in ("roc_auc", "sensitivity", "specificity", "balanced_accuracy"):
            assert (row.low, row.high) == pytest.approx((single.low, single.high))
    found = {(row.group, row.metric): row.value for row in report.by_group}
    for contrast in report.contrasts:
        expected = found[contrast.group, contrast.metric] - found[contrast.reference, contrast.metric]
        assert contrast.value == pytest.approx(expected) and contrast.low <= contrast.value <= contrast.high


def test_unknown_columns_and_values_end_in_a_user_error():
    labels, scores = np.tile([0, 1], 20), np.linspace(0, 1, 40)
    with pytest.raises(UserError, match="row 3"):
        evaluate(labels, np.where(np.arange(40) == 3, np.nan, scores))
    with pytest.raises(UserError, match="labels are 0"):
        evaluate(labels + 1, scores)
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate([], [])
    with pytest.raises(UserError, match="from 0 to 1"):
        evaluate(labels, scores * 3)
    with pytest.raises(UserError, match="lesion_id"):
        evaluate(labels, scores, lesion_ids=[None] * 40)
    with pytest.raises(UserError, match="such group"):
        evaluate(labels, scores, {"sex": ["f", "m"] * 20}, reference={"sex": "x"})


def test_means_by_group_are_those_of_pandas_with_intervals_of_lesions():
    rng = np.random.default_rng(1)
    lesion = np.repeat(np.arange(80), 5)
    table = pd.DataFrame(
        {"lesion_id": lesion, "sex": np.where(lesion % 8 == 0, "female", "male"), "score": rng.normal(size=80)[lesion]}
    )
    table.loc[:4, "score"] = np.nan
    result = mean_by_group(table, ["score"], ["sex"]).set_index("group")
    for group, rows in {"all": table, "male": table[table["sex"] == "male"]}.items():
        row = result.loc[group]
        lesions = rows.groupby("lesion_id")["score"].mean().dropna()
        assert row["mean"] == pytest.approx(rows["score"].mean())
        assert (row["n"], row["lesions"]) == (rows["score"].notna().sum(), len(lesions))
        half = stats.t.ppf(0.975, len(lesions) - 1) * lesions.sem()  # all lesions have as many images
        assert (row["low"], row["high"]) == pytest.approx((row["mean"] - half, row["mean"] + half))
    narrower = mean_by_group(table, ["score"], ["sex"], alpha=0.2).set_index("group").loc["male"]
    assert result.loc["male", "low"] < narrower["low"] < narrower["high"] < result.loc["male", "high"]
    assert not result.loc["female", "estimable"] and np.isnan(result.loc["female", "mean"])
    assert result.loc["female", "lesions"] == 9


def test_a_lesion_in_two_groups_narrows_their_difference():
    rng = np.random.default_rng(3)
    lesion = np.tile(np.arange(120), 2)
    labels = (lesion % 3 == 0).astype(int)
    scores = 1 / (1 + np.exp(-(1.5 * labels + rng.normal(size=120)[lesion] + 0.2 * rng.normal(size=240))))
    group = np.repeat(["dermoscopy", "clinical"], 120)
    widths = []
    for lesions in (lesion, np.arange(240)):
        report = evaluate(labels, scores, {"camera": group}, lesions, thresholds=0.5, n_resamples=400)
        widths.append({row.metric: row.high - row.low for row in report.contrasts})
    for metric in ("roc_auc", "sensitivity", "brier", "auprc", "calibration_slope"):
        assert widths[0][metric] < 0.8 * widths[1][metric], metric


def test_a_perfect_model_has_no_interval_of_zero_width():
    labels = np.repeat([1, 0], [20, 80])
    scores = np.concatenate([np.linspace(0.8, 0.9, 20), np.linspace(0.1, 0.3, 80)])
    rows = {row.metric: row for row in evaluate(labels, scores, thresholds=0.5, n_resamples=200).overall}
    for metric in ("roc_auc", "sensitivity", "specificity", "balanced_accuracy", "ppv", "npv", "auprc"):
        assert rows[metric].value == 1 and rows[metric].low < 0.97, metric
    # The 80 negative calls count for NPV; for PPV the positive ones do, and for AUPRC the melanomas, 20 of both.
    for metric, count in (("npv", 80), ("ppv", 20), ("auprc", 20)):
        assert rows[metric].low == pytest.approx(stats.binomtest(count, count).proportion_ci(method="exact").low)
    assert not rows["calibration_slope"].estimable  # the classes can be separated


@pytest.mark.slow
def test_a_million_rows_fit_into_two_gigabytes():
    # Replicates come in blocks, so few of them need as much memory as many.
    code = (
        "import resource; from benchmarks.fairness_speed import draw, ours; ours(draw(1_000_000), 30);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) / 1024 < 2000


def test_contrasts_of_ppv_where_one_group_has_no_false_alarm():
    rng = np.random.default_rng(4)
    labels = np.tile([1, 0, 0], 80)
    scores = np.where(labels == 1, 0.8, 0.2) * rng.uniform(0.9, 1, 240)
    group = np.repeat(["clean", "noisy"], 120)
    scores[(labels == 0) & (group == "noisy") & (np.arange(240) % 4 == 0)] = 0.9
    report = evaluate(
        labels, scores, {"camera": group}, thresholds=0.5, reference={"camera": "clean"}, n_resamples=300
    )
    rows = {(row.group, row.metric): row for row in report.by_group}
    assert rows["clean", "ppv"].value == 1
    gap = next(row for row in report.contrasts if row.metric == "ppv")
    clean, noisy = rows["clean", "ppv"], rows["noisy", "ppv"]
    assert gap.value == pytest.approx(noisy.value - clean.value)
    # Independent groups: the squared distances add up.
    assert gap.value - gap.low == pytest.approx(np.hypot(noisy.value - noisy.low, 0), rel=0.05)


@pytest.mark.parametrize(
    "kind",
    [
        lambda labels: labels.astype(object),
        lambda labels: pd.Series(labels, dtype="Int64"),
        lambda labels: pd.Series(labels.astype(bool), dtype="boolean"),
        lambda labels: [np.int8(label) for label in labels],
        lambda labels: pd.Series(labels.astype(float), dtype=object),
    ],
)
def test_zeros_and_ones_are_labels_whatever_holds_them(kind):
    labels = np.tile([0, 1], 20)
    assert (make_sample(kind(labels), np.linspace(0, 1, 40)).labels == labels.astype(bool)).all()


@pytest.mark.parametrize(("label", "said"), [("1", "'1'"), (None, "None"), (2, "2"), (pd.NA, "<NA>"), (0.5, "0.5")])
def test_what_is_no_label_is_named_with_its_row(label, said):
    with pytest.raises(UserError, match=f"^label {said} in row 3: labels are 0"):
        make_sample(pd.Series([0, 1, True, label], dtype=object), np.linspace(0, 1, 4))


def test_a_reference_may_be_the_number_that_the_group_is():
    labels, scores = np.tile([0, 1], 40), np.linspace(0, 1, 80)
    for values in ([1] * 40 + [2] * 40, [1.0] * 40 + [2.0] * 40, pd.cut([1] * 40 + [2] * 40, [0, 1, 2])):
        asked = 2 if isinstance(values, list) else pd.Interval(1, 2)
        report = evaluate(labels, scores, {"site": values}, reference={"site": asked}, n_resamples=100)
        assert {row.reference for row in report.contrasts} == {"2" if isinstance(values, list) else "(1, 2]"}
