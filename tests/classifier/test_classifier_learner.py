"""The loss that a classifier learns by, against one worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from melanoma_fair_xai.classifier.arguments import TrainingArguments
from melanoma_fair_xai.classifier.learner import ClassifierLearner
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.augmentation import PARAMETERS, augment
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.images import Preprocessing, normalise
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.data.targets import apply_target


@pytest.fixture(scope="module")
def task(phantoms):
    records, target, labels = apply_target(load_records(str(phantoms)), "diagnosis")
    preprocessing = Preprocessing((3, 16, 16), "bilinear", (0.5,) * 3, (0.5,) * 3, 1.0, "squash")
    cache = decode_once(records.images, preprocessing)
    return Task(records, target, labels, cache.pixels, preprocessing, cache.content)


def make_learner(accelerator, task, **options) -> ClassifierLearner:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, len(task.target.label_names)))
    return ClassifierLearner(accelerator, network, task, task.rows("train"), TrainingArguments(**options))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_loss_is_the_cross_entropy_of_mixed_images_and_labels(task, accelerator, alpha):
    learner = make_learner(accelerator, task, mixup_alpha=alpha, label_smoothing=0.0)
    network = learner.networks["model"]
    batch = torch.utils.data.default_collate([learner.dataset[0, index] for index in range(4)])
    images = augment(batch["pixels"], batch["parameters"])
    share = batch["parameters"][:, PARAMETERS.index("mix")].view(4, 1, 1, 1)
    before = np.array([3, 0, 1, 2])
    logits = network(normalise(share * images + (1 - share) * images[before], task.preprocessing))
    of_own, of_before = (
        F.cross_entropy(logits, batch["labels"][order], reduction="none") for order in ([0, 1, 2, 3], before)
    )
    expected = (share.flatten() * of_own + (1 - share.flatten()) * of_before).mean()
    torch.testing.assert_close(learner.loss({"model": network}, batch), expected)
    assert (share < 1).any() == (alpha > 0)


def test_the_best_weights_are_those_of_the_highest_auc(task, accelerator):
    learner = make_learner(accelerator, task)
    rows = task.rows("validation")
    pixels = torch.from_numpy(task.pixels[rows]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = learner.networks["model"](normalise(pixels, task.preprocessing)).softmax(1).numpy()
    labels = task.labels[rows]
    area = np.mean([roc_auc_score(labels == k, logits[:, k]) for k in np.unique(labels)])
    found = learner.validate(step=3)
    assert found.score == found.values["validation_roc_auc"] == pytest.approx(area)
    assert found.score not in (found.values["validation_balanced_accuracy"], -found.values["validation_loss"])


def test_weights_of_images_take_the_place_of_drawing_them_equally_often(task, accelerator):
    group = {"mitigation_group": "sex"}
    assert make_learner(accelerator, task).sampling_weights is not None
    assert make_learner(accelerator, task, class_balanced_sampling=False).sampling_weights is None
    assert make_learner(accelerator, task, mitigation="group_sampling", **group).sampling_weights is not None
    assert make_learner(accelerator, task, mitigation="reweighting", **group).sampling_weights is None
