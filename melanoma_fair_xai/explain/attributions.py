"""Attribution maps by captum: which places of an image speak for the class that is asked about."""

import copy

import captum.attr
import torch
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.images import Preprocessing

from .layers import find_layer, grid_module
from .methods import METHODS


class LogOdds(nn.Module):
    """Images in [0, 1] to (N, 2): the log-odds of `not melanoma` and of `melanoma`, which are each other's negative.

    For two classes the second is the difference of the logits, all that their softmax depends on; with more classes,
    those that mean melanoma are taken together, as the score does.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, positive: list[int]):
        super().__init__()
        self.model = model
        self.positive = positive
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(3, 1, 1), persistent=False)

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
        method: one of METHODS, by name.
        input_size: (3, height, width).
        layer: by name, for a method that takes one; default: the last stage.
        batch_size: how many images a forward pass may take.

    Raises:
        UserError: an unknown method or layer, or a net without what the method works on.
    """

    def __init__(
        self,
        net: LogOdds,
        method: str,
        input_size: tuple[int, int, int],
        layer: str | None = None,
        batch_size: int = 64,
    ):
        if method not in METHODS:
            raise UserError(f"--method {method}: unknown; choose one of {', '.join(METHODS)}")
        self.net = copy.deepcopy(net).eval()
        self.method, self.size, self.batch_size = METHODS[method], tuple(input_size[1:]), batch_size
        for module in self.net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # an activation that overwrites its input hides it from captum's hooks
        needs = self.method.needs
        if needs and not any(isinstance(module, getattr(nn, needs)) for module in self.net.modules()):
            raise UserError(
                f"--method {method}: it works on {needs} layers, and this model has none\n"
                f"choose another of {', '.join(METHODS)}"
            )
        self.layer = find_layer(self.net.model, input_size, layer) if self.method.takes_layer else None
        of = [self.net] if self.layer is None else [self.net, grid_module(self.net.model, self.layer)]
        self.algorithm = getattr(captum.attr, self.method.algorithm)(*of)

    @property
    def grid(self) -> tuple[int, int]:
        """How finely the method resolves an image, (height, width)."""
        return self.method.grid(self)

    def mean_colour(self, images: torch.Tensor) -> torch.Tensor:
        """The colour that the net takes for zero, as one image (1, 3, H, W) of the size of `images`."""
        return self.net.mean.expand_as(images[:1])

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Maps float32 (N, H, W), channels summed; what speaks for the target is positive.

        Args:
            images: float32 (N, 3, H, W) in [0, 1].
            targets: int64 (N,): 1 for melanoma, 0 for its absence.
            seeds: one per image, for a method that draws noise.
        """
        return self.method.attribute(self, images.detach().requires_grad_(), targets, seeds).detach()


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
