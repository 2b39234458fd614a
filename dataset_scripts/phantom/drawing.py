"""Drawing one phantom: a lesion on skin, its exact mask, and the artefacts on top, from known parameters.

Lengths are in units of half the field of view: x and y run from -1 to 1, whatever the image size, and no random number
depends on the size, so that a phantom is the same picture at 32 and at 224 pixels. Each layer has a generator of its
own, so that leaving one out changes no other.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw

from ..skin_colour import lab_to_rgb

FIELD_OF_VIEW_MM = 20.0
MAX_DARKENING = 31.0  # in L*; the darkest skin drawn has L* near 32, and its lesions must still differ from black


@dataclasses.dataclass(frozen=True)
class Lesion:
    """What stays the same in every image of a lesion. `seed` fixes its details (phases of the outline, islands, dots).

    asymmetry, border_irregularity and variegation run from 0 to 1, diameter is in mm, contrast is the mean drop of L*
    from skin to lesion, and visibility multiplies the whole colour difference (1 unless `tone_bias` lowers it).
    """

    seed: tuple[int, ...]
    skin_lab: tuple[float, float, float]
    asymmetry: float
    border_irregularity: float
    variegation: float
    diameter: float
    contrast: float
    visibility: float = 1.0
    elongation: float = 0.1
    edge_width: float = 0.3
    network: float = 0.0
    globules: int = 0


@dataclasses.dataclass(frozen=True)
class View:
    """What differs between images of one lesion: pose, light, and the names of the artefacts (see ARTEFACTS)."""

    seed: tuple[int, ...]
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    lightness_shift: float = 0.0
    light_gradient: tuple[float, float] = (0.0, 0.0)
    artefacts: tuple[str, ...] = ()


class Drawing(NamedTuple):
    """image: uint8 (H, W, 3); mask: bool (H, W), the lesion, also below artefacts; artefacts: bool (H, W) by name, the
    pixels that each one altered."""

    image: np.ndarray
    mask: np.ndarray
    artefacts: dict[str, np.ndarray]


def draw_phantom(lesion: Lesion, view: View, image_size: int) -> Drawing:
    """Draw one square image of a lesion. The same arguments give the same pixels."""
    x, y = _grid(image_size)
    change, mask = lesion_colour_change(lesion, *_to_lesion(x, y, view))
    lab = np.array(lesion.skin_lab, dtype=np.float32) + _skin_texture(view, image_size) + lesion.visibility * change
    light = 1 + view.light_gradient[0] * x + view.light_gradient[1] * y
    lab[..., 0] = lab[..., 0] * light + view.lightness_shift
    image = np.round(255 * lab_to_rgb(lab)).astype(np.uint8)
    artefacts = {}
    for name in view.artefacts:
        rng = np.random.default_rng([*view.seed, 1 + list(ARTEFACTS).index(name)])
        image, artefacts[name] = paste_artefact(image, name, rng)
    return Drawing(image, mask, artefacts)


def paste_artefact(image: np.ndarray, name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paste an artefact on a square uint8 image (H, H, 3); returns the new image and a bool mask of altered pixels.

    Raises KeyError for a name that is not in ARTEFACTS.
    """
    opacity, colour = ARTEFACTS[name](rng, len(image))
    opacity = np.where(opacity < 0.02, 0, opacity)[..., None]  # less does not show, and would blur the mask
    pasted = np.round(image * (1 - opacity) + 255 * np.asarray(colour) * opacity).astype(np.uint8)
    return pasted, opacity[..., 0] > 0


# --- skin and lesion -------------------------------------------------------------------------------------------------


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixel centres, each of shape (size, size), from -1 to 1."""
    axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    return np.meshgrid(axis, axis)


def _to_lesion(x: np.ndarray, y: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Image coordinates in the lesion's own frame."""
    x, y = (x - view.shift[0]) / view.scale, (y - view.shift[1]) / view.scale
    cosine, sine = np.cos(view.rotation), np.sin(view.rotation)
    return (cosine * x + sine * y).astype(np.float32), (cosine * y - sine * x).astype(np.float32)


