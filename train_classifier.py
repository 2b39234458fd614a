"""Train a melanoma classifier, choose its threshold on validation, open the test split once, and export it.

    accelerate launch train_classifier.py --dataset_name ham10000 --data_dir RAW --model_name_or_path resnet18 \
        --output_dir runs/r18

Everything that the run leaves in --output_dir is described in the README.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin, set_seed

from dataset_scripts.schema import SKIPPED_NAME
from dataset_scripts.splits import MANIFEST_NAME, N_FOLDS, write_manifest
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import number
from melanoma_fair_xai.classifier.calibration import parse_threshold_rule
from melanoma_fair_xai.classifier.evaluation import operating_point, predict, results_table, score, write_predictions
from melanoma_fair_xai.classifier.export import export_classifier, load_classifier
from melanoma_fair_xai.classifier.figures import plot_roc, plot_training
from melanoma_fair_xai.classifier.mitigation import MitigationName
from melanoma_fair_xai.classifier.models import create_classifier
from melanoma_fair_xai.classifier.protocols import (
    ORIGINAL_FIGURES,
    ORIGINAL_METRICS,
    earlier_data,
    original_protocol,
)
from melanoma_fair_xai.classifier.task import Task, TaskArguments, check_classes, load_target, make_task
from melanoma_fair_xai.classifier.training import ClassifierTraining
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import UNUSABLE, Records, training_rows
from melanoma_fair_xai.engine.arguments import parse_arguments, save_arguments
from melanoma_fair_xai.engine.checkpoints import forget_training
from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors, on_main_process, resolve_precision
from melanoma_fair_xai.engine.run_folder import ARGUMENTS_NAME, LATEST, open_run_folder
from melanoma_fair_xai.engine.trackers import start_trackers
from melanoma_fair_xai.fairness import FairnessReport, compare, evaluate_predictions, read_predictions
from melanoma_fair_xai.fairness.groups import OVERALL
from melanoma_fair_xai.fairness.metrics import METRICS
from melanoma_fair_xai.fairness.rows import with_interval
from melanoma_fair_xai.hub.card import read_json
from melanoma_fair_xai.hub.classifier_card import record_classifier, write_classifier_card
from melanoma_fair_xai.hub.publish import CARD_DATA_NAME, HubArguments, check_push, push_run
from melanoma_fair_xai.hub.record import starting_point, training_facts, without_local_paths


@dataclass
class ModelArguments:
    model_name_or_path: str = field(
        default="resnet18", metadata={"help": "A timm model, or the folder or Hub id of a classifier to fine-tune."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    pretrained: bool = field(default=True, metadata={"help": "Start from timm's pretrained weights."})
    pretrained_weights: str | None = field(
        default=None, metadata={"help": "Start from this safetensors file of the same architecture."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give a fine-tuned model a new head where its labels differ."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Pixels; default: what the model was made for."})
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Channel means that --pretrained_weights want, where not timm's own."}
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "Likewise the standard deviations."})
    measure_forgetting: bool = field(
        default=False, metadata={"help": "After fine-tuning an earlier run's model, test it on that run's data, too."}
    )
    drop_rate: float = field(default=0.2, metadata={"help": "Dropout before the head."})


@dataclass
class TrainingArguments(HubArguments):
    output_dir: str = field(default="runs/classifier", metadata={"help": "The run folder."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})
    eval_only: bool = field(default=False, metadata={"help": "Score the model as it is; no training."})
    eval_split: str = field(default="test", metadata={"help": "With --eval_only: train, validation, test or all."})
    seed: int = field(default=0, metadata={"help": "Fixes weights, sample order, augmentation and dropout."})
    num_train_epochs: int = field(default=20, metadata={"help": "Epochs."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimiser steps; overrides the epochs."})
    train_batch_size: int = field(default=32, metadata={"help": "Images per process and step."})
    eval_batch_size: int = field(default=64, metadata={"help": "Images per process in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per optimiser step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler: str = field(default="cosine", metadata={"help": "As in transformers: cosine, linear, constant, ..."})
    lr_warmup_steps: int = field(default=100, metadata={"help": "Optimiser steps of linear warm-up."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW."})
    adam_weight_decay: float = field(default=0.05, metadata={"help": "AdamW; not on norms and biases."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    label_smoothing: float = field(default=0.05, metadata={"help": "Szegedy et al. 2016, section 7."})
    class_balanced_sampling: bool = field(
        default=True, metadata={"help": "Draw every class equally often in training; calibration undoes the prior."}
    )
    mitigation: MitigationName = field(
        default="none",
        metadata={"help": "What training does for groups; measure it with the fairness compare command."},
    )
    mitigation_group: str = field(
        default="fitzpatrick_group", metadata={"help": "The column whose groups the first three of them look after."}
    )
    min_crop_area: float = field(default=0.5, metadata={"help": "Least share of the image in a random crop."})
    color_jitter: float = field(default=0.2, metadata={"help": "Brightness, contrast and saturation change by this."})
    use_ema: bool = field(default=True, metadata={"help": "Average weights and batch-norm statistics (EMA)."})
    ema_max_decay: float = field(default=0.998, metadata={"help": "Decay of the EMA."})
    threshold_rule: str = field(
        default="youden", metadata={"help": "youden, sensitivity=X or specificity=X; chosen on validation."}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = field(
        default="auto", metadata={"help": "auto: as accelerate is configured, else bf16 if the hardware has it."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the training step: pays on a GPU in long runs, hardly on a CPU."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "0 is fastest: the cache needs no decoding."})
    checkpointing_steps: int | None = field(default=None, metadata={"help": "Default: once an epoch."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Keep the newest so many."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint's folder, or latest."})
    report_to: str = field(default="tensorboard", metadata={"help": "Tracker, or none."})
    logging_dir: str = field(default="logs", metadata={"help": "Folder of the tracker, in --output_dir."})


class Arguments(NamedTuple):
    data: TaskArguments
    model: ModelArguments
    training: TrainingArguments


def main() -> None:
    args = Arguments(*parse_arguments(TaskArguments, ModelArguments, TrainingArguments))
    if args.data.protocol == "original":
        args = args._replace(data=original_protocol(args.data))
    check_arguments(args)
    training = args.training
    set_seed(training.seed)
    with explained_errors("--train_batch_size, --eval_batch_size or --image_size"):
        accelerator = create_accelerator(
            mixed_precision=resolve_precision(training.mixed_precision),
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            log_with=None if training.report_to == "none" else training.report_to,
            project_dir=training.output_dir,
            dynamo_plugin=TorchDynamoPlugin(backend="inductor") if training.torch_compile else None,
        )
        if training.push_to_hub:
            on_main_process(accelerator, lambda: check_push(training))
        resume = training.resume_from_checkpoint is not None
        with open_run_folder(
            accelerator, training.output_dir, resume=resume, overwrite=training.overwrite_output_dir
        ) as folder:
            if training.eval_only:
                evaluate_only(accelerator, folder, args)
            elif args.data.cross_validation:
                cross_validate(accelerator, folder, args)
            else:
                train_and_evaluate(accelerator, folder, args)
        accelerator.end_training()
        if training.push_to_hub:
            on_main_process(accelerator, lambda: push_run(training))


def check_arguments(args: Arguments) -> None:
    """UserError for what can be seen to be wrong before anything is loaded."""
    parse_threshold_rule(args.training.threshold_rule)
    if args.data.cross_validation not in (None, N_FOLDS):
        raise UserError(f"--cross_validation {args.data.cross_validation}: there are {N_FOLDS} folds; give {N_FOLDS}")
    if args.data.cross_validation and args.training.eval_only:
        raise UserError("--cross_validation trains; give --eval_only without it")
    if args.training.push_to_hub and (args.data.cross_validation or args.training.eval_only):
        raise UserError(
            "--push_to_hub publishes one trained model; give it without --cross_validation and --eval_only"
        )
    if args.data.synthetic_dir and args.training.eval_only:
        raise UserError("--synthetic_dir: generated images are for training; give --eval_only without it")
    if args.data.cross_validation and args.training.resume_from_checkpoint not in (None, LATEST):
        raise UserError("--cross_validation goes on with --resume_from_checkpoint latest alone")


def train_and_evaluate(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    data, model_args, training = args
    records, target, labels = load_target(accelerator, data, seed=training.seed)
    network = create_classifier(
        model_args.model_name_or_path,
        target.label_names,
        pretrained=model_args.pretrained,
        pretrained_weights=model_args.pretrained_weights,
        mean=model_args.image_mean,
        std=model_args.image_std,
        image_size=model_args.image_size,
        drop_rate=model_args.drop_rate,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        revision=model_args.revision,
    )
    task = make_task(accelerator, data, records, target, labels, Preprocessing.from_model(network))
    earlier = load_earlier(accelerator, args, task) if model_args.measure_forgetting else None
    train_rows = training_rows(task.records.table, data.max_train_samples, training.seed)
    check_classes(task, train_rows)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, args)
    logs = os.path.relpath(folder / training.logging_dir, training.output_dir)
    start_trackers(accelerator, logs, data, model_args, training)

    run = ClassifierTraining(accelerator, folder, network, task, train_rows, training)
    run.run()
    logits = predict(accelerator, network, task, "validation", training.eval_batch_size)
    if accelerator.is_main_process:
        info = operating_point(task, logits, training.threshold_rule, describe(args))
        export_classifier(network, folder, info)
        plot_training(run.progress.history, folder / "figures" / "training.png", title(task.records, args))
    accelerator.wait_for_everyone()
    # What is scored is what was exported, so that scores and threshold hold for whoever loads it.
    exported, info = load_classifier(folder)
    predictions = {
        split: score(accelerator, exported, info, task, split, training.eval_batch_size)
        for split in ("validation", "test")
    }
    after = earlier and score(accelerator, exported, info, earlier, "test", training.eval_batch_size)
    if accelerator.is_main_process:
        if earlier:
            report_forgetting(folder, after, args)
        facts = training_facts(len(train_rows), len(task.rows("train")), run.images_seen, network)
        report(folder, predictions, task.records, args, facts)


def load_earlier(accelerator: Accelerator, args: Arguments, task: Task) -> Task:
    """The data of the run whose model is fine-tuned, as the new model will see them."""
    data = earlier_data(args.model.model_name_or_path, args.data)
    records, target, labels = load_target(accelerator, data)
    if target.label_names != task.target.label_names:
        raise UserError(
            f"--measure_forgetting: {args.model.model_name_or_path} was trained for --target {data.target}"
        )
    return make_task(accelerator, data, records, target, labels, task.preprocessing)


def evaluate_only(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    network, info = load_classifier(args.model.model_name_or_path, args.model.revision)
    records, target, labels = load_target(accelerator, args.data, info)
    task = make_task(accelerator, args.data, records, target, labels, info.preprocessing)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, args)
    split = args.training.eval_split
    predictions = {split: score(accelerator, network, info, task, split, args.training.eval_batch_size)}
    if accelerator.is_main_process:
        report(folder, predictions, task.records, args)


def cross_validate(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    """Train in `fold-k/` on every fold, then report on all images, each scored by the model that had not seen it."""
    records, _, _ = load_target(accelerator, args.data)
    if accelerator.is_main_process:
        save_arguments(folder / ARGUMENTS_NAME, *args)
    for fold in range(N_FOLDS):
        part = folder / f"fold-{fold}"
        if on_main_process(accelerator, (part / "README.md").is_file):
            continue
        accelerator.print(f"fold {fold} of {N_FOLDS}")
        on_main_process(accelerator, lambda part=part: part.mkdir(exist_ok=True))
        # Whether the earlier folds were trained just now or before an interruption must not matter.
        set_seed(args.training.seed)
        data = replace(args.data, fold=f"{fold}/{N_FOLDS}", cross_validation=None)
        train_and_evaluate(accelerator, part, args._replace(data=data))
        forget_training(accelerator)
    if accelerator.is_main_process:
        predictions = {
            split: read_predictions(
                *(folder / f"fold-{fold}" / "predictions" / f"{split}.parquet" for fold in range(N_FOLDS))
            )
            for split in ("validation", "test")
        }
        records = replace(records, table=records.table.assign(split="test"))  # all of them, fold by fold
        report(folder, predictions, records, args, all_folds(folder))


def all_folds(folder: Path) -> dict[str, Any]:
    """What a cross-validation's card says of its trainings: those of one fold, and whether any was a smoke run."""
    parts = [read_json(folder / f"fold-{fold}", CARD_DATA_NAME)["training"] for fold in range(N_FOLDS)]
    return {**parts[0], "smoke": any(part["smoke"] for part in parts)}


