"""A training on random images under the engine, small enough to be killed again and again."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import set_seed
from torch import nn

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.flags import flag, with_default
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.engine import training
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME, parse_arguments, save_arguments
from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors
from melanoma_fair_xai.engine.options import TrainingOptions
from melanoma_fair_xai.engine.run_folder import open_run_folder
from melanoma_fair_xai.engine.sampler import balanced_weights


@dataclass
class Arguments(TrainingOptions):
    output_dir: str = with_default(TrainingOptions, "output_dir", "toy-run")
    train_batch_size: int = with_default(TrainingOptions, "train_batch_size", 4)
    gradient_accumulation_steps: int = with_default(TrainingOptions, "gradient_accumulation_steps", 2)
    learning_rate: float = with_default(TrainingOptions, "learning_rate", 0.05)
    ema_max_decay: float | None = with_default(TrainingOptions, "ema_max_decay", 0.9)
    checkpointing_steps: int | None = with_default(TrainingOptions, "checkpointing_steps", 4)
    report_to: Literal["tensorboard", "none"] = with_default(TrainingOptions, "report_to", "none")
    num_train_epochs: int = flag(3, "Epochs.")
    width: int = flag(8, "Channels of the net.", free=True)
    dropout: float = flag(0.3, "Of the net.", free=True)
    padding: int = flag(0, "Numbers to carry along, to make checkpoints slow to write.", free=True)
    step_seconds: float = flag(0.0, "Seconds to wait after each step.", free=True)
    fault: str | None = flag(None, "Something to go wrong in step 6.", free=True)

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.num_train_epochs * steps_per_epoch


class ToyData(torch.utils.data.Dataset):
    def __init__(self, seed: int, size: int = 45):
        self.seed = seed
        self.images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        self.labels = (self.images.mean((1, 2, 3)) > 0.05).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        noise = sample_generator(self.seed, epoch, index).normal(size=(3, 8, 8)).astype("float32")
        image = self.images[index] + 0.1 * torch.from_numpy(noise)
        return {"image": image, "label": self.labels[index], "id": 1000 * epoch + index}


class ToyNet(nn.Sequential):
    def __init__(self, width: int, padding: int, dropout: float = 0.3):
        super().__init__(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(36 * width, 2),
        )
        self.register_buffer("padding", torch.zeros(padding))


class Seen:
    """The losses and samples of every batch so far, of all processes, and the steps."""

    def __init__(self):
        self.rows, self.steps = [], 0

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class ToyLearner(training.Learner):
    def __init__(self, accelerator, args: Arguments):
        self.accelerator, self.args = accelerator, args
        self.networks = {"net": ToyNet(args.width, args.padding, args.dropout)}
        self.dataset = ToyData(args.seed)
        self.sampling_weights = balanced_weights(self.dataset.labels.numpy())
        self.seen = Seen()
        self.state = (self.seen,)

    def loss(self, networks, batch) -> torch.Tensor:
        if self.seen.steps == 5:
            break_something(self.args.fault, self.networks["net"])
        self.seen.steps += self.accelerator.sync_gradients
        loss = nn.functional.cross_entropy(networks["net"](batch["image"]), batch["label"])
        everywhere = self.accelerator.gather(loss.detach()), self.accelerator.gather(batch["id"])
        self.seen.rows.append([part.flatten().tolist() for part in everywhere])
        return loss

    @torch.no_grad()
    def validate(self, step: int) -> training.Validation:
        scores = self.networks["net"](self.dataset.images).softmax(1)[:, 1]
        value = -(scores * (2 * self.dataset.labels - 1)).mean().item()
        return training.Validation({"validation_value": value}, f"step {step}: {value:.3f}", score=value)


class Steps(GeneralTracker):
    """Says which step is done, and waits."""

    name, requires_logging_directory, tracker = "steps", False, None

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def store_init_configuration(self, values: dict) -> None:
        pass

    def log(self, values: dict, step: int | None = None) -> None:
        if "train/loss" in values:
            time.sleep(self.seconds)
            print(f"\nstep {step}", flush=True)  # on a line of its own, below the bar


def break_something(fault: str | None, model: nn.Module) -> None:
    if fault == "nan":
        next(model.parameters()).data.fill_(float("nan"))
    if fault == "out_of_memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    if fault == "host_memory":
        torch.empty(2**50)
    if fault in ("full_disk", "full_disk_elsewhere") and (fault == "full_disk") == (
        os.environ.get("RANK", "0") == "0"
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))


def main() -> None:
    training.LOGGING_STEPS = 1
    (args,) = parse_arguments(Arguments)
    with explained_errors():
        accelerator = create_accelerator(
            cpu=True,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            project_dir=args.output_dir,
        )
        set_seed(args.seed, device_specific=True)
        learner = ToyLearner(accelerator, args)
        accelerator.log_with = [Steps(args.step_seconds)]
        accelerator.log_with += ["tensorboard"] if args.report_to == "tensorboard" else []
        resume = args.resume_from_checkpoint is not None
        with open_run_folder(
            accelerator, args.output_dir, resume=resume, overwrite=args.overwrite_output_dir
        ) as folder:
            run = training.Training(accelerator, folder, learner, args)
            if accelerator.is_main_process:
                save_arguments(folder / ARGUMENTS_NAME, args)
            print(f"process {accelerator.process_index} of {accelerator.num_processes}", flush=True)
            run.run()
            accelerator.end_training()
            everything = {
                "best": learner.networks["net"].state_dict(),
                "emas": [ema.state_dict() for ema in run.emas.values()],
                "optimizer": run.optimizer.state_dict(),
                "scheduler": run.scheduler.state_dict(),
                "progress": run.progress.state_dict(),
                "seen": learner.seen.rows,
                "random": torch.get_rng_state(),
            }
            with atomic_path(folder / f"final-{accelerator.process_index}.pt") as path:
                torch.save(everything, path)
            accelerator.print("finished", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
