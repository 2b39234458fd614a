"""CIELAB against published values, ITA of phantoms against the truth and of real images against a published figure."""

import dataclasses
import io
import zipfile

import numpy as np
import PIL.Image
import pytest

from dataset_scripts.phantom.builder import PhantomConfig
from dataset_scripts.phantom.drawing import ARTEFACTS, draw_phantom
from dataset_scripts.phantom.sampling import sample_lesion, sample_view
from dataset_scripts.skin_colour import (
    individual_typology_angle,
    lab_to_rgb,
    lightness_at,
    measure_ita,
    rgb_to_lab,
    skin_pixels,
    typical_colour,
)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("rgb", "lab"),  # published values for sRGB and D65 (Lindbloom)
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.241, 80.092, 67.203)),
        ((0, 1, 0), (87.735, -86.183, 83.179)),
        ((0, 0, 1), (32.297, 79.188, -107.860)),
        ((119 / 255, 119 / 255, 119 / 255), (50.034, 0, 0)),
        ((0.02, 0.02, 0.02), (1.398, 0, 0)),  # on the straight part of both curves: 903.3 * 0.02 / 12.92
    ],
)
def test_lab_of_known_colours(rgb, lab):
    np.testing.assert_allclose(rgb_to_lab(np.array(rgb)), lab, atol=0.02)
    np.testing.assert_allclose(lab_to_rgb(np.array(lab, dtype=float)), rgb, atol=0.002)


def test_lab_round_trip():
    rgb = np.random.default_rng(0).uniform(size=(500, 3))
    np.testing.assert_allclose(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=1e-6)


def test_ita_of_known_colours():
    lab = np.array([[70, 10, 20], [50, 3, 15], [40, 10, 10 * np.sqrt(3)]])
    np.testing.assert_allclose(individual_typology_angle(lab), [45, 0, -30], atol=1e-9)
    np.testing.assert_allclose([lightness_at(*angle) for angle in ((45, 20), (0, 15), (-30, 10 * 3**0.5))], lab[:, 0])


@pytest.mark.parametrize("size", [32, 96, 200])
@pytest.mark.parametrize("artefacts", [None, tuple(ARTEFACTS)], ids=["usual artefacts", "all artefacts"])
def test_ita_of_phantoms_is_what_was_planted(size, artefacts):
    config = PhantomConfig(seed=3)
    errors = []
    for number in range(25):
        lesion, record = sample_lesion(config, number)
        view = sample_view(config, record, 0)
        drawing = draw_phantom(
            lesion, view if artefacts is None else dataclasses.replace(view, artefacts=artefacts), size
        )
        errors.append(measure_ita(png(drawing.image), png(drawing.mask)) - record["ita"])
    assert np.mean(np.abs(errors)) < 1.5 and np.max(np.abs(errors)) < 7, errors


def test_ita_does_not_depend_on_how_large_the_image_is():
    lesion, record = sample_lesion(PhantomConfig(), 5)
    views = [draw_phantom(lesion, sample_view(PhantomConfig(), record, 0), size) for size in (64, 200, 640)]
    angles = [measure_ita(png(drawing.image), png(drawing.mask)) for drawing in views]
    assert np.ptp(angles) < 1, angles


def test_no_ita_without_a_mask_or_skin():
    image = png(np.full((60, 80, 3), 200, dtype=np.uint8))
    lesion = np.zeros((60, 80), dtype=bool)
    assert measure_ita(image, None) is None
    assert measure_ita(image, png(~lesion)) is None
    lesion[:, 8:] = True  # of the eight columns of skin, the rim takes two: 7.5 % of the image are left
    assert measure_ita(image, png(lesion)) == pytest.approx(90, abs=0.1)  # grey is neither yellow nor blue
    lesion[:, 4:] = True  # now 2.5 %
    assert measure_ita(image, png(lesion)) is None


def test_whatever_touches_the_lesion_and_its_rim_are_no_skin():
    lesion = np.zeros((256, 256), dtype=bool)
    lesion[:, 100] = True  # a quarter of a pixel's width, once the image is reduced to 64 pixels
    skin = skin_pixels(png(np.full((256, 256, 3), 200, dtype=np.uint8)), png(lesion))
    assert skin.shape == (64 * (64 - 1 - 2 * 3), 3)  # the rim is 4 % of the side, three pixels


@pytest.fixture(scope="module")
def real_skin(real_data) -> np.ndarray:
    """The CIELAB colour of skin in every twentieth image of HAM10000, (501, 3)."""
    images = sorted((real_data / "ham10000").glob("HAM10000_images_part_*/*.jpg"))[::20]
    with zipfile.ZipFile(real_data / "ham10000" / "HAM10000_segmentations_lesion_tschandl.zip") as archive:
        masks = {name.rpartition("/")[2]: name for name in archive.namelist()}
        skins = [
            skin_pixels(path.read_bytes(), archive.read(masks[f"{path.stem}_segmentation.png"])) for path in images
        ]
    assert len(skins) == 501 and sum(skin is None for skin in skins) <= 5
    return np.array([typical_colour(skin) for skin in skins if skin is not None])


def test_the_published_estimate_is_what_eight_bit_lab_gives(real_skin):
    """Mean 43.4 and standard deviation 5.0 over 10,010 images come out where L* and b* stand as 8-bit image files keep
    them (L* times 2.55, b* plus 128) and are put into the formula as they are. So the same skin was found; but as an
    angle it is wrong: at b* + 128 every skin looks alike."""
    eight_bit = np.degrees(np.arctan2(2.55 * real_skin[:, 0] - 50, real_skin[:, 2] + 128))
    assert abs(eight_bit.mean() - 43.4) < 3 and abs(eight_bit.std() - 5.0) < 2
    angle = individual_typology_angle(real_skin)
    assert 75 < angle.mean() < 87 and 20 < angle.std() < 30
