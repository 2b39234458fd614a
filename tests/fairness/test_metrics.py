"""The table of metrics: rows are estimated, guarded, directed and shown as they say, and so is one that is planted."""

import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.fairness import compare, evaluate
from melanoma_fair_xai.fairness.estimates import rate
from melanoma_fair_xai.fairness.figures import plot_forest
from melanoma_fair_xai.fairness.metrics import METRICS, Metric, point_values
from melanoma_fair_xai.fairness.sample import make_sample


def lesions_of(melanomas: int, benign: int, images: int = 3) -> dict[str, np.ndarray]:
    """So many lesions of each class, each photographed `images` times, whose scores overlap."""
    labels = np.repeat([1] * melanomas + [0] * benign, images)
    lesions = np.repeat(np.arange(melanomas + benign), images)
    rng = np.random.default_rng(0)
    return {
        "labels": labels,
        "scores": np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0.01, 0.99),
        "lesion_ids": lesions,
    }


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_estimable_from_its_minimum_of_lesions_on_and_not_below(name):
    least = {"sensitivity": (10, 0), "specificity": (0, 10), "auprc": (20, 20), "calibration_slope": (20, 20)}
    least_melanomas, least_benign = least.get(name, (10, 10))
    for melanomas, benign, expected in (
        (least_melanomas, least_benign, True),
        (least_melanomas - 1, 60, least_melanomas == 0),
        (60, least_benign - 1, least_benign == 0),
    ):
        if min(melanomas, benign) < 0:
            continue
        report = evaluate(**lesions_of(melanomas, benign), thresholds=0.5, n_resamples=50)
        row = next(row for row in report.overall if row.metric == name)
        assert row.estimable is expected, (melanomas, benign)
        assert np.isfinite(row.value) == expected
        assert np.isfinite([row.low, row.high]).all() == (expected and name != "ece")


def test_a_predictive_value_needs_lesions_of_its_calls():
    """2 calls say nothing of PPV, nor 9 of 9; NPV has all other lesions."""
    labels = np.repeat([1, 0], [30, 60])
    for calls, estimable in ((2, False), (9, False), (10, True)):
        scores = np.where(np.arange(90) < calls, 0.9, np.linspace(0.1, 0.4, 90))
        for flipped in (False, True):
            given = (1 - labels, 1 - scores) if flipped else (labels, scores)
            rows = {row.metric: row for row in evaluate(*given, thresholds=0.5, n_resamples=30).overall}
            few, many = ("npv", "ppv") if flipped else ("ppv", "npv")
            assert rows[few].estimable == estimable and rows[many].estimable


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.better])
def test_better_scores_are_better_in_the_direction_that_the_row_names(name):
    rng = np.random.default_rng(1)
    z = rng.normal(size=2000)
    labels = (rng.random(2000) < 1 / (1 + np.exp(-2.5 * z))).astype(int)
    right = 1 / (1 + np.exp(-2.5 * z))  # the true probabilities
    wrong = 1 / (1 + np.exp(-2.5 * (0.3 * z + rng.normal(size=2000))))
    good, bad = (point_values(make_sample(labels, scores, thresholds=0.5), [name])[name] for scores in (right, wrong))
    assert good > bad if METRICS[name].better == "higher" else good < bad


def test_what_is_estimable_has_an_interval_whatever_the_data():
    """Perfect, reversed, constant and fold-torn data: a value never stands alone, unless it is a point estimate."""
    rng = np.random.default_rng(2)
    labels = np.repeat([1, 0], [25, 60])
    cases = {
        "perfect": np.where(labels, 0.9, 0.1),
        "certain": labels.astype(float),
        "reversed": np.where(labels, 0.1, 0.9),
        "constant": np.full(85, 0.5),
        "noise": rng.random(85),
    }
    seen = set()
    for name, scores in cases.items():
        for threshold in (0.5, 0.0, 1.0):
            for folds in (None, labels):  # no pair of a melanoma and a benign image in one fold
                report = evaluate(
                    labels,
                    scores,
                    {"site": np.tile(["a", "b"], 43)[:85]},
                    folds=folds,
                    thresholds=threshold,
                    n_resamples=20,
                )
                for row in (*report.overall, *report.by_group, *report.contrasts):
                    point = METRICS[row.metric].point_estimate
                    assert row.estimable == np.isfinite(row.value), (name, row)
                    assert np.isfinite([row.low, row.high]).all() == (row.estimable and not point), (name, row)
                    seen |= {row.metric} if row.estimable else set()
    assert seen == set(METRICS)


def test_a_value_of_one_or_zero_counts_the_lesions_that_it_is_a_share_of():
    """12 of 12 positive calls are right, and 30 of 30 negative ones: no false alarm and none overlooked."""
    labels = np.repeat([1, 0], [12, 30])
    rows = {row.metric: row for row in evaluate(labels, labels.astype(float), thresholds=0.5, n_resamples=20).overall}
    assert rows["ppv"].low == pytest.approx(0.025 ** (1 / 12)) and rows["npv"].low == pytest.approx(0.025 ** (1 / 30))
    wrong = {row.metric: row for row in evaluate(labels, 1.0 - labels, thresholds=0.5, n_resamples=20).overall}
    assert wrong["ppv"].value == 0 and wrong["ppv"].high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert wrong["npv"].value == 0 and wrong["npv"].high == pytest.approx(1 - 0.025 ** (1 / 12))


