"""From a file's bytes to the pixels that a published model's pre-processing gives, before normalisation."""

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import timm.data
import torch


def open_rgb(content: bytes) -> PIL.Image.Image:
    """A file's bytes as an upright 8-bit RGB image. Raises OSError or ValueError for what is no whole image.

    Turned as its EXIF tag says; 16-bit greyscale is scaled, not clipped.
    """
    with PIL.Image.open(io.BytesIO(content)) as image:
        image.load()
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
    return image.convert("RGB")


def pixel_transform(data_config: dict) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """timm's own evaluation transform for `data_config` without the normalisation: an RGB image to uint8 (3, H, W).

    timm, `AutoImageProcessor` and `pipeline` build theirs from the same config, so the pixels are the same everywhere.
    """
    return timm.data.create_transform(**data_config, is_training=False, normalize=False)


def normalise(pixels: torch.Tensor, data_config: dict) -> torch.Tensor:
    """uint8 or float (N, 3, H, W) in [0, 255] to the model's float32 input, in torchvision's order."""
    mean = torch.tensor(data_config["mean"], device=pixels.device).view(3, 1, 1)
    std = torch.tensor(data_config["std"], device=pixels.device).view(3, 1, 1)
    return pixels.float().div(255).sub(mean).div(std)
