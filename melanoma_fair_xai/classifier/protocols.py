"""What a run can be asked as a whole: the original study's protocol, and forgetting of an earlier data set."""

import json
from dataclasses import fields, replace
from pathlib import Path

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.arguments import TaskArguments
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME

ORIGINAL_METRICS = ("roc_auc", "sensitivity", "balanced_accuracy")
ORIGINAL_FIGURES = """\
The original study reported for type IV a ROC AUC, sensitivity and balanced accuracy of .9923, 1.0000 and .9500
(ResNet-18) and of .9485, .9231 and .9115 (ResNet-50), without counts. All six fit 13 melanomas and 100 benign images;
the exact 95 % intervals of 13 and of 12 of 13 are .753 to 1 and .640 to .998."""


def original_protocol(data: TaskArguments) -> TaskArguments:
    """`data` as the original study had it: Fitzpatrick17k's labels that contain melanoma or nevus, melanoma against
    nevus, a fifth of each skin type for testing, results by type.

    Near-identical images stay together, and a quarter of the training images validate, as everywhere here: the study
    states neither. Raises UserError for another configuration of Fitzpatrick17k.
    """
    name = "fitzpatrick17k" if data.dataset_name == "phantom" else data.dataset_name
    if name == "fitzpatrick17k" and data.dataset_config_name not in (None, "original"):
        raise UserError(f"--dataset_config_name {data.dataset_config_name}: --protocol original has original")
    return replace(data, dataset_name=name, target="melanoma_vs_nevus", group_by=["fitzpatrick"])


def earlier_data(model_folder: str, data: TaskArguments) -> TaskArguments:
    """The data arguments of the run that left a model in `model_folder`; `data` gives their type.

    Raises UserError for a folder in which no run has left its arguments.
    """
    path = Path(model_folder) / ARGUMENTS_NAME
    if not path.is_file():
        raise UserError(
            f"--measure_forgetting: {path} is not there; --model_name_or_path must be the folder of an earlier run"
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    return type(data)(**{field.name: saved[field.name] for field in fields(data) if field.name in saved})
