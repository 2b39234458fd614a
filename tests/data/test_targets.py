import datasets
import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.data.targets import apply_target

ROWS = [
    # diagnosis, melanoma, dx_type
    ("mel", 1, "histo"),
    ("nv", 0, "histo"),
    ("nv", 0, "follow_up"),
    ("bkl", 0, "consensus"),
    ("mel", 1, "histo"),
]


@pytest.fixture
def records() -> Records:
    table = pd.DataFrame(ROWS, columns=["diagnosis", "melanoma", "dx_type"])
    table["image_id"] = [f"image{i}" for i in range(len(table))]
    images = datasets.Dataset.from_dict({"image": list(range(len(table)))})
    return Records("small", images, table, pd.DataFrame())


def test_melanoma_against_the_rest_keeps_everything(records):
    kept, target, labels = apply_target(records, "melanoma_vs_rest")
    assert labels.tolist() == [1, 0, 0, 0, 1]
    assert (target.label_names, target.positive) == (["benign", "melanoma"], [1])
    assert len(kept.table) == 5


def test_melanoma_against_nevi_drops_the_others_with_their_images(records):
    kept, target, labels = apply_target(records, "melanoma_vs_nevus")
    assert kept.table["diagnosis"].tolist() == ["mel", "nv", "nv", "mel"]
    assert kept.images["image"][:] == [0, 1, 2, 4]
    assert labels.tolist() == [1, 0, 0, 1] and target.label_names == ["nevus", "melanoma"]


def test_histology_filters_and_is_no_input(records):
    kept, _, labels = apply_target(records, "melanoma_vs_nevus", confirmed_by_histology=True)
    assert kept.images["image"][:] == [0, 1, 4] and labels.tolist() == [1, 0, 1]
    records.table = records.table.drop(columns="dx_type")
    with pytest.raises(UserError, match="dx_type"):
        apply_target(records, "melanoma_vs_rest", confirmed_by_histology=True)


def test_diagnosis_names_the_classes_and_those_that_mean_melanoma(records):
    _, target, labels = apply_target(records, "diagnosis")
    assert target.label_names == ["bkl", "mel", "nv"] and target.positive == [1]
    assert labels.tolist() == [1, 2, 2, 0, 1]
    _, target, labels = apply_target(records, "diagnosis", label_names=["nv", "mel", "bkl", "df"])
    assert labels.tolist() == [1, 0, 0, 2, 1] and target.positive == [1]
    with pytest.raises(UserError, match="bkl"):
        apply_target(records, "diagnosis", label_names=["nv", "mel"])


def test_nevi_by_any_name_take_part_and_what_is_left_out_is_said(records, capsys):
    records.table["diagnosis"] = ["MEL", "melanocytic-nevi", "NEV", "wart", "Melanoma"]
    kept, _, labels = apply_target(records, "melanoma_vs_nevus")
    assert kept.images["image"][:] == [0, 1, 2, 4] and labels.tolist() == [1, 0, 0, 1]
    assert capsys.readouterr().err == "--target melanoma_vs_nevus leaves out 1 of 5 images: wart 1\n"
    apply_target(records, "melanoma_vs_nevus", confirmed_by_histology=True)  # the wart is none of its
    assert not capsys.readouterr().err


def test_an_unknown_diagnosis_is_no_class(records, capsys):
    records.table["diagnosis"] = ["mel", "nv", "unknown", "bkl", "unknown"]
    kept, target, labels = apply_target(records, "diagnosis")
    assert target.label_names == ["bkl", "mel", "nv"] and target.positive == [1]
    assert kept.images["image"][:] == [0, 1, 3] and labels.tolist() == [1, 2, 0]
    assert "leaves out 2 of 5 images: unknown 2" in capsys.readouterr().err
    # A model that was trained with such a class keeps it.
    kept, target, labels = apply_target(records, "diagnosis", label_names=["bkl", "mel", "nv", "unknown"])
    assert labels.tolist() == [1, 2, 3, 0, 3] and target.positive == [1, 3]


def test_classes_that_differ_in_spelling_alone_are_warned_of(records, capsys):
    records.table["diagnosis"] = ["mel", "blue nevus", "Blue-Nevus ", "bkl", "mel"]
    apply_target(records, "diagnosis")
    assert capsys.readouterr().err.startswith("warning: --target diagnosis: 'Blue-Nevus ', 'blue nevus' differ in")
    records.table["diagnosis"] = ["mel", "blue nevus", "nevus", "bkl", "mel"]
    apply_target(records, "diagnosis")
    assert not capsys.readouterr().err


def test_the_real_counts_of_the_original_study(real_data):
    table = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    table["diagnosis"], table["melanoma"] = table["dx"], (table["dx"] == "mel").astype(int)
    images = datasets.Dataset.from_dict({"image": np.arange(len(table))})
    records = Records("ham10000", images, table, pd.DataFrame())
    _, _, labels = apply_target(records, "melanoma_vs_nevus", confirmed_by_histology=True)
    assert np.bincount(labels).tolist() == [2498, 1113]
