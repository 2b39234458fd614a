import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from scipy import stats
from sklearn import metrics
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from melanoma_fair_xai.fairness import evaluate
from melanoma_fair_xai.fairness.intervals import clopper_pearson, holm, p_value, square_and_add, wilson


@pytest.mark.parametrize("hits, n", [(0, 13), (13, 13), (1, 13), (7, 20), (190, 200)])
def test_limits_of_rates_are_those_of_scipy_and_statsmodels(hits, n):
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert clopper_pearson(hits / n, n) == pytest.approx((exact.low, exact.high))
    assert wilson(hits / n, n) == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-12)
    assert clopper_pearson(hits / n, n, 0.01) == pytest.approx(proportion_confint(hits, n, 0.01, method="beta"))


@pytest.mark.parametrize("first, second", [((9, 10), (40, 80)), ((13, 13), (12, 13)), ((0, 15), (5, 30))])
def test_difference_of_independent_rates_is_newcombes(first, second):
    (x1, n1), (x2, n2) = first, second
    low, high = square_and_add((x1 / n1, wilson(x1 / n1, n1)), (x2 / n2, wilson(x2 / n2, n2)))
    assert (low, high) == pytest.approx(confint_proportions_2indep(x1, n1, x2, n2, method="newcomb"))


def test_p_value_is_where_the_interval_reaches_zero():
    def normal(alpha):
        half = stats.norm.ppf(1 - np.asarray(alpha) / 2)
        return 2.5 - half, 2.5 + half

    assert p_value(normal) == pytest.approx(2 * stats.norm.sf(2.5), rel=1e-4)
    assert p_value(lambda alpha: (-1.0, 1.0)) == 1


def test_holm_is_that_of_statsmodels_and_leaves_out_what_was_not_tested():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5])
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    with_gaps = np.array([np.nan, 0.01, 0.04, np.nan, 0.03])
    np.testing.assert_allclose(holm(with_gaps)[[1, 2, 4]], multipletests([0.01, 0.04, 0.03], method="holm")[1])
    assert np.isnan(holm(with_gaps)[[0, 3]]).all() and holm(np.array([])).shape == (0,)


def test_values_and_gaps_are_those_of_fairlearn():
    rng = np.random.default_rng(0)
    labels = (rng.random(900) < 0.3).astype(int)
    scores = np.clip(0.3 * labels + 0.2 + 0.2 * rng.normal(size=900), 0, 1)
    group = rng.choice(["a", "b", "c"], 900)
    report = evaluate(labels, scores, {"site": group}, thresholds=0.4, n_resamples=20)
    functions = {
        "roc_auc": metrics.roc_auc_score,
        "sensitivity": lambda y, s: metrics.recall_score(y, s >= 0.4),
        "specificity": lambda y, s: metrics.recall_score(y, s >= 0.4, pos_label=0),
        "balanced_accuracy": lambda y, s: metrics.balanced_accuracy_score(y, s >= 0.4),
        "ppv": lambda y, s: metrics.precision_score(y, s >= 0.4),
        "npv": lambda y, s: metrics.precision_score(1 - y, s < 0.4),
        "auprc": metrics.average_precision_score,
        "brier": metrics.brier_score_loss,
    }
    frame = MetricFrame(metrics=functions, y_true=labels, y_pred=scores, sensitive_features=group)
    for row in report.by_group:
        if row.metric in functions:
            assert row.value == pytest.approx(frame.by_group.loc[row.group, row.metric])
    for row in report.worst_group:
        assert row.gap == pytest.approx(frame.difference()[row.metric])
        assert row.value == pytest.approx(frame.group_min()[row.metric])
