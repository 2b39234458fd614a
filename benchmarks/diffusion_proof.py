"""Whether a generator heeds its conditions, on phantoms, where the truth is known.

    python -m dataset_scripts.phantom --num_images 14000 --images_per_lesion 1 --image_size 32 --seed 7 \
        --output_dir data/phantom32
    accelerate launch train_diffusion.py --dataset_name data/phantom32 --preset 32-tiny --output_dir runs/phantom32
    accelerate launch train_classifier.py --dataset_name data/phantom32 --model_name_or_path resnet18 --no_pretrained \
        --image_size 32 --min_crop_area 1 --color_jitter 0 --num_train_epochs 6 --output_dir runs/phantom32-classifier
    python -m benchmarks.diffusion_proof --model runs/phantom32 --classifier runs/phantom32-classifier \
        --dataset_name data/phantom32 --output benchmarks/diffusion_proof.json

Skin type and ITA that were asked for are measured back from the skin around the samples, the diagnosis by a classifier
that was trained on drawings; both are applied to held-out drawings as well, which says how well they measure.
"""

import argparse
import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from scipy.stats import ks_2samp
from tqdm.auto import tqdm

from benchmarks.throughput import machine
from dataset_scripts.schema import SKIN_TYPES, UNKNOWN
from dataset_scripts.skin_colour import individual_typology_angle, rgb_to_lab, typical_colour
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.classifier.export import ClassifierInfo, load_classifier
from melanoma_fair_xai.classifier.predict import melanoma_scores, predict_logits
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.images import pixel_transform
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.diffusion.data import centre_square
from melanoma_fair_xai.diffusion.generation import load_pipeline
from melanoma_fair_xai.diffusion.networks import image_size

BATCH = 64
TYPES = [name for name in SKIN_TYPES if name != UNKNOWN]
ANGLES = [-45.0, -20.0, 0.0, 20.0, 35.0, 48.0, 62.0]
GUIDANCE = [0.0, 0.5, 1.0, 2.0, 3.0]
PARTS = ["skin_type", "ita", "diagnosis", "unknown", "guidance"]
RING = (0.78, 0.98)  # of half the side: around nearly every lesion of a phantom, and inside its dark corners


def main() -> None:
    parser = argparse.ArgumentParser(description="Conditions asked for, measured back on phantoms.")
    parser.add_argument("--model", required=True, help="folder of the trained generator")
    parser.add_argument("--classifier", required=True, help="folder of a classifier trained on the same drawings")
    parser.add_argument("--dataset_name", required=True, help="folder of the phantoms")
    parser.add_argument("--samples", type=int, default=100, help="samples per condition")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the figures to this JSON file")
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    classifier, info = load_classifier(arguments.classifier)
    sampler = Sampler(pipeline, arguments.seed, arguments.num_inference_steps)
    table, pixels = held_out_drawings(arguments.dataset_name, image_size(pipeline.unet))

    def scores(images: np.ndarray) -> np.ndarray:
        return classify(classifier, info, images)

    result = {"machine": machine(), "diffusers": diffusers.__version__, **vars(arguments), "data": "phantom"}
    result["drawings"] = {
        "n": len(pixels),
        "ita_error_of_the_measure": float(np.abs(ita(pixels) - table["ita"]).mean()),
    }
    parts = {
        "skin_type": lambda: skin_types(sampler, table, pixels, arguments.samples),
        "ita": lambda: angles(sampler, arguments.samples),
        "diagnosis": lambda: diagnoses(sampler, scores, info.threshold, table, pixels, arguments.samples),
        "unknown": lambda: marginal(sampler, scores, info.threshold, pixels, 3 * arguments.samples),
        "guidance": lambda: guidance(sampler, scores, info.threshold, arguments.samples),
    }
    for name in arguments.parts:
        result[name] = parts[name]()
        print(name, json.dumps(result[name], indent=2), flush=True)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


class Sampler:
    """Samples with a seed of their own each, so that none of them is drawn twice."""

    def __init__(self, pipeline: diffusers.DiffusionPipeline, seed: int, steps: int):
        self.pipeline, self.steps, self.seeds = pipeline, steps, itertools.count(seed * 10**6)

    def __call__(self, number: int, description: str = "sampling", **options) -> np.ndarray:
        """uint8 (number, H, W, 3)."""
        images = []
        for start in tqdm(range(0, number, BATCH), desc=description, unit="batch", leave=False):
            count = min(BATCH, number - start)
            generators = [torch.Generator().manual_seed(next(self.seeds)) for _ in range(count)]
            output = self.pipeline(**options, generator=generators, num_inference_steps=self.steps, output_type="np")
            images.append(np.round(output.images * 255).astype(np.uint8))
        return np.concatenate(images)


def held_out_drawings(dataset_name: str, size: int) -> tuple:
    """Table and pixels of the test split, which neither generator nor classifier has seen."""
    records = load_records(dataset_name)
    cache = decode_once(records.images, centre_square(size))
    rows = np.flatnonzero(records.table["split"] == "test")
    return records.table.iloc[rows].reset_index(drop=True), cache.pixels[rows]


def ita(images: np.ndarray) -> np.ndarray:
    """ITA in degrees (N,) of the typical colour of a ring around the lesion in square uint8 images (N, H, H, 3)."""
    axis = (np.arange(images.shape[1]) + 0.5) * 2 / images.shape[1] - 1
    distance = np.hypot(axis[:, None], axis[None])
    ring = (distance > RING[0]) & (distance < RING[1])
    return np.array([individual_typology_angle(typical_colour(rgb_to_lab(image[ring] / 255))) for image in images])


