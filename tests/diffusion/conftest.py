"""Small networks for the tests of diffusion, with weights that do something."""

import pytest
import torch

from melanoma_fair_xai.diffusion.data import Conditions
from melanoma_fair_xai.diffusion.export import make_pipeline
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.diffusion.pipeline_lesion import band_names
from melanoma_fair_xai.diffusion.process import make_noise_scheduler


@pytest.fixture(scope="session")
def conditions() -> Conditions:
    """As of a data set that has no type VI, three vascular lesions, and nobody over 90."""
    return Conditions(
        {"diagnosis": ["mel", "nv", "vasc"], "sex": ["female", "male"], "fitzpatrick": ["I", "II", "III", "VI"]},
        {
            "diagnosis": {"mel": 100, "nv": 900, "vasc": 3},
            "sex": {"female": 500, "male": 400},
            "fitzpatrick": {"I": 400, "II": 300, "III": 200, "VI": 0},
            "age": {"30": 200, "40": 300, "50": 300, "80": 7},
        },
    )


@pytest.fixture
def networks(conditions):
    torch.manual_seed(0)
    unet, conditioner = create_networks(
        conditions, resolution=16, block_out_channels=[16, 32], layers_per_block=1, attention_resolutions=[8]
    )
    return unet.eval(), conditioner.eval()


@pytest.fixture
def pipeline(networks):
    pipeline = make_pipeline(*networks, make_noise_scheduler("v_prediction", "linear"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def banded(conditions):
    """An untrained pipeline of 32 x 32 images, whose UNet sees two levels of bands."""
    torch.manual_seed(0)
    networks = create_networks(
        conditions,
        resolution=32,
        haar_levels=2,
        block_out_channels=[16, 32],
        layers_per_block=1,
        attention_resolutions=[],
    )
    scales = {name: 4.0 if name == "aa" else 0.1 + 0.01 * number for number, name in enumerate(band_names(2))}
    pipeline = make_pipeline(*(n.eval() for n in networks), make_noise_scheduler("v_prediction", "linear"), scales)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
