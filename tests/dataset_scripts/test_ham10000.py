"""HAM10000 from small raw folders of drawn images: layouts, the challenge's test set, ways in."""

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
import pytest
from ham10000_raw import (
    CHALLENGE,
    IMAGES,
    LAYOUTS,
    ROWS,
    SIZE,
    build,
    by_id,
    command,
    dataverse_zips,
    draw_image,
    flat,
    isic_archive,
    kaggle,
    kaggle_zip,
    metadata,
    part_folders,
    write_files,
    write_table,
    write_zip,
)

from dataset_scripts.ham10000 import HAM10000
from dataset_scripts.ham10000 import builder as ham10000_builder
from dataset_scripts.ham10000.builder import DUPLICATE_PAIRS, report
from dataset_scripts.ham10000.metadata import DIAGNOSES
from dataset_scripts.schema import record_features
from dataset_scripts.splits import read_manifest
from melanoma_fair_xai.base.errors import UserError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_records(tmp_path, layout):
    layout(tmp_path / "raw")
    builder, splits = build(tmp_path / "raw", tmp_path / "cache")
    assert list(splits) == ["train", "validation", "test"]
    extra = {"dx_type": datasets.Value("string"), "ita": datasets.Value("float32")}
    assert splits["train"].features == record_features(DIAGNOSES, extra)
    rows = by_id(splits)
    assert rows.keys() == IMAGES.keys() and not len(builder.skipped)
    has_masks = layout not in (kaggle, kaggle_zip, isic_archive)
    for published in ROWS:
        row = rows[published["image_id"]]
        names = {name: splits["train"].features[name].int2str(row[name]) for name in ("diagnosis", "melanoma", "sex")}
        assert names["diagnosis"] == published["dx"]
        assert names["melanoma"] == ("melanoma" if published["dx"] == "mel" else "benign")
        assert names["sex"] == (published["sex"] or "unknown")
        assert row["lesion_id"][-7:] == published["lesion_id"][-7:]
        assert row["age"] == (float(published["age"]) if published["age"] else None)
        assert row["localization"] == (published["localization"] or "unknown")
        assert row["dx_type"] == published["dx_type"]
        assert row["source"] == ("vidir_modern" if layout is dataverse_zips else "unknown")
        expected = PIL.Image.open(io.BytesIO(IMAGES[published["image_id"]]))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(expected))
        assert (row["mask"] is not None) == has_masks
    lesions = pd.DataFrame(rows.values()).groupby("lesion_id")["split"]
    assert lesions.nunique().max() == 1 and lesions.size().min() == 2


def test_splits_do_not_depend_on_the_order_of_the_table_or_the_layout(tmp_path):
    flat(tmp_path / "a")
    part_folders(tmp_path / "b")
    write_table(tmp_path / "b" / "HAM10000_metadata.tab", ROWS[::-1], delimiter="\t")
    split = [
        {name: row["split"] for name, row in by_id(build(tmp_path / folder, tmp_path / "cache", seed=seed)[1]).items()}
        for folder, seed in (("a", 0), ("b", 0), ("a", 1))
    ]
    assert split[0] == split[1] != split[2]


def test_known_duplicates_are_one_lesion(tmp_path):
    rows = metadata()
    for number, name in enumerate(DUPLICATE_PAIRS[0]):
        rows[4 * number]["image_id"] = name
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / f"{name}.jpg").write_bytes(draw_image(number))
    write_table(tmp_path / "raw" / "HAM10000_metadata.csv", rows)
    write_files(tmp_path / "raw", IMAGES, ".jpg")
    builder, splits = build(tmp_path / "raw", tmp_path / "cache")
    found = by_id(splits)
    assert {found[row["image_id"]]["lesion_id"] for row in (*rows[:2], *rows[4:6])} == {"HAM_0000000"}
    assert len({found[row["image_id"]]["split"] for row in (*rows[:2], *rows[4:6])}) == 1
    assert "24 lesions" in report(builder)
    assert "23 groups" in report(builder) and "1 pairs of known duplicates" in report(builder)


# --- the challenge's test set ----------------------------------------------------------------------------------------

TEST_IDS = ["ISIC_0034600", "ISIC_0034601", "ISIC_0034602"]


