"""The flags of train_classifier.py."""

from dataclasses import dataclass
from typing import Literal

from melanoma_fair_xai.base.flags import flag, with_default
from melanoma_fair_xai.data.arguments import DataArguments
from melanoma_fair_xai.engine.options import TrainingOptions
from melanoma_fair_xai.fairness.threshold_rules import parse_threshold_rule

TargetName = Literal["melanoma_vs_rest", "melanoma_vs_nevus", "diagnosis"]
MitigationName = Literal["none", "group_sampling", "reweighting", "group_dro", "ita_augmentation"]


@dataclass
class TaskArguments(DataArguments):
    """What is learnt or tested, and on what data."""

    protocol: Literal["standard", "original"] = flag(
        "standard",
        "original: Fitzpatrick17k, melanoma against nevus, by skin type, as in the first study.",
        shown=False,
    )
    target: TargetName = flag("melanoma_vs_rest", "The question asked.", shown=False)
    confirmed_by_histology: bool = flag(
        False, "Keep only records whose diagnosis was confirmed by histopathology.", shown=False
    )
    fold: Literal["0/5", "1/5", "2/5", "3/5", "4/5"] = flag(
        "0/5", "The fold to test on; the next one validates. 0/5 is the data set's own test split.", shown=False
    )
    cross_validation: Literal[5] | None = flag(
        None, "5: train and test on every fold, and report on all images together.", shown=False
    )
    group_by: list[str] = flag(
        [], 'Columns to report by, such as sex or "fitzpatrick*sex"; default: all common ones.', shown=False
    )
    max_train_samples: int | None = flag(None, "Train on so many real images, drawn by --seed.", low=1)
    synthetic_dir: str | None = flag(
        None, "Add images that generate.py wrote to the training split, and to no other.", shown=False
    )
    synthetic_ratio: float = flag(1.0, "So many of them for each real training image.", above=0, shown=False)


@dataclass
class ModelArguments:
    model_name_or_path: str = flag("resnet18", "A timm model, or the folder or Hub id of a classifier to fine-tune.")
    revision: str | None = flag(None, "Revision of the model on the Hub.", shown=False)
    pretrained: bool = flag(True, "Start from timm's pretrained weights.", shown=False)
    pretrained_weights: str | None = flag(
        None, "Start from this safetensors file of the same architecture.", shown=False
    )
    ignore_mismatched_sizes: bool = flag(
        False, "Give a fine-tuned model a new head where its labels differ.", shown=False
    )
    image_size: int | None = flag(None, "Pixels; default: what the model was made for.", low=8)
    image_mean: list[float] | None = flag(
        None,
        "Channel means that --pretrained_weights want, where not timm's own.",
        low=0,
        high=1,
        count=3,
        shown=False,
    )
    image_std: list[float] | None = flag(None, "Likewise the standard deviations.", above=0, count=3, shown=False)
    measure_forgetting: bool = flag(
        False, "After fine-tuning an earlier run's model, test it on that run's data, too.", shown=False
    )
    drop_rate: float = flag(0.2, "Dropout before the head.", low=0, below=1)


@dataclass
class TrainingArguments(TrainingOptions):
    output_dir: str = with_default(TrainingOptions, "output_dir", "runs/classifier")
    eval_only: bool = flag(False, "Score the model as it is; no training.", shown=False)
    eval_split: str = flag("test", "With --eval_only: what is scored.", shown=False)
    num_train_epochs: int = flag(20, "Epochs, unless --max_train_steps is given.", low=1)
    label_smoothing: float = flag(0.05, "Szegedy et al. 2016, section 7.", low=0, below=1)
    mitigation: MitigationName = flag(
        "none", "What training does for groups; measure it with the fairness compare command."
    )
    mitigation_group: str = flag("fitzpatrick_group", "The column whose groups the first three of them look after.")
    min_crop_area: float = flag(0.5, "Least share of the image in a random crop.", above=0, high=1)
    color_jitter: float = flag(0.2, "Brightness, contrast and saturation change by this.", low=0, high=1)
    rotation: float = flag(0.0, "Turns beyond the quarter turns by up to so many degrees.", low=0, high=180)
    erasing: float = flag(0.0, "Probability that a square of the image is painted over.", low=0, high=1)
    mixup_alpha: float = flag(0.0, "Mix images in pairs: the Beta distribution's parameter; 0 mixes none.", low=0)
    layer_decay: float = flag(
        1.0, "Each block below the head learns at this share of the rate above.", above=0, high=1
    )
    ema_max_decay: float | None = with_default(TrainingOptions, "ema_max_decay", 0.998)
    threshold_rule: str = flag(
        "youden",
        "youden, sensitivity=X or specificity=X; chosen on validation.",
        check=parse_threshold_rule,
        shown=False,
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.max_train_steps or self.num_train_epochs * steps_per_epoch
