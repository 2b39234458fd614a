"""What is said of a batch is put together of the right parts: whose map, which score, which control."""

import numpy as np
import pytest
import torch
from explain_nets import PREPROCESSING, as_images, random_net, smooth_pixels

from melanoma_fair_xai.classifier.export import ClassifierInfo
from melanoma_fair_xai.explain import controls
from melanoma_fair_xai.explain.attributions import Explainer, LogOdds
from melanoma_fair_xai.explain.batches import BatchExplainer, Explanations, Images, Options
from melanoma_fair_xai.explain.localisation import energy_in
from melanoma_fair_xai.explain.traps import set_trap

IDS = [f"image{row}" for row in range(6)]
PIXELS = smooth_pixels(6, 64)
MASKS = np.zeros((6, 64, 64), dtype=bool)
MASKS[:, 16:40, 20:44] = True
SIZE = (3, 64, 64)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_net()


@pytest.fixture(scope="module")
def scores(model) -> torch.Tensor:
    """Of melanoma; its median, of six, is a threshold that three lie above."""
    with torch.no_grad():
        return LogOdds(model, PREPROCESSING, [1]).eval()(as_images(PIXELS))[:, 1].sigmoid()


@pytest.fixture(scope="module", params=["melanoma", "predicted"])
def explained(request, model, scores) -> tuple[Explanations, float]:
    """With the threshold."""
    threshold = float(scores.sort().values[2:4].mean())
    info = ClassifierInfo(["benign", "melanoma"], ["melanoma"], threshold, "youden", PREPROCESSING)
    options = Options(layer="layer3", target=request.param, traps=("ruler",), seed=3)
    return BatchExplainer(model, info, options, torch.device("cpu"))(Images(IDS, PIXELS, MASKS)), threshold


@pytest.fixture
def targets(request, explained, scores) -> torch.Tensor:
    named = request.node.callspec.params["explained"]
    return torch.ones(6, dtype=torch.int64) if named == "melanoma" else (scores >= explained[1]).long()


def grad_cam(model: torch.nn.Module, targets: torch.Tensor) -> torch.Tensor:
    net = LogOdds(model, PREPROCESSING, [1])
    return Explainer(net, "gradcam", SIZE, "layer3")(as_images(PIXELS), targets, [0] * 6)


def test_what_is_decided_is_explained_or_melanoma_whatever_is_decided(model, explained, targets, scores):
    found, threshold = explained
    table = found.table
    np.testing.assert_allclose(table["score"], scores, atol=1e-5)
    assert table["decided"].tolist() == (scores >= threshold).tolist() and table["decided"].sum() == 3
    assert table["target"].tolist() == [("not melanoma", "melanoma")[target] for target in targets.tolist()]
    np.testing.assert_allclose(table["target_score"], torch.where(targets == 1, scores, 1 - scores), atol=1e-5)
    np.testing.assert_allclose(found.maps, grad_cam(model, targets), atol=1e-5, rtol=1e-4)


def test_controls_and_similarity_are_to_the_net_with_so_many_layers_shuffled(model, explained, targets):
    found, masks = explained[0], torch.from_numpy(MASKS)
    for share in controls.CASCADE:
        maps = grad_cam(controls.shuffled(model, share, 3), targets)
        spearman, ssim = controls.map_similarity(torch.from_numpy(found.maps), maps)
        np.testing.assert_allclose(found.table[f"spearman_shuffled_{share:g}"], spearman, atol=1e-3)
        np.testing.assert_allclose(found.table[f"ssim_shuffled_{share:g}"], ssim, atol=1e-3)
    own = {"": torch.from_numpy(found.maps), "__randomised": maps, "__edges": controls.edge_map(as_images(PIXELS))}
    own["__centre"] = controls.centre_map(as_images(PIXELS))
    for name, values in own.items():
        energy = found.table[f"energy_in_mask{name}"].to_numpy()
        assert np.isfinite(energy).sum() > 2
        expected = np.where(np.isfinite(energy), energy_in(values, masks).numpy(), np.nan)
        np.testing.assert_allclose(energy, expected, atol=1e-4)
    np.testing.assert_allclose(found.table["energy_in_mask__mask"], 1, atol=1e-6)


def test_a_traps_change_is_that_of_the_melanoma_score_whatever_is_explained(model, explained, scores):
    found, threshold = explained
    pixels, _ = set_trap("ruler", PIXELS, None, IDS, 3)
    with torch.no_grad():
        after = LogOdds(model, PREPROCESSING, [1]).eval()(as_images(pixels))[:, 1].sigmoid()
    np.testing.assert_allclose(found.table["trap_ruler_change"], after - scores, atol=1e-5)
    turned = (after >= threshold) != (scores >= threshold)
    assert found.table["trap_ruler_turned"].tolist() == turned.float().tolist()
