"""Fidelity against slow loops of the same definition, captum and pytorch-grad-cam's ROAD."""

import numpy as np
import pytest
import quantus
import scipy.sparse
import scipy.sparse.linalg
import torch
from explain_nets import PREPROCESSING, as_images, random_net, smooth_pixels
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst
from sklearn.metrics import auc

from melanoma_fair_xai.explain import fidelity
from melanoma_fair_xai.explain.attributions import Explainer, LogOdds
from melanoma_fair_xai.explain.fidelity import FRACTIONS, PERCENTILES, Scorer, seeded_noise
from melanoma_fair_xai.explain.imputation import impute


@pytest.fixture(scope="module")
def scorer(net) -> Scorer:
    return Scorer(net, 32)


@pytest.fixture(scope="module")
def scores(scorer, images, targets) -> torch.Tensor:
    return scorer(images, targets)


@pytest.fixture(scope="module")
def maps(images) -> torch.Tensor:
    return torch.rand(images.shape[0], 64, 64, generator=torch.Generator().manual_seed(3)) - 0.3


def ranks_of(maps: torch.Tensor) -> torch.Tensor:
    return fidelity.relevance_rank(maps, torch.rand_like(maps))


@torch.no_grad()
def study_loop(net, image, attribution, target, noise) -> tuple[list[float], list[float]]:
    """The study's fidelity of one image, one percentile and one forward pass at a time."""
    score = net(image[None])[0, target].sigmoid()
    black, random = [], []
    values = attribution.numpy().astype(np.float64)
    for percentile in range(5, 100, 5):
        above = torch.from_numpy(values > np.percentile(values[values > 0], percentile))
        for changes, fill in ((black, torch.zeros_like(image)), (random, noise)):
            changed = image.clone()
            changed[:, above] = fill[:, above]
            changes.append(float((net(changed[None])[0, target].sigmoid() - score).abs()))
    return black, random


def test_the_studys_curve_is_that_of_its_loop_on_50_images():
    net = LogOdds(random_net(), PREPROCESSING, [1]).eval()
    images = as_images(smooth_pixels(50, 64, seed=5))
    targets = torch.arange(50) % 2
    maps = Explainer(net, "gradcam", (3, 64, 64))(images, targets, [0] * 50)
    noise = seeded_noise([str(i) for i in range(50)], 0, "picture", (3, 64, 64), images)
    scorer = Scorer(net, 64)
    curves = fidelity.study_curves(scorer, images, maps, targets, scorer(images, targets), noise)
    assert PERCENTILES == tuple(range(5, 100, 5))
    usable = (maps > 0).any(2).any(1)
    assert usable.sum() > 20 and curves[0][usable].mean() > 0.01
    for row in range(50):
        if usable[row]:
            expected = study_loop(net, images[row], maps[row], int(targets[row]), noise[row])
            np.testing.assert_allclose(np.stack([curve[row] for curve in curves]), expected, atol=1e-5)
        else:
            assert curves[0][row].isnan().all()


def test_ranks_follow_the_map_and_ties_the_noise():
    maps = torch.tensor([[[0.5, 0.0], [0.0, 0.9]]])
    ranks = fidelity.relevance_rank(maps, torch.tensor([[[0.1, 0.8], [0.2, 0.3]]]))
    assert (ranks * 4).tolist() == [[[1, 3], [2, 0]]]
    assert torch.equal(ranks_of(torch.arange(9.0).view(1, 3, 3)) * 9, torch.arange(8.0, -1, -1).view(1, 3, 3))


def test_insertion_and_deletion_are_areas_under_a_slow_loop(scorer, images, maps, targets, scores):
    baseline = fidelity.blurred(images)
    ranks = ranks_of(maps)
    found = fidelity.insertion_deletion(scorer, images, baseline, scorer(baseline, targets), ranks, targets, scores)
    shares = [0, *FRACTIONS, 1]
    for row in range(len(images)):
        order = np.argsort(ranks[row].flatten().numpy())
        curves = []
        for start, end in ((baseline, images), (images, baseline)):
            copies = []
            for share in shares:
                copy = start[row].flatten(1).clone()
                chosen = order[: int(np.ceil(share * 4096 - 1e-6))]
                copy[:, chosen] = end[row].flatten(1)[:, chosen]
                copies.append(copy.view(3, 64, 64))
            curves.append(auc(shares, scorer(torch.stack(copies), targets[row].expand(len(shares))).numpy()))
        np.testing.assert_allclose([value[row] for value in found], curves, atol=1e-5)


