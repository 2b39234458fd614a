"""What a classifier's training learns: the loss of a batch, by groups if asked, and how validation is scored."""

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from dataset_scripts.splits import manifest_hash
from melanoma_fair_xai.classifier.arguments import TrainingArguments
from melanoma_fair_xai.classifier.mitigation import WITH_GROUPS, GroupLoss, tone_augmentation, training_cells
from melanoma_fair_xai.classifier.models import (
    has_folded_batch_norms,
    parameter_groups,
    restore_batch_norm_statistics,
)
from melanoma_fair_xai.classifier.predict import predict_logits, ranking_metrics
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.augmentation import Augmentation, augment, mix_with_previous
from melanoma_fair_xai.data.cache import PixelDataset, take
from melanoma_fair_xai.data.images import normalise
from melanoma_fair_xai.engine.sampler import balanced_weights
from melanoma_fair_xai.engine.training import Learner, Validation


class ClassifierLearner(Learner):
    """A network that learns the classes of a task's `train_rows`; the best weights are those of the highest AUC."""

    def __init__(
        self,
        accelerator: Accelerator,
        network: torch.nn.Module,
        task: Task,
        train_rows: np.ndarray,
        options: TrainingArguments,
    ):
        self.accelerator, self.task, self.options = accelerator, task, options
        self.networks = {"model": network.to(accelerator.device, memory_format=torch.channels_last)}
        self.validation_rows = task.rows("validation")
        labels = task.labels[train_rows]
        if has_folded_batch_norms(network):
            self._restore_batch_norms(train_rows)
        by_group = options.mitigation in WITH_GROUPS
        cells = training_cells(task, train_rows, options.mitigation_group) if by_group else labels
        if options.mitigation != "reweighting" and (by_group or options.class_balanced_sampling):
            self.sampling_weights = balanced_weights(cells)
        jitter = options.color_jitter
        augmentation = Augmentation(
            options.min_crop_area,
            brightness=jitter,
            contrast=jitter,
            saturation=jitter,
            rotation=options.rotation,
            erasing=options.erasing,
            mixup_alpha=options.mixup_alpha,
        )
        if options.mitigation == "ita_augmentation":
            augmentation = tone_augmentation(augmentation)
        self.dataset = PixelDataset(task.pixels, train_rows, labels, augmentation, options.seed)
        self.group_loss = GroupLoss(options.mitigation, cells, accelerator)
        self.state = (self.group_loss,)
        self.needs_whole_batches = options.mitigation == "group_dro"
        self.facts = {"split manifest": manifest_hash(task.records.manifest), "content of the images": task.content}

    def _restore_batch_norms(self, rows: np.ndarray, batches: int = 8) -> None:
        chosen = np.random.default_rng(self.options.seed).permutation(rows)
        size = self.options.eval_batch_size
        pixels = (
            take(self.task.pixels, chosen[i * size : (i + 1) * size], self.accelerator.device)
            for i in range(batches)
            if i * size < len(rows)
        )
        inputs = (normalise(images.permute(0, 3, 1, 2), self.task.preprocessing) for images in pixels)
        restore_batch_norm_statistics(self.networks["model"], inputs)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        return parameter_groups(
            self.networks["model"], weight_decay, self.options.learning_rate, self.options.layer_decay
        )

    def loss(self, networks: dict[str, torch.nn.Module], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels = take(self.task.pixels, batch["rows"], self.accelerator.device) if "rows" in batch else batch["pixels"]
        images = augment(pixels, batch["parameters"])
        # One label in `classes` places, so that labels can be mixed as images are.
        labels = F.one_hot(batch["labels"], len(self.task.target.label_names)).float()
        if self.options.mixup_alpha:
            images, labels = (mix_with_previous(values, batch["parameters"]) for values in (images, labels))
        inputs = normalise(images, self.task.preprocessing).contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            logits = networks["model"](inputs)
        losses = F.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=self.options.label_smoothing
        )
        return self.group_loss(losses, batch["index"])

    def validate(self, step: int) -> Validation:
        with self.accelerator.autocast():
            logits = predict_logits(
                self.accelerator,
                self.networks["model"],
                self.task.pixels,
                self.validation_rows,
                self.task.preprocessing,
                self.options.eval_batch_size,
                "validating",
            )
        values = ranking_metrics(self.task.labels[self.validation_rows], logits)
        text = ", ".join(f"{name} {number:.4f}" for name, number in values.items())
        named = {f"validation_{name}": number for name, number in values.items()}
        return Validation(named, f"step {step}: {text}", score=values["roc_auc"])
