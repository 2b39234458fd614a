"""A training from its first step to its last, whatever is learnt: resume, steps, validation, checkpoints, signals."""

import abc
import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm.auto import tqdm

from melanoma_fair_xai.base.seeding import sample_generator

from .arguments import settings
from .checkpoints import find_checkpoint, load_checkpoint, processes_so_far, save_checkpoint
from .ema import EMA
from .launch import check_alike, check_finite, common_error, on_main_process
from .options import TrainingOptions
from .progress import TrainingProgress, epoch_batches
from .sampler import EpochSampler, training_loader
from .shares import Shares
from .signals import StopSignal
from .trackers import log_images, start_trackers

LOGGING_STEPS = 10
EMA_SHARE = 0.05  # of the run's steps, over which weights are averaged where no decay is given


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        values: what is kept in the history and sent to trackers, by name.
        text: a line that says how it went.
        score: the higher, the better; the weights of the best one are kept. None: the last averages are.
        images: uint8 (n, height, width, 3) for trackers that take them, in the main process.
    """

    values: dict[str, float]
    text: str
    score: float | None = None
    images: np.ndarray | None = None


class Learner(abc.ABC):
    """What is learnt: networks, data, the loss of a batch, and a validation. `Training` does the rest.

    Attributes:
        networks: by name, on the accelerator's device. All their parameters are trained, and averaged (EMA).
        dataset: asked for [epoch, index]; its items may depend on nothing else.
        sampling_weights: (n,), in proportion to which samples are drawn; None: each once an epoch.
        state: objects with `state_dict` and `load_state_dict` that checkpoints carry, too.
        facts: by name, what must be the same where a run is resumed, beside its settings.
        exploded: a loss above this ends the run.
        needs_whole_batches: the loss of a batch is no mean over its images, and must not be taken of parts of it.
    """

    networks: dict[str, nn.Module]
    dataset: torch.utils.data.Dataset
    sampling_weights: np.ndarray | None = None
    state: tuple[Any, ...] = ()
    facts: dict[str, Any] = {}
    exploded: float = math.inf
    needs_whole_batches: bool = False

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The optimiser's groups: here one of all parameters."""
        parameters = [parameter for network in self.networks.values() for parameter in network.parameters()]
        return [{"params": parameters, "weight_decay": weight_decay}]

    @abc.abstractmethod
    def loss(self, networks: dict[str, nn.Module], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss (scalar, with its graph) of a batch, by `networks` as the accelerator has prepared them."""

    @abc.abstractmethod
    def validate(self, step: int) -> Validation:
        """Called in every process while `networks` carry their averages, in evaluation mode."""


class Training:
    """A learner under an Accelerator, set up, and taken up where an earlier run of it was.

    `run` leaves in the learner's networks the best weights, or the averages where a validation gives no score.

    Args:
        accelerator: with trackers by name, see `launch.start_accelerator`.
        folder: the run folder; checkpoints are in it.
        learner: what is learnt.
        options: the flags of every training.
        others: dataclasses with the script's other flags: with `options` they are what a resumed run must keep.

    Raises:
        UserError: the checkpoint is damaged, or of a run with other settings, data, or networks.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, learner: Learner, options: TrainingOptions, *others: Any
    ):
        self.accelerator, self.folder, self.learner, self.options = accelerator, folder, learner, options
        self.settings = (*others, options)
        checkpoint = find_checkpoint(accelerator, folder, options.resume_from_checkpoint)
        self._share(checkpoint)
        sampler = EpochSampler(
            len(learner.dataset),
            options.seed,
            weights=learner.sampling_weights,
            whole=self.begun.images_per_pass,
        )
        loader = training_loader(
            learner.dataset,
            sampler,
            self.shares.images,
            options.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        optimizer = torch.optim.AdamW(
            learner.parameter_groups(options.adam_weight_decay),
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            fused=True,
        )
        self.optimizer, self.loader, *networks = accelerator.prepare(optimizer, loader, *learner.networks.values())
        self.networks = dict(zip(learner.networks, networks, strict=True))
        self.total_steps = options.total_steps(math.ceil(len(self.loader) / self.shares.passes))
        # Not prepared: Accelerate would step it once per process.
        warmup = min(options.lr_warmup_steps, self.total_steps // 4)
        self.scheduler = transformers.get_scheduler(options.lr_scheduler, optimizer, warmup, self.total_steps)
        decay = ema_decay(self.total_steps) if options.ema_max_decay is None else options.ema_max_decay
        self.emas = {
            name: EMA(network, decay if options.use_ema else 0.0)  # 0: the weights themselves
            for name, network in learner.networks.items()
        }
        self.progress = TrainingProgress()
        accelerator.register_for_checkpointing(self.scheduler, *self.emas.values(), self.progress, *learner.state)
        self.losses: list[tuple[int, torch.Tensor]] = []  # with their steps, since the last check
        self._resume(checkpoint)

    def run(self) -> float:
        """Train to the end; returns images/s, of all processes, validations included.

        UserError for a loss that is not finite, or explodes.
        """
        step = self.progress.global_step
        first, started = self.images_seen, time.monotonic()
        logs = os.path.relpath(self.folder / self.options.logging_dir, self.options.output_dir)
        start_trackers(self.accelerator, logs, *self.settings, step=step)
        bar = tqdm(
            total=self.total_steps,
            initial=step,
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
                    if self._due(self.options.validation_steps):
                        self.accelerator.print(f"\n{self._validate()}", flush=True)
                    stopping = stop.requested(self.accelerator)
                    if stopping or self._due(self.options.checkpointing_steps):
                        self._save()
                    if stopping:
                        bar.close()  # so that what is said stands on a line of its own
                        advice = f"checkpoint-{step} is written; continue with --resume_from_checkpoint latest"
                        stop.exit(self.accelerator, advice)
                self._check_losses()  # what is left of this epoch's
                self.progress.finish_epoch()
        for name, network in self.learner.networks.items():
            if self.progress.best_weights is None:
                self.emas[name].copy_to(network)
            else:
                network.load_state_dict(self.progress.best_weights[name])
        return (self.images_seen - first) / (time.monotonic() - started)

    @property
    def images_seen(self) -> int:
        """Training images so far, of all processes, each counted as often as it was drawn."""
        return self.progress.global_step * self.shares.passes * self.shares.images_per_pass

    def _share(self, checkpoint: Path | None) -> None:
        """Share the batches that the run was begun with among the processes there are."""
        options, number = self.options, self.accelerator.num_processes
        self.processes = [[0, number]]
        if checkpoint is not None and options.allow_elastic:
            self.processes = on_main_process(self.accelerator, lambda: processes_so_far(checkpoint))
        self.begun = Shares(self.processes[0][1], options.train_batch_size, options.gradient_accumulation_steps)
        self.shares = self._shares(number)
        self.accelerator.gradient_accumulation_steps = self.shares.passes
        if number != self.begun.processes and len(self.learner.dataset) < self.begun.images_per_pass:
            raise common_error(
                f"--allow_elastic: {len(self.learner.dataset)} training images are fewer than the "
                f"{self.begun.images_per_pass} of a batch; start {self.begun.processes} processes as before"
            )

    def _shares(self, processes: int) -> Shares:
        return self.begun.among(processes, whole=self.learner.needs_whole_batches)

    def _resume(self, path: Path | None) -> None:
        check_alike(self.accelerator, self._facts())
        if path is not None:
            options = self.options
            load_checkpoint(self.accelerator, path, facts=self._facts(), elastic=options.allow_elastic)
            self.accelerator.print(f"resuming from {path.name} of {self.total_steps} steps", flush=True)
            earlier, now = self.processes[-1][1], self.accelerator.num_processes
            if earlier != now:
                self._change_processes(earlier, now)
        elif self.options.resume_from_checkpoint:
            self.accelerator.print(f"nothing to resume in {self.folder}: starting from the beginning", flush=True)

    def _change_processes(self, earlier: int, now: int) -> None:
        """Go on after a checkpoint that another number of processes wrote."""
        step = self.progress.global_step
        self.processes = [*self.processes, [step, now]]
        self.progress.recount(self._shares(earlier).passes, self.shares.passes)
        self.accelerator.step = 0  # of the passes that make up an optimiser step
        keys = "elastic", step, self.accelerator.process_index
        set_seed(int(sample_generator(self.options.seed, *keys).integers(2**32)))
        self.accelerator.print(
            f"{now} process(es) go on from {earlier}: the same images in every step, {self.shares.images} at a time "
            "in each process; other random numbers, so that results are not the same bit for bit",
            flush=True,
        )

    def _facts(self) -> dict[str, Any]:
        sizes = {"total steps": self.total_steps, "training images": len(self.learner.dataset)}
        sizes["number of processes"] = self.begun.processes
        return {**settings(*self.settings), **sizes, **self.learner.facts}

    def _save(self) -> None:
        self._check_losses()
        limit = self.options.checkpoints_total_limit
        step = self.progress.global_step
        save_checkpoint(
            self.accelerator, self.folder, step, total_limit=limit, facts=self._facts(), processes=self.processes
        )

    def _due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps, or once an epoch, is to be done after this step."""
        step, epoch_done = self.progress.global_step, self.progress.batch_in_epoch == len(self.loader)
        return step == self.total_steps or (epoch_done if every is None else step % every == 0)

    def epoch_steps(self) -> Iterator[int]:
        """Train through what is left of the epoch; yields the number of optimiser steps so far after each of them."""
        self._train_mode()
        for batch in epoch_batches(self.accelerator, self.loader, self.progress):
            self._train_on(batch)
            if self.accelerator.sync_gradients:
                yield self.progress.global_step
                if self.progress.global_step == self.total_steps:
                    return

    def _train_mode(self) -> None:
        for network in self.networks.values():
            network.train()

    def _train_on(self, batch: dict[str, torch.Tensor]) -> None:
        with self.accelerator.accumulate(*self.networks.values()):
            loss = self.learner.loss(self.networks, batch)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                parameters = [parameter for network in self.networks.values() for parameter in network.parameters()]
                self.accelerator.clip_grad_norm_(parameters, self.options.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.losses.append((self.progress.global_step + 1, loss.detach()))
        if self.accelerator.sync_gradients:
            self.scheduler.step()
            for name, network in self.networks.items():
                self.emas[name].update(network)
            self.progress.global_step += 1

    def _check_losses(self) -> float:
        """The mean loss of the batches since the last check, over all processes; UserError at the first bad one."""
        if not self.losses:
            return math.nan
        steps, losses = zip(*self.losses, strict=True)
        self.losses.clear()
        means = self.accelerator.reduce(torch.stack(losses), "mean")
        for step, loss in zip(steps, means.tolist(), strict=True):
            check_finite(loss, step)
            if loss > self.learner.exploded:
                raise common_error(
                    f"the loss explodes, it is {loss:.0f} at step {step}: lower --learning_rate;\n"
                    "checkpoints written before are intact, see --resume_from_checkpoint"
                )
            # One by one: the sum must not depend on when it was last checked.
            self.progress.loss_sum += loss
            self.progress.loss_count += 1
        return float(means.mean())

    def log(self) -> float:
        """Check the losses since the last call, and send their mean to the trackers; returns it."""
        loss = self._check_losses()
        rate = self.scheduler.get_last_lr()[0]
        self.accelerator.log({"train/loss": loss, "train/learning_rate": rate}, step=self.progress.global_step)
        return loss

    def _validate(self) -> str:
        """Validate with the averaged weights, and keep them if they are the best so far; says how it went."""
        self._check_losses()
        step = self.progress.global_step
        with contextlib.ExitStack() as averaged:
            for name, network in self.learner.networks.items():
                averaged.enter_context(self.emas[name].applied(network))
                network.eval()
            result = self.learner.validate(step)
            weights = {name: network.state_dict() for name, network in self.learner.networks.items()}
            best = result.score is not None and self.progress.update_best(result.score, weights)
        self._train_mode()
        self.progress.record(train_loss=self.progress.loss_sum / self.progress.loss_count, **result.values)
        named = {f"validation/{name.removeprefix('validation_')}": value for name, value in result.values.items()}
        self.accelerator.log(named, step=step)
        if result.images is not None:
            log_images(self.accelerator, "samples", result.images, step)
        return f"{result.text}{' (best)' if best else ''}"


def ema_decay(total_steps: int) -> float:
    """The decay that averages over EMA_SHARE of a run (its horizon, 1 / (1 - decay), in steps)."""
    return 1 - 1 / max(EMA_SHARE * total_steps, 1)
