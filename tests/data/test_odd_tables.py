"""Labels, lesions, skin types, ages and files as people's own tables have them: no wrong answer in silence."""

import io
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from dataset_scripts.splits import write_manifest
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import ColumnNames, Records, load_records, load_synthetic

ROWS = 40
SCHEMA = ColumnNames()
KIND = ColumnNames(label="kind", positive_labels=("melanoma",))


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (200, 150, 130)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, features: dict | None = None, **own) -> None:
    """A user's own Parquet of ROWS images with columns `own`, a value for all or one each."""
    folder.mkdir()
    table = {"image": [{"bytes": png(), "path": None}] * ROWS, "lesion_id": [f"l{row}" for row in range(ROWS)]}
    table |= {name: value if isinstance(value, list) else [value] * ROWS for name, value in own.items()}
    dataset = datasets.Dataset.from_dict(table)
    for name, feature in {"image": datasets.Image(decode=False), **(features or {})}.items():
        dataset = dataset.cast_column(name, feature)
    dataset.to_parquet(folder / "train.parquet")


def load(folder: Path, columns: ColumnNames = SCHEMA, features: dict | None = None, share=1.0, **own) -> Records:
    write(folder, features, **own)
    return load_records(str(folder), columns=columns, max_skipped_share=share)


def cycle(*values) -> list:
    return [values[row % len(values)] for row in range(ROWS)]


