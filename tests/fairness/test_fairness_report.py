import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import check_replaceable
from melanoma_fair_xai.fairness import compare, evaluate_predictions, read_predictions
from melanoma_fair_xai.fairness.__main__ import COMPARISON, REPORT, compare_runs, evaluate_runs
from melanoma_fair_xai.fairness.estimates import roc_auc
from melanoma_fair_xai.fairness.figures import reliability, roc_curve
from melanoma_fair_xai.fairness.predictions import save_predictions
from melanoma_fair_xai.fairness.sample import make_sample


def predictions(seed: int = 0, n: int = 900, penalty: float = 0.0) -> pd.DataFrame:
    """A predictions table whose model sees melanomas less well on types V and VI, by `penalty`."""
    rng = np.random.default_rng(seed)
    lesion = rng.integers(0, n // 2, n)
    label = (np.random.default_rng(1).random(n // 2) < 0.3)[lesion]
    skin = np.random.default_rng(2).choice(["I", "II", "III", "IV", "V", "VI", "unknown"], n // 2)[lesion]
    raw = (1.8 - penalty * np.isin(skin, ["V", "VI"])) * label - 1.5 + rng.normal(size=n)
    return pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n)],
            "lesion_id": [f"lesion{i}" for i in lesion],
            "label": label.astype(int),
            "score": 1 / (1 + np.exp(-raw)),
            "fold": 0,
            "threshold": 0.35,
            "fitzpatrick": skin,
            "sex": np.where(lesion % 2, "female", "male"),
            "age": (lesion % 80).astype(float),
            "ita": rng.normal(40, 5, n),
        }
    )


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "melanoma_fair_xai.fairness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_finds_a_planted_gap_and_writes_everything(tmp_path):
    predictions(penalty=1.6).to_parquet(tmp_path / "test.parquet")
    groups = ["fitzpatrick", "fitzpatrick*sex"]
    result = run(
        tmp_path / "test.parquet", "--group_by", *groups, "--n_resamples", 200, "--case_control",
        "--output_dir", tmp_path / "report",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    check_replaceable(tmp_path / "report", REPORT)  # by a later one
    table = pd.read_csv(tmp_path / "report" / "fairness.csv")
    assert set(table["group_column"]) == {"all", "fitzpatrick_group", *groups}
    tested = table[table["p_holm"].notna()]
    assert set(tested["group_column"]) == {"fitzpatrick_group"} and len(tested) == 4
    gap = tested[(tested["group"] == "V-VI") & (tested["metric"] == "roc_auc")].iloc[0]
    assert gap["reference"] == "I-II" and gap["high"] < 0 and gap["p_holm"] < 0.05
    text = (tmp_path / "report" / "fairness.md").read_text()
    assert "(primary grouping)" in text and "Holm over 4 contrasts" in text
    figures = sorted((tmp_path / "report" / "figures").iterdir())
    assert len(figures) == 3 * 3 and all(f"figures/{path.name}" in text for path in figures)
    for path in figures:
        image = matplotlib.image.imread(path)
        assert image.shape[1] == 1200 and 0.01 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.6
    again = evaluate_predictions(predictions(penalty=1.6), ["fitzpatrick_group"], n_resamples=200, case_control=True)
    again.to_pandas().to_csv(tmp_path / "again.csv", index=False)
    other = pd.read_csv(tmp_path / "again.csv")
    same = table[table["group_column"].isin(["all", "fitzpatrick_group"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, other)  # seeded, and whatever else is asked for


def test_one_flipped_bit_in_predictions_is_found(tmp_path):
    (tmp_path / "predictions").mkdir()
    tables = {name: predictions(seed, n=20) for seed, name in enumerate(["validation", "test"])}
    for name, table in tables.items():
        save_predictions(table, tmp_path / "predictions" / f"{name}.parquet")
    path = tmp_path / "predictions" / "test.parquet"
    pd.testing.assert_frame_equal(read_predictions(tmp_path), tables["test"])
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=path.parent).returncode == 0
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match="test.parquet: not the predictions that were written, by their SHA-256"):
            read_predictions(tmp_path)
    tables["test"].assign(score=0.5).to_parquet(path)
    (path.parent / "SHA256SUMS").unlink()  # as earlier versions wrote none
    assert set(read_predictions(tmp_path)["score"]) == {0.5}


def test_reports_that_go_to_one_folder_are_written_one_after_the_other(tmp_path, monkeypatch):
    """While one is written, its folder's lock is held; another process waits for it (see the tests of `locked`)."""
    predictions(n=20).to_parquet(tmp_path / "test.parquet")
    written = []

    def write(folder: str, *_, **__) -> None:
        with open(next(Path(folder).glob("*.lock"))) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        written.append(folder)

    report = SimpleNamespace(write=write, to_markdown=lambda: "")
    monkeypatch.setattr("melanoma_fair_xai.fairness.stratified.evaluate_predictions", lambda *_, **__: report)
    monkeypatch.setattr("melanoma_fair_xai.fairness.comparison.compare", lambda *_, **__: report)
    folder, table = str(tmp_path / "deep" / "report"), str(tmp_path / "test.parquet")
    evaluate_runs([table, "--output_dir", folder])
    compare_runs([table, str(tmp_path / "." / "test.parquet").replace("/test", "//test"), "--output_dir", folder])
    assert written == [folder] * 2


@pytest.mark.parametrize(
    ("command", "names"),
    [(evaluate_runs, ["fairness.md", "fairness.csv"]), (compare_runs, ["comparison.md", "comparison.csv"])],
)
def test_a_report_replaces_nothing_but_an_earlier_one(tmp_path, command, names):
    runs = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")][: 2 if command is compare_runs else 1]
    for run in runs:
        predictions(n=60).to_parquet(run)
    for name in names:
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text("theirs")
        with pytest.raises(UserError, match=f"{name}: not of an earlier report, and would be lost"):
            command([*runs, "--output_dir", str(tmp_path / "mine")])
        assert os.listdir(tmp_path / "mine") == [name] and (tmp_path / "mine" / name).read_text() == "theirs"
        (tmp_path / "mine" / name).unlink()


def test_user_errors_name_what_is_wrong(tmp_path):
    table = predictions(n=100)
    table.to_parquet(tmp_path / "good.parquet")
    table.drop(columns="threshold").to_parquet(tmp_path / "columns.parquet")
    table.iloc[:0].to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_text("<html>")
    result = run(tmp_path / "good.parquet", "--group_by", "hospital", "--output_dir", tmp_path / "report")
    assert result.returncode == 2 and "hospital" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "report").exists()
    for name, words in {
        "columns": "no column threshold",
        "empty": "no rows",
        "text": "not a Parquet table",
        "absent": "no such file",
    }.items():
        with pytest.raises(UserError, match=words):
            read_predictions(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match="more than once"):
        read_predictions(tmp_path / "good.parquet", tmp_path / "good.parquet")
    for column, value, words in (
        ("score", np.nan, "score: nan in row 7"),
        ("threshold", np.nan, "threshold: nan in row 7"),
        ("label", 2, "labels are 0"),
        *(("lesion_id", missing, "lesion_id: no value in row 7") for missing in (None, "", " ", "unknown", "nan")),
    ):
        broken = table.copy()
        broken.loc[7, column] = value
        with pytest.raises(UserError, match=words):
            evaluate_predictions(broken, ["sex"], n_resamples=100)
    with pytest.raises(UserError, match="different values"):
        evaluate_predictions(table, ["image_id"])
    with pytest.raises(UserError, match="needs a column age"):
        evaluate_predictions(table.drop(columns="age"), ["age_band"])


