"""Every measure of a map, which way is better, and all of them for a batch of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import fidelity
from .attributions import map_problems
from .fidelity import Scorer, seeded_noise
from .localisation import localisation


@dataclass(frozen=True)
class Measure:
    """A measure of a map: `title` and `meaning` are what the page says, `better` is `higher` or `lower`.

    `compared` with controls or not; shown `by_group` on the page or not (groups.csv has all).
    """

    title: str
    better: str
    meaning: str
    compared: bool = True
    by_group: bool = False


MEASURES = {
    "fidelity_blacken": Measure(
        "fidelity, blackened",
        "higher",
        "mean |change of the score| when the pixels above the 5th to 95th percentile of the positive attribution turn "
        "black (the original study's)",
        by_group=True,
    ),
    "fidelity_randomise": Measure("fidelity, randomised", "higher", "the same with random pixels in their place"),
    "insertion_blur": Measure(
        "insertion AUC, blur", "higher", "area under the score, most relevant pixels inserted into a blur (RISE)"
    ),
    "insertion_mean": Measure("insertion AUC, mean", "higher", "the same into the image's mean colour"),
    "deletion_blur": Measure(
        "deletion AUC, blur", "lower", "area under the score, most relevant pixels blurred first (RISE)", by_group=True
    ),
    "deletion_mean": Measure("deletion AUC, mean", "lower", "the same by the image's mean colour"),
    "road_most": Measure(
        "ROAD, most relevant first",
        "lower",
        "mean change of the score, 20 to 80 % of the pixels removed and imputed from their neighbours",
        by_group=True,
    ),
    "road_least": Measure("ROAD, least relevant first", "higher", "the same from the other end"),
    "average_drop": Measure("average drop", "lower", "share of the score lost on image times map (Grad-CAM++)"),
    "average_increase": Measure("average increase", "higher", "share of images whose score rises on image times map"),
    "infidelity": Measure(
        "infidelity", "lower", "captum's, normalised, for random squares of mean colour", by_group=True
    ),
    "max_sensitivity": Measure(
        "max-sensitivity",
        "lower",
        "captum's: largest relative change of the map under noise of 2 % of the range",
        compared=False,  # a map that ignores the image never changes, so that a control's says nothing
    ),
    "energy_in_mask": Measure("energy in mask", "higher", "share of the positive attribution inside the lesion mask"),
    "pointing_game": Measure("pointing game", "higher", "share of maps whose maximum lies in the mask", by_group=True),
    "iou": Measure("IoU at matched area", "higher", "overlap of the mask with as many of the most relevant pixels"),
    "energy_in_mask_ratio": Measure(
        "energy in mask / area", "higher", "divided by the lesion's share of the image", by_group=True
    ),
    "pointing_game_ratio": Measure("pointing game / area", "higher", "divided by the lesion's share of the image"),
    "iou_ratio": Measure("IoU / area", "higher", "divided by the lesion's share of the image"),
}
COMPARED = tuple(name for name, measure in MEASURES.items() if measure.compared)


@dataclass(frozen=True)
class Probes:
    """A batch of images as the measures need them, made once for all maps of it.

    images float32 (N, 3, H, W) in [0, 1]; targets int64 (N,); scores (N,) of the targets; masks bool (N, H, W), all
    False where an image has none. The rest is drawn with a seed for each image.
    """

    images: torch.Tensor
    targets: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor
    picture: torch.Tensor
    normal: torch.Tensor
    ties: torch.Tensor
    squares: torch.Tensor
    baselines: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def make(
        cls,
        scorer: Scorer,
        images: torch.Tensor,
        targets: torch.Tensor,
        masks: torch.Tensor,
        ids: list[str],
        seed: int,
    ) -> "Probes":
        picture = seeded_noise(ids, seed, "picture", tuple(images.shape[1:]), images)
        uniform = seeded_noise(ids, seed, "road", tuple(images.shape[1:]), images)
        baselines = {"blur": fidelity.blurred(images), "mean": images.mean((2, 3), keepdim=True).expand_as(images)}
        return cls(
            images=images,
            targets=targets,
            scores=scorer(images, targets),
            masks=masks,
            picture=picture,
            normal=torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)),
            ties=seeded_noise(ids, seed, "ties", tuple(images.shape[2:]), images),
            squares=fidelity.square_masks(ids, seed, images),
            baselines={name: (values, scorer(values, targets)) for name, values in baselines.items()},
        )


def measure_maps(
    scorer: Scorer, probes: Probes, maps: torch.Tensor
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All of COMPARED for maps (N, H, W), each float64 (N,), and the study's curves (N, 19) by `blacken`, `randomise`.

    NaN where a map has a problem, and for localisation where an image has no mask.
    """
    usable = torch.tensor([not problem for problem in map_problems(maps)], device=maps.device)
    maps = torch.where(usable[:, None, None], maps, probes.ties)
    images, targets, scores = probes.images, probes.targets, probes.scores
    ranks = fidelity.relevance_rank(maps, probes.ties)
    curves: dict[str, Any] = {}
    curves["blacken"], curves["randomise"] = fidelity.study_curves(
        scorer, images, maps, targets, scores, probes.picture
    )
    values = {f"fidelity_{name}": curve.mean(1) for name, curve in curves.items()}
    for name, (baseline, its_scores) in probes.baselines.items():
        areas = fidelity.insertion_deletion(scorer, images, baseline, its_scores, ranks, targets, scores)
        values[f"insertion_{name}"], values[f"deletion_{name}"] = areas
    values["road_most"], values["road_least"] = fidelity.road(scorer, images, ranks, targets, scores, probes.normal)
    values["average_drop"], values["average_increase"] = fidelity.average_drop(scorer, images, maps, targets, scores)
    values["infidelity"] = fidelity.infidelity(scorer, images, maps, targets, probes.squares)
    values |= localisation(maps, ranks, probes.masks)
    return {name: _rows(values[name], usable) for name in COMPARED}, {
        name: _rows(curve, usable) for name, curve in curves.items()
    }


def _rows(values: torch.Tensor, usable: torch.Tensor) -> np.ndarray:
    usable = usable.view(-1, *[1] * (values.ndim - 1))
    return torch.where(usable, values, torch.nan).double().cpu().numpy()
