"""Train a melanoma classifier, choose its threshold on validation, open the test split once, and export it.

    accelerate launch train_classifier.py --dataset_name ham10000 --data_dir RAW --model_name_or_path resnet18 \
        --output_dir runs/r18

Everything that the run leaves in --output_dir is described in the README.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm.data
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin, set_seed

from dataset_scripts.builder import SKIPPED_NAME
from dataset_scripts.common import UserError, run_command
from dataset_scripts.splits import MANIFEST_NAME, write_manifest
from melanoma_fair_xai.classifier.calibration import (
    calibrate,
    choose_threshold,
    fit_platt,
    fit_temperature,
    parse_threshold_rule,
)
from melanoma_fair_xai.classifier.export import ClassifierInfo, export_classifier, load_classifier
from melanoma_fair_xai.classifier.models import create_classifier
from melanoma_fair_xai.classifier.predict import melanoma_scores, predict_logits, prediction_table
from melanoma_fair_xai.classifier.report import operating_metrics, plot_roc, plot_training
from melanoma_fair_xai.classifier.training import ClassifierTraining, Task
from melanoma_fair_xai.data.cache import decode_once, on_device
from melanoma_fair_xai.data.loading import UNUSABLE, ColumnNames, Records, load_records
from melanoma_fair_xai.data.targets import TARGETS, Target, apply_target
from melanoma_fair_xai.engine.arguments import parse_arguments, save_arguments
from melanoma_fair_xai.engine.files import atomic_path, write_json
from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors, resolve_precision
from melanoma_fair_xai.engine.run_folder import open_run_folder
from melanoma_fair_xai.engine.trackers import start_trackers


@dataclass
class DataArguments:
    dataset_name: str = field(
        default="phantom",
        metadata={"help": "ham10000, fitzpatrick17k, phantom, or a folder or Hub id that load_dataset reads."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the raw files (ham10000, fitzpatrick17k)."}
    )
    target: Literal[TARGETS] = field(default="melanoma_vs_rest", metadata={"help": "The question asked."})
    confirmed_by_histology: bool = field(
        default=False, metadata={"help": "Keep only records whose diagnosis was confirmed by histopathology."}
    )
    split_manifest: str | None = field(
        default=None,
        metadata={"help": "A split_manifest.csv that fixes the splits; refused if a lesion crosses them."},
    )
    max_skipped_share: float = field(
        default=0.05, metadata={"help": "The share of unusable images above which the run stops."}
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of the images in your own data set."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels in your own data set."}
    )
    positive_labels: list[str] = field(default_factory=list, metadata={"help": "Its labels that mean melanoma."})
    lesion_column_name: str | None = field(default=None, metadata={"help": "Column of the group that is never split."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images only."})


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
    drop_rate: float = field(default=0.2, metadata={"help": "Dropout before the head."})


@dataclass
class TrainingArguments:
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


def main() -> None:
    data, model_args, training = parse_arguments(DataArguments, ModelArguments, TrainingArguments)
    parse_threshold_rule(training.threshold_rule)
    set_seed(training.seed)
    with explained_errors("--train_batch_size, --eval_batch_size or --image_size"):
        accelerator = create_accelerator(
            mixed_precision=resolve_precision(training.mixed_precision),
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            log_with=None if training.report_to == "none" else training.report_to,
            project_dir=training.output_dir,
            dynamo_plugin=TorchDynamoPlugin(backend="inductor") if training.torch_compile else None,
        )
        resume = training.resume_from_checkpoint is not None
        with open_run_folder(
            accelerator, training.output_dir, resume=resume, overwrite=training.overwrite_output_dir
        ) as folder:
            run = evaluate_only if training.eval_only else train_and_evaluate
            run(accelerator, folder, data, model_args, training)


def train_and_evaluate(
    accelerator: Accelerator,
    folder: Path,
    data: DataArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
) -> None:
    records, target, labels = load_target(accelerator, data)
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
    data_config = timm.data.resolve_model_data_config(network)
    task = make_task(accelerator, data, records, target, labels, data_config)
    train_rows = task.rows("train")[: data.max_train_samples]
    check_classes(task, train_rows)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, data, model_args, training)
    start_trackers(accelerator, training.logging_dir, data, model_args, training)

    run = ClassifierTraining(accelerator, folder, network, task, train_rows, training)
    run.run()
    logits = predict(accelerator, network, task, "validation", training)
    if accelerator.is_main_process:
        info = operating_point(task, logits, training.threshold_rule, describe(data, model_args))
        export_classifier(network, folder, info)
        plot_training(run.progress.history, folder / "figures" / "training.png", title(task.records, data, model_args))
    accelerator.wait_for_everyone()
    # What is scored is what was exported, so that scores and threshold hold for whoever loads it.
    exported, info = load_classifier(folder)
    report(accelerator, folder, exported, info, task, ["validation", "test"], data, model_args, training)
    accelerator.end_training()


def evaluate_only(
    accelerator: Accelerator,
    folder: Path,
    data: DataArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
) -> None:
    network, info = load_classifier(model_args.model_name_or_path, model_args.revision)
    records, target, labels = load_target(accelerator, data, info)
    task = make_task(accelerator, data, records, target, labels, info.data_config)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, data, model_args, training)
    report(accelerator, folder, network, info, task, [training.eval_split], data, model_args, training)


def load_target(
    accelerator: Accelerator, data: DataArguments, info: ClassifierInfo | None = None
) -> tuple[Records, Target, np.ndarray]:
    """The records that take part, what is asked of them, and their labels; `info` is of a model that must fit them."""
    columns = ColumnNames(
        data.image_column_name, data.label_column_name, tuple(data.positive_labels), data.lesion_column_name
    )
    with accelerator.local_main_process_first():
        records = load_records(
            data.dataset_name,
            data.dataset_config_name,
            data.data_dir,
            columns,
            data.split_manifest,
            data.max_skipped_share,
        )
    selected = apply_target(records, data.target, data.confirmed_by_histology, info and info.label_names)
    if info and info.label_names != selected[1].label_names:
        raise UserError(
            f"--target {data.target}: the model tells {', '.join(info.label_names)} apart; "
            "give the --target that it was trained for"
        )
    return selected


def make_task(
    accelerator: Accelerator,
    data: DataArguments,
    records: Records,
    target: Target,
    labels: np.ndarray,
    data_config: dict,
) -> Task:
    """Decode the images, and set aside what cannot be."""
    with accelerator.local_main_process_first():
        cache = decode_once(records.images, data_config, show_progress=accelerator.is_local_main_process)
    records = records.without(cache.problems, data.max_skipped_share)
    task = Task(records, target, labels, on_device(cache.pixels, accelerator.device), data_config)
    counts = ", ".join(f"{name} {len(task.rows(name)):,}" for name in ("train", "validation", "test"))
    accelerator.print(f"{data.dataset_name}: {counts} images, {len(records.skipped)} skipped ({SKIPPED_NAME})")
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type} in {precision}")
    return task


def record_inputs(
    folder: Path, records: Records, data: DataArguments, model_args: ModelArguments, training: TrainingArguments
) -> None:
    """Write every setting, which image is in which split, and what could not be used."""
    # The settings first: they mark the folder as a run's, so that one killed here can be resumed or overwritten.
    save_arguments(folder / "training_args.json", data, model_args, training)
    write_manifest(records.table[records.table["split"] != UNUSABLE], str(folder / MANIFEST_NAME))
    with atomic_path(folder / SKIPPED_NAME) as path:
        records.skipped.to_csv(path, index=False)


def check_classes(task: Task, train_rows: np.ndarray) -> None:
    """UserError unless every class can be learned, and melanoma and its absence can be told apart on validation."""
    missing = set(range(len(task.target.label_names))) - set(task.labels[train_rows].tolist())
    if missing:
        raise UserError(f"the training split has no {task.target.label_names[min(missing)]}; give more data")
    positive = np.isin(task.labels[task.rows("validation")], task.target.positive)
    if len(set(positive.tolist())) < 2:
        raise UserError("the validation split has one class only, so no threshold can be chosen; give more data")


def predict(
    accelerator: Accelerator, network: torch.nn.Module, task: Task, split: str, training: TrainingArguments
) -> np.ndarray:
    """Logits of a split in full precision, as who loads the model will see them."""
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    return predict_logits(
        accelerator, network, task.pixels, task.rows(split), task.data_config, training.eval_batch_size, split
    )


def operating_point(task: Task, logits: np.ndarray, rule: str, training: dict) -> ClassifierInfo:
    """Calibration and threshold from the validation logits, and all else that config.json carries."""
    labels = task.labels[task.rows("validation")]
    if len(task.target.label_names) == 2:
        calibration = fit_platt(logits[:, 1] - logits[:, 0], labels)
    else:
        calibration = fit_temperature(logits, labels)
    scores = melanoma_scores(calibrate(logits, calibration), task.target.positive)
    return ClassifierInfo(
        label_names=task.target.label_names,
        positive_labels=[task.target.label_names[index] for index in task.target.positive],
        threshold=choose_threshold(scores, np.isin(labels, task.target.positive), rule),
        threshold_rule=rule,
        data_config=task.data_config,
        calibration=calibration,
        training=training,
    )


def report(
    accelerator: Accelerator,
    folder: Path,
    network: torch.nn.Module,
    info: ClassifierInfo,
    task: Task,
    splits: list[str],
    data: DataArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
) -> None:
    """Score the splits with the published model, write predictions, metrics and figures, and say where they are."""
    predictions = {}
    for split in splits:
        rows = task.rows(split)
        if not len(rows):
            raise UserError(f"{data.dataset_name}: no images in split {split}; choose another with --eval_split")
        logits = predict(accelerator, network, task, split, training)
        table = task.records.table.iloc[rows].reset_index(drop=True)
        predictions[split] = prediction_table(table, logits, task.labels[rows], info)
    if not accelerator.is_main_process:
        return
    (folder / "predictions").mkdir(exist_ok=True)
    for split, table in predictions.items():
        with atomic_path(folder / "predictions" / f"{split}.parquet") as path:
            table.to_parquet(path, index=False)
    values = {split: operating_metrics(table) for split, table in predictions.items()}
    write_json(
        folder / "metrics.json", {"threshold": info.threshold, "threshold_rule": info.threshold_rule, "splits": values}
    )
    plot_roc(predictions, folder / "figures" / "roc.png", title(task.records, data, model_args))
    print(summary(folder, values, info, task.records))


def describe(data: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """What the published config says of the training."""
    return {
        "dataset": data.dataset_name,
        "target": data.target,
        "confirmed_by_histology": data.confirmed_by_histology,
        "started_from": model_args.model_name_or_path,
        "pretrained": bool(model_args.pretrained or model_args.pretrained_weights),
    }


def title(records: Records, data: DataArguments, model_args: ModelArguments) -> str:
    name = "phantom data, no patients" if records.are_phantoms else data.dataset_name
    return f"{Path(model_args.model_name_or_path).name}, {data.target.replace('_', ' ')}\n({name})"


def summary(folder: Path, values: dict[str, dict], info: ClassifierInfo, records: Records) -> str:
    """What the run prints last."""
    lines = [
        f"{'split':<12}{'images':>8}{'lesions':>9}{'melanomas':>11}{'AUC':>8}{'sensitivity':>13}{'specificity':>13}"
    ]
    for split, row in values.items():
        lines.append(
            f"{split:<12}{row['n']:>8}{row['lesions']:>9}{row['melanomas']:>11}{row['roc_auc']:>8.3f}"
            f"{row['sensitivity']:>13.3f}{row['specificity']:>13.3f}"
        )
    lines += [
        f"at threshold {info.threshold:.4f} ({info.threshold_rule}, chosen on validation)",
        f"report:  {folder / 'metrics.json'}, {folder / 'predictions'}",
        f"figures: {folder / 'figures'}",
    ]
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
