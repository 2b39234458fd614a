"""From a file's bytes to the pixels that a published model's pre-processing gives, before normalisation."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import timm.data
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.images import open_image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Of an image of more than 8 bits, read as 8: one with no higher value has its own range, such as 0 to 1, or 12 bits.
FEW_BITS = 31
CROP_MODES = ("center", "squash", "border")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes a model's input: timm's data config, fields in timm's order and by its names.

    Attributes:
        input_size: (3, height, width) in pixels.
        interpolation: of the resizing, one of INTERPOLATIONS.
        mean, std: of each channel, for values in [0, 1].
        crop_pct: the crop's side as a share of what the image is resized to.
        crop_mode: `squash` resizes both sides, `center` the shorter one, `border` the longer one and pads.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_model(cls, model: torch.nn.Module) -> "Preprocessing":
        """That of a timm model."""
        return cls(**_with_tuples(timm.data.resolve_model_data_config(model)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], path: str | os.PathLike) -> "Preprocessing":
        """That of a published config.json, read from `path`; UserError for a field that it lacks or nobody can use."""
        source = config.get("pretrained_cfg")
        for name, is_usable in USABLE.items():
            if not isinstance(source, Mapping) or name not in source:
                raise UserError(f"{path}: pretrained_cfg has no {name}: not written by train_classifier.py")
            try:
                usable = is_usable(source[name])
            except TypeError:
                usable = False
            if not usable:
                raise UserError(f"{path}: pretrained_cfg.{name} cannot be {source[name]!r}")
        return cls(**_with_tuples({name: source[name] for name in USABLE}))

    def to_timm(self) -> dict[str, Any]:
        """As `timm.data.create_transform` takes it, and as config.json has it."""
        return dataclasses.asdict(self)


USABLE: dict[str, Callable[[Any], bool]] = {
    "input_size": lambda size: len(size) == size[0] == 3 and all(isinstance(side, int) and side > 0 for side in size),
    "interpolation": lambda name: name in INTERPOLATIONS,
    "mean": lambda values: len(values) == 3 and all(math.isfinite(value) for value in values),
    "std": lambda values: len(values) == 3 and all(0 < value < math.inf for value in values),
    "crop_pct": lambda share: 0 < share < math.inf,
    "crop_mode": lambda name: name in CROP_MODES,
}


def _with_tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def open_rgb(content: bytes) -> PIL.Image.Image:
    """A file's bytes as an upright 8-bit RGB image, as Pillow, and with it `pipeline()` of transformers, converts it.

    Turned as its EXIF tag says. Raises OSError or ValueError for what is no whole image, and ValueError for 16-bit,
    int32 and float images of which that would make black or white.
    """
    with open_image(content) as image:
        is_deep = image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
    if is_deep:
        values = np.asarray(image)
        if not (values.min() >= 0 and FEW_BITS < values.max() < 256):
            raise ValueError(
                f"more than 8 bits a channel, values from {values.min():g} to {values.max():g}: save it with 8 bits"
            )
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


def pixel_transform(preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """timm's own evaluation transform without the normalisation: an RGB image to uint8 (3, H, W).

    timm, `AutoImageProcessor` and `pipeline` build theirs from the same config, so the pixels are the same everywhere.
    """
    return timm.data.create_transform(**preprocessing.to_timm(), is_training=False, normalize=False)


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 or float (N, 3, H, W) in [0, 255] to the model's float32 input, in torchvision's order."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels.device).view(3, 1, 1)
    return pixels.float().div(255).sub(mean).div(std)