def test_deletion_agrees_with_pixel_flipping_of_quantus(net, scorer, images, maps, targets, scores):
    """Quantus turns a 24th of the values at a time black, and gives the score after each; it takes the softmax."""

    class Logits(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return net(batch) / 2

    flipping = quantus.PixelFlipping(
        features_in_step=512, perturb_baseline="black", disable_warnings=True, return_auc_per_sample=False
    )
    theirs = np.array(
        flipping(
            model=Logits().eval(),
            x_batch=images.numpy(),
            y_batch=targets.numpy(),
            a_batch=maps[:, None].expand_as(images).numpy().copy(),
            device="cpu",
        )
    )
    assert theirs.shape == (6, 24)
    for step in (0, 5, 11, 20):
        black = torch.where(ranks_of(maps)[:, None] < (step + 1) / 24, 0.0, images)
        np.testing.assert_allclose(theirs[:, step], scorer(black, targets), atol=5e-3)


def exact_imputation(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The linear system of ROAD, written down and solved directly."""
    places = {tuple(place): number for number, place in enumerate(np.argwhere(removed))}
    matrix = scipy.sparse.lil_matrix((len(places), len(places)))
    right = np.zeros((len(places), len(image)))
    for (y, x), row in places.items():
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                there = (y + down, x + across)
                if (down or across) and 0 <= there[0] < removed.shape[0] and 0 <= there[1] < removed.shape[1]:
                    weight = 1 / 12 if down and across else 1 / 6
                    matrix[row, row] += weight
                    if there in places:
                        matrix[row, places[there]] -= weight
                    else:
                        right[row] += weight * image[:, there[0], there[1]]
    filled = image.astype(np.float64)
    filled[:, removed] = scipy.sparse.linalg.spsolve(matrix.tocsc(), right).T
    return filled


def test_imputation_solves_the_linear_system():
    images = as_images(smooth_pixels(3, 29, seed=7))  # an odd size, so that halving it rounds
    field = as_images(smooth_pixels(3, 29, seed=8))[:, :1]
    removed = field > field.flatten(1).quantile(0.3, dim=1)[:, None, None, None]
    filled = impute(images, removed, tolerance=1e-6)
    for image, hole, got in zip(images.numpy(), removed[:, 0].numpy(), filled.numpy(), strict=True):
        np.testing.assert_allclose(got, exact_imputation(image, hole), atol=1e-3)
        assert np.array_equal(got[:, ~hole], image[:, ~hole])
    assert (impute(images, removed) - filled).abs().max() < 0.03


def test_road_agrees_with_pytorch_grad_cam(net, scorer, images, targets, scores):
    maps = Explainer(net, "gradcam", (3, 64, 64))(images, targets, [0] * 6)
    usable = (maps > 0).any(2).any(1)
    maps, images, targets, scores = maps[usable], images[usable], targets[usable], scores[usable]
    maps = maps + 1e-4 * torch.rand_like(maps) * maps.amax((1, 2), keepdim=True)  # they break ties otherwise
    mine, _ = fidelity.road(scorer, images, ranks_of(maps), targets, scores, torch.zeros_like(images))

    class Probability(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return net(batch).sigmoid()

    def target_of(number: int):
        return lambda output: output[number]

    theirs = np.mean(
        [
            ROADMostRelevantFirst(percentile=100 - percent)(
                images, maps.numpy(), [target_of(int(t)) for t in targets], Probability()
            )
            for percent in fidelity.ROAD_PERCENT
        ],
        axis=0,
    )
    np.testing.assert_allclose(mine.numpy(), theirs, atol=0.03)


def test_average_drop_is_that_of_the_image_seen_through_its_map(scorer, images, maps, targets, scores):
    drop, increase = fidelity.average_drop(scorer, images, maps, targets, scores)
    for row in range(len(images)):
        weight = np.maximum(maps[row].numpy(), 0) / maps[row].max().item()
        seen = scorer(images[row : row + 1] * torch.from_numpy(weight), targets[row : row + 1]).item()
        assert drop[row].item() == pytest.approx(max(0, scores[row].item() - seen) / scores[row].item(), abs=1e-5)
        assert increase[row].item() == float(seen > scores[row].item())


def test_infidelity_is_zero_for_a_linear_model_and_its_own_map():
    weights = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))

    class Linear(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            value = (batch.mean(1) * weights).sum((1, 2))[:, None] / 4096
            return torch.cat([-value, value], 1)

    class Scores(Scorer):
        @torch.inference_mode()
        def __call__(self, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.net(batch).gather(1, targets[:, None])[:, 0]

    images = as_images(smooth_pixels(4, 64, seed=2))
    ids = list("abcd")
    squares = fidelity.square_masks(ids, 0, images)
    scorer = Scores(Linear())
    change = (images.mean((2, 3), keepdim=True) - images).mean(1) * -weights  # what each pixel contributes
    ones = torch.ones(4, dtype=torch.int64)
    exact = fidelity.infidelity(scorer, images, change, ones, squares)
    wrong = fidelity.infidelity(scorer, images, torch.rand_like(change), ones, squares)
    assert (exact < 1e-3 * wrong).all()
    torch.testing.assert_close(
        fidelity.infidelity(scorer, images, 7 * change, ones, squares), exact, atol=1e-9, rtol=1
    )


def test_max_sensitivity_is_the_largest_relative_change(net, images, targets):
    explain = Explainer(net, "gradcam", (3, 64, 64), "layer3")
    ids, seeds = list("abcdef"), [0] * 6
    maps = explain(images, targets, seeds)
    found = fidelity.max_sensitivity(explain, images, maps, targets, ids, 0, seeds)
    shape = (fidelity.SENSITIVITY_SAMPLES, 3, 64, 64)
    noise = (2 * seeded_noise(ids, 0, "sensitivity", shape, images) - 1) * fidelity.SENSITIVITY_RADIUS
    changes = torch.stack(
        [(explain(images + noise[:, sample], targets, seeds) - maps).flatten(1).norm(dim=1) for sample in range(4)]
    )
    norm = maps.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, (changes / torch.where(norm == 0, 1, norm)).amax(0), atol=1e-4, rtol=1e-3)


def test_random_numbers_hang_on_image_and_purpose():
    like = torch.zeros(1)
    both = seeded_noise(["a", "b"], 0, "x", (5,), like)
    assert torch.equal(seeded_noise(["b"], 0, "x", (5,), like)[0], both[1])
    for other in (seeded_noise(["a"], 1, "x", (5,), like), seeded_noise(["a"], 0, "y", (5,), like), both[1:]):
        assert not torch.equal(other[0], both[0])
