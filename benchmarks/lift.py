"""What lifts a classifier, in training and at test time: each change alone, paired with the run that it changes.

    python -m benchmarks.lift runs/r18 --output_dir runs/r18-lift

A training is made again as runs/r18 was, but for the classes, which are drawn as often as they come. At test time the
logits of the eight flips and quarter turns are averaged, or the same weights see larger images (Touvron et al. 2019,
Fixing the train-test resolution discrepancy), each with a calibration and a threshold of its own. Who picks a change
should pick it by the comparison on validation, not by that on test. A training that is finished is not made again: the
same command goes on after an interruption.
"""

import argparse
import shlex
from dataclasses import fields
from pathlib import Path

import pandas as pd
import torch

from benchmarks.synthetic import train
from dataset_scripts.common import UserError, run_command
from melanoma_fair_xai.classifier.calibration import calibrate
from melanoma_fair_xai.classifier.evaluation import operating_point, predict
from melanoma_fair_xai.classifier.export import load_classifier
from melanoma_fair_xai.classifier.predict import prediction_table
from melanoma_fair_xai.classifier.task import TaskArguments, load_target, make_task
from melanoma_fair_xai.engine.arguments import command_line
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.run_folder import ARGUMENTS_NAME
from melanoma_fair_xai.fairness import compare, read_predictions
from melanoma_fair_xai.hub.card import read_json
from train_classifier import Arguments, ModelArguments, TrainingArguments

SPLITS = ("validation", "test")
TRAINED = {"classes as they come": ["--no_class_balanced_sampling"]}  # the changes that need a training
LARGER = 1.25  # times the side of the images that the run was trained on


class DihedralViews(torch.nn.Module):
    """The mean of a network's logits over the eight flips and quarter turns of square images (N, C, H, H)."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        sides = (images, images.flip(-1))
        views = [self.network(torch.rot90(side, turns, (2, 3))) for side in sides for turns in range(4)]
        return torch.stack(views).mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", help="folder of a finished run of train_classifier.py")
    parser.add_argument("--output_dir", required=True, help="folder of the trainings and the comparisons")
    parser.add_argument("--group_by", nargs="+", help="columns to report by; default: all common ones")
    arguments = parser.parse_args()
    run, folder = Path(arguments.run), Path(arguments.output_dir)
    settings = run_settings(run)
    size = load_classifier(run)[1].data_config["input_size"][-1]
    larger = int(size * LARGER)
    tables = {split: {"baseline": read_predictions(run / "predictions" / f"{split}.parquet")} for split in SPLITS}
    for name, change in TRAINED.items():
        part = folder / name.replace(" ", "-")
        if not (part / "README.md").is_file():  # the last thing that a run writes
            train([*training_flags(settings), *change], part, settings.training.seed)
        for split in SPLITS:
            tables[split][name] = read_predictions(part / "predictions" / f"{split}.parquet")
    for name, side, views in (
        (f"tested at {larger} px", larger, False),
        ("eight views", size, True),
    ):
        for split, table in scored_again(run, settings, side, views).items():
            tables[split][name] = table
    for split in SPLITS:
        comparison = compare(tables[split], arguments.group_by, show_progress=True)
        comparison.write(folder / split)
        print(f"{split}\n\n{comparison.to_markdown()}")


def run_settings(run: Path) -> Arguments:
    """What a finished run was told. UserError if it did not finish."""
    if not (run / "README.md").is_file():
        raise UserError(f"{run}: no finished run of train_classifier.py; give its folder")
    saved = read_json(run, ARGUMENTS_NAME)
    kinds = (TaskArguments, ModelArguments, TrainingArguments)
    return Arguments(
        *(kind(**{field.name: saved[field.name] for field in fields(kind) if field.name in saved}) for kind in kinds)
    )


def training_flags(settings: Arguments) -> list[str]:
    """The flags of train_classifier.py that give these settings."""
    return shlex.split(command_line("", *settings).replace("\\\n", " "))[2:]


def scored_again(run: Path, settings: Arguments, image_size: int, views: bool) -> dict[str, pd.DataFrame]:
    """The predictions tables of a run's weights by split, at another size or on all views."""
    accelerator = create_accelerator(mixed_precision="no")
    network, info = load_classifier(run)
    records, target, labels = load_target(accelerator, settings.data, info)
    config = info.data_config | {"input_size": (3, image_size, image_size)}
    task = make_task(accelerator, settings.data, records, target, labels, config)
    network = DihedralViews(network) if views else network
    logits = {split: predict(accelerator, network, task, split, settings.training.eval_batch_size) for split in SPLITS}
    info = operating_point(task, logits["validation"], info.threshold_rule, info.training)
    return {
        split: prediction_table(
            task.records.table.iloc[task.rows(split)].reset_index(drop=True),
            calibrate(logits[split], info.calibration),
            task.labels[task.rows(split)],
            info,
            task.fold,
        )
        for split in SPLITS
    }


if __name__ == "__main__":
    run_command(main)
