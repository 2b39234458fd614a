"""Skin colour: sRGB, CIELAB, and the individual typology angle (ITA) of the skin around a lesion.

ITA stands here, with the builders, because the prepared data carry it as a column. It is a covariate of an image,
light and white balance included, and never a Fitzpatrick type, which is how a person's skin answers the sun.
"""

import numpy as np
import PIL.Image

from melanoma_fair_xai.base.images import open_image

# sRGB (IEC 61966-2-1) to XYZ, and the D65 white point of the 2-degree observer, to which CIELAB (CIE 15:2004) refers.
_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_RGB_FROM_XYZ = np.linalg.inv(_XYZ_FROM_RGB)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_DELTA = 6 / 29

SIDE = 64  # ITA is measured on an image whose shorter side has at least so many pixels, where it had them
MASK_MARGIN = 0.04  # of the shorter side: a lesion's rim is neither lesion nor skin
MIN_SKIN_SHARE = 0.03  # of the image


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (L* 0 to 100, a*, b*; D65) of sRGB values from 0 to 1, shape (..., 3)."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_FROM_RGB.T / _WHITE
    f = np.where(xyz > _DELTA**3, np.cbrt(xyz), xyz / (3 * _DELTA**2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """sRGB from 0 to 1 of CIELAB (D65), shape (..., 3); colours that sRGB cannot show are clipped."""
    lab = np.asarray(lab)
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29)) * _WHITE
    linear = np.clip(xyz @ _RGB_FROM_XYZ.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def individual_typology_angle(lab: np.ndarray) -> np.ndarray:
    """ITA in degrees, arctan2(L* - 50, b*) (Chardon, Cretois and Hourseau 1991), of colours of shape (..., 3).

    Over 90 on bluish pixels (b* < 0), where a plain arctan would jump to -90.
    """
    return np.degrees(np.arctan2(lab[..., 0] - 50, lab[..., 2]))


def lightness_at(ita: float, yellow: float) -> float:
    """The L* of a colour with this ITA, from -90 to 90 degrees, and this b*."""
    return 50 + yellow * np.tan(np.radians(ita))


def measure_ita(image: bytes, mask: bytes | None) -> float | None:
    """ITA in degrees of the skin in an image file, outside the lesion that a mask file of the same size shows.

    None without a mask, and where less than MIN_SKIN_SHARE of the image lies outside.
    """
    skin = None if mask is None else skin_pixels(image, mask)
    return None if skin is None else float(individual_typology_angle(typical_colour(skin)))


def skin_pixels(image: bytes, mask: bytes) -> np.ndarray | None:
    """CIELAB (n, 3) of the pixels outside the lesion and its rim, of a reduced image; None if they are too few."""
    photograph = open_image(image)
    photograph.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at an eighth, a quarter or a half of its size
    photograph = photograph.convert("RGB")
    photograph = photograph.reduce(max(1, min(photograph.size) // SIDE))
    lesion = open_image(mask).convert("L").resize(photograph.size, PIL.Image.Resampling.BOX)
    margin = max(1, round(MASK_MARGIN * min(lesion.size)))
    near = np.pad(np.asarray(lesion) > 0, margin)
    for axis in (0, 1):
        near = np.lib.stride_tricks.sliding_window_view(near, 2 * margin + 1, axis).any(axis=-1)
    return rgb_to_lab(np.asarray(photograph)[~near] / 255) if (~near).mean() >= MIN_SKIN_SHARE else None


def typical_colour(lab: np.ndarray) -> np.ndarray:
    """The median (3,) of colours (n, 3) after leaving out, again and again, what lies far from it.

    Hair, ink, rulers, bubbles and dark corners differ from skin in L*, a* or b*, and are the lesser part. What differs
    by more than 2.5 standard deviations, estimated by the median deviation, is left out; the 1 that is added to it
    is about the deviation of even skin, of which nothing must be lost.
    """
    lab = np.ascontiguousarray(lab.T)  # of each channel the values together, which is twice as fast
    kept = np.ones(lab.shape[1], dtype=bool)
    for _ in range(10):
        chosen = np.compress(kept, lab, axis=1)
        median = np.median(chosen, axis=1, keepdims=True)
        spread = 1.4826 * np.median(np.abs(chosen - median), axis=1, keepdims=True) + 1
        near = (np.abs(lab - median) < 2.5 * spread).all(axis=0)
        if (near == kept).all():
            break
        kept = near
    return np.median(np.compress(kept, lab, axis=1), axis=1)
