"""The released results: their tables are made of the data beside the cards, and the command that makes them anew."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.fairness import compare
from melanoma_fair_xai.hub.classifier_card import metric_rows
from release import reproduce
from release import tables as pages
from release.annotations_card import annotations_card
from release.tables import CARDS

NOISES = (("first", 1.0), ("second", 2.0))


def launch(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
    try:
        run_command(reproduce.main)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A file that stands for weights, beside an empty working folder."""
    path = tmp_path / "weights.safetensors"
    path.touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return path


def test_the_tables_are_those_of_the_data_beside_the_cards(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((CARDS / "README.md").read_text())
    pages.update_readme(copy)
    assert copy.read_text() == (CARDS / "README.md").read_text(), "python -m release.tables"


def test_the_front_page_says_what_the_card_says():
    page = (CARDS.parent / "README.md").read_text()
    rows = {(row.group_column, row.group, row.metric): row for row in metric_rows(CARDS / "ham10000-mobilenetv2")}
    groups = {"everybody in HAM10000": ("all", "all"), "women": ("sex", "female"), "men": ("sex", "male")}
    bands = {"under 40 years": "under 40", "40 to 59": "40-59", "60 and over": "60 and over"}
    groups |= {words: ("age_band", band) for words, band in bands.items()}
    for words, (column, group) in groups.items():
        found = [rows[column, group, metric] for metric in ("roc_auc", "sensitivity", "specificity")]
        cells = [f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]".replace("0.", ".") for row in found]
        line = f"| {words} | {found[0].n:,} | {found[0].melanomas:,} | {' | '.join(cells)} |"
        assert line in page.replace("**", "")
    others = {(row.group, row.metric): row for row in metric_rows(CARDS / "ham10000-resnet18")}
    for group in ("all", "under 40"):
        row = others[group, "roc_auc"]
        assert f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]".replace("0.", ".") in page


def test_what_was_not_run_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "CARDS", tmp_path)
    for make in pages.TABLES.values():
        assert all("not run" in line for line in make().splitlines()[2:])


def test_differences_and_gaps_are_those_of_the_comparison(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    table = pd.DataFrame({"image_id": range(400), "label": label, "sex": rng.choice(["female", "male", None], 400)})
    table = table.assign(lesion_id=table["image_id"], fold=0, threshold=0.5)
    tables = {name: table.assign(score=1 / (1 + np.exp(-noise * rng.normal(label, 1)))) for name, noise in NOISES}
    comparison = compare(tables, ["sex"])
    comparison.write(tmp_path / "comparisons")
    (tmp_path / "comparisons" / "comparison.csv").rename(tmp_path / "comparisons" / "faded.csv")
    monkeypatch.setattr(pages, "CARDS", tmp_path)
    lines = pages.comparison_table("faded", "first").splitlines()
    assert "ROC AUC, difference | sensitivity at specificity 0.9, difference |" in lines[0]
    assert "| sensitivity, given the thresholds, difference |" in lines[0]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| second", group] for group in ("all images", "sex female", "sex male")
    ]
    found = comparison.differences[0]
    assert f"| {found.baseline_value:.3f} | {found.value:+.3f} [{found.low:.3f}, {found.high:.3f}]" in lines[2]
    gap = comparison.gaps[0]
    assert f"male minus female | {gap.baseline_gap:+.3f} | {gap.model_gap:+.3f} |" in pages.gap_table("faded", "")


def test_the_card_of_annotations_counts_what_is_usable():
    rows = [("melanoma", "melanoma", "VI", "malignant", "")] * 3 + [("acne", "benign", "VI", "non-neoplastic", "")] * 2
    rows += [("dysplastic nevus", "benign", "I", "benign", ""), ("melanoma", "", "I", "malignant", "qc: wrong")]
    names = ["diagnosis", "melanoma", "fitzpatrick", "three_partition_label", "excluded"]
    card = annotations_card(pd.DataFrame(rows, columns=names).assign(source="dermaamin"))
    assert "| I | 1 | 1 | 0 | 0 |\n| VI | 5 | 3 | 3 | 3 |\n" in card and "qc: wrong (1)" in card
    assert "have 3 of the 3 melanomas" in card and "| 4 | 3 |\n" in card and "| 6 | 3 |\n" in card


def test_a_dry_run_prints_the_plan_with_its_hours_and_does_nothing(weights, monkeypatch, capsys, tmp_path):
    assert launch(monkeypatch, "--data_dir", tmp_path, "--weights", weights, "--dry_run") == 0
    plan = capsys.readouterr().out
    whole = float(plan.split("about ")[1].split(" hours")[0])
    hours = next(float(line.split()[1]) for line in plan.splitlines() if line.startswith("resnet18 "))
    assert list(Path().iterdir()) == [] and "--cross_validation 5" in plan and "done" not in plan
    finished = Path("runs/ham10000-resnet18/README.md")
    finished.parent.mkdir(parents=True)
    finished.touch()
    assert launch(monkeypatch, "--data_dir", tmp_path, "--weights", weights, "--dry_run") == 0
    plan = capsys.readouterr().out
    assert float(plan.split("about ")[1].split(" hours")[0]) == pytest.approx(whole - hours)
    assert [line.split()[0] for line in plan.splitlines() if line.split()[1] == "done"] == ["resnet18"]


def test_a_stage_that_fails_stops_the_plan(weights, monkeypatch, capfd, tmp_path):
    empty = tmp_path / "raw"
    empty.mkdir()
    assert launch(monkeypatch, "--data_dir", empty, "--weights", weights, "--stages", "data", "mobilenetv2") == 2
    captured = capfd.readouterr()
    assert "data: ended with exit code 2" in captured.err and "--- mobilenetv2" not in captured.out


def test_user_errors(weights, monkeypatch, capsys, tmp_path):
    assert launch(monkeypatch, "--data_dir", tmp_path / "none", "--weights", weights) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
    assert launch(monkeypatch, "--data_dir", tmp_path, "--weights", weights, "--stages", "resnet19") == 2
    assert "--stages resnet19: choose from data, mobilenetv2" in capsys.readouterr().err


def test_every_command_that_a_page_or_card_names_is_one():
    repository = CARDS.parent
    folders = ("docs", "benchmarks", "model_cards")
    pages = [*repository.glob("*.md"), *(page for name in folders for page in (repository / name).rglob("*.md"))]
    named = {module for page in pages for module in re.findall(r"python -m ([\w.]+\w)", page.read_text())}
    assert {"dataset_scripts.ham10000", "melanoma_fair_xai.hub", "release.annotations_card"} <= named
    assert [module for module in named if not importlib.util.find_spec(module)] == []


def test_the_makefile_makes_the_released_results_by_this_command():
    recipe = (CARDS.parent / "Makefile").read_text().partition("\nreproduce:")[2].partition("\n\n")[0]
    assert f"-m {reproduce.__name__} --data_dir" in recipe
