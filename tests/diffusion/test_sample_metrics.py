"""Against torch-fidelity, torchmetrics and prdc on the same features, and against closed forms."""

import numpy as np
import pytest
import torch
import torch_fidelity.metric_kid
from prdc import compute_prdc
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.diffusion.sample_metrics import (
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    neighbour_distances,
    squared_mmd,
)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, 24))
    return rng.normal(size=(1500, 24)) @ mixing, 0.3 + 1.1 * rng.normal(size=(1300, 24)) @ mixing


def test_frechet_distance_agrees_with_torchmetrics_and_with_the_formula(features):
    means = [torch.from_numpy(part.mean(axis=0)) for part in features]
    covariances = [np.cov(part, rowvar=False) for part in features]
    peer = _compute_fid(means[0], torch.from_numpy(covariances[0]), means[1], torch.from_numpy(covariances[1]))
    formula = ((means[0] - means[1]) ** 2).sum().item() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert frechet_distance(*features) == pytest.approx(peer.item(), rel=1e-4)
    assert frechet_distance(*features) == pytest.approx(formula, rel=1e-6)


def test_frechet_distance_of_shifted_and_of_equal_features(features):
    first, _ = features
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + 2) == pytest.approx(4 * 24)


def test_too_few_samples_for_the_features_are_not_estimable(features):
    assert np.isnan(frechet_distance(features[0][:24], features[1]))
    assert not np.isnan(frechet_distance(features[0][:25], features[1]))


def test_mmd_agrees_with_torch_fidelity_torchmetrics_and_a_plain_sum(features):
    first, second = (part[:700] / 10 for part in features)
    ours = squared_mmd(first, second)
    assert ours == pytest.approx(poly_mmd(torch.from_numpy(first), torch.from_numpy(second)).item(), rel=1e-4)
    settings = {"kid_subsets": 1, "kid_subset_size": 700, "verbose": False, "rng_seed": 0}
    settings |= {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1,
    }
    peer = torch_fidelity.metric_kid.kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), **settings
    )
    assert ours == pytest.approx(peer["kernel_inception_distance_mean"], rel=1e-4)
    few = [part[:6] for part in (first, second)]
    kernel = [[(x @ y / 24 + 1) ** 3 for y in np.concatenate(few)] for x in np.concatenate(few)]
    kernel = np.array(kernel) - np.diag(np.diag(kernel))
    assert squared_mmd(*few) == pytest.approx(
        (kernel[:6, :6].sum() + kernel[6:, 6:].sum()) / 30
        - 2 * np.mean([(x @ y / 24 + 1) ** 3 for x in few[0] for y in few[1]])
    )


def test_kernel_distance_of_one_distribution_is_zero_within_its_spread_and_repeats():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(400, 8)), rng.normal(size=(400, 8))
    mean, spread = kernel_distance(first, second, subset_size=100)
    assert abs(mean) < spread and spread > 0
    assert kernel_distance(first, second, subset_size=100) == (mean, spread)
    assert kernel_distance(first, second + 1, subset_size=100)[0] > 10 * spread


def test_manifold_metrics_agree_with_prdc(features):
    ours, peer = manifold_metrics(*features, neighbours=5), compute_prdc(*features, nearest_k=5)
    assert ours == pytest.approx(peer, rel=1e-4)
    assert 0.05 < ours["precision"] < 0.99


def test_neighbours_agree_with_scikit_learn(features):
    distances, indices = neighbour_distances(features[1], features[0], 4)
    expected = NearestNeighbors(n_neighbors=4).fit(features[0]).kneighbors(features[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(indices, expected[1])


def test_features_that_are_not_finite_are_refused(features):
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(features[0] * np.inf, features[1])
