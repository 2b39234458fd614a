"""What lifts a classifier at test time: each change alone, paired with the run as it was.

    python -m benchmarks.lift runs/r18 --output_dir runs/r18-lift

The logits of the eight flips and quarter turns are averaged, or the same weights see larger images (Touvron et al.
2019, Fixing the train-test resolution discrepancy), each with a calibration and a threshold of its own. Who picks a
change should pick it by the comparison on validation, not by that on test.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import torch

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.classifier.arguments import TaskArguments
from melanoma_fair_xai.classifier.calibration import calibrate
from melanoma_fair_xai.classifier.evaluation import operating_point, predict
from melanoma_fair_xai.classifier.export import load_classifier
from melanoma_fair_xai.classifier.predict import prediction_table
from melanoma_fair_xai.classifier.task import load_target, make_task
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.fairness import Validation, compare, read_predictions
from melanoma_fair_xai.hub.card import read_json

SPLITS, BATCH_SIZE = ("validation", "test"), 64
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
    parser.add_argument("--output_dir", required=True, help="folder of the comparisons, by split")
    parser.add_argument("--group_by", nargs="+", help="columns to report by; default: all common ones")
    arguments = parser.parse_args()
    run, folder = Path(arguments.run), Path(arguments.output_dir)
    tables = {split: {"baseline": read_predictions(run / "predictions" / f"{split}.parquet")} for split in SPLITS}
    info = load_classifier(run)[1]
    size = info.preprocessing.input_size[-1]
    larger = int(size * LARGER)
    for name, side, views in ((f"tested at {larger} px", larger, False), ("eight views", size, True)):
        for split, table in scored_again(run, side, views).items():
            tables[split][name] = table
    chosen = {name: Validation(table, info.threshold_rule) for name, table in tables["validation"].items()}
    for split in SPLITS:
        # On validation itself the thresholds are those that were chosen on these images.
        comparison = compare(
            tables[split], arguments.group_by, show_progress=True, validation=chosen if split == "test" else None
        )
        comparison.write(folder / split)
        print(f"{split}\n\n{comparison.to_markdown()}")


def run_data(run: Path) -> TaskArguments:
    """The data that a finished run was given. UserError if it did not finish."""
    if not (run / "README.md").is_file():  # the last thing that a run writes
        raise UserError(f"{run}: no finished run of train_classifier.py; give its folder")
    saved = read_json(run, ARGUMENTS_NAME)
    return TaskArguments(**{field.name: saved[field.name] for field in fields(TaskArguments)})


def scored_again(run: Path, image_size: int, views: bool) -> dict[str, pd.DataFrame]:
    """The predictions tables of a run's weights by split, at another size or on all views."""
    accelerator, data = create_accelerator(mixed_precision="no"), run_data(run)
    network, info = load_classifier(run)
    records, target, labels = load_target(accelerator, data, info)
    preprocessing = replace(info.preprocessing, input_size=(3, image_size, image_size))
    task = make_task(accelerator, data, records, target, labels, preprocessing)
    network = DihedralViews(network) if views else network
    logits = {split: predict(accelerator, network, task, split, BATCH_SIZE) for split in SPLITS}
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
