import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

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


@pytest.mark.parametrize("called, estimable", [(1, False), (2, False), (4, True), (12, True)])
def test_a_ppv_that_most_draws_lack_is_none(called, estimable):
    """One or two calls among 100 lesions are often not drawn at all, and then there is no PPV."""
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
