"""What a cell of a table may say."""

import pytest

from dataset_scripts.schema import check_unique, parse_age, parse_sex
from melanoma_fair_xai.base.errors import UserError


def test_parse_age():
    assert [parse_age(text, "w") for text in ("", "nan", "NA", "unknown", "0.0", "85")] == [*[None] * 4, 0, 85]


@pytest.mark.parametrize("text", ["abc", "-5", "121", "inf", "4O"])
def test_parse_age_refuses_what_is_no_age(text):
    with pytest.raises(UserError, match=f"t.csv, line 7: age '{text}'"):
        parse_age(text, "t.csv, line 7")


def test_parse_sex():
    assert [parse_sex(text, "w") for text in ("", "F", "Male", "unknown")] == ["unknown", "female", "male"] + [
        "unknown"
    ]
    with pytest.raises(UserError, match="t.csv, line 7: sex 'x'"):
        parse_sex("x", "t.csv, line 7")


def test_check_unique_names_the_first_and_the_number():
    check_unique(["a", "b"], "image", "t.csv")
    with pytest.raises(UserError, match=r"t.csv: image b stands more than once \(2 such\)"):
        check_unique(["a", "b", "b", "c", "c"], "image", "t.csv")
