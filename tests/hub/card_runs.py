"""Run folders as trainings leave them, as far as cards need them, in a second."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import torch

from melanoma_fair_xai.classifier import arguments as classifier
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion import arguments as diffusion
from melanoma_fair_xai.fairness import FairnessReport, evaluate_predictions
from melanoma_fair_xai.hub.classifier_card import record_classifier, write_classifier_card
from melanoma_fair_xai.hub.generator_card import record_generator
from melanoma_fair_xai.hub.record import starting_point, training_facts


def make_predictions(types: list[str], n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n)],
            "lesion_id": [f"lesion{i}" for i in range(n)],
            "label": labels,
            "score": np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0, 1),
            "fold": 0,
            "threshold": 0.5,
            "fitzpatrick": rng.choice(types, n),
            "sex": np.where(np.arange(n) < 15, "male", "female"),
            "age": 50.0,
            "source": "clinic",
        }
    )


def write_results(folder: Path, types: list[str] = (), table: pd.DataFrame | None = None) -> FairnessReport:
    """Leave in a folder all that a run's card is made of, but for what `record_classifier` writes."""
    folder.mkdir()
    groups = None if table is None else ["sex"]
    report = evaluate_predictions(make_predictions(types) if table is None else table, groups, n_resamples=100)
    report.write(folder)
    point = {"positive_labels": ["melanoma"], "threshold": 0.51234, "rule": "youden"}
    config = {"label_names": ["benign", "melanoma"], "operating_point": point, "architecture": "resnet18"}
    config |= {"pretrained_cfg": {"input_size": [3, 64, 64]}, "calibration": {"slope": 2.0, "intercept": -0.5}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"threshold": 0.51234}))
    return report


def write_card(
    folder: Path,
    name: str = "ham10000",
    types: tuple[str, ...] = ("I", "II", "VI"),
    source: str = "clinic",
    images_seen: int = 8000,
    start: dict | None = None,
    table: pd.DataFrame | None = None,
) -> Path:
    """Record what the card of `write_results` lacks, as at the end of a training, and write it; returns the folder."""
    table = make_predictions(list(types)) if table is None else table
    columns = table[["image_id", "lesion_id", "fitzpatrick", "sex", "age"]]
    columns = columns.assign(melanoma=table["label"], split="test", source=source, localization="back", diagnosis="x")
    others = [columns.head(40).assign(split=name) for name in ("train", "validation")]
    columns = pd.concat([*others, columns], ignore_index=True)
    records = Records(name, datasets.Dataset.from_dict({}), columns, pd.DataFrame())
    training = training_facts(1000, 1000, images_seen, torch.nn.Linear(3, 2))
    start = start or starting_point("resnet18", False, None)
    settings = (
        classifier.TaskArguments(dataset_name=name, data_dir="/home/somebody/raw"),
        classifier.ModelArguments(image_size=64, pretrained_weights="../somewhere/w.safetensors"),
        classifier.TrainingArguments(output_dir="/home/somebody/runs/r18", seed=3, num_train_epochs=8),
    )
    tables = {"validation": make_predictions(list(types), 300), "test": table}
    record_classifier(folder, "resnet18, melanoma vs rest", tables, records, training, start, 0, settings)
    write_classifier_card(folder)
    return folder


def write_generator(folder: Path, images_seen: int = 96000) -> None:
    """Leave a generator's run folder, as far as its card is made of it, without the card."""
    counts = {"diagnosis": {"nv": 300, "mel": 40, "df": 0}, "sex": {"female": 200, "male": 140}, "age": {"50": 340}}
    vocabularies = {name: list(counts[name]) for name in ("diagnosis", "sex")}
    history = [{"step": step, "error_t0-199": 0.9, "error_t200-399": 0.25 * step} for step in (1, 2)]
    files = {
        "conditioner/config.json": {"counts": counts, "vocabularies": vocabularies},
        "unet/config.json": {},
        "scheduler/scheduler_config.json": {"prediction_type": "v_prediction"},
        "metrics.json": {"steps": 2, "history": history},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    (folder / "samples").mkdir()
    PIL.Image.new("RGB", (4, 4)).save(folder / "samples" / "step-000002.png")
    table = make_predictions(["unknown"], 340)[["image_id", "lesion_id", "fitzpatrick", "sex", "age", "label"]]
    table = table.rename(columns={"label": "melanoma"}).assign(source="clinic", localization="back", diagnosis="nv")
    records = Records("ham10000", datasets.Dataset.from_dict({}), table.assign(split="train"), pd.DataFrame())
    training = training_facts(340, 340, images_seen, torch.nn.Linear(3, 2))
    settings = (
        diffusion.ConditionArguments(dataset_name="ham10000"),
        diffusion.ModelArguments(preset="64-small"),
        diffusion.TrainingArguments(output_dir="runs/generator", learning_rate=1e-3),
    )
    diffusion.apply_preset(*settings[1:])
    record_generator(folder, records, training, 50, settings)
