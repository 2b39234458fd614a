import pytest
import timm
import torch
from explain_nets import random_net

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.explain.layers import describe_layers, find_layer, grid_module, map_layers


@pytest.mark.parametrize(
    ("name", "size", "expected", "grid"),
    [
        ("resnet18", 128, "layer4", (4, 4)),
        ("resnet18", 64, "layer3", (4, 4)),  # the last stage has 2 x 2 places there
        ("mobilenetv2_100", 128, "blocks.6", (4, 4)),
        ("test_vit", 160, "blocks.5.norm1", (10, 10)),
    ],
)
def test_the_default_layer_is_the_last_stage_that_is_fine_enough(name, size, expected, grid):
    layer = find_layer(timm.create_model(name, num_classes=2), (3, size, size))
    assert (layer.name, layer.grid) == (expected, grid)


def test_unknown_layers_and_layers_without_places_are_refused_with_the_known_ones():
    model = random_net()
    with pytest.raises(UserError, match="layr4: no such layer\n.*layer4.*--list_layers"):
        find_layer(model, (3, 64, 64), "layr4")
    with pytest.raises(UserError, match="fc: its output is no map of places"):
        find_layer(model, (3, 64, 64), "fc")


def test_layers_are_listed_with_their_grids():
    text = describe_layers(map_layers(random_net("resnet18"), (3, 64, 64)))
    assert any(line.split() == ["layer1", "Sequential", "64", "16", "x", "16"] for line in text.splitlines())
    assert not any(line.startswith("fc") for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "layer", "grid"),
    [("test_vit", "blocks.5.norm1", (10, 10)), ("swin_tiny_patch4_window7_224", "layers.3", (7, 7))],
)
def test_tokens_become_a_grid_and_the_net_stays_what_it_is(name, layer, grid):
    model = random_net(name)
    size = model.pretrained_cfg["input_size"]
    image = torch.rand(2, *size)
    found = find_layer(model, size)
    assert found.name == layer
    outputs = {}
    model.get_submodule(layer).register_forward_hook(lambda *a: outputs.update(tokens=a[2].detach()))
    with torch.no_grad():
        before = model(image)
        grid_module(model, found).register_forward_hook(lambda *a: outputs.update(grid=a[2].detach()))
        assert torch.equal(model(image), before)
    assert outputs["grid"].shape[2:] == grid
    tokens = outputs["tokens"]
    place = tokens[:, found.prefix + grid[1] * 2 + 3] if tokens.ndim == 3 else tokens[:, 2, 3]
    assert torch.equal(outputs["grid"][:, :, 2, 3], place)
