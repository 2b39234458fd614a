"""Logits of many images, shared by all processes, and the metrics, scores and tables that come from them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from melanoma_fair_xai.classifier.export import ClassifierInfo
from melanoma_fair_xai.data.cache import take
from melanoma_fair_xai.data.images import Preprocessing, normalise


@torch.inference_mode()
def predict_logits(
    accelerator: Accelerator,
    model: torch.nn.Module,
    pixels: np.ndarray | torch.Tensor,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    batch_size: int,
    description: str,
) -> np.ndarray:
    """Logits float32 (len(rows), classes) of rows of uint8 pixels (N, H, W, 3), on every process, in evaluation mode.

    Whole batches are dealt to the processes in turn, so that every batch, and with it every last bit, is the same for
    any number of them. Precision is that of the caller's autocast.
    """
    model.eval()
    batches = np.split(rows, range(batch_size, len(rows), batch_size))
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    results = []
    for number in tqdm(mine, desc=description, unit="batch", disable=not accelerator.is_main_process, leave=False):
        batch = take(pixels, batches[number], accelerator.device)
        inputs = normalise(batch.permute(0, 3, 1, 2), preprocessing)
        results.append((number, model(inputs).float().cpu().numpy()))
    gathered = sorted(gather_object(results), key=lambda item: item[0])
    assert [number for number, _ in gathered] == list(range(len(batches)))
    return np.concatenate([logits for _, logits in gathered])


def ranking_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """`loss` (cross-entropy), `roc_auc` and `balanced_accuracy` (of the likeliest class); labels (n,), logits (n, k).

    With more than two classes the AUC is the mean of one class against the rest over the classes that are there; it is
    NaN where fewer than two are.
    """
    log_probabilities = log_softmax(logits, axis=1)
    present = np.unique(labels)
    if len(present) < 2:
        auc = float("nan")
    elif logits.shape[1] == 2:
        auc = roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    else:
        auc = np.mean([roc_auc_score(labels == k, log_probabilities[:, k]) for k in present])
    predicted = logits.argmax(axis=1)
    return {
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "roc_auc": float(auc),
        "balanced_accuracy": float(np.mean([(predicted[labels == k] == k).mean() for k in present])),
    }


def melanoma_scores(logits: np.ndarray, positive: Sequence[int]) -> np.ndarray:
    """The probability of melanoma, float64 (n,) in [0, 1], of logits (n, classes): the positive classes together."""
    return softmax(logits.astype(np.float64), axis=1)[:, positive].sum(axis=1)


def prediction_table(
    table: pd.DataFrame, logits: np.ndarray, labels: np.ndarray, info: ClassifierInfo, fold: int = 0
) -> pd.DataFrame:
    """One row per image: image_id, lesion_id, label (0/1: melanoma), score in [0, 1], fold, threshold, group columns.

    `table` as in `Records`; logits (n, classes) and labels (n,) class indices. With more than two classes the
    probability of each follows as `probability_<name>`.
    """
    predictions = table[["image_id", "lesion_id"]].assign(
        label=np.isin(labels, info.positive).astype(np.int64),
        score=melanoma_scores(logits, info.positive),
        fold=fold,
        threshold=info.threshold,
    )
    groups = table.columns.difference(["image_id", "lesion_id", "melanoma", "split"], sort=False)
    predictions = predictions.join(table[groups])
    if len(info.label_names) > 2:
        names = [f"probability_{name}" for name in info.label_names]
        probabilities = softmax(logits.astype(np.float64), axis=1)
        predictions = predictions.join(pd.DataFrame(probabilities, columns=names, index=table.index))
    return predictions
