"""25 steps of DPM-Solver++ against 1000 of DDPM on the same generator: seconds per image, and KID against drawings.

    python -m benchmarks.diffusion_sampling --model runs/phantom32 --classifier runs/phantom32-classifier \
        --dataset_name data/phantom32 --output benchmarks/diffusion_sampling.json

Model and classifier as in diffusion_proof. KID: Binkowski et al. 2018, arXiv:1801.01401, on the pooled features of the
classifier, each time against the same number of held-out drawings; its spread is that over pairs of random halves of
both sides, and the floor is drawings against other drawings.
"""

import argparse
import json
import time
from pathlib import Path

import diffusers
import numpy as np
import torch

from benchmarks.diffusion_proof import BATCH, Sampler, held_out_drawings, pixels_for
from benchmarks.throughput import machine
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.classifier.export import ClassifierInfo, load_classifier
from melanoma_fair_xai.data.images import normalise
from melanoma_fair_xai.diffusion.generation import load_pipeline
from melanoma_fair_xai.diffusion.networks import image_size
from melanoma_fair_xai.diffusion.sample_metrics import squared_mmd

SUBSETS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Few steps of a good solver against many of the plain one.")
    parser.add_argument("--model", required=True, help="folder of the trained generator")
    parser.add_argument("--classifier", required=True, help="folder of a classifier trained on the same drawings")
    parser.add_argument("--dataset_name", required=True, help="folder of the phantoms")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the figures to this JSON file")
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(desc="steps", leave=False)
    classifier, info = load_classifier(arguments.classifier)
    _, pixels = held_out_drawings(arguments.dataset_name, image_size(pipeline.unet))
    drawings = features(classifier, info, pixels[: 2 * arguments.samples])
    reference, others = drawings[: arguments.samples], drawings[arguments.samples :]

    result = {"machine": machine(), "diffusers": diffusers.__version__, **vars(arguments), "data": "phantom"}
    result["kid_of_other_drawings"] = kid_with_spread(reference, others, arguments.seed)
    config = pipeline.scheduler.config
    for name, steps in (("DPMSolverMultistepScheduler", 25), ("DDPMScheduler", 1000)):
        pipeline.scheduler = getattr(diffusers, name).from_config(config)
        start = time.perf_counter()
        images = Sampler(pipeline, arguments.seed, steps)(arguments.samples, name)
        seconds = time.perf_counter() - start
        result[name] = {
            "steps": steps,
            "seconds_per_image": seconds / arguments.samples,
            "kid": kid_with_spread(features(classifier, info, images), reference, arguments.seed),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


@torch.inference_mode()
def features(classifier: torch.nn.Module, info: ClassifierInfo, images: np.ndarray) -> np.ndarray:
    """What the classifier's last layer sees, float64 (N, features)."""
    batches = []
    for part in torch.from_numpy(pixels_for(info, images)).permute(0, 3, 1, 2).split(BATCH):
        inputs = normalise(part, info.preprocessing)
        batches.append(classifier.forward_head(classifier.forward_features(inputs), pre_logits=True))
    return torch.cat(batches).double().numpy()


def kid_with_spread(first: np.ndarray, second: np.ndarray, seed: int) -> dict:
    """KID, and the standard deviation of it over random halves of both sides, scaled to the full size."""
    rng = np.random.default_rng(seed)

    def half(x: np.ndarray) -> np.ndarray:
        return x[rng.permutation(len(x))[: len(x) // 2]]

    values = [squared_mmd(half(first), half(second)) for _ in range(SUBSETS)]
    return {"kid": squared_mmd(first, second), "sd": float(np.std(values) / np.sqrt(2))}


if __name__ == "__main__":
    run_command(main)
