"""The two networks by size: presets, creation, and what they need."""

import math
import time

import accelerate
import diffusers
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.diffusion.data import Conditions
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner

CHANNEL_UNIT = 16  # channels of an attention head, and of two norm groups


def create_networks(
    conditions: Conditions,
    *,
    resolution: int,
    block_out_channels: list[int],
    layers_per_block: int,
    attention_resolutions: list[int],
    haar_levels: int = 0,
    dropout: float = 0.0,
) -> tuple[diffusers.UNet2DModel, LesionConditioner]:
    """A UNet that takes the conditioner's vector as `class_labels`, and the conditioner.

    Each of `haar_levels` makes four bands of half the resolution of every one; the UNet halves what they leave once
    per block but the first, and attends where its resolution is one of `attention_resolutions`. UserError where it
    cannot.
    """
    halvings = haar_levels + len(block_out_channels) - 1
    if resolution < 1 or resolution % 2**halvings:
        bands = f"--haar_levels {haar_levels} and " if haar_levels else ""
        raise UserError(
            f"--resolution {resolution}: cannot be halved {halvings} times, as {bands}{len(block_out_channels)} "
            f"--block_out_channels want; give a multiple of {2**halvings}"
        )
    for channels in block_out_channels:
        if channels < 1 or channels % CHANNEL_UNIT:
            raise UserError(f"--block_out_channels {channels}: give multiples of {CHANNEL_UNIT}")
    size, channels = resolution // 2**haar_levels, 3 * 4**haar_levels
    attends = [size // 2**level in attention_resolutions for level in range(len(block_out_channels))]
    unet = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        norm_num_groups=CHANNEL_UNIT // 2,
        attention_head_dim=CHANNEL_UNIT,
        class_embed_type="identity",
        dropout=dropout,
    )
    return unet, LesionConditioner(4 * block_out_channels[0], **conditions.config())


def count_parameters(*networks: torch.nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def image_size(unet: diffusers.UNet2DModel) -> int:
    """Pixels along a side of an image that the UNet makes, of its bands or as it is."""
    return unet.config.sample_size * math.isqrt(unet.config.in_channels // 3)


def forward_flops(unet: diffusers.UNet2DModel) -> int:
    """Floating-point operations of a forward pass of one image, a multiplication and an addition being two."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        _fake_forward(diffusers.UNet2DModel.from_config(unet.config))
    return counter.get_total_flops()


def _fake_forward(unet: diffusers.UNet2DModel) -> torch.Tensor:
    size, vector = unet.config.sample_size, torch.empty(1, unet.time_embedding.linear_2.out_features)
    return unet(torch.empty(1, unet.config.in_channels, size, size), torch.zeros(1), vector).sample


def training_rate(unet: diffusers.UNet2DModel, batch_size: int, accelerator: accelerate.Accelerator) -> float:
    """Images/s of a forward and a backward pass: the second of two batches, on a CPU of at most four images."""
    device = accelerator.device
    number = min(batch_size, 4) if device.type == "cpu" else batch_size
    unet.train().to(memory_format=torch.channels_last)
    images = torch.randn(number, unet.config.in_channels, *[unet.config.sample_size] * 2, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    vectors = torch.zeros(number, unet.time_embedding.linear_2.out_features, device=device)
    for _ in range(2):
        started = time.perf_counter()
        with accelerator.autocast():
            output = unet(images, torch.zeros(number, device=device), vectors).sample
        output.float().square().mean().backward()
        float(next(unet.parameters()).grad.sum())  # waits for the device
    return number / (time.perf_counter() - started)


def training_memory(unet: diffusers.UNet2DModel, batch_size: int, bf16: bool) -> tuple[int, int]:
    """Bytes that training the UNet takes: (weights, gradients, Adam and EMA; what a step keeps for its backward).

    The second is counted in a step on tensors without data. What a device needs to compute comes on top.
    """
    weights, kept = set(), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor: its address may not be used again
        return tensor

    with FakeTensorMode():
        copy = diffusers.UNet2DModel.from_config(unet.config).train()
        if unet.is_gradient_checkpointing:
            copy.enable_gradient_checkpointing()
        weights.update(parameter.untyped_storage()._cdata for parameter in copy.parameters())
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            output = _fake_forward(copy)
    del output
    return 5 * 4 * count_parameters(unet), batch_size * sum(number for number, _ in kept.values())
