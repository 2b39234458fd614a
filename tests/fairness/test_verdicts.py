"""Signs, directions, guards and sentences of the report, on data whose verdict is planted."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from melanoma_fair_xai.base.tables import number
from melanoma_fair_xai.fairness import compare, evaluate_predictions, mean_by_group
from melanoma_fair_xai.fairness.comparison import COMPARED
from melanoma_fair_xai.fairness.estimates import rate
from melanoma_fair_xai.fairness.metrics import METRICS, Metric


def decided(groups: dict[str, tuple[int, int, int, int]], column: str = "skin") -> pd.DataFrame:
    """Lesions of one image: by group, how many melanomas of how many are found, and benign ones left alone."""
    parts = []
    for group, (found, melanomas, passed, benign) in groups.items():
        scores = [0.9] * found + [0.1] * (melanomas - found) + [0.1] * passed + [0.9] * (benign - passed)
        parts.append(pd.DataFrame({column: group, "label": [1] * melanomas + [0] * benign, "score": scores}))
    table = pd.concat(parts, ignore_index=True).assign(threshold=0.5, fold=0)
    return table.assign(image_id=table.index, lesion_id=table.index)


def cells(text: str, after: str, first: str) -> dict[str, str]:
    """By the titles of its columns, the first row after `after` of a table in Markdown that begins with `first`."""
    lines = text.partition(after)[2].splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    header = next(lines[i - 1] for i in range(at, 0, -1) if lines[i].startswith("| ---"))
    return dict(
        zip(*([cell.strip() for cell in line.strip("|").split(" | ")] for line in (header, lines[at])), strict=True)
    )


SKIN = {"I-II": (32, 40, 45, 60), "V-VI": (16, 40, 54, 60)}  # sensitivity .8 and .4, specificity .75 and .9


def test_a_contrast_is_the_group_minus_the_reference():
    table = decided(SKIN, "fitzpatrick_group")
    report = evaluate_predictions(table, ["fitzpatrick_group"], n_resamples=50)
    found = {(row.group, row.metric): row for row in report.contrasts}
    assert set(group for group, _ in found) == {"V-VI"} and {row.reference for row in report.contrasts} == {"I-II"}
    sensitivity, specificity = found["V-VI", "sensitivity"], found["V-VI", "specificity"]
    assert sensitivity.value == pytest.approx(-0.4) and -0.6 < sensitivity.low < -0.4 < sensitivity.high < -0.15
    assert specificity.value == pytest.approx(0.15) and 0 < specificity.low < 0.15 < specificity.high < 0.3
    line = cells(report.to_markdown(), "Differences from I-II:", "V-VI")
    assert line["sensitivity"].startswith("−0.400 [−0.") and line["specificity"].startswith("0.150 [0.")
    turned = evaluate_predictions(
        table, ["fitzpatrick_group"], reference={"fitzpatrick_group": "V-VI"}, n_resamples=50
    )
    mirror = next(row for row in turned.contrasts if row.metric == "sensitivity")
    assert (mirror.group, mirror.reference, mirror.value) == ("I-II", "V-VI", pytest.approx(0.4))
    assert (mirror.low, mirror.high) == pytest.approx((-sensitivity.high, -sensitivity.low))
    assert cells(turned.to_markdown(), "Differences from V-VI:", "I-II")["sensitivity"].startswith("0.400 [0.")


def test_the_reference_is_the_known_group_with_most_melanomas_unless_named():
    table = decided({"a": (10, 20, 20, 20), "b": (15, 30, 10, 10), "c": (10, 20, 80, 80), "unknown": (20, 40, 20, 20)})
    report = evaluate_predictions(table, ["skin"], n_resamples=20)
    assert report.reference == {"skin": "b"} and {row.reference for row in report.contrasts} == {"b"}
    named = evaluate_predictions(table, ["skin"], reference={"skin": "c"}, n_resamples=20)
    assert named.reference == {"skin": "c"} and {row.group for row in named.contrasts} == {"a", "b"}


def test_the_family_is_roc_auc_and_sensitivity_of_the_primary_groups_and_nothing_else():
    table = decided({"a": (32, 40, 45, 60), "b": (26, 40, 50, 60), "c": (20, 40, 54, 60), "d": (30, 40, 40, 60)})
    table = table.assign(sex=np.where(table.index % 3, "female", "male"))
    report = evaluate_predictions(table, ["skin", "sex"], reference={"skin": "a"}, n_resamples=50)
    tested = [row for row in report.contrasts if not np.isnan(row.p)]
    assert {(row.group_column, row.metric) for row in tested} == {("skin", "roc_auc"), ("skin", "sensitivity")}
    assert len(tested) == 6
    adjusted = multipletests([row.p for row in tested], method="holm")[1]
    assert [row.p_holm for row in tested] == pytest.approx(adjusted)
    assert all(np.isnan(row.p_holm) for row in report.contrasts if row not in tested)
    text = report.to_markdown()
    assert "Holm over 6 contrasts, of ROC AUC and sensitivity between the groups of skin" in text
    found = next(row for row in tested if (row.group, row.metric) == ("c", "sensitivity"))
    line = next(line for line in text.partition("Differences from a:")[2].splitlines() if line.startswith("| c |"))
    assert 0.001 < found.p < found.p_holm < 0.05
    interval = f"[{number(found.low)}, {number(found.high)}]"
    assert f"| −0.300 {interval} | {number(found.p)} | {number(found.p_holm)} |" in line
    # fitzpatrick_group is primary wherever it stands; without one the first column is.
    table = table.assign(fitzpatrick_group=np.where(table.index % 2, "I-II", "V-VI"))
    for columns, primary in ((["sex", "fitzpatrick_group"], "fitzpatrick_group"), (["sex", "skin"], "sex")):
        report = evaluate_predictions(table, columns, n_resamples=20)
        assert {row.group_column for row in report.contrasts if not np.isnan(row.p)} == {primary}


def test_a_comparison_tests_all_images_and_the_primary_groups():
    first = decided(SKIN).assign(sex=lambda table: np.where(table.index % 3, "female", "male"))
    second, third = (decided({"I-II": (a, 40, 45, 60), "V-VI": (b, 40, 50, 60)}) for a, b in ((30, 30), (20, 24)))
    result = compare(
        {"first": first, "second": second, "third": third}, ["skin", "sex"], {"skin": "I-II"}, n_resamples=50
    )
    tested = [row for row in result.differences if not np.isnan(row.p)]
    places = {(row.model, row.group, row.metric) for row in tested}
    comparable = ("roc_auc", "sensitivity_at_specificity", "specificity_at_sensitivity")
    assert places == {(m, g, k) for m in ("second", "third") for g in ("all", *SKIN) for k in comparable}
    assert {row.group_column for row in result.differences} == {"all", "skin", "sex"}
    adjusted = multipletests([row.p for row in tested], method="holm")[1]
    assert [row.p_holm for row in tested] == pytest.approx(adjusted)
    text = result.to_markdown()
    family = "Holm over 18 differences: ROC AUC, sensitivity at specificity 0.9 and specificity at sensitivity 0.9 of"
    assert f"{family} every model" in text
    _, second, third = text.split("\n## ")
    for name, section, sensitivity in (("second", second, "0.750"), ("third", third, "0.500")):
        assert section.startswith(f"{name} against first\n")
        lines = [line for line in section.splitlines() if line.startswith("| skin | I-II | 100 | 40 | sensitivity,")]
        assert len(lines) == 1 and f"| 0.800 | {sensitivity} |" in lines[0]


def test_a_difference_is_the_model_minus_the_baseline():
    after = {"I-II": (28, 40, 45, 60), "V-VI": (26, 40, 54, 60)}
    result = compare({"old": decided(SKIN), "new": decided(after)}, ["skin"], {"skin": "I-II"}, n_resamples=50)
    rows = {(row.group, row.metric): row for row in result.differences}
    for group, before, now in (("I-II", 0.8, 0.7), ("V-VI", 0.4, 0.65), ("all", 0.6, 0.675)):
        row = rows[group, "sensitivity"]
        assert (row.baseline_value, row.model_value) == pytest.approx((before, now))
        assert row.value == pytest.approx(now - before) and row.low < row.value < row.high
    gap = next(row for row in result.gaps if row.metric == "sensitivity")
    assert (gap.group, gap.reference) == ("V-VI", "I-II")
    assert (gap.baseline_gap, gap.model_gap, gap.value) == pytest.approx((-0.4, -0.05, 0.35))
    assert gap.low < gap.value < gap.high
    text = result.to_markdown()
    assert "## new against old" in text
    line = next(line for line in text.splitlines() if "V-VI − I-II | sensitivity," in line)
    assert line.startswith("| skin | V-VI − I-II | sensitivity, given the thresholds | −0.400 | −0.050 | 0.350 [0.")
    line = next(line for line in text.splitlines() if line.startswith("| skin | V-VI | 100 | 40 | sensitivity,"))
    assert "| sensitivity, given the thresholds | 0.400 | 0.650 | 0.250 [0." in line


# Melanomas found of 40 in the reference and in the group, by the baseline and by the model; the verdict.
LEVELLING = {
    "the better group loses, nobody gains": ((32, 16), (20, 16), "clear"),
    "the better group loses a little": ((32, 16), (31, 16), "chance"),
    "both lose, the better one more": ((32, 16), (20, 14), "clear"),
    "the worse group gains, and the better one loses": ((32, 16), (28, 20), None),
    "the worse group gains alone": ((32, 16), (32, 26), None),
    "both gain, the worse one more": ((32, 16), (34, 26), None),
    "both lose as much": ((32, 16), (28, 12), None),
    "the worse group alone loses": ((32, 16), (32, 12), None),
    "the better group falls below by as much": ((32, 16), (4, 20), None),
    "nothing changes": ((32, 16), (32, 16), None),
    "the reference is behind: the better group loses": ((16, 32), (16, 20), "clear"),
    "the reference is behind: it gains": ((16, 32), (26, 32), None),
    "the reference is behind: it alone loses": ((16, 32), (10, 32), None),
    "the reference is behind: the better group loses a little": ((16, 32), (16, 31), "chance"),
}


@pytest.mark.parametrize("case", LEVELLING)
def test_levelling_down_is_a_narrower_gap_that_nobody_gained_by(case, monkeypatch):
    """The same verdict on sensitivity, of which more is better, and on its mirror, of which less is."""
    miss_rate = Metric(
        "miss rate", lambda m, w: 1 - m.sensitivity(w), "lower", lambda s: rate(s, s.labels, ~s.decisions),
        at_threshold=True, classes=(1,), tested=True,
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "miss_rate", miss_rate)
    before, after, verdict = LEVELLING[case]
    models = {
        name: decided({"ref": (found[0], 40, 50, 60), "group": (found[1], 40, 50, 60)})
        for name, found in (("before", before), ("after", after))
    }
    result = compare(models, ["skin"], {"skin": "ref"}, n_resamples=20)
    text = result.to_markdown()
    for metric, title in (("sensitivity", "sensitivity"), ("miss_rate", "miss rate")):
        gap = next(row for row in result.gaps if row.metric == metric)
        assert gap.levelling_down == (verdict is not None) and gap.loss_is_clear == (verdict == "clear"), metric
        assert (gap in result.levelling_down) == (verdict is not None)
        line = next(line for line in text.splitlines() if f"group − ref | {title}, " in line)
        said = {"clear": "**levelling down**", "chance": "levelling down, within chance", None: ""}[verdict]
        assert line.rstrip(" |").endswith(said or "]")
        assert said or "levelling" not in line


def test_levelling_down_is_not_said_of_what_depends_on_the_prevalence():
    """The Brier score of the reference, which is ahead, grows to that of the other group, and so does no other."""
    rng = np.random.default_rng(0)
    label, group = np.tile([1, 0, 0], 60), np.repeat(["ref", "other"], 90)
    blurred = np.clip(0.5 + 0.05 * (2 * label - 1) + 0.02 * rng.normal(size=180), 0, 1)
    sharp = np.where(group == "ref", np.clip(0.5 + 0.4 * (2 * label - 1) + 0.02 * rng.normal(size=180), 0, 1), blurred)
    table = pd.DataFrame({"image_id": range(180), "lesion_id": range(180), "label": label, "skin": group, "fold": 0})
    models = {"sharp": table.assign(score=sharp, threshold=0.5), "blurred": table.assign(score=blurred, threshold=0.5)}
    result = compare(models, ["skin"], {"skin": "ref"}, n_resamples=50)
    gap = next(row for row in result.gaps if row.metric == "brier")
    assert gap.baseline_gap > 0.1 and gap.model_gap < 0.01 and not gap.levelling_down and np.isnan(gap.p)
    assert not [row for row in result.gaps if COMPARED[row.metric].better is None]


def test_the_flag_is_bold_only_where_loss_and_narrowing_are_clear_after_correction():
    """The loss alone is clear where both groups lose; a family of many groups takes what one would let pass."""
    after = {"ref": (20, 40, 50, 60), "group": (14, 40, 50, 60)}  # .8 to .5, and .5 to .35: the gap is half as wide
    before = {"ref": (32, 40, 50, 60), "group": (20, 40, 50, 60)}
    result = compare({"before": decided(before), "after": decided(after)}, ["skin"], {"skin": "ref"}, n_resamples=20)
    gap = next(row for row in result.gaps if row.metric == "sensitivity")
    loss = next(row for row in result.differences if (row.group, row.metric) == ("ref", "sensitivity"))
    assert loss.high < 0 and gap.low < 0 < gap.high and gap.levelling_down and gap.p > 0.05
    assert not gap.loss_is_clear and "**levelling down**" not in result.to_markdown()
    bold = {}
    for others in (0, 9):  # groups in which nothing happens
        groups = {f"other {i}": (32, 40, 50, 60) for i in range(others)}
        tables = [decided({"ref": (32, 40, 50, 60), "group": (16, 40, 50, 60), **groups})]
        tables.append(decided({"ref": (26, 40, 50, 60), "group": (16, 40, 50, 60), **groups}))
        result = compare(dict(zip("ab", tables, strict=True)), ["skin"], {"skin": "ref"}, n_resamples=20)
        gap = next(row for row in result.gaps if (row.group, row.metric) == ("group", "sensitivity"))
        tested = [row.p for row in result.gaps if not np.isnan(row.p)]
        assert len(tested) == 2 * (1 + others)
        adjusted = multipletests(tested, method="holm")[1]
        assert [row.p_holm for row in result.gaps if not np.isnan(row.p)] == pytest.approx(adjusted)
        assert gap.p < 0.05
        bold[others] = gap.loss_is_clear
        said = f"adjusted by Holm over {len(tested)} changes" in result.to_markdown()
        assert said and ("**levelling down**" in result.to_markdown()) == gap.loss_is_clear
    assert bold == {0: True, 9: False}


def test_the_worst_group_is_named_with_its_gap(monkeypatch):
    """Neither unknown nor a group of too few lesions, however bad; the mirror of sensitivity names the same group."""
    miss_rate = Metric(
        "miss rate", lambda m, w: 1 - m.sensitivity(w), "lower", lambda s: rate(s, s.labels, ~s.decisions),
        at_threshold=True, classes=(1,),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "miss_rate", miss_rate)
    groups = {"a": (24, 40, 59, 60), "b": (36, 40, 30, 60), "c": (12, 40, 45, 60)}
    groups |= {"few": (0, 9, 9, 9), "unknown": (1, 40, 60, 60)}
    report = evaluate_predictions(decided(groups), ["skin"], n_resamples=99)
    rows = {row.metric: row for row in report.worst_group}
    for metric, worst, value, best, gap in (
        ("sensitivity", "c", 0.3, "b", 0.6),
        ("miss_rate", "c", 0.7, "b", 0.6),
        ("specificity", "b", 0.5, "a", 59 / 60 - 0.5),
    ):
        row = rows[metric]
        assert (row.group, row.best_group, row.groups) == (worst, best, 3)
        assert (row.value, row.gap) == pytest.approx((value, gap)) and row.p < 0.01
    assert set(rows) == {"roc_auc", "sensitivity", "specificity", "balanced_accuracy", "miss_rate"}
    line = cells(report.to_markdown(), "The gap between the best and the worst estimable group", "sensitivity")
    assert [line[name] for name in ("worst group", "its value", "best group", "gap")] == ["c", "0.300", "b", "0.600"]


def test_means_are_estimable_from_ten_lesions_on():
    table = pd.DataFrame({"lesion_id": np.repeat(np.arange(19), 2), "value": np.arange(38.0)})
    table["site"] = np.where(table["lesion_id"] < 10, "ten", "nine")
    result = mean_by_group(table, ["value"], ["site"]).set_index("group")
    assert (
        result.loc["ten", "estimable"] and np.isfinite(result.loc["ten", ["mean", "low", "high"]].astype(float)).all()
    )
    assert not result.loc["nine", "estimable"]
    assert np.isnan(result.loc["nine", ["mean", "low", "high"]].astype(float)).all()
