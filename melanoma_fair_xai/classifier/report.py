"""What a run says of itself: metrics at the chosen threshold, training curves, the ROC figure."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn import metrics

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def ranking_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """`loss` (cross-entropy), `roc_auc` and `balanced_accuracy` (of the likeliest class); labels (n,), logits (n, k).

    With more than two classes the AUC is the mean of one class against the rest over the classes that are there; it is
    NaN where fewer than two are.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    present = np.unique(labels)
    if len(present) < 2:
        auc = float("nan")
    elif logits.shape[1] == 2:
        auc = metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    else:
        auc = np.mean([metrics.roc_auc_score(labels == k, log_probabilities[:, k]) for k in present])
    predicted = logits.argmax(axis=1)
    return {
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "roc_auc": float(auc),
        "balanced_accuracy": float(np.mean([(predicted[labels == k] == k).mean() for k in present])),
    }


def operating_metrics(predictions: pd.DataFrame) -> dict[str, float | int]:
    """Counts, ROC AUC (`auc_within_folds`), Brier score; at the threshold sensitivity, specificity, balanced accuracy.

    `predictions` as `prediction_table` gives them. A figure that its classes do not allow is NaN.
    """
    label, score = predictions["label"].to_numpy(), predictions["score"].to_numpy()
    decided = score >= predictions["threshold"].to_numpy()
    sensitivity = decided[label == 1].mean() if (label == 1).any() else float("nan")
    specificity = (~decided[label == 0]).mean() if (label == 0).any() else float("nan")
    return {
        "n": len(predictions),
        "lesions": int(predictions["lesion_id"].nunique()),
        "melanomas": int(label.sum()),
        "roc_auc": auc_within_folds(label, score, predictions["fold"].to_numpy()),
        "sensitivity": float(sensitivity),
        "specificity": float(specificity),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
        "brier": float(np.mean((score - label) ** 2)),
    }


def auc_within_folds(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> float:
    """ROC AUC over the pairs of one melanoma and one other image that stand in the same fold; NaN without a pair.

    Scores of different folds come from different models and are not on one scale.
    """
    concordant = pairs = 0.0
    for fold in np.unique(folds):
        label, score = labels[folds == fold], scores[folds == fold]
        count = float(label.sum()) * float(len(label) - label.sum())
        if count:
            concordant, pairs = concordant + count * metrics.roc_auc_score(label, score), pairs + count
    return float(concordant / pairs) if pairs else float("nan")


def plot_training(history: list[dict], path: Path, title: str) -> None:
    """Training and validation loss, and validation AUC and balanced accuracy, by epoch."""
    epochs = [entry["epoch"] + 1 for entry in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry["train_loss"] for entry in history], color=ORANGE, label="training (augmented)")
    left.plot(epochs, [entry["validation_loss"] for entry in history], color=BLUE, label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="loss")
    right.plot(epochs, [entry["validation_roc_auc"] for entry in history], color=BLUE, label="ROC AUC")
    right.plot(
        epochs,
        [entry["validation_balanced_accuracy"] for entry in history],
        color=GREEN,
        linestyle="--",
        label="balanced accuracy",
    )
    right.set(xlabel="epoch", title="validation")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    _save(figure, path)


def plot_roc(predictions: dict[str, pd.DataFrame], path: Path, title: str) -> None:
    """ROC curves by split, each with its operating point."""
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for (split, table), colour in zip(predictions.items(), (BLUE, ORANGE, GREEN), strict=False):
        summary = operating_metrics(table)
        if np.isnan(summary["roc_auc"]):
            continue
        false, true, _ = metrics.roc_curve(table["label"], table["score"])
        label = f"{split}: AUC {summary['roc_auc']:.3f}\n({summary['melanomas']} melanomas of {summary['n']})"
        axis.plot(false, true, color=colour, label=label)
        axis.plot(1 - summary["specificity"], summary["sensitivity"], "o", color=colour)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, aspect="equal")
    axis.legend(frameon=False, loc="lower right", title="dot: the threshold")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
