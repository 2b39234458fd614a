"""The test of equal performance of all groups, where dealing lesions to groups at random would mislead."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.oneway import anova_oneway

from melanoma_fair_xai.fairness import evaluate
from melanoma_fair_xai.fairness.estimates import Bootstrapped, correlation, correlations, roc_auc, sensitivity
from melanoma_fair_xai.fairness.sample import make_sample
from melanoma_fair_xai.fairness.worst_group import homogeneity


def p_values(report) -> dict[str, float]:
    return {row.metric: row.p for row in report.worst_group}


def cohort(seed: int, lesions: int, images: int, shared: float, effect: float = 1.5):
    """Labels, scores and lesions; a lesion's images share this part of their variance."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(lesions), images)
    label = (rng.random(lesions) < 0.4).astype(int)[lesion]
    noise = np.sqrt(shared) * rng.normal(size=lesions)[lesion] + np.sqrt(1 - shared) * rng.normal(size=len(lesion))
    return label, expit(effect * (label - 0.5) + noise), lesion


def with_known_error(value: float, error: float, degrees: float, lesion: int) -> Bootstrapped:
    influence = np.array([error * value * (1 - value)])
    return Bootstrapped(value, np.array([lesion]), influence, error, degrees, True)


def test_independent_groups_have_cochrans_q_with_welchs_degrees_of_freedom():
    values, errors = np.array([0.7, 0.8, 0.85]), np.array([0.2, 0.3, 0.5])
    logits = np.log(values / (1 - values))
    many = [with_known_error(v, e, 1e9, i) for i, (v, e) in enumerate(zip(values, errors, strict=True))]
    q = combine_effects(logits, errors**2).q
    assert homogeneity(many) == pytest.approx(stats.chi2.sf(q, 2), rel=1e-4)
    # Samples of three sizes whose means are these logits, and whose standard errors are these.
    rng, samples = np.random.default_rng(0), []
    for mean, error, n in zip(logits, errors, (12, 20, 9), strict=True):
        raw = rng.normal(size=n)
        samples.append(mean + (raw - raw.mean()) / raw.std(ddof=1) * error * np.sqrt(n))
    few = [
        with_known_error(v, e, n - 1, i) for i, (v, e, n) in enumerate(zip(values, errors, (12, 20, 9), strict=True))
    ]
    assert homogeneity(few) == pytest.approx(anova_oneway(samples, use_var="unequal").pvalue)


def test_two_groups_that_share_lesions_have_the_test_of_their_difference():
    first, second = (cohort(seed, 150, 1, 0.0) for seed in (1, 2))
    scores = np.clip(0.8 * first[1] + 0.2 * second[1], 0, 1)
    parts = [make_sample(first[0], values) for values in (first[1], scores)]
    estimates = [roc_auc(part) for part in parts]
    x, errors = (
        np.array([f(e) for e in estimates])
        for f in (lambda e: np.log(e.value / (1 - e.value)), lambda e: e.standard_error / (e.value * (1 - e.value)))
    )
    shared = correlation(*estimates)
    assert shared > 0.8 and correlations(estimates) == pytest.approx(np.array([[1, shared], [shared, 1]]))
    t = (x[0] - x[1]) / np.sqrt((errors**2).sum() - 2 * shared * errors.prod())
    assert homogeneity(estimates) == pytest.approx(2 * stats.t.sf(abs(t), estimates[0].degrees), rel=0.1)
    assert np.isnan(homogeneity([estimates[0], estimates[0]]))


def test_lesions_photographed_by_two_cameras_do_not_differ_by_that():
    """The p-values of 200 such data sets are uniform; and where one camera is worse, it is found."""
    p = {"roc_auc": [], "sensitivity": []}
    for seed in range(200):
        label, scores, lesion = cohort(seed, 200, 2, 0.5)
        cameras = [make_sample(label[k::2], scores[k::2], lesion[k::2], thresholds=0.5) for k in (0, 1)]
        for function in (roc_auc, sensitivity):
            p[function.__name__].append(homogeneity([function(camera) for camera in cameras]))
    for values in p.values():
        assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1 and 0.4 < np.mean(np.array(values) < 0.5) < 0.6
    camera = np.tile(["a", "b"], 200)
    worse = np.where((camera == "b") & (label == 1), scores * 0.7, scores)
    report = evaluate(label, worse, {"camera": camera}, lesion, thresholds=0.5, n_resamples=20)
    assert p_values(report)["roc_auc"] < 1e-4


def test_the_order_of_rows_changes_nothing():
    label, scores, lesion = cohort(4, 120, 3, 0.4)
    group = np.tile(["a", "b", "c"], 120)
    order = np.random.default_rng(0).permutation(360)
    found = [
        p_values(evaluate(label[o], scores[o], {"site": group[o]}, lesion[o], thresholds=0.5, n_resamples=20))
        for o in (np.arange(360), order, np.arange(360)[::-1])
    ]
    assert set(found[0]) == {"roc_auc", "sensitivity", "specificity", "balanced_accuracy"}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("images, shared", [((5, 1), 0.0), ((1, 5), 0.9)])
def test_groups_of_more_images_a_lesion_do_not_differ_by_that(images, shared):
    """The p-values are uniform, whichever group has more images, and however alike these are."""
    p = []
    for seed in range(200):
        parts = []
        for group, (lesions, count) in enumerate(zip((150, 50), images, strict=True)):
            label, scores, lesion = cohort(2 * seed + group, lesions, count, shared)
            parts.append(roc_auc(make_sample(label, scores, lesion + 1000 * group)))
        p.append(homogeneity([parts[0], with_lesions(parts[1], 1000)]))
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.1 and stats.kstest(p, "uniform").pvalue > 0.01


def with_lesions(estimate, offset: int):
    return replace(estimate, lesions=estimate.lesions + offset)


def test_there_is_no_p_where_a_group_is_perfect_or_nothing_varies():
    labels, scores = np.ones(40, dtype=int), np.where(np.arange(40) % 4, 0.9, 0.1)
    some, all_found = (sensitivity(make_sample(labels, s, thresholds=0.5)) for s in (scores, np.full(40, 0.9)))
    assert np.isnan(homogeneity([some, with_lesions(all_found, 100)]))
    assert 0 < homogeneity([some, with_lesions(some, 100)]) == pytest.approx(1)
    label = np.tile([0, 1], 40)
    report = evaluate(label, np.where(label == 1, 0.9, 0.1), {"site": np.repeat(["a", "b"], 40)}, thresholds=0.5)
    assert np.isnan([row.p for row in report.worst_group]).all() and "| – |" in report.to_markdown()
