import io
import os

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.splits import read_manifest, write_manifest
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import ColumnNames, load_records, training_rows

OWN = ColumnNames(label="kind", positive_labels=("melanoma",), lesion="patient", groups=("hospital",))


def write_folder(folder, rows: int = 40, split: str | None = None, **columns) -> pd.DataFrame:
    """A user's own ImageFolder: noise images with a metadata.csv."""
    place = folder / split if split else folder
    place.mkdir(parents=True)
    rng = np.random.default_rng(rows)
    table = pd.DataFrame(
        {
            "file_name": [f"{i:03d}.png" for i in range(rows)],
            "kind": np.resize(["nevus", "nevus", "melanoma", "wart"], rows),
            "patient": [f"{split or 'p'}{i // 2}" for i in range(rows)],
            "hospital": np.resize(["A", "B"], rows),
            **columns,
        }
    )
    for name in table["file_name"]:
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / name)
    table.to_csv(place / "metadata.csv", index=False)
    return table


def test_a_users_own_folder_by_column_names(tmp_path):
    table = write_folder(tmp_path / "own", age=[30.0] * 39 + [None])
    records = load_records(str(tmp_path / "own"), columns=OWN)
    assert records.table["melanoma"].tolist() == (table["kind"] == "melanoma").astype(int).tolist()
    assert records.table["diagnosis"].tolist() == table["kind"].tolist()
    assert records.table["lesion_id"].tolist() == table["patient"].tolist()
    assert records.table["hospital"].tolist() == table["hospital"].tolist()
    assert records.table["sex"].unique().tolist() == ["unknown"]
    assert np.isnan(records.table["age"].to_numpy()[-1]) and records.table["age"][0] == 30
    first = PIL.Image.open(
        io.BytesIO(records.images[0]["image"]["bytes"] or open(records.images[0]["image"]["path"], "rb").read())
    )
    assert first.size == (8, 8)


def test_ita_is_a_number_where_it_is_known(tmp_path, phantoms):
    known = load_records(str(phantoms)).table["ita"]
    assert known.dtype == float and known.between(-55, 70).all()
    write_folder(tmp_path / "own")
    assert load_records(str(tmp_path / "own"), columns=OWN).table["ita"].isna().all()
    write_folder(tmp_path / "wrong", ita=[420.0] * 40)
    with pytest.raises(UserError, match="row 0: ita 420.0 is not an angle"):
        load_records(str(tmp_path / "wrong"), columns=OWN)


def test_missing_splits_are_made_by_lesion_and_given_ones_kept(tmp_path):
    write_folder(tmp_path / "one")
    records = load_records(str(tmp_path / "one"), columns=OWN)
    assert set(records.table["split"]) == {"train", "validation", "test"}
    assert records.table.groupby("lesion_id")["split"].nunique().max() == 1
    write_folder(tmp_path / "two", 30, "train")
    write_folder(tmp_path / "two", 10, "test")
    records = load_records(str(tmp_path / "two"), columns=OWN)
    counts = records.table["split"].value_counts()
    assert counts["test"] == 10 and counts["validation"] + counts["train"] == 30 and counts["validation"] >= 4


def test_a_lesion_on_both_sides_is_refused(tmp_path):
    write_folder(tmp_path / "leak", 20, "train", patient="shared")
    write_folder(tmp_path / "leak", 10, "test", patient="shared")
    with pytest.raises(UserError, match="shared stands in more than one split"):
        load_records(str(tmp_path / "leak"), columns=OWN)


def test_a_manifest_fixes_the_splits(tmp_path):
    write_folder(tmp_path / "own")
    records = load_records(str(tmp_path / "own"), columns=OWN)
    manifest = records.table.assign(split=np.where(records.table["lesion_id"] < "p15", "train", "test"))
    write_manifest(manifest, str(tmp_path / "m.csv"))
    again = load_records(str(tmp_path / "own"), columns=OWN, split_manifest=str(tmp_path / "m.csv"))
    assert again.table["split"].tolist() == manifest["split"].tolist()
    write_manifest(manifest.iloc[1:], str(tmp_path / "short.csv"))
    with pytest.raises(UserError, match=records.table["image_id"][0]):
        load_records(str(tmp_path / "own"), columns=OWN, split_manifest=str(tmp_path / "short.csv"))
    assert len(read_manifest(str(tmp_path / "m.csv"))) == 40


def test_a_part_of_the_training_images_is_drawn_from_all_of_them():
    """Data sets come sorted by diagnosis, so that the first images would hold one class."""
    table = pd.DataFrame({"split": ["train"] * 900 + ["test"] * 100})
    rows = training_rows(table, 100, seed=0)
    assert len(set(rows)) == 100 and rows.max() < 900 and abs(rows.mean() - 450) < 100
    assert training_rows(table, 100, seed=0).tolist() == rows.tolist() != training_rows(table, 100, seed=1).tolist()
    assert len(training_rows(table, None, seed=0)) == len(training_rows(table, 1000, seed=0)) == 900


