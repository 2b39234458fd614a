"""A training on random images that uses every part of the engine, small enough to be killed again and again."""

import os
import resource
import sys
import time
from dataclasses import dataclass, field

import torch
from accelerate.utils import set_seed
from torch import nn

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.engine.arguments import parse_arguments, save_arguments
from melanoma_fair_xai.engine.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from melanoma_fair_xai.engine.ema import EMA
from melanoma_fair_xai.engine.launch import check_finite, create_accelerator, explained_errors
from melanoma_fair_xai.engine.progress import TrainingProgress, epoch_batches
from melanoma_fair_xai.engine.run_folder import ARGUMENTS_NAME, open_run_folder
from melanoma_fair_xai.engine.sampler import EpochSampler, training_loader
from melanoma_fair_xai.engine.signals import StopSignal
from melanoma_fair_xai.engine.trackers import start_trackers


@dataclass
class Arguments:
    output_dir: str = field(default="toy-run", metadata={"help": "Where to write."})
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    seed: int = 0
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    learning_rate: float = 0.05
    num_train_epochs: int = 3
    checkpointing_steps: int = 4
    checkpoints_total_limit: int | None = 2
    dataloader_num_workers: int = 0
    width: int = field(default=8, metadata={"help": "Channels of the net."})
    balanced: bool = field(default=True, metadata={"help": "Draw both classes equally often."})
    padding: int = field(default=0, metadata={"help": "Numbers to carry along, to make checkpoints slow to write."})
    step_seconds: float = field(default=0.0, metadata={"help": "Seconds to wait in each step."})
    fault: str | None = field(default=None, metadata={"help": "Something to go wrong in step 5."})
    report_to: str | None = None


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
    def __init__(self, width: int, padding: int):
        super().__init__(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(36 * width, 2),
        )
        self.register_buffer("padding", torch.zeros(padding))


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
    (args,) = parse_arguments(Arguments)
    accelerator = create_accelerator(
        cpu=True,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    resume = args.resume_from_checkpoint is not None
    with (
        open_run_folder(accelerator, args.output_dir, resume=resume, overwrite=args.overwrite_output_dir) as folder,
        explained_errors(),
    ):
        train(args, accelerator, folder)


def train(args, accelerator, folder) -> None:
    set_seed(args.seed, device_specific=True)
    data = ToyData(args.seed)
    weights = 1 / torch.bincount(data.labels)[data.labels] if args.balanced else None
    sampler = EpochSampler(len(data), args.seed, weights=weights)
    loader = training_loader(data, sampler, args.train_batch_size, args.dataloader_num_workers)
    model = ToyNet(args.width, args.padding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ema, progress = EMA(model, decay=0.9), TrainingProgress()
    accelerator.register_for_checkpointing(ema, progress)

    facts = {"seed": args.seed, "train_batch_size": args.train_batch_size, "num_train_epochs": args.num_train_epochs}
    checkpoint = find_checkpoint(accelerator, folder, args.resume_from_checkpoint)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, facts=facts)
        accelerator.print(f"resumed from {checkpoint.name} at step {progress.global_step}", flush=True)
    elif args.resume_from_checkpoint:
        accelerator.print(f"{folder}: nothing to resume, starting", flush=True)
    if accelerator.is_main_process:
        save_arguments(folder / ARGUMENTS_NAME, args)
    if args.report_to:
        start_trackers(accelerator, "logs", args, step=progress.global_step)

    def save():
        limit = args.checkpoints_total_limit
        return save_checkpoint(accelerator, folder, progress.global_step, total_limit=limit, facts=facts)

    print(f"process {accelerator.process_index} of {accelerator.num_processes}", flush=True)
    with StopSignal() as stop:
        for _ in range(progress.epoch, args.num_train_epochs):
            for batch in epoch_batches(accelerator, loader, progress):
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
                    check_finite(accelerator.reduce(loss.detach(), "mean"), progress.global_step + 1)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                progress.record(loss=accelerator.gather(loss.detach()), ids=accelerator.gather(batch["id"]))
                if not accelerator.sync_gradients:
                    continue
                progress.global_step += 1
                ema.update(model)
                time.sleep(args.step_seconds)
                accelerator.print(f"step {progress.global_step}", flush=True)
                accelerator.log({"loss": loss.item()}, step=progress.global_step)
                if progress.global_step == 5:
                    break_something(args.fault, model)
                if progress.global_step % args.checkpointing_steps == 0:
                    save()
                if stop.requested(accelerator):
                    stop.exit(accelerator, f"{save().name} is written; continue with --resume_from_checkpoint latest")
            with ema.applied(model):
                value = validate(model)
                progress.update_best(value, accelerator.get_state_dict(model), greater_is_better=False)
            progress.record(validation=value)
            progress.finish_epoch()
    accelerator.end_training()

    everything = {
        "model": accelerator.get_state_dict(model),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": progress.state_dict(),
        "random": torch.get_rng_state(),
    }
    with atomic_path(folder / f"final-{accelerator.process_index}.pt") as path:
        torch.save(everything, path)
    accelerator.print("finished", flush=True)


@torch.no_grad()
def validate(model: nn.Module) -> float:
    model.eval()
    data = ToyData(seed=0)
    value = (model(data.images).softmax(1)[:, 1] * (2 * data.labels - 1)).mean().item()
    model.train()
    return value


if __name__ == "__main__":
    sys.exit(run_command(main))
