"""A batch of images explained: scores, maps, measures, controls and traps."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from dataset_scripts.phantom.drawing import ARTEFACT_BITS
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.classifier.export import ClassifierInfo

from . import controls
from .attributions import Explainer, LogOdds, map_problems
from .fidelity import Scorer, max_sensitivity, seeded_noise
from .localisation import energy_in
from .measures import Probes, measure_maps
from .traps import set_trap, trap_columns, trap_effect

ARTEFACT_ENERGIES = {artefact: f"energy_in_{artefact}" for artefact in ARTEFACT_BITS}  # columns
COPIES = 4  # an image and its copies take part in a forward pass together, so a batch holds fewer images


@dataclass(frozen=True)
class Options:
    """How to explain: a method and its layer, the target (`predicted` or `melanoma`), and the traps to set."""

    method: str = "gradcam"
    layer: str | None = None
    target: str = "predicted"
    traps: tuple[str, ...] = ()
    batch_size: int = 64
    seed: int = 0


@dataclass
class Images:
    """A batch of images: uint8 pixels (N, H, W, 3), masks bool (N, H, W) and artefact bits uint8 (N, H, W) or None."""

    ids: list[str]
    pixels: np.ndarray
    masks: np.ndarray | None = None
    artefacts: np.ndarray | None = None


@dataclass
class Explanations:
    """Row i of `table` and maps[i] (float32 (N, H, W)) are of one image; curves (N, 19) by (map, `blacken` or ...)."""

    table: pd.DataFrame
    maps: np.ndarray
    curves: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


class BatchExplainer:
    """A published classifier with its explainer, its scorer, and its copies with shuffled weights."""

    def __init__(self, model: nn.Module, info: ClassifierInfo, options: Options, device: torch.device):
        self.info, self.options, self.device = info, options, device
        input_size = info.preprocessing.input_size

        def explainer(network: nn.Module) -> Explainer:
            net = LogOdds(network, info.preprocessing, info.positive).to(device, memory_format=torch.channels_last)
            return Explainer(net, options.method, input_size, options.layer, options.batch_size)

        self.explain = explainer(model)
        net = LogOdds(model, info.preprocessing, info.positive).to(device, memory_format=torch.channels_last)
        self.score = Scorer(net, options.batch_size)
        self.shuffled = {share: explainer(controls.shuffled(model, share, options.seed)) for share in controls.CASCADE}

    def __call__(self, batch: Images) -> Explanations:
        """Explain images and measure the explanation; every random number hangs on the seed and an image's id."""
        images = self._images(batch.pixels)
        melanoma = torch.ones(len(images), dtype=torch.int64, device=self.device)
        scores = self.score(images, melanoma)
        decided = scores >= self.info.threshold
        targets = melanoma if self.options.target == "melanoma" else decided.long()
        masks = np.zeros(batch.pixels.shape[:3], dtype=bool) if batch.masks is None else batch.masks
        probes = Probes.make(
            self.score, images, targets, torch.from_numpy(masks).to(self.device), batch.ids, self.options.seed
        )
        seeds = self._seeds(batch.ids)
        shuffled = {share: explain(images, targets, seeds) for share, explain in self.shuffled.items()}
        noise = seeded_noise(batch.ids, self.options.seed, "random map", self.explain.grid, images)
        given = probes, noise, shuffled[1.0]
        maps = {"": self.explain(images, targets, seeds)}
        maps |= {name: control.make(*given) for name, control in controls.CONTROLS.items()}
        problems = map_problems(maps[""])

        columns: dict[str, Any] = {
            "image_id": batch.ids,
            "score": scores.double().cpu().numpy(),
            "decided": decided.cpu().numpy(),
            "target": [("not melanoma", "melanoma")[target] for target in targets.tolist()],
            "target_score": probes.scores.double().cpu().numpy(),
            "map_problem": problems,
        }
        curves = {}
        for name, values in maps.items():
            measured, its_curves = measure_maps(self.score, probes, values)
            columns |= {column_name(measure, name): numbers for measure, numbers in measured.items()}
            curves |= {(name, kind): curve for kind, curve in its_curves.items()}
        sensitivity = max_sensitivity(self.explain, images, maps[""], targets, batch.ids, self.options.seed, seeds)
        columns["max_sensitivity"] = np.where([not p for p in problems], sensitivity.double().cpu().numpy(), np.nan)
        for share, values in shuffled.items():
            spearman, ssim = controls.map_similarity(maps[""], values)
            columns |= {f"spearman_shuffled_{share:g}": spearman, f"ssim_shuffled_{share:g}": ssim}
        if batch.artefacts is not None:
            columns |= self._artefact_energy(maps, batch.artefacts)
        for trap in self.options.traps:
            columns |= self._trap(trap, batch, scores)
        return Explanations(pd.DataFrame(columns), maps[""].cpu().numpy(), curves)

    def _images(self, pixels: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2)
        return images.float().div(255)

    def _seeds(self, ids: list[str]) -> list[int]:
        return [int(sample_generator(self.options.seed, "attribution", name).integers(2**62)) for name in ids]

    def _artefact_energy(self, maps: dict[str, torch.Tensor], artefacts: np.ndarray) -> dict[str, np.ndarray]:
        """The energy of every map in the pixels of every artefact."""
        columns = {}
        for artefact, measure in ARTEFACT_ENERGIES.items():
            region = torch.from_numpy((artefacts & ARTEFACT_BITS[artefact]) > 0).to(self.device)
            for name, values in maps.items() if region.any() else ():
                columns[column_name(measure, name)] = energy_in(values, region).double().cpu().numpy()
        return columns

    def _trap(self, trap: str, batch: Images, scores: torch.Tensor) -> dict[str, np.ndarray]:
        pixels, altered = set_trap(trap, batch.pixels, batch.masks, batch.ids, self.options.seed)
        after = self.score(self._images(pixels), torch.ones_like(scores, dtype=torch.int64))
        effect = trap_effect(scores.cpu().numpy(), after.cpu().numpy(), self.info.threshold, altered)
        return dict(zip(trap_columns(trap), effect, strict=True))


def column_name(measure: str, control: str = "") -> str:
    """The column of a measure of the method's map, or of a control's."""
    return f"{measure}__{control}" if control else measure
