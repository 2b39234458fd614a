"""Run folders as trainings leave them, as far as cards need them, in a second."""

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch

from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.fairness import FairnessReport, evaluate_predictions
from melanoma_fair_xai.hub.classifier_card import record_classifier, write_classifier_card
from melanoma_fair_xai.hub.record import starting_point, training_facts


@dataclasses.dataclass
class Settings:
    """What train_classifier.py's arguments are to a card; `output_dir` and `data_dir` as absolute paths."""

    dataset_name: str = "ham10000"
    data_dir: str = "/home/somebody/raw"
    target: str = "melanoma_vs_rest"
    confirmed_by_histology: bool = False
    max_train_samples: int | None = None
    model_name_or_path: str = "resnet18"
    pretrained_weights: str | None = None
    image_size: int | None = 64
    drop_rate: float = 0.2
    output_dir: str = "/home/somebody/runs/r18"
    seed: int = 3
    num_train_epochs: int = 8
    max_train_steps: int | None = None
    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 100
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.05
    class_balanced_sampling: bool = True
    mitigation: str = "none"
    mitigation_group: str = "fitzpatrick_group"
    min_crop_area: float = 0.5
    color_jitter: float = 0.2
    use_ema: bool = True
    ema_max_decay: float = 0.998
    mixed_precision: str = "auto"


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
        }
    )


def write_results(folder: Path, types: list[str]) -> FairnessReport:
    """Leave in a folder all that a run's card is made of, but for what `record_classifier` writes."""
    folder.mkdir()
    report = evaluate_predictions(make_predictions(types), n_resamples=100)
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
) -> Path:
    """Record what the card of `write_results` lacks, as at the end of a training, and write it; returns the folder."""
    table = make_predictions(list(types))
    columns = table[["image_id", "lesion_id", "fitzpatrick", "sex", "age"]]
    columns = columns.assign(melanoma=table["label"], split="test", source=source, localization="back", diagnosis="x")
    records = Records(name, datasets.Dataset.from_dict({}), columns, pd.DataFrame())
    training = training_facts(1000, 1000, images_seen, torch.nn.Linear(3, 2))
    start = start or starting_point("resnet18", False, None)
    settings = (Settings(dataset_name=name),)
    record_classifier(folder, "resnet18, melanoma vs rest", "test", table, records, training, start, 0, settings)
    write_classifier_card(folder)
    return folder
