"""The training loop of a classifier: steps, validation after each epoch, checkpoints, the best weights kept."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from tqdm.auto import tqdm

from melanoma_fair_xai.classifier.mitigation import (
    WITH_GROUPS,
    GroupLoss,
    balanced_weights,
    tone_augmentation,
    training_cells,
)
from melanoma_fair_xai.classifier.models import (
    has_folded_batch_norms,
    parameter_groups,
    restore_batch_norm_statistics,
)
from melanoma_fair_xai.classifier.predict import predict_logits, ranking_metrics
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.augmentation import Augmentation, augment
from melanoma_fair_xai.data.cache import PixelDataset, take
from melanoma_fair_xai.data.images import normalise
from melanoma_fair_xai.engine.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from melanoma_fair_xai.engine.ema import EMA
from melanoma_fair_xai.engine.launch import check_finite
from melanoma_fair_xai.engine.progress import TrainingProgress, epoch_batches
from melanoma_fair_xai.engine.sampler import EpochSampler, training_loader
from melanoma_fair_xai.engine.signals import StopSignal

LOGGING_STEPS = 10


class TrainingOptions(Protocol):
    """What the loop reads of train_classifier.py's arguments; described there."""

    seed: int
    num_train_epochs: int
    max_train_steps: int | None
    train_batch_size: int
    eval_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    class_balanced_sampling: bool
    mitigation: str
    mitigation_group: str
    min_crop_area: float
    color_jitter: float
    use_ema: bool
    ema_max_decay: float
    dataloader_num_workers: int
    checkpointing_steps: int | None
    checkpoints_total_limit: int
    resume_from_checkpoint: str | None


