"""The Haar bands that a UNet sees in place of pixels, against their definition, and what a pipeline makes of them."""

import json

import diffusers
import numpy as np
import pytest
import torch

from melanoma_fair_xai.diffusion.export import export_pipeline
from melanoma_fair_xai.diffusion.generation import load_pipeline
from melanoma_fair_xai.diffusion.pipeline_lesion import band_names, from_bands, to_bands
from melanoma_fair_xai.diffusion.process import (
    DETAIL_DEVIATION,
    ROUNDING,
    band_errors,
    make_noise_scheduler,
    measure_band_scales,
)


def images(size: int = 16) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def band(image: np.ndarray, letter: str) -> np.ndarray:
    """A band of (..., H, W): sums and differences of the four pixels of a block, halved."""
    a, b, c, d = image[..., ::2, ::2], image[..., ::2, 1::2], image[..., 1::2, ::2], image[..., 1::2, 1::2]
    return {"a": a + b + c + d, "h": a + b - c - d, "v": a - b + c - d, "d": a - b - c + d}[letter] / 2


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_bands_are_those_of_the_definition_and_give_the_images_back(levels):
    names = band_names(levels)
    assert len(set(names)) == 4**levels
    scales = {name: 1.0 + number for number, name in enumerate(names)}
    bands = to_bands(images(), dict(sorted(scales.items())))
    assert bands.shape == (4, 3 * 4**levels, 16 / 2**levels, 16 / 2**levels)
    for number, name in enumerate(names):
        expected = images().numpy()
        for letter in name:
            expected = band(expected, letter)
        np.testing.assert_allclose(bands[:, 3 * number : 3 * number + 3], expected / scales[name], atol=1e-12)
    torch.testing.assert_close(from_bands(bands, scales), images())


def test_white_noise_stays_white():
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = to_bands(torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8), dict.fromkeys(band_names(2), 1.0)).flatten(
        1
    )
    torch.testing.assert_close(basis @ basis.T, torch.eye(64, dtype=torch.float64))
    torch.testing.assert_close(to_bands(noise, dict.fromkeys(band_names(2), 1.0)).flatten(), noise.flatten() @ basis)


def test_details_are_scaled_to_one_deviation_and_averages_to_fewer_pixels():
    assert measure_band_scales(images(), 0) == {"": 1.0}
    scales = measure_band_scales(images(), 2)
    bands = to_bands(images(), scales).unflatten(1, (16, 3))
    torch.testing.assert_close(bands[:, 0], torch.nn.functional.avg_pool2d(images(), 4))
    deviations = bands[:, 1:].square().mean(dim=(0, 2, 3, 4)).sqrt().numpy()
    np.testing.assert_allclose(deviations, DETAIL_DEVIATION, rtol=6e-3)
    flat = measure_band_scales(torch.zeros(2, 3, 8, 8), 1)
    assert flat["a"] == 2 and flat["d"] == pytest.approx(ROUNDING / DETAIL_DEVIATION, rel=6e-3)


@pytest.mark.parametrize(("deviation", "kept"), [(DETAIL_DEVIATION, 1.0), (0.03, 0.37)])
def test_25_steps_keep_the_details_that_are_scaled_and_lose_others(deviation, kept):
    """The gain of DPM-Solver++ under the exact v of Gaussian data, whose every step is linear."""
    training = make_noise_scheduler("v_prediction", "squaredcos_cap_v2")
    sampler = diffusers.DPMSolverMultistepScheduler.from_config(training.config)
    sampler.set_timesteps(25)
    sample = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for timestep in sampler.timesteps:
        share = training.alphas_cumprod[int(timestep)].double()
        expected = share.sqrt() * deviation**2 / (share * deviation**2 + 1 - share) * sample
        v = (share.sqrt() * sample - expected) / (1 - share).sqrt()
        sample = sampler.step(v, timestep, sample).prev_sample.double()
    assert sample.item() / deviation == pytest.approx(kept, abs=0.01)


def test_averages_and_the_details_of_each_level_weigh_the_same():
    target = torch.zeros(2, 48, 4, 4)
    scales = dict.fromkeys(band_names(2), 1.0)
    for chosen in (lambda name: name == "aa", lambda name: name in ("ah", "av", "ad"), lambda name: name[0] != "a"):
        output = torch.zeros(2, 16, 3, 4, 4)
        output[1, [number for number, name in enumerate(band_names(2)) if chosen(name)]] = 2.0
        assert band_errors(output.flatten(1, 2), target, scales).tolist() == pytest.approx([0, 4 / 3])
    output = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(band_errors(output, output * 0, {"": 1.0}), output.square().mean(dim=(1, 2, 3)))


def test_a_pipeline_gives_the_image_whose_bands_were_drawn(banded):
    planted = images(32)[:1].float()

    def plant(pipeline, step, timestep, values):
        return {"latents": to_bands(planted, pipeline.config.band_scales)}

    drawn = banded(num_inference_steps=2, output_type="pt", callback_on_step_end=plant).images
    torch.testing.assert_close(drawn, planted / 2 + 0.5)


def test_scales_are_exported_and_an_export_without_them_is_of_pixels(banded, pipeline, tmp_path):
    for one, name in ((banded, "bands"), (pipeline, "pixels")):
        (tmp_path / name).mkdir()
        export_pipeline(one, tmp_path / name)
    index = tmp_path / "pixels" / "model_index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "band_scales"}))
    for one, name in ((banded, "bands"), (pipeline, "pixels")):
        drawn = []
        for own_code in (True, False):
            loaded = load_pipeline(str(tmp_path / name), trust_remote_code=own_code)
            assert dict(loaded.config.band_scales) == dict(one.config.band_scales)
            for p in (one, loaded):
                p.set_progress_bar_config(disable=True)
                options = dict(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
                drawn.append(p(**options).images)
        for images_again in drawn:
            np.testing.assert_allclose(images_again, drawn[0], atol=1e-4)
