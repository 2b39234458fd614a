"""Artefact traps: what the score does when something that is no sign of melanoma is pasted or erased."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dataset_scripts.phantom.drawing import ARTEFACTS, paste_artefact
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.seeding import sample_generator


@dataclass(frozen=True)
class Trap:
    """A trap: `deed` begins a sentence on it, `set` is (pixels, masks, ids, seed) to what `set_trap` gives."""

    deed: str
    set: Callable[[np.ndarray, np.ndarray | None, list[str], int], tuple[np.ndarray, np.ndarray]]
    needs_masks: bool = False


def set_trap(
    name: str, pixels: np.ndarray, masks: np.ndarray | None, ids: list[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, H, 3) with the trap in them, and the pixels that it altered, bool (N, H, H).

    ruler, ink, dark_corner, hair and bubbles are drawn as on phantoms, with a seed for each image. `erase_lesion`
    paints the mask over with the mean colour of the rest, `erase_background` the rest with its own mean colour; they
    alter nothing where there is no mask, or nothing outside it. UserError for an unknown trap, for images that are
    not square, and for erasing where `masks` is None.
    """
    if name not in TRAPS:
        raise UserError(f"--trap {name}: unknown; choose from {', '.join(TRAPS)}")
    if TRAPS[name].needs_masks and masks is None:
        raise UserError(f"--trap {name}: needs lesion masks, and these images have none")
    return TRAPS[name].set(pixels, masks, ids, seed)


def _paste(artefact: str, pixels, masks, ids, seed):
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"--trap {artefact}: is drawn on square images, and this model takes {pixels.shape[1:3]}")
    pasted = [
        paste_artefact(image, artefact, sample_generator(seed, "trap", artefact, own))
        for image, own in zip(pixels, ids, strict=True)
    ]
    return np.stack([image for image, _ in pasted]), np.stack([altered for _, altered in pasted])


def _erase(part: str, pixels, masks, ids, seed):
    masked = masks.any((1, 2)) & ~masks.all((1, 2))
    altered = (masks if part == "lesion" else ~masks) & masked[:, None, None]
    background = (~masks)[..., None]
    colour = (pixels * background).sum((1, 2)) / background.sum((1, 2)).clip(min=1)
    return np.where(altered[..., None], colour[:, None, None].round().astype(np.uint8), pixels), altered


TRAPS = {name: Trap(f"A pasted {name}", partial(_paste, name)) for name in ARTEFACTS} | {
    f"erase_{part}": Trap(f"Erasing the {part}", partial(_erase, part), needs_masks=True)
    for part in ("lesion", "background")
}


def trap_columns(name: str) -> tuple[str, str]:
    """The columns of the melanoma score's change by a trap, and of whether (0 or 1) the decision turns."""
    return f"trap_{name}_change", f"trap_{name}_turned"


def trap_effect(
    before: np.ndarray, after: np.ndarray, threshold: float, altered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Their values, float64 (N,), of melanoma scores (N,); NaN where the trap altered nothing."""
    changed = altered.any((1, 2))
    turned = (before >= threshold) != (after >= threshold)
    return np.where(changed, (after - before).astype(np.float64), np.nan), np.where(changed, turned, np.nan)
