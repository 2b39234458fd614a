"""Small nets with random weights, and pictures, for the tests of this folder."""

import numpy as np
import PIL.Image
import timm
import torch

from melanoma_fair_xai.data.images import Preprocessing

PREPROCESSING = Preprocessing((3, 64, 64), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1.0, "squash")


def random_net(name: str = "test_resnet", classes: int = 2, **options) -> torch.nn.Module:
    """timm starts the last batch norm of each residual block at zero, which hides that block."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(model.get_classifier().weight, std=0.3)
    return model


def smooth_pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    bicubic = PIL.Image.Resampling.BICUBIC
    return np.stack([np.asarray(PIL.Image.fromarray(image).resize((size, size), bicubic)) for image in coarse])


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
