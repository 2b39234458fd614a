"""Targets and weights against the formulas of the papers, worked out by hand."""

import numpy as np
import pytest
import torch

from melanoma_fair_xai.diffusion.process import (
    loss_weights,
    make_noise_scheduler,
    training_target,
)

PREDICTION_TYPES = ("v_prediction", "sample", "epsilon")
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_ends_without_signal_where_that_can_be_predicted(schedule):
    for prediction_type in PREDICTION_TYPES:
        alphas = make_noise_scheduler(prediction_type, schedule).alphas_cumprod
        assert (alphas[-1] == 0) == (prediction_type != "epsilon")
        assert alphas[-1] < 5e-3 and alphas[0] > 0.99 and bool((alphas.diff() < 0).all())


def test_targets_are_those_of_diffusers():
    scheduler = make_noise_scheduler("v_prediction", "linear")
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 4, 3, 5, 5, generator=generator)
    timesteps = torch.tensor([0, 300, 700, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    for prediction_type in PREDICTION_TYPES:
        noisy, target = training_target(images, noise, alphas, prediction_type)
        torch.testing.assert_close(noisy, scheduler.add_noise(images, noise, timesteps))
        expected = {"v_prediction": scheduler.get_velocity(images, noise, timesteps), "sample": images}
        torch.testing.assert_close(target, expected.get(prediction_type, noise))
    assert torch.equal(training_target(images, noise, alphas, "v_prediction")[0][3], noise[3])


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_weights_are_the_same_error_of_the_image_for_v_and_sample(gamma):
    """Of a wrong image x0 + d, the error of v is d / sigma: weighted, both must be min(SNR + 1, gamma) d^2."""
    alphas = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.9999], dtype=torch.float64)
    images, noise = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = images + 0.1
    alpha, sigma = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    noisy, target = training_target(images, noise, alphas, "v_prediction")
    implied = (alpha * noisy - wrong) / sigma
    errors = (implied - target).square().mean(dim=(1, 2, 3))
    snr = alphas / (1 - alphas)
    expected = 0.01 * np.minimum(snr + 1, gamma)
    torch.testing.assert_close(loss_weights(alphas, "v_prediction", gamma) * errors, expected)
    torch.testing.assert_close(loss_weights(alphas, "sample", gamma) * 0.01, expected)


def test_the_terminal_step_is_not_silenced():
    terminal = torch.zeros(1)
    assert loss_weights(terminal, "v_prediction", 5.0) == 1 and loss_weights(terminal, "sample", 5.0) == 1
    assert loss_weights(torch.tensor([0.9]), "v_prediction", 5.0) == pytest.approx(0.5)


def test_epsilon_has_the_weights_of_the_paper():
    alphas = torch.tensor([1e-4, 0.5, 0.95])
    expected = [min(snr, 5.0) / snr for snr in (1e-4 / (1 - 1e-4), 1.0, 19.0)]
    torch.testing.assert_close(loss_weights(alphas, "epsilon", 5.0), torch.tensor(expected))


def test_without_gamma_all_weigh_alike():
    for prediction_type in PREDICTION_TYPES:
        assert loss_weights(torch.tensor([0.1, 0.9]), prediction_type, None).tolist() == [1, 1]
