"""Augmentation for lesions, whole batches at a time on the model's device.

Each image's parameters are drawn beforehand from a generator of its own (seed, epoch, index), so that what an image
looks like does not depend on batches, workers, processes or restarts.
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from dataset_scripts.skin_colour import lab_to_rgb, lightness_at
from melanoma_fair_xai.base.seeding import sample_generator

# Rec. 709 luma, the grey that saturation moves towards.
LUMA = (0.2126, 0.7152, 0.0722)
PARAMETERS = ("angle", "flip", "scale_x", "scale_y", "shift_x", "shift_y", "brightness", "contrast", "saturation")
PARAMETERS += ("red", "green", "blue", "shade_x", "shade_y", "erase_x", "erase_y", "erase_side", "mix")
ERASED_AREA = (0.02, 0.2)  # least and largest share of the image
TYPICAL_ITA = 20.0  # degrees, tan: in the middle of what skin can have
TYPICAL_SKIN = (lightness_at(TYPICAL_ITA, 15.0), 12.0, 15.0)  # (L*, a*, b*)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths. Lesions have no upright side, so flips and quarter turns are always on.

    `min_area` is the smallest share of the image that a random crop keeps; the rest are half-widths of relative
    changes (0.2: factors from 0.8 to 1.2) of brightness, contrast, saturation, of each colour channel (white balance),
    and of a linear fall of illumination across the image. `ita_shift` is the half-width of a change of skin tone by
    `tone_gain`, in degrees. `rotation` is the half-width, in degrees, of a turn beyond the quarter turns; `erasing` is
    the probability that a square of the image is painted over with its mean (random erasing, Zhong et al. 2020);
    `mixup_alpha` is the Beta distribution's parameter of the shares in which an image is mixed with the one before it
    in the batch, the larger share being its own (mixup, Zhang et al. 2018); 0 mixes nothing.
    """

    min_area: float = 0.5
    max_aspect: float = 1.25
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    white_balance: float = 0.05
    illumination: float = 0.15
    ita_shift: float = 0.0
    rotation: float = 0.0
    erasing: float = 0.0
    mixup_alpha: float = 0.0

    def draw(self, seed: int, epoch: int, index: int) -> np.ndarray:
        """The parameters of one image in one epoch: float32 (len(PARAMETERS),)."""
        rng = sample_generator(seed, epoch, index)
        area = rng.uniform(self.min_area, 1.0)
        aspect = math.exp(rng.uniform(-1, 1) * math.log(self.max_aspect))
        scale_x, scale_y = (min(1.0, math.sqrt(area * r)) for r in (aspect, 1 / aspect))
        centre = rng.uniform(-1, 1, 2) * (1 - np.array([scale_x, scale_y]))
        colour = 1 + rng.uniform(-1, 1, 3) * np.array([self.brightness, self.contrast, self.saturation])
        balance = 1 + rng.uniform(-1, 1, 3) * self.white_balance
        shade = rng.uniform(-1, 1, 2) * self.illumination
        turn = [rng.integers(4) * math.pi / 2, 1 - 2 * rng.integers(2)]
        # What is off by default is drawn last: the other parameters are the same without it.
        if self.ita_shift:
            balance = balance * tone_gain(rng.uniform(-1, 1) * self.ita_shift)
        if self.rotation:
            turn[0] += math.radians(rng.uniform(-1, 1) * self.rotation)
        erased = [0.0, 0.0, 0.0]
        if self.erasing and rng.uniform() < self.erasing:
            erased = [*rng.uniform(-1, 1, 2), math.sqrt(rng.uniform(*ERASED_AREA))]
        mix = 1.0
        if self.mixup_alpha:
            share = rng.beta(self.mixup_alpha, self.mixup_alpha)
            mix = max(share, 1 - share)
        return np.array([*turn, scale_x, scale_y, *centre, *colour, *balance, *shade, *erased, mix], dtype=np.float32)


def tone_gain(shift: float) -> np.ndarray:
    """The factors (3,) of red, green and blue that change the ITA of typical skin by `shift` degrees, from -60 to 60.

    They lead from TYPICAL_SKIN to the skin of another lightness and the same a* and b*, the axis along which ITA
    describes skin. A whole image is multiplied by them, as pigment in the skin above a lesion filters its light too.
    """
    lightness = lightness_at(TYPICAL_ITA + shift, TYPICAL_SKIN[2])
    return lab_to_rgb([lightness, *TYPICAL_SKIN[1:]]) / lab_to_rgb(TYPICAL_SKIN)


def augment(pixels: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Augment uint8 pixels (N, H, W, 3) by parameters (N, len(PARAMETERS)): float32 (N, 3, H, W) in [0, 255].

    Crop, flip and turn are one bilinear resampling; colour follows in float, clamped once at the end; erasing is last.
    Mixing, which concerns labels, too, is `mix_with_previous`.
    """
    angle, flip, scale_x, scale_y, shift_x, shift_y, brightness, contrast, saturation, *rest = parameters.T
    images = pixels.permute(0, 3, 1, 2).float()
    cos, sin = angle.cos(), angle.sin()
    # Output to input coordinates in [-1, 1]: turn and flip first, then shrink onto the crop's window.
    theta = torch.stack(
        [
            torch.stack([scale_x * cos * flip, -scale_x * sin, shift_x], dim=-1),
            torch.stack([scale_y * sin * flip, scale_y * cos, shift_y], dim=-1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    balance, shade, erased = (torch.stack(rest[i:j], 1) for i, j in ((0, 3), (3, 5), (5, 8)))
    return erase(adjust_colour(images, brightness, contrast, saturation, balance, shade), erased)


def erase(images: torch.Tensor, erased: torch.Tensor) -> torch.Tensor:
    """Paint a square of each image (N, 3, H, W) over with its mean colour; `erased` (N, 3): centre x and y in [-1, 1],
    side as a share of the image's (0: nothing is)."""
    x, y = (torch.linspace(-1, 1, size, device=images.device) for size in images.shape[:1:-1])
    centre_x, centre_y, side = erased.T[..., None]
    across, down = (x - centre_x).abs() < side, (y - centre_y).abs() < side
    mean = images.mean(dim=(2, 3), keepdim=True)
    return torch.where(down[:, None, :, None] & across[:, None, None, :], mean, images)


def mix_with_previous(values: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Each of `values` (N, ...) mixed with the one before it in the batch, its own share the parameter `mix`."""
    share = parameters[:, PARAMETERS.index("mix")].view(-1, *[1] * (values.dim() - 1))
    return torch.lerp(values.roll(1, 0), values, share)


def adjust_colour(
    images: torch.Tensor,
    brightness: torch.Tensor,
    contrast: torch.Tensor,
    saturation: torch.Tensor,
    balance: torch.Tensor,
    shade: torch.Tensor,
) -> torch.Tensor:
    """Change float images (N, 3, H, W) in [0, 255] by factors (N,), `balance` (N, 3) and `shade` (N, 2).

    `shade` is the relative change of light from the centre to the right and to the lower border.
    """
    height, width = images.shape[-2:]
    factor = (brightness[:, None] * balance)[:, :, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast[:, None, None, None]) * factor
    grey = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    images = torch.lerp(grey, images, saturation[:, None, None, None])
    x = torch.linspace(-1, 1, width, device=images.device)
    y = torch.linspace(-1, 1, height, device=images.device)
    light = 1 + shade[:, 0, None, None] * x + shade[:, 1, None, None] * y[:, None]
    return (images * light[:, None]).clamp(0, 255)
