"""How far a map tells what the score depends on: pixels are changed in its order, and the score is watched.

Images are float32 (N, 3, H, W) in [0, 1], maps (N, H, W), scores the probability of the target in [0, 1]. All copies
of a batch of images are built by comparing ranks or thresholds at once, and go through the net in full batches.
"""

import warnings
from collections.abc import Callable

import captum.metrics
import numpy as np
import torch
import torchvision.transforms.functional as TF

from melanoma_fair_xai.base.seeding import sample_generator

from .attributions import LogOdds
from .imputation import impute

PERCENTILES = tuple(range(5, 100, 5))  # the original study's
FRACTIONS = tuple(step / 10 for step in range(1, 10))  # of the pixels, for insertion and deletion
ROAD_PERCENT = (20, 40, 60, 80)
ROAD_NOISE = 0.01
BLUR = 0.05  # standard deviation, in widths of the image: lesions lose structure and border, and keep their place
INFIDELITY_SAMPLES = 10
SENSITIVITY_SAMPLES = 4
SENSITIVITY_RADIUS = 0.02


class Scorer:
    """Calibrated scores of many images in batches under inference mode."""

    def __init__(self, net: LogOdds, batch_size: int = 64):
        self.net, self.batch_size = net.eval(), batch_size
        self.is_frozen = False

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The probability float32 (N,) of each image's target (1 melanoma, 0 its absence)."""
        if images.device.type == "cpu" and not self.is_frozen:
            # Batch norms and activations become parts of the convolutions: faster, and the same to about 1e-6.
            self.net, self.is_frozen = _frozen(self.net, images[:2]), True
        log_odds = torch.cat([self.net(batch) for batch in images.split(self.batch_size)])
        return log_odds.gather(1, targets[:, None])[:, 0].sigmoid()

    def copies(self, copies: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scores (N, K) of K copies (N, K, 3, H, W) of each of N images."""
        return self(copies.flatten(0, 1), targets.repeat_interleave(copies.shape[1])).view(copies.shape[:2])


def _frozen(net: LogOdds, images: torch.Tensor) -> torch.nn.Module:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes, which are the same for all images
        return torch.jit.freeze(torch.jit.trace(net, images, check_trace=False))


def seeded_noise(ids: list[str], seed: int, purpose: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Uniform noise in [0, 1), float32 (N, *shape), from a generator for each image and purpose."""
    noise = [sample_generator(seed, purpose, name).random(shape, dtype=np.float32) for name in ids]
    return torch.from_numpy(np.stack(noise)).to(like.device)


# --- the original study's curve --------------------------------------------------------------------------------------


def study_curves(
    scorer: Scorer,
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: torch.Tensor,
    scores: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """|change of the score| (N, 19), at PERCENTILES, when pixels are blackened, and when `noise` replaces them.

    Changed are the pixels whose value lies above a percentile of the map's positive values. `scores` (N,) are those of
    the images as they are, `noise` (N, 3, H, W) in [0, 1] is one picture per image. NaN where no value is positive.
    """
    values = maps.flatten(1).double()
    positive = torch.where(values > 0, values, torch.nan)
    # In double precision, as NumPy has it: a threshold that is rounded past a pixel's value would add that pixel.
    at = torch.tensor(PERCENTILES, dtype=torch.float64, device=maps.device) / 100
    thresholds = positive.nanquantile(at, dim=1).T
    above = values[:, None] > thresholds[:, :, None]
    above = above.view(len(maps), len(PERCENTILES), 1, *maps.shape[1:])
    curves = []
    for fill in (images.new_zeros(()), noise[:, None]):
        changed = scorer.copies(torch.where(above, fill, images[:, None]), targets)
        curves.append(torch.where(thresholds.isnan(), torch.nan, (changed - scores[:, None]).abs()))
    return curves[0], curves[1]


# --- insertion, deletion, ROAD: pixels in order of rank --------------------------------------------------------------


def relevance_rank(maps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Each pixel's place in the map's order, float32 (N, H, W) in [0, 1): 0 for the most relevant.

    `noise` (N, H, W) orders pixels of equal value; without it, the zeros of a Grad-CAM would go from the upper left
    corner on.
    """
    shuffled = noise.flatten(1).argsort(dim=1)
    order = shuffled.gather(1, maps.flatten(1).gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(order.shape[1], device=maps.device, dtype=torch.float32).expand_as(order)
    return torch.empty_like(places).scatter_(1, order, places).div(order.shape[1]).view_as(maps)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """The images under a Gaussian of BLUR widths."""
    sigma = BLUR * images.shape[-1]
    return TF.gaussian_blur(images, 2 * int(2 * sigma) + 1, sigma)


def insertion_deletion(
    scorer: Scorer,
    images: torch.Tensor,
    baseline: torch.Tensor,
    baseline_scores: torch.Tensor,
    ranks: torch.Tensor,
    targets: torch.Tensor,
    scores: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Areas (N,) in [0, 1] under the score: pixels inserted into `baseline`, and deleted from the image to it.

    The most relevant go first; trapezoids over the share of pixels. Petsiuk, Das and Saenko, "RISE" (BMVC 2018).
    """
    shares = torch.tensor(FRACTIONS, device=images.device).view(1, -1, 1, 1, 1)
    first = ranks[:, None, None] < shares
    inserted = scorer.copies(torch.where(first, images[:, None], baseline[:, None]), targets)
    deleted = scorer.copies(torch.where(first, baseline[:, None], images[:, None]), targets)
    at = torch.tensor((0.0, *FRACTIONS, 1.0), device=images.device)
    ends = scores[:, None], baseline_scores[:, None]
    insertion = torch.trapezoid(torch.cat([ends[1], inserted, ends[0]], 1), at)
    return insertion, torch.trapezoid(torch.cat([ends[0], deleted, ends[1]], 1), at)


def road(
    scorer: Scorer,
    images: torch.Tensor,
    ranks: torch.Tensor,
    targets: torch.Tensor,
    scores: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean change of the score (N,) when the most, and when the least relevant pixels are removed and imputed.

    Means over ROAD_PERCENT of the pixels; `noise` (N, 3, H, W) is standard normal. Rong et al. (ICML 2022).
    """
    shares = torch.tensor(ROAD_PERCENT, device=images.device).view(1, -1, 1, 1, 1) / 100
    changes = []
    for removed in (ranks[:, None, None] < shares, ranks[:, None, None] >= 1 - shares):
        copies = images[:, None].expand(-1, len(ROAD_PERCENT), -1, -1, -1)
        filled = impute(copies.flatten(0, 1), removed.flatten(0, 1)).view_as(copies)
        filled = torch.where(removed, filled + ROAD_NOISE * noise[:, None], filled)
        changes.append(scorer.copies(filled, targets).mean(1) - scores)
    return changes[0], changes[1]


# --- the image seen through its map ----------------------------------------------------------------------------------


def average_drop(
    scorer: Scorer, images: torch.Tensor, maps: torch.Tensor, targets: torch.Tensor, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop of the score as a share of it (N,) in [0, 1] and whether it rises (0 or 1), on image times map.

    The map's positive part is scaled to a maximum of 1. Chattopadhay et al., "Grad-CAM++" (WACV 2018), section 5.1.
    """
    weight = maps.clamp(min=0) / maps.amax((1, 2), keepdim=True)
    seen = scorer(images * weight[:, None], targets)
    return ((scores - seen) / scores).clamp(min=0), (seen > scores).to(scores.dtype)


# --- captum's infidelity and max-sensitivity -------------------------------------------------------------------------


def square_masks(ids: list[str], seed: int, images: torch.Tensor) -> torch.Tensor:
    """INFIDELITY_SAMPLES random squares per image, of a quarter to half its width: bool (N * samples, 1, H, W)."""
    height, width = images.shape[2:]
    draws = seeded_noise(ids, seed, "squares", (INFIDELITY_SAMPLES, 3), images).flatten(0, 1)
    side = (0.25 + 0.25 * draws[:, 0]) * width
    top, left = draws[:, 1] * (height - side), draws[:, 2] * (width - side)
    y = torch.arange(height, device=images.device)[None, :, None]
    x = torch.arange(width, device=images.device)[None, None, :]
    top, left, side = (value[:, None, None] for value in (top, left, side))
    return ((y >= top) & (y < top + side) & (x >= left) & (x < left + side))[:, None]


def infidelity(
    scorer: Scorer, images: torch.Tensor, maps: torch.Tensor, targets: torch.Tensor, squares: torch.Tensor
) -> torch.Tensor:
    """captum's normalised infidelity (N,), at least 0: how far the map fails to predict the change of the score.

    Random `squares` are set to the mean colour, and the map's sum over a square should foretell what that does. Yeh
    et al., "On the (in)fidelity and sensitivity of explanations" (NeurIPS 2019), eq. 1, scaled as in section 2.1.
    """

    def perturb(copies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A map says what a pixel contributes, not its slope: captum then wants the perturbation as 0 and 1.
        changed = torch.where(squares, copies.mean((2, 3), keepdim=True), copies)
        return squares.to(copies.dtype).expand_as(copies), changed

    attributions = (maps[:, None] / 3).expand_as(images)
    return captum.metrics.infidelity(
        lambda copies, target: scorer(copies, target),
        perturb,
        images,
        attributions,
        additional_forward_args=targets,
        n_perturb_samples=INFIDELITY_SAMPLES,
        normalize=True,
    )


def max_sensitivity(
    explain: Callable[[torch.Tensor, torch.Tensor, list[int]], torch.Tensor],
    images: torch.Tensor,
    maps: torch.Tensor,
    targets: torch.Tensor,
    ids: list[str],
    seed: int,
    seeds: list[int],
) -> torch.Tensor:
    """captum's max-sensitivity (N,): the largest relative change of the map under noise of +-SENSITIVITY_RADIUS.

    Yeh et al. (NeurIPS 2019), definition 2, by sampling.
    """
    shape = (SENSITIVITY_SAMPLES, *images.shape[1:])
    noise = (2 * seeded_noise(ids, seed, "sensitivity", shape, images) - 1) * SENSITIVITY_RADIUS

    def explained(inputs: tuple[torch.Tensor, ...] | torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor]:
        if isinstance(inputs, tuple):  # the images as they are, whose maps are known
            return (maps,)
        return (explain(inputs, target, [own for own in seeds for _ in range(SENSITIVITY_SAMPLES)]),)

    return captum.metrics.sensitivity_max(
        explained,
        images,
        lambda inputs: inputs + noise.flatten(0, 1),
        n_perturb_samples=SENSITIVITY_SAMPLES,
        target=targets,
    )
