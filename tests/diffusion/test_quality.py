"""The quality report on planted features and planted copies: which way each figure points, and what is a copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import timm
from accelerate.state import AcceleratorState, GradientState
from matplotlib.figure import Figure
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint

from dataset_scripts.phantom import Phantom
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.diffusion import quality, sample_report
from melanoma_fair_xai.diffusion.copies import CopyFinder, copy_threshold, nearest_features
from melanoma_fair_xai.diffusion.sample_metrics import frechet_distance
from melanoma_fair_xai.diffusion.sample_report import CATEGORIES, DIRECTIONS, FEW, Described

DEPTH = 4  # features
NAN = float("nan")


def described(features: np.ndarray, prefix: str = "x", lab: float = 0.0, **columns) -> Described:
    """Images with these features, and thumbnails that are as far apart as the features are."""
    count = len(features)
    table = pd.DataFrame({"image_id": [f"{prefix}{i}" for i in range(count)]})
    table = table.assign(**{name: columns.get(name, "unknown") for name in CATEGORIES})
    thumbnails = np.random.default_rng(len(prefix)).normal(size=(count, 3 * 16 * 16)).astype(np.float32)
    pixels = np.zeros((count, 2, 2, 3), np.uint8)
    return Described(table, features, thumbnails, np.full((count, 6), lab), pixels)


def normal(count: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, size=(count, DEPTH))


REFERENCE, FLOOR = described(normal(60, seed=1)), described(normal(60, seed=2))


@pytest.mark.parametrize("metric", DIRECTIONS)
def test_each_metric_says_better_of_the_better_generator(metric):
    """One that draws from the same distribution, and one whose images are of another, and half of them alike."""
    good, bad = normal(60, seed=3), normal(60, 1.5, seed=4)
    bad[30:] = bad[0]
    values, floors = [], []
    for features in (good, bad):
        table = sample_report.compare(described(features), REFERENCE, FLOOR)
        row = table[table["scope"] == "all"].set_index("metric").loc[metric]
        values.append(row["value"])
        floors.append(row["floor"])
    assert floors[0] == floors[1], "the floor does not depend on what was generated"
    better = values[0] < values[1] if DIRECTIONS[metric] == "lower is better" else values[0] > values[1]
    assert better and DIRECTIONS[metric] in ("lower is better", "higher is better")
    assert abs(values[0] - floors[0]) < abs(values[1] - floors[1]), "the better one is nearer to the floor"


def test_a_generator_of_one_kind_of_image_is_precise_and_recalls_little():
    """And one that draws far more than there is recalls it all, imprecisely."""
    values = {}
    for name, features in {"narrow": 0.02 * normal(60, seed=3), "wide": normal(60, scale=6, seed=3)}.items():
        table = sample_report.compare(described(features), REFERENCE, FLOOR)
        values[name] = table[table["scope"] == "all"].set_index("metric")["value"]
    assert values["narrow"]["precision"] == 1 and values["narrow"]["recall"] < 0.2
    assert values["wide"]["precision"] < 0.2 and values["wide"]["recall"] == 1


def test_the_floor_is_what_the_other_half_scores_at_the_same_number():
    few, many = described(normal(25, seed=3)), described(normal(200, seed=3))
    table = sample_report.compare(few, REFERENCE, FLOOR, seed=5).set_index("metric").loc["frechet_distance"]
    assert (table["n_generated"], table["n_compared"], table["n_reference"]) == (25, 25, 60)
    assert table["value"] == frechet_distance(few.features, REFERENCE.features)
    assert table["floor"] != frechet_distance(FLOOR.features, REFERENCE.features)
    table = sample_report.compare(many, REFERENCE, FLOOR, seed=5).set_index("metric").loc["frechet_distance"]
    assert (table["n_generated"], table["n_compared"]) == (200, 60)
    assert table["floor"] == frechet_distance(FLOOR.features, REFERENCE.features)


def test_colours_stand_with_what_they_are_the_colours_of():
    lab = np.arange(6.0)
    generated, floor = (Described(part.table, part.features, part.thumbnails, part.lab + lab, part.pixels)
                        for part in (described(normal(60, seed=3), lab=10), FLOOR))  # fmt: skip
    rows = sample_report.compare(generated, REFERENCE, floor).set_index("metric")
    for place, name in enumerate(("L*", "a*", "b*")):
        assert tuple(rows.loc[f"mean {name}", ["value", "floor"]]) == (10 + place, place)
        assert tuple(rows.loc[f"deviation of {name} within an image", ["value", "floor"]]) == (13 + place, 3 + place)


@pytest.mark.parametrize("count", [FEW - 1, FEW])
def test_few_images_of_a_condition_are_counted_and_no_more(count):
    names = np.array(["mel"] * count + ["nv"] * (60 - count))
    parts = [described(normal(60, seed=seed), diagnosis=names) for seed in (3, 1, 2)]
    table = sample_report.compare(*parts).set_index(["scope", "metric"])
    assert not table.index.get_level_values("scope").str.contains("unknown|sex").any()
    row = table.loc["diagnosis mel"]
    assert (row["n_generated"] == count).all()
    assert (row.index == "too few images").any() == (count < FEW)
    assert table.loc[("diagnosis nv", "kid"), "n_generated"] == 60 - count
    if count >= FEW:
        alone = sample_report.compare(*(part.select(names == "mel") for part in parts)).set_index(["scope", "metric"])
        pd.testing.assert_series_equal(row["value"], alone.loc["all", "value"])
    text = sample_report.to_markdown(table.reset_index(), sample_report.copy_shares(_copies([])), "planted")
    lines = [line for line in text.splitlines() if line.startswith("| diagnosis mel")]
    assert any("too few images" in line for line in lines) == (count < FEW)


def _copies(of: list[int]) -> pd.DataFrame:
    """Ten images of which those are copies; the first four are melanomas."""
    table = pd.DataFrame({name: ["unknown"] * 10 for name in CATEGORIES})
    return table.assign(diagnosis=["mel"] * 4 + ["nv"] * 6, copy=[i in of for i in range(10)])


def test_shares_of_copies_by_condition_and_in_words():
    shares = sample_report.copy_shares(_copies([0, 1, 9])).set_index("scope")
    assert list(shares.index) == ["all", "diagnosis mel", "diagnosis nv"]
    assert shares["n"].tolist() == [10, 4, 6] and shares["copies"].tolist() == [3, 2, 1]
    for row in shares.itertuples():
        assert row.share == row.copies / row.n
        limits = proportion_confint(row.copies, row.n, method="beta")
        assert (row.low, row.high) == pytest.approx(limits)
    rows = [
        {"scope": "all", "n_generated": 90, "n_compared": 60, "n_reference": 50, "metric": name, "value": value,
         "spread": spread, "floor": 0.25, "floor_spread": spread}
        for name, value, spread in (("kid", 0.5, 0.125), ("recall", 0.75, NAN), ("frechet_distance", NAN, NAN))
    ]  # fmt: skip
    text = sample_report.to_markdown(pd.DataFrame(rows), shares.reset_index(), "planted")
    assert "| images | generated / reference | metric | generated | floor (real) |" in text
    assert "| all | 90 (60 compared) / 50 | kid, lower is better | 0.5000 ± 0.1250 | 0.2500 ± 0.1250 |" in text
    assert "| recall, higher is better | 0.7500 | 0.2500 |" in text
    assert "| frechet_distance, lower is better | too few images | 0.2500 |" in text
    assert "| diagnosis mel | 4 | 2 | 50.0 % [6.8, 93.2] |" in text and "all but 0.5 %" in text


def test_a_copy_in_either_space_is_one_and_what_is_near_in_neither_is_none():
    training, held_out = described(normal(80, seed=1), "train"), described(normal(80, seed=2), "held")
    generated = described(normal(30, seed=3), "gen")
    generated.thumbnails[4] = training.thumbnails[7]
    generated.features[9] = training.features[11]
    copies = sample_report.find_copies(generated, training, held_out).set_index("image_id")
    assert copies["copy"][["gen4", "gen9"]].all() and not copies["copy"].drop(["gen4", "gen9"]).any()
    assert copies["pixel_nearest"]["gen4"] == "train7" and copies["feature_nearest"]["gen9"] == "train11"
    assert copies["pixel_ratio"]["gen4"] < 1e-3 < 0.5 < copies["pixel_ratio"]["gen9"]


def test_the_margin_is_where_held_out_images_begin():
    """In one space: an image as near as the nearest held-out one is none, one that is nearer by a little is one."""
    training, held_out = described(normal(80, seed=1), "train"), described(normal(300, seed=2), "held")
    threshold = copy_threshold(nearest_features(held_out.features, training.features))
    start, end = (
        held_out.features[0],
        training.features[nearest_features(held_out.features[:1], training.features).index[0]],
    )

    def on_the_way(share: float) -> np.ndarray:
        return (start + share * (end - start))[None]

    shares = np.linspace(0, 1, 2001)
    ratios = np.array([nearest_features(on_the_way(share), training.features).ratio[0] for share in shares])
    far, near = (shares[ratios >= threshold].max(), shares[ratios < threshold].min())
    assert 0 < near - far < 0.01
    for share, verdict in ((far, False), (near, True)):
        generated = described(on_the_way(share), "gen")
        copies = sample_report.find_copies(generated, training, held_out)
        assert copies["copy"].tolist() == [verdict], copies


def test_a_finder_takes_what_is_nearer_than_its_threshold_for_a_copy():
    pixels = np.random.default_rng(0).integers(0, 256, (61, 16, 16, 3), dtype=np.uint8)
    training = np.arange(61) < 60
    ratio = CopyFinder.of(pixels, training).threshold  # that of the one image that is held out
    finder = CopyFinder(CopyFinder.of(pixels, training).training, ratio)
    picture = [PIL.Image.fromarray(pixels[60])]
    assert not finder.are_copies(picture)[0]
    assert CopyFinder(finder.training, np.nextafter(np.float32(ratio), np.float32(2))).are_copies(picture)[0]
    assert finder.are_copies([PIL.Image.fromarray(pixels[0])])[0]


def test_the_nearest_pairs_stand_one_above_the_other(monkeypatch, tmp_path):
    drawn = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            drawn.append(self)

    monkeypatch.setattr(sample_report, "Figure", Kept)
    generated, training = described(normal(12), "gen"), described(normal(5), "train")
    for part, offset in ((generated, 0), (training, 100)):
        part.pixels[:] = (offset + np.arange(len(part.table)))[:, None, None, None]
    copies = generated.table.assign(
        pixel_ratio=np.linspace(1, 0.1, 12),
        pixel_nearest=[f"train{i % 5}" for i in range(12)],
        copy=[False] * 11 + [True],
    )
    sample_report.plot_nearest_pairs(copies, generated, training, tmp_path / "pairs.png")
    axes = np.array(drawn[0].axes).reshape(4, 10)
    shown = [
        (int(axes[line, column].images[0].get_array()[0, 0, 0]), axes[line, column].get_title())
        for line in (0, 2)
        for column in range(10)
        if axes[line, column].images
    ]
    below = [int(a.images[0].get_array()[0, 0, 0]) for line in (1, 3) for a in axes[line] if a.images]
    assert [image for image, _ in shown] == list(range(11, -1, -1))
    assert below == [100 + image % 5 for image, _ in shown]
    assert [title for _, title in shown[:2]] == ["0.10 copy", "0.18"]


def launch(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quality", *map(str, arguments)])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        run_command(quality.main)


def test_planted_copies_of_training_images_are_found_by_the_command(phantoms, tmp_path, monkeypatch):
    """Ten training images, turned, among thirty drawings of other lesions; all are seen as the generator sees them."""
    crops, halves, describe, compare = [], [], sample_report.describe, sample_report.compare

    def watched(accelerator, records, network, preprocessing) -> Described:
        crops.append((preprocessing.crop_mode, preprocessing.crop_pct))
        return describe(accelerator, records, network, preprocessing)

    def watched_comparison(generated, reference, floor, seed) -> pd.DataFrame:
        halves.extend((reference, floor))
        return compare(generated, reference, floor, seed)

    monkeypatch.setattr(sample_report, "describe", watched)
    monkeypatch.setattr(sample_report, "compare", watched_comparison)
    timm_weights = tmp_path / "features.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), timm_weights)
    records = load_records(str(phantoms))
    rows = np.flatnonzero(records.table["split"] == "train")[:10]
    originals = [records.images.cast_column("image", datasets.Image())[int(row)]["image"] for row in rows]
    other = Phantom(num_images=30, image_size=32, images_per_lesion=1, seed=99, cache_dir=str(tmp_path / "cache"))
    other.download_and_prepare()
    drawings = [image for part in other.as_dataset().values() for image in part["image"]]
    folder = tmp_path / "synthetic"
    folder.mkdir()
    for number, image in enumerate(
        [*(image.transpose(PIL.Image.Transpose.ROTATE_90) for image in originals), *drawings]
    ):
        image.convert("RGB").save(folder / f"{number:02d}.png")
    names = [f"{number:02d}.png" for number in range(40)]
    table = pd.DataFrame({"file_name": names, "image_id": names, "lesion_id": names, "synthetic": True})
    table.assign(diagnosis=["melanoma", "nevus"] * 20).to_csv(folder / "metadata.csv", index=False)
    (folder / "generate_args.json").write_text(json.dumps({"weights": "abc", "num_inference_steps": 7}))
    flags = ["--feature_model", "test_resnet", "--feature_weights", timm_weights, "--image_size", 32]
    launch(folder, "--real", phantoms, *flags, "--output_dir", tmp_path / "quality")
    copies = pd.read_csv(tmp_path / "quality" / "copies.csv")
    assert copies["copy"][:10].all() and copies["copy"][10:].sum() <= 1
    assert copies["pixel_nearest"][:10].tolist() == records.table["image_id"][rows].tolist()
    metrics = pd.read_csv(tmp_path / "quality" / "quality.csv").set_index(["scope", "metric"])
    held_out = records.table[records.table["split"] != "train"]
    # Two halves by lesion: the floor compares one with the other.
    row = metrics.loc[("all", "kid")]
    assert row["n_generated"] == 40 and 0.4 < row["n_reference"] / len(held_out) < 0.6
    lesions = [set(half.table["lesion_id"]) for half in halves]
    assert not lesions[0] & lesions[1] and lesions[0] | lesions[1] == set(held_out["lesion_id"])
    for name, beginning in quality.REPORT.items():
        assert (tmp_path / "quality" / name).read_text().startswith(beginning), "or it could not be replaced"
    facts = json.loads((tmp_path / "quality" / "quality.json").read_text())
    assert crops == [("center", 1.0)] * 2
    unsaid = dict.fromkeys(("scheduler", "guidance_scale", "guidance_interval", "precision"))
    assert facts == {"feature_model": "test_resnet", "seed": 0, "weights": "abc", "num_inference_steps": 7, **unsaid}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seed", "-1"], "--seed -1: give 0 or more"),
        (["--image_size", "0"], "--image_size 0: give 1 or more"),
        (["--image_mean", "0.5"], "--image_mean 0.5: give 3 values"),
        (["--image_std", "0", "1", "1"], "--image_std 0.0: give more than 0"),
        (["--feature_modle", "x"], "unrecognized arguments: --feature_modle x; did you mean --feature_model?"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(tmp_path, flags, words):
    asked = [tmp_path, "--real", "phantom", "--feature_model", "resnet18", *flags]
    code = f"import runpy, sys; sys.argv[1:] = {[str(word) for word in asked]}\ntry:\n    "
    code += "runpy.run_module('melanoma_fair_xai.diffusion.quality', run_name='__main__')\n"
    code += "finally:\n    assert not {'torch', 'numpy', 'pandas', 'timm'} & set(sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(quality.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {words}"), done.stderr
    assert not list(tmp_path.iterdir())