def test_groups_that_say_nothing_are_counted_and_not_estimated(tmp_path):
    table = predictions()
    table["ward"] = np.select(
        [table["lesion_id"] == "lesion3", (table["label"] == 0) & (table.index % 3 == 0), table["label"] == 1],
        ["one lesion", "benign only", "melanoma only"],
        "rest",
    )
    table.loc[table.index[:12], "ward"] = None
    report = evaluate_predictions(table, ["ward"], n_resamples=100)
    rows = {(row.group, row.metric): row for row in report.by_group}
    assert not any(row.estimable for row in report.by_group if row.group == "one lesion")
    estimable = {metric for (group, metric), row in rows.items() if group == "benign only" and row.estimable}
    assert estimable == {"specificity"}
    assert rows["one lesion", "roc_auc"].n == (table["ward"] == "one lesion").sum()
    assert "not estimable" in report.to_markdown()
    assert not any(row.group == "unknown" for row in report.contrasts)
    report.write(tmp_path)


def test_equal_scores_give_chance_and_no_crash(tmp_path):
    table = predictions().assign(score=0.5)
    report = evaluate_predictions(table, ["sex"], n_resamples=100)
    rows = {row.metric: row for row in report.overall}
    assert rows["roc_auc"].value == 0.5 and rows["sensitivity"].value == 1 and rows["specificity"].value == 0
    assert not rows["calibration_slope"].estimable
    report.write(tmp_path)