def record_inputs(folder: Path, records: Records, args: Arguments) -> None:
    """Write every setting, which image is in which split, and what could not be used."""
    # The settings first: they mark the folder as a run's, so that one killed here can be resumed or overwritten.
    save_arguments(folder / ARGUMENTS_NAME, *args)
    write_manifest(records.table[records.table["split"] != UNUSABLE], str(folder / MANIFEST_NAME))
    with atomic_path(folder / SKIPPED_NAME) as path:
        records.skipped.to_csv(path, index=False)


def report(
    folder: Path,
    predictions: dict[str, pd.DataFrame],
    records: Records,
    args: Arguments,
    training: dict[str, Any] | None = None,
) -> None:
    """Write predictions, metrics, figures and the report by group of the last split, and say where they are.

    With `training`, as `training_facts` gives it, the card, too.
    """
    write_predictions(folder, predictions)
    split, table = list(predictions.items())[-1]
    if not args.data.cross_validation:
        plot_roc(predictions, folder / "figures" / "roc.png", title(records, args))
    fairness = evaluate_predictions(table, args.data.group_by or None, show_progress=True)
    name = title(records, args).replace("\n", " ")
    fairness.write(folder, name, show_progress=True)
    if training:
        model = args.model
        start = starting_point(model.model_name_or_path, model.pretrained, model.pretrained_weights, model.revision)
        folds = args.data.cross_validation or 0
        record_classifier(folder, name, predictions, records, training, start, folds, args)
        write_classifier_card(folder)  # last: a folder with a card is whole
    print(summary(folder, split, table, fairness, records, args))


