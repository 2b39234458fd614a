import numpy as np
import pytest
import torch

from dataset_scripts.phantom.builder import PhantomConfig
from dataset_scripts.phantom.drawing import View, draw_phantom
from dataset_scripts.phantom.sampling import sample_lesion
from dataset_scripts.skin_colour import individual_typology_angle, lab_to_rgb, rgb_to_lab
from melanoma_fair_xai.data.augmentation import (
    PARAMETERS,
    TYPICAL_ITA,
    TYPICAL_SKIN,
    Augmentation,
    augment,
    mix_with_previous,
    tone_gain,
)

IDENTITY = {"flip": 1, "scale_x": 1, "scale_y": 1, "brightness": 1, "contrast": 1, "saturation": 1}
IDENTITY |= {"red": 1, "green": 1, "blue": 1, "mix": 1}


def parameters(**changes: float) -> torch.Tensor:
    values = {**dict.fromkeys(PARAMETERS, 0.0), **IDENTITY, **changes}
    return torch.tensor([[values[name] for name in PARAMETERS]], dtype=torch.float32)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8))


def as_image(result: torch.Tensor) -> torch.Tensor:
    return result[0].permute(1, 2, 0)


def test_identity_returns_the_pixels(pixels):
    torch.testing.assert_close(as_image(augment(pixels, parameters())), pixels[0].float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("flip", [1, -1])
def test_turns_and_flips_only_move_pixels(pixels, turns, flip):
    result = as_image(augment(pixels, parameters(angle=turns * np.pi / 2, flip=flip)))
    expected = pixels[0].float()
    candidates = [torch.rot90(expected, k) for k in range(4)] + [torch.rot90(expected.flip(1), k) for k in range(4)]
    distances = [(result - candidate).abs().max().item() for candidate in candidates]
    best = int(np.argmin(distances))
    assert distances[best] < 0.1
    assert (best >= 4) == (flip == -1)
    assert best != 0


def test_crop_shows_the_window():
    ramp = torch.arange(64).view(1, 1, 64, 1).expand(1, 64, 64, 3).to(torch.uint8)
    result = as_image(augment(ramp, parameters(scale_x=0.5, scale_y=0.5, shift_x=0.5)))
    # The right half: columns 32 to 64, whose centres are 32.25 to 63.25 in steps of one half.
    np.testing.assert_allclose(result[30, 1:-1, 0].numpy(), np.arange(31.75, 63.6, 0.5)[1:-1], atol=0.01)


def test_colour_follows_the_definitions(pixels):
    image = pixels[0].float()
    brighter = as_image(augment(pixels, parameters(brightness=0.5)))
    torch.testing.assert_close(brighter, image * 0.5, atol=1e-3, rtol=0)
    grey = as_image(augment(pixels, parameters(saturation=0)))
    luma = (image * torch.tensor([0.2126, 0.7152, 0.0722])).sum(-1, keepdim=True).expand_as(image)
    torch.testing.assert_close(grey, luma, atol=1e-3, rtol=0)
    flat = as_image(augment(pixels, parameters(contrast=0)))
    torch.testing.assert_close(flat, image.mean().expand_as(flat), atol=1e-2, rtol=0)
    red = as_image(augment(pixels, parameters(red=0.5)))
    torch.testing.assert_close(red, image * torch.tensor([0.5, 1, 1]), atol=1e-3, rtol=0)


def test_illumination_falls_across_the_image():
    white = torch.full((1, 9, 9, 3), 100, dtype=torch.uint8)
    result = as_image(augment(white, parameters(shade_x=0.2, shade_y=-0.1)))
    assert result[4, 4, 0].item() == pytest.approx(100, abs=1e-3)
    assert result[4, 8, 0].item() == pytest.approx(120, abs=1e-3)
    assert result[0, 4, 0].item() == pytest.approx(110, abs=1e-3)


def test_an_image_does_not_depend_on_its_batch():
    augmentation = Augmentation()
    batch = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    drawn = torch.from_numpy(np.stack([augmentation.draw(0, 3, index) for index in range(5)]))
    together = augment(batch, drawn)
    for index in range(5):
        alone = augment(batch[index : index + 1], drawn[index : index + 1])
        assert torch.equal(alone[0], together[index])


def test_drawn_parameters_stay_in_range_and_inside_the_image():
    augmentation = Augmentation()
    drawn = np.stack([augmentation.draw(0, 0, index) for index in range(2000)])
    values = dict(zip(PARAMETERS, drawn.T, strict=True))
    assert (np.abs(values["shift_x"]) + values["scale_x"] <= 1 + 1e-6).all()
    assert (np.abs(values["shift_y"]) + values["scale_y"] <= 1 + 1e-6).all()
    area = values["scale_x"] * values["scale_y"]
    assert area.min() >= augmentation.min_area / augmentation.max_aspect and area.max() <= 1
    np.testing.assert_allclose(
        np.bincount((values["angle"] / (np.pi / 2)).round().astype(int)) / 2000, 0.25, atol=0.04
    )
    assert np.abs(values["brightness"] - 1).max() <= augmentation.brightness
    assert values["red"].std() == pytest.approx(augmentation.white_balance / np.sqrt(3), rel=0.1)


def test_the_same_key_draws_the_same_and_others_differ():
    draw = Augmentation().draw
    assert np.array_equal(draw(0, 1, 2), draw(0, 1, 2))
    others = [draw(0, 2, 2), draw(0, 2, 1), draw(1, 1, 2), draw(0, 1, 3)]
    assert all(not np.array_equal(draw(0, 1, 2), other) for other in others)


@pytest.mark.parametrize("shift", [-45, -20, 0, 20, 40])
def test_tone_gain_moves_typical_skin_along_ita_alone(shift):
    skin = lab_to_rgb(TYPICAL_SKIN)
    lab = rgb_to_lab(skin * tone_gain(shift))
    assert individual_typology_angle(lab) == pytest.approx(TYPICAL_ITA + shift, abs=1e-3)
    np.testing.assert_allclose(lab[1:], TYPICAL_SKIN[1:], atol=1e-3)


def test_tone_gain_moves_drawn_skin_of_every_type_the_same_way():
    for number in range(12):
        lesion, _ = sample_lesion(PhantomConfig(), number)
        image, mask, _ = draw_phantom(lesion, View(seed=(number,)), 32)
        skin = image[~mask] / 255
        angles = [individual_typology_angle(rgb_to_lab(skin * tone_gain(shift)).mean(0)) for shift in (-30, 0, 30)]
        assert angles[0] < angles[1] - 5 and angles[2] > angles[1] + 5, angles


def test_tone_changes_leave_the_other_parameters_as_they_were():
    plain, toned = (Augmentation(ita_shift=shift).draw(0, 0, 5) for shift in (0, 45))
    colour = [PARAMETERS.index(name) for name in ("red", "green", "blue")]
    other = [index for index in range(len(PARAMETERS)) if index not in colour]
    assert (plain[other] == toned[other]).all() and (plain[colour] != toned[colour]).all()


def test_free_turns_stay_within_their_width_of_the_quarter_turns():
    drawn = np.stack([Augmentation(rotation=20).draw(0, 0, index) for index in range(1000)])
    angle = np.degrees(drawn[:, PARAMETERS.index("angle")])
    beyond = (angle + 45) % 90 - 45
    assert np.abs(beyond).max() <= 20 + 1e-4 and beyond.std() == pytest.approx(20 / np.sqrt(3), rel=0.1)


def test_a_square_of_the_asked_place_and_side_is_painted_over_with_the_mean():
    ramp = torch.arange(64).view(1, 1, 64, 1).expand(1, 64, 64, 3).to(torch.uint8)
    result = as_image(augment(ramp, parameters(erase_x=0.5, erase_y=-0.5, erase_side=0.25)))[..., 0]
    changed = (result - ramp[0, ..., 0]).abs() > 1e-3
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 40, 55)  # 16 pixels around 16 and 48
    assert changed.sum() == 16 * 16 and (result[changed] - 31.5).abs().max() < 1e-3