def pixels_for(info: ClassifierInfo, images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, 3) through the classifier's own pre-processing, before normalisation."""
    transform = pixel_transform(info.preprocessing)
    return np.stack([transform(PIL.Image.fromarray(image)).permute(1, 2, 0).numpy() for image in images])


def classify(classifier: torch.nn.Module, info: ClassifierInfo, images: np.ndarray) -> np.ndarray:
    """The probability of melanoma (N,)."""
    rows, pixels = np.arange(len(images)), pixels_for(info, images)
    logits = predict_logits(Accelerator(cpu=True), classifier, pixels, rows, info.preprocessing, BATCH, "classifying")
    return melanoma_scores(logits, info.positive)


def agreement(melanoma: np.ndarray, nevus: np.ndarray, threshold: float) -> float:
    """Of scores of what should be melanomas and what should not: the mean of both shares on the right side."""
    return float(((melanoma >= threshold).mean() + (nevus < threshold).mean()) / 2)


def skin_types(sampler: Sampler, table, pixels: np.ndarray, samples: int) -> dict:
    """Mean and spread of the ITA by skin type, of samples and of held-out drawings, and the errors of the means."""
    rows = {}
    for name in TYPES:
        drawn = ita(pixels[(table["fitzpatrick"] == name).to_numpy()])
        sampled = ita(sampler(samples, f"type {name}", fitzpatrick=name))
        rows[name] = {
            "drawings": {"n": len(drawn), "mean": float(drawn.mean()), "sd": float(drawn.std())},
            "samples": {"n": len(sampled), "mean": float(sampled.mean()), "sd": float(sampled.std())},
            "error_of_the_mean": float(sampled.mean() - drawn.mean()),
        }
    means = [row["samples"]["mean"] for row in rows.values()]
    return {
        "types": rows,
        "mean_absolute_error": float(np.mean([abs(row["error_of_the_mean"]) for row in rows.values()])),
        "in_order": bool((np.diff(means) < 0).all()),
    }


def angles(sampler: Sampler, samples: int) -> dict:
    """The ITA of each sample against the angle that was asked for."""
    errors = {angle: ita(sampler(samples // 2, f"ITA {angle:g}", ita=angle)) - angle for angle in ANGLES}
    return {
        "bias": {f"{angle:g}": float(error.mean()) for angle, error in errors.items()},
        "mean_absolute_error": float(np.mean([np.abs(error).mean() for error in errors.values()])),
        "n": samples // 2 * len(ANGLES),
    }


def diagnoses(sampler: Sampler, scores, threshold: float, table, pixels: np.ndarray, samples: int) -> dict:
    """How often the classifier finds the diagnosis that was asked for, beside held-out drawings of that diagnosis."""
    melanoma = (table["diagnosis"] == "melanoma").to_numpy()
    drawn = scores(pixels)
    sampled = {name: scores(sampler(2 * samples, name, diagnosis=name)) for name in ("melanoma", "nevus")}
    real, generated = agreement(drawn[melanoma], drawn[~melanoma], threshold), agreement(*sampled.values(), threshold)
    error = np.sqrt(sum(np.var(values >= threshold) / len(values) for values in sampled.values())) / 2
    return {
        "agreement_on_drawings": real,
        "agreement_on_samples": generated,
        "standard_error": float(error),
        "difference": generated - real,
        "n": {"drawings": len(drawn), "samples": 4 * samples},
    }


def marginal(sampler: Sampler, scores, threshold: float, pixels: np.ndarray, samples: int) -> dict:
    """Samples of which nothing is asked against held-out drawings, and these against each other, half against half."""
    images = sampler(samples, "unknown")
    drawn_ita, drawn_scores, sampled_ita, sampled_scores = ita(pixels), scores(pixels), ita(images), scores(images)
    half = len(pixels) // 2
    return {
        "n": samples,
        "ita": {
            "drawings": [float(drawn_ita.mean()), float(drawn_ita.std())],
            "samples": [float(sampled_ita.mean()), float(sampled_ita.std())],
            "kolmogorov_smirnov": float(ks_2samp(drawn_ita, sampled_ita).statistic),
            "kolmogorov_smirnov_of_halves": float(ks_2samp(drawn_ita[:half], drawn_ita[half:]).statistic),
        },
        "share_called_melanoma": {
            "drawings": float((drawn_scores >= threshold).mean()),
            "samples": float((sampled_scores >= threshold).mean()),
        },
    }


def guidance(sampler: Sampler, scores, threshold: float, samples: int) -> dict:
    """Agreement, and the difference of the classifier's mean log odds between the diagnoses, by guidance scale."""
    rows = {}
    for scale in GUIDANCE:
        melanoma, nevus = (
            scores(sampler(samples, f"guidance {scale:g}", diagnosis=name, guidance_scale=scale))
            for name in ("melanoma", "nevus")
        )
        rows[f"{scale:g}"] = {
            "agreement": agreement(melanoma, nevus, threshold),
            "log_odds_difference": float(log_odds(melanoma).mean() - log_odds(nevus).mean()),
        }
    differences = [row["log_odds_difference"] for row in rows.values()]
    return {"scales": rows, "n": 2 * samples, "monotonic": bool((np.diff(differences) > 0).all())}


def log_odds(scores: np.ndarray) -> np.ndarray:
    clipped = scores.clip(1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


if __name__ == "__main__":
    run_command(main)
