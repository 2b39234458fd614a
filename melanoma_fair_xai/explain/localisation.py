"""Where a map lies: against the lesion's mask, or against any other region that is known."""

import torch


def energy_in(maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The share (N,) in [0, 1] of each map's positive values that lies in its region (bool (N, H, W)).

    Wang et al., "Score-CAM" (CVPR workshops 2020), section 4.3, the energy-based pointing game. NaN for an empty
    region and for a map without positive values.
    """
    positive = maps.clamp(min=0)
    energy = (positive * regions).sum((1, 2)) / positive.sum((1, 2))
    return torch.where(regions.any(2).any(1), energy, torch.nan)


def pointing_game(maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Whether (0 or 1) the maximum of each map lies in its region, float32 (N,); of several maxima, their share.

    Zhang et al., "Top-down neural attention by excitation backprop" (ECCV 2016), section 4.1, without its tolerance.
    """
    highest = maps == maps.amax((1, 2), keepdim=True)
    hits = (highest & regions).sum((1, 2)) / highest.sum((1, 2))
    return torch.where(regions.any(2).any(1), hits, torch.nan)


def iou_at_matched_area(ranks: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Intersection over union (N,) of each region with as many of the most relevant pixels (`ranks`: see fidelity)."""
    area = regions.flatten(1).float().mean(1)
    chosen = ranks < area[:, None, None]
    union = (chosen | regions).sum((1, 2))
    return torch.where(area > 0, (chosen & regions).sum((1, 2)) / union, torch.nan)


def localisation(maps: torch.Tensor, ranks: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three measures, each also divided by the mask's share of the image, which a blind guess would reach."""
    share = masks.flatten(1).float().mean(1)
    values = {
        "energy_in_mask": energy_in(maps, masks),
        "pointing_game": pointing_game(maps, masks),
        "iou": iou_at_matched_area(ranks, masks),
    }
    return values | {f"{name}_ratio": value / share for name, value in values.items()}
