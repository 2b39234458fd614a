from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from explain_nets import random_net

from melanoma_fair_xai.explain import controls
from melanoma_fair_xai.explain.batches import column_name
from melanoma_fair_xai.explain.measures import COMPARED
from melanoma_fair_xai.explain.summary import against_controls


def test_the_edge_map_is_sobels(images):
    grey = images.mean(1).numpy()
    for found, image in zip(controls.edge_map(images).numpy(), grey, strict=True):
        expected = np.hypot(*(scipy.ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1)))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_centre_map_is_a_gaussian_around_the_middle(images):
    found = controls.centre_map(images)[0]
    assert found[31, 31] == found[32, 32] == found.max()
    assert found[32, 44].item() == pytest.approx(np.exp(-((12.5**2 + 0.5**2) / 64**2) / (2 * 0.2**2)), rel=1e-4)


def test_the_mask_map_orders_the_lesion_before_the_rest(images):
    masks = torch.zeros(6, 64, 64, dtype=torch.bool)
    masks[:, 10:20, 10:20] = True
    found = controls.mask_map(masks, torch.rand(6, 64, 64))
    assert (found[masks] > 0.99).all() and (found[~masks] == 0).all()
    assert len(found[masks].unique()) > 500


def test_each_control_is_made_of_what_it_is_named_after(images):
    probes = SimpleNamespace(images=images, masks=images[:, 0] > 0.5, ties=torch.rand(6, 64, 64))
    noise, shuffled = torch.rand(6, 4, 4), torch.rand(6, 64, 64)
    made = {name: control.make(probes, noise, shuffled) for name, control in controls.CONTROLS.items()}
    expected = {
        "random": F.interpolate(noise[:, None], (64, 64), mode="bilinear")[:, 0],
        "centre": controls.centre_map(images),
        "edges": controls.edge_map(images),
        "mask": controls.mask_map(probes.masks, probes.ties),
        "randomised": shuffled,
    }
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)


def test_shuffling_starts_at_the_last_layer_and_keeps_every_value():
    model = random_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = controls.weighted_layers(model)
    assert names[-1] == "fc"

    def changed(share: float, seed: int = 0) -> set[str]:
        state = controls.shuffled(model, share, seed).state_dict()
        for name, value in state.items():
            assert torch.equal(value.flatten().sort()[0], before[name].flatten().sort()[0])
        return {name.rpartition(".")[0] for name in state if not torch.equal(state[name], before[name])}

    assert changed(0.0) == {"fc"}
    assert changed(0.5) == set(names[-round(len(names) / 2) :])
    assert changed(1.0) == set(names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    first, again, other = (controls.shuffled(model, 1.0, seed).conv1[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_similarity_is_one_with_itself_about_none_with_noise_and_nan_for_a_constant():
    maps = torch.rand(4, 48, 48, generator=torch.Generator().manual_seed(0))
    others = torch.stack([maps[0], -maps[1], torch.ones(48, 48), torch.rand(48, 48)])
    spearman, ssim = controls.map_similarity(maps, others)
    assert spearman[0] == pytest.approx(1) and ssim[0] == pytest.approx(1)
    assert spearman[1] == pytest.approx(-1) and np.isnan([spearman[2], ssim[2]]).all()
    assert abs(spearman[3]) < 0.1 and abs(ssim[3]) < 0.2


def test_method_and_controls_are_averaged_over_the_same_images():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"lesion_id": [f"l{i}" for i in range(40)], "max_sensitivity": 0.1})
    for name in COMPARED:
        table[name] = rng.uniform(size=40)
        for control in controls.CONTROLS:
            table[column_name(name, control)] = table[name] - 0.25
    table.loc[:9, COMPARED] = np.nan  # no map of these, whose scores are others altogether
    table.loc[:9, [column_name(name, c) for name in COMPARED for c in controls.CONTROLS]] = 50.0
    found = against_controls(table).set_index("measure").loc[list(COMPARED)]
    for control in controls.CONTROLS:
        np.testing.assert_allclose((found["mean"] - found[control]).astype(float), 0.25)
