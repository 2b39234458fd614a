"""The training loop of a generator: steps, validation, checkpoints; what is left is the averaged networks."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from tqdm.auto import tqdm

from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion.data import Conditions, DiffusionDataset, scale
from melanoma_fair_xai.diffusion.export import make_pipeline
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner
from melanoma_fair_xai.diffusion.process import loss_weights, training_target
from melanoma_fair_xai.diffusion.validation import BANDS, draw_sheet, held_out_losses, sample_shared, sheet_cells
from melanoma_fair_xai.engine.checkpoints import check_tensors, find_checkpoint, load_checkpoint, save_checkpoint
from melanoma_fair_xai.engine.ema import EMA
from melanoma_fair_xai.engine.launch import check_finite, common_error, on_main_process
from melanoma_fair_xai.engine.progress import TrainingProgress, epoch_batches
from melanoma_fair_xai.engine.sampler import EpochSampler, training_loader
from melanoma_fair_xai.engine.signals import StopSignal

LOGGING_STEPS = 10
EMA_SHARE = 0.05  # of the run's steps, over which weights are averaged
EXPLODED = 100.0  # predicting nothing at all costs about 1


@dataclass
class Task:
    """Row i of `records` has pixels[i] (uint8 H, W, 3); `conditions` are those that its training rows give."""

    records: Records
    pixels: np.ndarray
    conditions: Conditions

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.records.table["split"] == split)

    def encode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.conditions.encode(self.records.table.iloc[rows])


class TrainingOptions(Protocol):
    """What the loop reads of train_diffusion.py's arguments; described there."""

    seed: int
    max_train_steps: int
    train_batch_size: int
    eval_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    max_grad_norm: float
    snr_gamma: float | None
    condition_dropout: float
    unconditional_share: float
    class_balanced_sampling: bool
    use_ema: bool
    ema_max_decay: float | None
    dataloader_num_workers: int
    validation_steps: int
    validation_images: int
    num_inference_steps: int
    checkpointing_steps: int
    checkpoints_total_limit: int
    resume_from_checkpoint: str | None


def ema_decay(total_steps: int) -> float:
    """The decay that averages over EMA_SHARE of a run (its horizon, 1 / (1 - decay), in steps)."""
    return 1 - 1 / max(EMA_SHARE * total_steps, 1)


def balanced_weights(table_column: np.ndarray) -> np.ndarray:
    """Sampling weights (n,) with which every value of a column is drawn equally often."""
    _, inverse, counts = np.unique(table_column, return_inverse=True, return_counts=True)
    return 1 / counts[inverse]