def test_synthetic_images_stay_out_of_evaluation(tmp_path):
    write_folder(tmp_path / "mixed", 20, "train", synthetic="true")
    write_folder(tmp_path / "mixed", 10, "test", synthetic="true")
    with pytest.raises(UserError, match="synthetic"):
        load_records(str(tmp_path / "mixed"), columns=OWN)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (ColumnNames(label="nothing"), ["no column nothing", "--label_column_name", "kind"]),
        (ColumnNames(), ["--label_column_name", "hospital"]),
        (ColumnNames(label="kind"), ["--positive_labels", "nevus"]),
        (ColumnNames(label="kind", positive_labels=("mel",)), ["--positive_labels mel", "melanoma"]),
        (ColumnNames(image="photo"), ["no column photo", "--image_column_name"]),
        (
            ColumnNames(label="kind", positive_labels=("melanoma",), lesion="x"),
            ["no column x", "--lesion_column_name"],
        ),
    ],
)
def test_wrong_columns_name_the_flag_and_what_there_is(tmp_path, columns, words):
    write_folder(tmp_path / "own")
    with pytest.raises(UserError) as error:
        load_records(str(tmp_path / "own"), columns=columns)
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("age", ["abc", "-5", "130"])
def test_impossible_ages_are_named(tmp_path, age):
    write_folder(tmp_path / "own", age=["40"] * 39 + [age])
    with pytest.raises(UserError, match=f"train, row 39: age '{age}' is not a number"):
        load_records(str(tmp_path / "own"), columns=OWN)


@pytest.mark.parametrize("name", ["no/such/folder", "nothing-of-that-name"])
def test_a_data_set_that_is_nowhere(name):
    with pytest.raises(UserError, match="ham10000, fitzpatrick17k, phantom, a folder"):
        load_records(name)


def test_an_empty_folder_and_missing_flags(tmp_path):
    with pytest.raises(UserError, match="empty"):
        load_records(str(tmp_path))
    with pytest.raises(UserError, match="--data_dir"):
        load_records("ham10000")
    with pytest.raises(UserError, match="--dataset_config_name nothing: fitzpatrick17k has"):
        load_records("fitzpatrick17k", "nothing", str(tmp_path))


def write_parquet(folder, diagnoses: list[str]) -> None:
    """What `push_to_hub` leaves: a Parquet file, and a card that names it; the same size and time each time."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pa.table({"image": [{"bytes": bytes([i]), "path": None} for i in range(40)], "kind": diagnoses})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    os.utime(path, ns=(10**18, 10**18))
    files = "[{split: train, path: data/train-*}]"
    info = "{features: [{name: image, dtype: image}, {name: kind, dtype: string}]}"
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {files}\ndataset_info: {info}\n---\n"
    (folder / "README.md").write_text(card)


def test_what_was_changed_in_place_is_read_as_it_is_now(tmp_path):
    folder, kinds = tmp_path / "own", ["nevus", "melan"] * 20
    sizes = []
    for diagnoses in (kinds, kinds[::-1]):
        write_parquet(folder, diagnoses)
        sizes.append((folder / "data" / "train-00000-of-00001.parquet").stat().st_size)
        records = load_records(str(folder), columns=ColumnNames(label="kind", positive_labels=("melan",)))
        assert records.table["diagnosis"].tolist() == diagnoses
    assert sizes[0] == sizes[1]
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_records(str(folder), columns=ColumnNames(label="kind", positive_labels=("melan",)))


def test_a_table_that_was_corrected_in_place_is_read_as_it_is_now(tmp_path):
    table = write_folder(tmp_path / "own")
    for kinds in (table["kind"], table["kind"][::-1]):
        table.assign(kind=kinds.to_numpy()).to_csv(tmp_path / "own" / "metadata.csv", index=False)
        os.utime(tmp_path / "own" / "metadata.csv", ns=(10**18, 10**18))
        assert load_records(str(tmp_path / "own"), columns=OWN).table["diagnosis"].tolist() == kinds.tolist()


def test_a_page_that_is_not_what_was_written_is_refused(tmp_path):
    folder = tmp_path / "own"
    write_parquet(folder, ["nevus", "melan"] * 20)
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    place = content.index(b"nevus\x05\0\0\0melan")  # in the page, not in its header
    path.write_bytes(content[:place] + b"m" + content[place + 1 :])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_records(str(folder), columns=ColumnNames(label="kind", positive_labels=("melan",)))


def test_problems_are_set_aside_listed_and_limited(tmp_path):
    write_folder(tmp_path / "own")
    records = load_records(str(tmp_path / "own"), columns=OWN)
    less = records.without({3: "zero bytes"}, 0.05)
    assert less.table["split"][3] == "unusable" and (less.table["split"] == records.table["split"]).sum() == 39
    assert less.skipped[["image_id", "reason"]].to_numpy().tolist() == [[records.table["image_id"][3], "zero bytes"]]
    assert isinstance(records.images, datasets.Dataset)
    with pytest.raises(UserError, match="3 of 40 images cannot be used"):
        records.without(dict.fromkeys(range(3), "torn"), 0.05)


def test_a_folder_with_a_loading_script_is_said(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.py").write_text("raise SystemExit('run')")
    (tmp_path / "own" / "data.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"own: has a loading script, own\.py, and none is run"):
        load_records(str(tmp_path / "own"))
