import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness.groups import as_groups, group_columns


def test_derived_groups():
    table = pd.DataFrame(
        {
            "lesion_id": range(7),
            "label": 0,
            "fitzpatrick": ["I", "II", "IV", "V", "unknown", "VI", "III"],
            "age": [39.0, 40.0, 59.0, 60.0, np.nan, 5.0, 70.0],
            "ita": [1.0, 2.0, 3.0, 4.0, 5.0, np.nan, np.nan],
            "sex": ["female", "male", None, "female", "male", "female", "male"],
        }
    )
    groups = group_columns(table, ["fitzpatrick", "age_band", "ita_tertile", "age_band*sex"])
    assert list(groups) == ["fitzpatrick_group", "fitzpatrick", "age_band", "ita_tertile", "age_band*sex"]
    assert groups["fitzpatrick_group"].tolist() == ["I-II", "I-II", "III-IV", "V-VI", "unknown", "V-VI", "III-IV"]
    bands = ["under 40", "40-59", "40-59", "60 and over", "unknown", "under 40", "60 and over"]
    assert groups["age_band"].tolist() == bands
    assert groups["ita_tertile"].tolist()[:5:2] == ["1 (lowest)", "2", "3 (highest)"]
    assert groups["ita_tertile"][5] == "unknown"
    assert groups["age_band*sex"].tolist()[:3] == ["under 40, female", "40-59, male", "unknown"]
    assert list(groups["fitzpatrick"].cat.categories) == ["I", "II", "III", "IV", "V", "VI", "unknown"]


def test_the_default_is_what_the_table_knows():
    table = pd.DataFrame({"age": [30.0, 70.0], "ita": [1.0, 1.0], "sex": ["unknown", None], "source": ["a", "b"]})
    assert list(group_columns(table)) == ["age_band", "source"]  # ita tells no thirds apart, and sex is not known
    table["fitzpatrick"] = ["I", "unknown"]
    assert list(group_columns(table)) == ["fitzpatrick_group", "fitzpatrick", "age_band", "source"]
    assert list(group_columns(table, ["sex"])) == ["sex"] and list(group_columns(table, [])) == []
    with pytest.raises(UserError, match="--group_by ita_tertile: needs a column ita; the table has age, source"):
        group_columns(table[["age", "source"]], ["ita_tertile"])
    with pytest.raises(UserError, match="--group_by ward: no such column"):
        group_columns(table, ["ward"])


def test_a_column_of_the_table_goes_before_one_that_would_be_derived():
    table = pd.DataFrame({"age_band": ["child", "adult"], "age": [3.0, 30.0]})
    assert group_columns(table, ["age_band"])["age_band"].tolist() == ["child", "adult"]


def test_skin_types_and_ages_are_read_as_they_are_when_data_are_loaded():
    table = pd.DataFrame(
        {"fitzpatrick": [1, 2.0, "3", "iv", -1, pd.NA], "age": ["80+", 60, "unknown", "", None, "39"]}
    )
    table["sex"] = ["F", "female", "m", "Male", "diverse", pd.NA]
    groups = group_columns(table, ["fitzpatrick", "age_band", "sex"])
    assert groups["sex"].tolist() == ["female", "female", "male", "male", "diverse", "unknown"]
    assert groups["fitzpatrick"].tolist() == ["I", "II", "III", "IV", "unknown", "unknown"]
    assert groups["fitzpatrick_group"].tolist() == ["I-II", "I-II", "III-IV", "III-IV", "unknown", "unknown"]
    assert groups["age_band"].tolist() == ["60 and over"] * 2 + ["unknown"] * 3 + ["under 40"]


@pytest.mark.parametrize(
    ("column", "cell", "group_by"),
    [("fitzpatrick", "light", "fitzpatrick"), ("fitzpatrick", 12, "fitzpatrick_group"), ("age", "old", "age_band")],
)
def test_what_is_no_skin_type_or_age_is_refused(column, cell, group_by):
    with pytest.raises(UserError, match=f"column {column}, row 1: .* '{cell}'"):
        group_columns(pd.DataFrame({column: [1, cell]}), [group_by])


def test_any_kind_of_value_is_a_name_in_its_order():
    def names(values) -> list[str]:
        return list(as_groups(values, "x").cat.categories)

    ages = pd.Series([3.0, 12.0, 25.0, None])
    bands = pd.cut(ages, [0, 5, 10, 20, 30])
    assert as_groups(bands, "x").tolist() == ["(0, 5]", "(10, 20]", "(20, 30]", "unknown"]
    assert names(bands) == ["(0, 5]", "(10, 20]", "(20, 30]", "unknown"]
    assert names(bands.astype(object)) == names(bands)  # intervals, in no categories
    counts = pd.Series(pd.Categorical([10, 2, 1, None], [10, 2, 1], ordered=True))
    assert names(counts) == ["10", "2", "1", "unknown"]
    assert names([10, 2, 1]) == names(["10", "2", "1"]) == names([10.0, 2.0, 1.0]) == ["1", "2", "10"]
    assert names([0.5, 2.0, None, np.nan, pd.NA]) == ["0.5", "2", "unknown"]
    assert names([True, False]) == ["False", "True"] and names(["b", "a", ""]) == ["a", "b", "unknown"]
    assert names([1, "b", None]) == ["1", "b", "unknown"]
    assert names(pd.Series(["VI", "I"], dtype="category")) == ["I", "VI"]
    crossed = group_columns(pd.DataFrame({"a": bands, "b": counts}), ["a*b"])["a*b"]
    assert crossed.tolist() == ["(0, 5], 10", "(10, 20], 2", "(20, 30], 1", "unknown"]
    with pytest.raises(UserError, match="61 different values"):
        names(pd.Categorical(range(61), ordered=True))
