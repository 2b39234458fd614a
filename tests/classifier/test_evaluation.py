"""What metrics.json and the last lines of a run say of predictions."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from melanoma_fair_xai.classifier.evaluation import results_table, summary_values
from melanoma_fair_xai.fairness import evaluate_predictions


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    score = 1 / (1 + np.exp(-rng.normal(label, 1)))
    lesions = [f"L{i // 2}" for i in range(200)]
    return pd.DataFrame({"lesion_id": lesions, "label": label, "score": score, "fold": 0, "threshold": 0.6})


def test_the_summary_agrees_with_scikit_learn(table):
    values = summary_values(table)
    decided = table["score"] >= 0.6
    assert values["sensitivity"] == pytest.approx(metrics.recall_score(table["label"], decided))
    assert values["specificity"] == pytest.approx(metrics.recall_score(1 - table["label"], ~decided))
    assert values["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(table["label"], decided))
    assert values["brier"] == pytest.approx(metrics.brier_score_loss(table["label"], table["score"]))
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(table["label"], table["score"]))
    assert (values["n"], values["lesions"], values["melanomas"]) == (200, 100, table["label"].sum())


def test_a_figure_that_the_classes_do_not_allow_is_nan(table):
    values = summary_values(table[table["label"] == 0])
    assert np.isnan(values["roc_auc"]) and np.isnan(values["sensitivity"]) and np.isfinite(values["specificity"])


def test_auc_counts_pairs_within_a_fold(table):
    table["fold"] = np.arange(200) % 3
    table["score"] = (table["score"] + table["fold"]) / 3
    pairs = [
        (a.score > b.score) + 0.5 * (a.score == b.score)
        for _, fold in table.groupby("fold")
        for a in fold[fold["label"] == 1].itertuples()
        for b in fold[fold["label"] == 0].itertuples()
    ]
    assert summary_values(table)["roc_auc"] == pytest.approx(np.mean(pairs))


def test_a_score_at_the_threshold_counts_as_positive(table):
    table = table.assign(score=0.6, label=1)
    assert summary_values(table)["sensitivity"] == 1


def test_the_last_lines_put_every_figure_under_its_name_and_beside_its_group():
    """Women: 16 of 20 melanomas found, 15 of 20 benign lesions left alone; men: 8 of 20 and 18 of 20."""
    parts = []
    for sex, found, passed in (("female", 16, 15), ("male", 8, 18)):
        scores = [0.9] * found + [0.2] * (20 - found) + [0.1] * passed + [0.8] * (20 - passed)
        parts.append(pd.DataFrame({"sex": sex, "label": [1] * 20 + [0] * 20, "score": scores}))
    table = pd.concat(parts, ignore_index=True).assign(threshold=0.5, lesion_id=range(80))
    report = evaluate_predictions(table, ["sex"], n_resamples=20)
    header, *lines = results_table(report, "sex", ("specificity", "sensitivity")).splitlines()
    assert header.split() == ["group", "images", "lesions", "melanomas", "specificity", "sensitivity"]
    cells = {line.split()[0]: line.split() for line in lines}
    assert list(cells) == ["all", "female", "male"]
    for group, counts, values in (
        ("all", ["80", "80", "40"], ["0.825", "0.600"]),
        ("female", ["40", "40", "20"], ["0.750", "0.800"]),
        ("male", ["40", "40", "20"], ["0.900", "0.400"]),
    ):
        assert cells[group][1:4] == counts and cells[group][4::3] == values
    low, high = (float(text.strip("[],")) for text in cells["male"][8:10])
    exact = stats.binomtest(8, 20).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=6e-4)
