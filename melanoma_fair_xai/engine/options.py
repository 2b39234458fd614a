"""The flags that every training has."""

from dataclasses import dataclass
from typing import Literal

from melanoma_fair_xai.base.flags import flag

# Of transformers' schedules those that need no more than the number of steps.
SCHEDULES = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
# Of accelerate's trackers.
TRACKERS = Literal[
    "tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "none"
]


@dataclass
class TrainingOptions:
    """What `Training` reads; a script's own dataclass adds to it, and sets defaults of its own by `with_default`."""

    output_dir: str = flag("runs/training", "The run folder.", free=True)
    overwrite_output_dir: bool = flag(False, "Replace an earlier run in --output_dir.", free=True)
    seed: int = flag(0, "Fixes weights, sample order and every other random number.", low=0)
    max_train_steps: int | None = flag(None, "Optimiser steps.", low=1)
    train_batch_size: int = flag(32, "Images per process and step.", low=1)
    eval_batch_size: int = flag(64, "Images per process in evaluation.", low=1, free=True)
    gradient_accumulation_steps: int = flag(1, "Batches per optimiser step.", low=1)
    learning_rate: float = flag(1e-3, "Peak learning rate of AdamW.", low=0)
    lr_scheduler: SCHEDULES = flag("cosine", "As in transformers.")
    lr_warmup_steps: int = flag(100, "Optimiser steps of linear warm-up.", low=0)
    adam_beta1: float = flag(0.9, "AdamW.", low=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW.", low=0, below=1)
    adam_weight_decay: float = flag(0.05, "AdamW.", low=0)
    max_grad_norm: float = flag(1.0, "Gradients are clipped to this norm.", above=0)
    class_balanced_sampling: bool = flag(True, "Draw every class equally often.")
    use_ema: bool = flag(True, "Average weights and batch-norm statistics (EMA).")
    ema_max_decay: float | None = flag(
        None, "Decay of the EMA; default: a horizon of a twentieth of the run's steps.", low=0, below=1
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = flag(
        "auto", "auto: as accelerate is configured, else bf16 if the hardware has it."
    )
    torch_compile: bool = flag(
        False, "Compile the training step: pays on a GPU in long runs, hardly on a CPU.", shown=False
    )
    dataloader_num_workers: int = flag(0, "Loading processes; on a CPU 0 is fastest.", low=0, free=True)
    validation_steps: int | None = flag(None, "Validate so often; default: once an epoch.", low=1, shown=False)
    checkpointing_steps: int | None = flag(None, "A checkpoint so often; default: once an epoch.", low=1, free=True)
    checkpoints_total_limit: int = flag(2, "Keep the newest so many.", low=1, free=True)
    resume_from_checkpoint: str | None = flag(None, "A checkpoint's folder, or latest.", free=True)
    allow_elastic: bool = flag(
        False, "Resume with another number of processes, too: the same batches, not the same bits.", free=True
    )
    report_to: TRACKERS = flag("tensorboard", "Tracker, or none.", free=True)
    logging_dir: str = flag("logs", "Folder of the tracker, in --output_dir.", free=True)

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many optimiser steps the training takes."""
        return self.max_train_steps