def describe(args: Arguments) -> dict[str, Any]:
    """What the published config says of the training."""
    data, model = map(without_local_paths, args[:2])
    return {
        "dataset": data.dataset_name,
        "target": args.data.target,
        "fold": args.data.fold,
        "confirmed_by_histology": args.data.confirmed_by_histology,
        "started_from": model.model_name_or_path,
        "pretrained": bool(args.model.pretrained or args.model.pretrained_weights),
    }


def title(records: Records, args: Arguments) -> str:
    name = "phantom data, no patients" if records.are_phantoms else without_local_paths(args.data).dataset_name
    return f"{Path(args.model.model_name_or_path).name}, {args.data.target.replace('_', ' ')}\n({name})"


def report_forgetting(folder: Path, after: pd.DataFrame, args: Arguments) -> None:
    """Compare the earlier model with the new one on the earlier test split, each at its own threshold."""
    with atomic_path(folder / "predictions" / "earlier_test.parquet") as path:
        path.parent.mkdir(exist_ok=True)
        after.to_parquet(path, index=False)
    comparison = compare({"before": read_predictions(args.model.model_name_or_path), "after fine-tuning": after})
    comparison.write(folder / "forgetting")
    print(f"on the earlier data: {folder / 'forgetting' / 'comparison.md'}")
    for row in comparison.differences:
        if row.group_column == OVERALL and METRICS[row.metric].tested:
            print(f"  {METRICS[row.metric].title} {number(row.baseline_value)} before; change {with_interval(row)}")


