import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from melanoma_fair_xai.classifier.report import operating_metrics, plot_roc, plot_training, ranking_metrics


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    score = 1 / (1 + np.exp(-rng.normal(label, 1)))
    lesions = [f"L{i // 2}" for i in range(200)]
    return pd.DataFrame({"lesion_id": lesions, "label": label, "score": score, "fold": 0, "threshold": 0.6})


def test_ranking_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    logits = rng.normal(size=(300, 2)).astype(np.float32)
    values = ranking_metrics(labels, logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert values["loss"] == pytest.approx(metrics.log_loss(labels, probabilities), rel=1e-5)
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert values["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, logits.argmax(1)))


def test_ranking_metrics_of_several_classes_average_one_against_the_rest():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 300)
    logits = (rng.normal(size=(300, 4)) + np.eye(4)[labels]).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = metrics.roc_auc_score(labels, probabilities / probabilities.sum(1, keepdims=True), multi_class="ovr")
    assert ranking_metrics(labels, logits)["roc_auc"] == pytest.approx(expected)
    assert np.isnan(ranking_metrics(np.zeros(5, dtype=int), logits[:5])["roc_auc"])


def test_operating_metrics_agree_with_scikit_learn(table):
    values = operating_metrics(table)
    decided = table["score"] >= 0.6
    assert values["sensitivity"] == pytest.approx(metrics.recall_score(table["label"], decided))
    assert values["specificity"] == pytest.approx(metrics.recall_score(1 - table["label"], ~decided))
    assert values["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(table["label"], decided))
    assert values["brier"] == pytest.approx(metrics.brier_score_loss(table["label"], table["score"]))
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(table["label"], table["score"]))
    assert (values["n"], values["lesions"], values["melanomas"]) == (200, 100, table["label"].sum())


def test_a_figure_that_the_classes_do_not_allow_is_nan(table):
    values = operating_metrics(table[table["label"] == 0])
    assert np.isnan(values["roc_auc"]) and np.isnan(values["sensitivity"]) and np.isfinite(values["specificity"])


def test_auc_counts_pairs_within_a_fold(table):
    table["fold"] = np.arange(200) % 3
    table["score"] = table["score"] + table["fold"]
    pairs = [
        (a.score > b.score) + 0.5 * (a.score == b.score)
        for _, fold in table.groupby("fold")
        for a in fold[fold["label"] == 1].itertuples()
        for b in fold[fold["label"] == 0].itertuples()
    ]
    assert operating_metrics(table)["roc_auc"] == pytest.approx(np.mean(pairs))


def test_a_score_at_the_threshold_counts_as_positive(table):
    table = table.assign(score=0.6, label=1)
    assert operating_metrics(table)["sensitivity"] == 1


def test_figures_are_drawn_and_whole(table, tmp_path):
    history = [
        {"epoch": e, "train_loss": 1.0, "validation_loss": 0.9, "validation_roc_auc": 0.5 + e / 10}
        | {"validation_balanced_accuracy": 0.5}
        for e in range(3)
    ]
    plot_training(history, tmp_path / "figures" / "training.png", "phantoms")
    plot_roc({"test": table, "one class": table.assign(label=0)}, tmp_path / "figures" / "roc.png", "phantoms")
    for name in ("training", "roc"):
        image = matplotlib.image.imread(tmp_path / "figures" / f"{name}.png")
        assert image.shape[0] > 300 and 0.02 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.5
