import pytest
import torch
from explain_nets import PREPROCESSING, as_images, random_net, smooth_pixels

from melanoma_fair_xai.explain.attributions import LogOdds


@pytest.fixture(scope="session")
def net() -> LogOdds:
    return LogOdds(random_net(), PREPROCESSING, [1]).eval()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return as_images(smooth_pixels(6, 64))


@pytest.fixture(scope="session")
def targets() -> torch.Tensor:
    return torch.tensor([1, 0, 1, 0, 1, 1])
