"""Planted copies of training images among phantoms: turned, recompressed, noisy."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from dataset_scripts.phantom import Phantom
from melanoma_fair_xai.diffusion.copies import (
    THUMBNAIL,
    CopyFinder,
    copy_threshold,
    nearest_features,
    nearest_pixels,
    symmetries,
    thumbnails,
)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """uint8 (1800, 32, 32, 3), one image of each lesion."""
    builder = Phantom(
        num_images=1800, image_size=32, images_per_lesion=1, cache_dir=str(tmp_path_factory.mktemp("many"))
    )
    builder.download_and_prepare()
    parts = builder.as_dataset().values()
    return np.stack([np.asarray(image.convert("RGB")) for part in parts for image in part["image"]])


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(buffer))


def test_planted_copies_are_found_and_hardly_anything_else(drawings):
    training, held_out, generated = drawings[:400], drawings[400:800], drawings[800:].copy()
    rng = np.random.default_rng(0)
    originals = rng.choice(400, size=10, replace=False)
    places = rng.choice(1000, size=10, replace=False)
    changes = [np.flipud, np.fliplr, np.rot90, lambda x: np.rot90(x, 3), lambda x: np.fliplr(np.rot90(x))]
    changes += [lambda x: recompressed(x, 50), lambda x: recompressed(np.flipud(x), 70)]
    changes += [lambda x: (x + rng.normal(scale=8, size=x.shape)).clip(0, 255).astype(np.uint8)] * 2
    changes += [lambda x: (0.9 * x).astype(np.uint8)]
    for place, original, change in zip(places, originals, changes, strict=True):
        generated[place] = change(training[original])
    is_training = np.arange(800) < 400
    finder = CopyFinder.of(np.concatenate([training, held_out]), is_training)
    found = np.concatenate(
        [finder.are_copies([PIL.Image.fromarray(i) for i in generated[k : k + 100]]) for k in range(0, 1000, 100)]
    )
    assert found[places].all()
    assert np.delete(found, places).mean() <= 0.01
    nearest = nearest_pixels(thumbnails(torch.from_numpy(generated[places]).permute(0, 3, 1, 2)), finder.training)
    np.testing.assert_array_equal(nearest.index, originals)


def test_an_image_that_fifty_training_images_equal_copies_them():
    training = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    training[:60] = training[0]
    found = nearest_features(training[[0, 80]] + np.float32([[0.0], [0.5]]), training)
    assert found.ratio[0] == 0 < found.ratio[1]


def test_the_eight_symmetries_of_a_square_and_no_other():
    rows = np.random.default_rng(0).normal(size=(2, 3 * THUMBNAIL**2)).astype(np.float32)
    views = np.stack(symmetries(rows))
    image = rows[0].reshape(3, THUMBNAIL, THUMBNAIL)
    expected = [np.rot90(i, turns, (1, 2)).ravel() for i in (image, image[:, :, ::-1]) for turns in range(4)]
    assert len(np.unique(views[:, 0], axis=0)) == 8
    assert {v.tobytes() for v in views[:, 0]} == {np.ascontiguousarray(e).tobytes() for e in expected}


def test_the_threshold_lets_its_share_of_held_out_images_through(drawings):
    rows = thumbnails(torch.from_numpy(drawings[:900]).permute(0, 3, 1, 2))
    held_out = nearest_pixels(rows[:400], rows[400:])
    assert (held_out.ratio < copy_threshold(held_out, 0.1)).mean() == pytest.approx(0.1, abs=0.005)
    itself = nearest_pixels(rows[400:410], rows[400:])
    np.testing.assert_array_equal(itself.index, np.arange(10))
    assert itself.ratio.max() < 0.01