def summary(
    folder: Path, split: str, table: pd.DataFrame, fairness: FairnessReport, records: Records, args: Arguments
) -> str:
    """What the run prints last."""
    original = args.data.protocol == "original"
    thresholds = ", ".join(f"{threshold:.4f}" for threshold in table["threshold"].drop_duplicates())
    lines = [
        f"{split}{' over all folds' if args.data.cross_validation else ''}, with 95 % intervals:",
        results_table(fairness, *(("fitzpatrick", ORIGINAL_METRICS) if original else (fairness.primary,))),
        *([ORIGINAL_FIGURES] if original else []),
        f"at threshold {thresholds} (chosen on validation)",
        f"report:  {folder / 'fairness.md'}, {folder / 'metrics.json'}",
        f"figures: {folder / 'figures'}",
    ]
    if not args.training.eval_only:
        lines.append(f"card:    {folder / 'README.md'}")
    if (folder / "config.json").is_file():
        lines.append(f'model:   {folder}  (timm.create_model("local-dir:{folder}", pretrained=True))')
    if records.are_phantoms:
        lines += [
            "These are phantoms, drawn lesions: the figures say nothing about patients. Next, on real data:",
            "  accelerate launch train_classifier.py --dataset_name ham10000 --data_dir HAM10000_FOLDER \\",
            "      --model_name_or_path resnet18 --output_dir runs/ham10000",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
