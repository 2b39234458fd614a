from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from melanoma_fair_xai.fairness.estimates import (
    balanced_accuracy,
    correlation,
    kish,
    roc_auc,
    sensitivity,
    specificity,
    subtract,
)
from melanoma_fair_xai.fairness.intervals import binormal_variance, score_limits
from melanoma_fair_xai.fairness.sample import Sample, make_sample


def draw(seed: int, lesions: int = 60, effect: float = 1.2, images: int = 3) -> dict[str, np.ndarray]:
    """Lesions with up to `images` images that resemble each other, scores rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(lesions), rng.integers(1, images + 1, lesions))
    label = (rng.random(lesions) < 0.35).astype(int)[lesion]
    raw = effect * label + rng.normal(size=lesions)[lesion] + rng.normal(size=len(lesion))
    return {"labels": label, "scores": np.round(1 / (1 + np.exp(-raw)), 2), "lesion_ids": lesion}


def sample_of(data: dict[str, np.ndarray], threshold: float = 0.55, folds: np.ndarray | None = None) -> Sample:
    return make_sample(**data, thresholds=threshold, folds=folds)


def slow_auc(labels, scores, folds):
    """Obuchowski's sums, one pair after the other: the area and the placement values of each image."""
    n = len(labels)
    wins, pairs = np.zeros(n), np.zeros(n)
    for i in range(n):
        for j in range(n):
            if labels[i] == 1 and labels[j] == 0 and folds[i] == folds[j]:
                win = 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                for k in (i, j):
                    wins[k] += win
                    pairs[k] += 1
    area = wins[labels == 1].sum() / pairs[labels == 1].sum()
    return area, (wins - area * pairs) / pairs[labels == 1].sum()


@pytest.mark.parametrize("n_folds", [1, 3])
def test_area_and_variance_agree_with_a_loop_over_pairs(n_folds):
    data = draw(1)
    folds = data["lesion_ids"] % n_folds
    estimate = roc_auc(sample_of(data, folds=folds))
    area, residuals = slow_auc(data["labels"], data["scores"], folds)
    assert estimate.value == pytest.approx(area, abs=1e-12)
    variance = 0.0
    for label in (0, 1):
        rows = data["labels"] == label
        lesions = np.unique(data["lesion_ids"][rows])
        sums = [residuals[rows & (data["lesion_ids"] == lesion)].sum() for lesion in lesions]
        variance += len(lesions) / (len(lesions) - 1) * np.square(sums).sum()
    assert estimate.variance == pytest.approx(variance, rel=1e-10)


def test_area_is_that_of_scikit_learn_and_delong_where_each_lesion_has_one_image():
    data = draw(2, lesions=200, images=1)
    estimate = roc_auc(sample_of(data))
    labels, scores = data["labels"], data["scores"]
    assert estimate.value == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    wins = (positive > negative) + (positive == negative) / 2
    m, n = wins.shape
    delong = wins.mean(axis=1).var(ddof=1) / m + wins.mean(axis=0).var(ddof=1) / n
    assert estimate.variance == pytest.approx(delong, rel=1e-10)


def test_pairs_of_two_folds_are_not_compared():
    labels, lesions = np.array([1, 0, 1, 0]), np.arange(4)
    scores, folds = np.array([0.2, 0.1, 0.9, 0.8]), np.array([0, 0, 1, 1])
    sample = make_sample(labels, scores, lesions, folds)
    assert roc_auc(sample).value == 1.0
    assert roc_auc(make_sample(labels, scores, lesions)).value == 0.75


def test_a_lesion_of_both_classes_adds_its_covariance():
    data = draw(3)
    whole = roc_auc(sample_of(data))
    data["lesion_ids"] = np.arange(len(data["labels"])) // 2  # neighbours, of whatever label
    area, residuals = slow_auc(data["labels"], data["scores"], np.zeros(len(data["labels"])))
    mixed = roc_auc(sample_of(data))
    sums = np.bincount(data["lesion_ids"], residuals)
    assert mixed.value == whole.value and mixed.variance == pytest.approx(np.square(sums).sum(), rel=0.05)


def test_a_rate_of_single_images_is_the_exact_binomial():
    data = draw(5, lesions=120, images=1)
    estimate = sensitivity(sample_of(data))
    decided = data["scores"][data["labels"] == 1] >= 0.55
    exact = stats.binomtest(int(decided.sum()), len(decided)).proportion_ci(method="exact")
    assert estimate.effective_n == pytest.approx(len(decided))
    assert estimate.interval() == pytest.approx((exact.low, exact.high))


