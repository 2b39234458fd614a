import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from melanoma_fair_xai.fairness import resampling, weighted
from melanoma_fair_xai.fairness.bootstrap import estimate_parts
from melanoma_fair_xai.fairness.metrics import METRICS, point_values
from melanoma_fair_xai.fairness.resampling import bootstrap_weights, drawing_units, lesion_groups
from melanoma_fair_xai.fairness.sample import make_sample
from melanoma_fair_xai.fairness.weighted import WeightedMetrics


def draw(seed: int, n: int = 400, decimals: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lesion = rng.integers(0, n // 2, n)
    lesion = pd.factorize(lesion)[0]  # as a sample codes them
    label = (rng.random(lesion.max() + 1) < 0.3).astype(int)[lesion]
    raw = 1.5 * label - 1 + rng.normal(size=lesion.max() + 1)[lesion] + rng.normal(size=n)
    scores = np.round(1 / (1 + np.exp(-raw)), decimals).clip(0.01, 0.99)
    return {"labels": label, "scores": scores, "lesion_ids": lesion}


def repeated(data: dict[str, np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with every image as often as its lesion weighs."""
    times = weights[data["lesion_ids"]].astype(int)
    return np.repeat(data["labels"], times), np.repeat(data["scores"], times)


def calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """The expected calibration error over 15 bins, one after the other."""
    error = 0.0
    for k in range(15):
        inside = (scores >= k / 15) & (scores < (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return error


def test_every_replicate_is_scikit_learns_value_on_the_lesions_it_drew():
    data = draw(0)
    metric = WeightedMetrics(make_sample(**data, thresholds=0.4))
    weights = np.random.default_rng(1).integers(0, 4, (len(metric.lesions), 5)).astype(float)
    values = {name: row.value(metric, weights) for name, row in METRICS.items()}
    for column in range(5):
        labels, scores = repeated(data, weights[:, column])
        decided = scores >= 0.4
        expected = {
            "roc_auc": metrics.roc_auc_score(labels, scores),
            "sensitivity": metrics.recall_score(labels, decided),
            "specificity": metrics.recall_score(1 - labels, ~decided),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, decided),
            "ppv": metrics.precision_score(labels, decided),
            "npv": metrics.precision_score(1 - labels, ~decided),
            "auprc": metrics.average_precision_score(labels, scores),
            "brier": metrics.brier_score_loss(labels, scores),
            "ece": calibration_error(labels, scores),
        }
        for name, value in expected.items():
            assert values[name][column] == pytest.approx(value, abs=1e-10), name
        x = np.log(scores / (1 - scores))[:, None]
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, labels)
        assert values["calibration_slope"][column] == pytest.approx(fit.coef_[0, 0], abs=1e-5)
        # With slope 1 the recalibrated scores have the observed mean.
        shifted = 1 / (1 + np.exp(-x[:, 0] - values["calibration_intercept"][column]))
        assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-8)


def test_ranking_stays_within_folds():
    data = draw(2)
    folds = data["lesion_ids"] % 3
    metric = WeightedMetrics(make_sample(**data, folds=folds))
    ones = np.ones((len(metric.lesions), 1))
    pairs = wins = precision = 0.0
    for fold in range(3):
        labels, scores = data["labels"][folds == fold], data["scores"][folds == fold]
        count = labels.sum() * (1 - labels).sum()
        pairs, wins = pairs + count, wins + count * metrics.roc_auc_score(labels, scores)
        precision += labels.sum() * metrics.average_precision_score(labels, scores)
    assert metric.ranking.roc_auc(ones)[0] == pytest.approx(wins / pairs)
    assert metric.ranking.auprc(ones)[0] == pytest.approx(precision / data["labels"].sum())


def test_recalibration_of_many_distinct_scores_is_that_of_all_of_them():
    data = draw(3, n=5000, decimals=12)
    data["scores"][:20] = 1e-6  # cells of equal width are wide where a few logits lie far out
    metric = WeightedMetrics(make_sample(**data))
    ones = np.ones((len(metric.lesions), 1))
    intercept, slope = metric.recalibration.intercept(ones), metric.recalibration.slope(ones)
    x = np.log(data["scores"] / (1 - data["scores"]))[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, data["labels"])
    assert slope[0] == pytest.approx(fit.coef_[0, 0], abs=1e-5)
    shifted = 1 / (1 + np.exp(-x[:, 0] - intercept[0]))
    assert shifted.mean() == pytest.approx(data["labels"].mean(), abs=1e-7)


def test_calibration_error_is_a_loop_over_bins():
    data = draw(4)
    found = point_values(make_sample(**data), ["ece"])["ece"]
    assert found == pytest.approx(calibration_error(data["labels"], data["scores"]))


def test_bootstrap_keeps_strata_and_has_the_variance_of_the_mean():
    strata = np.array([0] * 12 + [1] * 40 + [2])
    values = np.random.default_rng(5).normal(size=53)
    weights = np.concatenate(list(bootstrap_weights(strata, 20_000, np.random.default_rng(6))), axis=1)
    for stratum, size in ((0, 12), (1, 40), (2, 1)):
        np.testing.assert_allclose(weights[strata == stratum].sum(axis=0), size)
    for stratum, size in ((0, 12), (1, 40)):
        rows = strata == stratum
        means = values[rows] @ weights[rows] / size
        assert means.mean() == pytest.approx(values[rows].mean(), abs=0.01)
        assert means.var() == pytest.approx(values[rows].var(ddof=1) / size, rel=0.05)


def test_lesions_across_the_same_groups_share_a_number():
    lesions, groups = np.array([0, 0, 1, 1, 2, 3, 3]), np.array([0, 2, 2, 0, 0, 2, 2])
    numbers = lesion_groups(lesions, groups)
    assert numbers[0] == numbers[1] and len(set(numbers)) == 3


def test_many_lesions_are_drawn_in_random_groups_of_their_stratum(monkeypatch):
    strata = np.repeat([0, 1, 2], [3000, 900, 5])
    units, of_units = drawing_units(strata, np.random.default_rng(0))
    assert (units == np.arange(len(strata))).all() and of_units is strata
    monkeypatch.setattr(resampling, "MAX_UNITS", 400)
    monkeypatch.setattr(resampling, "MIN_UNITS", 50)
    units, of_units = drawing_units(strata, np.random.default_rng(0))
    assert (of_units[units] == strata).all() and set(units) == set(range(len(of_units))) and len(of_units) <= 400 + 10
    sizes = np.bincount(units)
    assert [np.bincount(of_units)[stratum] for stratum in (1, 2)] == [90, 5]
    assert sizes[of_units == 0].max() - np.sort(sizes[of_units == 0])[1] <= 1  # but for what is left over
    assert (np.diff(units[:3000]) != 0).mean() > 0.9  # at random, not in the order of rows


def test_groups_of_lesions_and_cells_of_scores_tell_the_spread_of_all(monkeypatch):
    data = draw(5, n=6000, decimals=12)
    sample = make_sample(**{**data, "folds": None})
    strata = np.zeros(sample.lesions.max() + 1, dtype=int)
    found = []
    for units, cells in ((10**6, 10**6), (400, 150)):
        monkeypatch.setattr(resampling, "MAX_UNITS", units)
        monkeypatch.setattr(weighted, "CURVE_CELLS", cells)
        found.append(estimate_parts({0: sample}, strata, 400, np.random.default_rng(1))[0])
    for name in ("auprc", "brier", "calibration_slope"):
        fine, coarse = (of[name] for of in found)
        assert coarse.value == pytest.approx(fine.value, abs=1e-9), name
        assert coarse.error == pytest.approx(fine.error, rel=0.12) and coarse.error != fine.error, name