def one_hot(raw: Path) -> None:
    rows = [
        dict(zip(CHALLENGE, [name, *(float(k == i) for k in range(7))], strict=True))
        for i, name in enumerate(TEST_IDS)
    ]
    write_table(raw / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv", rows)


def dataverse_truth(raw: Path) -> None:
    rows = [
        {**ROWS[0], "image_id": name, "lesion_id": "HAM_0009000", "dx": dx}
        for name, dx in zip(TEST_IDS, ("mel", "nv", "bcc"), strict=True)
    ]
    write_table(raw / "ISIC2018_Task3_Test_GroundTruth.tab", rows, delimiter="\t")


@pytest.mark.parametrize("truth, lesions", [(one_hot, TEST_IDS), (dataverse_truth, ["HAM_0009000"] * 3)])
def test_the_challenges_test_set_is_a_split_of_its_own(tmp_path, truth, lesions):
    flat(tmp_path / "raw")
    truth(tmp_path / "raw")
    before = by_id(build(tmp_path / "raw", tmp_path / "cache")[1])
    assert before.keys() == IMAGES.keys(), "ground truth without images must change nothing"
    write_zip(tmp_path / "raw" / "ISIC2018_Task3_Test_Images.zip", {n: draw_image(99) for n in TEST_IDS}, ".jpg", "t/")
    builder, splits = build(tmp_path / "raw", tmp_path / "cache")
    assert list(splits) == ["train", "validation", "test", "isic2018_test"]
    assert splits["isic2018_test"]["lesion_id"][:] == lesions
    diagnosis = splits["isic2018_test"].features["diagnosis"]
    assert diagnosis.int2str(splits["isic2018_test"]["diagnosis"][:]) == ["mel", "nv", "bcc"]
    after = by_id(splits)
    assert {name: after[name]["split"] for name in before} == {name: row["split"] for name, row in before.items()}
    assert report(builder).startswith("48 images, 24 lesions")


def test_a_prepared_test_set_is_not_confused_with_test(tmp_path):
    flat(tmp_path / "raw")
    one_hot(tmp_path / "raw")
    write_files(tmp_path / "raw", {name: draw_image(99) for name in TEST_IDS}, ".jpg")
    done = command("--data_dir", tmp_path / "raw", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    splits = datasets.load_dataset(str(tmp_path / "out"))
    assert splits["isic2018_test"]["image_id"][:] == TEST_IDS
    assert not set(TEST_IDS) & set(splits["test"]["image_id"])


@pytest.mark.parametrize("cell", ["1.0", "0.3"])
def test_a_ground_truth_with_two_labels_is_refused(tmp_path, cell):
    flat(tmp_path)
    one_hot(tmp_path)
    path = tmp_path / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv"
    path.write_text(path.read_text().replace("ISIC_0034601,0.0", f"ISIC_0034601,{cell}"))
    with pytest.raises(UserError, match="GroundTruth.csv, line 3: not one 1"):
        HAM10000(data_dir=str(tmp_path)).scan()


# --- ways in ---------------------------------------------------------------------------------------------------------


def test_processes_and_streaming_give_the_same_records(tmp_path):
    dataverse_zips(tmp_path / "raw")
    builder, splits = build(tmp_path / "raw", tmp_path / "cache")
    two, own = (HAM10000(data_dir=str(tmp_path / "raw"), cache_dir=str(tmp_path / name)) for name in ("two", "own"))
    own.num_proc = 2
    own.download_and_prepare()
    two.download_and_prepare(num_proc=2)  # as `datasets` has it: shards of its own making
    streamed = builder.as_streaming_dataset()
    for name, rows in splits.items():
        assert two.as_dataset()[name].to_pandas().equals(rows.to_pandas())
        assert own.as_dataset()[name].to_pandas().equals(rows.to_pandas())
        assert [row["image_id"] for row in streamed[name]] == rows["image_id"][:]


def test_data_changed_in_place_is_noticed(tmp_path):
    flat(tmp_path / "raw")
    name = ROWS[0]["image_id"]
    before = by_id(build(tmp_path / "raw", tmp_path / "cache")[1])[name]
    (tmp_path / "raw" / f"{name}.jpg").write_bytes(draw_image(55))
    after = by_id(build(tmp_path / "raw", tmp_path / "cache")[1])[name]
    assert not np.array_equal(np.asarray(before["image"]), np.asarray(after["image"]))


def test_the_command_writes_a_folder_that_load_dataset_reads(tmp_path):
    flat(tmp_path / "raw")
    out = tmp_path / "data" / "ham10000"
    done = command("--data_dir", tmp_path / "raw", "--output_dir", out, "--num_proc", 2)
    assert done.returncode == 0, done.stderr
    for words in (
        "48 images, 24 lesions",
        "mel: 16 images, 8 lesions",
        "0 rows in skipped.csv",
        f"--dataset_name {out}",
    ):
        assert words in done.stdout
    card = (out / "README.md").read_text()
    assert 'load_dataset("ham10000")' in card and "`python -m dataset_scripts.ham10000`" in card
    for path in (tmp_path / "raw").iterdir():
        path.unlink()  # the prepared folder must stand alone
    splits = datasets.load_dataset(str(out))
    rows = by_id(splits)
    assert rows.keys() == IMAGES.keys() and rows[ROWS[0]["image_id"]]["image"].size == SIZE
    manifest = read_manifest(str(out / "split_manifest.csv"))
    assert {name: row["split"] for name, row in rows.items()} == dict(
        zip(manifest["image_id"], manifest["split"], strict=True)
    )
    assert sorted(path.name for path in out.parent.iterdir()) == ["ham10000"]


@pytest.mark.parametrize("fault", ["no folder", "not empty", "a file in the way"])
def test_the_command_ends_in_one_line_and_code_2(tmp_path, fault):
    flat(tmp_path / "raw")
    raw, out = tmp_path / "raw", tmp_path / "out"
    if fault == "no folder":
        raw = tmp_path / "nowhere"
    elif fault == "not empty":
        out = raw
    else:
        out = raw / "HAM10000_metadata.csv" / "out"
    before = sorted(path for path in tmp_path.rglob("*"))
    done = command("--data_dir", raw, "--output_dir", out, "--overwrite_output_dir")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ") and "Traceback" not in done.stderr and len(lines) == 1
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_download_fetches_every_file_with_its_checksum(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        ham10000_builder, "download", lambda url, path, md5: asked.append((url, os.path.basename(path), md5))
    )
    monkeypatch.setattr(ham10000_builder, "DATAVERSE", "http://127.0.0.1:1/datafile")
    ham10000_builder.download_raw(str(tmp_path / "new" / "folder"))
    assert ("http://127.0.0.1:1/datafile/4338392?format=original", "HAM10000_metadata.csv") in [a[:2] for a in asked]
    assert [md5 for *_, md5 in asked] == [md5 for _, md5 in ham10000_builder.DATAVERSE_FILES.values()]
    assert all(len(md5) == 32 for *_, md5 in asked) and (tmp_path / "new" / "folder").is_dir()