def test_erasing_happens_as_often_and_as_large_as_asked():
    drawn = np.stack([Augmentation(erasing=0.3).draw(0, 0, index) for index in range(2000)])
    side = drawn[:, PARAMETERS.index("erase_side")]
    assert (side > 0).mean() == pytest.approx(0.3, abs=0.04)
    assert side[side > 0].min() ** 2 >= 0.02 - 1e-6 and side.max() ** 2 <= 0.2 + 1e-6


def test_images_and_labels_are_mixed_in_the_same_shares():
    drawn = torch.from_numpy(np.stack([Augmentation(mixup_alpha=0.4).draw(0, 0, index) for index in range(3)]))
    share = drawn[:, PARAMETERS.index("mix")]
    assert (share >= 0.5).all() and (share < 1).all()
    images, labels = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2), torch.eye(3)
    mixed = mix_with_previous(images, drawn)
    expected = share * torch.tensor([1.0, 10.0, 100.0]) + (1 - share) * torch.tensor([100.0, 1.0, 10.0])
    torch.testing.assert_close(mixed[:, 0, 0, 0], expected)
    torch.testing.assert_close(mix_with_previous(labels, drawn) @ torch.tensor([1.0, 10.0, 100.0]), expected)


def test_what_is_off_by_default_leaves_the_other_parameters_as_they_were():
    plain = Augmentation().draw(0, 0, 5)
    more = Augmentation(rotation=20, erasing=1, mixup_alpha=0.4).draw(0, 0, 5)
    new = [PARAMETERS.index(name) for name in ("angle", "erase_x", "erase_y", "erase_side", "mix")]
    assert (np.delete(plain, new) == np.delete(more, new)).all() and (plain[new] != more[new]).all()
