"""What is wrong with a raw folder of HAM10000 is listed or refused, and nothing else is lost."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
import pytest
from ham10000_raw import (
    IMAGES,
    ROWS,
    SIZE,
    build,
    by_id,
    draw_image,
    draw_mask,
    flat,
    isic_rows,
    write_files,
    write_table,
)

from dataset_scripts.ham10000 import HAM10000
from dataset_scripts.ham10000.metadata import read_metadata
from dataset_scripts.skin_colour import individual_typology_angle, rgb_to_lab
from dataset_scripts.splits import read_manifest
from melanoma_fair_xai.base.errors import UserError

BROKEN = {
    ROWS[3]["image_id"]: (b"", "zero bytes"),
    ROWS[8]["image_id"]: (draw_image(8)[:-300], "damaged image"),
    ROWS[13]["image_id"]: (b"<!DOCTYPE html><html>404</html>", "a web page"),
    ROWS[21]["image_id"]: (b"plain text under an image's name", "not an image"),
    ROWS[30]["image_id"]: (None, "no image file"),
}


def break_images(raw: Path) -> None:
    for name, (content, _) in BROKEN.items():
        (raw / f"{name}.jpg").unlink()
        if content is not None:
            (raw / f"{name}.jpg").write_bytes(content)
    name = ROWS[33]["image_id"]  # a PNG under .jpg is still an image
    PIL.Image.open(io.BytesIO(IMAGES[name])).save(raw / f"{name}.jpg", "PNG")


def test_broken_images_are_skipped_and_listed_and_nothing_else_is_lost(tmp_path, capsys):
    flat(tmp_path / "raw")
    break_images(tmp_path / "raw")
    builder, splits = build(tmp_path / "raw", tmp_path / "cache", max_skipped_share=0.2)
    rows = by_id(splits)
    assert rows.keys() == IMAGES.keys() - BROKEN.keys()
    skipped = pd.read_csv(Path(builder.cache_dir) / "skipped.csv", keep_default_na=False)
    reasons = dict(zip(skipped["image_id"], skipped["reason"], strict=True))
    assert reasons.keys() == BROKEN.keys()
    assert all(BROKEN[name][1] in reason for name, reason in reasons.items())
    assert "skipped 5 of 48 images" in capsys.readouterr().out
    for name, row in rows.items():
        expected = PIL.Image.open(io.BytesIO(IMAGES[name]))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(expected))
    assert read_manifest(os.path.join(builder.cache_dir, "split_manifest.csv"))["image_id"].isin(rows).all()


def test_too_many_broken_images_stop_the_run(tmp_path):
    flat(tmp_path / "raw")
    break_images(tmp_path / "raw")
    with pytest.raises(UserError, match=r"5 of 48 images cannot be used, more than --max_skipped_share 0.05 allows"):
        build(tmp_path / "raw", tmp_path / "cache")


def test_masks_that_do_not_fit_are_left_out_and_listed(tmp_path, capsys):
    flat(tmp_path / "raw")
    masks = {
        ROWS[0]["image_id"]: draw_mask((20, 30)),
        ROWS[1]["image_id"]: b"",
        ROWS[2]["image_id"]: draw_mask()[:-30],
    }
    write_files(tmp_path / "raw", masks, "_segmentation.png")
    (tmp_path / "raw" / f"{ROWS[3]['image_id']}_segmentation.png").unlink()
    builder, splits = build(tmp_path / "raw", tmp_path / "cache", max_skipped_share=0)
    rows = by_id(splits)
    assert len(rows) == 48
    assert {name for name, row in rows.items() if row["mask"] is None} == {row["image_id"] for row in ROWS[:4]}
    assert builder.skipped["image_id"].tolist() == list(masks)
    assert "its size (20, 30) is not the image's (40, 30)" in builder.skipped["reason"][0]
    assert builder.skipped["reason"].str.startswith("mask: ").all()
    assert "3 masks left out" in capsys.readouterr().out


def test_ita_is_a_column_where_a_mask_leaves_skin(tmp_path):
    flat(tmp_path / "raw")
    pixels = np.zeros(SIZE[::-1], dtype=bool)
    pixels[8:22, 10:30] = True
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    beige = io.BytesIO()
    PIL.Image.new("RGB", SIZE, (210, 175, 145)).save(beige, "PNG")
    for row in ROWS[:2]:
        (tmp_path / "raw" / f"{row['image_id']}.jpg").write_bytes(beige.getvalue())
    (tmp_path / "raw" / f"{ROWS[0]['image_id']}_segmentation.png").write_bytes(stream.getvalue())
    (tmp_path / "raw" / f"{ROWS[1]['image_id']}_segmentation.png").unlink()
    rows = by_id(build(tmp_path / "raw", tmp_path / "cache")[1])
    lab = rgb_to_lab(np.array([210, 175, 145]) / 255)
    assert rows[ROWS[0]["image_id"]]["ita"] == pytest.approx(individual_typology_angle(lab), abs=0.01)
    assert rows[ROWS[1]["image_id"]]["ita"] is None, "no mask"
    assert rows[ROWS[2]["image_id"]]["ita"] is None, "its mask leaves no skin"


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("dx", "melanoma", "line 4: diagnosis 'melanoma' is not one of akiec"),
        ("age", "abc", "line 4: age 'abc'"),
        ("age", "-5", "line 4: age '-5'"),
        ("sex", "m/f", "line 4: sex 'm/f'"),
        ("dx_type", "guess", "line 4: dx_type 'guess'"),
        ("image_id", "", "line 4: no image id"),
        ("image_id", ROWS[0]["image_id"], f"image {ROWS[0]['image_id']} stands more than once"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_line(tmp_path, column, value, message):
    flat(tmp_path)
    rows = [dict(row) for row in ROWS]
    rows[2][column] = value
    write_table(tmp_path / "HAM10000_metadata.csv", rows)
    with pytest.raises(UserError, match="HAM10000_metadata.csv") as error:
        HAM10000(data_dir=str(tmp_path)).scan()
    assert message in str(error.value)


def test_an_unknown_diagnosis_of_the_archive_is_named(tmp_path):
    rows = isic_rows()
    rows[0]["diagnosis_3"] = "Lichenoid keratosis"
    write_table(tmp_path / "metadata.csv", rows)
    with pytest.raises(UserError, match="metadata.csv, line 2: diagnosis 'Lichenoid keratosis'"):
        read_metadata(str(tmp_path), {})


@pytest.mark.parametrize("table, column", [("HAM10000_metadata.csv", "dx"), ("metadata.csv", "lesion_id")])
def test_a_missing_column_is_named(tmp_path, table, column):
    rows = ROWS if column == "dx" else isic_rows()
    write_table(tmp_path / table, [{k: v for k, v in row.items() if k != column} for row in rows])
    with pytest.raises(UserError, match=f"{table}: no column {column}"):
        read_metadata(str(tmp_path), {})


def test_a_folder_without_metadata_names_the_ways_out(tmp_path):
    write_files(tmp_path, IMAGES, ".jpg")
    with pytest.raises(UserError, match="no HAM10000_metadata.*--data_dir.*--download"):
        HAM10000(data_dir=str(tmp_path)).scan()
    with pytest.raises(UserError, match="--data_dir"):
        HAM10000().scan()


def test_of_two_files_of_one_name_the_whole_one_counts_and_two_whole_ones_are_refused(tmp_path):
    flat(tmp_path)
    name = ROWS[0]["image_id"]
    write_files(tmp_path / "a", {name: b""}, ".jpg")
    records, skipped = HAM10000(data_dir=str(tmp_path)).scan()
    assert records["image"][0] == f"{tmp_path}/{name}.jpg" and not len(skipped)
    write_files(tmp_path / "a", {name: draw_image(77)}, ".jpg")
    with pytest.raises(UserError, match=f"{name}.jpg are different images of one name"):
        HAM10000(data_dir=str(tmp_path)).scan()
