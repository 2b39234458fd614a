import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.calibration import (
    Calibration,
    calibrate,
    choose_threshold,
    fit_platt,
    fit_temperature,
)
from melanoma_fair_xai.fairness.threshold_rules import parse_threshold_rule


def drawn(n: int = 400, seed: int = 0, offset: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random(n) < 0.2
    return generator.normal(2.0 * labels + offset, 1.5), labels.astype(int)


def test_platt_is_logistic_regression_on_platts_targets():
    difference, labels = drawn()
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A soft target is one image of each class, with weights that add up to one.
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(difference, 2)[:, None],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    fitted = fit_platt(difference, labels)
    assert fitted.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-5)
    assert fitted.intercept == pytest.approx(oracle.intercept_[0], abs=1e-5)


def test_platt_recovers_a_planted_slope_and_intercept():
    difference = np.random.default_rng(1).normal(0, 2, 200_000)
    labels = np.random.default_rng(2).random(len(difference)) < expit(0.7 * difference - 1.2)
    fitted = fit_platt(difference, labels)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.7, -1.2), abs=0.03)


@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-6, 0), (1e6, 0), (1, 1e4)])
def test_platt_stays_finite_on_separable_logits_of_any_scale(scale, shift):
    difference = np.array([-3.0, -2, -1, 1, 2, 3])
    labels = np.array([0, 0, 0, 1, 1, 1])
    fitted = fit_platt(difference * scale + shift, labels)
    reference = fit_platt(difference, labels)
    assert 0 < reference.slope < 10
    scores = expit(fitted.slope * (difference * scale + shift) + fitted.intercept)
    np.testing.assert_allclose(scores, expit(reference.slope * difference + reference.intercept), atol=1e-4)


def test_platt_of_one_score_for_all_is_the_prevalence():
    fitted = fit_platt(np.full(100, 3.0), np.arange(100) < 30)
    expected = (30 * 31 / 32 + 70 / 72) / 100
    assert expit(fitted.slope * 3.0 + fitted.intercept) == pytest.approx(expected)


def test_temperature_is_the_most_likely_one():
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 3, (500, 7))
    labels = np.array([generator.choice(7, p=np.exp(log_softmax(row / 2.5))) for row in logits])
    fitted = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return -log_softmax(logits / temperature, axis=1)[np.arange(500), labels].sum()

    oracle = minimize_scalar(loss, bounds=(1, 5), options={"xatol": 1e-10}).x
    assert 1 / fitted.slope == pytest.approx(oracle, rel=1e-5)
    assert 1 / fitted.slope == pytest.approx(2.5, rel=0.15)
    assert fitted.intercept == 0


@pytest.mark.parametrize("sign, temperature", [(1, 0.05), (-1, 20)])
def test_temperature_is_bounded_where_all_images_are_right_or_all_wrong(sign, temperature):
    fitted = fit_temperature(sign * np.eye(3), np.arange(3))
    assert 1 / fitted.slope == pytest.approx(temperature, rel=1e-3)


def test_calibrate_moves_the_logit_difference():
    logits = np.random.default_rng(4).normal(size=(20, 2)).astype(np.float32)
    calibrated = calibrate(logits, Calibration(0.6, -0.9), positive=0)
    difference = logits[:, 0].astype(float) - logits[:, 1]
    np.testing.assert_allclose(calibrated[:, 0] - calibrated[:, 1], 0.6 * difference - 0.9)


def rates(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    called = scores >= threshold
    return called[labels == 1].mean(), (~called[labels == 0]).mean()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 2, 9], ids=["many ties", "ties", "no ties"])
def test_thresholds_against_all_thresholds(seed, decimals):
    difference, labels = drawn(80, seed)
    scores = expit(difference).round(decimals)
    every = [*np.unique(scores), 1.1]
    table = [(*rates(scores, labels, threshold), threshold) for threshold in every]

    sensitivity, specificity = rates(scores, labels, choose_threshold(scores, labels, "youden"))
    assert sensitivity + specificity == pytest.approx(max(a + b for a, b, _ in table))

    for value in (0.5, 0.8, 0.9, 0.95):
        sensitive = choose_threshold(scores, labels, f"sensitivity={value}")
        best = max(threshold for a, _, threshold in table if a >= value)
        assert rates(scores, labels, sensitive) == rates(scores, labels, best)
        specific = choose_threshold(scores, labels, f"specificity={value}")
        best = min(threshold for _, b, threshold in table if b >= value)
        assert rates(scores, labels, specific) == rates(scores, labels, best)


def test_threshold_stands_midway_between_scores():
    scores, labels = np.array([0.1, 0.2, 0.6, 0.8]), np.array([0, 0, 1, 1])
    assert choose_threshold(scores, labels, "youden") == pytest.approx(0.4)
    assert choose_threshold(scores, labels, "sensitivity=0.5") == pytest.approx(0.7)
    assert choose_threshold(scores, labels, "specificity=0.5") == pytest.approx(0.15)


def test_youden_ties_go_to_the_more_sensitive_threshold():
    scores, labels = np.array([0.1, 0.3, 0.5, 0.7]), np.array([0, 1, 0, 1])
    assert choose_threshold(scores, labels, "youden") == pytest.approx(0.2)


@pytest.mark.parametrize("top", [0.9, 1.0, 1.0 + 2e-16])
def test_specificity_can_call_none_positive(top):
    scores, labels = np.array([0.1, 0.2, top, top]), np.array([1, 0, 0, 1])
    threshold = choose_threshold(scores, labels, "specificity=0.9")
    assert not (scores >= threshold).any()


def test_threshold_separates_neighbouring_floats():
    low, high = 0.3, np.nextafter(0.3, 1)
    threshold = choose_threshold(np.array([low, high]), np.array([0, 1]), "youden")
    assert low < threshold <= high


@pytest.mark.parametrize(
    "text, rule",
    [
        ("youden", ("youden", None)),
        ("sensitivity=0.9", ("sensitivity", 0.9)),
        ("specificity=.95", ("specificity", 0.95)),
    ],
)
def test_rules(text, rule):
    assert parse_threshold_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "Youden", "sensitivity", "sensitivity=", "sensitivity=90", "sensitivity=0.0", "f1=0.5", "specificity=nan"],
)
def test_unknown_rules_are_named(text):
    with pytest.raises(UserError, match="--threshold_rule.*youden"):
        parse_threshold_rule(text)


@pytest.mark.parametrize("labels, only", [(np.zeros(4), "negative"), (np.ones(4), "positive")])
def test_one_class_is_refused(labels, only):
    for function in (fit_platt, lambda scores, labels: choose_threshold(scores, labels, "youden")):
        with pytest.raises(UserError, match=f"all 4 images are {only}"):
            function(np.linspace(0, 1, 4), labels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    scores, labels = np.array([0.1, value, 0.3]), np.array([0, 1, 1])
    with pytest.raises(UserError, match="not finite"):
        fit_platt(scores, labels)
    with pytest.raises(UserError, match="not finite"):
        choose_threshold(scores, labels, "youden")
    with pytest.raises(UserError, match="not finite"):
        fit_temperature(np.stack([scores, scores], axis=1), labels)
