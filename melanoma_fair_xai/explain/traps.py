"""Artefact traps: what the score does when something that is no sign of melanoma is pasted or erased."""

import numpy as np
import torch

from dataset_scripts.phantom_drawing import ARTEFACTS, paste_artefact
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.seeding import sample_generator

ERASERS = ("erase_lesion", "erase_background")
TRAPS = (*ARTEFACTS, *ERASERS)


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
    if name in ERASERS:
        if masks is None:
            raise UserError(f"--trap {name}: needs lesion masks, and these images have none")
        return _erase(pixels, masks, lesion=name == "erase_lesion")
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"--trap {name}: is drawn on square images, and this model takes {pixels.shape[1:3]}")
    pasted = [
        paste_artefact(image, name, sample_generator(seed, "trap", name, own))
        for image, own in zip(pixels, ids, strict=True)
    ]
    return np.stack([image for image, _ in pasted]), np.stack([altered for _, altered in pasted])


def _erase(pixels: np.ndarray, masks: np.ndarray, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    masked = masks.any((1, 2)) & ~masks.all((1, 2))
    altered = (masks if lesion else ~masks) & masked[:, None, None]
    background = (~masks)[..., None]
    colour = (pixels * background).sum((1, 2)) / background.sum((1, 2)).clip(min=1)
    return np.where(altered[..., None], colour[:, None, None].round().astype(np.uint8), pixels), altered


def trap_change(before: torch.Tensor, after: torch.Tensor, altered: np.ndarray) -> np.ndarray:
    """The change of the melanoma score (N,), NaN where the trap altered nothing."""
    change = (after - before).cpu().numpy().astype(np.float64)
    return np.where(altered.any((1, 2)), change, np.nan)