@pytest.fixture
def planted(monkeypatch) -> tuple[str, ...]:
    """Two metrics more: one with limits in closed form, and one of which nothing but its value is known."""
    monkeypatch.setitem(
        METRICS,
        "miss_rate",
        Metric(
            "miss rate",
            lambda weighted, weights: 1 - weighted.sensitivity(weights),
            "lower",
            lambda sample: rate(sample, sample.labels, ~sample.decisions),
            at_threshold=True,
            classes=(1,),
        ),
    )
    monkeypatch.setitem(
        METRICS,
        "f1",
        Metric(
            "F1 score",
            lambda weighted, weights: 2 / (1 / weighted.sensitivity(weights) + 1 / weighted.ppv(weights)),
            "higher",
            at_threshold=True,
        ),
    )
    return "miss_rate", "f1"


def models() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"image_id": range(400), "lesion_id": np.arange(400) // 2, "fold": 0, "threshold": 0.5})
    table = table.assign(label=(np.arange(400) // 2) % 3 == 0, sex=np.where(np.arange(400) < 200, "female", "male"))
    table["label"] = table["label"].astype(int)
    return {
        name: table.assign(score=np.clip(rng.normal(0.4 + effect * table["label"], 0.2), 0, 1))
        for name, effect in (("weak", 0.2), ("strong", 0.4))
    }


def test_a_planted_metric_comes_with_an_interval_everywhere(planted, tmp_path):
    weak = models()["weak"]
    columns = {"lesion_ids": weak["lesion_id"], "thresholds": weak["threshold"]}
    report = evaluate(weak["label"], weak["score"], {"sex": weak["sex"]}, n_resamples=100, **columns)
    report.write(tmp_path)
    table = pd.read_csv(tmp_path / "fairness.csv")
    text = (tmp_path / "fairness.md").read_text()
    for name in planted:
        metrics = table[(table["kind"] == "metric") & (table["metric"] == name)]
        assert metrics["group"].tolist() == ["all", "female", "male"] and metrics["estimable"].all()
        assert (metrics["low"] < metrics["value"]).all() and (metrics["value"] < metrics["high"]).all()
        gap = table[(table["kind"] == "contrast") & (table["metric"] == name)].iloc[0]
        assert gap["low"] < gap["value"] < gap["high"] and np.isnan(gap["p"])
        row = metrics.iloc[0]
        assert f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text and METRICS[name].title in text
        worst = table[(table["kind"] == "worst_group") & (table["metric"] == name)].iloc[0]
        assert 0 < worst["p"] <= 1
    figure = plot_forest(report.overall, report.by_group, "sex", "")
    assert {"miss rate", "F1 score"} <= {axis.get_title() for axis in figure.axes}
    sensitivity = {row.group: row for row in (*report.overall, *report.by_group) if row.metric == "sensitivity"}
    for row in (*report.overall, *report.by_group):
        if row.metric == "miss_rate":  # the mirror of sensitivity, whose limits change places
            mirror = sensitivity[row.group]
            assert (row.low, row.high) == pytest.approx((1 - mirror.high, 1 - mirror.low))


def test_a_planted_metric_is_compared_between_models(planted):
    comparison = compare(models(), ["sex"], n_resamples=100)
    text = comparison.to_markdown()
    for name in planted:
        rows = [row for row in comparison.differences if row.metric == name]
        assert len(rows) == 3 and all(row.estimable and row.low < row.value < row.high for row in rows)
        assert all(row.value < 0 for row in rows) if name == "miss_rate" else all(row.value > 0 for row in rows)
        assert [row.metric for row in comparison.gaps].count(name) == 1
        assert f"| {METRICS[name].title}, given the thresholds |" in text


def test_a_row_needs_no_more_than_a_title_a_value_and_a_direction(monkeypatch):
    monkeypatch.setitem(METRICS, "share", Metric("share called", lambda m, w: (m.called @ w) / (m.images @ w), None))
    report = evaluate(**lesions_of(15, 30), thresholds=0.5, n_resamples=100)
    row = next(row for row in report.overall if row.metric == "share")
    assert row.estimable and 0 < row.low < row.value < row.high < 1


@pytest.mark.parametrize("largest, expected", [(1, True), (7, True), (8, False), (60, False)])
def test_a_few_lesions_with_most_of_the_images_do_not_count_as_many(largest, expected):
    """12 melanoma lesions, of which one has so many images: by Kish's number 12, 5.4, 4.8 and 1.4."""
    lesions = np.concatenate([np.zeros(largest, dtype=int), np.arange(1, 60)])
    labels = (lesions < 12).astype(int)
    scores = np.clip(np.random.default_rng(0).normal(0.4 + 0.2 * labels, 0.25), 0.01, 0.99)
    rows = {row.metric: row for row in evaluate(labels, scores, lesion_ids=lesions, n_resamples=20).overall}
    assert rows["roc_auc"].melanoma_lesions == 12 and rows["roc_auc"].estimable is expected
