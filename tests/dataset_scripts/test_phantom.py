"""Phantoms carry the truth that was planted: it is measured back here, from pixels and from rows."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from dataset_scripts.phantom import Phantom
from dataset_scripts.phantom.__main__ import main
from dataset_scripts.phantom.builder import PhantomConfig
from dataset_scripts.phantom.drawing import (
    ARTEFACT_BITS,
    ARTEFACTS,
    View,
    draw_phantom,
    paste_artefact,
)
from dataset_scripts.phantom.sampling import ARTEFACT_RATES, ITA_RANGES, sample_lesion, sample_records, sample_view
from dataset_scripts.phantom.settings import TONE_BIAS_GRADES
from dataset_scripts.skin_colour import individual_typology_angle, rgb_to_lab
from melanoma_fair_xai.base.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = list(ITA_RANGES)
SIGNS = ["asymmetry", "border_irregularity", "variegation", "diameter"]


def lab_of(image: np.ndarray) -> np.ndarray:
    return rgb_to_lab(image / 255)


def lesions(number: int, **settings) -> list:
    return [sample_lesion(PhantomConfig(**settings), index) for index in range(number)]


def lightness_drop(lesion, number: int, size: int = 48) -> float:
    """How much darker the lesion is than the skin around it, from the pixels of one image."""
    image, mask, _ = draw_phantom(lesion, View(seed=(number,)), size)
    lightness = lab_of(image)[..., 0]
    return lightness[~mask].mean() - lightness[mask].mean()


# --- what is drawn is what was planted -------------------------------------------------------------------------------


def test_ita_is_measured_back_from_free_skin():
    config = PhantomConfig()
    errors = {name: [] for name in TYPES}
    for number, (lesion, record) in enumerate(lesions(150)):
        image, mask, artefacts = draw_phantom(lesion, sample_view(config, record, 0), 64)
        skin = ~np.logical_or.reduce([mask, *artefacts.values()])
        measured = individual_typology_angle(lab_of(image)[skin].mean(axis=0))
        if record["fitzpatrick"] in errors:
            low, high = ITA_RANGES[record["fitzpatrick"]]
            assert low <= record["ita"] <= high, number
            errors[record["fitzpatrick"]].append(abs(measured - record["ita"]))
    assert all(np.mean(values) < 1.5 for values in errors.values()), errors


def test_the_same_lesion_changes_every_skin_alike():
    skins = [next(lesion.skin_lab for lesion, row in lesions(100) if row["fitzpatrick"] == name) for name in TYPES]
    for number, (lesion, record) in enumerate(lesions(12)):
        drops = [lightness_drop(dataclasses.replace(lesion, skin_lab=skin), number) for skin in skins]
        assert np.ptp(drops) < 1.2, drops
        assert drops[0] == pytest.approx(record["contrast"], abs=2.5)


def test_contrast_does_not_depend_on_the_tone_without_bias():
    config = PhantomConfig(num_images=3000, images_per_lesion=1)
    contrast = sample_records(config).groupby("fitzpatrick")["contrast"]
    assert np.ptp(contrast.mean()) < 0.6
    assert np.ptp(contrast.std()) < 0.4


@pytest.mark.parametrize("tone_bias", [0.4, 0.8])
def test_tone_bias_lowers_the_measured_contrast_by_its_factor(tone_bias):
    drops = {name: [] for name in TYPES}
    for number, ((plain, row), (biased, biased_row)) in enumerate(
        zip(lesions(120), lesions(120, tone_bias=tone_bias), strict=True)
    ):
        factor = 1 - tone_bias * TONE_BIAS_GRADES.get(row["fitzpatrick"], np.nan)
        if row["fitzpatrick"] in drops:
            assert biased_row["contrast"] == pytest.approx(factor * row["contrast"])
            drops[row["fitzpatrick"]].append((lightness_drop(biased, number), lightness_drop(plain, number)))
    for name, pairs in drops.items():
        biased_mean, plain_mean = np.mean(pairs, axis=0)
        assert biased_mean / plain_mean == pytest.approx(1 - tone_bias * TONE_BIAS_GRADES[name], abs=0.04), name
    assert TONE_BIAS_GRADES["VI"] > TONE_BIAS_GRADES["V"] > TONE_BIAS_GRADES["IV"] == TONE_BIAS_GRADES["I"] == 0


def test_the_mask_is_exactly_where_the_lesion_changes_the_skin():
    config = PhantomConfig()
    for lesion, record in lesions(20):
        view = sample_view(config, record, 0)
        bare = dataclasses.replace(view, artefacts=())
        image, mask, _ = draw_phantom(lesion, bare, 64)
        skin = draw_phantom(dataclasses.replace(lesion, visibility=0.0), bare, 64).image
        changed = (image != skin).any(axis=-1)
        assert not (changed & ~mask).any()
        assert changed[mask].mean() > 0.99
        assert np.array_equal(draw_phantom(lesion, view, 64).mask, mask), "an artefact altered the mask"


def test_diameter_and_number_of_pixels_agree():
    for lesion, _ in lesions(40):
        mask = draw_phantom(lesion, View(seed=(0,)), 96).mask
        measured = 20 * 2 * np.sqrt(mask.mean() / np.pi)  # the field of view is 20 mm wide
        assert measured == pytest.approx(lesion.diameter, rel=0.12)


@pytest.mark.parametrize("size", [16, 32, 96])
@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_alters_exactly_its_own_pixels(name, size):
    lesion, _ = sample_lesion(PhantomConfig(), 3)
    bare = draw_phantom(lesion, View(seed=(1,)), size).image
    drawn = draw_phantom(lesion, View(seed=(1,), artefacts=(name,)), size)
    changed = (drawn.image != bare).any(axis=-1)
    altered = drawn.artefacts[name]
    assert not (changed & ~altered).any()
    assert changed[altered].mean() > 0.9
    assert 0.002 < altered.mean() < 0.6


def test_pasting_leaves_the_given_image_alone():
    image = np.full((32, 32, 3), 128, dtype=np.uint8)
    pasted, altered = paste_artefact(image, "ruler", np.random.default_rng(0))
    assert (image == 128).all()
    assert (pasted[altered] != 128).any() and (pasted[~altered] == 128).all()


def test_a_phantom_is_the_same_picture_at_every_size():
    correlations = []
    for lesion, record in lesions(6):
        view = dataclasses.replace(sample_view(PhantomConfig(), record, 0), artefacts=())
        large, small = draw_phantom(lesion, view, 128), draw_phantom(lesion, view, 32)
        reduced = np.asarray(PIL.Image.fromarray(large.image).reduce(4), dtype=float)
        reduced_mask = np.asarray(PIL.Image.fromarray(large.mask.astype(np.uint8) * 255).reduce(4)) > 127
        assert np.abs(reduced - small.image).mean() < 4
        assert (reduced_mask & small.mask).sum() / (reduced_mask | small.mask).sum() > 0.8
        skin = ~(reduced_mask | small.mask)
        correlations.append(np.corrcoef(reduced[skin].mean(axis=-1), small.image[skin].mean(axis=-1))[0, 1])
    assert np.mean(correlations) > 0.75, "another texture"


# --- determinism -----------------------------------------------------------------------------------------------------


def examples(folder: Path, **settings) -> dict:
    builder = Phantom(cache_dir=str(folder), image_size=32, **settings)
    return dict(builder._generate_examples(sample_records(builder.config).to_dict("records")))


def test_the_same_seed_draws_the_same_bytes_whatever_the_number(tmp_path):
    few, many = examples(tmp_path, num_images=7), examples(tmp_path, num_images=15)
    assert few == {name: many[name] for name in few}
    other = examples(tmp_path, num_images=7, seed=1)
    assert not {row["image"]["bytes"] for row in few.values()} & {row["image"]["bytes"] for row in other.values()}


@pytest.mark.parametrize(
    ("settings", "governed"),
    [
        ({"tone_bias": 0.7}, {"contrast"}),
        ({"label_noise": 0.5}, {"diagnosis", "melanoma"}),
        ({"confounder": "ink"}, {"artefacts"}),
        ({"skin_type_proportions": (1, 1, 1, 1, 1, 1, 0)}, {"fitzpatrick", "ita"}),
    ],
)
def test_a_setting_changes_only_what_it_governs(settings, governed):
    plain, changed = (sample_records(PhantomConfig(num_images=200, **kwargs)) for kwargs in ({}, settings))
    different = {name for name in plain if not plain[name].equals(changed[name])}
    assert different == governed


# --- rates -----------------------------------------------------------------------------------------------------------


def test_a_good_classifier_of_the_true_signs_is_good_but_not_perfect():
    records = sample_records(PhantomConfig(num_images=3000, images_per_lesion=1))
    signs, melanoma = records[SIGNS].to_numpy(), (records["melanoma"] == "melanoma").to_numpy()
    model = LogisticRegression(C=100)
    scores = cross_val_predict(model, signs / signs.std(axis=0), melanoma, cv=5, method="decision_function")
    assert 0.92 < roc_auc_score(melanoma, scores) < 0.955
    for column in signs.T:
        assert 0.7 < roc_auc_score(melanoma, column) < 0.85


def test_groups_and_classes_come_at_the_requested_rates():
    weights = (1, 2, 3, 2, 1, 1, 2.5)
    records = sample_records(PhantomConfig(num_images=4000, melanoma_share=0.4, skin_type_proportions=weights))
    rows = records.drop_duplicates("lesion_id")
    shares = rows["fitzpatrick"].value_counts(normalize=True)
    for name, weight in zip([*TYPES, "unknown"], weights, strict=True):
        assert shares[name] == pytest.approx(weight / sum(weights), abs=0.03)
    assert (rows["melanoma"] == "melanoma").mean() == pytest.approx(0.4, abs=0.04)
    assert rows["age"].isna().any() and rows["age"].dropna().between(0, 100).all()
    assert records.groupby("lesion_id").size().value_counts(normalize=True)[2] == pytest.approx(0.5, abs=0.05)


def test_a_type_of_weight_zero_is_never_drawn():
    records = sample_records(PhantomConfig(num_images=300, skin_type_proportions=(0, 0, 1, 0, 0, 1)))
    assert set(records["fitzpatrick"]) == {"III", "VI"}


def test_label_noise_flips_its_share_and_keeps_the_truth():
    rows = sample_records(PhantomConfig(num_images=3000, label_noise=0.2)).drop_duplicates("lesion_id")
    flipped = rows["melanoma"] != rows["true_melanoma"]
    assert flipped.mean() == pytest.approx(0.2, abs=0.03)
    assert ((rows["diagnosis"] == "melanoma") == (rows["melanoma"] == "melanoma")).all()
    quiet = sample_records(PhantomConfig(num_images=300))
    assert (quiet["melanoma"] == quiet["true_melanoma"]).all()


def artefact_share(records, name: str, **where) -> float:
    for column, value in where.items():
        records = records[records[column] == value]
    return records["artefacts"].str.split().map(lambda names: name in names).mean()


def test_artefacts_are_independent_of_label_and_tone():
    records = sample_records(PhantomConfig(num_images=4000, melanoma_share=0.5))
    for name, rate in ARTEFACT_RATES.items():
        for label in ("benign", "melanoma"):
            assert artefact_share(records, name, melanoma=label) == pytest.approx(rate, abs=0.035)
        for skin_type in ("II", "V"):
            assert artefact_share(records, name, fitzpatrick=skin_type) == pytest.approx(rate, abs=0.07)


@pytest.mark.parametrize(("name", "strength"), [("ruler", 1.0), ("ruler", 0.6), ("dark_corner", 0.6)])
def test_a_confounder_is_tied_to_melanoma_by_its_strength(name, strength):
    config = PhantomConfig(num_images=3000, melanoma_share=0.5, confounder=name, confounder_strength=strength)
    records, rate = sample_records(config), ARTEFACT_RATES[name]
    expected = {"melanoma": rate + strength * (1 - rate), "benign": rate * (1 - strength)}
    for label, share in expected.items():
        assert artefact_share(records, name, melanoma=label) == pytest.approx(share, abs=0.04)
    assert artefact_share(records, "hair", melanoma="melanoma") == pytest.approx(ARTEFACT_RATES["hair"], abs=0.04)


# --- the builder and the command -------------------------------------------------------------------------------------


def test_the_command_writes_a_data_set_that_any_program_loads(tmp_path):
    folder = tmp_path / "phantom"
    flags = "--num_images 40 --image_size 24 --confounder ruler --tone_bias 0.5 --num_proc 2"
    command = [sys.executable, "-m", "dataset_scripts.phantom", "--output_dir", str(folder), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "phantom" in done.stdout and "40 images" in done.stdout
    card = (folder / "README.md").read_text()
    assert "no patient" in card and "ruler, strength 0.9" in card and "0.6 and 0.5" in card
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"}
    groups = [set(split["lesion_id"]) for split in loaded.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)), "a lesion crosses splits"

    rows = {row["image_id"]: row for split in loaded.values() for row in split}
    expected = examples(tmp_path, num_images=40, confounder="ruler", tone_bias=0.5)  # at another size
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert row["image"].size == row["mask"].size == row["artefact_mask"].size == (24, 24)
        assert set(np.unique(row["mask"])) == {0, 255}
        present = np.bitwise_or.reduce(np.asarray(row["artefact_mask"]).ravel())
        assert present == sum(ARTEFACT_BITS[artefact] for artefact in row["artefacts"].split())
        assert row["artefacts"] == expected[name]["artefacts"]
        assert row["source"] == "phantom"


def test_the_card_says_what_was_planted_and_what_was_not(tmp_path):
    plain = Phantom(cache_dir=str(tmp_path)).card_text()
    planted = Phantom(cache_dir=str(tmp_path), tone_bias=0.5, confounder="ink", confounder_strength=0.7).card_text()
    assert "tied to melanoma) | none |" in plain and "by 1 and 1) | 0 |" in plain
    assert "tied to melanoma) | ink, strength 0.7 |" in planted and "by 0.6 and 0.5) | 0.5 |" in planted


def test_the_images_of_a_lesion_differ_in_light_and_pose(tmp_path):
    builder = Phantom(cache_dir=str(tmp_path), num_images=30, image_size=32, images_per_lesion=3)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train+validation+test")
    table = rows.select_columns(["lesion_id", "ita", "asymmetry", "melanoma"]).to_pandas()
    assert table.groupby("lesion_id").nunique().max().max() == 1
    assert table.groupby("lesion_id").size().max() == 3
    assert len({row["mask"].tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"confounder": "rulers"}, ["--confounder rulers", "ruler", "hair", "dark_corner"]),
        ({"image_size": 15}, ["--image_size 15: give 16 to 1024"]),
        ({"num_images": 0}, ["--num_images 0: give 1 or more"]),
        ({"images_per_lesion": 0}, ["--images_per_lesion 0"]),
        ({"melanoma_share": 1.2}, ["--melanoma_share 1.2: give 0 to 1"]),
        ({"tone_bias": -0.1}, ["--tone_bias -0.1"]),
        ({"label_noise": float("nan")}, ["--label_noise nan"]),
        ({"confounder_strength": 2}, ["--confounder_strength 2"]),
        ({"skin_type_proportions": (1, 1, 1)}, ["--skin_type_proportions 1 1 1", "six"]),
        ({"skin_type_proportions": (0, 0, 0, 0, 0, 0, 1)}, ["--skin_type_proportions"]),
        ({"skin_type_proportions": (1, 1, 1, 1, 1, -1)}, ["--skin_type_proportions -1"]),
    ],
)
def test_bad_settings_are_named(settings, words, tmp_path):
    with pytest.raises(UserError) as caught:
        Phantom(cache_dir=str(tmp_path), **settings)
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) <= 2


def test_the_command_ends_a_bad_setting_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["phantom", "--output_dir", str(tmp_path / "phantom"), "--confounder", "tattoo"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) <= 2 and "tattoo" in message
    assert not list(tmp_path.iterdir())
