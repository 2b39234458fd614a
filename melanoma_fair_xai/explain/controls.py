"""What a map has to beat: maps that know nothing of the net, and maps of nets that know nothing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import nn

from melanoma_fair_xai.base.seeding import sample_generator

from .measures import Probes

CENTRE_SIGMA = 0.2  # in widths of the image
CASCADE = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the layers that are shuffled, from the last on; 0 the last alone


def random_map(noise: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Uniform noise (N, h, w) brought to (N, *size) as Grad-CAM is, so that it is as smooth as the method's map."""
    return F.interpolate(noise[:, None], size, mode="bilinear")[:, 0]


def centre_map(images: torch.Tensor) -> torch.Tensor:
    """exp(-r^2 / 2 sigma^2) around the centre of each image: (N, H, W)."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(
        (torch.arange(height, device=images.device) + 0.5) / height - 0.5,
        (torch.arange(width, device=images.device) + 0.5) / width - 0.5,
        indexing="ij",
    )
    return torch.exp(-(x**2 + y**2) / (2 * CENTRE_SIGMA**2)).expand(len(images), -1, -1)


def edge_map(images: torch.Tensor) -> torch.Tensor:
    """The gradient's length of the mean over channels, by Sobel's filters: (N, H, W)."""
    across = images.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    padded = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    return gradient.norm(dim=1)


def mask_map(masks: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The mask as a map: 1 inside and 0 outside, lowered by up to a thousandth at random to put pixels in an order."""
    return masks * (1 - 1e-3 * noise)


@dataclass(frozen=True)
class Control:
    """A control: `title`, `meaning` and `colour` are those of the page.

    `make` gives maps (N, H, W) of a batch's probes, of noise on the method's grid, and of the shuffled net's maps.
    Where it is `told` the truth it shows what the best map could reach, and is no rival.
    """

    title: str
    meaning: str
    colour: str  # of Okabe and Ito's, which the colour-blind can tell apart
    make: Callable[[Probes, torch.Tensor, torch.Tensor], torch.Tensor]
    told: bool = False


CONTROLS = {
    "random": Control(
        "random",
        "random values on the method's grid",
        "#999999",
        lambda probes, noise, _: random_map(noise, tuple(probes.images.shape[2:])),
    ),
    "centre": Control(
        "centre", "a Gaussian at the centre of the image", "#E69F00", lambda probes, *_: centre_map(probes.images)
    ),
    "edges": Control("edges", "the image's own edges (Sobel)", "#56B4E9", lambda probes, *_: edge_map(probes.images)),
    "mask": Control(
        "mask",
        "the lesion mask, its pixels in random order",
        "#009E73",
        lambda probes, *_: mask_map(probes.masks, probes.ties),
        told=True,
    ),
    "randomised": Control(
        "shuffled net", "the same method on the net with all its weights shuffled", "#CC79A7", lambda *given: given[2]
    ),
}
RIVALS = {name: control for name, control in CONTROLS.items() if not control.told}


def weighted_layers(model: nn.Module) -> list[str]:
    """The modules with parameters of their own, in the order of the model's definition, the last layer last."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


@torch.no_grad()
def shuffled(model: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy of `model` in which this share of the layers, from the last on and at least one, has shuffled weights.

    Each tensor keeps its values and loses their order, so that activations keep about their scale. Adebayo et al.,
    "Sanity checks for saliency maps" (NeurIPS 2018), section 3.1, cascading randomisation.
    """
    model = copy.deepcopy(model)
    layers = weighted_layers(model)[::-1]
    for name in layers[: max(1, round(share * len(layers)))]:
        for own, parameter in model.get_submodule(name).named_parameters(recurse=False):
            order = sample_generator(seed, "shuffle", name, own).permutation(parameter.numel())
            parameter.copy_(parameter.flatten()[torch.from_numpy(order).to(parameter.device)].view_as(parameter))
    return model


def map_similarity(maps: torch.Tensor, others: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's rank correlation and SSIM (Wang et al. 2004) of each pair of maps (N, H, W), float64 (N,) in [-1, 1].

    For SSIM each map is scaled to [0, 1]. NaN where either map is constant or not finite.
    """
    pairs = [values.detach().cpu().numpy().astype(np.float64) for values in (maps, others)]
    spearman, ssim = np.full((2, len(maps)), np.nan)
    for row, (first, second) in enumerate(zip(*pairs, strict=True)):
        if not all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (first, second)):
            continue
        spearman[row] = scipy.stats.spearmanr(first, second, axis=None).statistic
        scaled = [(values - values.min()) / np.ptp(values) for values in (first, second)]
        ssim[row] = structural_similarity(*scaled, data_range=1.0)
    return spearman, ssim
