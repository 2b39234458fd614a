import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from melanoma_fair_xai.classifier.figures import plot_roc, plot_training


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    score = 1 / (1 + np.exp(-rng.normal(label, 1)))
    lesions = [f"L{i // 2}" for i in range(200)]
    return pd.DataFrame({"lesion_id": lesions, "label": label, "score": score, "fold": 0, "threshold": 0.6})


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
