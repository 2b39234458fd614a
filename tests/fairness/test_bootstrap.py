import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit
from statsmodels import api as sm
from statsmodels.stats.proportion import proportion_confint

from melanoma_fair_xai.fairness import compare, evaluate
from melanoma_fair_xai.fairness.bootstrap import estimate_parts
from melanoma_fair_xai.fairness.metrics import METRICS
from melanoma_fair_xai.fairness.resampling import bootstrap_weights, lesion_classes
from melanoma_fair_xai.fairness.sample import make_sample
from melanoma_fair_xai.fairness.weighted import WeightedMetrics


def test_limits_are_students_around_the_value_with_the_spread_of_the_draws():
    """On the logit scale where a metric is bounded; the rarer class, of 22 lesions, gives the degrees of freedom."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [22, 70])
    sample = make_sample(labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99), thresholds=0.5)
    strata = lesion_classes(sample)
    estimates = estimate_parts({"all": sample}, strata, 200, np.random.default_rng(1))["all"]
    weights = np.concatenate(list(bootstrap_weights(strata, 200, np.random.default_rng(1))), axis=1)
    weighted = WeightedMetrics(sample)
    quantile = stats.t.ppf(0.975, 21)
    for name in ("ppv", "npv", "auprc", "brier", "calibration_intercept", "calibration_slope"):
        value = METRICS[name].value(weighted, np.ones((92, 1)))[0]
        draws = METRICS[name].value(weighted, weights)
        low, high = estimates[name].interval()
        assert estimates[name].value == pytest.approx(value)
        if METRICS[name].bounded:
            value, low, high, draws = map(logit, (value, low, high, draws))
        assert (low, high) == pytest.approx((value - quantile * draws.std(), value + quantile * draws.std()))


@pytest.mark.parametrize("called, estimable", [(1, False), (9, False), (10, True), (12, True)])
def test_a_ppv_of_few_calls_is_none(called, estimable):
    """One call among 100 lesions is often not drawn at all, and nine lesions that are called say little of others."""
    labels = np.repeat([1, 0], [40, 60])
    scores = np.full(100, 0.2)
    scores[: called - called // 2] = 0.9
    scores[40 : 40 + called // 2] = 0.9
    sample = make_sample(labels, scores, thresholds=0.5)
    estimates = estimate_parts({"all": sample}, lesion_classes(sample), 500, np.random.default_rng(0))["all"]
    assert ("ppv" in estimates) is estimable and "npv" in estimates


def test_the_statistics_load_no_network_and_no_plotting():
    code = "import sys, melanoma_fair_xai.fairness as f; print({'torch', 'matplotlib', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_intervals_of_a_cohort_are_those_of_closed_forms():
    """2,000 independent rows whose scores are the true probabilities: the number of melanomas is chance, too."""
    rng = np.random.default_rng(0)
    x = rng.normal(-2, 1, 2000)
    scores = expit(x)
    labels = (rng.random(2000) < scores).astype(int)
    rows = {row.metric: row for row in evaluate(labels, scores, thresholds=0.5).overall}
    model = sm.GLM(labels, np.ones(2000), family=sm.families.Binomial(), offset=x).fit()
    row = rows["calibration_intercept"]
    low, high = model.conf_int()[0]
    assert (row.value, row.low, row.high) == pytest.approx((model.params[0], low, high), abs=0.01)
    assert (low, high) == pytest.approx((-0.15, 0.11), abs=0.005)
    squares, row = (scores - labels) ** 2, rows["brier"]
    half = 1.96 * stats.sem(squares)
    assert (row.low, row.high) == pytest.approx((squares.mean() - half, squares.mean() + half), abs=0.001)
    called, row = labels[scores >= 0.5], rows["ppv"]
    assert (row.low, row.high) == pytest.approx(
        proportion_confint(called.sum(), len(called), method="wilson"), abs=0.02
    )


def test_a_case_control_sample_keeps_the_number_of_melanomas_of_each_group():
    """Scores that are one for each class and group leave nothing to draw then, and in a cohort the prevalence."""
    labels, groups = np.tile([1] * 15 + [0] * 45, 2), np.repeat(["a", "b"], 60)
    scores = np.where(labels == 1, 0.4, 0.1) + np.where(groups == "a", 0.05, 0.0)
    for case_control in (True, False):
        report = evaluate(labels, scores, {"site": groups}, thresholds=0.3, n_resamples=400, case_control=case_control)
        squares = {group: (scores - labels)[groups == group] ** 2 for group in "ab"}
        for row in report.by_group:
            if row.metric == "brier":
                half = 0 if case_control else 1.96 * stats.sem(squares[row.group])
                assert (row.high - row.low) / 2 == pytest.approx(half, rel=0.15, abs=1e-9)
        words = report.to_markdown()
        assert ("lesion bootstrap within groups and classes" in words) == case_control
        assert ("numbers of melanomas that are chance" in words) != case_control
    models = pd.DataFrame(
        {"image_id": range(120), "lesion_id": range(120), "label": labels, "site": groups, "fold": 0}
    )
    models = {name: models.assign(score=scores + shift, threshold=0.3) for name, shift in (("a", 0), ("b", 0.01))}
    for case_control in (True, False):
        differences = compare(models, ["site"], n_resamples=50, case_control=case_control).differences
        row = next(row for row in differences if (row.group, row.metric) == ("a", "brier"))
        assert (row.high - row.low < 1e-9) == case_control
