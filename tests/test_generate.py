"""generate.py run for real on a small generator: what it writes, that it repeats itself, and what it refuses."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import diffusers
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import generate
import train_classifier
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.data.loading import add_synthetic, is_synthetic, load_records, load_synthetic, training_rows
from melanoma_fair_xai.diffusion import copies, quality
from melanoma_fair_xai.diffusion.copies import CopyFinder, nearest_pixels, thumbnails
from melanoma_fair_xai.diffusion.data import find_conditions
from melanoma_fair_xai.diffusion.export import export_pipeline, make_pipeline
from melanoma_fair_xai.diffusion.generation import (
    drawn_conditions,
    image_seed,
    load_pipeline,
    plain_value,
    read_record,
)
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.diffusion.process import make_noise_scheduler
from melanoma_fair_xai.engine.run_folder import lock_folder
from melanoma_fair_xai.hub import quality as card_quality

REPOSITORY = Path(generate.__file__).parent
FAST = ["--num_inference_steps", 2, "--batch_size", 4, "--guidance_scale", 1.5]


def launch(script, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        run_command(script.main)


def refusal(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        launch(generate, *arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def model(phantoms, tmp_path_factory) -> Path:
    """An untrained generator of 16 pixels that knows the conditions of the phantoms."""
    torch.manual_seed(0)
    table = load_records(str(phantoms)).table
    networks = create_networks(
        find_conditions(table, [], "phantoms"),
        resolution=16,
        block_out_channels=[16, 32],
        layers_per_block=1,
        attention_resolutions=[],
    )
    folder = tmp_path_factory.mktemp("generator")
    export_pipeline(make_pipeline(*networks, make_noise_scheduler("v_prediction", "linear")), folder)
    return folder


@pytest.fixture(scope="module")
def synthetic(model, phantoms, tmp_path_factory) -> Path:
    """60 images with the phantoms' own conditions, evened out by diagnosis."""
    folder = tmp_path_factory.mktemp("synthetic") / "images"
    flags = ["--model_name_or_path", model, "--output_dir", folder, *FAST, "--batch_size", 20]
    launch(generate, *flags, "--num_images", 60, "--like", phantoms, "--balance", "melanoma")
    return folder


def test_the_folder_is_an_image_folder_that_says_what_was_asked_for(synthetic):
    data = datasets.load_dataset("imagefolder", data_dir=str(synthetic), split="train")
    table = pd.read_csv(synthetic / "metadata.csv")
    assert list(table.columns[:2]) == ["file_name", "image_id"] and len(data) == len(table) == 60
    assert data[0]["image"].size == (16, 16) and data[0]["image"].mode == "RGB"
    assert table["synthetic"].all() and table["seed"].is_unique and table["weights"].str.len().eq(64).all()
    assert set(table["diagnosis"]) == {"nevus", "melanoma"}
    assert set(table["model"]) == {
        Path(json.loads((synthetic / "generate_args.json").read_text())["model_name_or_path"]).name
    }
    assert table["image_id"].tolist() == data["image_id"]
    assert read_record(synthetic / "000000.png")["seed"] == table["seed"][0]


def test_what_images_are_like_is_drawn_from_the_training_split(synthetic, phantoms):
    real, drawn = load_records(str(phantoms)).table, pd.read_csv(synthetic / "metadata.csv")
    training = real[real["split"] == "train"].set_index(["diagnosis", "sex", "localization"])["ita"].round(4)
    rows = drawn.fillna("unknown").set_index(["diagnosis", "sex", "localization"])["ita"].round(4)
    assert set(rows.items()) <= set(training.items())


def test_a_row_of_the_table_and_the_pipeline_give_the_image_again(synthetic, model):
    row = pd.read_csv(synthetic / "metadata.csv").iloc[7]
    pipeline = load_pipeline(str(model))
    pipeline.scheduler = getattr(diffusers, generate.SAMPLERS[row["scheduler"]]).from_config(pipeline.scheduler.config)
    names = [name for name in generate.CONDITIONS if name in pipeline.conditioner.names]
    asked = {name: plain_value(row[name]) for name in names}
    image = pipeline(
        **asked,
        generator=torch.Generator().manual_seed(int(row["seed"])),
        num_inference_steps=int(row["num_inference_steps"]),
        guidance_scale=row["guidance_scale"],
    ).images[0]
    difference = np.asarray(image).astype(int) - np.asarray(PIL.Image.open(synthetic / row["file_name"]))
    assert abs(difference).max() <= 2


