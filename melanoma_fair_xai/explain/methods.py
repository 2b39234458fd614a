"""The attribution methods, a row each: adding one is adding a row.

This module loads neither captum nor torch, so that `explain.py --help` can name the methods at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .attributions import Explainer

NOISE = 0.15  # SmoothGrad's standard deviation on images in [0, 1]; its paper advises 0.1 to 0.2
NOISE_SAMPLES = 16
PATH_STEPS = 32
WINDOWS = 8  # occluding windows along a side; each moves by half its width


def _summed(explainer, images, targets, seeds):
    return explainer.algorithm.attribute(images, target=targets).sum(1)


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        title: its name, with its source.
        algorithm: its class in captum.attr, made of the net, and of the layer's module where it `takes_layer`.
        attribute: how that is asked for maps (N, H, W): takes the explainer, and what an explainer's call takes.
        takes_layer: whether --layer means something to it.
        signed: whether what speaks against the target is negative, or else no value is.
        needs: the class of torch.nn that it works on; a net without it is refused.
        grid: how finely it resolves an image, (height, width).
    """

    title: str
    algorithm: str
    attribute: Callable[[Explainer, torch.Tensor, torch.Tensor, list[int]], torch.Tensor] = _summed
    takes_layer: bool = False
    signed: bool = True
    needs: str = ""
    grid: Callable[[Explainer], tuple[int, int]] = lambda explainer: explainer.size


def _grad_cam(explainer, images, targets, seeds):
    from captum.attr import LayerAttribution

    maps = explainer.algorithm.attribute(images, targets, relu_attributions=True)
    return LayerAttribution.interpolate(maps, explainer.size, "bilinear")[:, 0]


def _guided_grad_cam(explainer, images, targets, seeds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that hooks are set, and removed afterwards
        return explainer.algorithm.attribute(images, targets, interpolate_mode="bilinear").sum(1)


def _integrated_gradients(explainer, images, targets, seeds):
    options = {"n_steps": PATH_STEPS, "internal_batch_size": max(explainer.batch_size, len(images))}
    return explainer.algorithm.attribute(images, explainer.mean_colour(images), targets, **options).sum(1)


def _smooth_grad(explainer, images, targets, seeds):
    import torch
    from captum.attr import NoiseTunnel

    tunnel = NoiseTunnel(explainer.algorithm)
    options = {"nt_type": "smoothgrad", "nt_samples": NOISE_SAMPLES, "stdevs": NOISE, "abs": False}
    maps = []
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        for image, target, seed in zip(images.split(1), targets, seeds, strict=True):
            torch.manual_seed(seed)
            maps.append(tunnel.attribute(image, target=target[None], **options).abs().sum(1))
    return torch.cat(maps)


def _occlusion(explainer, images, targets, seeds):
    import torch

    window = [max(2, side // WINDOWS) for side in explainer.size]
    with torch.no_grad():
        maps = explainer.algorithm.attribute(
            images,
            (3, *window),
            strides=(3, *(side // 2 for side in window)),
            baselines=explainer.mean_colour(images),
            target=targets,
            perturbations_per_eval=max(1, explainer.batch_size // len(images)),
        )
    return maps.mean(1)  # windows cover all channels at once, so each channel carries the same value


METHODS = {
    "gradcam": Method(
        "Grad-CAM (Selvaraju et al. 2017)",
        "LayerGradCam",
        _grad_cam,
        takes_layer=True,
        signed=False,
        grid=lambda explainer: explainer.layer.grid,
    ),
    "guided_gradcam": Method(
        "guided Grad-CAM (Selvaraju et al. 2017)", "GuidedGradCam", _guided_grad_cam, takes_layer=True, needs="ReLU"
    ),
    "integrated_gradients": Method(
        "integrated gradients from the mean colour (Sundararajan et al. 2017)",
        "IntegratedGradients",
        _integrated_gradients,
    ),
    "smoothgrad": Method("SmoothGrad (Smilkov et al. 2017)", "Saliency", _smooth_grad, signed=False),
    "occlusion": Method(
        "occlusion by the mean colour (Zeiler and Fergus 2014)",
        "Occlusion",
        _occlusion,
        grid=lambda explainer: tuple(side // (max(2, side // WINDOWS) // 2) for side in explainer.size),
    ),
}
