"""The classifier's card against the report that it was made of, read back as the Hub would read it."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from card_runs import make_predictions, write_card, write_results
from huggingface_hub import ModelCard
from scipy.special import expit, logit

from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.fairness.metrics import METRICS, Metric
from melanoma_fair_xai.fairness.rows import with_interval
from melanoma_fair_xai.hub import __main__ as hub
from melanoma_fair_xai.hub import classifier_card
from melanoma_fair_xai.hub.classifier_card import (
    INDEXED,
    before_calibration,
    operating_points,
    write_classifier_card,
)
from melanoma_fair_xai.hub.record import population, starting_point, training_facts

CITATION = SOURCES["ham10000"].citation
TYPES = ("I", "II", "VI", "unknown")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of a run without its card, and their report."""
    folder = tmp_path_factory.mktemp("runs") / "results"
    return folder, write_results(folder, list(TYPES))


@pytest.fixture
def run(results, tmp_path):
    """A copy of the results."""
    return shutil.copytree(results[0], tmp_path / "run")


@pytest.fixture(scope="module")
def carded(results, tmp_path_factory):
    """A run with its card, to be looked at only."""
    return write_card(shutil.copytree(results[0], tmp_path_factory.mktemp("runs") / "r18"), types=TYPES)


def run_hub(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["hub", *map(str, arguments)])
    run_command(hub.main)


def test_the_metadata_carry_every_estimable_stratum_and_nothing_else(carded, results):
    card, report = ModelCard.load(carded / "README.md"), results[1]
    rows = [row for row in report.overall + report.by_group if row.metric in INDEXED and row.estimable]
    results = card.data.eval_results
    assert len(results) == len(rows) > 20
    assert len({(result.metric_name, result.metric_type) for result in results}) == len(results)
    for result, row in zip(results, rows, strict=True):
        assert result.metric_value == row.value and type(result.metric_value) is float
        assert (result.metric_args["n"], result.metric_args["melanomas"]) == (row.n, row.melanomas)
        assert result.metric_args["interval_95"] == [row.low, row.high]
    assert "!!python" not in (carded / "README.md").read_text()
    assert card.data.license == "cc-by-nc-4.0" and card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["ham10000"] and card.data.base_model is None
    # What is read is written again without a loss.
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_the_text_says_who_it_is_for_and_for_whom_it_was_not_tested(carded):
    text = ModelCard.load(carded / "README.md").text
    words = ["Not a medical device", "does not rule out melanoma", "**0.5123**", "Seed 3", CITATION, "random weights"]
    for word in (*words, "--data_dir raw", "--output_dir r18", "Skin types that the split does not hold: III, IV, V."):
        assert word in text, word
    assert "`sex`, too few lesions to tell: male (15 images" in text and "not estimable" in text
    assert "Phantom data" not in text and "Smoke run" not in text and "/home/somebody" not in text
    assert "--pretrained_weights w.safetensors" in text and "../somewhere" not in text
    assert text.index("For whom it works") < text.index("It was not tested on") < text.index("## Intended use")
    assert "## Explanation\n\nNot measured." in text and "### All images" in text
    assert "\n\n\n" not in text
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) >= 3 and all((carded / link).is_file() for link in links)


def test_a_metric_that_is_added_to_the_table_stands_on_the_card_with_its_interval(tmp_path, monkeypatch):
    value = lambda weighted, weights: 1 - weighted.npv(weights)  # noqa: E731
    monkeypatch.setitem(
        METRICS, "false_omission_rate", Metric("false omission rate", value, "lower", at_threshold=True)
    )
    report = write_results(tmp_path / "run", ["I"])
    text = (write_card(tmp_path / "run", types=("I",)) / "README.md").read_text()
    row = next(row for row in report.overall if row.metric == "false_omission_rate")
    assert row.estimable and row.low < row.value < row.high
    assert "| false omission rate |" in text and with_interval(row) in text


def test_the_verdict_on_tested_contrasts_counts_those_below_five_per_cent():
    table = pd.DataFrame({"group_column": "skin", "group": ["b", "c"], "reference": "a", "metric": "roc_auc"})
    for p, words in (
        (
            [0.049, 0.2],
            "Of 2 tested differences between the groups of `skin`, 1 has an adjusted p below 0.05: ROC AUC of b",
        ),
        ([0.049, 0.001], "2 have an adjusted p below 0.05: ROC AUC of b against a, ROC AUC of c against a."),
        ([0.051, 0.2], "0 have an adjusted p below 0.05. That is no proof of equality"),
    ):
        assert words in classifier_card.tested_contrasts(table.assign(p_holm=p))
    assert classifier_card.tested_contrasts(table.head(0)).startswith("No difference between groups was tested")