def test_an_image_depends_on_its_seed_alone_whatever_was_there_before(model, tmp_path):
    flags = ["--model_name_or_path", model, "--num_images", 10, "--diagnosis", "melanoma", "nevus", *FAST]
    launch(generate, *flags, "--output_dir", tmp_path / "whole")
    first = pixels(tmp_path / "whole")
    table = (tmp_path / "whole" / "metadata.csv").read_text()
    for name in ("000001.png", "000006.png", "metadata.csv"):
        (tmp_path / "whole" / name).unlink()
    torn = tmp_path / "whole" / "000003.png"
    torn.write_bytes(torn.read_bytes()[:100])
    kept = (tmp_path / "whole" / "000000.png").stat().st_mtime_ns
    launch(generate, *flags, "--output_dir", tmp_path / "whole")
    again = pixels(tmp_path / "whole")
    assert first.keys() == again.keys() and all(np.array_equal(first[name], again[name]) for name in first)
    assert (tmp_path / "whole" / "metadata.csv").read_text() == table
    assert (tmp_path / "whole" / "000000.png").stat().st_mtime_ns == kept
    launch(generate, *flags, "--output_dir", tmp_path / "other", "--seed", 1)
    assert not any(np.array_equal(first[name], image) for name, image in pixels(tmp_path / "other").items())


