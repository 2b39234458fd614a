"""What a run draws of itself: training curves, and ROC curves with the operating point."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from melanoma_fair_xai.base.tables import figure_text
from melanoma_fair_xai.fairness.figures import roc_curve
from melanoma_fair_xai.fairness.metrics import point_values
from melanoma_fair_xai.fairness.predictions import sample_of

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


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
    figure.suptitle(figure_text(title))
    _save(figure, path)


def plot_roc(predictions: dict[str, pd.DataFrame], path: Path, title: str) -> None:
    """ROC curves by split, each with its operating point."""
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for (split, table), colour in zip(predictions.items(), (BLUE, ORANGE, GREEN), strict=False):
        sample = sample_of(table)
        values = point_values(sample, ("roc_auc", "sensitivity", "specificity"))
        if np.isnan(values["roc_auc"]):
            continue
        label = f"{split}: AUC {values['roc_auc']:.3f}\n({sample.labels.sum()} melanomas of {len(sample)})"
        axis.plot(*roc_curve(sample), color=colour, label=label)
        axis.plot(1 - values["specificity"], values["sensitivity"], "o", color=colour)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title=figure_text(title), aspect="equal")
    axis.legend(frameon=False, loc="lower right", title="dot: the threshold")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
