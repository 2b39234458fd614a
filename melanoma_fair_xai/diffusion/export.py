"""The one way a trained generator is written: a folder that `DiffusionPipeline.from_pretrained` loads anywhere."""

import os
from pathlib import Path

import diffusers

from melanoma_fair_xai.engine.files import PARTIAL_PREFIX
from melanoma_fair_xai.engine.run_folder import remove

from .lesion_conditioner import LesionConditioner
from .pipeline_lesion import LesionPipeline


def make_pipeline(
    unet: diffusers.UNet2DModel, conditioner: LesionConditioner, noise_scheduler: diffusers.DDPMScheduler
) -> LesionPipeline:
    """The two networks with training's noise schedule under DPM-Solver++ (multistep, second order; Lu et al. 2022,
    arXiv:2211.01095)."""
    sampler = diffusers.DPMSolverMultistepScheduler.from_config(noise_scheduler.config)
    return LesionPipeline(unet, conditioner, sampler)


def export_pipeline(pipeline: LesionPipeline, folder: Path) -> None:
    """Write model_index.json, unet/, conditioner/ and scheduler/ with the code that loading needs into `folder`.

    Weights are safetensors. Everything is written beside first; what a killed export leaves behind is a
    `.partial-export` folder, which opening the run folder removes.
    """
    partial = folder / f"{PARTIAL_PREFIX}export"
    pipeline.save_pretrained(partial)
    # model_index.json last: without it nobody takes the folder for a pipeline.
    for path in sorted(partial.iterdir(), key=lambda path: path.is_file()):
        target = folder / path.name
        if target.is_dir():
            remove(target)
        os.replace(path, target)
    partial.rmdir()
