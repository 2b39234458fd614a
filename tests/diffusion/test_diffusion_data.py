"""Conditions found in tables, and samples that depend on (seed, epoch, index) alone."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.images import pixel_transform
from melanoma_fair_xai.diffusion.data import (
    DiffusionDataset,
    centre_square,
    find_conditions,
    scale,
    seeded_noise,
    turned,
)
from melanoma_fair_xai.diffusion.networks import create_networks

TABLE = pd.DataFrame(
    {
        "diagnosis": ["nv", "mel", "nv", "unknown"],
        "sex": ["male", "female", "unknown", "male"],
        "age": [45.0, 80.0, np.nan, 5.0],
        "localization": "unknown",
        "fitzpatrick": ["I", "VI", "unknown", "I"],
        "dx_type": "histo",
    }
)


def test_conditions_are_those_known_of_some_training_image():
    conditions = find_conditions(TABLE, [], "here")
    assert conditions.names == ["diagnosis", "sex", "fitzpatrick", "age"]
    assert conditions.vocabularies["diagnosis"] == ["mel", "nv"]
    assert conditions.vocabularies["fitzpatrick"] == ["I", "II", "III", "IV", "V", "VI"]
    assert conditions.counts["fitzpatrick"] == {"I": 2, "II": 0, "III": 0, "IV": 0, "V": 0, "VI": 1}
    assert conditions.counts["age"] == {"40": 1, "80": 1, "0": 1}


def test_encoded_as_the_conditioner_encodes():
    conditions = find_conditions(TABLE, [], "here")
    encoded = conditions.encode(TABLE)
    assert encoded["diagnosis"].tolist() == [1, 0, 1, 2] and encoded["fitzpatrick"].tolist() == [0, 5, 6, 0]
    _, conditioner = create_networks(
        conditions, resolution=8, block_out_channels=[16], layers_per_block=1, attention_resolutions=[]
    )
    with pytest.warns(UserWarning, match="such images only"):
        theirs = conditioner.encode({name: TABLE[name].tolist() for name in conditions.names}, 4)
    for name, values in encoded.items():
        np.testing.assert_array_equal(theirs[name].numpy(), values)
        assert theirs[name].numpy().dtype == values.dtype
    for name, value in conditions.unknown().items():
        np.testing.assert_array_equal(conditioner.encode({}, 1)[name].numpy(), [value])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["diagnosis", "ita"], "--conditions ita: here has no column ita"),
        (["localization"], "--conditions localization: here knows it of no training image"),
    ],
)
def test_conditions_that_are_not_there_are_refused(asked, message):
    with pytest.raises(UserError, match=message):
        find_conditions(TABLE, asked, "here")


def test_a_table_that_knows_nothing_is_refused():
    with pytest.raises(UserError, match="here: no diagnosis, sex, localization, fitzpatrick, age or ita is known"):
        find_conditions(TABLE[["localization"]], [], "here")


def make_dataset(seed: int = 0, **options) -> DiffusionDataset:
    conditions = find_conditions(TABLE, [], "here")
    return DiffusionDataset(np.arange(5, 9), conditions.encode(TABLE), conditions.unknown(), seed=seed, **options)


def equal(first: dict, second: dict) -> list[str]:
    """The names of what is equal in two samples, conditions apart."""
    return [name for name in first if name != "conditions" and np.array_equal(first[name], second[name])]


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    first, again = make_dataset(), make_dataset()
    for key in ((0, 0), (3, 2)):
        sample = first[key]
        _ = again[1, 3]
        assert equal(sample, again[key]) == ["rows", "symmetries", "noise_seeds", "timesteps"]
        assert sample["rows"] == 5 + key[1]
        torch.testing.assert_close(sample["conditions"], again[key]["conditions"], equal_nan=True, rtol=0, atol=0)
        assert "noise_seeds" not in equal(sample, first[key[0] + 1, key[1]])
        assert "noise_seeds" not in equal(sample, make_dataset(seed=1)[key])


def test_noise_timesteps_and_turns_are_spread_as_they_should():
    dataset = make_dataset()
    samples = [dataset[epoch, 0] for epoch in range(2000)]
    noise = seeded_noise(torch.tensor([sample["noise_seeds"] for sample in samples]), (3, 6, 6))
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    timesteps = np.array([sample["timesteps"] for sample in samples])
    assert timesteps.min() < 5 and timesteps.max() > 994 and abs(timesteps.mean() - 499.5) < 25
    views, counts = np.unique([sample["symmetries"] for sample in samples], return_counts=True)
    assert views.tolist() == list(range(8)) and counts.min() > 200


def test_the_symmetries_are_the_eight_of_the_square():
    image = np.random.default_rng(0).random((5, 5, 3))
    images = torch.from_numpy(image.transpose(2, 0, 1)).expand(8, 3, 5, 5)
    found = {view.numpy().transpose(1, 2, 0).tobytes() for view in turned(images, torch.arange(8))}
    assert found == {np.rot90(view, k).tobytes() for view in (image, image[::-1]) for k in range(4)}


def test_noise_is_that_of_its_seed_in_any_batch():
    noise = seeded_noise(torch.tensor([5, 2**63 - 1, 5]), (2, 4, 4))
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(seeded_noise(torch.tensor([2**63 - 1]), (2, 4, 4))[0], noise[1])


def test_any_subset_of_the_conditions_is_hidden_as_often_as_it_should():
    """Of n = 4 conditions, hidden with a rate u uniform in [0, 1]: k certain ones alone with the integral of
    u^k (1-u)^(4-k), 1 / (5 * binomial(4, k)), times the share of samples that hide a part; and all with q besides."""
    share, q = 0.6, 0.2
    dataset = make_dataset(condition_dropout=share, unconditional_share=q)
    hidden = []
    for epoch in range(4000):
        conditions = dataset[epoch, 0]["conditions"]
        hidden.append(
            [bool(torch.isnan(v)) if name == "age" else v == dataset.unknown[name] for name, v in conditions.items()]
        )
    hidden = np.array(hidden, dtype=bool)
    part = (1 - q) * share
    for number in range(5):
        expected = part / 5 + (q if number == 4 else 0) + ((1 - q) * (1 - share) if number == 0 else 0)
        assert abs((hidden.sum(axis=1) == number).mean() - expected) < 0.03
    only = [(hidden[:, k] & (hidden.sum(axis=1) == 1)).mean() for k in range(4)]
    np.testing.assert_allclose(only, part / 20, atol=0.015)
    sample = make_dataset(condition_dropout=0, unconditional_share=0)[0, 0]["conditions"]
    assert not any(bool(torch.isnan(v)) if name == "age" else v == dataset.unknown[name] for name, v in sample.items())


def test_pixels_to_the_networks_range():
    pixels = torch.tensor([[[[0, 255, 0]], [[255, 0, 0]]]], dtype=torch.uint8)
    assert scale(pixels).tolist() == [[[[-1], [1]], [[1], [-1]], [[-1], [-1]]]]


def test_a_photograph_is_cropped_to_its_centre_and_never_squeezed():
    """A square mark in the middle of a wide photograph stays a square, and what lies beyond the centre is cut off."""
    photograph = np.zeros((60, 100, 3), np.uint8)
    photograph[:, :20] = photograph[:, 80:] = 255
    photograph[20:40, 40:60] = 200
    pixels = pixel_transform(centre_square(30))(PIL.Image.fromarray(photograph))[0].numpy()
    rows, columns = np.nonzero(pixels > 100)
    assert pixels.shape == (30, 30) and np.ptp(rows) == np.ptp(columns) == 9
    assert set(rows) == set(columns) == set(range(10, 20))
