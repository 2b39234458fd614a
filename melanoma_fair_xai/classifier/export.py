"""The published form of a classifier: config.json and model.safetensors, which timm and transformers both load."""

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX, WEIGHTS_DIGESTS, atomic_path, file_digest, write_json
from melanoma_fair_xai.classifier.calibration import Calibration
from melanoma_fair_xai.classifier.models import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    build_saved,
    find_classifier,
    last_layer,
    read_config,
)
from melanoma_fair_xai.data.images import Preprocessing


@dataclass(frozen=True)
class ClassifierInfo:
    """What travels in config.json beside the weights.

    Attributes:
        label_names: the classes in the order of the logits.
        positive_labels: the classes whose summed softmax probability is the score.
        threshold: an image is called positive where score >= threshold.
        threshold_rule: how the threshold was chosen on validation, such as `youden`.
        preprocessing: how images become its input.
        calibration: what was folded into the last layer; the weights give calibrated scores already.
        training: whatever else is worth knowing (target, data set, versions), as JSON values.
    """

    label_names: list[str]
    positive_labels: list[str]
    threshold: float
    threshold_rule: str
    preprocessing: Preprocessing
    calibration: Calibration = Calibration()
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def positive(self) -> list[int]:
        """The indices of the positive labels among the logits."""
        return [self.label_names.index(name) for name in self.positive_labels]


@torch.no_grad()
def fold_calibration(model: nn.Module, calibration: Calibration, positive: int = 1) -> None:
    """Change the last layer so that the model's logits become `calibrate(logits, calibration, positive)`.

    Raises UserError for a last layer that is not linear.
    """
    layer = last_layer(model)
    layer.weight.mul_(calibration.slope)
    layer.bias.mul_(calibration.slope)
    layer.bias[positive] += calibration.intercept


def export_classifier(model: nn.Module, output_dir: str | Path, info: ClassifierInfo) -> None:
    """Write config.json and model.safetensors, with the calibration folded in, to a folder that may hold other files.

    The folder, or a Hub repository with its two files, loads with equal logits through
    `timm.create_model("local-dir:DIR" or "hf-hub:ID", pretrained=True)`, through transformers'
    `AutoModelForImageClassification.from_pretrained` and `AutoImageProcessor.from_pretrained`, and through
    `pipeline("image-classification")`. The model, which may be parallel, compiled or channels_last, is left as it is.

    Raises UserError if the last layer cannot hold the calibration.
    """
    network = copy.deepcopy(unwrap_model(model)).cpu().float().to(memory_format=torch.contiguous_format)
    fold_calibration(network, info.calibration, info.positive[0])
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=PARTIAL_PREFIX) as folder:
        save_for_hf(network, folder, model_config={"label_names": info.label_names}, safe_serialization=True)
        config = json.loads(Path(folder, CONFIG_NAME).read_text(encoding="utf-8"))
        config[WEIGHTS_DIGESTS] = {WEIGHTS_NAME: file_digest(Path(folder, WEIGHTS_NAME))}
        # safetensors lets only the owner read its files.
        shutil.copymode(Path(folder, CONFIG_NAME), Path(folder, WEIGHTS_NAME))
        with atomic_path(Path(output_dir, WEIGHTS_NAME)) as weights:
            os.replace(Path(folder, WEIGHTS_NAME), weights)
    write_json(Path(output_dir, CONFIG_NAME), _published_config(config, info))  # last: a folder with one is whole


def _published_config(config: dict[str, Any], info: ClassifierInfo) -> dict[str, Any]:
    """timm's config with our pre-processing and operating point, and without the source checkpoint's particulars."""
    source = config["pretrained_cfg"]
    model_args = dict(config.get("model_args", {}))
    model_args.pop("num_classes", None)  # transformers passes it too, and Python refuses it twice
    if source.get("fixed_input_size"):
        model_args["img_size"] = info.preprocessing.input_size[1:]
    structure = ("num_classes", "fixed_input_size", "first_conv", "classifier")
    return {
        **config,
        "model_args": model_args,
        "pretrained_cfg": {
            **{key: source[key] for key in structure if key in source},
            **info.preprocessing.to_timm(),
            "pool_size": None,
        },
        "operating_point": {
            "positive_labels": info.positive_labels,
            "threshold": info.threshold,
            "rule": info.threshold_rule,
        },
        "calibration": {"slope": info.calibration.slope, "intercept": info.calibration.intercept, "folded": True},
        "training": info.training,
    }


def load_classifier(folder_or_id: str | Path, revision: str | None = None) -> tuple[nn.Module, ClassifierInfo]:
    """An exported classifier from a folder or Hub id, in evaluation mode on the CPU, and what its config says.

    Raises UserError for a folder or id that is not one, and for a damaged config or damaged weights.
    """
    folder = find_classifier(str(folder_or_id), revision)
    config = read_config(folder)
    info = _read_info(config, folder / CONFIG_NAME)
    return build_saved(folder, len(info.label_names)).eval(), info


def _read_info(config: Mapping[str, Any], path: Path) -> ClassifierInfo:
    try:
        point, calibration = config["operating_point"], config["calibration"]
        info = ClassifierInfo(
            label_names=list(config["label_names"]),
            positive_labels=list(point["positive_labels"]),
            threshold=float(point["threshold"]),
            threshold_rule=str(point["rule"]),
            preprocessing=Preprocessing.from_config(config, path),
            calibration=Calibration(float(calibration["slope"]), float(calibration["intercept"])),
            training=dict(config.get("training", {})),
        )
    except KeyError as error:
        raise UserError(f"{path}: no {error.args[0]}: not written by train_classifier.py") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not as train_classifier.py writes it ({error})") from None
    unknown = sorted(set(info.positive_labels) - set(info.label_names))
    if unknown or not info.positive_labels or not math.isfinite(info.threshold):
        problem = f"positive label {unknown[0]} is not among its labels" if unknown else "no usable operating point"
        raise UserError(f"{path}: {problem}")
    return info