def test_two_processes_write_what_one_does(model, tmp_path):
    flags = ["--model_name_or_path", model, "--num_images", 10, "--diagnosis", "melanoma", "nevus", *FAST]
    flags = [str(flag) for flag in flags]
    for folder, start in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        command = [*start, str(REPOSITORY / "generate.py"), *flags, "--output_dir", str(tmp_path / folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert len(one) == 10 and one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    assert (tmp_path / "one" / "metadata.csv").read_text() == (tmp_path / "two" / "metadata.csv").read_text()


def test_a_grid_has_every_combination_and_a_jpeg_its_record(model, tmp_path):
    flags = ["--model_name_or_path", model, "--output_dir", tmp_path / "grid", *FAST, "--image_format", "jpg"]
    launch(generate, *flags, "--grid", "--diagnosis", "melanoma", "nevus", "--sex", "female", "male")
    table = pd.read_csv(tmp_path / "grid" / "metadata.csv")
    assert sorted(zip(table["diagnosis"], table["sex"], strict=True)) == [
        (diagnosis, sex) for diagnosis in ("melanoma", "nevus") for sex in ("female", "male")
    ]
    assert read_record(tmp_path / "grid" / "000003.jpg")["seed"] == table["seed"][3] == image_seed(0, 3)


def test_a_table_of_conditions(model, tmp_path):
    (tmp_path / "table.csv").write_text("diagnosis,age,sex\nmelanoma,61,\n,,female\n")
    flags = ["--model_name_or_path", model, "--output_dir", tmp_path / "out", *FAST]
    launch(generate, *flags, "--conditions", tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "out" / "metadata.csv")
    assert table["diagnosis"].fillna("").tolist() == ["melanoma", ""] and table["sex"].fillna("").tolist() == [
        "",
        "female",
    ]
    assert table["age"][0] == 61 and np.isnan(table["age"][1])


def test_conditions_are_drawn_as_they_occur_together_or_evened_out():
    table = pd.DataFrame(
        {"diagnosis": ["nv"] * 90 + ["mel"] * 10, "sex": ["male"] * 90 + ["female"] * 9 + ["unknown"]}
    )
    drawn = drawn_conditions(table, ["diagnosis", "sex"], [], 4000, 0)
    assert (drawn["diagnosis"] == "mel").mean() == pytest.approx(0.1, abs=0.02)
    assert set(zip(drawn["diagnosis"], drawn["sex"], strict=True)) == {
        ("nv", "male"),
        ("mel", "female"),
        ("mel", None),
    }
    even = drawn_conditions(table, ["diagnosis", "sex"], ["diagnosis", "sex"], 4000, 0)
    assert (even["diagnosis"] == "mel").mean() == pytest.approx(0.5, abs=0.03) and "unknown" not in set(even["sex"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--diagnosis", "wart"], "diagnosis 'wart': unknown to this model; it knows melanoma"),
        (["--age", "-4"], "--age -4.0: give 0 to 120"),
        (["--age", "117"], "age 117.0: training never saw it; it saw "),
        (["--num_images", "0"], "--num_images 0: give 1 or more"),
        (["--guidance_scale", "-1"], "--guidance_scale -1.0: give 0 or more"),
        (["--guidance_interval", "0.9", "0.1"], "--guidance_interval 0.9 0.1: give the lower share first"),
        (["--grid"], "--grid: give the values to combine"),
        (["--balance", "sex"], "give --like DATASET, too"),
        (["--like", "phantom", "--sex", "male"], "--like and --sex both say what to generate"),
        (["--like", "phantom", "--grid"], "--like and --grid both say what to generate"),
        (["--like", "phantom", "--conditions", "t.csv"], "--conditions and --like both say what to generate"),
        (["--like", "phantom", "--reject_copies", "ham10000"], "give the data set of --like, phantom"),
        (["--model_name_or_path", "nowhere"], "nowhere: no such folder, and not to be had from the Hub"),
    ],
)
def test_user_errors_leave_nothing(model, tmp_path, capsys, flags, message):
    error = refusal(capsys, "--model_name_or_path", model, "--output_dir", tmp_path / "out", *FAST, *flags)
    assert message in error and not (tmp_path / "out").exists()


def test_every_problem_of_a_table_is_listed_with_its_line(model, tmp_path, capsys):
    table = tmp_path / "table.csv"
    flags = ["--model_name_or_path", model, "--output_dir", tmp_path / "out", *FAST, "--conditions", table]
    table.write_text("diagnosis,age,colour\nmelanoma,old,red\nnevus,30,blue\n")
    error = refusal(capsys, *flags)
    assert "2 problem(s)" in error and "column colour" in error and "line 2: age 'old' is not a number" in error
    table.write_text("diagnosis,age\nwart,30\nnevus,-5\nmelanoma,130\n")
    error = refusal(capsys, *flags)
    assert "line 3: age '-5' is not" in error and "line 4: age '130' is not" in error
    table.write_text("diagnosis,age\nwart,30\nnevus,30\nmelanoma,119\n")
    error = refusal(capsys, *flags)
    assert "line 2: diagnosis 'wart'" in error and "line 4: age 119.0" in error and not (tmp_path / "out").exists()


def test_numbers_and_data_sets_that_do_not_fit_are_refused(model, phantoms, synthetic, tmp_path, capsys):
    flags = ["--model_name_or_path", model, "--output_dir", tmp_path / "out", *FAST]
    (tmp_path / "table.csv").write_text("diagnosis\nmelanoma\nnevus\n")
    error = refusal(capsys, *flags, "--conditions", tmp_path / "table.csv", "--num_images", 3)
    assert "--num_images 3: " in error and "table.csv has 2 rows; leave the flag out" in error
    assert "--like: say how many with --num_images" in refusal(capsys, *flags, "--like", phantoms)
    labelled = shutil.copytree(synthetic, tmp_path / "labelled")  # so that it could be read as a data set
    table = pd.read_csv(labelled / "metadata.csv")
    table.assign(melanoma=(table["diagnosis"] == "melanoma").astype(int)).to_csv(
        labelled / "metadata.csv", index=False
    )
    for flag in ("--like", "--reject_copies"):
        error = refusal(capsys, *flags, flag, labelled, "--num_images", 2)
        assert f"{labelled}: holds generated images; name the real data set" in error
    with pytest.raises(SystemExit):
        launch(quality, synthetic, "--real", labelled, "--feature_model", "test_resnet")
    assert f"--real {labelled}: holds generated images; name the real data set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    launch(generate, *flags, "--conditions", tmp_path / "table.csv", "--num_images", 2)
    assert pd.read_csv(tmp_path / "out" / "metadata.csv")["diagnosis"].tolist() == ["melanoma", "nevus"]


def test_what_training_hardly_saw_is_warned_of_once_and_made(model, tmp_path, capsys):
    """The phantoms have fewer than 50 images of any skin type, and more of either sex."""
    flags = ["--model_name_or_path", model, *FAST, "--num_images", 3]
    launch(generate, *flags, "--output_dir", tmp_path / "rare", "--fitzpatrick", "VI")
    said = capsys.readouterr().out
    assert said.count("warning: fitzpatrick VI: training saw ") == said.count("warning: ") == 1
    launch(generate, *flags, "--output_dir", tmp_path / "common", "--sex", "male")
    assert "warning: " not in capsys.readouterr().out
    assert len(pixels(tmp_path / "rare")) == len(pixels(tmp_path / "common")) == 3


def test_other_folders_are_left_alone(model, synthetic, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    flags = ["--model_name_or_path", model, *FAST]
    (tmp_path / "mine" / ".partial-thesis").touch()
    before = set(os.listdir(tmp_path / "mine"))
    assert "that generate.py did not write" in refusal(capsys, *flags, "--output_dir", tmp_path / "mine")
    assert set(os.listdir(tmp_path / "mine")) == before
    error = refusal(capsys, *flags, "--output_dir", synthetic)
    assert "made with num_images 60, not None; choose another folder" in error


def hold(folder: Path, held, done) -> None:
    """In a process of its own: another generate.py at work."""
    with lock_folder(folder):
        held.set()
        done.wait()


def test_two_do_not_write_one_folder(model, tmp_path, capsys):
    folder = tmp_path / "out"
    flags = ["--model_name_or_path", model, "--num_images", 2, *FAST, "--output_dir", folder]
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, held, done))
    other.start()
    assert held.wait(60)
    assert f"--output_dir {folder}: in use by another run (process {other.pid} on " in refusal(capsys, *flags)
    assert not pixels(folder)
    done.set()
    other.join()
    launch(generate, *flags)
    assert len(pixels(folder)) == 2 and len(datasets.load_dataset(str(folder), split="train")) == 2


def test_a_full_disk_ends_in_a_line_and_a_restart_continues(model, tmp_path, capsys, file_size_limit):
    flags = ["--model_name_or_path", model, "--num_images", 6, *FAST, "--output_dir", tmp_path / "out"]
    with file_size_limit(850):
        assert "error: writing: File too large" in refusal(capsys, *flags)
    assert not list((tmp_path / "out").glob(".partial-*")) and not (tmp_path / "out" / "metadata.csv").exists()
    settings = json.loads((tmp_path / "out" / "generate_args.json").read_text())
    del settings["trust_remote_code"]  # as of an earlier version, which had no such flag
    (tmp_path / "out" / "generate_args.json").write_text(json.dumps(settings))
    launch(generate, *flags)
    assert len(pixels(tmp_path / "out")) == 6


def test_copies_are_made_anew_and_counted(model, phantoms, tmp_path, monkeypatch):
    """A threshold that takes about half of all images for copies, so that some must be made again."""
    flags = ["--model_name_or_path", model, "--num_images", 8, "--diagnosis", "melanoma", *FAST]
    launch(generate, *flags, "--output_dir", tmp_path / "plain")
    before = pixels(tmp_path / "plain")
    finders = []

    def strict_finder(*arguments):
        finder = CopyFinder.of(*arguments)
        rows = thumbnails(torch.from_numpy(np.stack(list(before.values()))).permute(0, 3, 1, 2))
        finders.append(CopyFinder(finder.training, float(np.median(nearest_pixels(rows, finder.training).ratio))))
        return finders[0]

    monkeypatch.setattr(copies, "CopyFinder", SimpleNamespace(of=strict_finder))
    launch(generate, *flags, "--output_dir", tmp_path / "checked", "--reject_copies", phantoms)
    table = pd.read_csv(tmp_path / "checked" / "metadata.csv")
    after = pixels(tmp_path / "checked")
    assert (
        (table["rejected"] > 0).sum() == finders[0].are_copies([*map(PIL.Image.fromarray, before.values())]).sum() == 4
    )
    assert len(finders[0].training) == (load_records(str(phantoms)).table["split"] == "train").sum()
    assert not finders[0].are_copies([*map(PIL.Image.fromarray, after.values())])[~table["copy"]].any()
    for row, (name, image) in zip(table.itertuples(), after.items(), strict=True):
        assert row.seed == image_seed(0, row.Index, row.rejected)
        assert np.array_equal(image, before[name]) == (row.rejected == 0)


def test_a_copy_that_comes_again_and_again_is_let_through_and_said_to_be_one(model, phantoms, tmp_path, monkeypatch):
    finder = SimpleNamespace(are_copies=lambda images: np.array([image.getpixel((0, 0))[0] >= 0 for image in images]))
    monkeypatch.setattr(copies, "CopyFinder", SimpleNamespace(of=lambda *arguments: finder))
    flags = ["--model_name_or_path", model, "--num_images", 2, *FAST, "--reject_copies", phantoms]
    launch(generate, *flags, "--output_dir", tmp_path)
    table = pd.read_csv(tmp_path / "metadata.csv")
    assert table["copy"].all() and (table["rejected"] == generate.ATTEMPTS - 1).all()
    assert table["seed"].tolist() == [image_seed(0, index, generate.ATTEMPTS - 1) for index in range(2)]


def test_generated_images_join_the_training_split_alone(synthetic, phantoms):
    real = load_records(str(phantoms))
    generated = load_synthetic(str(synthetic), real)
    mixed = add_synthetic(real, generated, 0.5, seed=0)
    share = is_synthetic(mixed.table)
    assert set(mixed.table["split"][share]) == {"train"}
    assert share.sum() == round(0.5 * (real.table["split"] == "train").sum())
    assert len(mixed.images) == len(mixed.table) == len(real.table) + share.sum()
    melanoma = mixed.table["melanoma"][share] == 1
    assert (melanoma == (mixed.table["diagnosis"][share] == "melanoma")).all() and 0 < melanoma.mean() < 1
    with pytest.raises(UserError, match="--synthetic_ratio 9"):
        add_synthetic(real, generated, 9, seed=0)
    with pytest.raises(UserError, match="not a folder that generate.py wrote"):
        load_synthetic(str(phantoms), real)


def test_a_part_of_the_real_images_gets_its_share_of_generated_ones(synthetic, phantoms):
    real = load_records(str(phantoms))
    mixed = add_synthetic(real, load_synthetic(str(synthetic), real), 0.5, seed=0, limit=8)
    rows = training_rows(mixed.table, 8, seed=0)
    generated = is_synthetic(mixed.table)[rows]
    assert generated.sum() == is_synthetic(mixed.table).sum() == 4
    assert set(rows[~generated]) == set(training_rows(real.table, 8, seed=0))
    assert len(set(rows)) == 12 and set(mixed.table["split"].iloc[rows]) == {"train"}


def test_the_loop_closes(synthetic, phantoms, tmp_path):
    """From drawings to a generator to a classifier that trained on both; its test split is all real."""
    tiny = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", 32, "--mixed_precision", "no"]
    tiny += [
        "--max_train_steps",
        3,
        "--report_to",
        "none",
        "--dataset_name",
        phantoms,
        "--output_dir",
        tmp_path / "run",
    ]
    launch(train_classifier, *tiny, "--synthetic_dir", synthetic, "--synthetic_ratio", 0.5)
    real = load_records(str(phantoms)).table
    test = pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet")
    assert set(test["image_id"]) == set(real["image_id"][real["split"] == "test"])
    count = round(0.5 * (real["split"] == "train").sum())
    assert f"The training split holds {count} generated images" in (tmp_path / "run" / "README.md").read_text()


def test_the_quality_report_tells_generated_from_real(synthetic, model, phantoms, tmp_path, capsys):
    torch.manual_seed(0)
    launch(
        train_classifier, "--dataset_name", phantoms, "--model_name_or_path", "test_resnet", "--no_pretrained",
        "--image_size", 32, "--mixed_precision", "no", "--max_train_steps", 3, "--report_to", "none",
        "--output_dir", tmp_path / "features",
    )  # fmt: skip
    flags = ["--feature_model", tmp_path / "features", "--output_dir", tmp_path / "quality"]
    launch(quality, synthetic, "--real", phantoms, *flags)
    table = pd.read_csv(tmp_path / "quality" / "quality.csv").set_index(["scope", "metric"])
    kid = table.loc[("all", "kid")]
    assert kid["value"] > 3 * abs(kid["floor"]) and kid["n_generated"] == 60
    assert table.loc[("all", "coverage"), "value"] < table.loc[("all", "coverage"), "floor"]
    text = (tmp_path / "quality" / "quality.md").read_text()
    assert (
        "too few images" in text
        and "(phantoms)" in text
        and (tmp_path / "quality" / "nearest_pairs.png").stat().st_size
    )
    copies = pd.read_csv(tmp_path / "quality" / "copies.csv")
    real = load_records(str(phantoms)).table
    assert set(copies["pixel_nearest"]) <= set(real["image_id"][real["split"] == "train"])
    # The card of the model that made them takes the report, and that of no other model.
    run = shutil.copytree(model, tmp_path / "run")
    card_quality.take(tmp_path / "quality", run)
    found = card_quality.read(run)
    assert found["feature_model"] == "features" and found["num_inference_steps"] == 2
    tables = [[line for line in report.splitlines() if line.startswith("|")] for report in (found["text"], text)]
    assert tables[0] == tables[1] and not list(run.rglob("nearest_pairs.png"))
    facts = json.loads((tmp_path / "quality" / "quality.json").read_text())
    (tmp_path / "quality" / "quality.json").write_text(json.dumps({**facts, "weights": "another"}))
    with pytest.raises(UserError, match="images of another model"):
        card_quality.take(tmp_path / "quality", run)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        launch(quality, phantoms, "--real", synthetic, *flags)
    assert "error: " in capsys.readouterr().err
