"""Planted tables: which control the method beats, on measures where more is better and where less is."""

import numpy as np
import pandas as pd
import pytest
from explained_tables import LOWER, explained_table

from melanoma_fair_xai.explain.controls import CONTROLS
from melanoma_fair_xai.explain.measures import COMPARED, MEASURES
from melanoma_fair_xai.explain.rendering import ERROR_TITLES, choose_examples
from melanoma_fair_xai.explain.summary import against_controls, by_group, error_types, group_names


@pytest.mark.parametrize("beaten", CONTROLS)
def test_an_advantage_is_over_the_control_that_it_is_over_whichever_way_is_better(beaten):
    better_by = {name: 0.2 if name == beaten else -0.3 for name in CONTROLS}
    rows = against_controls(explained_table(better_by)).set_index("measure")
    assert list(rows.index) == list(MEASURES)
    for name in COMPARED:
        row = rows.loc[name]
        assert row["better"] == ("lower" if name in LOWER else "higher")
        for control, expected in better_by.items():
            assert row[f"over_{control}"] == pytest.approx(expected)
            assert expected - 0.02 < row[f"over_{control}_low"] < expected < row[f"over_{control}_high"]
            assert row[control] == pytest.approx(row["mean"] - expected * (-1 if name in LOWER else 1))
    assert rows.loc["max_sensitivity", [f"over_{name}" for name in CONTROLS]].isna().all()


def test_groups_have_the_advantage_over_the_centre_and_artefacts_that_over_every_rival():
    energy = {"energy_in_ruler": 0.5} | {f"energy_in_ruler__{name}": 0.1 * i for i, name in enumerate(CONTROLS)}
    table = explained_table({"centre": 0.2, "random": -0.3}, sex=["female", "male"] * 20, **energy)
    rows = by_group(table, ["sex"]).set_index(["group", "measure"])
    for name in COMPARED:
        assert rows.loc[("all", f"{name}_over_centre"), "mean"] == pytest.approx(0.2)
    chosen = table[table["sex"] == "female"]
    assert rows.loc[("female", "road_most"), "mean"] == pytest.approx(chosen["road_most"].mean())
    assert rows.loc[("female", "road_most_over_centre"), "n"] == 20
    for i, name in enumerate(CONTROLS):
        if name == "mask":
            assert ("all", "energy_in_ruler_over_mask") not in rows.index
        else:
            assert rows.loc[("all", f"energy_in_ruler_over_{name}"), "mean"] == pytest.approx(0.5 - 0.1 * i)


def test_decisions_are_named_by_what_is_so_and_what_was_decided():
    labels = pd.Series([1, 1, 0, 0, np.nan, np.nan])
    decided = pd.Series([True, False] * 3)
    assert error_types(labels, decided) == ["TP", "FN", "FP", "TN", "unknown", "unknown"]
    words = {"TP": "melanoma, called so", "FN": "melanoma, missed", "FP": "benign, called melanoma"}
    assert all(ERROR_TITLES[name].endswith(text) for name, text in words.items())
    chosen = choose_examples(pd.Series(["TN", "FN", "TN", "TN"]), 2, 0)
    assert chosen.keys() == {"TN", "FN"} and chosen["FN"] == [1]
    assert len(chosen["TN"]) == 2 and set(chosen["TN"]) < {0, 2, 3}


def test_groups_are_those_with_something_known_and_not_too_many():
    few = explained_table(
        sex="unknown", age=[30.0, np.nan] * 20, fitzpatrick=["II", "unknown"] * 20, diagnosis="nevus"
    )
    assert group_names(few) == ["fitzpatrick", "age_band", "diagnosis", "error"]
    many = explained_table(lesions=70, age=np.arange(70.0), diagnosis=[f"diagnosis {row}" for row in range(70)])
    assert group_names(many) == ["age_band", "error"]
    assert set(by_group(many, group_names(many))["group_column"]) == {"all", "age_band", "error"}
    assert group_names(explained_table(label=np.nan)) == []
