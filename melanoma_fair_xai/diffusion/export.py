"""The one way a trained generator is written: a folder that `DiffusionPipeline.from_pretrained` loads anywhere."""

import os
import shutil
import tempfile
from pathlib import Path

import diffusers
from safetensors import SafetensorError

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX
from melanoma_fair_xai.engine.run_folder import remove

from .lesion_conditioner import LesionConditioner
from .pipeline_lesion import LesionPipeline


def make_pipeline(
    unet: diffusers.UNet2DModel,
    conditioner: LesionConditioner,
    noise_scheduler: diffusers.DDPMScheduler,
    band_scales: dict[str, float] | None = None,
) -> LesionPipeline:
    """The two networks with training's noise schedule under DPM-Solver++ (multistep, second order; Lu et al. 2022,
    arXiv:2211.01095); `band_scales` as `LesionPipeline` takes them."""
    sampler = diffusers.DPMSolverMultistepScheduler.from_config(noise_scheduler.config)
    return LesionPipeline(unet, conditioner, sampler, band_scales)


def export_pipeline(pipeline: LesionPipeline, folder: Path) -> None:
    """Write model_index.json, unet/, conditioner/ and scheduler/ with the code that loading needs into `folder`.

    Weights are safetensors. Each part is written beside and renamed, model_index.json last: a folder that has it is
    whole. UserError if it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL_PREFIX) as partial:
        try:
            pipeline.save_pretrained(partial)
        except SafetensorError as error:  # a full disk, most often
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: the model could not be written ({reason}); free some space there") from None
        for weights in Path(partial).rglob("*.safetensors"):
            shutil.copymode(weights.with_name("config.json"), weights)  # safetensors lets only the owner read them
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == pipeline.config_name):
            target = folder / path.name
            if target.is_dir():
                remove(target)
            os.replace(path, target)
