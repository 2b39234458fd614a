"""What a generator can do on the way: held-out loss by timestep, and a sheet of samples for fixed conditions."""

import itertools
from pathlib import Path

import accelerate
import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object, send_to_device
from matplotlib.figure import Figure

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.images import open_image
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.base.tables import figure_text
from melanoma_fair_xai.diffusion.data import Conditions, scale
from melanoma_fair_xai.diffusion.pipeline_lesion import LesionPipeline, to_bands
from melanoma_fair_xai.diffusion.process import band_errors, training_target

BANDS = 5  # of timesteps
REPEATS = 4  # rows of a sheet, where no skin type is known


@torch.no_grad()
def held_out_losses(
    accelerator: accelerate.Accelerator,
    pipeline: LesionPipeline,
    noise_alphas: torch.Tensor,
    pixels: np.ndarray,
    encoded: dict[str, np.ndarray],
    *,
    seed: int,
    batch_size: int,
) -> list[float]:
    """Mean squared error of the prediction by band of timesteps, from little noise to all of it; NaN for no images.

    Image i has the same noise and timestep, in band i % BANDS, whenever it is asked. The processes share the images.

    Args:
        noise_alphas: alphas_cumprod of the training schedule (T,).
        pixels: uint8 (N, H, W, 3). encoded: their conditions.
    """
    device, width = accelerator.device, len(noise_alphas) / BANDS
    prediction_type, scales = pipeline.scheduler.config.prediction_type, pipeline.config.band_scales
    sums = torch.zeros(2, BANDS, dtype=torch.float64, device=device)
    mine = np.arange(accelerator.process_index, len(pixels), accelerator.num_processes)
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        generators = [sample_generator(seed, "validation", int(number)) for number in numbers]
        timesteps = torch.tensor(
            [int((number % BANDS + rng.uniform()) * width) for number, rng in zip(numbers, generators, strict=True)]
        ).to(device)
        bands = to_bands(scale(torch.from_numpy(pixels[numbers]).to(device)), scales)
        noise = np.stack([rng.standard_normal(bands.shape[1:], dtype=np.float32) for rng in generators])
        noisy, target = training_target(
            bands, torch.from_numpy(noise).to(device), noise_alphas[timesteps], prediction_type
        )
        conditions = {name: torch.from_numpy(values[numbers]).to(device) for name, values in encoded.items()}
        with accelerator.autocast():
            output = pipeline.unet(noisy, timesteps, pipeline.conditioner(conditions)).sample
        errors = band_errors(output.float(), target, scales).double()
        places = torch.from_numpy(numbers % BANDS).to(device)
        sums[0].index_add_(0, places, errors)
        sums[1].index_add_(0, places, torch.ones_like(errors))
    totals, counts = accelerator.reduce(sums, "sum").cpu()
    return (totals / counts).tolist()


def sheet_cells(conditions: Conditions) -> tuple[list[str], list[str], pd.DataFrame]:
    """(row labels, column labels, what each cell asks for): diagnoses across, skin types or repeats down."""
    diagnoses = _seen(conditions, "diagnosis") or [UNKNOWN]
    types = _seen(conditions, "fitzpatrick")
    rows = types or [""] * REPEATS
    cells = pd.DataFrame(itertools.product(rows, diagnoses), columns=["fitzpatrick", "diagnosis"])
    for name in conditions.names:
        if name not in cells:
            cells[name] = UNKNOWN
    return rows, diagnoses, cells


def _seen(conditions: Conditions, name: str, limit: int = 8) -> list[str]:
    """The (at most `limit` most frequent) names of a category that training saw, in the vocabulary's order."""
    counts = conditions.counts.get(name, {})
    frequent = sorted((word for word in counts if counts[word]), key=lambda word: -counts[word])[:limit]
    return [word for word in conditions.vocabularies.get(name, []) if word in frequent]


@torch.no_grad()
def sample_shared(
    accelerator: accelerate.Accelerator,
    pipeline: LesionPipeline,
    encoded: dict[str, np.ndarray],
    *,
    seed: int,
    batch_size: int,
    num_inference_steps: int,
) -> np.ndarray:
    """uint8 (N, H, W, 3), an image for each of the encoded conditions, from a seed of its own; the processes share."""
    pipeline.set_progress_bar_config(desc="sampling", leave=False, disable=not accelerator.is_main_process)
    number = len(next(iter(encoded.values())))
    mine = np.arange(accelerator.process_index, number, accelerator.num_processes)
    images = []
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        conditions = {name: torch.from_numpy(values[numbers]) for name, values in encoded.items()}
        with accelerator.autocast():
            output = pipeline(
                class_labels=pipeline.conditioner(send_to_device(conditions, accelerator.device)),
                generator=[torch.Generator().manual_seed(seed * 100_003 + int(number)) for number in numbers],
                num_inference_steps=num_inference_steps,
                output_type="np",
            )
        images += list(zip(numbers.tolist(), np.round(output.images * 255).astype(np.uint8), strict=True))
    if accelerator.num_processes > 1:
        images = gather_object(images)
    return np.stack([image for _, image in sorted(images, key=lambda pair: pair[0])])


def draw_sheet(images: np.ndarray, rows: list[str], columns: list[str], path: Path, title: str) -> None:
    """Images (rows x columns, H, W, 3) as one labelled PNG, written whole or not at all."""
    height, width = images.shape[1:3]
    gap = 2
    canvas = np.full((len(rows) * (height + gap), len(columns) * (width + gap), 3), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // len(columns) * (height + gap), number % len(columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    figure = Figure(figsize=(1.2 + 0.95 * len(columns), 0.9 + 0.95 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_xticks([(column + 0.5) * (width + gap) for column in range(len(columns))], map(figure_text, columns))
    axis.set_yticks([(row + 0.5) * (height + gap) for row in range(len(rows))], map(figure_text, rows))
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    figure.suptitle(figure_text(title), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=110, metadata={"Software": None})
        with open_image(partial.read_bytes()) as drawn:
            smaller = drawn.convert("RGB")  # without the empty alpha channel
        smaller.save(partial, optimize=True)