@pytest.mark.parametrize("missing", ["", " ", None, "unknown", "nan"])
def test_a_missing_label_is_not_benign(tmp_path, missing):
    kinds = cycle("melanoma", "nevus", missing, "nevus")
    records = load(tmp_path / "own", KIND, kind=kinds)
    assert records.table["melanoma"].value_counts().to_dict() == {0: ROWS // 2, 1: ROWS // 4}
    assert len(records.images) == len(records.table) == ROWS - ROWS // 4
    assert records.skipped["reason"].tolist() == ["no label"] * (ROWS // 4)
    assert records.skipped["image_id"].tolist()[:2] == ["train-000002", "train-000006"]
    with pytest.raises(UserError, match="10 of 40 images cannot be used, more than --max_skipped_share 0.05.*no lab"):
        load(tmp_path / "strict", KIND, kind=kinds, share=0.05)


def test_a_category_without_a_value_is_not_benign(tmp_path):
    kinds = datasets.ClassLabel(names=["melanoma", "nevus"])
    records = load(tmp_path / "labels", KIND, {"kind": kinds}, kind=cycle(0, 1, -1, None))
    assert records.table["melanoma"].tolist() == [1, 0] * 10 and len(records.skipped) == 20
    records = load(tmp_path / "melanoma", features={"melanoma": kinds}, melanoma=cycle(0, 1, -1, None))
    assert records.table["melanoma"].tolist() == [1, 0] * 10 and len(records.skipped) == 20


def test_which_labels_are_benign_is_said_and_melanomas_among_them_are_warned_of(tmp_path, capfd):
    kinds = cycle("melanoma", "Melanoma", "melanoma ", "wart", "nevus", "non-melanoma", "MEL", "lentigo maligna")
    records = load(tmp_path / "own", KIND, kind=kinds)
    assert records.table["melanoma"].sum() == ROWS // 8
    said = [line for line in capfd.readouterr().err.splitlines() if "benign" in line]
    assert said[0].endswith("count as benign: MEL, Melanoma, lentigo maligna, melanoma , nevus, non-melanoma, wart")
    assert said[1].startswith("warning: 'MEL', 'Melanoma', 'lentigo maligna', 'melanoma ' look like melanoma")
    everything = ColumnNames("image", "kind", ("melanoma", "Melanoma", "melanoma ", "MEL", "lentigo maligna"))
    load(tmp_path / "all", everything, kind=kinds)
    assert "look like" not in capfd.readouterr().err
    load(tmp_path / "alike", ColumnNames("image", "kind", ("CM-1",)), kind=cycle("CM-1", "cm 1", "cm 2"))
    assert "warning: 'cm 1' look like melanoma" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["melanoma", "nevus"], [0, 1, 1, 1], [1, 0, 0, 0]),
        (["benign", "melanoma"], [0, 1, 1, 1], [0, 1, 1, 1]),
        (["non-melanoma", "melanoma"], [0, 1, 1, 1], [0, 1, 1, 1]),
        (["1", "0"], [0, 1, 1, 1], [1, 0, 0, 0]),
        (None, [0, 1, 1, 0], [0, 1, 1, 0]),
        (None, [0.0, 1.0, 1.0, 0.0], [0, 1, 1, 0]),
        (None, [True, False, True, True], [1, 0, 1, 1]),
        (None, ["0", "1", "1", "0"], [0, 1, 1, 0]),
        (None, ["melanoma", "benign", "benign", "Melanoma"], [1, 0, 0, 1]),
    ],
)
def test_a_column_melanoma_is_read_by_its_names_or_as_0_and_1(tmp_path, names, values, expected):
    features = {"melanoma": datasets.ClassLabel(names=names)} if names else {}
    records = load(tmp_path / "own", features=features, melanoma=cycle(*values))
    assert records.table["melanoma"].tolist() == expected * (ROWS // 4)


@pytest.mark.parametrize("wrong", [0.7, 2, -1, "yes", "nevus", "malignant"])
def test_a_column_melanoma_of_anything_else_is_refused_with_value_and_row(tmp_path, wrong):
    values = [type(wrong)(1)] * (ROWS - 1) + [wrong]
    with pytest.raises(UserError) as error:
        load(tmp_path / "own", melanoma=values)
    assert f"own, train, row 39: melanoma {wrong!r} is neither 0 nor 1" in str(error.value)
    assert "--label_column_name melanoma" in str(error.value)


def test_a_column_melanoma_of_names_that_say_nothing_of_it_is_refused(tmp_path):
    feature = datasets.ClassLabel(names=["benign", "malignant"])
    with pytest.raises(UserError, match="row 1: melanoma 'malignant'"):
        load(tmp_path / "own", features={"melanoma": feature}, melanoma=cycle(0, 1))


@pytest.mark.parametrize("missing", [None, "", "unknown", "-1"])
def test_images_without_a_lesion_are_lesions_of_their_own(tmp_path, capfd, missing):
    lesions = [missing if row % 2 else str(row) for row in range(ROWS)]
    # Image ids that are other images' lesion ids must not join them.
    own = {"lesion_id": lesions, "image_id": [str(row - 1) for row in range(ROWS)], "melanoma": cycle(0, 1)}
    records = load(tmp_path / "own", **own)
    assert records.table["lesion_id"].nunique() == ROWS
    assert "column lesion_id is empty for 20 of 40 images; each is a lesion of its own" in capfd.readouterr().err
    assert set(records.table["split"]) == {"train", "validation", "test"}


def test_a_manifest_in_which_images_have_no_lesion_is_refused(tmp_path):
    write(tmp_path / "own", melanoma=cycle(0, 1))
    names = [f"train-{row:06d}" for row in range(ROWS)]
    manifest = pd.DataFrame({"image_id": names, "lesion_id": cycle("a", "unknown"), "split": cycle("train", "test")})
    write_manifest(manifest, str(tmp_path / "m.csv"))
    with pytest.raises(UserError, match="m.csv: image train-000001 has no lesion there"):
        load_records(str(tmp_path / "own"), split_manifest=str(tmp_path / "m.csv"))


def test_numbers_are_the_same_lesion_whatever_a_table_made_of_them(tmp_path):
    records = load(tmp_path / "own", lesion_id=[float(row // 2) for row in range(ROWS)], melanoma=cycle(0, 0, 1, 1))
    assert records.table["lesion_id"].tolist()[:3] == ["0", "0", "1"]


TYPES = ["I", "II", "III", "IV", "V", "VI", "unknown"]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, 4, 5, 6, -1],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None],
        [*"123456", ""],
        ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "-1.0"],
        ["i", "II", "iii", "Type IV", "fst V", "vi", "unknown"],
        ["FST1", "FST2", "FST3", "FST4", "FST5", "FST6", "NONE_SELECTED"],
    ],
)
def test_skin_types_as_numbers_are_skin_types(tmp_path, values):
    records = load(tmp_path / "own", melanoma=cycle(0, 1), fitzpatrick=cycle(*values))
    assert records.table["fitzpatrick"].tolist() == cycle(*TYPES)