def test_identical_images_of_a_lesion_count_once():
    single = draw(6, lesions=50, images=1)
    single["scores"] = np.where(np.arange(50) % 3 == 0, 0.2, 0.8)
    repeated = {name: np.repeat(values, 4) for name, values in single.items()}
    one, four = sensitivity(sample_of(single)), sensitivity(sample_of(repeated))
    assert four.value == one.value and four.effective_n == pytest.approx(one.effective_n, rel=0.05)
    areas = roc_auc(sample_of(single)), roc_auc(sample_of(repeated))
    assert areas[1].variance == pytest.approx(areas[0].variance)


def test_images_that_disagree_within_lesions_count_no_more_than_single_ones():
    """One of each lesion's two images is found: less spread than single images have, and no more to learn from."""
    labels, lesions = np.ones(80, dtype=int), np.repeat(np.arange(40), 2)
    scores = np.where(np.arange(80) % 2, 0.9, 0.1)
    scores[:2] = 0.9
    assert sensitivity(make_sample(labels, scores, lesions, thresholds=0.5)).effective_n == 80


def test_a_rate_of_one_counts_lesions():
    labels, lesions = np.ones(26, dtype=int), np.repeat(np.arange(13), 2)
    estimate = sensitivity(make_sample(labels, np.full(26, 0.9), lesions, thresholds=0.5))
    exact = stats.binomtest(13, 13).proportion_ci(method="exact")
    assert estimate.interval() == pytest.approx((exact.low, exact.high))


def test_influence_is_what_the_jackknife_says():
    data = draw(7, lesions=80)
    for function in (sensitivity, balanced_accuracy, roc_auc):
        whole = function(sample_of(data))
        left_out = []
        for lesion in np.unique(data["lesion_ids"]):
            keep = data["lesion_ids"] != lesion
            left_out.append(function(sample_of({name: v[keep] for name, v in data.items()})).value)
        n = len(left_out)
        jackknife = (n - 1) / n * np.square(np.array(left_out) - np.mean(left_out)).sum()
        assert whole.variance == pytest.approx(jackknife, rel=0.12)


def test_differences_know_common_lesions():
    data = draw(8, lesions=100)
    other = data | {"scores": np.clip(data["scores"] + 0.02, 0, 1)}
    first, second = roc_auc(sample_of(data)), roc_auc(sample_of(other))
    assert correlation(first, second) > 0.99
    narrow = np.diff(subtract(first, second).interval())
    shifted = other | {"lesion_ids": data["lesion_ids"] + 1000}
    pooled = {name: np.concatenate([data[name], shifted[name]]) for name in data}
    sample = sample_of(pooled)
    apart = roc_auc(sample.select(sample.lesions >= 100))
    wide = np.diff(subtract(roc_auc(sample.select(sample.lesions < 100)), apart).interval())
    assert wide > 5 * narrow
    assert subtract(first, first).interval() == pytest.approx((0, 0), abs=0.02)
    assert subtract(first, first).p_value() == pytest.approx(1)


def test_p_value_and_interval_agree():
    for seed in range(20):
        estimates = [
            sensitivity(sample_of(draw(seed + offset, lesions=90, effect=0.5 + offset / 100))) for offset in (0, 100)
        ]
        difference = subtract(estimates[0], on_other_lesions(estimates[1]))
        low, high = difference.interval()
        assert (difference.p_value() < 0.05) == (low > 0 or high < 0)


def on_other_lesions(estimate):
    """The same estimate on lesions of its own."""
    return replace(estimate, lesions=estimate.lesions + 10_000)


def test_a_perfect_area_has_an_honest_lower_limit():
    labels, scores = np.repeat([0, 1], [100, 13]), np.linspace(0, 1, 113)
    estimate = roc_auc(make_sample(labels, scores))
    low, high = estimate.interval()
    assert estimate.value == 1 and estimate.variance == 0 and high == 1
    # The area from which 1 is just within reach.
    reach = stats.t.ppf(0.975, 12) * np.sqrt(binormal_variance(stats.norm.ppf(low), 1300, 111))
    assert 1 - low == pytest.approx(reach, rel=1e-4) and 0.85 < low < 0.97
    reverse = roc_auc(make_sample(1 - labels, scores)).interval()
    assert reverse[0] == 0 and reverse[1] == pytest.approx(1 - low, abs=1e-6)
    several = roc_auc(make_sample(np.repeat(labels, 4), np.repeat(scores, 4), np.repeat(np.arange(113), 4)))
    assert several.interval() == pytest.approx((low, 1))  # photographs of one lesion add nothing


