"""HAM10000's metadata, read from each of its forms: Dataverse, Kaggle, the ISIC archive, the ISIC 2018 challenge."""

import collections
import os
from collections.abc import Container

import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import READ_ERRORS, UserError
from melanoma_fair_xai.base.images import IMAGE_SUFFIXES

from ..raw_files import decode_text, index_files, read_bytes, read_table
from ..schema import UNKNOWN, check_unique, parse_age, parse_sex

DIAGNOSIS_NAMES = {
    "akiec": "actinic keratosis or intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
DIAGNOSES = list(DIAGNOSIS_NAMES)
CONFIRMATIONS = ("histo", "follow_up", "consensus", "confocal", UNKNOWN)

TEST_SPLIT = "isic2018_test"
TEST_TRUTH = "isic2018_task3_test"

TABLE_SUFFIXES = (".csv", ".tab", ".tsv", ".txt", "")
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
RECORD_COLUMNS = "image_id lesion_id diagnosis age sex localization source dx_type".split()
ISIC_COLUMNS = [
    "isic_id",
    "lesion_id",
    "diagnosis_1",
    "diagnosis_2",
    "diagnosis_3",
    "diagnosis_confirm_type",
    "age_approx",
    "sex",
    "anatom_site_general",
]
# The ISIC archive also exports the challenge's test images as part of HAM10000: these ids alone are HAM10000's own.
PUBLISHED_IDS = ("ISIC_0024306", "ISIC_0034320")
ISIC_DIAGNOSES = {  # the most specific of diagnosis_1 to diagnosis_3
    "Solar or actinic keratosis": "akiec",
    "Squamous cell carcinoma, NOS": "akiec",
    "Basal cell carcinoma": "bcc",
    "Pigmented benign keratosis": "bkl",
    "Dermatofibroma": "df",
    "Melanoma, NOS": "mel",
    "Nevus": "nv",
    "Benign soft tissue proliferations - Vascular": "vasc",
}
ISIC_CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}


def read_metadata(folder: str, images: Container[str]) -> pd.DataFrame:
    """The records of a folder's tables: RECORD_COLUMNS, and `split`, empty but for the challenge's test set.

    HAM10000's own table goes before the ISIC archive's. The test set counts if any of its image ids is in `images`.
    Raises UserError, naming file, line and value, for a table that is missing, incomplete or states what it cannot.
    """
    tables = collections.defaultdict(list)
    for stem, references in index_files(folder, TABLE_SUFFIXES).items():
        for reference in references:
            tables[_table_kind(stem, reference)].append(reference)
    if tables["ham"]:
        # Dataverse has forms with and without `dataset`, the camera or clinic.
        path = max(tables["ham"], key=lambda reference: "dataset" in _table_head(reference))
        records = _parse(read_table(path, COLUMNS), path)
    elif tables["isic"]:
        path = tables["isic"][0]
        records = _parse(_from_isic(read_table(path, ISIC_COLUMNS)), path)
    else:
        raise UserError(
            f"{folder}: no HAM10000_metadata and no metadata of the ISIC archive there; "
            "name the folder of the raw files with --data_dir, or fetch them with --download"
        )
    check_unique(records["image_id"], "image", path)
    records = records.assign(split="")
    if not tables["test"]:
        return records
    path = max(tables["test"], key=lambda reference: "lesion_id" in _table_head(reference))
    truth = read_table(path)
    test = _parse(truth if "dx" in truth else _from_one_hot(truth, path), path).assign(split=TEST_SPLIT)
    if not any(name in images for name in test["image_id"]):
        print(f"{path}: none of its images is there, so there is no split {TEST_SPLIT}")
        return records
    check_unique([*records["image_id"], *test["image_id"]], "image", path)
    return pd.concat([records, test], ignore_index=True)


