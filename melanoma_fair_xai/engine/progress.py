"""How far a run is, and its batches from there on."""

import json
import math
from collections.abc import Iterator
from typing import Any

import accelerate
import torch

from melanoma_fair_xai.base.files import plain


class TrainingProgress:
    """Counts and results that a checkpoint carries; register it with `accelerator.register_for_checkpointing`.

    `global_step` counts optimiser steps, `batch_in_epoch` the batches of epoch `epoch` that this process has seen,
    `history` has one dict per validation. The best weights so far are part of it, so that a resumed run has them
    without a file from outside its checkpoint.
    """

    def __init__(self):
        self.global_step = 0
        self.epoch = 0
        self.batch_in_epoch = 0
        self.loss_sum = 0.0  # over the batches of this epoch
        self.loss_count = 0
        self.history: list[dict[str, Any]] = []
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.best_weights: dict[str, dict[str, torch.Tensor]] | None = None  # by network

    def record(self, **values: Any) -> None:
        """Add a row to the history, with step and epoch."""
        self.history.append(plain({"step": self.global_step, "epoch": self.epoch, **values}))

    def update_best(self, value: float, weights: dict[str, dict[str, torch.Tensor]]) -> bool:
        """Whether `value` is the highest so far, and if so, keep it and a copy of the networks' weights; NaN is not.

        Both must be the same in every process: call it inside `EMA.applied`, or batch-norm statistics will differ.
        """
        value = float(value)
        if math.isnan(value) or (self.best_value is not None and value <= self.best_value):
            return False
        self.best_value, self.best_step = value, self.global_step
        self.best_weights = {
            name: {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
            for name, tensors in weights.items()
        }
        return True

    def finish_epoch(self) -> None:
        """Call after an epoch's batches and its validation."""
        self.epoch += 1
        self.batch_in_epoch = 0
        self.loss_sum, self.loss_count = 0.0, 0

    def recount(self, before: int, now: int) -> None:
        """Count batches of an epoch that is under way in other ones, `now` of which are what `before` were."""
        self.batch_in_epoch = self.batch_in_epoch * now // before
        self.loss_sum, self.loss_count = self.loss_sum * now / before, self.loss_count * now // before

    def state_dict(self) -> dict:
        return {**vars(self), "history": json.dumps(self.history)}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state, history=json.loads(state["history"]))


def epoch_batches(
    accelerator: accelerate.Accelerator, loader: torch.utils.data.DataLoader, progress: TrainingProgress
) -> Iterator[Any]:
    """The batches of the current epoch that are still to come, from a prepared loader over an `EpochSampler`.

    A batch counts as seen when it is handed out, so save checkpoints after the step that uses it. An epoch that was
    interrupted after its last batch yields none, and its validation follows as usual.
    """
    loader.set_epoch(progress.epoch)
    remaining = len(loader) - progress.batch_in_epoch
    if progress.batch_in_epoch and remaining:
        loader = accelerator.skip_first_batches(loader, progress.batch_in_epoch)
    for batch in loader if remaining else ():
        progress.batch_in_epoch += 1
        yield batch