def test_comparison_is_paired_and_flags_levelling_down(tmp_path):
    fair, unfair = predictions(), predictions(penalty=1.6)
    worse = fair["fitzpatrick"].isin(["I", "II"])
    levelled = unfair.copy()  # the better group's scores lose what tells melanomas apart
    rng = np.random.default_rng(5)
    levelled.loc[worse, "score"] = 0.5 * levelled.loc[worse, "score"] + 0.5 * rng.random(worse.sum())
    shuffled = fair.sample(frac=1, random_state=0)
    models = {"unfair": unfair, "fair": shuffled, "levelled": levelled}
    result = compare(models, ["fitzpatrick_group"], n_resamples=200)
    rows = {(row.model, row.group, row.metric): row for row in result.differences}
    gained = rows["fair", "V-VI", "roc_auc"]
    assert gained.value > 0 and gained.low > 0 and gained.p_holm < 0.05
    assert rows["fair", "I-II", "roc_auc"].value == pytest.approx(0, abs=1e-12)
    apart = evaluate_predictions(fair, ["fitzpatrick_group"], n_resamples=200)
    alone = {(row.group, row.metric): row.value for row in apart.by_group}
    assert gained.model_value == pytest.approx(alone["V-VI", "roc_auc"])
    flags = {(gap.model, gap.group, gap.metric): gap for gap in result.levelling_down}
    assert ("levelled", "V-VI", "roc_auc") in flags and ("fair", "V-VI", "roc_auc") not in flags
    assert flags["levelled", "V-VI", "roc_auc"].loss_is_clear
    assert "**levelling down**" in result.to_markdown()
    with pytest.raises(UserError, match="same images"):
        compare({"a": fair, "b": fair.iloc[:-1]})
    with pytest.raises(UserError, match="different labels"):
        compare({"a": fair, "b": fair.assign(label=1 - fair["label"])})


def test_runs_are_compared_from_the_command_line(tmp_path):
    for name, penalty in (("first", 1.6), ("second", 0.0)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        predictions(penalty=penalty).to_parquet(tmp_path / name / "predictions" / "test.parquet")
    runs = tmp_path / "first", tmp_path / "second"
    result = run("compare", *runs, "--group_by", "sex", "--case_control", "--output_dir", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    check_replaceable(tmp_path / "report", COMPARISON)
    assert "second against first" in (tmp_path / "report" / "comparison.md").read_text()
    table = pd.read_csv(tmp_path / "report" / "comparison.csv")
    assert set(table["kind"]) == {"difference", "gap"} and set(table["model"]) == {"second"}
    models = {name: read_predictions(tmp_path / name) for name in ("first", "second")}
    for case_control in (True, False):
        result = compare(models, ["sex"], case_control=case_control).to_pandas()
        brier = table["metric"] == "brier"
        assert np.allclose(result.loc[brier, "low"], table.loc[brier, "low"], atol=1e-9) == case_control


def test_curves_agree_with_scikit_learn_and_a_loop():
    from sklearn import metrics

    table = predictions()
    sample = make_sample(table["label"], table["score"].round(2), table["lesion_id"])
    false, true = roc_curve(sample)
    assert np.trapezoid(true, false) == pytest.approx(metrics.roc_auc_score(table["label"], table["score"].round(2)))
    # The scores of a fold may be of another scale, which the AUC does not compare with others: nor does the curve.
    fold = np.arange(len(table)) % 3
    scores = table["score"].round(2) / (1 + fold)
    folds = make_sample(table["label"], scores, table["lesion_id"], fold)
    false, true = roc_curve(folds)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= -1e-12).all() and (false[-1], true[-1]) == (1, 1)
    assert np.trapezoid(true, false) == pytest.approx(roc_auc(folds).value)
    assert np.trapezoid(true, false) > metrics.roc_auc_score(table["label"], scores) + 0.02
    score, share, low, high = reliability(sample)
    assert (np.diff(score) > 0).all() and (low <= share).all() and (share <= high).all()
    top = sample.scores >= np.quantile(sample.scores[sample.labels], 7 / 8)
    assert share[-1] == pytest.approx(sample.labels[top].mean())


def test_names_of_models_and_columns_stay_names(tmp_path):
    table = predictions(n=300)
    table["![c](http://x)|d"] = table["sex"]
    report = evaluate_predictions(table, ["![c](http://x)|d"], n_resamples=100)
    text = report.to_markdown()
    assert r"## !\[c\](http:\//x)\|d (primary grouping)" in text and "![c](" not in text
    tables = {"a|b": table, "<b>": table.assign(score=1 - table["score"]), "=c": table}
    comparison = compare(tables, ["sex"], n_resamples=100)
    text = comparison.to_markdown()
    assert r"## \<b> against a\|b" in text and r"Paired differences from a\|b on" in text
    comparison.write(tmp_path)
    rows = (tmp_path / "comparison.csv").read_text().splitlines()
    assert any(",'=c," in row for row in rows) and not any(",=c," in row for row in rows)
