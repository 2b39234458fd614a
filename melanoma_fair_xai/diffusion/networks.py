"""The two networks by size: presets, creation, and what they need."""

import diffusers
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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
) -> tuple[diffusers.UNet2DModel, LesionConditioner]:
    """A UNet that takes the conditioner's vector as `class_labels`, and the conditioner.

    The UNet halves the resolution once per block but the first, and attends where it is one of
    `attention_resolutions`. UserError where it cannot.
    """
    halvings = len(block_out_channels) - 1
    if resolution < 1 or resolution % 2**halvings:
        raise UserError(
            f"--resolution {resolution}: cannot be halved {halvings} times, as {len(block_out_channels)} "
            f"--block_out_channels want; give a multiple of {2**halvings}"
        )
    for channels in block_out_channels:
        if channels < 1 or channels % CHANNEL_UNIT:
            raise UserError(f"--block_out_channels {channels}: give multiples of {CHANNEL_UNIT}")
    attends = [resolution // 2**level in attention_resolutions for level in range(halvings + 1)]
    unet = diffusers.UNet2DModel(
        sample_size=resolution,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        norm_num_groups=CHANNEL_UNIT // 2,
        attention_head_dim=CHANNEL_UNIT,
        class_embed_type="identity",
    )
    return unet, LesionConditioner(4 * block_out_channels[0], **conditions.config())


def count_parameters(*networks: torch.nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


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

    size = unet.config.sample_size
    with FakeTensorMode():
        copy = diffusers.UNet2DModel.from_config(unet.config).train()
        if unet.is_gradient_checkpointing:
            copy.enable_gradient_checkpointing()
        weights.update(parameter.untyped_storage()._cdata for parameter in copy.parameters())
        vector = torch.empty(1, copy.time_embedding.linear_2.out_features)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            output = copy(torch.empty(1, 3, size, size), torch.zeros(1), vector)
    del output
    return 5 * 4 * count_parameters(unet), batch_size * sum(number for number, _ in kept.values())