def _skin_texture(view: View, size: int) -> np.ndarray:
    """Zero-mean Lab deviations (H, W, 3) of skin: furrows, mottling and slow changes of colour."""
    rng = np.random.default_rng([*view.seed, 0])
    fine, mottling, slow, redness = (_noise_image(rng, cells, size) for cells in (90, 26, 6, 12))
    furrows = np.minimum(np.abs(_noise_image(rng, 30, size)), 1)  # a noise's zero crossings are lines, as in skin
    lightness = 0.9 * fine + 0.7 * mottling + 0.5 * slow + 1.6 * (furrows - furrows.mean())
    return np.stack([lightness, 0.8 * redness + 0.4 * mottling, 0.4 * slow], axis=-1)


def _noise_image(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise (size, size), `cells` random values across, mean 0 and standard deviation 1."""
    values = PIL.Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    noise = np.asarray(values.resize((size, size), PIL.Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / noise.std()


def _wave_noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, wavelength: float) -> np.ndarray:
    """Smooth noise of unit variance as a sum of plane waves, so that it turns and shifts with its coordinates."""
    number = 14
    direction, phase = rng.uniform(0, 2 * np.pi, (2, number))
    frequency = 2 * np.pi / wavelength * rng.uniform(0.6, 1.5, number)
    waves = np.stack([frequency * np.cos(direction), frequency * np.sin(direction), phase], axis=1).astype(np.float32)
    noise = np.zeros_like(u)
    for along_u, along_v, start in waves:  # one by one: small arrays stay in the processor's cache
        noise += np.cos(along_u * u + along_v * v + start)
    return np.sqrt(np.float32(2 / number)) * noise


def lesion_colour_change(lesion: Lesion, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Lab change (H, W, 3), bool mask (H, W)) of a lesion at coordinates in its own frame.

    Nothing changes outside the mask, everything inside; the same lesion changes every skin by the same amount.
    """
    radius = lesion.diameter / FIELD_OF_VIEW_MM
    depth = _depth(lesion, u, v)
    mask = depth > 0
    pigment, veil, redness = _pigment(lesion, u, v, depth)
    # The border is a step of a quarter of the colour and then a ramp: the mask's edge can be seen.
    pigment = np.clip(pigment, 0.15, None) * mask * (0.25 + 0.75 * np.clip(depth / (lesion.edge_width * radius), 0, 1))
    darkening = np.minimum(lesion.contrast * pigment / pigment[mask].mean(), MAX_DARKENING)
    # From skin over brown to black: colour grows with a little pigment and fades with much.
    share = darkening / MAX_DARKENING
    reddening = 16 * share * (1 - share) + share * redness - 7 * share * veil
    yellowing = 17 * share * (0.85 - share) - 13 * share * veil
    return np.stack([-darkening, reddening, yellowing], axis=-1), mask


def _depth(lesion: Lesion, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far inside the outline a point lies (negative outside), (H, W).

    The outline is an ellipse, made lopsided by asymmetry (its area stays that of a circle of the lesion's diameter)
    and then frayed by border irregularity.
    """
    rng = np.random.default_rng([*lesion.seed, 0])
    radius = lesion.diameter / FIELD_OF_VIEW_MM
    three, four = 0.24 * lesion.asymmetry * rng.dirichlet([3, 2])
    waves = [(2, lesion.elongation), (3, three), (4, 0.5 * four)]
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    area = 1 + sum(size**2 for _, size in waves) / 2

    # A border is seldom frayed all around.
    side = rng.uniform(0, 2 * np.pi)
    fraying = 0.1 * lesion.border_irregularity * (radius + 0.8 * (np.cos(side) * u + np.sin(side) * v))
    u, v = (place + fraying * _wave_noise(rng, u, v, 0.45 * radius) for place in (u, v))
    angle = np.arctan2(v, u)
    outline = 1 + sum(size * np.cos(order * angle + phase) for (order, size), phase in zip(waves, phases, strict=True))
    return radius * outline / np.sqrt(area) - np.hypot(u, v)


def _pigment(
    lesion: Lesion, u: np.ndarray, v: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relative pigment (mean about 1), blue-white veil (0 to 1) and redness (in a*) at each point, each (H, W)."""
    rng = np.random.default_rng([*lesion.seed, 1])
    radius = lesion.diameter / FIELD_OF_VIEW_MM
    turn, network_turn, network_phase, streak_phase = rng.uniform(0, 2 * np.pi, 4)
    islands, veil_islands, red_islands = (_wave_noise(rng, u, v, size * radius) for size in (1.1, 1.3, 1.2))
    pigment = 1 + 0.34 * lesion.variegation * islands + 0.05 * red_islands
    pigment += 0.35 * lesion.asymmetry * (np.cos(turn) * u + np.sin(turn) * v) / radius

    period = 0.15 * rng.uniform(0.85, 1.15)
    warp = 0.04 * islands
    honeycomb = sum(
        np.cos(2 * np.pi / period * (np.cos(way) * (u + warp) + np.sin(way) * (v + warp)) + network_phase)
        for way in network_turn + np.array([0, 2, 4]) * np.pi / 3
    )
    pigment -= 0.14 * lesion.network * honeycomb
    for _ in range(lesion.globules):
        distance, way = radius * np.sqrt(rng.uniform(0, 0.8)), rng.uniform(0, 2 * np.pi)
        size = rng.uniform(0.018, 0.035)
        squared = (u - distance * np.cos(way)) ** 2 + (v - distance * np.sin(way)) ** 2
        pigment += 0.45 * np.exp(-squared / size**2)
    rim = np.exp(-np.square(depth / radius - 0.15) / 0.15**2)
    pigment += 0.22 * lesion.border_irregularity * rim * np.cos(22 * np.arctan2(v, u) + streak_phase)

    veil = lesion.variegation * np.clip(veil_islands - 0.5, 0, 1)
    return pigment, veil, 4 * lesion.variegation * red_islands


# --- artefacts -------------------------------------------------------------------------------------------------------
# Each returns (opacity (H, H) from 0 to 1, colour as sRGB from 0 to 1: one, or one per pixel).

_Layer = tuple[np.ndarray, np.ndarray]


def _strokes(size: int, draw: Callable[[PIL.ImageDraw.ImageDraw, float], None]) -> np.ndarray:
    """What `draw(canvas, scale)` paints on a canvas of scale x scale pixels, smoothed down to (size, size), 0 to 1."""
    factor = max(2, -(-384 // size))  # thin lines need a fine canvas, however small the image
    canvas = PIL.Image.new("L", (factor * size, factor * size))
    draw(PIL.ImageDraw.Draw(canvas), factor * size)
    return np.asarray(canvas.reduce(factor), dtype=np.float32) / 255


def draw_hair(rng: np.random.Generator, size: int) -> _Layer:
    """Thin dark curves across the field."""
    starts, bends, ends = rng.uniform([-0.1], [1.1], (3, int(rng.integers(4, 15)), 1, 2))
    time = np.linspace(0, 1, 24)[:, None]
    curves = (1 - time) ** 2 * starts + 2 * time * (1 - time) * bends + time**2 * ends
    widths = rng.uniform(0.004, 0.010, len(curves))

    def draw(canvas: PIL.ImageDraw.ImageDraw, scale: float) -> None:
        for curve, width in zip(curves, widths, strict=True):
            canvas.line([tuple(point) for point in curve * scale], fill=255, width=max(1, round(width * scale)))

    return 0.85 * _strokes(size, draw), np.array([0.13, 0.09, 0.07]) * rng.uniform(0.5, 1.6)


def draw_ruler(rng: np.random.Generator, size: int) -> _Layer:
    """A translucent white strip with millimetre marks along one side; its whole strip counts as altered."""
    width, spacing, start = rng.uniform(0.11, 0.15), rng.uniform(0.045, 0.055), rng.uniform(0, 0.25)
    whiteness, side = rng.uniform(0.35, 0.6), int(rng.integers(4))

    def draw_strip(canvas: PIL.ImageDraw.ImageDraw, scale: float) -> None:
        canvas.rectangle([0, 0, scale, width * scale], fill=255)

    def draw_marks(canvas: PIL.ImageDraw.ImageDraw, scale: float) -> None:
        for number, place in enumerate(np.arange(start * spacing, 1, spacing)):
            length = width * (0.8 if number % 5 == 0 else 0.45)
            canvas.line([place * scale, 0, place * scale, length * scale], fill=255, width=round(0.011 * scale))

    strip, marks = np.rot90(_strokes(size, draw_strip), side), np.rot90(_strokes(size, draw_marks), side)
    return np.maximum(whiteness * strip, 0.9 * marks), np.repeat((1 - marks)[..., None] * 0.95 + 0.03, 3, axis=-1)


def draw_ink(rng: np.random.Generator, size: int) -> _Layer:
    """Smears of violet skin marker near the edge of the field."""
    start, between, number = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 2.2), int(rng.integers(1, 4))
    smears = rng.uniform([0, 0.40, 0.06, 0.035, -0.5], [0.3, 0.48, 0.2, 0.06, 0.5], (number, 5))
    smears[:, 0] += start + between * np.arange(number)

    def draw(canvas: PIL.ImageDraw.ImageDraw, scale: float) -> None:
        for angle, distance, length, width, tilt in smears:
            middle = 0.5 + distance * np.array([np.cos(angle), np.sin(angle)])
            step = length * np.array([-np.sin(angle + tilt), np.cos(angle + tilt)])
            for point in np.linspace(middle - step, middle + step, 40) * scale:
                half = width * scale / 2
                canvas.ellipse([*(point - half), *(point + half)], fill=255)

    patchy = np.clip(0.7 + 0.12 * _noise_image(rng, 40, size), 0.3, 0.95)
    return patchy * _strokes(size, draw), np.array([0.32, 0.18, 0.55]) * rng.uniform(0.75, 1.15)


def draw_dark_corner(rng: np.random.Generator, size: int) -> _Layer:
    """The black surround of the dermatoscope's round field."""
    radius, softness = rng.uniform(0.98, 1.15), rng.uniform(0.04, 0.15)
    x, y = _grid(size)
    distance = np.hypot(x - rng.uniform(-0.06, 0.06), y - rng.uniform(-0.06, 0.06))
    return np.clip((distance - radius) / softness, 0, 1) * 0.97, np.array([0.03, 0.02, 0.02])


def draw_bubbles(rng: np.random.Generator, size: int) -> _Layer:
    """Air bubbles in the immersion gel: pale rings with a highlight."""
    x, y = _grid(size)
    opacity = np.zeros((size, size), dtype=np.float32)
    for _ in range(int(rng.integers(3, 10))):
        radius, (left, top) = rng.uniform(0.03, 0.11), rng.uniform(-0.95, 0.95, 2)
        distance = np.hypot(x - left, y - top)
        ring = 0.55 * np.exp(-np.square((distance - radius) / 0.014)) + 0.08 * (distance < radius)
        shine = 0.8 * np.exp(-((x - left + 0.4 * radius) ** 2 + (y - top + 0.4 * radius) ** 2) / (0.25 * radius) ** 2)
        opacity = np.maximum(opacity, np.maximum(ring, shine))
    return opacity, np.array([0.98, 0.97, 0.95])


ARTEFACTS: dict[str, Callable[[np.random.Generator, int], _Layer]] = {
    "hair": draw_hair,
    "bubbles": draw_bubbles,
    "ink": draw_ink,
    "ruler": draw_ruler,
    "dark_corner": draw_dark_corner,
}
ARTEFACT_BITS = {name: 1 << bit for bit, name in enumerate(ARTEFACTS)}