def test_kish_counts_clusters_of_one_size_and_the_large_one_of_many():
    assert kish(np.full(12, 7)) == pytest.approx(12) and kish(np.zeros(0)) == 0
    assert kish(np.array([60] + [1] * 9)) == pytest.approx(69**2 / (3600 + 9))
    labels, lesions = np.repeat([1, 0], [69, 40]), np.concatenate([np.zeros(60), np.arange(1, 50)]).astype(int)
    scores = np.random.default_rng(0).random(109)
    area, found = (
        roc_auc(make_sample(labels, scores, lesions)),
        sensitivity(make_sample(labels, scores, lesions, None, 0.5)),
    )
    assert (area.positives, area.negatives, found.clusters) == pytest.approx((1.319, 40, 1.319), abs=1e-3)
    assert area.degrees == found.degrees == 1


def test_limits_of_the_area_carry_its_design_effect_and_students_quantile():
    estimate = roc_auc(sample_of(draw(4, lesions=90)))
    pairs, others, degrees = estimate.pairs, estimate.others, min(estimate.positives, estimate.negatives) - 1
    data = draw(4, lesions=90)
    positives, negatives = data["labels"].sum(), (1 - data["labels"]).sum()
    assert (pairs, others) == (positives * negatives, positives + negatives - 2)
    effect = estimate.variance / binormal_variance(stats.norm.ppf(estimate.value), pairs, others)
    assert effect > 1
    expected = score_limits(estimate.value, pairs, others, effect)(stats.t.ppf(0.975, degrees))
    assert estimate.interval() == pytest.approx(tuple(map(float, expected)))
    low, high = roc_auc(sample_of(data, folds=data["lesion_ids"] % 2)).interval()
    assert low < expected[0] and 0 < high < 1  # pairs within folds alone: fewer, and each fold's count


def test_a_lower_limit_falls_with_every_image_that_is_missed():
    """10 lesions of 5 images: none missed says no more than 10 lesions do, and one missed not more than none."""
    labels, lesions = np.ones(50, dtype=int), np.repeat(np.arange(10), 5)
    for apart in (np.arange(50).reshape(10, 5).T.ravel(), np.arange(50)):  # the next missed in another lesion, or not
        limits = []
        for missed in range(9):
            scores = np.full(50, 0.9)
            scores[apart[:missed]] = 0.1
            estimate = sensitivity(make_sample(labels, scores, lesions, thresholds=0.5))
            limits.append([estimate.interval()[0], estimate.bounds()[0]])
        assert limits[0][0] == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="exact").low)
        falls = np.diff(limits, axis=0)[: 9 if apart[1] == 5 else 5]
        assert (falls <= 1e-12).all()
    mirrored = specificity(make_sample(1 - labels, np.where(np.arange(50) == 0, 0.1, 0.9), lesions, thresholds=0.5))
    assert mirrored.value == 0.02 and mirrored.interval()[1] == pytest.approx(1 - limits[0][0])


def test_a_rate_of_clusters_has_korn_and_graubards_limits():
    data = draw(9, lesions=150)
    estimate = sensitivity(sample_of(data))
    rows = data["labels"] == 1
    sizes = np.unique(data["lesion_ids"][rows], return_counts=True)[1]
    degrees = sizes.sum() ** 2 / (sizes**2).sum() - 1
    n = estimate.effective_n * (stats.t.ppf(0.975, rows.sum() - 1) / stats.t.ppf(0.975, degrees)) ** 2
    hits = estimate.value * n
    low, high = stats.beta.ppf(0.025, hits, n - hits + 1), stats.beta.ppf(0.975, hits + 1, n - hits)
    assert estimate.interval() == pytest.approx((low, high)) and n < estimate.effective_n < rows.sum()


def test_the_difference_of_two_models_areas_is_delongs_with_students_t():
    """Against placement values of single images, by hand; and a difference of two groups is not that."""
    data = draw(10, lesions=120, images=1)
    rng = np.random.default_rng(0)
    other = data | {"scores": np.clip(data["scores"] + 0.15 * rng.normal(size=120), 0, 1)}
    difference = subtract(*(roc_auc(sample_of(model)) for model in (data, other)))
    placements = []
    for scores in (data["scores"], other["scores"]):
        positive, negative = scores[data["labels"] == 1][:, None], scores[data["labels"] == 0][None]
        placements.append((positive > negative) + (positive == negative) / 2)
    wins = placements[0] - placements[1]
    error = np.sqrt(sum(wins.mean(axis=axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1)))
    degrees = min(wins.shape) - 1
    half = stats.t.ppf(0.975, degrees) * error
    assert difference.interval() == pytest.approx((wins.mean() - half, wins.mean() + half))
    assert difference.p_value() == pytest.approx(2 * stats.t.sf(abs(wins.mean()) / error, degrees), rel=1e-3)
    moved = replace(difference.second, lesions=difference.second.lesions + 1000)
    assert np.diff(subtract(difference.first, moved).interval()) > 2 * np.diff(difference.interval())
