"""Train a generator of lesions, conditioned on what is known of them, and export it as a pipeline anyone can load.

    accelerate launch train_diffusion.py --dataset_name ham10000 --data_dir RAW --resolution 256 \
        --output_dir runs/diffusion
    accelerate launch train_diffusion.py --resume_from_checkpoint latest

Everything that the run leaves in --output_dir is described in the README.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import diffusers
import numpy as np
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin, set_seed

from dataset_scripts.schema import SKIPPED_NAME
from dataset_scripts.splits import MANIFEST_NAME, write_manifest
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.files import atomic_path, write_json
from melanoma_fair_xai.data.arguments import DataArguments
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.loading import UNUSABLE, Records, training_rows
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.diffusion.data import find_conditions, pixel_config
from melanoma_fair_xai.diffusion.export import export_pipeline
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner
from melanoma_fair_xai.diffusion.networks import (
    PRESETS,
    choose_preset,
    count_parameters,
    create_networks,
    training_memory,
)
from melanoma_fair_xai.diffusion.process import PREDICTION_TYPES, make_noise_scheduler
from melanoma_fair_xai.diffusion.training import DiffusionTraining, Task
from melanoma_fair_xai.engine.arguments import parse_arguments, save_arguments
from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors, on_main_process, resolve_precision
from melanoma_fair_xai.engine.run_folder import open_run_folder
from melanoma_fair_xai.engine.trackers import start_trackers
from melanoma_fair_xai.hub.generator_card import record_generator, write_generator_card
from melanoma_fair_xai.hub.publish import HubArguments, check_push, push_run
from melanoma_fair_xai.hub.record import training_facts


@dataclass
class ConditionArguments(DataArguments):
    """What is learnt of which data."""

    conditions: list[str] = field(
        default_factory=list,
        metadata={"help": f"Of {', '.join(CONDITIONS)}; default: all that the data set knows."},
    )
    diagnosis_labels: Literal["diagnosis", "melanoma"] = field(
        default="diagnosis", metadata={"help": "Condition on the data set's own diagnoses, or on melanoma or not."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images, drawn by --seed."})


@dataclass
class ModelArguments:
    """What is None here, and in TrainingArguments, comes from the preset."""

    preset: str | None = field(
        default=None, metadata={"help": f"{', '.join(PRESETS)}; default: by --resolution, else 64-small."}
    )
    resolution: int | None = field(default=None, metadata={"help": "Pixels; default: the preset's."})
    block_out_channels: list[int] | None = field(
        default=None, metadata={"help": "Channels of the UNet, by level; each level halves the resolution."}
    )
    layers_per_block: int | None = field(default=None, metadata={"help": "Residual layers in each level."})
    attention_resolutions: list[int] | None = field(
        default=None, metadata={"help": "Levels of these resolutions attend."}
    )
    beta_schedule: str | None = field(
        default=None, metadata={"help": "As in diffusers: linear, scaled_linear or squaredcos_cap_v2."}
    )
    prediction_type: Literal[PREDICTION_TYPES] = field(
        default="v_prediction",
        metadata={"help": "With v_prediction and sample the noise schedule ends without signal (zero terminal SNR)."},
    )


@dataclass
class TrainingArguments(HubArguments):
    output_dir: str = field(default="runs/diffusion", metadata={"help": "The run folder."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})
    dry_run: bool = field(
        default=False, metadata={"help": "Print settings, parameters, memory and steps per epoch, and stop."}
    )
    seed: int = field(default=0, metadata={"help": "Fixes weights, sample order, noise, timesteps and dropout."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimiser steps."})
    train_batch_size: int | None = field(default=None, metadata={"help": "Images per process and step."})
    eval_batch_size: int = field(default=32, metadata={"help": "Images per process in validation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per optimiser step."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory, a third more computing."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the networks: pays on a GPU in long runs."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler: str = field(default="cosine", metadata={"help": "As in transformers: cosine, linear, constant, ..."})
    lr_warmup_steps: int = field(default=200, metadata={"help": "Optimiser steps of linear warm-up."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW."})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW."})
    adam_weight_decay: float = field(default=0.01, metadata={"help": "AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    snr_gamma: float | None = field(
        default=5.0, metadata={"help": "Min-SNR weighting of the loss (Hang et al. 2023), on SNR + 1."}
    )
    condition_dropout: float = field(
        default=0.5, metadata={"help": "Share of images of which a random part of the conditions is hidden."}
    )
    unconditional_share: float = field(default=0.1, metadata={"help": "Share of images of which all are hidden."})
    class_balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw every diagnosis equally often; unknown then means that mixture."}
    )
    use_ema: bool = field(default=True, metadata={"help": "Average the weights of both networks (EMA)."})
    ema_max_decay: float | None = field(
        default=None, metadata={"help": "Decay of the EMA; default: a horizon of a twentieth of the run's steps."}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = field(
        default="auto", metadata={"help": "auto: as accelerate is configured, else bf16 if the hardware has it."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "0 is fastest on CPUs."})
    validation_steps: int = field(default=500, metadata={"help": "Held-out losses and a sheet of samples so often."})
    validation_images: int = field(default=250, metadata={"help": "Held-out images for the losses."})
    num_inference_steps: int = field(default=25, metadata={"help": "Steps of DPM-Solver++ for the sheet."})
    checkpointing_steps: int = field(default=500, metadata={"help": "A checkpoint so often."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Keep the newest so many."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint's folder, or latest."})
    report_to: str = field(default="tensorboard", metadata={"help": "Tracker, or none."})
    logging_dir: str = field(default="logs", metadata={"help": "Folder of the tracker, in --output_dir."})


def main() -> None:
    data, model_args, training = parse_arguments(ConditionArguments, ModelArguments, TrainingArguments)
    apply_preset(model_args, training)
    set_seed(training.seed)
    with explained_errors("--train_batch_size, --eval_batch_size or --resolution, or use --gradient_checkpointing"):
        accelerator = create_accelerator(
            mixed_precision=resolve_precision(training.mixed_precision),
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            log_with=None if training.report_to == "none" else training.report_to,
            project_dir=training.output_dir,
            dynamo_plugin=TorchDynamoPlugin(backend="inductor") if training.torch_compile else None,
        )
        if training.dry_run:
            dry_run(accelerator, data, model_args, training)
            return
        if training.push_to_hub:
            on_main_process(accelerator, lambda: check_push(training))
        resume = training.resume_from_checkpoint is not None
        with open_run_folder(
            accelerator, training.output_dir, resume=resume, overwrite=training.overwrite_output_dir
        ) as folder:
            train_and_export(accelerator, folder, data, model_args, training)
        if training.push_to_hub:
            on_main_process(accelerator, lambda: push_run(training))


def apply_preset(model_args: ModelArguments, training: TrainingArguments) -> None:
    """Fill in what no flag has set."""
    model_args.preset = choose_preset(model_args.preset, model_args.resolution)
    for name, value in PRESETS[model_args.preset].items():
        holder = model_args if hasattr(model_args, name) else training
        if getattr(holder, name) is None:
            setattr(holder, name, value)


def train_and_export(
    accelerator: Accelerator,
    folder: Path,
    data: ConditionArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
) -> None:
    records = load(accelerator, data)
    task, train_rows = make_task(accelerator, records, data, model_args.resolution, training.seed)
    check_rows(task, train_rows)
    unet, conditioner = make_networks(task, model_args)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, data, model_args, training)
    accelerator.print(describe(accelerator, unet, conditioner, data, model_args, training, len(train_rows)))
    start_trackers(accelerator, training.logging_dir, data, model_args, training)

    noise_scheduler = make_noise_scheduler(model_args.prediction_type, model_args.beta_schedule)
    run = DiffusionTraining(accelerator, folder, unet, conditioner, noise_scheduler, task, train_rows, training)
    rate = run.run()
    if accelerator.is_main_process:
        export_pipeline(run.pipeline, folder)
        write_json(folder / "metrics.json", {"steps": run.progress.global_step, "history": run.progress.history})
        facts = training_facts(len(train_rows), len(task.rows("train")), run.images_seen, unet, conditioner)
        held_out = min(len(task.rows("validation")), training.validation_images)
        record_generator(folder, task.records, facts, held_out, (data, model_args, training))
        write_generator_card(folder)  # last: a folder with a card is whole
        print(summary(folder, rate, task.records))
    accelerator.end_training()


def dry_run(
    accelerator: Accelerator, data: ConditionArguments, model_args: ModelArguments, training: TrainingArguments
) -> None:
    """Everything that is known before the first image is decoded."""
    records = load(accelerator, data)
    rows = training_rows(records.table, data.max_train_samples, training.seed)
    task = Task(records, np.empty(0), find_conditions(records.table.iloc[rows], data.conditions, data.dataset_name))
    unet, conditioner = make_networks(task, model_args)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    accelerator.print(describe(accelerator, unet, conditioner, data, model_args, training, len(rows)))


def load(accelerator: Accelerator, data: ConditionArguments) -> Records:
    with accelerator.local_main_process_first():
        records = data.load(own_columns=[name for name in data.conditions if name in CONDITIONS])
    if data.diagnosis_labels == "melanoma":
        names = np.array(["benign", "melanoma"])
        records.table["diagnosis"] = names[records.table["melanoma"].to_numpy(dtype=int)]
    return records


def make_task(
    accelerator: Accelerator, records: Records, data: ConditionArguments, resolution: int, seed: int
) -> tuple[Task, np.ndarray]:
    """Decode the images, set aside what cannot be, and find conditions in the rest; and the rows to train on."""
    with accelerator.local_main_process_first():
        cache = decode_once(records.images, pixel_config(resolution), show_progress=accelerator.is_local_main_process)
    records = records.without(cache.problems, data.max_skipped_share)
    rows = training_rows(records.table, data.max_train_samples, seed)
    conditions = find_conditions(records.table.iloc[rows], data.conditions, data.dataset_name)
    return Task(records, cache.pixels, conditions), rows


def check_rows(task: Task, train_rows: np.ndarray) -> None:
    if not len(train_rows):
        raise UserError(f"{task.records.name}: the train split has no images")
    if not len(task.rows("validation")):
        raise UserError(f"{task.records.name}: the validation split has no images, so no loss can be held out")


def make_networks(task: Task, model_args: ModelArguments) -> tuple[diffusers.UNet2DModel, LesionConditioner]:
    return create_networks(
        task.conditions,
        resolution=model_args.resolution,
        block_out_channels=model_args.block_out_channels,
        layers_per_block=model_args.layers_per_block,
        attention_resolutions=model_args.attention_resolutions,
    )


def record_inputs(
    folder: Path, records: Records, data: ConditionArguments, model_args: ModelArguments, training: TrainingArguments
) -> None:
    """Write every setting, which image is in which split, and what could not be used."""
    # The settings first: they mark the folder as a run's, so that one killed here can be resumed or overwritten.
    save_arguments(folder / "training_args.json", data, model_args, training)
    write_manifest(records.table[records.table["split"] != UNUSABLE], str(folder / MANIFEST_NAME))
    with atomic_path(folder / SKIPPED_NAME) as path:
        records.skipped.to_csv(path, index=False)


def describe(
    accelerator: Accelerator,
    unet: diffusers.UNet2DModel,
    conditioner: LesionConditioner,
    data: ConditionArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
    images: int,
) -> str:
    """What will be trained, on what, and what it takes."""
    settings = {name: getattr(model_args, name, getattr(training, name, None)) for name in PRESETS[model_args.preset]}
    batch = training.train_batch_size * accelerator.num_processes
    steps_per_epoch = max(images // batch, 1) / training.gradient_accumulation_steps
    fixed, saved = training_memory(unet, training.train_batch_size, accelerator.mixed_precision == "bf16")
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return "\n".join(
        [
            f"preset {model_args.preset}: " + ", ".join(f"{name} {value}" for name, value in settings.items()),
            f"{data.dataset_name}: {images:,} training images, {steps_per_epoch:,.0f} steps per epoch, "
            f"{training.max_train_steps / steps_per_epoch:,.1f} epochs",
            *(f"  {name}: {conditioner.seen(name)}" for name in conditioner.names),
            f"parameters: UNet {count_parameters(unet):,}, conditioner {count_parameters(conditioner):,}",
            f"memory, at least: {fixed / 2**30:.1f} GiB for weights and optimiser, {saved / 2**30:.1f} GiB in a step",
            f"{accelerator.num_processes} process(es) on {accelerator.device.type} in {precision}",
        ]
    )


def summary(folder: Path, rate: float, records: Records) -> str:
    """What the run prints last."""
    lines = [
        f"trained at {rate:.1f} images/s, validation included",
        f"samples: {sorted((folder / 'samples').glob('step-*.png'))[-1]}",
        f"report:  {folder / 'metrics.json'}",
        f"card:    {folder / 'README.md'}",
        f'model:   {folder}  (DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True))',
    ]
    if records.are_phantoms:
        lines += [
            "These are phantoms, drawn lesions: the samples say nothing about patients. Next, on real data:",
            "  accelerate launch train_diffusion.py --dataset_name ham10000 --data_dir HAM10000_FOLDER \\",
            "      --preset 64-small --output_dir runs/ham10000-diffusion",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
