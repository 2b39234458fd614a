import numpy as np
import pandas as pd
import pytest
import timm
import torch
from accelerate import Accelerator
from sklearn import metrics

from melanoma_fair_xai.classifier.export import ClassifierInfo
from melanoma_fair_xai.classifier.predict import melanoma_scores, predict_logits, prediction_table, ranking_metrics
from melanoma_fair_xai.data.images import Preprocessing, normalise

PREPROCESSING = Preprocessing((3, 32, 32), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1.0, "squash")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=2)


def test_logits_are_those_of_a_plain_loop_in_the_order_of_rows(model, pixels):
    rows = np.random.default_rng(1).permutation(23)[:17]
    logits = predict_logits(Accelerator(cpu=True), model, pixels, rows, PREPROCESSING, 5, "test")
    model.eval()
    with torch.no_grad():
        images = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2)
        expected = torch.cat([model(normalise(image[None], PREPROCESSING)) for image in images])
    assert logits.shape == (17, 2) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_scores_sum_the_classes_that_mean_melanoma():
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=np.float32))
    np.testing.assert_allclose(melanoma_scores(logits, [0, 2]), [0.5, 0.9], atol=1e-6)
    np.testing.assert_allclose(melanoma_scores(logits * 0 + 500, [1]), [1 / 3, 1 / 3])


def test_the_table_carries_groups_threshold_and_fold_but_no_target():
    table = pd.DataFrame(
        {"image_id": ["a", "b"], "lesion_id": ["l", "m"], "diagnosis": ["x", "y"], "melanoma": [0, 1], "split": "test"}
        | {"sex": ["female", "unknown"], "hospital": ["A", "B"]}
    )
    info = ClassifierInfo(["x", "y", "z"], ["y", "z"], 0.3, "youden", PREPROCESSING)
    result = prediction_table(table, np.zeros((2, 3), np.float32), np.array([0, 2]), info, fold=4)
    assert list(result.columns[:6]) == ["image_id", "lesion_id", "label", "score", "fold", "threshold"]
    assert list(result.columns[6:9]) == ["diagnosis", "sex", "hospital"]
    assert result["label"].tolist() == [0, 1] and result["fold"].tolist() == [4, 4]
    np.testing.assert_allclose(result[["probability_x", "probability_y", "probability_z"]], 1 / 3)
    np.testing.assert_allclose(result["score"], 2 / 3)


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