def test_no_skin_types_phantoms_and_smoke_runs_are_said(run):
    folder = write_card(run, "phantom", ("unknown",), "phantom", images_seen=32)
    card = ModelCard.load(folder / "README.md")
    assert "No skin types are recorded" in card.text and "**Phantom data.**" in card.text
    assert "**Smoke run.** Training had 1,000 images to learn from and saw\n> 32 in all" in card.text
    assert "phantom" in card.data.tags and card.data.license == "apache-2.0"


def test_a_smoke_run_saw_less_than_an_epoch_or_had_hardly_anything_to_learn_from():
    assert training_facts(64, 1000, 640)["smoke"] and training_facts(1000, 1000, 640)["smoke"]
    assert training_facts(150, 150, 15000)["smoke"]
    assert not training_facts(1000, 1000, 992)["smoke"]  # one epoch, its last batch left out


def test_a_prepared_folder_tells_its_licence_and_an_unknown_one_has_none(run, tmp_path):
    (tmp_path / "own").mkdir()
    head = "---\nlicense: cc-by-4.0\npretty_name: Own data\n---\n# Own\n\n```bibtex\n@misc{own}\n```\n"
    (tmp_path / "own" / "README.md").write_text(head)
    card = ModelCard.load(write_card(run, str(tmp_path / "own")) / "README.md")
    assert card.data.license == "cc-by-4.0" and "Own data, target" in card.text and "@misc{own}" in card.text
    assert card.data.eval_results[0].dataset_name == "Own data" and card.data.datasets is None
    card = ModelCard.load(write_card(run, "nowhere") / "README.md")
    assert card.data.license == "other" and "Licence of the data: unknown" in card.text


def test_what_the_weights_had_learned_from_before_binds_them_too(carded, run):
    earlier = starting_point(str(carded), True, None)
    assert earlier["base_model"] is None and [data["id"] for data in earlier["data"]] == ["ham10000"]
    card = ModelCard.load(write_card(run, "fitzpatrick17k", start=earlier) / "README.md")
    assert card.data.license == "other" and card.data.license_name == "cc-by-nc-sa-3.0-and-cc-by-nc-4.0"
    assert "The weights had learned from HAM10000 before (cc-by-nc-4.0)" in card.text and CITATION in card.text


def test_the_base_model_is_the_one_on_the_hub():
    assert starting_point("resnet18", True, None)["base_model"] == "timm/resnet18.a1_in1k"
    assert starting_point("resnet18", True, "/home/x/w.safetensors")["text"] == "the weights in `w.safetensors`"


def test_calibration_is_undone_exactly(carded):
    table = make_predictions(["I"])
    raw = expit((logit(table["score"].clip(1e-12, 1 - 1e-12)) + 0.5) / 2)
    rows = {row["metric"]: row for row in before_calibration(carded, table)}
    assert rows["brier"]["value"] == pytest.approx(np.mean((raw - table["label"]) ** 2), abs=1e-9)
    text = (carded / "README.md").read_text()
    assert f"| Brier score | {rows['brier']['value']:.3f} [" in text
    assert "Platt scaling (slope 2.000, intercept -0.500)" in text


def test_every_fold_has_a_calibration_of_its_own(carded, tmp_path):
    """Two models whose raw scores were the same, and were calibrated differently."""
    raw = make_predictions(["I"]).assign(score=lambda table: table["score"].clip(0.01, 0.99))
    folds, parts = {3: (2.0, -0.5), 4: (0.5, 0.3)}, []
    for fold, (slope, intercept) in folds.items():
        config = json.loads((carded / "config.json").read_text())
        config["calibration"] = {"slope": slope, "intercept": intercept}
        (tmp_path / f"fold-{fold}").mkdir()
        (tmp_path / f"fold-{fold}" / "config.json").write_text(json.dumps(config))
        score = expit(slope * logit(raw["score"]) + intercept)
        parts.append(raw.assign(score=score, fold=fold, lesion_id=raw["lesion_id"] + str(fold)))
    found = {row["metric"]: row["value"] for row in before_calibration(tmp_path, pd.concat(parts, ignore_index=True))}
    assert found["brier"] == pytest.approx(np.mean((raw["score"] - raw["label"]) ** 2), abs=1e-9)


