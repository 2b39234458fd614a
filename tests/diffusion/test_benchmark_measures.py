"""What the benchmarks on phantoms measure with, against loops written out and planted truths."""

import numpy as np
import pytest

from benchmarks.diffusion_proof import agreement, ita, log_odds
from benchmarks.diffusion_sampling import kid_with_spread
from dataset_scripts.phantom.builder import PhantomConfig
from dataset_scripts.phantom.drawing import draw_phantom
from dataset_scripts.phantom.sampling import sample_lesion, sample_view
from melanoma_fair_xai.diffusion.sample_metrics import squared_mmd


def test_kid_of_one_distribution_is_about_zero_within_its_spread():
    rng = np.random.default_rng(1)
    repeats = [squared_mmd(rng.normal(size=(60, 8)), rng.normal(size=(60, 8))) for _ in range(60)]
    assert abs(np.mean(repeats)) < 3 * np.std(repeats) / np.sqrt(60)
    spreads = [kid_with_spread(*rng.normal(size=(2, 60, 8)), seed=seed)["sd"] for seed in range(10)]
    assert np.mean(spreads) == pytest.approx(np.std(repeats), rel=0.5)
    assert squared_mmd(rng.normal(size=(60, 8)), rng.normal(1, 1, size=(60, 8))) > 5 * np.std(repeats)


def test_ita_at_the_rim_is_that_of_the_skin_that_was_drawn():
    config = PhantomConfig(num_images=40, image_size=32)
    drawn = [(*sample_lesion(config, number), number) for number in range(40)]
    images = np.stack([draw_phantom(lesion, sample_view(config, truth, 0), 32).image for lesion, truth, _ in drawn])
    errors = ita(images) - [truth["ita"] for _, truth, _ in drawn]
    assert np.abs(errors).mean() < 2 and abs(errors.mean()) < 1


def test_agreement_and_log_odds():
    assert agreement(np.array([0.9, 0.2]), np.array([0.1, 0.1, 0.8, 0.3]), 0.5) == pytest.approx((0.5 + 0.75) / 2)
    np.testing.assert_allclose(log_odds(np.array([0.5, 0.75])), [0, np.log(3)])