def plain_id(name: str) -> str:
    """An image's id as it was published, of a table's cell or a file's name: no suffix, and in capitals."""
    stem, suffix = os.path.splitext(name.strip())
    return (stem if suffix.lower() in IMAGE_SUFFIXES else name.strip()).upper()


def _table_kind(stem: str, reference: str) -> str:
    head = _table_head(reference)
    if {"isic_id", "diagnosis_1"} <= head:
        return "isic"
    if stem.lower().startswith(TEST_TRUTH):
        return "test"
    return "ham" if stem.lower() == "ham10000_metadata" or {"image_id", "dx"} <= head else "other"


def _table_head(reference: str) -> set[str]:
    """The column names of a table, from its first line."""
    try:
        line = decode_text(read_bytes(reference)[:4096], errors="replace").partition("\n")[0]
    except READ_ERRORS:
        return set()
    return {name.strip().strip('"') for name in line.replace("\t", ",").split(",")}


def _from_isic(table: pd.DataFrame) -> pd.DataFrame:
    """The ISIC archive's columns and words in HAM10000's."""
    table = table[table["isic_id"].map(plain_id).between(*PUBLISHED_IDS)]
    diagnosis = table["diagnosis_3"]
    for column in ("diagnosis_2", "diagnosis_1"):
        diagnosis = diagnosis.where(diagnosis != "", table[column])
    return pd.DataFrame(
        {
            "lesion_id": table["lesion_id"],
            "image_id": table["isic_id"],
            "dx": diagnosis.replace(ISIC_DIAGNOSES),
            "dx_type": table["diagnosis_confirm_type"].replace(ISIC_CONFIRMATIONS),
            "age": table["age_approx"],
            "sex": table["sex"],
            "localization": table["anatom_site_general"],
            "line": table["line"],
        }
    )


def _from_one_hot(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """The challenge's ground truth (image, MEL, NV, ...) in HAM10000's columns."""
    columns = [name.upper() for name in DIAGNOSES]
    missing = [name for name in ("image", *columns) if name not in table]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}, and no column dx")
    hot = table[columns].isin(["1", "1.0"])
    wrong = table["line"][(hot.sum(axis=1) != 1) | ~table[columns].isin(["0", "0.0", "1", "1.0"]).all(axis=1)]
    if len(wrong):
        raise UserError(f"{path}, line {wrong.iloc[0]}: not one 1 among 0s; download the file again")
    return pd.DataFrame(
        {"image_id": table["image"], "dx": np.array(DIAGNOSES)[hot.to_numpy().argmax(axis=1)], "line": table["line"]}
    )


def _parse(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Metadata rows as records, every value checked; columns that a form lacks are unknown."""
    table = table.reindex(columns=[*COLUMNS, "dataset", "line"], fill_value="")
    records = [_record(row, f"{path}, line {row['line']}") for row in table.to_dict("records")]
    return pd.DataFrame(records, columns=RECORD_COLUMNS, dtype=object)  # object: a missing age stays None


def _record(row: dict, where: str) -> dict:
    dx, dx_type = row["dx"].strip().lower(), row["dx_type"].strip().lower() or UNKNOWN
    image_id = plain_id(row["image_id"])
    if not image_id:
        raise UserError(f"{where}: no image id")
    if dx not in DIAGNOSES:
        raise UserError(f"{where}: diagnosis {row['dx']!r} is not one of {', '.join(DIAGNOSES)}")
    if dx_type not in CONFIRMATIONS:
        raise UserError(f"{where}: dx_type {row['dx_type']!r} is not one of {', '.join(CONFIRMATIONS)}")
    return {
        "image_id": image_id,
        "lesion_id": row["lesion_id"].strip() or image_id,
        "diagnosis": dx,
        "age": parse_age(row["age"], where),
        "sex": parse_sex(row["sex"], where),
        "localization": row["localization"].strip() or UNKNOWN,
        "source": row["dataset"].strip() or UNKNOWN,
        "dx_type": dx_type,
    }
