"""The annotations of Fitzpatrick17k: the published counts, and bad tables."""

import re

import pandas as pd
import pytest
from fitzpatrick17k_raw import (
    prepare,
)

from dataset_scripts.fitzpatrick17k import Fitzpatrick17k
from dataset_scripts.fitzpatrick17k.annotations import DIAGNOSES, read_annotations, source_of
from dataset_scripts.fitzpatrick17k.configurations import CONFIGURATIONS
from melanoma_fair_xai.base.errors import UserError

# --- the real annotations --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(real_data) -> pd.DataFrame:
    path = real_data / "fitzpatrick17k" / "fitzpatrick17k.csv"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return read_annotations(str(path))


def test_published_counts(published):
    assert len(published) == 16577
    assert sorted(set(published["diagnosis"])) == DIAGNOSES and len(DIAGNOSES) == 114
    counts = {"I": 2947, "II": 4808, "III": 3308, "IV": 2781, "V": 1533, "VI": 635, "unknown": 565}
    assert published["fitzpatrick"].value_counts().to_dict() == counts
    assert published["source"].value_counts().to_dict() == {
        "dermaamin": 12631,
        "atlasdermatologico": 3905,
        "unknown": 41,
    }


def test_published_melanomas_less_the_wrong_ones(published):
    assert (published["nine_partition_label"] == "malignant melanoma").sum() == 573
    assert published["melanoma"].value_counts().to_dict() == {"benign": 15987, "melanoma": 565, "": 25}
    reasons = published["excluded"].value_counts().to_dict()
    assert reasons.pop("") == 16552
    assert sorted(reasons.values()) == [8, 17]
    assert ((published["excluded"] == "") == (published["melanoma"] != "")).all()


def test_published_configurations(published):
    rows = {name: published[chosen(published)] for name, (_, chosen) in CONFIGURATIONS.items()}
    assert {name: len(part) for name, part in rows.items()} == {"original": 975, "neoplastic": 4497, "all": 16577}
    assert {name: (part["excluded"] == "").sum() for name, part in rows.items()} == {
        "original": 966,
        "neoplastic": 4484,
        "all": 16552,
    }
    for name, part in rows.items():
        numbers = [
            int(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= annotated)", CONFIGURATIONS[name][0])
        ]
        assert numbers == [len(part)], "the description states what is there"


# --- bad annotations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, "not-a-hash", "line 3: md5hash 'not-a-hash' is not 32 hexadecimal digits"),
        (0, "../../../../../../../etc/passwd..", "line 3: md5hash"),
        (1, "7", "line 3: skin type '7' is none of I to VI or 1 to 6"),
        (3, "halo naevus", "line 3: label 'halo naevus' is not one of the 114 labels"),
        (4, "melanoma", "line 3: nine_partition_label 'melanoma'"),
        (5, "unsure", "line 3: three_partition_label 'unsure' is not one of benign, malignant, non-neoplastic"),
    ],
)
def test_a_bad_cell_is_named_by_its_line(raw, position, value, message):
    raw.rows[1][position] = value
    raw.annotate()
    with pytest.raises(UserError, match=message):
        prepare(raw)


def test_skin_types_that_a_spreadsheet_rewrote(raw):
    for row, scale in zip(raw.rows, ["3.0", "-1.0", "", "VI"], strict=False):
        row[1] = scale
    types = read_annotations(str(raw.annotate().folder / "fitzpatrick17k.csv"))["fitzpatrick"]
    assert types.tolist()[:5] == ["III", "unknown", "unknown", "VI", "V"]


def test_bad_tables(raw):
    path = raw.folder / "fitzpatrick17k.csv"
    raw.rows.append(raw.rows[0])
    raw.annotate()
    with pytest.raises(UserError, match=f"{raw.rows[0][0]} stands more than once"):
        prepare(raw)
    path.write_text(path.read_text().replace("three_partition_label", "three"))
    with pytest.raises(UserError, match="no column three_partition_label"):
        prepare(raw)
    path.write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n")
    with pytest.raises(UserError, match="fitzpatrick17k.csv: "):
        prepare(raw)
    path.unlink()
    with pytest.raises(UserError, match="no such file\nget fitzpatrick17k.csv from https://github.com"):
        prepare(raw)
    with pytest.raises(UserError, match="no such folder|no such file"):
        builder = Fitzpatrick17k(data_dir=str(raw.folder / "nowhere"), cache_dir=str(raw.folder.parent / "cache"))
        builder.download_and_prepare()


def test_source_is_the_atlas():
    assert source_of("http://atlasdermatologico.com.br/img?imageId=1") == "atlasdermatologico"
    assert source_of("https://www.dermaamin.com/x.jpg") == "dermaamin"
    assert source_of("") == source_of("nonsense") == "unknown"
