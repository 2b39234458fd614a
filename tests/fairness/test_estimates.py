import numpy as np
import pytest
from scipy import stats
from scipy.special import logit
from sklearn import metrics

from melanoma_fair_xai.fairness.estimates import balanced_accuracy, correlation, roc_auc, sensitivity, subtract
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


def test_limits_of_the_area_are_symmetric_on_the_logit_scale_and_stay_inside():
    estimate = roc_auc(sample_of(draw(4, effect=2.5)))
    low, high = estimate.interval()
    assert 0 < low < estimate.value < high < 1
    assert logit(high) + logit(low) == pytest.approx(2 * logit(estimate.value))
    half = np.sqrt(estimate.variance) / (estimate.value * (1 - estimate.value))
    assert logit(high) - logit(estimate.value) == pytest.approx(stats.t.ppf(0.975, estimate.degrees) * half)


def test_a_perfect_area_has_an_honest_lower_limit():
    labels, scores = np.repeat([0, 1], [100, 13]), np.linspace(0, 1, 113)
    estimate = roc_auc(make_sample(labels, scores))
    low, high = estimate.interval()
    assert estimate.value == 1 and estimate.variance == 0 and high == 1
    # Newcombe's method 5: the area whose upper limit of plausible deviation just reaches 1.
    m, n, q = 13, 100, low
    spread = 1 + ((m + n) / 2 - 1) * ((1 - q) / (2 - q) + q / (1 + q))
    assert 1 - q == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(q * (1 - q) * spread / (m * n)), rel=1e-6)
    assert 0.85 < low < 0.97
    reverse = roc_auc(make_sample(1 - labels, scores))
    assert reverse.interval()[0] == 0 and reverse.interval()[1] == pytest.approx(1 - low, abs=0.01)


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
    return type(estimate)(estimate.value, estimate.lesions + 10_000, estimate.influence, estimate.effective_n)
