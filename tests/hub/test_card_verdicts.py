"""What the cards' code concludes from rows and facts, with planted ones on both sides of every verdict."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.base.flags import flag
from melanoma_fair_xai.fairness.rows import Contrast, GroupMetric
from melanoma_fair_xai.hub import classifier_card
from melanoma_fair_xai.hub.card import licence_metadata, population_table, settings_text
from melanoma_fair_xai.hub.classifier_card import calibration_table, eval_results, headline_table, untested
from melanoma_fair_xai.hub.generator_card import loss_table
from melanoma_fair_xai.hub.record import population, training_facts

TOO_SMALL = "too few lesions to tell"


def metric(column: str = "all", group: str = "all", name: str = "roc_auc", estimable: bool = True) -> GroupMetric:
    values = (0.9, 0.8, 0.95) if estimable else (np.nan,) * 3
    return GroupMetric(column, group, name, 100, 90, 20, 18, *values, estimable)


def contrasts(*p_values: float) -> pd.DataFrame:
    rows = [
        Contrast("fitzpatrick_group", group, "I-II", "roc_auc", -0.1, -0.2, -0.01, p, p, True)
        for group, p in zip(("III-IV", "V-VI", "VII"), p_values, strict=False)
    ]
    names = [field.name for field in dataclasses.fields(Contrast)]
    return pd.DataFrame([dataclasses.asdict(row) for row in rows], columns=names)


def facts(**counts: int) -> dict:
    """Of a test split with so many images of each skin type; none of them stands in train."""
    splits = {group: {"train": {"images": 0}, "test": {"images": count}} for group, count in counts.items()}
    rows = [{"column": "fitzpatrick", "group": group, "splits": split} for group, split in splits.items()]
    return {"split": "test", "population": rows}


def test_a_difference_is_found_below_five_hundredths_and_named():
    tested = classifier_card.tested_contrasts
    assert tested(contrasts()) == ("No difference between groups was tested: too few lesions, or one group only.")
    none = tested(contrasts(0.05, 0.7))
    assert none.startswith("Of 2 tested differences between the groups of `fitzpatrick_group`, 0 have an adjusted p")
    assert none.endswith("That is no proof of equality: the intervals say how large a gap may hide.")
    one = tested(contrasts(0.0499, 0.05))
    assert "1 has an adjusted p below 0.05: ROC AUC of III-IV against I-II." in one and "no proof" not in one
    both = tested(contrasts(0.01, 0.02))
    assert "2 have" in both and "ROC AUC of III-IV against I-II, ROC AUC of V-VI against I-II." in both


def test_for_whom_nobody_knows_is_said_of_those_alone():
    known = untested([metric(), metric("sex", "male")], facts(I=5, II=5, III=5, IV=5, V=5, VI=5))
    assert known == ["Other cameras, clinics and populations than those of the data below, whatever the group."]
    assert untested([metric()], facts(I=5, unknown=3))[0] == (
        "Skin types that the split does not hold: II, III, IV, V, VI."
    )
    for nobody in (facts(unknown=9), facts(), facts(I=0, unknown=9)):
        lines = untested([metric()], nobody)
        assert lines[0].startswith("No skin types are recorded in these data") and len(lines) == 2
    rows = [metric("sex", "male", estimable=False), metric("sex", "unknown", estimable=False)]
    rows += [metric("sex", "female", "sensitivity", estimable=False), metric("sex", "female")]
    small = [line for line in untested([metric(), *rows], facts(unknown=1)) if TOO_SMALL in line]
    assert small == [f"`sex`, {TOO_SMALL}: male (100 images, 20 melanomas)."]
    first = untested([metric(estimable=False)], facts(unknown=1))[0]
    assert first == "Anybody, in effect: there are too few lesions to tell (100 images, 20 melanomas)."


def test_the_licence_is_the_one_that_all_data_share_or_names_them_all():
    mit, other, unknown = {"licence": "mit"}, {"licence": "cc-by-4.0"}, {"licence": None}
    assert licence_metadata([mit]) == licence_metadata([mit, mit]) == {"license": "mit"}
    assert licence_metadata([mit, other]) == {"license": "other", "license_name": "mit-and-cc-by-4.0"}
    assert licence_metadata([unknown]) == {"license": "other", "license_name": "unknown"}
    assert licence_metadata([mit, unknown])["license_name"] == "mit-and-unknown"


def test_the_metadata_hold_what_is_estimable_and_indexed():
    rows = [metric(), metric("sex", "male", estimable=False), metric(name="ppv")]
    found = eval_results(rows, "ham10000", "HAM10000", "test")
    assert [(result.metric_type, result.metric_name) for result in found] == [("roc_auc", "ROC AUC, all images")]
    assert found[0].metric_args["interval_95"] == [0.8, 0.95] and found[0].dataset_split == "test"


def test_the_first_table_shows_the_groups_that_it_should():
    names = ("roc_auc", "sensitivity", "specificity")
    groups = (("all", "all"), ("localization", "back"), ("sex", "male"), ("fitzpatrick_group", "V-VI"))
    lines = headline_table([metric(*group, name, group[1] != "male") for group in groups for name in names])
    shown = [line.split(" | ")[0].strip("| ") for line in lines.splitlines()[2:]]
    assert shown == ["all images", "fitzpatrick_group V-VI", "sex male"]
    assert lines.count("0.900 [0.800, 0.950]") == 6 and lines.count("not estimable") == 3
    assert "| 100 | 90 | 20 (18) |" in lines


def test_calibration_before_is_shown_where_it_is_known():
    names = ("brier", "calibration_intercept", "calibration_slope", "ece")
    after = [metric(name=name) for name in names] + [metric("sex", "male", name) for name in names]
    before = [dataclasses.asdict(metric(name=name)) | {"value": 0.3, "low": None, "high": None} for name in names]
    with_it, without = calibration_table(after, before).splitlines(), calibration_table(after, None).splitlines()
    assert with_it[0] == "| all images | before calibration | as published | perfect |"
    assert without[0] == "| all images | as published | perfect |"
    assert "0.300" in with_it[2] and with_it[2].endswith("| 0.900 [0.800, 0.950] | 0 |") and len(with_it) == 6
    assert with_it[4].endswith("| 1 |") and without[4].endswith("| 1 |")


def test_a_run_is_a_smoke_run_on_either_side_of_both_limits():
    for images, split, seen, smoke in ((200, 200, 180, False), (199, 199, 9999, True), (900, 1000, 899, True)):
        assert training_facts(images, split, seen)["smoke"] is smoke


def test_who_is_in_the_data_leaves_out_what_is_generated_or_unusable_and_nobody_else():
    table = pd.DataFrame({"lesion_id": list("abcd"), "melanoma": [1, 0, 1, 1], "sex": "male", "age": 40.0})
    table = table.assign(
        split="train",
        synthetic="false",
        fitzpatrick="I",
        **dict.fromkeys(("localization", "source", "diagnosis"), "x"),
    )
    assert population(table)[0]["splits"]["train"] == {"images": 4, "melanomas": 3, "lesions": 4}
    table.loc[0, "synthetic"], table.loc[1, "split"] = "true", "unusable"
    assert population(table)[0]["splits"] == {"train": {"images": 2, "melanomas": 2, "lesions": 2}}


def test_counts_of_a_split_that_a_group_is_not_in_are_zero():
    whole = {"train": {"images": 1200, "melanomas": 7, "lesions": 1100}}
    rows = [{"column": "all", "group": "all", "splits": whole}]
    rows += [{"column": "sex", "group": "male", "splits": {"train": {"images": 0, "melanomas": 0}}}]
    assert population_table(rows).splitlines()[2:] == [
        "| all images | 1,200 (7) |",
        "| lesions | 1,100 |",
        "| sex male | 0 |",
    ]


def test_labels_are_opposed_where_there_are_two_and_counted_where_there_are_more():
    point = {"threshold": 0.51234, "rule": "youden", "positive_labels": ["mel"]}
    config = {"label_names": ["nv", "mel"], "operating_point": point, "architecture": "resnet18"}
    config |= {"pretrained_cfg": {"input_size": [3, 64, 48]}, "calibration": None}
    two = classifier_card.operating_point(config)
    assert (two["labels"], two["positive"], two["positive_indices"]) == ("nv against mel", "mel", [1])
    assert (two["threshold"], two["size"]) == ("0.5123", "64 x 48")
    more = {
        "label_names": ["in situ", "nv", "mel"],
        "operating_point": point | {"positive_labels": ["mel", "in situ"]},
    }
    three = classifier_card.operating_point(config | more)
    assert (three["labels"], three["positive"]) == ("one of 3 labels", "mel or in situ")
    assert three["positive_indices"] == [2, 0]


@dataclasses.dataclass
class Shown:
    a: int | None = flag(None)
    b: str = flag("")
    c: list[int] = flag([])
    d: int = flag(1)
    e: list[int] = flag([])
    f: bool = flag(True)
    hidden: int = flag(1, shown=False)
    free: int = flag(1, free=True)
    later: int = flag(1)  # than the run was recorded


def test_settings_that_say_something_and_are_shown_stand_in_the_order_of_their_flags():
    settings = {"f": False, "e": [1, 2], "d": 0, "c": [], "b": "", "a": None, "hidden": 5, "free": 5, "other": 5}
    assert settings_text(settings, Shown) == "`d` 0, `e` 1 2, `f` False"


@pytest.mark.parametrize(("value", "shown"), [(0.25, "0.2500"), (None, "–")])
def test_the_last_losses_are_shown_and_an_empty_band_is_none(value, shown):
    history = [{"step": 1, "error_t0-199": 0.9}, {"step": 2, "error_t0-199": value, "loss": 3.0}]
    assert loss_table(history).splitlines() == ["| timesteps | 0 to 199 |", "| --- | --- |"] + [
        f"| mean squared error | {shown} |"
    ]