class ClassifierTraining:
    """A network, its optimiser and its data under one Accelerator; `run` leaves the best weights in `network`."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        network: torch.nn.Module,
        task: Task,
        train_rows: np.ndarray,
        options: TrainingOptions,
    ):
        self.accelerator, self.folder, self.task, self.options = accelerator, folder, task, options
        self.network = network.to(accelerator.device, memory_format=torch.channels_last)
        self.validation_rows = task.rows("validation")
        labels = task.labels[train_rows]
        self._restore_batch_norms(train_rows)
        by_group = options.mitigation in WITH_GROUPS
        cells = training_cells(task, train_rows, options.mitigation_group) if by_group else labels
        balanced = options.mitigation != "reweighting" and (by_group or options.class_balanced_sampling)
        weights = balanced_weights(cells) if balanced else None
        sampler = EpochSampler(len(train_rows), options.seed, weights=weights)
        jitter = options.color_jitter
        augmentation = Augmentation(options.min_crop_area, brightness=jitter, contrast=jitter, saturation=jitter)
        if options.mitigation == "ita_augmentation":
            augmentation = tone_augmentation(augmentation)
        dataset = PixelDataset(task.pixels, train_rows, labels, augmentation, options.seed)
        loader = training_loader(
            dataset,
            sampler,
            options.train_batch_size,
            options.dataloader_num_workers,
            drop_last=len(train_rows) >= options.train_batch_size * accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )
        optimizer = torch.optim.AdamW(
            parameter_groups(self.network, options.adam_weight_decay),
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(self.network, optimizer, loader)
        self.steps_per_epoch = math.ceil(len(self.loader) / options.gradient_accumulation_steps)
        self.total_steps = options.max_train_steps or options.num_train_epochs * self.steps_per_epoch
        # Not prepared: Accelerate would step it once per process.
        self.scheduler = transformers.get_scheduler(
            options.lr_scheduler, optimizer, min(options.lr_warmup_steps, self.total_steps // 4), self.total_steps
        )
        self.ema = EMA(self.network, options.ema_max_decay if options.use_ema else 0.0)  # 0: the weights themselves
        self.progress = TrainingProgress()
        self.group_loss = GroupLoss(options.mitigation, cells, accelerator)
        accelerator.register_for_checkpointing(self.scheduler, self.ema, self.progress, self.group_loss)
        self.losses: list[torch.Tensor] = []  # since the last check

    def _restore_batch_norms(self, rows: np.ndarray, batches: int = 8) -> None:
        if not has_folded_batch_norms(self.network):
            return
        chosen = np.random.default_rng(self.options.seed).permutation(rows)
        size = self.options.eval_batch_size
        restore_batch_norm_statistics(
            self.network,
            (self._inputs(chosen[i * size : (i + 1) * size]) for i in range(batches) if i * size < len(rows)),
        )

    def _inputs(self, rows: np.ndarray) -> torch.Tensor:
        pixels = take(self.task.pixels, rows, self.accelerator.device)
        return normalise(pixels.permute(0, 3, 1, 2), self.task.preprocessing)

    def run(self) -> None:
        """Train from the start or the checkpoint to resume from; UserError for a loss that is not finite."""
        self._resume()
        every = self.options.checkpointing_steps
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress.global_step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with StopSignal() as stop, bar:
            # An epoch is unfinished until its validation is done, also if the last checkpoint stands between them.
            while self.progress.global_step < self.total_steps or self.progress.batch_in_epoch:
                for step in self.epoch_steps():
                    bar.update()
                    if step % LOGGING_STEPS == 0:
                        bar.set_postfix(loss=f"{self._log():.3f}")
                    if every and step % every == 0 and step < self.total_steps:  # the last one follows validation
                        self._save()
                    if stop.requested(self.accelerator):
                        self._save()
                        advice = f"checkpoint-{step} is written; continue with --resume_from_checkpoint latest"
                        stop.exit(self.accelerator, advice)
                self.accelerator.print(f"\n{self._validate()}")
                self.progress.finish_epoch()
                if every is None or self.progress.global_step == self.total_steps:
                    self._save()
        if self.progress.best_weights is not None:  # None: every AUC was NaN, and the last weights stand
            self.network.load_state_dict(self.progress.best_weights)

    @property
    def images_seen(self) -> int:
        """Training images so far, of all processes, each counted as often as it was drawn."""
        options = self.options
        per_step = options.train_batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        return self.progress.global_step * per_step

    def _resume(self) -> None:
        path = find_checkpoint(self.accelerator, self.folder, self.options.resume_from_checkpoint)
        if path is not None:
            load_checkpoint(self.accelerator, path, facts=self._facts())
            self.accelerator.print(f"resuming from {path.name} of {self.total_steps} steps")
        elif self.options.resume_from_checkpoint:
            self.accelerator.print(f"nothing to resume in {self.folder}: starting from the beginning")

    def _facts(self) -> dict[str, Any]:
        return {
            "train_batch_size": self.options.train_batch_size,
            "seed": self.options.seed,
            "total steps": self.total_steps,
            "training images": len(self.loader.dataset),
        }

    def _save(self) -> None:
        self._check_losses()
        save_checkpoint(
            self.accelerator,
            self.folder,
            self.progress.global_step,
            total_limit=self.options.checkpoints_total_limit,
            facts=self._facts(),
        )

    def epoch_steps(self) -> Iterator[int]:
        """Train through what is left of the epoch; yields the number of optimiser steps so far after each of them."""
        if self.progress.global_step >= self.total_steps:
            return
        self.model.train()
        for batch in epoch_batches(self.accelerator, self.loader, self.progress):
            self._train_on(batch)
            if self.accelerator.sync_gradients:
                yield self.progress.global_step
                if self.progress.global_step == self.total_steps:
                    return

    def _train_on(self, batch: dict[str, torch.Tensor]) -> None:
        with self.accelerator.accumulate(self.model):
            pixels = (
                take(self.task.pixels, batch["rows"], self.accelerator.device) if "rows" in batch else batch["pixels"]
            )
            images = augment(pixels, batch["parameters"])
            inputs = normalise(images, self.task.preprocessing).contiguous(memory_format=torch.channels_last)
            with self.accelerator.autocast():
                logits = self.model(inputs)
            losses = F.cross_entropy(
                logits.float(), batch["labels"], reduction="none", label_smoothing=self.options.label_smoothing
            )
            loss = self.group_loss(losses, batch["index"])
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            self.scheduler.step()
            self.ema.update(self.model)
            self.progress.global_step += 1

    def _check_losses(self) -> float:
        """The mean loss of the batches since the last check, over all processes; UserError at the first not finite."""
        if not self.losses:
            return math.nan
        means = self.accelerator.reduce(torch.stack(self.losses), "mean")
        self.losses.clear()
        batches_per_step = self.options.gradient_accumulation_steps
        first = self.progress.global_step - len(means) // batches_per_step + 1
        for number, loss in enumerate(means.tolist()):
            check_finite(loss, first + number // batches_per_step)
            # One by one: the sum must not depend on when it was last checked.
            self.progress.loss_sum += loss
            self.progress.loss_count += 1
        return float(means.mean())

    def _log(self) -> float:
        loss = self._check_losses()
        rate = self.scheduler.get_last_lr()[0]
        self.accelerator.log({"train/loss": loss, "train/learning_rate": rate}, step=self.progress.global_step)
        return loss

    def _validate(self) -> str:
        """Score validation with the averaged weights and keep them if they are the best so far; says how it went."""
        self._check_losses()
        with self.ema.applied(self.model), self.accelerator.autocast():
            logits = predict_logits(
                self.accelerator,
                self.network,
                self.task.pixels,
                self.validation_rows,
                self.task.preprocessing,
                self.options.eval_batch_size,
                "validating",
            )
            values = ranking_metrics(self.task.labels[self.validation_rows], logits)
            best = self.progress.update_best(values["roc_auc"], self.network.state_dict())
        named = {f"validation_{name}": number for name, number in values.items()}
        self.progress.record(train_loss=self.progress.loss_sum / self.progress.loss_count, **named)
        self.accelerator.log({f"validation/{k}": v for k, v in values.items()}, step=self.progress.global_step)
        text = ", ".join(f"{name} {number:.4f}" for name, number in values.items())
        return f"epoch {self.progress.epoch + 1}: {text}{' (best)' if best else ''}"
