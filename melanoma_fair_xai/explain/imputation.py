"""Filling removed pixels from their neighbours, so that the hole itself tells a net nothing (ROAD)."""

import torch
import torch.nn.functional as F

CACHED = 1 << 18  # values that a processor's cache holds: larger steps wait for memory
MAX_STEPS = 500


def impute(images: torch.Tensor, removed: torch.Tensor, tolerance: float = 3e-4) -> torch.Tensor:
    """Images float32 (N, C, H, W) with the removed pixels (bool (N, 1, H, W)) solved for from the others.

    A removed pixel is the weighted mean of its neighbours: one linear system per image and channel, symmetric and
    positive definite, solved by conjugate gradients from a coarse-to-fine start until no residual exceeds `tolerance`.
    At least one pixel of each image must be left.
    """
    size = len(images) if images.device.type != "cpu" else max(1, CACHED // images[0].numel())
    parts = zip(images.split(size), removed.split(size), strict=True)
    return torch.cat([_solve(*part, tolerance) for part in parts])


def _solve(images: torch.Tensor, removed: torch.Tensor, tolerance: float) -> torch.Tensor:
    if not removed.any():
        return images
    inside = neighbours(torch.ones_like(images[:1, :1]))  # less than 1 at the border
    filled = torch.where(removed, _solve_coarsely(images, removed, tolerance), images)
    residual = neighbours(filled).addcmul_(inside, filled, value=-1).mul_(removed)
    direction = residual.clone()
    power = _dot(residual, residual)
    for _ in range(MAX_STEPS):
        if residual.abs().max() <= tolerance:
            break
        applied = neighbours(direction).neg_().addcmul_(inside, direction).mul_(removed)
        step = power / _dot(direction, applied).clamp_(min=1e-20)
        filled.addcmul_(step, direction)
        residual.addcmul_(step, applied, value=-1)
        new_power = _dot(residual, residual)
        direction.mul_(new_power / power.clamp_(min=1e-20)).add_(residual)
        power = new_power
    return filled


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The inner product of each image's channels: (N, C, 1, 1)."""
    return torch.linalg.vecdot(first.flatten(2), second.flatten(2))[..., None, None]


def neighbours(values: torch.Tensor) -> torch.Tensor:
    """The sum of the direct neighbours (each 1/6) and the diagonal ones (1/12), zero beyond the border.

    Rong et al., "A consistent and efficient evaluation strategy for attribution methods" (ICML 2022), section 4.2. The
    weights are those of (1 2 1) across and down, without the centre; torch's convolution of one channel is slow.
    """
    across = 2 * values
    across[..., 1:] += values[..., :-1]
    across[..., :-1] += values[..., 1:]
    down = 2 * across
    down[..., 1:, :] += across[..., :-1, :]
    down[..., :-1, :] += across[..., 1:, :]
    return down.div_(12).sub_(values, alpha=1 / 3)


def _solve_coarsely(images: torch.Tensor, removed: torch.Tensor, tolerance: float) -> torch.Tensor:
    """The solution at half the resolution, where a pixel is known if one of its four is, brought back to this one."""
    known = (~removed).to(images.dtype)
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(images * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = _solve(means, weight == 0, tolerance)
    return F.interpolate(coarse, images.shape[2:], mode="bilinear")
