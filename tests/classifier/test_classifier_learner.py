"""The loss that a classifier learns by, against one worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from melanoma_fair_xai.classifier.arguments import TrainingArguments
from melanoma_fair_xai.classifier.learner import ClassifierLearner
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.augmentation import PARAMETERS, augment
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.images import Preprocessing, normalise
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.data.targets import apply_target


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_loss_is_the_cross_entropy_of_mixed_images_and_labels(phantoms, accelerator, alpha):
    records, target, labels = apply_target(load_records(str(phantoms)), "diagnosis")
    preprocessing = Preprocessing((3, 16, 16), "bilinear", (0.5,) * 3, (0.5,) * 3, 1.0, "squash")
    cache = decode_once(records.images, preprocessing)
    task = Task(records, target, labels, cache.pixels, preprocessing, cache.content)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, len(target.label_names)))
    options = TrainingArguments(mixup_alpha=alpha, label_smoothing=0.0)
    learner = ClassifierLearner(accelerator, network, task, task.rows("train"), options)
    batch = torch.utils.data.default_collate([learner.dataset[0, index] for index in range(4)])
    images = augment(batch["pixels"], batch["parameters"])
    share = batch["parameters"][:, PARAMETERS.index("mix")].view(4, 1, 1, 1)
    before = np.array([3, 0, 1, 2])
    logits = network(normalise(share * images + (1 - share) * images[before], preprocessing))
    of_own, of_before = (
        F.cross_entropy(logits, batch["labels"][order], reduction="none") for order in ([0, 1, 2, 3], before)
    )
    expected = (share.flatten() * of_own + (1 - share.flatten()) * of_before).mean()
    torch.testing.assert_close(learner.loss({"model": network}, batch), expected)
    assert (share < 1).any() == (alpha > 0)
