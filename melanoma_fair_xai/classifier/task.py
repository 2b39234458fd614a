"""What a model is to learn or to be tested on: records, target, labels and pixels, loaded and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from dataset_scripts.schema import SKIPPED_NAME
from dataset_scripts.splits import parse_fold
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.arguments import TaskArguments
from melanoma_fair_xai.classifier.export import ClassifierInfo
from melanoma_fair_xai.data.cache import decode_once, on_device
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import METADATA_COLUMNS, Records, add_synthetic, load_synthetic
from melanoma_fair_xai.data.targets import Target, apply_target
from melanoma_fair_xai.engine.launch import once_per_machine
from melanoma_fair_xai.fairness.groups import DERIVED, group_columns


@dataclass
class Task:
    """The data as a model sees them: row i of `records` has pixels[i] (uint8 H, W, 3), labels[i] and its split.

    `pixels` are a memory map, or a tensor in the memory of a GPU (see `data.cache.on_device`); `content` is a digest
    of the images that they were made of; `fold` is the one that its split test holds.
    """

    records: Records
    target: Target
    labels: np.ndarray
    pixels: np.ndarray | torch.Tensor
    preprocessing: Preprocessing
    content: str
    fold: int = 0

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split; of train, validation and test together for `all`."""
        splits = ["train", "validation", "test"] if split == "all" else [split]
        return np.flatnonzero(self.records.table["split"].isin(splits))


def load_target(
    accelerator: Accelerator, data: TaskArguments, info: ClassifierInfo | None = None, seed: int = 0
) -> tuple[Records, Target, np.ndarray]:
    """The records that take part, what is asked of them, and their labels; `info` is of a model that must fit them.

    Generated images join the train split of the fold; `seed` draws them.
    """
    fold = parse_fold(data.fold)

    def load() -> Records:
        records = data.load(own_columns(data.group_by)).for_fold(fold)
        if not data.synthetic_dir:
            return records
        synthetic = load_synthetic(data.synthetic_dir, records)
        return add_synthetic(records, synthetic, data.synthetic_ratio, seed, data.max_train_samples)

    records = once_per_machine(accelerator, load)
    group_columns(records.table, data.group_by)
    selected = apply_target(records, data.target, data.confirmed_by_histology, info and info.label_names)
    if info and info.label_names != selected[1].label_names:
        raise UserError(
            f"--target {data.target}: the model tells {', '.join(info.label_names)} apart; "
            "give the --target that it was trained for"
        )
    return selected


def own_columns(group_by: Sequence[str]) -> tuple[str, ...]:
    """The columns of a user's own data set that `--group_by` names, beyond those that every data set has."""
    parts = dict.fromkeys(part.strip() for name in group_by for part in name.split("*"))
    return tuple(part for part in parts if part not in METADATA_COLUMNS and part not in DERIVED)


def make_task(
    accelerator: Accelerator,
    data: TaskArguments,
    records: Records,
    target: Target,
    labels: np.ndarray,
    preprocessing: Preprocessing,
) -> Task:
    """Decode the images, and set aside what cannot be."""
    cache = once_per_machine(accelerator, lambda: decode_once(records.images, preprocessing))
    records = records.without(cache.problems, data.max_skipped_share)
    pixels = on_device(cache.pixels, accelerator.device)
    task = Task(records, target, labels, pixels, preprocessing, cache.content, parse_fold(data.fold))
    counts = ", ".join(f"{name} {len(task.rows(name)):,}" for name in ("train", "validation", "test"))
    accelerator.print(f"{data.dataset_name}: {counts} images, {len(records.skipped)} skipped ({SKIPPED_NAME})")
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type} in {precision}")
    return task


def check_classes(task: Task, train_rows: np.ndarray) -> None:
    """UserError unless every class can be learned, and melanoma and its absence can be told apart on validation."""
    missing = set(range(len(task.target.label_names))) - set(task.labels[train_rows].tolist())
    if missing:
        raise UserError(f"the training split has no {task.target.label_names[min(missing)]}; give more data")
    positive = np.isin(task.labels[task.rows("validation")], task.target.positive)
    if len(set(positive.tolist())) < 2:
        raise UserError("the validation split has one class only, so no threshold can be chosen; give more data")