class DiffusionTraining:
    """Networks, optimiser and data under one Accelerator; `run` leaves the averaged networks in `pipeline`."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        unet: diffusers.UNet2DModel,
        conditioner: LesionConditioner,
        noise_scheduler: diffusers.DDPMScheduler,
        task: Task,
        train_rows: np.ndarray,
        options: TrainingOptions,
    ):
        self.accelerator, self.folder, self.task, self.options = accelerator, folder, task, options
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.networks = {
            "unet": unet.to(accelerator.device, memory_format=torch.channels_last),
            "conditioner": conditioner.to(accelerator.device),
        }
        self.prediction_type = noise_scheduler.config.prediction_type
        self.alphas_cumprod = noise_scheduler.alphas_cumprod.to(accelerator.device)
        self.pipeline = make_pipeline(unet, conditioner, noise_scheduler)
        loader = self._make_loader(train_rows)
        parameters = [*unet.parameters(), *conditioner.parameters()]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.adam_weight_decay,
            fused=True,
        )
        self.unet, self.conditioner, self.optimizer, self.loader = accelerator.prepare(
            unet, conditioner, optimizer, loader
        )
        self.total_steps = options.max_train_steps
        # Not prepared: Accelerate would step it once per process.
        self.scheduler = transformers.get_scheduler(
            options.lr_scheduler, optimizer, min(options.lr_warmup_steps, self.total_steps // 4), self.total_steps
        )
        decay = ema_decay(self.total_steps) if options.ema_max_decay is None else options.ema_max_decay
        self.emas = {
            name: EMA(network, decay if options.use_ema else 0.0)  # 0: the weights themselves
            for name, network in self.networks.items()
        }
        self.progress = TrainingProgress()
        accelerator.register_for_checkpointing(self.scheduler, self.progress)
        accelerator.register_save_state_pre_hook(self._write_networks)
        accelerator.register_load_state_pre_hook(self._read_networks)
        self.losses: list[torch.Tensor] = []  # since the last check

    def _make_loader(self, rows: np.ndarray) -> torch.utils.data.DataLoader:
        options, accelerator = self.options, self.accelerator
        diagnoses = self.task.records.table["diagnosis"].to_numpy()[rows]
        weights = balanced_weights(diagnoses) if options.class_balanced_sampling else None
        dataset = DiffusionDataset(
            self.task.pixels,
            rows,
            self.task.encode(rows),
            self.task.conditions.unknown(),
            seed=options.seed,
            num_train_timesteps=len(self.alphas_cumprod),
            condition_dropout=options.condition_dropout,
            unconditional_share=options.unconditional_share,
        )
        return training_loader(
            dataset,
            EpochSampler(len(rows), options.seed, weights=weights),
            options.train_batch_size,
            options.dataloader_num_workers,
            drop_last=len(rows) >= options.train_batch_size * accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )

    def run(self) -> float:
        """Train from the start or the checkpoint to resume from; returns images/s, all processes and validations
        counted. UserError for a loss that explodes."""
        self._resume()
        first, started = self.images_seen, time.monotonic()
        options = self.options
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress.global_step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with StopSignal() as stop, bar:
            while self.progress.global_step < self.total_steps:
                for step in self.epoch_steps():
                    bar.update()
                    if step % LOGGING_STEPS == 0:
                        bar.set_postfix(loss=f"{self.log():.4f}")
                    if step % options.validation_steps == 0 or step == self.total_steps:
                        self.accelerator.print(f"\n{self._validate()}", flush=True)
                    if step % options.checkpointing_steps == 0 or step == self.total_steps:
                        self._save()
                    if stop.requested(self.accelerator):
                        self._save()
                        advice = f"checkpoint-{step} is written; continue with --resume_from_checkpoint latest"
                        stop.exit(self.accelerator, advice)
                self._check_losses()  # what is left of this epoch's
                self.progress.finish_epoch()
        for name, network in self.networks.items():
            self.emas[name].copy_to(network)
        return (self.images_seen - first) / (time.monotonic() - started)

    @property
    def images_seen(self) -> int:
        """Training images so far, of all processes, each counted as often as it was drawn."""
        options = self.options
        per_step = options.train_batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        return self.progress.global_step * per_step

    def _resume(self) -> None:
        path = find_checkpoint(self.accelerator, self.folder, self.options.resume_from_checkpoint)
        if path is not None:
            on_main_process(self.accelerator, lambda: self._check_networks(path))
            load_checkpoint(self.accelerator, path, facts=self._facts())
            for ema in self.emas.values():
                ema.updates = self.progress.global_step
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

    # A checkpoint has the networks as diffusers loads them, in folders unet, unet_ema, conditioner, conditioner_ema.

    def _write_networks(self, models: list, weights: list, folder: str) -> None:
        weights.clear()  # what Accelerate would write
        with self._averaged():  # in all processes: they agree on the averages
            self._write("_ema", folder)
        self._write("", folder)

    def _write(self, suffix: str, folder: str) -> None:
        for name, network in self.networks.items():
            network.save_pretrained(Path(folder, name + suffix), is_main_process=self.accelerator.is_main_process)

    def _read_networks(self, models: list, folder: str) -> None:
        models.clear()
        for name, network in self.networks.items():
            network.load_state_dict(load_file(_weights_file(folder, name)))
            shadow = load_file(_weights_file(folder, f"{name}_ema"))
            self.emas[name].load_state_dict({**self.emas[name].state_dict(), "shadow": shadow})

    def _check_networks(self, folder: Path) -> None:
        for name, network in self.networks.items():
            for kind in (name, f"{name}_ema"):
                check_tensors(folder, _weights_file(kind), network.state_dict())

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The networks carry their averages inside the block."""
        with contextlib.ExitStack() as stack:
            for name, network in self.networks.items():
                stack.enter_context(self.emas[name].applied(network))
            yield

    def epoch_steps(self) -> Iterator[int]:
        """Train through what is left of the epoch; yields the number of optimiser steps so far after each of them."""
        self.unet.train()
        for batch in epoch_batches(self.accelerator, self.loader, self.progress):
            self._train_on(batch)
            if self.accelerator.sync_gradients:
                yield self.progress.global_step
                if self.progress.global_step == self.total_steps:
                    return

    def _train_on(self, batch: dict[str, Any]) -> None:
        options = self.options
        with self.accelerator.accumulate(self.unet, self.conditioner):
            images = scale(batch["pixels"]).contiguous(memory_format=torch.channels_last)
            alphas = self.alphas_cumprod[batch["timesteps"]]
            noisy, target = training_target(images, batch["noise"], alphas, self.prediction_type)
            with self.accelerator.autocast():
                output = self.unet(noisy, batch["timesteps"], self.conditioner(batch["conditions"])).sample
            errors = (output.float() - target).square().mean(dim=(1, 2, 3))
            loss = (loss_weights(alphas, self.prediction_type, options.snr_gamma) * errors).mean()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                parameters = [*self.unet.parameters(), *self.conditioner.parameters()]
                self.accelerator.clip_grad_norm_(parameters, options.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            self.scheduler.step()
            for name, network in self.networks.items():
                self.emas[name].update(network)
            self.progress.global_step += 1

    def _check_losses(self) -> float:
        """The mean loss of the batches since the last check, over all processes; UserError if one explodes."""
        if not self.losses:
            return math.nan
        means = self.accelerator.reduce(torch.stack(self.losses), "mean")
        self.losses.clear()
        batches_per_step = self.options.gradient_accumulation_steps
        first = self.progress.global_step - len(means) // batches_per_step + 1
        for number, loss in enumerate(means.tolist()):
            step = first + number // batches_per_step
            check_finite(loss, step)
            if loss > EXPLODED:
                raise common_error(
                    f"the loss explodes, it is {loss:.0f} at step {step}: lower --learning_rate;\n"
                    "checkpoints written before are intact, see --resume_from_checkpoint"
                )
            # One by one: the sum must not depend on when it was last checked.
            self.progress.loss_sum += loss
            self.progress.loss_count += 1
        return float(means.mean())

    def log(self) -> float:
        """Check and report the losses since the last call; their mean."""
        loss = self._check_losses()
        rate = self.scheduler.get_last_lr()[0]
        self.accelerator.log({"train/loss": loss, "train/learning_rate": rate}, step=self.progress.global_step)
        return loss

    def _validate(self) -> str:
        """Held-out losses and a sheet of samples with the averaged networks; says how it went."""
        self._check_losses()
        options, step = self.options, self.progress.global_step
        rows = self.task.rows("validation")
        order = sample_generator(options.seed, "validation images").permutation(len(rows))
        rows = rows[order[: options.validation_images]]
        sheet_rows, sheet_columns, cells = sheet_cells(self.task.conditions)
        self.unet.eval()
        with self._averaged():
            losses = held_out_losses(
                self.accelerator,
                self.pipeline,
                self.alphas_cumprod,
                self.task.pixels[rows],
                self.task.encode(rows),
                seed=options.seed,
                batch_size=options.eval_batch_size,
            )
            images = sample_shared(
                self.accelerator,
                self.pipeline,
                self.task.conditions.encode(cells),
                seed=options.seed,
                batch_size=options.eval_batch_size,
                num_inference_steps=options.num_inference_steps,
            )
        self.unet.train()
        self._record(losses)
        if self.accelerator.is_main_process:
            title = f"{Path(self.task.records.name).name}, step {step:,} of {self.total_steps:,}"
            draw_sheet(images, sheet_rows, sheet_columns, self.folder / "samples" / f"step-{step:06d}.png", title)
            for tracker in self.accelerator.trackers:
                tracker.log_images({"samples": images}, step=step, dataformats="NHWC")
        text = " ".join(f"{loss:.4f}" for loss in losses)
        return f"step {step}: held-out error by timestep, from little noise to all of it: {text}"

    def _record(self, losses: list[float]) -> None:
        width = len(self.alphas_cumprod) // BANDS
        named = {f"error_t{band * width}-{(band + 1) * width - 1}": loss for band, loss in enumerate(losses)}
        self.progress.record(train_loss=self.progress.loss_sum / self.progress.loss_count, **named)
        self.accelerator.log(
            {f"validation/{name}": loss for name, loss in named.items()}, step=self.progress.global_step
        )


def _weights_file(*parts: str) -> str:
    return str(Path(*parts, SAFETENSORS_WEIGHTS_NAME))
