"""The flags of train_diffusion.py, and the presets that fill in what no flag has set."""

from dataclasses import dataclass
from typing import Literal

from melanoma_fair_xai.base.flags import flag, with_default
from melanoma_fair_xai.data.arguments import DataArguments
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.engine.options import TrainingOptions

# Of the presets whose UNet sees 64 x 64 Haar bands.
BANDS = {"attention_resolutions": [8], "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
BANDS |= {"max_train_steps": 50_000}
SMALL = {"block_out_channels": [64, 96, 128, 192], "layers_per_block": 1, "dropout": 0.0, **BANDS}
SMALL |= {"train_batch_size": 16, "learning_rate": 4e-4}
BASE = {"block_out_channels": [64, 128, 192, 256], "layers_per_block": 2, "dropout": 0.1, **BANDS}
BASE |= {"train_batch_size": 64, "learning_rate": 3e-4}
LARGE = {**BASE, "block_out_channels": [128, 256, 384], "attention_resolutions": [16]}

# What each preset sets, unless a flag says otherwise. 32-tiny and 64-small see pixels and are for a CPU and an hour or
# two; of the others, small is for a CPU and a day or two, base and large for a GPU and some hours.
PRESETS = {
    "32-tiny": {
        "resolution": 32,
        "haar_levels": 0,
        "block_out_channels": [32, 64, 96],
        "layers_per_block": 1,
        "attention_resolutions": [8],
        "dropout": 0.0,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "train_batch_size": 16,
        "learning_rate": 8e-4,
        "max_train_steps": 3000,
    },
    "64-small": {
        "resolution": 64,
        "haar_levels": 0,
        "block_out_channels": [16, 48, 96, 128],
        "layers_per_block": 1,
        "attention_resolutions": [8],
        "dropout": 0.0,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "train_batch_size": 16,
        "learning_rate": 8e-4,
        "max_train_steps": 5000,
    },
    "128-small": {"resolution": 128, "haar_levels": 1, **SMALL},
    "128-base": {"resolution": 128, "haar_levels": 1, **BASE},
    "256-small": {"resolution": 256, "haar_levels": 2, **SMALL},
    "256-base": {"resolution": 256, "haar_levels": 2, **BASE},
    "256-large": {"resolution": 256, "haar_levels": 2, **LARGE},
}


# Of generate.py, by the name of their class in diffusers.
SAMPLERS = {
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
}


@dataclass
class ConditionArguments(DataArguments):
    """What is learnt of which data."""

    conditions: list[Literal[tuple(CONDITIONS)]] = flag([], "Default: all that the data set knows.", shown=False)
    diagnosis_labels: Literal["diagnosis", "melanoma"] = flag(
        "diagnosis", "Condition on the data set's own diagnoses, or on melanoma or not.", shown=False
    )
    max_train_samples: int | None = flag(None, "Train on so many images, drawn by --seed.", low=1)


@dataclass
class ModelArguments:
    """What is None here, and in TrainingArguments, comes from the preset."""

    preset: Literal[tuple(PRESETS)] | None = flag(None, "Default: by --resolution, else 64-small.")
    resolution: int | None = flag(None, "Pixels; default: the preset's.", low=1)
    haar_levels: int | None = flag(
        None,
        "The UNet sees the bands of so many levels of a Haar transform, each of which halves the resolution.",
        low=0,
    )
    block_out_channels: list[int] | None = flag(
        None, "Channels of the UNet, by level; each level but the first halves the resolution.", low=1
    )
    layers_per_block: int | None = flag(None, "Residual layers in each level.", low=1)
    attention_resolutions: list[int] | None = flag(None, "Levels of these resolutions attend.", low=1)
    dropout: float | None = flag(None, "Of the UNet's residual layers.", low=0, below=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = flag(None, "As in diffusers.")
    prediction_type: Literal["v_prediction", "sample", "epsilon"] | None = flag(
        None,
        "With v_prediction and sample the noise schedule ends without signal (zero terminal SNR).",
        shown=False,
    )


@dataclass
class TrainingArguments(TrainingOptions):
    output_dir: str = with_default(TrainingOptions, "output_dir", "runs/diffusion")
    dry_run: bool = flag(False, "Print settings, parameters, memory and steps per epoch, and stop.", shown=False)
    train_batch_size: int | None = with_default(TrainingOptions, "train_batch_size", None)
    eval_batch_size: int = with_default(TrainingOptions, "eval_batch_size", 32)
    gradient_checkpointing: bool = flag(False, "Less memory, a third more computing.", shown=False)
    learning_rate: float | None = with_default(TrainingOptions, "learning_rate", None)
    lr_warmup_steps: int = with_default(TrainingOptions, "lr_warmup_steps", 200)
    adam_beta2: float = with_default(TrainingOptions, "adam_beta2", 0.99)
    adam_weight_decay: float = with_default(TrainingOptions, "adam_weight_decay", 0.01)
    snr_gamma: float | None = flag(5.0, "Min-SNR weighting of the loss (Hang et al. 2023), on SNR + 1.", above=0)
    condition_dropout: float = flag(
        0.5, "Share of images of which a random part of the conditions is hidden.", low=0, high=1
    )
    unconditional_share: float = flag(0.1, "Share of images of which all are hidden.", low=0, high=1)
    class_balanced_sampling: bool = flag(False, "Draw every diagnosis equally often; unknown then means that mixture.")
    validation_steps: int | None = with_default(TrainingOptions, "validation_steps", 500)
    validation_images: int = flag(250, "Held-out images for the losses.", low=1, shown=False)
    num_inference_steps: int = flag(25, "Steps of DPM-Solver++ for the sheet.", low=1, shown=False)
    checkpointing_steps: int | None = with_default(TrainingOptions, "checkpointing_steps", 500)


def choose_preset(preset: str | None, resolution: int | None) -> str:
    """The preset asked for, or else the first one of at least this resolution; without one, 64-small."""
    if preset is not None:
        return preset
    fitting = [name for name, values in PRESETS.items() if values["resolution"] >= (resolution or 64)]
    return fitting[0] if fitting else list(PRESETS)[-1]


def apply_preset(model: ModelArguments, training: TrainingArguments) -> None:
    """Fill in what no flag has set."""
    model.preset = choose_preset(model.preset, model.resolution)
    for name, value in PRESETS[model.preset].items():
        holder = model if hasattr(model, name) else training
        if getattr(holder, name) is None:
            setattr(holder, name, value)
