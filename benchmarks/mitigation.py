"""What the mitigations do on phantoms whose lesions fade on dark skin, paired, with levelling down told apart.

    python -m benchmarks.mitigation --output_dir runs/mitigation

For every seed, phantoms are drawn, split and learned anew; the test predictions of all seeds are then compared
together, lesions of different seeds being different lesions and AUC counting pairs within a seed.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import accelerate
import pandas as pd
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from dataset_scripts.phantom import Phantom
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.classifier.arguments import MitigationName, TaskArguments, TrainingArguments
from melanoma_fair_xai.classifier.evaluation import operating_point, predict, results_table, score
from melanoma_fair_xai.classifier.export import fold_calibration
from melanoma_fair_xai.classifier.learner import ClassifierLearner
from melanoma_fair_xai.classifier.models import create_classifier
from melanoma_fair_xai.classifier.task import load_target, make_task
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.engine.checkpoints import forget_training
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.training import Training
from melanoma_fair_xai.fairness import compare, evaluate_predictions

MODEL, IMAGE_SIZE = "resnet10t", 32
GROUPS = ["fitzpatrick_group"]


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
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name, _, _ in runs}
    with tqdm(total=arguments.seeds * len(runs), desc="trainings", unit="run") as bar:
        for seed in range(arguments.seeds):
            for name, bias, mitigation in runs:
                data = draw(folder / f"phantoms-{bias:g}-{seed}", arguments.num_images, bias, seed)
                table = train_and_score(accelerator, data, mitigation, seed, arguments.epochs)
                tables[name].append(table.assign(fold=seed))
                bar.update()
    predictions = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    for name, table in predictions.items():
        with atomic_path(folder / f"{name.replace(' ', '_')}.parquet") as path:
            table.to_parquet(path, index=False)
    for name in ("no tone bias", "none"):
        report = evaluate_predictions(predictions[name], GROUPS)
        print(f"\n{name}:\n{results_table(report, report.primary)}")
        for contrast in report.contrasts:
            if contrast.p == contrast.p:
                print(
                    f"{contrast.group} - {contrast.reference}, {contrast.metric}: {contrast.value:.3f} "
                    f"[{contrast.low:.3f}, {contrast.high:.3f}], p (Holm) {contrast.p_holm:.4f}"
                )
    comparison = compare({name: table for name, table in predictions.items() if name != "no tone bias"}, GROUPS)
    comparison.write(folder)
    print(comparison.to_markdown())


def draw(folder: Path, num_images: int, tone_bias: float, seed: int) -> TaskArguments:
    """The data of a seed, drawn where they are not there yet."""
    builder = Phantom(
        num_images=num_images, image_size=IMAGE_SIZE, tone_bias=tone_bias, seed=seed, cache_dir=str(folder)
    )
    builder.download_and_prepare(str(folder / "parquet"), file_format="parquet")
    return TaskArguments(dataset_name=str(folder / "parquet"))


def train_and_score(
    accelerator: accelerate.Accelerator, data: TaskArguments, mitigation: str, seed: int, epochs: int
) -> pd.DataFrame:
    """Test predictions of a network trained with a mitigation, calibrated and thresholded on validation."""
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
    table = score(accelerator, network, info, task, "test", options.eval_batch_size)
    forget_training(accelerator)
    return table


if __name__ == "__main__":
    run_command(main)
