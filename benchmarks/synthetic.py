"""Do generated lesions help a classifier? Real images alone, oversampled, and with generated ones, at equal steps.

    python generate.py --model_name_or_path runs/diffusion --like ham10000 --data_dir RAW --balance melanoma \
        --num_images 8000 --reject_copies ham10000 --output_dir synthetic
    python -m benchmarks.synthetic --output_dir runs/synthetic-study --synthetic_dir synthetic \
        --dataset_name ham10000 --data_dir RAW --model_name_or_path resnet18 --no_pretrained --image_size 64

Every arm trains with every seed for the same number of optimiser steps, and its test predictions are compared with
those of real images alone, paired by lesion, overall and by group: images count once, and the intervals are for
another training and another choice of the threshold, too. A run that is finished is not trained again: the
same command goes on after an interruption. Flags that are not listed by --help go to train_classifier.py as they are.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.fairness import Validation, compare, read_predictions, read_validation

REPOSITORY = Path(__file__).resolve().parents[1]


def arms(synthetic_dir: str) -> dict[str, list[str]]:
    """The flags of train_classifier.py that tell the arms apart, the baseline first."""
    mixed = ["--no_class_balanced_sampling", "--synthetic_dir", synthetic_dir, "--synthetic_ratio"]
    return {
        "real": ["--no_class_balanced_sampling"],
        "oversampled": ["--class_balanced_sampling"],
        "synthetic-0.5": [*mixed, "0.5"],
        "synthetic-1": [*mixed, "1"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--synthetic_dir", required=True, help="folder that generate.py wrote")
    parser.add_argument("--output_dir", default="runs/synthetic-study", help="folder of all runs and the comparison")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every arm")
    parser.add_argument("--max_train_steps", type=int, default=1000, help="optimiser steps of every training")
    parser.add_argument("--group_by", nargs="+", help="columns to report by; default: all common ones")
    arguments, training_flags = parser.parse_known_args()
    folder = Path(arguments.output_dir)
    choices = arms(arguments.synthetic_dir)
    with tqdm(total=arguments.seeds * len(choices), desc="trainings", unit="run") as bar:
        for seed in range(arguments.seeds):
            for name, flags in choices.items():
                run = folder / f"{name}-{seed}"
                if not (run / "README.md").is_file():  # the last thing that a run writes
                    steps = ["--max_train_steps", str(arguments.max_train_steps)]
                    train([*training_flags, *flags, *steps], run, seed)
                bar.update()
    tables, validation = {}, {}
    for name in choices:
        runs = {seed: folder / f"{name}-{seed}" for seed in range(arguments.seeds)}
        tables[name] = pd.concat([read_predictions(run).assign(seed=seed) for seed, run in runs.items()])
        known = {seed: read_validation(run) for seed, run in runs.items()}
        scored = pd.concat([one.table.assign(seed=seed) for seed, one in known.items()])
        validation[name] = Validation(scored, known[0].rule)
    comparison = compare(tables, arguments.group_by, validation=validation, show_progress=True)
    comparison.write(folder)
    print(comparison.to_markdown())
    print(f"report: {folder / 'comparison.md'}")


def train(flags: list[str], run: Path, seed: int) -> None:
    """One training, gone on with where it was interrupted. UserError if it fails; it has said why."""
    command = [sys.executable, str(REPOSITORY / "train_classifier.py"), *flags, "--seed", str(seed)]
    done = subprocess.run([*command, "--output_dir", str(run), "--resume_from_checkpoint", "latest"])
    if done.returncode:
        raise UserError(f"{run}: the training ended with exit code {done.returncode}; run the same command to go on")


if __name__ == "__main__":
    run_command(main)
