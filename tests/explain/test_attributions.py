"""Maps against second implementations: by hand, and by pytorch-grad-cam."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explain_nets import PREPROCESSING, random_net
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.explain.attributions import Explainer, LogOdds, map_problems
from melanoma_fair_xai.explain.methods import METHODS

SIZE = (3, 64, 64)


def test_log_odds_are_those_of_the_score():
    model = random_net(classes=4)
    images = torch.rand(5, *SIZE)
    log_odds = LogOdds(model, PREPROCESSING, [1, 3]).eval()(images)
    mean, std = (torch.tensor(getattr(PREPROCESSING, name)).view(3, 1, 1) for name in ("mean", "std"))
    score = model((images - mean) / std).softmax(1)[:, [1, 3]].sum(1)
    torch.testing.assert_close(log_odds[:, 1].sigmoid(), score)
    torch.testing.assert_close(log_odds[:, 0], -log_odds[:, 1])


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_grad_cam_is_the_hand_written_one(net, images, targets, layer):
    maps = Explainer(net, "gradcam", SIZE, layer)(images, targets, [0] * 6)
    kept = {}
    module = net.model.get_submodule(layer)
    hook = module.register_forward_hook(lambda *a: kept.update(activation=a[2]))
    output = net(images).gather(1, targets[:, None]).sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(output, kept["activation"])
    weights = gradient.mean((2, 3), keepdim=True)
    small = (weights * kept["activation"]).sum(1, keepdim=True).relu()
    expected = F.interpolate(small, (64, 64), mode="bilinear")[:, 0].detach()
    torch.testing.assert_close(maps, expected)
    assert (maps > 0).any()


def test_grad_cam_agrees_with_pytorch_grad_cam(net, images, targets):
    maps = Explainer(net, "gradcam", SIZE, "layer3")(images, targets, [0] * 6)
    with GradCAM(model=net, target_layers=[net.model.layer3]) as cam:
        theirs = cam(input_tensor=images.clone(), targets=[ClassifierOutputTarget(int(t)) for t in targets])
    for mine, other in zip(maps.numpy(), theirs, strict=True):
        if mine.max() > 0:  # they scale each map to [0, 1] before they enlarge it
            assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.999


def test_integrated_gradients_add_up_to_the_change_of_the_log_odds(net, images, targets):
    maps = Explainer(net, "integrated_gradients", SIZE, batch_size=192)(images, targets, [0] * 6)
    with torch.no_grad():
        baseline = net(net.mean.expand_as(images)).gather(1, targets[:, None])[:, 0]
        change = net(images).gather(1, targets[:, None])[:, 0] - baseline
    torch.testing.assert_close(maps.sum((1, 2)), change, atol=0.05, rtol=0.05)


def test_occlusion_is_the_drop_under_the_windows(net, images, targets):
    maps = Explainer(net, "occlusion", SIZE)(images[:2], targets[:2], [0, 0])

    def drop(top: int, left: int) -> torch.Tensor:
        covered = images[:2].clone()
        covered[:, :, top : top + 8, left : left + 8] = net.mean
        with torch.no_grad():
            return (net(images[:2]) - net(covered)).gather(1, targets[:2, None])[:, 0]

    torch.testing.assert_close(maps[:, 1, 1], drop(0, 0), atol=1e-4, rtol=1e-3)  # under one window only
    torch.testing.assert_close(maps[:, 1, 5], (drop(0, 0) + drop(0, 4)) / 2, atol=1e-4, rtol=1e-3)


def test_guided_grad_cam_needs_rectifiers_and_is_grad_cam_times_guided_gradients(net, images, targets):
    guided = Explainer(net, "guided_gradcam", SIZE, "layer3")(images, targets, [0] * 6)
    weights = Explainer(net, "gradcam", SIZE, "layer3")(images, targets, [0] * 6)
    assert (guided[weights == 0] == 0).all() and (guided != 0).any()
    with pytest.raises(UserError, match="works on ReLU layers.*\n.*occlusion"):
        Explainer(LogOdds(random_net("test_vit"), PREPROCESSING, [1]), "guided_gradcam", (3, 160, 160))


def test_smooth_grad_hangs_on_the_images_own_seed_alone(net, images, targets):
    explain = Explainer(net, "smoothgrad", SIZE)
    torch.manual_seed(1)
    together = explain(images, targets, [10, 11, 12, 13, 14, 15])
    state = torch.random.get_rng_state()
    alone = explain(images[3:4], targets[3:4], [13])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(alone[0], together[3])
    assert not torch.equal(explain(images[3:4], targets[3:4], [14])[0], together[3])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_of_the_image_with_the_signs_it_says_and_leaves_the_net(net, images, targets, method):
    before = net(images).detach()
    explain = Explainer(net, method, SIZE, "layer3" if METHODS[method].takes_layer else None)
    maps = explain(images[:2], targets[:2], [1, 2])
    assert maps.shape == (2, 64, 64) and maps.dtype == torch.float32 and not maps.requires_grad
    assert bool((maps < 0).any()) == METHODS[method].signed and (maps > 0).any()
    assert torch.equal(net(images), before)


def test_what_a_method_resolves_is_the_layers_grid_the_windows_steps_or_the_pixels(net):
    assert Explainer(net, "gradcam", SIZE, "layer3").grid == (4, 4)
    assert Explainer(net, "guided_gradcam", SIZE, "layer3").grid == (64, 64)
    assert Explainer(net, "occlusion", SIZE).grid == (16, 16)
    maps = Explainer(net, "occlusion", SIZE)(torch.rand(1, *SIZE), torch.tensor([1]), [0])[0]
    blocks = maps.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
    assert blocks.shape[:2] == (16, 16) and torch.equal(blocks.amin(2), blocks.amax(2))


def test_methods_and_traps_are_named_without_loading_torch():
    code = "import sys; from melanoma_fair_xai.explain import methods, traps; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_unknown_method_is_refused_with_the_known_ones(net):
    with pytest.raises(UserError, match="--method lime.*gradcam.*occlusion"):
        Explainer(net, "lime", SIZE)


def test_problems_of_maps_are_named():
    maps = torch.rand(6, 4, 4)
    maps[1], maps[2, 0, 0], maps[3], maps[4], maps[5] = 0.5, torch.nan, 0.0, -maps[4], maps[5] - maps[5].max()
    expected = ["", "constant", "not finite", "constant", "nothing positive", "nothing positive"]
    assert map_problems(maps) == expected
