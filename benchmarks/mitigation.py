"""What the mitigations do on phantoms whose lesions fade on dark skin, paired, with levelling down told apart.

    python -m benchmarks.mitigation --output_dir runs/mitigation

For every seed, phantoms are drawn, split and learned anew. Differences are means over the seeds, whose spread is that
of other phantoms and other trainings; lesions of different seeds are different lesions.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import accelerate
import numpy as np
import pandas as pd
from accelerate.utils import set_seed
from scipy import stats
from tqdm.auto import tqdm

from dataset_scripts.phantom import Phantom
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import markdown_table, number
from melanoma_fair_xai.classifier.arguments import MitigationName, TaskArguments, TrainingArguments
from melanoma_fair_xai.classifier.evaluation import operating_point, predict, score
from melanoma_fair_xai.classifier.export import fold_calibration
from melanoma_fair_xai.classifier.learner import ClassifierLearner
from melanoma_fair_xai.classifier.models import create_classifier
from melanoma_fair_xai.classifier.task import load_target, make_task
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.engine.checkpoints import forget_training
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.training import Training
from melanoma_fair_xai.fairness import Validation, compare, evaluate_predictions
from melanoma_fair_xai.fairness.metrics import METRICS

MODEL, IMAGE_SIZE = "resnet10t", 32
GROUPS, SPLITS = ["fitzpatrick_group"], ("validation", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", default="runs/mitigation")
    parser.add_argument("--num_images", type=int, default=2000, help="phantoms of every seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tone_bias", type=float, default=0.8)
    arguments = parser.parse_args()
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = create_accelerator(cpu=True, mixed_precision="no")
    runs = [("no tone bias", 0.0, "none"), *((name, arguments.tone_bias, name) for name in get_args(MitigationName))]
    tables: dict[str, dict[str, list[pd.DataFrame]]] = {split: {name: [] for name, *_ in runs} for split in SPLITS}
    with tqdm(total=arguments.seeds * len(runs), desc="trainings", unit="run") as bar:
        for seed in range(arguments.seeds):
            for name, bias, mitigation in runs:
                data = draw(folder / f"phantoms-{bias:g}-{seed}", arguments.num_images, bias, seed)
                for split, table in train_and_score(accelerator, data, mitigation, seed, arguments.epochs).items():
                    own = {column: f"{seed}-" + table[column].astype(str) for column in ("image_id", "lesion_id")}
                    tables[split][name].append(table.assign(**own, seed=seed))
                bar.update()
    validation, predictions = (
        {name: pd.concat(parts, ignore_index=True) for name, parts in tables[split].items()} for split in SPLITS
    )
    for name, table in predictions.items():
        with atomic_path(folder / f"{name.replace(' ', '_')}.parquet") as path:
            table.to_parquet(path, index=False)
    for name in ("no tone bias", "none"):
        print(f"\n{name}:\n{over_seeds(predictions[name])}")
    rule = TrainingArguments().threshold_rule
    mitigated = {name: table for name, table in predictions.items() if name != "no tone bias"}
    chosen = {name: Validation(validation[name], rule) for name in mitigated}
    comparison = compare(mitigated, GROUPS, validation=chosen)
    comparison.write(folder)
    print(comparison.to_markdown())


def over_seeds(table: pd.DataFrame) -> str:
    """Values by group, and gaps to the reference, as means over the seeds with Student's 95 % intervals."""
    metrics = ("roc_auc", "sensitivity", "specificity")
    found: dict[tuple[str, str], list[float]] = {}
    for _, part in table.groupby("seed"):
        report = evaluate_predictions(part, GROUPS, metrics=metrics, n_resamples=0)
        for row in report.by_group:
            found.setdefault((row.group, METRICS[row.metric].title), []).append(row.value)
        for row in report.contrasts:
            found.setdefault((f"{row.group} − {row.reference}", METRICS[row.metric].title), []).append(row.value)
    rows = []
    for (group, title), values in found.items():
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = float(np.mean(values))
        rows.append([group, title, f"{number(mean)} [{number(mean - half)}, {number(mean + half)}]"])
    return markdown_table(["group", "metric", "mean over seeds"], rows)


def draw(folder: Path, num_images: int, tone_bias: float, seed: int) -> TaskArguments:
    """The data of a seed, drawn where they are not there yet."""
    builder = Phantom(
        num_images=num_images, image_size=IMAGE_SIZE, tone_bias=tone_bias, seed=seed, cache_dir=str(folder)
    )
    builder.download_and_prepare(str(folder / "parquet"), file_format="parquet")
    return TaskArguments(dataset_name=str(folder / "parquet"))


def train_and_score(
    accelerator: accelerate.Accelerator, data: TaskArguments, mitigation: str, seed: int, epochs: int
) -> dict[str, pd.DataFrame]:
    """Predictions of a network trained with a mitigation, calibrated and thresholded on validation, by split."""
    set_seed(seed)
    options = replace(TrainingArguments(), seed=seed, num_train_epochs=epochs, mitigation=mitigation)
    records, target, labels = load_target(accelerator, data)
    network = create_classifier(MODEL, target.label_names, pretrained=False, image_size=IMAGE_SIZE)
    task = make_task(accelerator, data, records, target, labels, Preprocessing.from_model(network))
    with tempfile.TemporaryDirectory() as folder:
        learner = ClassifierLearner(accelerator, network, task, task.rows("train"), options)
        Training(accelerator, Path(folder), learner, options).run()
    info = operating_point(
        task, predict(accelerator, network, task, "validation", options.eval_batch_size), options.threshold_rule, {}
    )
    fold_calibration(network, info.calibration)
    tables = {split: score(accelerator, network, info, task, split, options.eval_batch_size) for split in SPLITS}
    forget_training(accelerator)
    return tables


if __name__ == "__main__":
    run_command(main)
