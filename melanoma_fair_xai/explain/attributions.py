"""Attribution maps by captum: which places of an image speak for the class that is asked about."""

import copy
import warnings
from typing import Any

import captum.attr
import torch
from torch import nn

from melanoma_fair_xai.base.errors import UserError

from .layers import MapLayer, find_layer, grid_module

METHODS = {
    "gradcam": "Grad-CAM (Selvaraju et al. 2017)",
    "guided_gradcam": "guided Grad-CAM (Selvaraju et al. 2017)",
    "integrated_gradients": "integrated gradients from the mean colour (Sundararajan et al. 2017)",
    "smoothgrad": "SmoothGrad (Smilkov et al. 2017)",
    "occlusion": "occlusion by the mean colour (Zeiler and Fergus 2014)",
}
NOISE = 0.15  # SmoothGrad's standard deviation on images in [0, 1]; its paper advises 0.1 to 0.2
NOISE_SAMPLES = 16
PATH_STEPS = 32
WINDOWS = 8  # occluding windows along a side; each moves by half its width


class LogOdds(nn.Module):
    """Images in [0, 1] to (N, 2): the log-odds of `not melanoma` and of `melanoma`, which are each other's negative.

    For two classes the second is the difference of the logits, all that their softmax depends on; with more classes,
    those that mean melanoma are taken together, as the score does.
    """

    def __init__(self, model: nn.Module, data_config: dict[str, Any], positive: list[int]):
        super().__init__()
        self.model = model
        self.positive = positive
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(data_config[name]).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model((images - self.mean) / self.std)
        is_positive = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        is_positive[self.positive] = True
        log_odds = logits[:, is_positive].logsumexp(1) - logits[:, ~is_positive].logsumexp(1)
        return torch.stack([-log_odds, log_odds], dim=1)


class Explainer:
    """A net and a method; a call gives maps.

    Args:
        net: the published classifier as `LogOdds`, in evaluation mode; it is copied.
        method: one of METHODS.
        input_size: (3, height, width).
        layer: of Grad-CAM, by name; default: the last stage. Other methods do not need one.
        batch_size: how many images a forward pass may take.

    Raises:
        UserError: an unknown layer, or a net without the rectifiers that guided Grad-CAM works on.
    """

    def __init__(
        self,
        net: LogOdds,
        method: str,
        input_size: tuple[int, int, int],
        layer: str | None = None,
        batch_size: int = 64,
    ):
        self.net = copy.deepcopy(net).eval()
        self.method, self.size, self.batch_size = method, tuple(input_size[1:]), batch_size
        for module in self.net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # an activation that overwrites its input hides it from captum's hooks
        self.layer: MapLayer | None = None
        if method in ("gradcam", "guided_gradcam"):
            self.layer = find_layer(self.net.model, input_size, layer)
            module = grid_module(self.net.model, self.layer)
        if method == "gradcam":
            self.algorithm = captum.attr.LayerGradCam(self.net, module)
        elif method == "guided_gradcam":
            if not any(isinstance(child, nn.ReLU) for child in self.net.modules()):
                raise UserError(
                    "--method guided_gradcam: it changes the gradients of ReLU, and this model has none\n"
                    f"choose another of {', '.join(METHODS)}"
                )
            self.algorithm = captum.attr.GuidedGradCam(self.net, module)
        elif method == "integrated_gradients":
            self.algorithm = captum.attr.IntegratedGradients(self.net)
        elif method == "smoothgrad":
            self.algorithm = captum.attr.NoiseTunnel(captum.attr.Saliency(self.net))
        elif method == "occlusion":
            self.algorithm = captum.attr.Occlusion(self.net)
        else:
            raise UserError(f"--method {method}: unknown; choose one of {', '.join(METHODS)}")

    @property
    def grid(self) -> tuple[int, int]:
        """How finely the method resolves an image: the layer's grid for Grad-CAM, else the image's own pixels."""
        return self.layer.grid if self.method == "gradcam" else self.size

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Maps float32 (N, H, W), channels summed; what speaks against the target is negative (zero for Grad-CAM).

        Args:
            images: float32 (N, 3, H, W) in [0, 1].
            targets: int64 (N,): 1 for melanoma, 0 for its absence.
            seeds: one per image, for the noise of SmoothGrad.
        """
        if self.method == "gradcam":
            maps = self.algorithm.attribute(images, targets, relu_attributions=True)
            return captum.attr.LayerAttribution.interpolate(maps, self.size, "bilinear")[:, 0].detach()
        images = images.detach().requires_grad_(self.method != "occlusion")
        if self.method == "guided_gradcam":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that hooks are set, and removed afterwards
                return self.algorithm.attribute(images, targets, interpolate_mode="bilinear").sum(1).detach()
        if self.method == "integrated_gradients":
            baseline = self.net.mean.expand_as(images[:1])
            options = {"n_steps": PATH_STEPS, "internal_batch_size": max(self.batch_size, len(images))}
            return self.algorithm.attribute(images, baseline, targets, **options).sum(1).detach()
        if self.method == "occlusion":
            return self._occlude(images, targets)
        return torch.cat([self._smooth(*item) for item in zip(images.split(1), targets, seeds, strict=True)])

    def _occlude(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        window = [max(2, side // WINDOWS) for side in self.size]
        with torch.no_grad():
            maps = self.algorithm.attribute(
                images,
                (3, *window),
                strides=(3, *(side // 2 for side in window)),
                baselines=self.net.mean.expand_as(images[:1]),
                target=targets,
                perturbations_per_eval=max(1, self.batch_size // len(images)),
            )
        return maps.mean(1)  # windows cover all channels at once, so each channel carries the same value

    def _smooth(self, image: torch.Tensor, target: torch.Tensor, seed: int) -> torch.Tensor:
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            options = {"nt_samples": NOISE_SAMPLES, "stdevs": NOISE, "abs": False}
            gradient = self.algorithm.attribute(image, nt_type="smoothgrad", target=target[None], **options)
        return gradient.abs().sum(1).detach()


def map_problems(maps: torch.Tensor) -> list[str]:
    """For each map (N, H, W): `not finite`, `constant`, `nothing positive`, or an empty string if it can be used."""
    flat = maps.flatten(1)
    finite = flat.isfinite().all(1).tolist()
    constant = (flat.amax(1) == flat.amin(1)).tolist()
    positive = (flat.amax(1) > 0).tolist()
    return [
        "not finite" if not f else "constant" if c else "" if p else "nothing positive"
        for f, c, p in zip(finite, constant, positive, strict=True)
    ]
