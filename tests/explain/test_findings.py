"""Every verdict and sentence of a report on both sides, from planted figures; and names in it."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from explained_tables import explained_table
from odd_names import ODD_NAMES

from melanoma_fair_xai.explain.batches import Options
from melanoma_fair_xai.explain.controls import RIVALS
from melanoma_fair_xai.explain.findings import (
    TRAP_MARGIN,
    artefact_rows,
    beats,
    findings,
    is_caught,
    skin_contrasts,
    trap_sentences,
)
from melanoma_fair_xai.explain.layers import MapLayer
from melanoma_fair_xai.explain.measures import COMPARED, MEASURES
from melanoma_fair_xai.explain.page import Facts, closing_words, render_page
from melanoma_fair_xai.explain.record import write_overlays
from melanoma_fair_xai.explain.summary import against_controls, by_group, group_names

LAYER = MapLayer("layer2", "Sequential", 64, (4, 4), "NCHW")


def facts(method: str = "gradcam", phantoms: bool = False, **options) -> Facts:
    return Facts("model", "data", "test", phantoms, LAYER, Options(method, **options), 0, "python explain.py")


def of_all(measure: str, mean: float, low: float, high: float, lesions: int = 40) -> dict:
    estimable = {"lesions": lesions, "n": lesions, "estimable": lesions >= 10}
    return {
        "group_column": "all",
        "group": "all",
        "measure": measure,
        "mean": mean,
        "low": low,
        "high": high,
    } | estimable


def overall(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows).set_index("measure")


class Report:
    """What is said of a table."""

    def __init__(self, table: pd.DataFrame):
        self.table, self.comparison = table, against_controls(table)
        self.groups = by_group(table, group_names(table))

    def findings(self, method: str = "gradcam") -> list[str]:
        return findings(self.table, self.comparison, self.groups, method)

    def page(self, given: Facts) -> str:
        pictures = dict.fromkeys(("fidelity", "shuffled"), "data:")
        return render_page(self.table, self.comparison, self.groups, pictures, given)

    def closing(self, given: Facts) -> str:
        return closing_words(Path("r"), self.table, self.comparison, self.groups, given)


@pytest.mark.parametrize(("low", "expected"), [(1e-6, True), (0.0, False), (-1e-6, False), (np.nan, False)])
def test_a_control_is_beaten_where_the_interval_over_it_lies_above_zero(low, expected):
    row = pd.Series({"over_random_low": 1.0, "over_centre_low": low, "over_edges_low": 1.0, "over_centre_high": 2.0})
    assert beats(row, "centre") is expected and beats(row, "random")
    assert not beats(pd.Series({"over_random_low": -1.0, "over_centre_low": 1.0}), "random")


@pytest.mark.parametrize(("beaten", "count"), [("centre", len(COMPARED)), ("random", 0)])
def test_it_is_the_centre_that_the_first_sentence_is_about(beaten, count):
    table = explained_table({name: 0.2 if name == beaten else -0.2 for name in ("random", "centre", "edges")})
    titles = ", ".join(MEASURES[name].title for name in COMPARED)
    exceptions = "" if count else f"; not on {titles}"
    first = f"Grad-CAM (Selvaraju et al. 2017) beats the centre Gaussian on {count} of 17 measures{exceptions}."
    report = Report(table)
    assert report.findings()[0] == first
    assert report.findings("occlusion")[0].startswith("occlusion by the mean colour (Zeiler and Fergus 2014) beats")
    verdicts = [line.split()[-1] for line in report.closing(facts()).splitlines()[1:18]]
    assert verdicts == ["yes" if count else "no"] * 17
    assert report.page(facts()).count('<span class="yes">yes</span>') == count


def test_measures_that_are_not_won_are_named():
    table = explained_table(0.2)
    for name, lost in {"road_most": 0.3, "pointing_game": -0.3}.items():  # one where less is better, one where more is
        table[f"{name}__centre"] = table[name] - lost
    assert "on 15 of 17 measures; not on ROAD, most relevant first, pointing game." in Report(table).findings()[0]
    table["deletion_blur__centre"] = table["deletion_blur"] + explained_table(0.0)["insertion_blur"] - 0.5  # a draw
    assert "on 14 of 17 measures; not on deletion AUC, blur, ROAD" in Report(table).findings()[0]


def test_too_few_lesions_are_said_and_nothing_is_compared():
    assert Report(explained_table(0.2, lesions=10)).findings()[0].startswith("Grad-CAM")
    few = explained_table(0.2, lesions=9)
    assert Report(few).findings() == ["Too few usable maps, of fewer than 10 lesions, to compare with controls."]
    assert "yes" not in Report(few).closing(facts())


def test_maps_that_cannot_be_used_are_counted():
    assert "could not be used" not in " ".join(Report(explained_table(0.2)).findings())
    table = explained_table(0.2, map_problem=["constant"] * 3 + ["not finite"] + [""] * 36)
    report = Report(table)
    assert "4 of 40 maps could not be used and are left out of the measures." in report.findings()
    assert "3 constant, 1 not finite" in report.page(facts())
    assert "Maps left out" not in Report(explained_table(0.2)).page(facts())


def test_the_likeness_to_a_shuffled_net_is_that_of_all_its_layers():
    table = explained_table(0.2, spearman_shuffled_1=0.25, spearman_shuffled_0=0.75, ssim_shuffled_1=0.5)
    (line,) = (line for line in Report(table).findings() if "rank correlation" in line)
    assert f"shuffled is {table['spearman_shuffled_1'].mean():.3f} [0.2" in line and "has about none" in line


@pytest.mark.parametrize(
    ("low", "high", "caught"),
    [
        (TRAP_MARGIN + 0.001, 0.3, True),
        (-0.3, -TRAP_MARGIN - 0.001, True),
        (TRAP_MARGIN - 0.001, 0.3, False),  # up, but not surely beyond
        (-0.3, -TRAP_MARGIN + 0.001, False),
        (-0.3, 0.3, False),
        (-0.01, 0.01, False),
    ],
)
def test_a_trap_is_caught_where_its_whole_interval_lies_beyond_the_margin(low, high, caught):
    row = of_all("trap_ruler_change", (low + high) / 2, low, high)
    assert is_caught(pd.Series(row)) is caught
    (line,) = trap_sentences(overall(row))
    assert line.startswith("A pasted ruler changes the melanoma score by ") and " [" in line
    assert line.endswith(": the score depends on it." if caught else ": within ±0.05 or not told apart from it.")


def test_every_trap_that_was_set_has_its_own_sentence():
    rows = [
        of_all("trap_ink_change", 0.2, 0.1, 0.3),
        of_all("trap_ink_turned", 0.0, 0.0, 0.0),
        of_all("trap_erase_lesion_change", -0.01, -0.02, 0.0),
        of_all("trap_erase_background_change", np.nan, np.nan, np.nan, lesions=9),
    ]
    assert trap_sentences(overall(*rows)) == [
        "A pasted ink changes the melanoma score by 0.200 [0.100, 0.300] on average: the score depends on it.",
        "Erasing the lesion changes the melanoma score by −0.010 [−0.020, 0.000] on average: "
        "within ±0.05 or not told apart from it.",
        "Erasing the background: not estimable (9 lesions).",
    ]


def test_the_page_marks_the_groups_in_which_a_trap_is_caught():
    sexes, turned = ["female", "male"] * 20, [1.0, 0.0] * 20
    change = np.where(np.arange(40) % 2, 0.01, -0.2)
    table = explained_table(0.2, sex=sexes, trap_ruler_change=change, trap_ruler_turned=turned)
    report = Report(table)
    text = report.page(facts(traps=("ruler",)))
    part = text[text.index("Artefact traps") : text.index("By group")]
    (female,), (male,) = ([line for line in part.split("<tr>") if f"sex: {sex}" in line] for sex in ("female", "male"))
    assert '<span class="no">−0.200</span>' in female and "1.00</td>" in female
    assert '<span class="">0.010</span>' in male and "0.00</td>" in male
    assert "Artefact traps" not in report.page(facts())


def energies(**least: float) -> pd.DataFrame:
    """Energy of .4 in rulers, with the lower limit of the advantage over a control, .1 where none is given."""
    over = {name: 0.1 for name in RIVALS} | least
    return overall(
        of_all("energy_in_ruler", 0.4, 0.3, 0.5),
        *(of_all(f"energy_in_ruler_over_{name}", low + 0.05, low, low + 0.1) for name, low in over.items()),
    )


@pytest.mark.parametrize("control", RIVALS)
def test_a_model_looks_at_an_artefact_if_its_energy_there_is_above_that_of_every_control(control):
    (row,) = artefact_rows(energies(**{control: 0.01}))
    assert row["caught"] and row["title"] == "ruler" and (row["energy"], row["low"]) == (0.4, 0.01)
    assert row["controls"][control] == pytest.approx(0.4 - 0.06)
    for least in (0.0, -0.2, np.nan):
        (row,) = artefact_rows(energies(**{control: least}))
        assert not row["caught"]


def test_artefacts_are_said_on_both_sides_and_only_where_they_can_be_told():
    sides = {True: "more than every control: the model looks at it.", False: "no more than a control does."}
    for caught, words in sides.items():
        own = {f"energy_in_dark_corner__{name}": 0.1 if caught or name != "edges" else 0.6 for name in RIVALS}
        table = explained_table(0.2, energy_in_dark_corner=0.4, **own)
        report = Report(table)
        (line,) = (line for line in report.findings() if line.startswith("Of the positive attribution, 0.4"))
        assert line.endswith(f"lies in the dark corner, {words}")
        text = report.page(facts())
        assert ("the model looks at it</span>" in text) == caught == ("quiet</span>" not in text)
    rows = energies()
    rows.loc["energy_in_ruler", "estimable"] = False
    assert artefact_rows(rows) == []


def test_dark_skin_is_called_worse_explained_where_it_is_whichever_way_is_better():
    table = explained_table(0.2, fitzpatrick=["I", "VI"] * 20)
    rises = {"pointing_game": 0.3, "insertion_blur": -0.3, "iou": 0.0}  # where more is better
    rises |= {"deletion_blur": 0.3, "road_most": -0.3, "infidelity": 0.0}  # where less is
    for name, rise in rises.items():
        table[name] = np.tile([0.5, 0.5 + rise], 20) + np.tile([0.02, 0.02, -0.02, -0.02], 10)
    words = {"pointing_game": "better", "insertion_blur": "worse", "deletion_blur": "worse", "road_most": "better"}
    report = Report(table)
    text = report.page(facts())
    part = text[text.index("As explainable on dark skin") : text.index("What the measures mean")]
    contrasts = {row["measure"]: row for row in skin_contrasts(report.groups)}
    for name, rise in rises.items():
        row, word = contrasts[name], words.get(name, "")
        assert row["group"] == "V-VI" and row["difference"] == pytest.approx(rise)
        assert rise - 0.05 < row["low"] < rise < row["high"] < rise + 0.05
        assert (row["better"], row["worse"]) == (word == "better", word == "worse")
        (line,) = (line for line in part.split("<tr>") if line.startswith(f"<td>{MEASURES[name].title}<"))
        assert (f"{word} than on I-II" if word else "not told apart") in line


def test_without_skin_types_or_enough_of_them_there_is_no_contrast():
    assert "As explainable on dark skin" not in Report(explained_table(0.2)).page(facts())
    few = explained_table(0.2, fitzpatrick=["VI"] * 9 + ["I"] * 20 + ["unknown"] * 11)
    assert skin_contrasts(by_group(few, ["fitzpatrick"])) == []
    assert "As explainable on dark skin" not in Report(few).page(facts())


def test_groups_show_their_means_or_that_they_are_too_few():
    table = explained_table(0.2, sex=["male"] * 9 + ["female"] * 31)
    text = Report(table).page(facts())
    part = text[text.index("By group") : text.index("What the measures mean")]
    (female,), (male,) = ([line for line in part.split("<tr>") if f"sex: {sex}" in line] for sex in ("female", "male"))
    assert f"{table['pointing_game'][9:].mean():.3f}" in female and "31</td><td>31</td>" in female
    assert male.count("9 lesions") == 6 and f"{table['pointing_game'][:9].mean():.3f}" not in male


def test_the_page_says_what_was_explained_and_whether_it_is_of_phantoms():
    table = explained_table(0.2)
    counts = table["error"].value_counts()
    report = Report(table)
    text = report.page(facts(target="melanoma"))
    assert ", ".join(f"{counts[name]} {name}" for name in ("TP", "FN", "FP", "TN")) in text
    assert "the melanoma score, at layer <code>layer2 (4 x 4)</code>" in text and "never negative" in text
    assert "<strong>Phantoms.</strong>" not in text and "These are phantoms" not in report.closing(facts())
    text = report.page(facts("occlusion", phantoms=True))
    assert "what the model decides" in text and "positive for it, negative against it" in text
    assert "<strong>Phantoms.</strong>" in text and "These are phantoms" in report.closing(facts(phantoms=True))
    for measure in MEASURES.values():
        assert f"<dt>{measure.title}</dt><dd>" in text.replace("&#39;", "'")
        assert f"{measure.meaning}; {measure.better} is better" in text.replace("&#39;", "'")


def test_a_page_shows_the_letters_of_names_and_no_tag_of_theirs():
    names = [name for name in ODD_NAMES if name.startswith(("<", "&", "!"))]
    report = Report(explained_table(lesions=10 * len(names), sex=names * 10))
    named = Facts("<b>model", "![t](http://x)", "</p>", False, LAYER, Options("gradcam"), 0, "python '<script>'")
    page = report.page(named)
    plain = re.sub(r"<[a-z!/][^>]*>", "", page, flags=re.IGNORECASE)
    assert "<script" not in page and "<b>" not in page and "onerror=alert(1)>" not in page
    for name in [*(f"sex: {name}" for name in names), "<b>model", "![t](http://x)", "</p>", "python '<script>'"]:
        assert name in html.unescape(plain), name


def test_images_of_like_names_have_overlays_of_their_own(tmp_path):
    names = ["p/a_1.jpg", "p_a/1.jpg", "p/a 1.jpg", "deep/" * 200, "ISIC_0024306"]
    pixels = np.stack([np.full((4, 4, 3), 40 * row, dtype=np.uint8) for row in range(len(names))])
    write_overlays(tmp_path, names, pixels, np.zeros((len(names), 4, 4)))
    files = list(tmp_path.iterdir())
    assert len(files) == len(names) and tmp_path / "ISIC_0024306.jpg" in files
