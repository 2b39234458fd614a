import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from scipy import stats
from scipy.optimize import brentq
from sklearn import metrics
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from melanoma_fair_xai.fairness import evaluate
from melanoma_fair_xai.fairness.intervals import (
    binormal_variance,
    clopper_pearson,
    holm,
    p_value,
    score_limits,
    square_and_add,
    wilson,
)


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


@pytest.mark.parametrize(
    "area, pairs, others, effect", [(0.75, 4000, 138, 1.0), (0.98, 500, 58, 1.6), (0.02, 500, 58, 1)]
)
def test_limits_of_an_area_solve_their_equation(area, pairs, others, effect):
    """Variance by Hanley and McNeil, with the double probabilities from the bivariate normal distribution."""

    def variance(t):
        probit = stats.norm.ppf(t)
        both = stats.multivariate_normal(cov=[[1, 0.5], [0.5, 1]]).cdf([probit, probit])
        return (t * (1 - t) + others * (both - t**2)) / pairs

    assert binormal_variance(stats.norm.ppf(area), pairs, others) == pytest.approx(variance(area), rel=1e-4)
    for quantile, limit in zip((2.1, -2.1), score_limits(area, pairs, others, effect)(2.1), strict=True):
        ends = (1e-6, area) if quantile > 0 else (area, 1 - 1e-6)
        root = brentq(lambda t, q=quantile: area - t - q * np.sqrt(variance(t) * effect), *ends)
        assert limit == pytest.approx(root, abs=1e-4)


def test_limits_of_a_perfect_area_are_reached_from_below():
    low, high = score_limits(1.0, 1300, 111)(np.array([1.0, 1.96, 3.0]))
    assert (high == 1).all() and (np.diff(low) < 0).all()
    near = score_limits(1 - 1e-9, 1300, 111)(1.96)
    assert near[0] == pytest.approx(low[1], abs=1e-4) and 0.998 < near[1] < 1
    reversed_low, reversed_high = score_limits(0.0, 1300, 111)(1.96)
    assert reversed_low == 0 and reversed_high == pytest.approx(1 - low[1], abs=1e-6)
