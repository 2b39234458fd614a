import numpy as np
import pytest
import quantus
import torch
from explain_nets import smooth_pixels

from melanoma_fair_xai.explain.fidelity import relevance_rank
from melanoma_fair_xai.explain.localisation import energy_in, iou_at_matched_area, localisation, pointing_game


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.from_numpy(smooth_pixels(5, 24, seed=1)[..., 0].astype(np.float32)) - 60


@pytest.fixture
def masks() -> torch.Tensor:
    return torch.from_numpy(smooth_pixels(5, 24, seed=2)[..., 0] > 150)


def test_energy_and_pointing_game_agree_with_quantus(maps, masks):
    common = {"abs": False, "normalise": False, "disable_warnings": True}
    arguments = {
        "model": torch.nn.Identity(),
        "x_batch": np.zeros((5, 3, 24, 24), dtype=np.float32),
        "y_batch": np.zeros(5, dtype=int),
        "s_batch": masks[:, None].numpy(),
        "device": "cpu",
    }
    positive = maps.clamp(min=0)[:, None].numpy()
    energy = quantus.AttributionLocalisation(max_size=1.0, **common)(a_batch=positive, **arguments)
    np.testing.assert_allclose(energy_in(maps, masks), energy, rtol=1e-5)
    points = quantus.PointingGame(**common)(a_batch=positive, **arguments)
    single = (maps == maps.amax((1, 2), keepdim=True)).sum((1, 2)) == 1
    assert single.any()
    assert pointing_game(maps, masks)[single].tolist() == np.asarray(points, dtype=float)[single.numpy()].tolist()


def test_several_maxima_count_by_their_share(masks):
    flat = torch.ones(5, 24, 24)
    torch.testing.assert_close(pointing_game(flat, masks), masks.float().mean((1, 2)))


def test_overlap_is_that_of_as_many_pixels_as_the_mask_has(maps, masks):
    ranks = relevance_rank(maps, torch.rand_like(maps))
    for row, found in enumerate(iou_at_matched_area(ranks, masks).tolist()):
        order = np.argsort(ranks[row].numpy().ravel())[: int(masks[row].sum())]
        chosen = np.zeros(24 * 24, dtype=bool)
        chosen[order] = True
        mask = masks[row].numpy().ravel()
        assert found == pytest.approx((chosen & mask).sum() / (chosen | mask).sum())


def test_the_mask_itself_is_found_and_ratios_are_by_its_area(masks):
    own = masks.float()
    values = localisation(own, relevance_rank(own, torch.rand_like(own)), masks)
    share = masks.float().mean((1, 2))
    for name in ("energy_in_mask", "pointing_game", "iou"):
        torch.testing.assert_close(values[name], torch.ones(5))
        torch.testing.assert_close(values[f"{name}_ratio"], 1 / share)


def test_an_image_without_mask_has_no_localisation(maps, masks):
    masks[2] = False
    values = localisation(maps, relevance_rank(maps, torch.rand_like(maps)), masks)
    for value in values.values():
        assert value[2].isnan() and value[[0, 1, 3, 4]].isfinite().all()
