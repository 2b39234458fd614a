"""The layers of a timm model whose output is a map of places: listed, found by name, and seen as (N, C, H, W)."""

import difflib
import math
from dataclasses import dataclass

import torch
from torch import nn

from melanoma_fair_xai.base.errors import UserError

MIN_PLACES = 4  # a side, of the layer that is taken by default: a map of 2 x 2 places points nowhere


@dataclass(frozen=True)
class MapLayer:
    """A layer whose output has a grid of places. `layout` is NCHW, NHWC, or NLC (tokens, after `prefix` others)."""

    name: str
    kind: str
    channels: int
    grid: tuple[int, int]
    layout: str
    prefix: int = 0


@torch.inference_mode()
def map_layers(model: nn.Module, input_size: tuple[int, int, int]) -> list[MapLayer]:
    """Every layer of `model` that gives a map of at least 2 x 2 places for an image of `input_size`, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, torch.Tensor):
                shapes[name] = tuple(output.shape)

        return hook

    named = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_hook(note(name)) for name, module in named]
    try:
        model.eval()(torch.zeros(1, *input_size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    prefix = getattr(model, "num_prefix_tokens", 0)
    found = [_as_map(name, module, shapes[name], prefix) for name, module in named if name in shapes]
    return [layer for layer in found if layer is not None]


def _as_map(name: str, module: nn.Module, shape: tuple[int, ...], prefix: int) -> MapLayer | None:
    kind = type(module).__name__
    if len(shape) == 4:
        # Images are square, so a layout with channels at the end shows by its two equal sides in front.
        channels_last = shape[1] == shape[2] != shape[3]
        grid, channels = (shape[1:3], shape[3]) if channels_last else (shape[2:], shape[1])
        layer = MapLayer(name, kind, channels, grid, "NHWC" if channels_last else "NCHW")
    elif len(shape) == 3:
        side = math.isqrt(max(shape[1] - prefix, 0))
        if side**2 != shape[1] - prefix:
            return None
        layer = MapLayer(name, kind, shape[2], (side, side), "NLC", prefix)
    else:
        return None
    return layer if min(layer.grid) > 1 else None


def find_layer(model: nn.Module, input_size: tuple[int, int, int], name: str | None = None) -> MapLayer:
    """The layer called `name`, or else the last stage in timm's `feature_info` that has at least 4 x 4 places.

    In a model with a class token, that is the first norm of the last block: after it the class token looks at the
    other tokens for the last time, and what a later layer says of them no longer counts. UserError for a name that is
    no layer, or whose output is no map; it lists those that can be had.
    """
    layers = {layer.name: layer for layer in map_layers(model, input_size)}
    if name is None:
        name = _last_stage(model, layers)
    if name not in layers:
        known = dict(model.named_modules())
        problem = "its output is no map of places" if name in known else "no such layer"
        near = difflib.get_close_matches(name or "", layers, n=3, cutoff=0.4) + [n for n in layers if n.count(".") < 1]
        listed = ", ".join(dict.fromkeys(near)) or "none"
        raise UserError(f"--layer {name}: {problem}\nthis model has, among others, {listed}; --list_layers shows all")
    return layers[name]


def _last_stage(model: nn.Module, layers: dict[str, MapLayer]) -> str | None:
    stages = [stage["module"] for stage in getattr(model, "feature_info", None) or ()]
    fine = [name for name in (*layers, *stages) if name in layers and min(layers[name].grid) >= MIN_PLACES]
    name = fine[-1] if fine else next(reversed(layers), None)
    before_last_look = f"{name}.norm1"
    return before_last_look if before_last_look in layers and layers[name].prefix else name


def describe_layers(layers: list[MapLayer]) -> str:
    """A table for `--list_layers`."""
    width = max((len(layer.name) for layer in layers), default=5) + 2
    rows = [f"{'layer':<{width}}{'type':<24}{'channels':>8}  grid"]
    rows += [
        f"{layer.name:<{width}}{layer.kind:<24}{layer.channels:>8}  {layer.grid[0]} x {layer.grid[1]}"
        for layer in layers
    ]
    return "\n".join(rows)


class _ToGrid(nn.Module):
    """(N, H, W, C), or tokens (N, prefix + H * W, C), as (N, C, H, W); the prefix is kept for `_FromGrid`."""

    def __init__(self, layer: MapLayer):
        super().__init__()
        self.layer = layer
        self.kept: torch.Tensor | None = None

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        if self.layer.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        self.kept, tokens = output[:, : self.layer.prefix], output[:, self.layer.prefix :]
        return tokens.transpose(1, 2).unflatten(2, self.layer.grid)


class _FromGrid(nn.Module):
    def __init__(self, to_grid: _ToGrid):
        super().__init__()
        self.to_grid = [to_grid]  # in a list, so that it is not a submodule twice

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        to_grid = self.to_grid[0]
        if to_grid.layer.layout == "NHWC":
            return grid.permute(0, 2, 3, 1)
        return torch.cat([to_grid.kept, grid.flatten(2).transpose(1, 2)], dim=1)


def grid_module(model: nn.Module, layer: MapLayer) -> nn.Module:
    """The module in `model` that gives the layer's output as (N, C, H, W), which Grad-CAM can average over places.

    For tokens and channels-last layouts, two reshapings are put behind the layer in `model`; its function stays.
    """
    module = model.get_submodule(layer.name)
    if layer.layout == "NCHW":
        return module
    to_grid = _ToGrid(layer)
    parent, _, child = layer.name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Sequential(module, to_grid, _FromGrid(to_grid)))
    return to_grid
