"""Sizes: presets that fit together, what cannot be built, and the memory estimate against a real step."""

import diffusers
import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.diffusion.arguments import PRESETS, choose_preset
from melanoma_fair_xai.diffusion.networks import (
    count_parameters,
    create_networks,
    forward_flops,
    image_size,
    training_memory,
)

SMALL = {"resolution": 16, "block_out_channels": [16, 32], "layers_per_block": 1, "attention_resolutions": [8]}
SHAPE = [*SMALL, "haar_levels", "dropout"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built(conditions, name):
    shape = {key: PRESETS[name][key] for key in SHAPE}
    with torch.device("meta"):
        unet, conditioner = create_networks(conditions, **shape)
    assert image_size(unet) == int(name.split("-")[0]) and unet.config.sample_size <= 64
    assert conditioner.config.embedding_dim == unet.time_embedding.linear_2.out_features
    assert any("Attn" in block for block in unet.config.down_block_types)


@pytest.mark.parametrize(
    ("name", "million", "giga"), [("256-small", 8, 7.1), ("256-base", 21, 15), ("256-large", 42, 56)]
)
def test_256_pixels_cost_what_64_do_and_fit_a_gpu_of_24_gb(conditions, name, million, giga):
    preset = PRESETS[name]
    unet, _ = create_networks(conditions, **{key: preset[key] for key in SHAPE})
    assert count_parameters(unet) / 1e6 == pytest.approx(million, rel=0.03)
    assert forward_flops(unet) / 1e9 == pytest.approx(giga, rel=0.02)
    fixed, saved = training_memory(unet, preset["train_batch_size"], bf16=True)
    assert fixed + saved < 18e9


def test_preset_by_resolution():
    assert [choose_preset(None, pixels) for pixels in (None, 16, 32, 48, 64, 100, 256, 512)] == [
        "64-small", "32-tiny", "32-tiny", "64-small", "64-small", "128-small", "256-small", "256-large",
    ]  # fmt: skip
    assert choose_preset("32-tiny", 256) == "32-tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 15}, "--resolution 15: cannot be halved 1 times, .* give a multiple of 2"),
        ({"resolution": 12, "block_out_channels": [16] * 4}, "--resolution 12: cannot be halved 3 times"),
        (
            {"haar_levels": 4},
            "--resolution 16: cannot be halved 5 times, as --haar_levels 4 and 2 --block_out_ch.* of 32",
        ),
        ({"block_out_channels": [24, 16]}, "--block_out_channels 24: give multiples of 16"),
    ],
)
def test_what_cannot_be_built_is_refused(conditions, change, message):
    with pytest.raises(UserError, match=message):
        create_networks(conditions, **SMALL | change)


def real_step_bytes(unet: diffusers.UNet2DModel, batch_size: int) -> int:
    """What a real step keeps for its backward, weights apart, counted by storage."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor: its address may not be used again
        return tensor

    size = unet.config.sample_size
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(torch.randn(batch_size, 3, size, size), torch.zeros(batch_size), torch.zeros(batch_size, 64))
    del output
    return sum(number for number, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_that_of_a_real_step(conditions, checkpointing):
    unet, _ = create_networks(conditions, **SMALL)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    fixed, saved = training_memory(unet.train(), 4, bf16=False)
    assert fixed == 20 * count_parameters(unet)
    assert saved == pytest.approx(real_step_bytes(unet, 4), rel=0.15)
