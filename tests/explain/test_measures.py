"""Every measure says that the map of what a net looks at is better than the map of what it does not look at."""

import pytest
import torch

from melanoma_fair_xai.explain.controls import CONTROLS
from melanoma_fair_xai.explain.fidelity import Scorer, max_sensitivity
from melanoma_fair_xai.explain.measures import COMPARED, MEASURES, Probes, measure_maps

IDS = [f"image{row}" for row in range(4)]


class Square(torch.nn.Module):
    """Log-odds that rise with the brightness of a square in the middle, and fall a little with that of the rest."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total = images.mean(1).sum((1, 2))
        square = images.mean(1)[:, 22:42, 22:42].sum((1, 2))
        log_odds = 8 * (square / 400 - 0.5) - (total - square) / 3696
        return torch.stack([-log_odds, log_odds], dim=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    images = 0.2 + 0.1 * torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images[:, :, 22:42, 22:42] += 0.6
    return images


@pytest.fixture(scope="module")
def measured(images) -> tuple[dict, dict]:
    """The measures of the square's map, and of the map of all but the square."""
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:, 22:42, 22:42] = True
    scorer, targets = Scorer(Square()), torch.ones(4, dtype=torch.int64)
    probes = Probes.make(scorer, images, targets, masks, IDS, 0)
    order = 1 - 1e-3 * torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(1))
    return tuple(measure_maps(scorer, probes, region * order)[0] for region in (masks, ~masks))


@pytest.mark.parametrize("name", COMPARED)
def test_the_map_of_what_the_net_looks_at_is_better(name, measured):
    good, bad = (values[name] for values in measured)
    assert (good > bad).all() if MEASURES[name].better == "higher" else (good < bad).all()


def test_a_map_that_stays_under_noise_is_better(images):
    assert MEASURES["max_sensitivity"].better == "lower" and not MEASURES["max_sensitivity"].compared
    maps, targets = images[:, 0], torch.ones(4, dtype=torch.int64)
    steady, nervous = (
        max_sensitivity(lambda x, *_, power=power: x[:, 0] ** power, images, maps**power, targets, IDS, 0, [0] * 4)
        for power in (1, 20)
    )
    assert (steady < nervous).all()


def test_every_measure_is_of_the_map_or_of_the_method_and_has_a_way_that_is_better(measured):
    assert set(measured[0]) == set(COMPARED) == set(MEASURES) - {"max_sensitivity"}
    assert {measure.better for measure in MEASURES.values()} == {"higher", "lower"}


def test_the_only_control_that_is_told_the_truth_is_the_mask():
    assert [name for name, control in CONTROLS.items() if control.told] == ["mask"]
