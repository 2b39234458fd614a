"""Train a generator of lesions, conditioned on what is known of them, and export it as a pipeline anyone can load.

    accelerate launch train_diffusion.py --dataset_name ham10000 --data_dir RAW --resolution 256 \
        --output_dir runs/diffusion
    accelerate launch train_diffusion.py --resume_from_checkpoint latest

Everything that the run leaves in --output_dir is described in the README.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.diffusion.arguments import (
    PRESETS,
    ConditionArguments,
    ModelArguments,
    TrainingArguments,
    apply_preset,
)
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME, parse_arguments, save_arguments
from melanoma_fair_xai.hub.arguments import HubArguments

# All else is imported where it is used, so that --help and wrong flags answer at once.
if TYPE_CHECKING:
    import diffusers
    import numpy as np
    from accelerate import Accelerator

    from melanoma_fair_xai.data.loading import Records
    from melanoma_fair_xai.diffusion.learner import ConditionedImages
    from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner
    from melanoma_fair_xai.engine.shares import Shares

MEMORY_FLAGS = "--train_batch_size, --eval_batch_size or --resolution, or use --gradient_checkpointing"


class Arguments(NamedTuple):
    data: ConditionArguments
    model: ModelArguments
    training: TrainingArguments
    hub: HubArguments


def main() -> None:
    args = Arguments(*parse_arguments(ConditionArguments, ModelArguments, TrainingArguments, HubArguments))
    apply_preset(args.model, args.training)
    if args.training.dry_run:
        dry_run(args)
        return
    from melanoma_fair_xai.hub.run import published_run

    with published_run(args.training, args.hub, MEMORY_FLAGS) as run:
        train_and_export(*run, args)


def train_and_export(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    from melanoma_fair_xai.base.files import write_json
    from melanoma_fair_xai.diffusion.export import export_pipeline
    from melanoma_fair_xai.diffusion.learner import DiffusionLearner
    from melanoma_fair_xai.diffusion.process import make_noise_scheduler
    from melanoma_fair_xai.engine.training import Training
    from melanoma_fair_xai.hub.generator_card import record_generator, write_generator_card
    from melanoma_fair_xai.hub.record import training_facts

    data, model_args, training, _ = args
    images, train_rows = load_images(accelerator, args)
    check_rows(images, train_rows)
    unet, conditioner = make_networks(images, model_args)
    noise_scheduler = make_noise_scheduler(model_args.prediction_type, model_args.beta_schedule)
    learner = DiffusionLearner(
        accelerator, folder, unet, conditioner, noise_scheduler, images, train_rows, training, model_args.haar_levels
    )
    run = Training(accelerator, folder, learner, training, data, model_args)
    if accelerator.is_main_process:
        # The settings first: they mark the folder as a run's, so that one killed here can be resumed or overwritten.
        save_arguments(folder / ARGUMENTS_NAME, *args)
        images.records.write(folder)
    accelerator.print(describe(accelerator, unet, conditioner, args, len(train_rows), run.shares))
    rate = run.run()
    if accelerator.is_main_process:
        export_pipeline(learner.pipeline, folder)
        write_json(folder / "metrics.json", {"steps": run.progress.global_step, "history": run.progress.history})
        facts = training_facts(len(train_rows), len(images.rows("train")), run.images_seen, unet, conditioner)
        held_out = min(len(images.rows("validation")), training.validation_images)
        record_generator(folder, images.records, facts, held_out, args)
        write_generator_card(folder)  # last: a folder with a card is whole
        print(summary(folder, rate, images.records))


def dry_run(args: Arguments) -> None:
    """Everything that is known before the first image is decoded."""
    import numpy as np

    from melanoma_fair_xai.data.loading import training_rows
    from melanoma_fair_xai.diffusion.data import find_conditions
    from melanoma_fair_xai.diffusion.learner import ConditionedImages
    from melanoma_fair_xai.diffusion.networks import training_rate
    from melanoma_fair_xai.engine.launch import start_accelerator
    from melanoma_fair_xai.engine.shares import Shares

    data, model_args, training, _ = args
    accelerator = start_accelerator(training)
    records = load_records(accelerator, data)
    rows = training_rows(records.table, data.max_train_samples, training.seed)
    conditions = find_conditions(records.table.iloc[rows], data.conditions, data.dataset_name)
    unet, conditioner = make_networks(ConditionedImages(records, np.empty(0), conditions, content=""), model_args)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    shares = Shares(accelerator.num_processes, training.train_batch_size, training.gradient_accumulation_steps)
    accelerator.print(describe(accelerator, unet, conditioner, args, len(rows), shares))
    rate = training_rate(unet.to(accelerator.device), training.train_batch_size, accelerator)
    hours = training.max_train_steps * training.gradient_accumulation_steps * training.train_batch_size / rate / 3600
    accelerator.print(f"about {hours:,.1f} hours at {rate:,.1f} images/s, as a step of the UNet alone goes here now")


def load_records(accelerator: Accelerator, data: ConditionArguments) -> Records:
    """The records, their diagnoses as --diagnosis_labels says."""
    from melanoma_fair_xai.engine.launch import once_per_machine

    records = once_per_machine(accelerator, lambda: data.load(own_columns=data.conditions))
    if data.diagnosis_labels == "melanoma":
        records.table["diagnosis"] = records.table["melanoma"].map({0: "benign", 1: "melanoma"})
    return records


def load_images(accelerator: Accelerator, args: Arguments) -> tuple[ConditionedImages, np.ndarray]:
    """Decode the images, set aside what cannot be, and find conditions in the rest; and the rows to train on."""
    from melanoma_fair_xai.data.cache import decode_once
    from melanoma_fair_xai.data.loading import training_rows
    from melanoma_fair_xai.diffusion.data import centre_square, find_conditions
    from melanoma_fair_xai.diffusion.learner import ConditionedImages
    from melanoma_fair_xai.engine.launch import once_per_machine

    data = args.data
    records = load_records(accelerator, data)
    cache = once_per_machine(accelerator, lambda: decode_once(records.images, centre_square(args.model.resolution)))
    records = records.without(cache.problems, data.max_skipped_share)
    rows = training_rows(records.table, data.max_train_samples, args.training.seed)
    conditions = find_conditions(records.table.iloc[rows], data.conditions, data.dataset_name)
    return ConditionedImages(records, cache.pixels, conditions, cache.content), rows


def check_rows(images: ConditionedImages, train_rows: np.ndarray) -> None:
    """UserError unless there is something to train on, and to hold out."""
    if not len(train_rows):
        raise UserError(f"{images.records.name}: the train split has no images")
    if not len(images.rows("validation")):
        raise UserError(f"{images.records.name}: the validation split has no images, so no loss can be held out")


def make_networks(
    images: ConditionedImages, model_args: ModelArguments
) -> tuple[diffusers.UNet2DModel, LesionConditioner]:
    from melanoma_fair_xai.diffusion.networks import create_networks

    return create_networks(
        images.conditions,
        resolution=model_args.resolution,
        block_out_channels=model_args.block_out_channels,
        layers_per_block=model_args.layers_per_block,
        attention_resolutions=model_args.attention_resolutions,
        haar_levels=model_args.haar_levels,
        dropout=model_args.dropout,
    )


def describe(
    accelerator: Accelerator,
    unet: diffusers.UNet2DModel,
    conditioner: LesionConditioner,
    args: Arguments,
    images: int,
    shares: Shares,
) -> str:
    """What will be trained, on what, and what it takes."""
    from melanoma_fair_xai.diffusion.networks import count_parameters, forward_flops, training_memory

    data, model_args, training, _ = args
    settings = {name: getattr(model_args, name, getattr(training, name, None)) for name in PRESETS[model_args.preset]}
    steps_per_epoch = max(images // shares.images_per_pass, 1) / shares.passes
    fixed, saved = training_memory(unet, shares.images, accelerator.mixed_precision == "bf16")
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return "\n".join(
        [
            f"preset {model_args.preset}: " + ", ".join(f"{name} {value}" for name, value in settings.items()),
            f"{data.dataset_name}: {images:,} training images, {steps_per_epoch:,.0f} steps per epoch, "
            f"{training.max_train_steps / steps_per_epoch:,.1f} epochs",
            *(f"  {name}: {conditioner.seen(name)}" for name in conditioner.names),
            f"parameters: UNet {count_parameters(unet):,}, conditioner {count_parameters(conditioner):,}; "
            f"{forward_flops(unet) / 1e9:.1f} GFLOP an image forward",
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