def test_operating_points_are_chosen_on_validation_fold_by_fold(carded):
    test = pd.DataFrame({"lesion_id": range(40), "label": [1, 0] * 20, "score": np.repeat([0.8, 0.3], 20)})
    low, high = (np.linspace(start, start + 0.19, 20) for start in (0.5, 0.7))
    validation = pd.DataFrame({"label": [1] * 40 + [0] * 40, "score": [*low, *high, *[0.1] * 40]})
    validation["fold"] = [0] * 20 + [1] * 20 + [0, 1] * 20
    points = operating_points(validation, test.assign(fold=[0, 1] * 20, threshold=0.5))
    nine, nineteen = points
    assert (nine["wanted"], nineteen["wanted"]) == ("90 %", "95 %")
    # 18 of 20 melanomas must be found: the threshold is below the 18th from above, and above the 19th.
    assert nine["thresholds"] == pytest.approx({0: 0.515, 1: 0.715})
    assert nineteen["thresholds"] == pytest.approx({0: 0.505, 1: 0.705})
    assert nine["sensitivity"]["value"] == 0.5 and nine["specificity"]["value"] == 0.5
    assert "| 95 % | " in (carded / "README.md").read_text()


def test_the_population_counts_real_images_by_split():
    table = pd.DataFrame(
        {
            "lesion_id": ["a", "a", "b", "c", "d"],
            "melanoma": [1, 1, 0, 1, 1],
            "split": ["train", "train", "train", "test", "train"],
            "sex": ["male", "male", "female", "unknown", "male"],
            "age": [30.0, 30.0, 50.0, np.nan, 30.0],
            **{name: ["unknown"] * 5 for name in ("fitzpatrick", "localization", "source", "diagnosis")},
            "synthetic": ["false", "false", "false", "false", "true"],
        }
    )
    rows = {(row["column"], row["group"]): row["splits"] for row in population(table)}
    assert rows["all", "all"]["train"] == {"images": 3, "melanomas": 2, "lesions": 2}
    assert rows["sex", "male"] == {"train": {"images": 2, "melanomas": 2}, "test": {"images": 0, "melanomas": 0}}
    assert rows["sex", "unknown"]["test"] == {"images": 1, "melanomas": 1}


def test_the_command_makes_the_same_bytes_from_the_folder_and_from_what_it_wrote_elsewhere(
    carded, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(carded, tmp_path / "run")
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    run_hub(monkeypatch, "card", folder)
    assert (folder / "README.md").read_bytes() == card
    run_hub(monkeypatch, "card", folder, "--output", tmp_path / "released")
    run_hub(monkeypatch, "card", folder, "--output", tmp_path / "released")  # again, over its own
    assert f"card: {tmp_path / 'released' / 'README.md'}" in capsys.readouterr().out
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("theirs")
    with pytest.raises(SystemExit):
        run_hub(monkeypatch, "card", folder, "--output", tmp_path / "project")
    assert "not the card of a model, and would be lost" in capsys.readouterr().err
    assert os.listdir(tmp_path / "project") == ["README.md"]
    assert (tmp_path / "project" / "README.md").read_text() == "theirs"
    shutil.rmtree(folder)
    (tmp_path / "released" / "README.md").unlink()
    run_hub(monkeypatch, "card", tmp_path / "released")
    assert (tmp_path / "released" / "README.md").read_bytes() == card


@pytest.mark.parametrize("part", ["card_data.json", "config.json", "metrics.json", "fairness.csv", "fairness.md"])
def test_without_a_part_there_is_no_card(part, carded, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(carded, tmp_path / "run")
    (folder / part).unlink()
    with pytest.raises(SystemExit) as stop:
        run_hub(monkeypatch, "card", folder)
    assert stop.value.code == 2 and f"no {part}" in capsys.readouterr().err


def test_a_missing_figure_and_a_missing_fact_are_named(carded, tmp_path):
    folder = shutil.copytree(carded, tmp_path / "run")
    figure = next((folder / "figures").glob("*_forest.png"))
    figure.rename(folder / "away.png")
    with pytest.raises(UserError, match=f"no figures/{figure.name}"):
        write_classifier_card(folder)
    (folder / "away.png").rename(figure)
    facts = json.loads((folder / "card_data.json").read_text())
    del facts["command"]
    (folder / "card_data.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="command"):
        write_classifier_card(folder)


def test_a_folder_is_no_data_set_on_the_hub(results, tmp_path):
    (tmp_path / "clinic").mkdir()
    for name, linked in ((str(tmp_path / "clinic"), None), ("ham10000", ["ham10000"])):
        run = shutil.copytree(results[0], tmp_path / f"run-{linked}")
        card = ModelCard.load(write_card(run, name) / "README.md")
        assert card.data.datasets == linked
        assert {result.dataset_type for result in card.data.eval_results} == {linked[0] if linked else "clinic"}