def test_skin_types_are_found_by_the_names_that_others_give_them(tmp_path, capfd):
    records = load(tmp_path / "own", melanoma=cycle(0, 1), fitspatrick=cycle(1.0, 6.0))
    assert records.table["fitzpatrick"].tolist() == cycle("I", "VI")
    assert "own, train: skin types are those of column fitspatrick" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [0, 7, "12", "I-II", "light", 2.5])
def test_what_is_no_skin_type_is_refused_with_value_and_row(tmp_path, wrong):
    values = [type(wrong)(3)] * (ROWS - 1) + [wrong]
    with pytest.raises(UserError, match=f"own, train, row 39: skin type '{wrong}' is none of I to VI or 1 to 6"):
        load(tmp_path / "own", melanoma=cycle(0, 1), fitzpatrick=values)


def test_ages_and_sexes_as_tables_write_them(tmp_path):
    ages, sexes = cycle("80+", "unknown", "", "45", None), cycle("F", "m", "Female", "diverse", "")
    table = load(tmp_path / "own", melanoma=cycle(0, 1), age=ages, sex=sexes).table
    np.testing.assert_array_equal(table["age"], cycle(80, np.nan, np.nan, 45, np.nan))
    assert table["sex"].tolist() == cycle("female", "male", "female", "diverse", "unknown")


def test_an_image_that_the_table_names_and_the_folder_lacks_is_set_aside(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for row in range(ROWS - 1):
        (folder / f"{row:02d}.png").write_bytes(png())
    lines = [f"{row:02d}.png,{('melanoma', 'nevus')[row % 2]},l{row}" for row in range(ROWS)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,kind,lesion_id", *lines]))
    records = load_records(str(folder), columns=KIND)
    assert len(records.table) == ROWS - 1 and records.table["lesion_id"].tolist()[-1] == "l38"
    assert records.skipped[["image_id", "file"]].values.tolist() == [["train-000039", "39.png"]]
    assert records.skipped["reason"].item() == "no such file: 39.png"
    (folder / "00.png").unlink()
    with pytest.raises(UserError, match="2 of 40 images cannot be used.*the first: train-000000: no such file"):
        load_records(str(folder), columns=KIND, max_skipped_share=0.03)


def test_files_that_load_dataset_takes_for_no_images_and_tables_in_utf_16_are_named(tmp_path):
    for folder, suffix, encoding, words in (
        ("bare", "", "utf-8", r"no images by the names in column file_name \(a0\); give files and names a suffix"),
        ("wide", ".png", "utf-16", "not in UTF-8, but in UTF-16 perhaps; save it as CSV in UTF-8"),
    ):
        place = tmp_path / folder
        place.mkdir()
        for row in range(2):
            (place / f"a{row}{suffix}").write_bytes(png())
        text = "\n".join(["file_name,kind", f"a0{suffix},nevus", f"a1{suffix},melanoma"])
        (place / "metadata.csv").write_text(text, encoding=encoding)
        with pytest.raises(UserError, match=words):
            load_records(str(place), columns=KIND)


def test_masks_that_are_only_names_are_said_to_be_none(tmp_path, capfd):
    assert load(tmp_path / "own", melanoma=cycle(0, 1), mask="m.png").masks is None
    assert "column mask holds no images, so no masks; files are named by mask_file_name" in capfd.readouterr().err


def test_an_image_that_is_none_is_set_aside(tmp_path):
    images = [{"bytes": png(), "path": None}] * (ROWS - 1) + [None]
    records = load(tmp_path / "own", image=images, melanoma=cycle(0, 1))
    assert records.skipped["reason"].tolist() == ["no image"] and len(records.table) == ROWS - 1


def test_a_generated_image_without_a_diagnosis_stays_unlabelled_beside_real_ones_without_one(tmp_path):
    real = load(tmp_path / "real", melanoma=cycle(0, 1), diagnosis=cycle("unknown", "mel"))
    write(tmp_path / "made", diagnosis=cycle("mel", ""), synthetic=True)
    made = load_synthetic(str(tmp_path / "made"), real)
    assert made.table["melanoma"].tolist() == cycle(1, -1)
