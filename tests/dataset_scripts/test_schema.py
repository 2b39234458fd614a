"""What a cell of a table may say."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from dataset_scripts.schema import (
    SKIN_TYPES,
    cell_name,
    check_unique,
    is_melanoma,
    is_nevus,
    parse_age,
    parse_sex,
    parse_skin_type,
)
from melanoma_fair_xai.base.errors import UserError


def test_parse_age():
    assert [parse_age(text, "w") for text in ("", "nan", "NA", "unknown", "0.0", "85")] == [*[None] * 4, 0, 85]
    assert [parse_age(text, "w") for text in ("80+", " 85 + ", ">89", ">= 90", "045Y", "45 years")] == [
        *(80, 85, 89, 90, 45, 45)
    ]
    assert [parse_age(value, "w") for value in (None, math.nan, 45, np.float32(3))] == [None, None, 45, 3]


@pytest.mark.parametrize("text", ["abc", "-5", "121", "inf", "4O", "40-49", "+"])
def test_parse_age_refuses_what_is_no_age(text):
    with pytest.raises(UserError, match=re.escape(f"t.csv, line 7: age '{text}'")):
        parse_age(text, "t.csv, line 7")


def test_parse_sex():
    assert [parse_sex(text, "w") for text in ("", "F", "Male", "unknown")] == ["unknown", "female", "male"] + [
        "unknown"
    ]
    with pytest.raises(UserError, match="t.csv, line 7: sex 'x'"):
        parse_sex("x", "t.csv, line 7")


@pytest.mark.parametrize("number", range(6))
def test_a_skin_type_is_one_however_it_is_written(number):
    name = SKIN_TYPES[number]
    numbers = [
        number + 1,
        number + 1.0,
        np.int8(number + 1),
        np.float32(number + 1),
        f"{number + 1}",
        f"{number + 1}.0",
    ]
    for cell in (*numbers, name, name.lower(), f" {name} ", f"type {name}", f"FST-{number + 1}", f"Skin Type_{name}"):
        assert parse_skin_type(cell, "w") == name, cell


def test_skin_types_that_say_nothing_are_unknown_and_all_else_is_refused():
    for cell in (-1, -1.0, "-1", "-1.0", "fitzpatrick -1", "", " ", None, math.nan, "unknown", "N/A", "none_selected"):
        assert parse_skin_type(cell, "w") == "unknown", cell
    for cell in (0, 7, 2.5, "12", "I-II", "3-4", "VII", "light", True, "type", -2):
        with pytest.raises(UserError, match=f"t.csv, line 7: skin type '{cell}' is none of I to VI or 1 to 6"):
            parse_skin_type(cell, "t.csv, line 7")


NEVI = [
    "nv",
    "NEV",
    "nevus",
    "Congenital Nevus",
    "halo naevus",
    "melanocytic-nevi",
    "Naevi",
    "Nevus, Atypical",
    "mole",
]
MELANOMAS = ["mel", "MEL", "Melanoma", "malignant melanoma", "melanoma_in_situ", "Lentigo-maligna melanoma"]
NEITHER = ["nvx", "benign", "bkl", "non-melanoma", "nonmelanoma skin cancer", "not melanoma", "lentigo", "molluscum"]


@pytest.mark.parametrize("name", [*NEVI, *MELANOMAS, *NEITHER])
def test_diagnoses_by_any_of_their_names(name):
    assert (is_nevus(name), is_melanoma(name)) == (name in NEVI, name in MELANOMAS)


def test_a_cell_is_a_name_whatever_a_table_made_of_it():
    for cell in (None, math.nan, np.float32("nan"), pd.NA, pd.NaT, "", " ", "NaN", "n/a", "Unknown"):
        assert cell_name(cell) == "unknown"
    cells = [1, 1.0, np.float32(1), np.int64(1), "1.0", 0.5, True, np.True_, " a ", math.inf]
    assert [cell_name(cell) for cell in cells] == [*"1111", "1.0", "0.5", "True", "True", " a ", "inf"]


def test_check_unique_names_the_first_and_the_number():
    check_unique(["a", "b"], "image", "t.csv")
    with pytest.raises(UserError, match=r"t.csv: image b stands more than once \(2 such\)"):
        check_unique(["a", "b", "b", "c", "c"], "image", "t.csv")
